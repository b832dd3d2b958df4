/**
 * Which kernel multiplies two shapes, and why, or why none does.
 *
 * @module
 */
import { formatNamed } from "../formats/mod.ts";
import type { Capabilities } from "./capabilities.ts";
import { type Constants, FEW_ROWS } from "./shapes.ts";
import type { Dtype } from "../dtype.ts";
import { chooseLinear } from "./linear.ts";
import { defaultsFor, tileFor } from "./defaults.ts";

/** Up to this many rows a matrix that is stored by input row is read once for all. */
const FEW_COLUMNS = 8;

/** The kernels that {@linkcode chooseMatmul} may pick. */
export type MatmulKernel =
  | "gemv"
  | "gemvRows"
  | "gemvColumns"
  | "gemm"
  | "batchedGemm";

/** What a product runs on, or why none can. */
export type MatmulChoice =
  | {
    kernel: MatmulKernel;
    /** `[m, k] × [k, n]`, per matrix of a batch. */
    m: number;
    n: number;
    k: number;
    /** Shape of the product. */
    shape: number[];
    constants: Constants;
    reason: string;
  }
  | { kernel: undefined; reason: string };

/**
 * Which kernel multiplies shapes `a` and `b`, and why, or why none does:
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
    /** Allows only these. */
    kernels?: readonly MatmulKernel[];
  } = {},
): MatmulChoice {
  const refuse = (why: string): MatmulChoice => ({
    kernel: undefined,
    reason: `[${a.join(", ")}] × [${b.join(", ")}]${
      transposeB ? " transposed" : ""
    }: ${why}`,
  });
  const sizes = `${a.length}D×${b.length}D`;
  if (!["1D×2D", "2D×1D", "2D×2D", "4D×4D"].includes(sizes)) {
    return refuse(`${sizes} is not among 2D×1D, 1D×2D, 2D×2D and 4D×4D`);
  }
  const byColumn = transposeB || b.length === 1;
  const k = a.at(-1)!;
  const [m, inner, n] = b.length === 1
    ? [a[0], b[0], 1]
    : byColumn
    ? [a.at(-2) ?? 1, b.at(-1)!, b.at(-2)!]
    : [a.at(-2) ?? 1, b.at(-2)!, b.at(-1)!];
  if (inner !== k) return refuse(`the inner sizes ${k} and ${inner} differ`);
  const empty = [...a, ...b].findIndex((size) => size < 1);
  if (empty >= 0) return refuse("a size is 0");
  if (a.length === 4 && a[0] !== b[0]) {
    return refuse(`the batches ${a[0]} and ${b[0]} differ`);
  }
  if (a.length === 4 && a[1] % b[1]) {
    return refuse(`${a[1]} heads are not a multiple of ${b[1]}`);
  }
  const rows = m === 1 ? "1 row" : `${m} rows`;
  const few = byColumn ? FEW_ROWS : FEW_COLUMNS;
  const shape = b.length === 1 ? [m] : [...a.slice(0, -1), n];
  const tile = {
    ...tileFor(m, n, defaultsFor(device)),
    EPILOGUE: "store",
    B_BY_COLUMN: byColumn ? 1 : 0,
  };
  const format = formatNamed(dtype);
  const lanes = (m: number, n: number) =>
    chooseLinear(
      { m, n, k, format, norm: false, swiglu: false },
      device,
    );
  /** From the best on; the first that is allowed runs. */
  const candidates: [MatmulKernel, boolean, Constants, string][] = [
    ["batchedGemm", a.length === 4, tile, "a product per batch and head"],
    [
      "gemv",
      b.length === 1,
      lanes(1, m).constants,
      "a matrix times a vector: the matrix is read once",
    ],
    [
      m === 1 ? "gemv" : "gemvRows",
      b.length === 2 && byColumn && m <= few,
      lanes(Math.min(m, FEW_ROWS), n).constants,
      `${rows}: the matrix is read once`,
    ],
    [
      "gemvColumns",
      a.length < 4 && !byColumn && m <= few,
      { M: m },
      `${rows}: the matrix is read once`,
    ],
    [
      "gemm",
      a.length === 2 && b.length === 2,
      tile,
      m > few
        ? `${rows}: more than ${few}, tiles reuse the matrix`
        : `${rows}: asked for`,
    ],
  ];
  const able = candidates.filter(([, fits]) => fits);
  const found = able.find(([name]) => !kernels || kernels.includes(name));
  if (!found) {
    return refuse(
      `these shapes are for ${
        able.map(([name]) => name).join(" or ")
      }, not for ${kernels!.join(" or ")}`,
    );
  }
  const [kernel, , constants, reason] = found;
  return { kernel, m, n, k, shape, constants, reason };
}
