import { mergeSplits } from "../../kernels/merge_splits.ts";
import { bitsOf } from "../../kernels/sample_case.ts";
import { runCase } from "../../lib/check/kernel_case.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, lanes } from "../support/gpu.ts";
import { checkCase, makeCase } from "../support/kernel_case.ts";

gpuTest(
  "mergeSplits merges any number of splits of heads of any size",
  async (_, trial) => {
    const { random } = trial;
    for (const headDim of [2, 6, 20, 64, 100, 128, 256]) {
      for (const splits of [1, 2, 33, 64, random.int(2, 64)]) {
        const m = random.int(1, 3), heads = random.int(1, 6);
        await checkCase(mergeSplits, trial, { m, heads, headDim, splits });
      }
    }
  },
);

gpuTest("mergeSplits gives the same without subgroups", async (gpu, trial) => {
  for (const headDim of [6, 128]) {
    const sizes = { m: 2, heads: 3, headDim, splits: 37 };
    await checkCase(mergeSplits, trial, sizes, lanes(gpu, false));
  }
});

gpuTest(
  "mergeSplits gives splits without a key no weight",
  async (gpu, trial) => {
    const headDim = 16, splits = 5, heads = 2;
    const one = makeCase(mergeSplits, trial, { m: 1, heads, headDim, splits })!;
    const { partial, stats } = one.operands;
    // Only split 3 of each head has seen keys.
    for (let s = 0; s < heads * splits; s++) {
      if (s % splits === 3) continue;
      stats.data.set([bitsOf(-3e38), bitsOf(0)], 2 * s);
      partial.data.fill(0, s * headDim, (s + 1) * headDim);
    }
    const { y } = await runCase(gpu, mergeSplits, one);
    const expected = Array.from(y, (_, i) => {
      const split = Math.floor(i / headDim) * splits + 3;
      const total = new Float32Array(stats.data.slice().buffer)[2 * split + 1];
      return partial.data[split * headDim + i % headDim] / total;
    });
    assertAllClose(y, expected, { relative: 1e-6 });
  },
);
