/**
 * One row, 16 and 512 times a matrix in formats of blocks, read from memory rather than a
 * cache: the Linear layers of Qwen3-8B.
 *
 *   deno bench -A bench/formats_bench.ts
 */
import { gemm } from "../kernels/gemm.ts";
import { gemmMatrix } from "../kernels/gemm_matrix.ts";
import { gemv } from "../kernels/gemv.ts";
import { gemvInt8 } from "../kernels/gemv_int8.ts";
import { gemvRows } from "../kernels/gemv_rows.ts";
import { gemvRowsInt8 } from "../kernels/gemv_rows_int8.ts";
import { roundRows } from "../kernels/int8_case.ts";
import { roundRow } from "../kernels/rounded_row.ts";
import { Random } from "../lib/check/reference.ts";
import { chooseLinear } from "../lib/dispatch/linear.ts";
import { type Format, storedRowBytes } from "../lib/formats/format.ts";
import { allocateMatrix, type Matrix } from "../lib/formats/matrix.ts";
import { formatNamed, FORMATS } from "../lib/formats/mod.ts";
import { bytesOf, type CpuTensor, toF32 } from "../lib/formats/tensor.ts";
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

/** Operands and kernels of a Linear layer as the model would choose them. */
function recordLinear(
  plan: Plan,
  format: Format,
  { m, n, k }: { m: number; n: number; k: number },
): void {
  const own = (tensor: Tensor) => {
    plan.own(tensor);
    return tensor;
  };
  const { constants, kernel, splits, headroom } = chooseLinear({
    ...{ m, n, k, format, norm: false, swiglu: false, rounded: true },
    largest: gpu.software ? undefined : 1,
  }, gpu);
  const y = own(Tensor.create(gpu, "f32", [splits * m, n], undefined, "y"));
  const uniforms = { stride: n, column: 0 };
  const copies = copiesOf(gpu, n * storedRowBytes(format, k));
  const ws = Array.from({ length: copies }, () => blocks(plan, format, n, k));
  const values = new Random().tensor("f32", [m, k]);
  const x = kernel === "gemvRowsInt8"
    ? roundRows(toF32(values), k, format.loads[0])
    : kernel === "gemvInt8"
    ? { planes: roundRow(values, k), scales: values }
    : undefined;
  const upload = ({ dtype, shape, data }: CpuTensor) =>
    Tensor.create(gpu, dtype, shape, data as Float32Array<ArrayBuffer>);
  const rows = own(
    x ? upload(x.planes) : randomMatrix(gpu, headroom ? "f16" : "f32", [m, k]),
  );
  const scales = own(x ? upload(x.scales) : randomMatrix(gpu, "f32", [m]));
  for (let i = 0; i < DISPATCHES; i++) {
    const w = ws[i % copies];
    if (kernel === "gemm" || kernel === "gemmMatrix") {
      const operands = { a: rows, b: w, scales, c: y };
      plan.add(kernel === "gemm" ? gemm : gemmMatrix, operands, {
        constants,
        uniforms,
      });
    } else if (kernel === "gemvRowsInt8") {
      const operands = { w, x: rows, scales, y };
      plan.add(gemvRowsInt8, operands, { constants, uniforms });
    } else {
      plan.add({ gemv, gemvInt8, gemvRows }[kernel], { w, x: rows, y }, {
        constants,
        uniforms: { ...uniforms, eps: 0 },
      });
    }
  }
}

/** Formats beside which blocks are timed where several rows share the matrix. */
const SOME = ["bf16", "q4_k", "q6_k", "q8_0", "q4_0"].map(formatNamed);
const ONE = FORMATS.filter(({ elements }) => elements > 1);

benchPlans(
  gpu,
  "formats",
  [1, 16, 512].flatMap((m) =>
    shapes.map(([n, k]) => ({
      name: `[${m}, ${k}] × [${k}, ${n}]`,
      copies: DISPATCHES,
      batch: gpu.software || m > 16 ? 1 : 8,
      flops: 2 * m * n * k,
      cases: (m === 1 ? ONE : SOME).map((format) => ({
        name: format.name,
        bound: m === 1 ? "memory" as const : "f32" as const,
        bytes: n * storedRowBytes(format, k),
        record: (plan: Plan) => recordLinear(plan, format, { m, n, k }),
      })),
    }))
  ),
);
