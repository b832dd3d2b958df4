/**
 * Matrix multiplication of tensors on a GPU.
 *
 * @module
 */
import { batchedGemm as batchedGemmKernel } from "../kernels/batched_gemm.ts";
import { gemm as gemmKernel } from "../kernels/gemm.ts";
import { gemmMatrix } from "../kernels/gemm_matrix.ts";
import { gemv as gemvKernel } from "../kernels/gemv.ts";
import { gemvRows } from "../kernels/gemv_rows.ts";
import { gemvColumns } from "../kernels/gemv_columns.ts";
import {
  chooseMatmul,
  type MatmulChoice,
  type MatmulKernel,
} from "./dispatch/matmul.ts";
import { described } from "./errors.ts";
import { givenOptions } from "./text/options.ts";
import { Plan } from "./webgpu/plan.ts";
import { Tensor } from "./webgpu/tensor.ts";

/** Options of {@linkcode matmul}. */
export interface MatmulOptions {
  /**
   * Set if the last two dimensions of `b` are `[n, k]`, as checkpoints store weights.
   */
  transposeB?: boolean;
  /** Called with the chosen kernel, its constants and the reason for the choice. */
  onChoice?: (choice: MatmulChoice) => void;
}

/**
 * Computes `a · b` in f32 with the kernel that suits the shapes: a matrix times a
 * vector; one row, a few rows or many rows times a matrix; or a batch of heads (see
 * {@linkcode chooseMatmul}). The work is submitted but not awaited; `read()` waits for
 * it.
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
 * @throws {Error} if no kernel supports the shapes; the message says why. There is no
 * fallback.
 */
export function matmul(
  a: Tensor,
  b: Tensor,
  options: MatmulOptions = {},
): Tensor {
  return multiply("multiply", a, b, options);
}

/**
 * Multiplies many rows by a matrix in tiles: `[m, k] × [k, n] → [m, n]`.
 *
 * @throws {Error} if the shapes are different.
 */
export function gemm(
  a: Tensor,
  b: Tensor,
  options: MatmulOptions = {},
): Tensor {
  return multiply("run gemm", a, b, options, ["gemm", "gemmMatrix"]);
}

/**
 * Multiplies one matrix per batch and head:
 * `[batch, heads, m, k] × [batch, kvHeads, k, n] → [batch, heads, m, n]`. `heads` must
 * be a multiple of `kvHeads`; each group of heads shares a kv head without copying it.
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
 * Multiplies a matrix by a vector, `[m, k] × [k] → [m]`, or a vector or a few rows by a
 * matrix, `[k] × [k, n]` or `[m, k] × [k, n]`, with up to 8 rows, or up to 32 with
 * `transposeB`. The matrix is read once.
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
  options: MatmulOptions,
  kernels?: readonly MatmulKernel[],
): Tensor {
  const given = checkArguments(`Cannot ${action}`, a, b, options);
  const { transposeB = false, onChoice } = given, { gpu } = a;
  if (b.gpu !== gpu) {
    throw new Error(
      `Cannot ${action}: a and b are on different devices, must be on the same one`,
    );
  }
  for (const [name, { dtype, buffer }] of Object.entries({ a, b })) {
    gpu.requireLive(action, { label: name, buffer });
    if (dtype === "u32") {
      throw new Error(
        `Cannot ${action}: ${name} is u32, must be f32, f16 or bf16`,
      );
    }
  }
  const matrix = b.shape.length === 1 ? a : b; // the one that gemv reads once
  const choice = chooseMatmul(a.shape, b.shape, gpu, {
    transposeB,
    dtype: matrix.dtype,
    halves: a.dtype === "f16" && b.dtype === "f16",
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
  } else if (kernel === "gemm" || kernel === "gemmMatrix") {
    const tiled = kernel === "gemm" ? gemmKernel : gemmMatrix;
    plan.add(tiled, { a, b, c }, { constants, uniforms });
  } else {
    plan.add(batchedGemmKernel, { a, b, c }, { constants, uniforms });
  }
  plan.run();
  gpu.check();
  return c;
}

/** Checks the types of arguments; returns the options that are given. */
function checkArguments(
  cannot: string,
  a: Tensor,
  b: Tensor,
  options: MatmulOptions,
): MatmulOptions {
  for (const [name, tensor] of Object.entries({ a, b })) {
    if (tensor instanceof Tensor) continue;
    throw new TypeError(
      `${cannot}: ${name} is ${described(tensor)}, must be a Tensor`,
    );
  }
  return givenOptions(cannot, options, {
    transposeB: "flag",
    onChoice: "function",
  });
}
