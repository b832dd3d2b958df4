/**
 * One row times a bf16 matrix read from memory rather than a cache, for every Linear
 * layer of a decode step: gemv against a single tile of gemm.
 *
 *   deno bench -A bench/gemv_bench.ts
 */
import { bf16 } from "../lib/formats/bf16.ts";
import { Tensor } from "../lib/webgpu/tensor.ts";
import { gemm } from "../kernels/gemm.ts";
import { gemv } from "../kernels/gemv.ts";
import { chooseLinear } from "../lib/dispatch/linear.ts";
import { chooseMatmul } from "../lib/dispatch/matmul.ts";
import type { Kernel, Operands } from "../lib/webgpu/kernel.ts";
import type { Plan } from "../lib/webgpu/plan.ts";
import type { Constants } from "../lib/dispatch/shapes.ts";
import { benchPlans, copiesOf, openBench } from "./plans.ts";
import { randomMatrix } from "./matmuls.ts";

const gpu = await openBench();
// Output and input sizes of Qwen3-0.6B's layers; the last is the LM head.
const shapes = gpu.software ? [[256, 1024], [8192, 128]] : [
  [4096, 1024],
  [1024, 2048],
  [6144, 1024],
  [1024, 3072],
  [151936, 1024],
];

benchPlans(
  gpu,
  "gemv",
  shapes.map(([n, k]) => {
    const bytes = 2 * n * k, copies = copiesOf(gpu, bytes);
    const linear = { m: 1, n, k, format: bf16 };
    const forGemv = chooseLinear(
      { ...linear, norm: false, swiglu: false },
      gpu,
    );
    const forGemm = chooseMatmul([1, k], [n, k], gpu, {
      transposeB: true,
      kernels: ["gemm"],
    });
    if (!forGemm.kernel) throw new Error(forGemm.reason);
    const record = (plan: Plan, kernel: Kernel, constants: Constants) => {
      const x = randomMatrix(gpu, "f32", [1, k]);
      const y = Tensor.create(gpu, "f32", [1, n], undefined, "y");
      plan.own(x);
      plan.own(y);
      for (let copy = 0; copy < copies; copy++) {
        const w = randomMatrix(gpu, "bf16", [n, k]);
        plan.own(w);
        const operands: Operands = kernel === gemv
          ? { w, x, y }
          : { a: x, b: w, c: y };
        const uniforms = { stride: n, column: 0 };
        plan.add(kernel, operands, {
          constants,
          uniforms: kernel === gemv ? { ...uniforms, eps: 0 } : uniforms,
        });
      }
    };
    return {
      name: `[1, ${k}] × [${k}, ${n}]`,
      copies,
      batch: gpu.software ? 8 : Math.max(64, Math.ceil(256 / copies)),
      flops: 2 * n * k,
      cases: [{
        name: "a tile of gemm",
        bound: "memory",
        bytes,
        record: (plan) => record(plan, gemm, forGemm.constants),
      }, {
        name: "gemv",
        bound: "memory",
        bytes,
        record: (plan) => record(plan, gemv, forGemv.constants),
      }],
    };
  }),
);
