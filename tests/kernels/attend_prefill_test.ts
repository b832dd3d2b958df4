import { cachedToF32, type CacheDtype } from "../../lib/formats/cached.ts";
import { toF32 } from "../../lib/formats/tensor.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, someOf, type Trial } from "../support/gpu.ts";
import { prefillInputs, runPrefill } from "../support/prefill.ts";
import { assertSums, attended, type Attention } from "../support/reference.ts";

/** Rows of tiles to draw from; the tests share one, because each is another pipeline. */
const TILES = someOf([32, 64], 1);

async function check(
  trial: Trial,
  sizes: Attention,
  cache: CacheDtype,
  splits = 0,
) {
  const { q, k, v } = prefillInputs(trial, sizes, cache);
  const ROWS = trial.random.pick(TILES);
  const y = runPrefill(trial, { q, k, v }, sizes, "f32", ROWS, splits);
  const [keys, values] = [k, v].map((one) => cachedToF32(one, sizes.headDim));
  const all = { q: toF32(q), k: keys, v: values };
  const message = JSON.stringify({ ...sizes, cache, ROWS, splits });
  assertSums(await y.read(), attended(all, sizes), message);
}

gpuTest(
  "attendPrefill attends with heads of any size and ratio",
  async (_, trial) => {
    const { random } = trial;
    const sizes = [[2, 6], [20, 100], [16, 64, 80], [128], [256]];
    for (const some of trial.some(sizes, 2)) {
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
  "attendPrefill attends to a cache in q8_0, with heads of any size",
  async (_, trial) => {
    const { random } = trial;
    for (const headDim of trial.some([32, 64, 96, 128, 160], 1)) {
      const lengths = [random.int(0, 80), random.int(0, 80)];
      const tokens = random.pick([1, 9, 25]), ratio = random.pick([1, 3, 8]);
      const kvHeads = random.int(1, 3), heads = ratio * kvHeads;
      const shape = { heads, kvHeads, headDim, context: 105 };
      const pass = { lengths, first: 0, tokens, rows: 2 * tokens, eps: 0 };
      await check(trial, { ...shape, ...pass }, "q8_0");
    }
    const shape = { heads: 3, kvHeads: 1, headDim: 32, context: 1100, eps: 0 };
    for (const length of [0, 63, 64, 65, 1000]) {
      const tokens = random.pick([1, 22, 64, 65]);
      const lengths = [random.int(0, 1000), length, random.int(0, 1000)];
      const pass = { lengths, first: 1, tokens, rows: 2 * tokens };
      await check(trial, { ...shape, ...pass }, "q8_0");
    }
  },
);

gpuTest(
  "attendPrefill attends at every boundary of its tiles",
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
  "attendPrefill's splits of any number of keys are merged",
  async (_, trial) => {
    const { random } = trial;
    const shapes = [
      { heads: 3, kvHeads: 1, headDim: 6, cache: "f32" },
      { heads: 4, kvHeads: 2, headDim: 16, cache: "f16" },
      { heads: 8, kvHeads: 1, headDim: 32, cache: "q8_0" },
    ] as const;
    for (const { cache, ...shape } of trial.some(shapes, 1)) {
      // Splits without keys, of rows that see none of them, and more than there are tiles.
      for (const splits of [1, 2, 3, 8, 64]) {
        const tokens = random.pick([1, 2, 16, 33, 64, 65]);
        const length = random.pick([0, 1, 63, 64, 128, 700 - tokens]);
        const lengths = [random.int(0, 600), length, random.int(0, 600)];
        const pass = { lengths, first: 1, tokens, rows: 2 * tokens };
        const sizes = { ...shape, ...pass, context: 700, eps: 0 };
        await check(trial, sizes, cache, splits);
      }
    }
  },
);

gpuTest(
  "attendPrefill is causal: no token sees what comes after it",
  async (_, trial) => {
    const tokens = 70, width = 4 * 16, lengths = [5];
    const shape = { heads: 4, kvHeads: 2, headDim: 16, context: 80, eps: 0 };
    const sizes = { ...shape, lengths, first: 0, tokens, rows: tokens };
    const given = prefillInputs(trial, sizes, "f16");
    const before = await runPrefill(trial, given, sizes).read();
    for (const changed of [1, 30, 69]) {
      const { q, k, v } = structuredClone(given);
      q.data.fill(1e3, changed * width);
      for (let head = 0; head < 2; head++) {
        const begin = (head * 80 + 5 + changed) * 16,
          end = (head * 80 + 75) * 16;
        for (const cached of [k, v]) cached.data.fill(0x5000, begin, end); // f16 32
      }
      const after = await runPrefill(trial, { q, k, v }, sizes).read();
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
  "attendPrefill handles large scores and equal ones",
  async (_, trial) => {
    const shape = { heads: 2, kvHeads: 1, headDim: 16, context: 200, eps: 0 };
    const sizes = { ...shape, lengths: [100], first: 0, tokens: 90, rows: 90 };
    const { q, k, v } = prefillInputs(trial, sizes, "f32");
    for (const scale of [0, 300]) {
      const scaled = { ...q, data: q.data.map((x) => Math.fround(x * scale)) };
      const y = runPrefill(trial, { q: scaled, k, v }, sizes);
      const values = { q: toF32(scaled), k: toF32(k), v: toF32(v) };
      // Errors grow with scores, which are in the hundreds here.
      assertSums(await y.read(), attended(values, sizes), `${scale}`, 3e-4);
    }
  },
);
