/**
 * Which kernel multiplies two shapes, with a reason; or why none does.
 *
 * @module
 */
import type { Capabilities } from "./capabilities.ts";
import { type Constants, FEW_ROWS, type LinearShape } from "./shapes.ts";
import type { Dtype } from "../dtype.ts";
import { chooseLinear } from "./linear.ts";
import { defaultsFor, tileFor } from "./defaults.ts";

/**
 * Rows up to which a matrix stored by input row is read once for all of them: gemvColumns
 * keeps a vec4 per row in registers. More rows were not measured.
 */
const FEW_COLUMNS = 8;

/** The kernels that {@linkcode chooseMatmul} may pick. */
export type MatmulKernel =
  | "gemv"
  | "gemvRows"
  | "gemvColumns"
  | "gemm"
  | "batchedGemm";

/** The kernel of a matmul, or why there is none. */
export type MatmulChoice =
  | {
    kernel: MatmulKernel;
    /** `[m, k] × [k, n]`, per matrix of a batch. */
    m: number;
    n: number;
    k: number;
    /** Shape of the result. */
    shape: number[];
    constants: Constants;
    reason: string;
  }
  | { kernel: undefined; reason: string };

/**
 * Chooses the kernel that multiplies shapes `a` and `b`, or says why none does:
 * `[m, k] × [k]`, `[k] × [k, n]`, `[m, k] × [k, n]` with one, few or many rows,
 * `[batch, heads, m, k] × [batch, kvHeads, k, n]`. With `transposeB` the last two
 * sizes of `b` are `[n, k]`, as checkpoints store weights.
 *
 * ```ts
 * import { chooseMatmul } from "./matmul.ts";
 * const device = { subgroupSize: 32, limits: { maxComputeWorkgroupStorageSize: 32768, maxComputeInvocationsPerWorkgroup: 1024 } };
 * const choice = chooseMatmul([1, 1024], [1024, 2048], device);
 * console.assert(choice.kernel === "gemvColumns");
 * ```
 */
export function chooseMatmul(
  a: readonly number[],
  b: readonly number[],
  device: Capabilities,
  { transposeB = false, dtype = "f32", kernels }: {
    transposeB?: boolean;
    /** Element type of the matrix that gemv reads: `b`, or `a` in `[m, k] × [k]`. */
    dtype?: Dtype;
    /** Restricts the choice to these. */
    kernels?: readonly MatmulKernel[];
  } = {},
): MatmulChoice {
  const refuse = (why: string): MatmulChoice => ({
    kernel: undefined,
    reason: `[${a.join(", ")}] × [${b.join(", ")}]${
      transposeB ? " transposed" : ""
    }: ${why}`,
  });
  const byColumn = transposeB || b.length === 1;
  const size = matmulSize(a, b, byColumn);
  if (typeof size === "string") return refuse(size);
  const all = candidates(a, b, { ...size, byColumn, dtype }, device);
  const able = all.filter(({ fits }) => fits);
  const found = able.find(({ kernel }) => !kernels || kernels.includes(kernel));
  if (!found) {
    return refuse(
      `these shapes are for ${
        able.map(({ kernel }) => kernel).join(" or ")
      }, not for ${kernels!.join(" or ")}`,
    );
  }
  const { kernel, constants, reason } = found;
  const shape = b.length === 1 ? [size.m] : [...a.slice(0, -1), size.n];
  return { kernel, ...size, shape, constants, reason };
}

/** `[m, k] × [k, n]`, per matrix of a batch, or why the shapes are not that. */
function matmulSize(
  a: readonly number[],
  b: readonly number[],
  byColumn: boolean,
): { m: number; n: number; k: number } | string {
  const sizes = `${a.length}D×${b.length}D`;
  if (!["1D×2D", "2D×1D", "2D×2D", "4D×4D"].includes(sizes)) {
    return `${sizes} is not among 2D×1D, 1D×2D, 2D×2D and 4D×4D`;
  }
  const k = a.at(-1)!;
  const [m, inner, n] = b.length === 1
    ? [a[0], b[0], 1]
    : byColumn
    ? [a.at(-2) ?? 1, b.at(-1)!, b.at(-2)!]
    : [a.at(-2) ?? 1, b.at(-2)!, b.at(-1)!];
  if (inner !== k) return `the inner sizes ${k} and ${inner} differ`;
  if ([...a, ...b].some((size) => size < 1)) return "a size is 0";
  if (a.length === 4 && a[0] !== b[0]) {
    return `the batches ${a[0]} and ${b[0]} differ`;
  }
  if (a.length === 4 && a[1] % b[1]) {
    return `${a[1]} heads are not a multiple of ${b[1]}`;
  }
  return { m, n, k };
}

interface Candidate {
  kernel: MatmulKernel;
  fits: boolean;
  constants: Constants;
  reason: string;
}

/** All kernels, the best first; the first that fits and is allowed runs. */
function candidates(
  a: readonly number[],
  b: readonly number[],
  { m, n, k, byColumn, dtype }: {
    m: number;
    n: number;
    k: number;
    byColumn: boolean;
    dtype: LinearShape["dtype"];
  },
  device: Capabilities,
): Candidate[] {
  const rows = m === 1 ? "1 row" : `${m} rows`;
  const few = byColumn ? FEW_ROWS : FEW_COLUMNS;
  const tile = {
    ...tileFor(m, n, defaultsFor(device)),
    EPILOGUE: "store",
    B_BY_COLUMN: byColumn ? 1 : 0,
  };
  const linear = (m: number, n: number) =>
    chooseLinear({ m, n, k, dtype, norm: false, swiglu: false }, device)
      .constants;
  return [{
    kernel: "batchedGemm",
    fits: a.length === 4,
    constants: tile,
    reason: "a matmul per batch and head",
  }, {
    kernel: "gemv",
    fits: b.length === 1,
    constants: linear(1, m),
    reason: "a matrix times a vector: the matrix is read once",
  }, {
    kernel: m === 1 ? "gemv" : "gemvRows",
    fits: b.length === 2 && byColumn && m <= few,
    constants: linear(Math.min(m, FEW_ROWS), n),
    reason: `${rows}: the matrix is read once`,
  }, {
    kernel: "gemvColumns",
    fits: a.length < 4 && !byColumn && m <= few,
    constants: { M: m },
    reason: `${rows}: the matrix is read once`,
  }, {
    kernel: "gemm",
    fits: a.length === 2 && b.length === 2,
    constants: tile,
    reason: m > few
      ? `${rows}: more than ${few}, tiles reuse the matrix`
      : `${rows}: asked for`,
  }];
}
