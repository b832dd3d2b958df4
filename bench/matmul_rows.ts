/**
 * Rows for one large matmul.
 *
 * @module
 */
import { Plan } from "../lib/webgpu/plan.ts";
import { recordMatmul } from "./matmuls.ts";
import { measure, type Measured, Unmeasurable, withBound } from "./report.ts";
import { type BenchSetting, hotTimes } from "./setting.ts";

/** Rows and columns of the matrices. */
export const matmulSize = (software: boolean) => software ? 256 : 4096;

/** A square matmul, in f32 or with f16 factors and f32 sums. */
export async function matmulRow(
  setting: BenchSetting,
  dtype: "f32" | "f16",
): Promise<Measured> {
  const { options } = setting, { gpu, peaks } = await setting.onGpu();
  const size = matmulSize(gpu.software);
  if (dtype === "f16" && !gpu.f16) {
    throw new Unmeasurable(`${gpu.name} has no shader-f16`);
  }
  using plan = new Plan(gpu);
  const reason = recordMatmul(gpu, plan, dtype, { m: size, n: size, k: size });
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
