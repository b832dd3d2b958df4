/**
 * Rows of one large matrix product.
 *
 * @module
 */
import { gemm } from "../kernels/gemm.ts";
import { chooseLinear, chooseMatmul } from "../lib/choose.ts";
import { Random } from "../lib/doctor_reference.ts";
import type { Gpu } from "../lib/device.ts";
import { Plan } from "../lib/plan.ts";
import type { Tensor } from "../lib/tensor.ts";
import { measure, type Measured, Unmeasurable, withBound } from "./report.ts";
import { type BenchSetting, hotTimes } from "./setting.ts";

/** Random values repeat after as many: what a product takes does not depend on it. */
const PERIOD = 1 << 20;

/** `[size, size] × [size, size]`, in f32 or with f16 products that are summed in f32. */
export async function productRow(
  { gpu, options, peaks }: BenchSetting,
  dtype: "f32" | "f16",
  size: number,
): Promise<Measured> {
  if (dtype === "f16" && !gpu.f16) {
    throw new Unmeasurable(`${gpu.name} has no shader-f16`);
  }
  using plan = new Plan(gpu);
  const reason = record(gpu, plan, dtype, size);
  const times = await hotTimes(gpu, plan, 4 * options.runs);
  const flops = 2 * size ** 3;
  const rate = measure(
    "GPU time",
    "TFLOP/s",
    times.map((ms) => flops / ms / 1e9),
  );
  return {
    measures: [
      withBound(rate, peaks, dtype, 1e12),
      measure("GPU time of one", "ms", times),
    ],
    notes: [`${size}³; ${reason}`],
  };
}

/** Records the product as the toolkit runs it; says which constants it took and why. */
function record(
  gpu: Gpu,
  plan: Plan,
  dtype: "f32" | "f16",
  size: number,
): string {
  const sizes = [size, size];
  const a = randomMatrix(gpu, dtype, sizes),
    b = randomMatrix(gpu, dtype, sizes);
  const c = gpu.tensor("f32", sizes, undefined, "product");
  for (const tensor of [a, b, c]) plan.own(tensor);
  const uniforms = { stride: size, column: 0 };
  if (dtype === "f32") {
    const choice = chooseMatmul(sizes, sizes, gpu, { kernels: ["gemm"] });
    if (!choice.kernel) throw new Error(`Cannot multiply: ${choice.reason}`);
    const { constants } = choice;
    plan.add(gemm, { a, b, c }, { constants, uniforms });
    return choice.reason;
  }
  // As a Linear layer of a prompt: rows with a factor each, b by column.
  const shape = {
    m: size,
    n: size,
    k: size,
    dtype,
    norm: false,
    swiglu: false,
  };
  const choice = chooseLinear({ ...shape, largest: 1 }, gpu);
  if (!choice.headroom || choice.splits > 1) {
    throw new Unmeasurable(`it is not one f16 product: ${choice.reason}`);
  }
  const scales = gpu.tensor("f32", [size], new Float32Array(size).fill(1));
  plan.own(scales);
  const { constants } = choice;
  plan.add(gemm, { a, b, scales, c }, { constants, uniforms });
  return choice.reason;
}

/** Values between -1 and 1. */
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
  return gpu.tensor(dtype, shape, all, "random");
}
