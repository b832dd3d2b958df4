/**
 * Matmuls of random values, recorded as the library runs them.
 *
 * @module
 */
import { formatNamed } from "../lib/formats/mod.ts";
import { gemm } from "../kernels/gemm.ts";
import { gemmMatrix } from "../kernels/gemm_matrix.ts";
import { sumSplits } from "../kernels/sum_splits.ts";
import { chooseLinear } from "../lib/dispatch/linear.ts";
import { chooseMatmul } from "../lib/dispatch/matmul.ts";
import type { Gpu } from "../lib/webgpu/device.ts";
import { Random } from "../lib/check/reference.ts";
import type { Plan } from "../lib/webgpu/plan.ts";
import { Tensor } from "../lib/webgpu/tensor.ts";

/** Random values repeat with this period, which does not affect the time. */
const PERIOD = 1 << 20;

/** A tensor of values between -1 and 1. */
export function randomMatrix(
  gpu: Gpu,
  dtype: "f32" | "f16" | "bf16",
  shape: readonly number[],
): Tensor {
  const elements = shape.reduce((product, size) => product * size);
  const { data } = new Random().tensor(dtype, [Math.min(PERIOD, elements)]);
  const all = dtype === "f32"
    ? new Float32Array(elements)
    : new Uint16Array(elements);
  for (let at = 0; at < elements; at += data.length) {
    all.set(data.subarray(0, elements - at), at);
  }
  return Tensor.create(gpu, dtype, shape, all, "random");
}

/**
 * Records `[m, k] × [k, n]`: in f32 as `matmul` chooses, in f16 like a Linear layer of a
 * prompt, which multiplies in f16 and sums in f32 (scaled rows, the weight transposed).
 *
 * @returns the constants chosen, and why
 * @throws {Error} if no kernel fits.
 */
export function recordMatmul(
  gpu: Gpu,
  plan: Plan,
  dtype: "f32" | "f16",
  { m, n, k }: { m: number; n: number; k: number },
): string {
  const own = (tensor: Tensor) => {
    plan.own(tensor);
    return tensor;
  };
  const a = own(randomMatrix(gpu, dtype, [m, k]));
  const c = own(Tensor.create(gpu, "f32", [m, n], undefined, "c"));
  const uniforms = { stride: n, column: 0 };
  if (dtype === "f32") {
    const b = own(randomMatrix(gpu, dtype, [k, n]));
    const choice = chooseMatmul(a.shape, b.shape, gpu, { kernels: ["gemm"] });
    if (!choice.kernel) throw new Error(`Cannot multiply: ${choice.reason}`);
    plan.add(gemm, { a, b, c }, { constants: choice.constants, uniforms });
    return choice.reason;
  }
  const linear = {
    m,
    n,
    k,
    format: formatNamed(dtype),
    norm: false,
    swiglu: false,
    largest: 1,
  };
  const choice = chooseLinear(linear, gpu);
  const { constants, headroom, splits, reason } = choice;
  if (!headroom) throw new Error(`Cannot multiply in f16: ${reason}`);
  const kernel = choice.kernel === "gemmMatrix" ? gemmMatrix : gemm;
  const b = own(randomMatrix(gpu, dtype, [n, k]));
  const scales = own(
    Tensor.create(gpu, "f32", [m], new Float32Array(m).fill(1), "scales"),
  );
  if (splits === 1) {
    plan.add(kernel, { a, b, scales, c }, { constants, uniforms });
    return reason;
  }
  const partial = own(
    Tensor.create(gpu, "f32", [splits * m, n], undefined, "splits"),
  );
  plan.add(kernel, { a, b, scales, c: partial }, { constants, uniforms });
  plan.add(sumSplits, { partial, y: c }, {
    constants: { SPLITS: splits, ADD: 0 },
    uniforms,
  });
  return reason;
}
