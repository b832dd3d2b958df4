/**
 * The tests of prefill attention in f16, whatever multiplies.
 *
 * @module
 */
import { assert } from "@std/assert";
import { cachedToF32, type CacheDtype } from "../../lib/formats/cached.ts";
import { toF32 } from "../../lib/formats/tensor.ts";
import { assertAllClose } from "./assert_all_close.ts";
import type { Trial } from "./gpu.ts";
import { prefillInputs, runPrefill } from "./prefill.ts";
import { assertSums, attended, place } from "./reference.ts";

/** What multiplies, for runPrefill. */
type HalfKernel = "f16" | "matrices";

/** Registers a test. */
type Register = (name: string, fn: (trial: Trial) => Promise<void>) => void;

/** How far sums in f16 may be off, as a fraction of what they sum. */
const HALF = 4e-3;

/**
 * Software adapters take long to compile a kernel whose length goes with that of a head,
 * above all one that multiplies matrices in plain WGSL.
 */
const headDims = ({ gpu }: Trial): readonly number[] =>
  gpu.software ? [64] : [64, 128];

async function attends(
  trial: Trial,
  cache: CacheDtype,
  by: HalfKernel,
): Promise<void> {
  const { random } = trial;
  const several = by === "f16" && random.pick([true, false]);
  for (const headDim of headDims(trial)) {
    for (const length of trial.some([0, 1, 63, 64, 65, 300], 2)) {
      const kvHeads = random.int(1, 2),
        heads = kvHeads * random.pick([1, 2, 3, 8]);
      const tokens = random.pick([2, 21, 32, 33, 65]);
      const lengths = [random.int(0, 300), length, random.int(0, 300)];
      const shape = { heads, kvHeads, headDim, context: 370, eps: 0 };
      const sizes = { ...shape, lengths, first: 1, tokens, rows: 2 * tokens };
      const { q, k, v } = prefillInputs(trial, sizes, cache);
      const splits = several ? random.pick([1, 2, 3, 64]) : 0;
      const y = runPrefill(trial, { q, k, v }, sizes, by, undefined, splits);
      const [keys, ofKeys] = [k, v].map((one) => cachedToF32(one, headDim));
      const values = { q: toF32(q), k: keys, v: ofKeys };
      const message = JSON.stringify({ ...sizes, splits });
      const { values: expected, norms } = attended(values, sizes);
      // Weights are divided by 32, and subnormal f16 are 2⁻²⁴ apart: each product is
      // off by up to 2⁻²⁵ · 32, however small the value of its key.
      norms.forEach((norm, i) => {
        const row = Math.floor(i / (heads * headDim));
        const keys = place(row, sizes).position + 1;
        norms[i] = norm + keys * 2 ** -20 / HALF;
      });
      assertSums(await y.read(), { values: expected, norms }, message, HALF);
    }
  }
}

/** Registers the tests of the kernel `name`. */
export function testHalfPrefill(
  name: string,
  by: HalfKernel,
  test: Register,
): void {
  for (const cache of ["f16", "q8_0"] as const) {
    test(
      `${name} attends within the precision of f16, cache in ${cache}`,
      (trial) => attends(trial, cache, by),
    );
  }
  test(
    `${name} sums many small weights next to a large one`,
    async (trial) => {
      // One key has e⁸ times the weight of each of 1,000 others: a quarter of it in all.
      const headDim = headDims(trial).at(-1)!;
      const shape = { heads: 1, kvHeads: 1, headDim, context: 1002, eps: 0 };
      const sizes = { ...shape, lengths: [1000], first: 0, tokens: 2, rows: 2 };
      const { q, k, v } = prefillInputs(trial, sizes, "f16");
      q.data.fill(8 / Math.sqrt(headDim));
      const one = 0x3c00; // in f16
      const [begin, end] = [5 * headDim, 6 * headDim];
      k.data.fill(0);
      k.data.fill(one, begin, end); // a score of 8
      v.data.fill(one);
      v.data.fill(0, begin, end);
      const y = runPrefill(trial, { q, k, v }, sizes, by);
      const values = { q: toF32(q), k: toF32(k), v: toF32(v) };
      const { values: expected } = attended(values, sizes);
      assertAllClose(await y.read(), expected, { relative: HALF });
    },
  );

  test(
    `${name} holds the largest values that f16 does`,
    async (trial) => {
      const headDim = headDims(trial).at(-1)!;
      const shape = { heads: 2, kvHeads: 1, headDim, context: 100, eps: 0 };
      const sizes = { ...shape, lengths: [60], first: 0, tokens: 40, rows: 40 };
      const { q, k, v } = prefillInputs(trial, sizes, "f16");
      v.data.fill(0x7bff); // 65,504
      const y = await runPrefill(trial, { q, k, v }, sizes, by).read();
      assertAllClose(y, y.map(() => 65504), { relative: HALF });
    },
  );

  test(
    `${name} is causal: no token sees what comes after it`,
    async (trial) => {
      const headDim = headDims(trial).at(-1)!;
      const tokens = 40, width = 2 * headDim, changed = 17;
      const shape = { heads: 2, kvHeads: 1, headDim, context: 100, eps: 0 };
      const sizes = { ...shape, lengths: [50], first: 0, tokens, rows: tokens };
      const given = prefillInputs(trial, sizes, "f16");
      const before = await runPrefill(trial, given, sizes, by).read();
      const { q, k, v } = structuredClone(given);
      for (const cached of [k, v]) {
        cached.data.fill(0x5000, (50 + changed) * headDim, 90 * headDim); // f16 32
      }
      const after = await runPrefill(trial, { q, k, v }, sizes, by).read();
      const same = changed * width;
      assertAllClose(after.subarray(0, same), before.subarray(0, same));
      assert(after[same] !== before[same], "nothing changed");
    },
  );
}
