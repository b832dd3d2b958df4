/** Keys and values on a GPU, compared with what was appended to them. */
import { HALF_STEP_Q8, stepsOf } from "../../kernels/attention_case.ts";
import { cachedToF32, type CacheDtype } from "../../lib/formats/cached.ts";
import type { CpuTensor } from "../../lib/formats/tensor.ts";
import type { Tensor } from "../../lib/webgpu/tensor.ts";
import { assertAllClose } from "./assert_all_close.ts";

/** Reads cached keys or values as they are stored. */
async function readCached(tensor: Tensor): Promise<CpuTensor> {
  const { dtype, shape, gpu, buffer, bytes } = tensor;
  const stored = await gpu.readBuffer(buffer, 0, bytes);
  const data = dtype === "f32"
    ? new Float32Array(stored)
    : dtype === "f16"
    ? new Uint16Array(stored)
    : new Uint32Array(stored);
  return { dtype, shape, data };
}

/** Asserts that a cache holds `expected`, rounded once to its type. */
export async function assertCached(
  cached: Readonly<Record<"k" | "v", Tensor>>,
  expected: Readonly<Record<"k" | "v", ArrayLike<number>>>,
  cache: CacheDtype,
  { headDim }: { headDim: number },
  message: string,
): Promise<void> {
  for (const name of ["k", "v"] as const) {
    const actual = cachedToF32(await readCached(cached[name]), headDim);
    const wanted = expected[name], what = `${name} of ${message}`;
    if (cache !== "q8_0") {
      // Half a unit in the last place of f16, plus f32 rounding at ties.
      const relative = cache === "f32" ? 2e-6 : 2 ** -11;
      assertAllClose(actual, wanted, { absolute: 2e-6, relative }, what);
      continue;
    }
    const steps = stepsOf(wanted, headDim);
    const inSteps = (all: ArrayLike<number>) =>
      Float64Array.from(all, (value, i) => value / (steps[i] || 1));
    const close = { absolute: HALF_STEP_Q8 };
    // Quants and scales, not only values near: a step is a hundredth of the largest.
    assertAllClose(inSteps(actual), inSteps(wanted), close, what);
  }
}
