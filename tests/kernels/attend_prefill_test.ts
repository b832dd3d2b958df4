import { attendPrefillF16 } from "../../kernels/attend_prefill_f16.ts";
import { attendPrefill } from "../../kernels/attend_prefill.ts";
import { type CpuTensor, toF32 } from "../../lib/cpu/tensor.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, type Trial } from "../support/gpu.ts";
import {
  assertSums,
  attended,
  type Attention,
  attentionInputs,
} from "../support/reference.ts";

/** Sixteen lanes: through subgroups where they have as many. */
function run(
  trial: Trial,
  { q, k, v }: Record<"q" | "k" | "v", CpuTensor>,
  { heads, kvHeads, headDim, lengths, first, tokens, rows }: Attention,
  half = false,
) {
  const SUBGROUPS = trial.gpu.subgroupSize >= 16 ? 1 : 0;
  const y = trial.filled([rows, heads * headDim]);
  trial.run(half ? attendPrefillF16 : attendPrefill, {
    q: trial.upload(q),
    k: trial.upload(k),
    v: trial.upload(v),
    lengths: trial.u32(...lengths),
    y,
  }, {
    constants: {
      HEAD_DIM: headDim,
      ...(half ? { ROWS: trial.gpu.software ? 32 : 64 } : {}),
      ...{ SUBGROUPS, LOG_LANES: 4 },
    },
    uniforms: { first, tokens, group: heads / kvHeads, scale: headDim ** -0.5 },
  });
  return y;
}

/** Random q and a cache that has the pass's tokens. */
function inputs(trial: Trial, sizes: Attention, cache: "f32" | "f16") {
  const { rows, heads, headDim, tokens } = sizes, { random } = trial;
  const { k, v } = attentionInputs(random, sizes, { cache }, tokens);
  return { q: random.tensor("f32", [rows, heads * headDim], 2), k, v };
}

async function check(trial: Trial, sizes: Attention, cache: "f32" | "f16") {
  const { q, k, v } = inputs(trial, sizes, cache);
  const y = run(trial, { q, k, v }, sizes);
  const values = { q: toF32(q), k: toF32(k), v: toF32(v) };
  const message = JSON.stringify({ ...sizes, cache });
  assertSums(await y.read(), attended(values, sizes), message);
}

gpuTest(
  "attendPrefill attends with heads of any size and ratio",
  async (_, trial) => {
    const { random } = trial;
    const sizes = [[2, 6], [20, 100], [16, 64, 80], [128], [256]];
    for (const some of sizes) {
      const headDim = random.pick(some);
      const cache = headDim % 8 ? "f32" : random.pick(["f32", "f16"] as const);
      for (const ratio of [1, 2, 3, 6, 8]) {
        const kvHeads = random.int(1, 2), tokens = random.int(1, 25);
        const lengths = [random.int(0, 80), random.int(0, 80)];
        const shape = {
          heads: ratio * kvHeads,
          kvHeads,
          headDim,
          context: 105,
        };
        const pass = { lengths, first: 0, tokens, rows: 2 * tokens, eps: 0 };
        await check(trial, { ...shape, ...pass }, cache);
      }
    }
  },
);

gpuTest(
  "attendPrefill attends at every border of its tiles",
  async (_, trial) => {
    const { random } = trial;
    const shape = { heads: 3, kvHeads: 1, headDim: 16, context: 1100, eps: 0 };
    for (const length of [0, 1, 63, 64, 65, 127, 128, 129, 255, 300, 1000]) {
      const tokens = random.pick([1, 2, 21, 22, 43, 64, 65, 100]);
      const lengths = [random.int(0, 1000), length, random.int(0, 1000)];
      const pass = { lengths, first: 1, tokens, rows: 2 * tokens };
      await check(trial, { ...shape, ...pass }, "f16");
    }
  },
);

gpuTest(
  "attendPrefill shows no token what comes after it",
  async (_, trial) => {
    const tokens = 70, width = 4 * 16, lengths = [5];
    const shape = { heads: 4, kvHeads: 2, headDim: 16, context: 80, eps: 0 };
    const sizes = { ...shape, lengths, first: 0, tokens, rows: tokens };
    const given = inputs(trial, sizes, "f16");
    const before = await run(trial, given, sizes).read();
    for (const changed of [1, 30, 69]) {
      const { q, k, v } = structuredClone(given);
      q.data.fill(1e3, changed * width);
      for (let head = 0; head < 2; head++) {
        const begin = (head * 80 + 5 + changed) * 16,
          end = (head * 80 + 75) * 16;
        for (const cached of [k, v]) cached.data.fill(0x5000, begin, end); // f16 32
      }
      const after = await run(trial, { q, k, v }, sizes).read();
      const same = changed * width;
      assertAllClose(after.subarray(0, same), before.subarray(0, same));
      assertAllClose(
        [Number(after[same] === before[same])],
        [0],
        {},
        "no change",
      );
    }
  },
);

gpuTest(
  "attendPrefill stands large scores and equal ones",
  async (_, trial) => {
    const shape = { heads: 2, kvHeads: 1, headDim: 16, context: 200, eps: 0 };
    const sizes = { ...shape, lengths: [100], first: 0, tokens: 90, rows: 90 };
    const { q, k, v } = inputs(trial, sizes, "f32");
    for (const scale of [0, 300]) {
      const scaled = { ...q, data: q.data.map((x) => Math.fround(x * scale)) };
      const y = run(trial, { q: scaled, k, v }, sizes);
      const values = { q: toF32(scaled), k: toF32(k), v: toF32(v) };
      // A score of some hundreds is off by more than one of a few.
      assertSums(await y.read(), attended(values, sizes), `${scale}`, 3e-4);
    }
  },
);

/** Heads of 64 or 128 and an f16 cache are what it takes. */
function halfTest(name: string, fn: (trial: Trial) => Promise<void>): void {
  gpuTest(name, async (gpu, trial) => {
    if (gpu.f16) await fn(trial); // never chosen without
  });
}

halfTest("attendPrefillF16 attends about as well as f16 can", async (trial) => {
  const { random } = trial;
  // Software adapters take long to compile each.
  for (const headDim of trial.gpu.software ? [128] : [64, 128]) {
    for (const length of [0, 1, 63, 64, 65, 300]) {
      const kvHeads = random.int(1, 2),
        heads = kvHeads * random.pick([1, 2, 3, 8]);
      const tokens = random.pick([2, 21, 32, 33, 65]);
      const lengths = [random.int(0, 300), length, random.int(0, 300)];
      const shape = { heads, kvHeads, headDim, context: 370, eps: 0 };
      const sizes = { ...shape, lengths, first: 1, tokens, rows: 2 * tokens };
      const { q, k, v } = inputs(trial, sizes, "f16");
      const y = run(trial, { q, k, v }, sizes, true);
      const values = { q: toF32(q), k: toF32(k), v: toF32(v) };
      const message = JSON.stringify(sizes);
      assertSums(await y.read(), attended(values, sizes), message, 4e-3);
    }
  }
});

halfTest(
  "attendPrefillF16 counts many small weights beside a large one",
  async (trial) => {
    // One key has e⁸ times the weight of each of 1,000 others: a quarter of it in all.
    const shape = { heads: 1, kvHeads: 1, headDim: 128, context: 1002, eps: 0 };
    const sizes = { ...shape, lengths: [1000], first: 0, tokens: 2, rows: 2 };
    const { q, k, v } = inputs(trial, sizes, "f16");
    q.data.fill(Math.SQRT1_2);
    const one = 0x3c00; // in f16
    k.data.fill(0);
    k.data.fill(one, 5 * 128, 6 * 128); // a score of sqrt(128 / 2)
    v.data.fill(one);
    v.data.fill(0, 5 * 128, 6 * 128);
    const y = run(trial, { q, k, v }, sizes, true);
    const values = { q: toF32(q), k: toF32(k), v: toF32(v) };
    const { values: expected } = attended(values, sizes);
    assertAllClose(await y.read(), expected, { relative: 4e-3 });
  },
);

halfTest(
  "attendPrefillF16 holds the largest values that f16 does",
  async (trial) => {
    const shape = { heads: 2, kvHeads: 1, headDim: 128, context: 100, eps: 0 };
    const sizes = { ...shape, lengths: [60], first: 0, tokens: 40, rows: 40 };
    const { q, k, v } = inputs(trial, sizes, "f16");
    v.data.fill(0x7bff); // 65,504
    const y = await run(trial, { q, k, v }, sizes, true).read();
    assertAllClose(y, y.map(() => 65504), { relative: 2e-3 });
  },
);
