import { assert, assertEquals, assertRejects } from "@std/assert";
import { DeviceError } from "../../lib/errors.ts";
import { loadQwen3, type Qwen3 } from "../../lib/load.ts";
import { GpuOps } from "../../lib/gpu/ops.ts";
import { GpuRunner } from "../../lib/gpu/runner.ts";
import { resolveSampling } from "../../lib/model/sampling.ts";
import { fastClock } from "../support/fast_clock.ts";
import { relativeError } from "../support/golden.ts";
import { gpuTest } from "../support/gpu.ts";

const TINY = new URL("../fixtures/tiny-tied-bf16/", import.meta.url).href;
const GREEDY = resolveSampling({ temperature: 0 }, {});

function runnerOf({ runner }: Qwen3): GpuRunner {
  assert(runner instanceof GpuRunner);
  return runner;
}

/** What a loop does, in order; a number is a chunk of that many tokens. */
async function watch(runner: GpuRunner, maxTokens: number, chunk?: number) {
  const order: (string | number)[] = [], pieces: number[] = [];
  runner.watcher = {
    chunk,
    timestamps(steps) {
      pieces.push(steps);
      return undefined;
    },
    did: (what) => void order.push(what),
  };
  const run = runner.generate([[1, 2, 3]], GREEDY, maxTokens);
  for await (const ids of run) order.push(ids.length);
  runner.watcher = undefined;
  const chunks = order.filter((what) => typeof what === "number");
  return { order, chunks, pieces };
}

gpuTest(
  "chunks grow from one token, unless their size is given",
  async () => {
    using qwen = await loadQwen3(TINY, { device: "gpu" });
    const runner = runnerOf(qwen);
    for (const tokens of [1, 2, 40]) {
      const { chunks, pieces } = await watch(runner, tokens);
      assertEquals(chunks[0], 1);
      assertEquals(chunks.reduce((a, b) => a + b), tokens);
      assertEquals(pieces.reduce((a, b) => a + b, 1), tokens);
      const grown = chunks.slice(1, -1);
      assert(grown.every((n, i) => i === 0 || n >= grown[i - 1]), `${chunks}`);
    }
    assertEquals((await watch(runner, 12, 5)).chunks, [1, 5, 5, 1]);
    assertEquals((await watch(runner, 4, 1)).chunks, [1, 1, 1, 1]);
  },
);

gpuTest(
  "the next piece is encoded before a readback, except before the first token",
  async () => {
    using qwen = await loadQwen3(TINY, { device: "gpu" });
    const runner = runnerOf(qwen);
    // A step that has yet to be compiled comes after the first token.
    const fresh = (await watch(runner, 40)).order
      .filter((what) => what !== "readback");
    assertEquals(fresh.slice(0, 4), ["wait", 1, "encode", "submit"]);
    const { order, chunks } = await watch(runner, 40);
    const shown = order.filter((what) => what !== "readback");
    // Where promises settle late, the next piece is submitted during the wait.
    const begin = runner.gpu.readsAtOnce
      ? ["encode", "wait", "submit", 1, "encode"]
      : ["encode", "submit", "wait", 1, "encode"];
    assertEquals(shown.slice(0, begin.length), begin);
    if (!runner.gpu.readsAtOnce) return;
    const after = shown.flatMap((what, i) =>
      what === "wait" ? [shown[i + 1]] : []
    );
    const last = after.pop(); // nothing follows it
    assertEquals(after, Array(chunks.length - 1).fill("submit"));
    assertEquals(last, chunks.at(-1));
  },
);

gpuTest(
  "where readbacks are apart, work is submitted before them and tokens are the same",
  async () => {
    using qwen = await loadQwen3(TINY, { device: "gpu" });
    const runner = runnerOf(qwen);
    const ids = async () => {
      const all: number[][] = [];
      for (const maxTokens of [1, 2, 3, 40]) {
        const run = qwen.generate([1, 2, 3], { seed: 5, maxTokens });
        for await (const _ of run);
        all.push(run.tokenIds);
      }
      const options = { seed: 5, maxTokens: 20, ignoreEos: true };
      const batch = qwen.generateBatch([[1, 2], [3, 4, 5]], options);
      for await (const _ of batch);
      return [...all, ...batch.sequences.map(({ tokenIds }) => tokenIds)];
    };
    const expected = await ids();
    Object.defineProperty(runner.gpu, "readsApart", { value: true });
    assertEquals(await ids(), expected);
    const { order, chunks } = await watch(runner, 40);
    assertEquals(chunks.reduce((a, b) => a + b), 40);
    const shown = order.filter((what) => what !== "readback");
    const first = shown.indexOf("wait");
    assert(shown.slice(0, first).includes("submit"), shown.join());
    assertEquals(shown[first + 1], 1);
  },
);

gpuTest(
  "prompts are padded to few lengths, and their logits stay",
  async () => {
    const context = 90;
    for (const precision of ["f32", "auto"] as const) {
      using qwen = await loadQwen3(TINY, { device: "gpu", precision, context });
      const { vocabSize } = qwen.config;
      const prompt = Array.from(
        { length: context },
        (_, i) => (7 + 5 * i) % 99,
      );
      const exact = await qwen.logits(prompt, { all: true });
      const { embed } = GpuOps.prototype;
      const rows = new Set<number>();
      let recorded = 0;
      GpuOps.prototype.embed = function (table, tokens) {
        recorded++;
        rows.add(tokens.shape[0]);
        return embed.call(this, table, tokens);
      };
      try {
        // One short of a size, and all of the context, where there is no room for padding.
        const lengths = [
          1,
          3,
          5,
          11,
          23,
          33,
          34,
          37,
          39,
          40,
          65,
          79,
          87,
          89,
          90,
        ];
        for (const n of lengths) {
          const end = n * vocabSize;
          const error = relativeError(
            await qwen.logits(prompt.slice(0, n)),
            exact.subarray(end - vocabSize, end),
          );
          // Hardware multiplies in f16 under auto, by kernels that differ with the rows.
          const most = precision === "f32" || runnerOf(qwen).gpu.software
            ? 1e-3
            : 3e-3;
          assert(error < most, `${n} tokens, ${precision}: ${error}`);
        }
      } finally {
        GpuOps.prototype.embed = embed;
      }
      // A software renderer takes fewer rows at a time.
      assertEquals(recorded, rows.size);
      assert(recorded <= 10, `${[...rows]}`);
    }
  },
);

gpuTest("runs that are left early return their buffers", async () => {
  using qwen = await loadQwen3(TINY, { device: "gpu" });
  const { device, readsAtOnce } = runnerOf(qwen).gpu;
  if (!readsAtOnce) return;
  const create = device.createBuffer.bind(device);
  let made = 0;
  device.createBuffer = (descriptor) => {
    if (descriptor.usage & GPUBufferUsage.MAP_READ) made++;
    return create(descriptor);
  };
  const mappings: Promise<unknown>[] = [];
  const { mapAsync } = GPUBuffer.prototype;
  using _restored = new DisposableStack();
  _restored.defer(() => GPUBuffer.prototype.mapAsync = mapAsync);
  GPUBuffer.prototype.mapAsync = function (...args) {
    const mapping = mapAsync.apply(this, args);
    mappings.push(mapping.catch(() => {}));
    return mapping;
  };
  const prompt = [1, 2, 3];
  const expected = qwen.generate(prompt, { temperature: 0, maxTokens: 9 });
  await Array.fromAsync(expected);
  for (let i = 0; i < 40; i++) {
    const run = qwen.generate(prompt, { temperature: 0 });
    for await (const _ of run) if (run.tokenIds.length === 3) break;
    await Promise.all(mappings.splice(0)); // until buffers are free again
  }
  const again = qwen.generate(prompt, { temperature: 0, maxTokens: 9 });
  await Array.fromAsync(again);
  assertEquals(again.tokenIds, expected.tokenIds);
  assertEquals(made, 0);
});

gpuTest("a device lost while it decodes is an error", async () => {
  for (const after of [0, 1, 2, 9]) {
    using qwen = await loadQwen3(TINY, { device: "gpu" });
    const { device } = runnerOf(qwen).gpu;
    const run = qwen.generate([1, 2, 3], { temperature: 0, ignoreEos: true });
    if (after === 0) device.destroy();
    await assertRejects(
      async () => {
        for await (const _ of run) {
          if (run.tokenIds.length === after) device.destroy();
        }
      },
      DeviceError,
      "the device was lost",
    );
  }
});

/** Counts submissions; `onSubmit` is called with their number. */
function countSubmits(runner: GpuRunner, onSubmit: (n: number) => void) {
  const { queue } = runner.gpu.device;
  const submit = queue.submit.bind(queue);
  let submitted = 0;
  queue.submit = (commands) => {
    submit(commands);
    onSubmit(++submitted);
  };
  return {
    [Symbol.dispose]: () => void (queue.submit = submit),
  };
}

gpuTest("a slow device decodes and prefills the same in slices", async () => {
  using qwen = await loadQwen3(undefined, { device: "gpu" });
  const runner = runnerOf(qwen);
  const ids = Array.from({ length: 40 }, (_, i) => 300 + i);
  const options = { temperature: 0, maxTokens: 12, ignoreEos: true };
  const texts = async () => {
    const one = qwen.generate(ids, options);
    await Array.fromAsync(one);
    const many = qwen.generateBatch([ids, [5, 6], [7]], options);
    await Array.fromAsync(many);
    return [one, ...many.sequences].map(({ tokenIds }) => tokenIds);
  };
  const expected = await texts();
  let submitted = 0;
  using _counting = countSubmits(runner, (n) => submitted = n);
  await texts();
  const atOnce = submitted;
  // Pretends that a multiplication takes long, so that every dispatch is a slice.
  const { prompt, step } = runner.paces;
  for (const pace of [prompt, step]) {
    pace.rate = 1e-3;
    pace.measured = () => {};
  }
  assertEquals(await texts(), expected);
  const sliced = submitted - atOnce;
  assert(sliced > 5 * atOnce, `${atOnce} submissions became ${sliced}`);
  // A device that turns out to be fast gets chunks of steps again.
  step.measured = () => void (step.rate = 1e9);
  assertEquals(await texts(), expected);
});

gpuTest("on a slow device an abort acts between two slices", async () => {
  using qwen = await loadQwen3(undefined, { device: "gpu" });
  const runner = runnerOf(qwen);
  const ids = Array.from({ length: 40 }, (_, i) => 300 + i);
  const options = { temperature: 0, maxTokens: 12, ignoreEos: true };
  const whole = qwen.generate(ids, options);
  await Array.fromAsync(whole);
  for (const pace of [runner.paces.prompt, runner.paces.step]) {
    pace.rate = 1e-3;
    pace.measured = () => {};
  }
  // A clock on which every slice takes long, so that every slice ends with a turn.
  using clock = new DisposableStack();
  clock.use(fastClock(60));
  for (const what of ["prompt", "step", "logits"]) {
    const abort = new AbortController(), { signal } = abort;
    let after = 0;
    const run = qwen.generate(ids, { ...options, signal });
    using _counting = countSubmits(runner, (n) => {
      const begun = what !== "step" || run.tokenIds.length === 3;
      if (signal.aborted) after++;
      else if (n >= 12 && begun) setTimeout(() => abort.abort(), 0);
    });
    if (what === "logits") {
      await assertRejects(() => qwen.logits(ids, { signal }), DOMException);
    } else {
      await Array.fromAsync(run);
      assertEquals(run.finishReason, "aborted");
      assertEquals(run.tokenIds, whole.tokenIds.slice(0, run.tokenIds.length));
      const tokens = run.tokenIds.length, begun = what === "step" ? 3 : 0;
      assert(tokens === begun || tokens === begun + 1, `${what}: ${tokens}`);
    }
    assert(after <= 2, `${what}: ${after} submissions after the abort`);
  }
  clock.dispose();
  runner.paces.prompt.rate = runner.paces.step.rate = 1e9;
  const again = qwen.generate(ids, options);
  await Array.fromAsync(again);
  assertEquals(again.tokenIds, whole.tokenIds);
});
