/**
 * Which kernel multiplies two shapes, and why; or why no kernel can.
 *
 * @module
 */
import { formatNamed } from "../formats/mod.ts";
import type { Capabilities } from "./capabilities.ts";
import { type Constants, FEW_ROWS } from "./shapes.ts";
import type { Dtype } from "../dtype.ts";
import { listed, OptionError, quoted } from "../errors.ts";
import { chooseLinear } from "./linear.ts";
import { tileFor } from "./defaults.ts";
import { chooseMatrices, LARGEST_HALF } from "./matrices.ts";

/**
 * Maximum rows that gemvColumns multiplies in one pass over the matrix: it keeps a vec4
 * per row in registers. Not measured: 8 rows take 32 registers, and models do not use this
 * kernel.
 */
const FEW_COLUMNS = 8;

/** The kernels that {@linkcode chooseMatmul} may pick. */
export type MatmulKernel =
  | "gemv"
  | "gemvRows"
  | "gemvColumns"
  | "gemm"
  | "gemmMatrix"
  | "batchedGemm";

/** The kernel that runs a matmul, or the reason why none can. */
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
 * Chooses the kernel that multiplies shapes `a` and `b`, with the reason, or says why
 * none can. Supported are `[m, k] × [k]`, `[k] × [k, n]`, `[m, k] × [k, n]` with one, a
 * few or many rows, and `[batch, heads, m, k] × [batch, kvHeads, k, n]`. With
 * `transposeB`, the last two dimensions of `b` are `[n, k]`, as checkpoints store
 * weights.
 *
 * ```ts
 * import { chooseMatmul } from "./matmul.ts";
 * const device = { subgroupSize: 32, limits: { maxComputeWorkgroupStorageSize: 32768, maxComputeInvocationsPerWorkgroup: 1024 } };
 * const choice = chooseMatmul([1, 1024], [1024, 2048], device);
 * console.assert(choice.kernel === "gemvColumns");
 * ```
 *
 * @throws {OptionError} if an option is unknown
 */
export function chooseMatmul(
  a: readonly number[],
  b: readonly number[],
  device: Capabilities,
  options: {
    transposeB?: boolean;
    /** Element type of the matrix that gemv reads: `b`, or `a` in `[m, k] × [k]`. */
    dtype?: Dtype;
    /** Whether both are f16: tensor cores multiply that without rounding it. */
    halves?: boolean;
    /** The kernels to choose from; all by default. */
    kernels?: readonly MatmulKernel[];
  } = {},
): MatmulChoice {
  requireNames(options, ["transposeB", "dtype", "halves", "kernels"]);
  const { transposeB = false, dtype = "f32", halves, kernels } = options;
  const refuse = (why: string): MatmulChoice => ({
    kernel: undefined,
    reason: `[${a.join(", ")}] × [${b.join(", ")}]${
      transposeB ? " transposed" : ""
    }: ${why}`,
  });
  const sizes = sizesOf(a, b, transposeB);
  if (typeof sizes === "string") return refuse(sizes);
  const { m, n, k } = sizes;
  const shape = b.length === 1 ? [m] : [...a.slice(0, -1), n];
  const able = candidatesFor(a, b, { ...sizes, dtype, halves }, device);
  const found = able.find(({ kernel }) => !kernels || kernels.includes(kernel));
  if (!found) {
    return refuse(
      `these shapes are for ${
        able.map(({ kernel }) => kernel).join(" or ")
      }, not for ${kernels!.join(" or ")}`,
    );
  }
  return { ...found, m, n, k, shape };
}

function requireNames(options: object, known: readonly string[]): void {
  const wrong = Object.keys(options).find((name) => !known.includes(name));
  if (wrong === undefined) return;
  throw new OptionError(
    wrong,
    `Cannot choose a kernel: the option ${quoted(wrong)} is unknown, must be ${
      listed(known)
    }`,
  );
}

/** The sizes of `[m, k] × [k, n]`, and whether `b` is stored as `[n, k]`. */
interface Sizes {
  m: number;
  n: number;
  k: number;
  byColumn: boolean;
}

/**
 * Returns the sizes of a matmul of shapes `a` and `b`, or why they cannot be
 * multiplied.
 */
function sizesOf(
  a: readonly number[],
  b: readonly number[],
  transposeB: boolean,
): Sizes | string {
  const kind = `${a.length}D×${b.length}D`;
  if (!["1D×2D", "2D×1D", "2D×2D", "4D×4D"].includes(kind)) {
    return `${kind} is not among 2D×1D, 1D×2D, 2D×2D and 4D×4D`;
  }
  const byColumn = transposeB || b.length === 1;
  const k = a.at(-1)!;
  const [m, inner, n] = b.length === 1
    ? [a[0], b[0], 1]
    : byColumn
    ? [a.at(-2) ?? 1, b.at(-1)!, b.at(-2)!]
    : [a.at(-2) ?? 1, b.at(-2)!, b.at(-1)!];
  if (inner !== k) return `the inner sizes ${k} and ${inner} differ`;
  if ([...a, ...b].some((size) => size < 1)) return "a size is 0";
  if (a.length === 4 && a[0] !== b[0]) {
    return `the batch sizes ${a[0]} and ${b[0]} differ`;
  }
  if (a.length === 4 && a[1] % b[1]) {
    return `${a[1]} heads are not a multiple of ${b[1]}`;
  }
  return { m, n, k, byColumn };
}

/** A kernel that can multiply the shapes. */
interface Able {
  kernel: MatmulKernel;
  constants: Constants;
  reason: string;
}

/** The kernels that can multiply these shapes, the best first. */
function candidatesFor(
  a: readonly number[],
  b: readonly number[],
  { m, n, k, byColumn, dtype, halves = false }: Sizes & {
    dtype: Dtype;
    halves?: boolean;
  },
  device: Capabilities,
): Able[] {
  const rows = m === 1 ? "1 row" : `${m} rows`;
  const once = `${rows}: the matrix is read once`;
  const few = byColumn ? FEW_ROWS : FEW_COLUMNS;
  const format = formatNamed(dtype);
  const tile: Constants = {
    ...tileFor(m, n, format, device),
    EPILOGUE: "store",
    B_BY_COLUMN: byColumn ? 1 : 0,
  };
  const linear = (m: number, n: number) =>
    chooseLinear({ m, n, k, format, norm: false, swiglu: false }, device)
      .constants;
  if (a.length === 4) {
    const reason = "a matmul per batch and head";
    return [{ kernel: "batchedGemm", constants: tile, reason }];
  }
  const able: Able[] = [];
  if (b.length === 1) {
    able.push({
      kernel: "gemv",
      constants: linear(1, m),
      reason: "a matrix times a vector: the matrix is read once",
    });
  } else if (byColumn && m <= few) {
    able.push({
      kernel: m === 1 ? "gemv" : "gemvRows",
      constants: linear(m, n),
      reason: once,
    });
  } else if (!byColumn && m <= few) {
    able.push({ kernel: "gemvColumns", constants: { M: m }, reason: once });
  }
  const matrices = a.length === 2 && b.length === 2 && m > few && byColumn &&
    halves && chooseMatrices(
      { m, n, k, format, norm: false, swiglu: false, largest: LARGEST_HALF },
      device,
    );
  if (typeof matrices === "object") {
    able.push({
      kernel: "gemmMatrix",
      constants: { ...matrices.constants, SCALED: 0, SPLITS: 1 },
      reason:
        `${rows}: more than ${few}, tensor cores multiply f16 and sum in f32`,
    });
  }
  if (a.length === 2 && b.length === 2) {
    able.push({
      kernel: "gemm",
      constants: tile,
      reason: m > few
        ? `${rows}: more than ${few}, tiles reuse the matrix`
        : `${rows}: asked for`,
    });
  }
  return able;
}
