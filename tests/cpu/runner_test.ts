/** Work on the CPU in slices, between which the event loop turns. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { CpuOps, type CpuTensor } from "../../lib/cpu/ops.ts";
import { SLICE } from "../../lib/cpu/kernels.ts";
import { CpuRunner } from "../../lib/cpu/runner.ts";
import { f32 } from "../../lib/formats/tensor.ts";
import { matrixOf } from "../../lib/formats/matrix.ts";
import { loadQwen3 } from "../../mod.ts";
import { parseSynthetic } from "../../lib/checkpoint/synthetic.ts";
import { Random } from "../../lib/check/reference.ts";
import { fastClock } from "../support/fast_clock.ts";
import { slowTest } from "../support/quick.ts";

const CONFIG = {
  ...parseSynthetic("synthetic:qwen3-0.6b?layers=1&vocab=64").config,
  hiddenSize: 256,
  intermediateSize: 2048,
  numAttentionHeads: 4,
  numKeyValueHeads: 2,
  headDim: 64,
};

/** A pass of some rows through each kind of work that has slices. */
function* pass(
  ops: CpuOps,
  rows = 600,
): Generator<CpuTensor, CpuTensor, CpuTensor> {
  const random = new Random();
  const tensor = (...shape: number[]) => {
    const made = ops.tensor("f32", shape);
    f32(made).set(f32(random.tensor("f32", shape)));
    return made;
  };
  const { hiddenSize: hidden, intermediateSize: inner, headDim } = CONFIG;
  const norm = matrixOf(tensor(hidden)), heads = matrixOf(tensor(headDim));
  const x = tensor(rows, hidden);
  const qkv = yield ops.normMatmul(x, norm, matrixOf(tensor(512, hidden)));
  const cache = ops.createCache(1, rows);
  cache.begin({ first: 0, sequences: 1, tokens: rows });
  const attended = yield ops.attend(qkv, heads, heads, cache, 0);
  const added = yield ops.matmulAdd(
    attended,
    matrixOf(tensor(hidden, hidden)),
    x,
  );
  const { parts: [part], ...rest } = matrixOf(tensor(2 * inner, hidden));
  const gateUp = { ...rest, parts: [{ ...part, rows: inner, twin: inner }] };
  const gated = yield ops.normSwiglu(added, norm, gateUp);
  return ops.matmulAdd(gated, matrixOf(tensor(hidden, inner)), added);
}

for (
  const options of [{ threads: 1 }, { threads: 2 }, { simd: false }] as {
    threads?: number;
    simd?: boolean;
  }[]
) {
  slowTest(
    `slices give what the whole gives (${JSON.stringify(options)})`,
    () => {
      const { threads = 1, simd = true } = options, rows = simd ? 600 : 300;
      const run = (sliced: boolean) => {
        using ops = new CpuOps(CONFIG, options);
        const work = pass(ops, rows);
        if (!sliced) {
          let next = work.next();
          while (!next.done) next = work.next(next.value);
          return { out: f32(next.value).slice(), slices: 0 };
        }
        const slicing = ops.inSlices(work);
        let next = slicing.next(), slices = 0;
        for (; !next.done; next = slicing.next()) slices++;
        return { out: f32(next.value).slice(), slices };
      };
      const { out, slices } = run(true);
      assert(out.every(Number.isFinite) && out.some((v) => v !== 0));
      assertEquals(out, run(false).out);
      const { hiddenSize: hidden, intermediateSize: inner } = CONFIG;
      const multiplications = rows * (512 + hidden + 3 * inner) * hidden;
      // Each of the four verbs may end with less than a slice.
      const least = Math.floor(multiplications / (SLICE * threads)) - 4;
      assert(slices >= least && slices > 1, `${slices} slices, not ${least}`);
    },
  );
}

Deno.test("a pass that is abandoned does not disturb the next", () => {
  using ops = new CpuOps(CONFIG, { threads: 1 });
  const whole = (work: Generator<void, CpuTensor>) => {
    let next = work.next();
    while (!next.done) next = work.next();
    return f32(next.value).slice();
  };
  const expected = whole(ops.inSlices(pass(ops)));
  {
    using left = ops.inSlices(pass(ops));
    for (let i = 0; i < 3; i++) left.next();
  }
  // Verbs are done when they return again.
  const x = ops.tensor("f32", [1, 2]), w = ops.tensor("f32", [1, 2]);
  f32(x).set([1, 2]);
  f32(w).set([3, 4]);
  const y = ops.matmulAdd(x, matrixOf(w), ops.tensor("f32", [1, 1]));
  assertEquals([...f32(y)], [11]);
  assertEquals(whole(ops.inSlices(pass(ops))), expected);
});

Deno.test("an abort acts between two slices of a pass", async () => {
  using qwen = await loadQwen3("synthetic:qwen3-0.6b?layers=2&vocab=4096", {
    device: "cpu",
    context: 512,
  });
  const { runner } = qwen;
  assert(runner instanceof CpuRunner);
  const inSlices = runner.ops.inSlices.bind(runner.ops);
  let slices = 0, after = 0;
  let abort = new AbortController();
  runner.ops.inSlices = function* (pass) {
    const work = inSlices(pass);
    for (;;) {
      const { done, value } = work.next();
      if (done) return value;
      slices++;
      if (abort.signal.aborted) after++;
      yield;
    }
  };
  const ids = Array.from({ length: 250 }, (_, i) => i);
  await qwen.logits(ids);
  const inAll = slices;
  assert(inAll > 20, `${inAll} slices`);
  // A clock on which every slice takes long, so that every slice ends with a turn.
  using _clock = fastClock(60);
  for (const what of ["logits", "generate", "generateBatch"] as const) {
    slices = after = 0;
    abort = new AbortController();
    const { signal } = abort;
    let turns = 0;
    const timer = setInterval(() => ++turns === 5 && abort.abort(), 0);
    if (what === "logits") {
      await assertRejects(() => qwen.logits(ids, { signal }), DOMException);
    } else if (what === "generate") {
      const run = qwen.generate(ids, { signal });
      assertEquals(await Array.fromAsync(run), []);
      assertEquals([run.finishReason, run.stats.tokens], ["aborted", 0]);
    } else {
      const run = qwen.generateBatch([ids, [1]], { signal, maxTokens: 2 });
      assertEquals(await Array.fromAsync(run), []);
    }
    clearInterval(timer);
    assert(after <= 1 && slices < inAll / 2, `${what}: ${slices}, ${after}`);
  }
});
