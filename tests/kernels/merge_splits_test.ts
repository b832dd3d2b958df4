import { splitAt } from "../../kernels/heads.ts";
import { mergeSplits } from "../../kernels/merge_splits.ts";
import { bitsOf } from "../../kernels/sample_case.ts";
import { runCase } from "../../lib/check/kernel_case.ts";
import type { CpuTensor } from "../../lib/formats/tensor.ts";
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
    const { state, y } = one.operands as Record<string, CpuTensor>;
    const size = heads * headDim;
    const before = y.data.subarray(size);
    const split = (head: number, s: number) => splitAt(head, splits, s);
    // Only split 3 of each head has seen keys.
    for (let i = 0; i < heads * splits; i++) {
      const head = Math.floor(i / splits), s = i % splits;
      if (s === 3) continue;
      state.data.set([bitsOf(-3e38), bitsOf(0)], split(head, s));
      before.fill(0, i * headDim, (i + 1) * headDim);
    }
    const floats = new Float32Array(state.data.slice().buffer);
    const expected = Array.from({ length: size }, (_, i) => {
      const head = Math.floor(i / headDim), at = head * splits + 3;
      const total = floats[split(head, 3) + 1];
      return before[at * headDim + i % headDim] / total;
    });
    const { y: after } = await runCase(gpu, mergeSplits, one);
    const merged = Array.from(after).slice(0, size);
    assertAllClose(merged, expected, { relative: 1e-6 });
  },
);
