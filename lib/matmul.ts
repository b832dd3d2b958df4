/**
 * Matrix multiplication of tensors on a GPU.
 *
 * @module
 */
import { batchedGemm as batchedGemmKernel } from "../kernels/batched_gemm.ts";
import { gemm as gemmKernel } from "../kernels/gemm.ts";
import { gemv as gemvKernel } from "../kernels/gemv.ts";
import { gemvRows } from "../kernels/gemv_rows.ts";
import { gemvColumns } from "../kernels/gemv_columns.ts";
import {
  chooseMatmul,
  type MatmulChoice,
  type MatmulKernel,
} from "./dispatch/matmul.ts";
import { Plan } from "./webgpu/plan.ts";
import { Tensor } from "./webgpu/tensor.ts";

/** Options of {@linkcode matmul}. */
export interface MatmulOptions {
  /** `b`'s last two sizes are `[n, k]`, as checkpoints store weights. */
  transposeB?: boolean;
  /** Called with the kernel that was chosen, its constants and the reason. */
  onChoice?: (choice: MatmulChoice) => void;
}

/**
 * `a · b` in f32, with the kernel that fits the shapes: a matrix times a vector; one
 * row, a few or many rows times a matrix; or a batch of heads (see
 * {@linkcode chooseMatmul}). The work is submitted but not awaited; `read()` waits.
 *
 * ```ts
 * import { matmul, openDevice, Tensor } from "../mod.ts";
 *
 * if (await navigator.gpu.requestAdapter()) { // openDevice throws if there is none
 *   using gpu = await openDevice();
 *   using a = Tensor.create(gpu, "f32", [1, 2], new Float32Array([1, 2]));
 *   using b = Tensor.create(gpu, "f32", [2, 3], new Float32Array([1, 2, 3, 4, 5, 6]));
 *   using c = matmul(a, b, { onChoice: ({ kernel, reason }) => console.log(kernel, reason) });
 *   console.log(await c.read()); // [9, 12, 15]
 * }
 * ```
 *
 * @throws {Error} if no kernel supports the shapes, with the reason. There is no fallback.
 */
export function matmul(
  a: Tensor,
  b: Tensor,
  options: MatmulOptions = {},
): Tensor {
  return multiply("multiply", a, b, options);
}

/**
 * `[m, k] × [k, n] → [m, n]` in tiles, for many rows.
 *
 * @throws {Error} if the shapes are different.
 */
export function gemm(
  a: Tensor,
  b: Tensor,
  options: MatmulOptions = {},
): Tensor {
  return multiply("run gemm", a, b, options, ["gemm"]);
}

/**
 * `[batch, heads, m, k] × [batch, kvHeads, k, n] → [batch, heads, m, n]`; `heads` is
 * a multiple of `kvHeads`; groups of heads share one without copies.
 *
 * @throws {Error} if the shapes are different.
 */
export function batchedGemm(
  a: Tensor,
  b: Tensor,
  options: MatmulOptions = {},
): Tensor {
  return multiply("run batchedGemm", a, b, options, ["batchedGemm"]);
}

/**
 * A matrix times a vector, `[m, k] × [k] → [m]`, or a vector or a few rows times a
 * matrix, `[k] × [k, n]`, `[m, k] × [k, n]`: up to eight, with `transposeB` up to 32.
 * The matrix is read once.
 *
 * @throws {Error} if the shapes are different.
 */
export function gemv(
  a: Tensor,
  b: Tensor,
  options: MatmulOptions = {},
): Tensor {
  const kernels = ["gemv", "gemvRows", "gemvColumns"] as const;
  return multiply("run gemv", a, b, options, kernels);
}

function multiply(
  action: string,
  a: Tensor,
  b: Tensor,
  { transposeB = false, onChoice }: MatmulOptions,
  kernels?: readonly MatmulKernel[],
): Tensor {
  const { gpu } = a;
  if (b.gpu !== gpu) {
    throw new Error(`Cannot ${action}: a and b are on different devices`);
  }
  for (const [name, { dtype }] of Object.entries({ a, b })) {
    if (dtype === "u32") {
      throw new Error(
        `Cannot ${action}: ${name} is u32, it must be f32, f16 or bf16`,
      );
    }
  }
  const matrix = b.shape.length === 1 ? a : b; // the one that gemv reads once
  const choice = chooseMatmul(a.shape, b.shape, gpu, {
    transposeB,
    dtype: matrix.dtype,
    kernels,
  });
  onChoice?.(choice);
  if (!choice.kernel) throw new Error(`Cannot ${action}: ${choice.reason}`);
  const { kernel, m, n, k, shape, constants } = choice;
  const c = Tensor.create(gpu, "f32", shape, undefined, "matmul");
  using plan = new Plan(gpu);
  const uniforms = { stride: n, column: 0 };
  if (kernel === "gemv" || kernel === "gemvRows") {
    const vector = b.shape.length === 1;
    const x = vector ? b.view(1, k) : a.view(m, k);
    const y = vector ? c.view(1, m) : c.view(m, n);
    const w = vector ? a : b;
    plan.add(kernel === "gemv" ? gemvKernel : gemvRows, { w, x, y }, {
      constants,
      uniforms: { ...uniforms, stride: y.shape[1], eps: 0 },
    });
  } else if (kernel === "gemvColumns") {
    plan.add(gemvColumns, { x: a.view(m, k), b, y: c.view(m, n) }, {
      constants,
    });
  } else if (kernel === "gemm") {
    plan.add(gemmKernel, { a, b, c }, { constants, uniforms });
  } else {
    plan.add(batchedGemmKernel, { a, b, c }, { constants, uniforms });
  }
  plan.run();
  gpu.check();
  return c;
}
