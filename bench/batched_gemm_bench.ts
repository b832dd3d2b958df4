/**
 * Qwen3-0.6B's attention unfused: scores and values as two matmuls per head, which
 * share their group's keys and values without a copy.
 *
 *   deno bench -A bench/batched_gemm_bench.ts
 */
import { Tensor } from "../lib/webgpu/tensor.ts";
import { batchedGemm } from "../kernels/batched_gemm.ts";
import { chooseMatmul } from "../lib/dispatch/matmul.ts";
import { benchPlans, openBench } from "./plans.ts";
import { randomMatrix } from "./matmuls.ts";

const gpu = await openBench();
const heads = 16, kvHeads = 8, headDim = 128;
const lengths = gpu.software ? [32] : [512, 2048];

benchPlans(
  gpu,
  "batched_gemm",
  lengths.flatMap((tokens) =>
    [true, false].map((scores) => {
      const a = [1, heads, tokens, scores ? headDim : tokens];
      const b = [1, kvHeads, tokens, headDim];
      const n = scores ? tokens : headDim;
      const flops = 2 * heads * tokens * tokens * headDim;
      return {
        name: `${scores ? "scores" : "values"} [${a.join(", ")}] × [${
          b.join(", ")
        }]`,
        copies: 1,
        batch: gpu.software ? 4 : Math.max(8, Math.round(5e11 / flops)),
        flops,
        cases: (["f32", "f16"] as const).map((dtype) => ({
          name: `b in ${dtype}`,
          bound: "f32" as const,
          record(plan) {
            const choice = chooseMatmul(a, b, gpu, {
              transposeB: scores,
              dtype,
            });
            if (!choice.kernel) throw new Error(choice.reason);
            const tensors = {
              a: randomMatrix(gpu, "f32", a),
              b: randomMatrix(gpu, dtype, b),
              c: Tensor.create(gpu, "f32", choice.shape, undefined, "c"),
            };
            for (const tensor of Object.values(tensors)) plan.own(tensor);
            plan.add(batchedGemm, tensors, {
              constants: choice.constants,
              uniforms: { stride: n, column: 0 },
            });
          },
        })),
      };
    })
  ),
);
