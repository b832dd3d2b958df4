/**
 * One row times a matrix in each format of blocks, read from memory rather than a cache:
 * the Linear layers of a decode step of Qwen3-8B.
 *
 *   deno bench -A bench/formats_bench.ts
 */
import { gemv } from "../kernels/gemv.ts";
import { Random } from "../lib/check/reference.ts";
import { chooseLinear } from "../lib/dispatch/linear.ts";
import { type Format, storedRowBytes } from "../lib/formats/format.ts";
import { allocateMatrix, type Matrix } from "../lib/formats/matrix.ts";
import { FORMATS } from "../lib/formats/mod.ts";
import { bytesOf } from "../lib/formats/tensor.ts";
import { gpuStore } from "../lib/gpu/store.ts";
import type { Plan } from "../lib/webgpu/plan.ts";
import { Tensor } from "../lib/webgpu/tensor.ts";
import { randomMatrix } from "./matmuls.ts";
import { benchPlans, copiesOf, openBench } from "./plans.ts";

const gpu = await openBench();
const shapes = gpu.software ? [[256, 1024]] : [
  [6144, 4096],
  [4096, 4096],
  [24576, 4096],
  [4096, 12288],
];
/** Rows of random blocks; they repeat, which does not affect the time. */
const ROWS = 64;
/** Dispatches of a plan; they take turns on as many copies as exceed the caches. */
const DISPATCHES = gpu.software ? 8 : 64;

/** A matrix of random blocks on the device; the plan owns its planes. */
function blocks(plan: Plan, format: Format, n: number, k: number) {
  const { planes } = new Random().matrix(format.name, [ROWS, k]).parts[0];
  const store = gpuStore(gpu), { most } = store;
  const matrix: Matrix<Tensor> = allocateMatrix(
    "w",
    [{ rows: n, format }],
    k,
    { most },
    (bytes, label) => store.allocate(bytes, label),
  );
  const [part] = matrix.parts;
  part.planes.forEach((plane, i) => {
    const few = bytesOf(planes[i]);
    const all = new Uint8Array(few.length / ROWS * n);
    for (let at = 0; at < all.length; at += few.length) all.set(few, at);
    store.write(plane, 0, all);
    plan.own(plane);
  });
  return { matrix, part };
}

benchPlans(
  gpu,
  "formats",
  shapes.map(([n, k]) => ({
    name: `[1, ${k}] × [${k}, ${n}]`,
    copies: DISPATCHES,
    batch: gpu.software ? 1 : 8,
    flops: 2 * n * k,
    cases: FORMATS.filter(({ safetensors }) => !safetensors).map((format) => {
      const bytes = n * storedRowBytes(format, k);
      const { constants } = chooseLinear(
        { m: 1, n, k, format, norm: false, swiglu: false },
        gpu,
      );
      return {
        name: format.name,
        bound: "memory" as const,
        bytes,
        record(plan: Plan) {
          const x = randomMatrix(gpu, "f32", [1, k]);
          const y = Tensor.create(gpu, "f32", [1, n], undefined, "y");
          plan.own(x);
          plan.own(y);
          const copies = copiesOf(gpu, bytes);
          const ws = Array.from(
            { length: copies },
            () => blocks(plan, format, n, k),
          );
          for (let i = 0; i < DISPATCHES; i++) {
            plan.add(gemv, { w: ws[i % copies], x, y }, {
              constants,
              uniforms: { stride: n, column: 0, eps: 0 },
            });
          }
        },
      };
    }),
  })),
);
