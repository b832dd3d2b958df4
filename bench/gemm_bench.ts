/**
 * Many rows times a matrix: tiling against one thread per element, and f16
 * multiplication against f32.
 *
 *   deno bench -A bench/gemm_bench.ts
 */
import { Tensor } from "../lib/webgpu/tensor.ts";
import { benchPlans, openBench, type PlanCase } from "./plans.ts";
import { naiveGemm } from "./naive_gemm.ts";
import { randomMatrix, recordMatmul } from "./matmuls.ts";

const gpu = await openBench();
// m, n, k: a square, and Qwen3-0.6B's Linear layers for a prompt of 512.
const shapes = gpu.software ? [[256, 256, 256], [64, 512, 128]] : [
  [4096, 4096, 4096],
  [512, 4096, 1024],
  [512, 6144, 1024],
  [512, 1024, 3072],
];

benchPlans(
  gpu,
  "gemm",
  shapes.map(([m, n, k]) => ({
    name: `[${m}, ${k}] × [${k}, ${n}]`,
    copies: 1,
    batch: gpu.software ? 4 : Math.max(8, Math.round(5e11 / (m * n * k))),
    flops: 2 * m * n * k,
    cases: [
      {
        name: "a thread per element",
        bound: "f32",
        record(plan) {
          const a = randomMatrix(gpu, "f32", [m, k]);
          const b = randomMatrix(gpu, "f32", [k, n]);
          const c = Tensor.create(gpu, "f32", [m, n], undefined, "c");
          for (const tensor of [a, b, c]) plan.own(tensor);
          plan.add(naiveGemm, { a, b, c });
        },
      },
      tiled("f32", [m, n, k]),
      ...gpu.f16 ? [tiled("f16", [m, n, k])] : [],
    ],
  })),
);

function tiled(bound: "f32" | "f16", [m, n, k]: number[]): PlanCase {
  return {
    name: `tiled, ${bound} multiplications`,
    bound,
    record: (plan) => void recordMatmul(gpu, plan, bound, { m, n, k }),
  };
}
