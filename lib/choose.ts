/**
 * Which kernel runs a product, with which constants, and why: pure functions of
 * shapes and limits, so that every choice and every refusal can be listed.
 *
 * @module
 */
import {
  type AdapterClass,
  type Defaults,
  defaultsFor,
  tileFor,
} from "./defaults.ts";
import type { Dtype } from "./ops.ts";
import {
  attendKey,
  CONTEXT_CLASSES,
  type ContextClass,
  linearKey,
} from "./tuning_key.ts";
import type { Constants } from "./unroll.ts";
import { unitSize } from "./wgsl.ts";

/** What of a device a choice depends on; a {@linkcode Gpu} has it all. */
export interface Capabilities {
  /** Lanes that exchange values directly; 0 without subgroups. */
  subgroupSize: number;
  /** Whose defaults apply; `other` if absent. */
  adapterClass?: AdapterClass;
  limits: {
    maxComputeWorkgroupStorageSize: number;
    maxComputeInvocationsPerWorkgroup: number;
  };
  /** Constants that were measured to be best on this adapter, by the keys of tuning_key.ts. */
  tuned?: ReadonlyMap<string, Constants>;
}

/** A Linear layer: `[m, k] × [n, k]ᵀ`. */
export interface LinearShape {
  m: number;
  n: number;
  k: number;
  /** Element type of the weights. */
  dtype: Dtype;
  /** RMSNorm of the rows first. */
  norm: boolean;
  /** SwiGLU after it: pairs of w's rows become one output. */
  swiglu: boolean;
  /** The largest absolute weight, where it was measured; products in f16 need it. */
  largest?: number;
}

/** A kernel, its constants, and the reason. */
export interface LinearChoice {
  kernel: "gemv" | "gemvRows" | "gemm";
  constants: Constants;
  /** Whether the kernel norms the rows itself; else rmsNorm runs before it. */
  fusedNorm: boolean;
  /** Products in f16: rows are scaled so that their largest value is about this. */
  headroom?: number;
  /** Runs of k that go to different workgroups, summed afterwards. */
  splits: number;
  reason: string;
}

/** Where constants come from, as the end of a reason. */
const origin = (tuned: Constants | undefined, { source }: Defaults) =>
  tuned ? "tuned for this adapter" : source;

/** Up to this many rows the matrix is read once for all of them. */
export const FEW_ROWS = 32;
/** The same of a matrix that is stored by input row. */
const FEW_COLUMNS = 8;

/** Lanes that share a sum: constants for kernels that use lib/wgsl.ts's LANES. */
export function laneConstants(
  { subgroupSize }: Pick<Capabilities, "subgroupSize">,
  most = 32,
): { LOG_LANES: number; SUBGROUPS: number } {
  const lanes = Math.min(most, subgroupSize || 32);
  return {
    LOG_LANES: Math.floor(Math.log2(Math.max(1, lanes))),
    SUBGROUPS: subgroupSize ? 1 : 0,
  };
}

/** The same for exactly `lanes` lanes, through workgroup memory where subgroups are smaller. */
export function exactLanes(
  { subgroupSize }: Pick<Capabilities, "subgroupSize">,
  lanes: number,
): { LOG_LANES: number; SUBGROUPS: number } {
  return {
    LOG_LANES: Math.log2(lanes),
    SUBGROUPS: subgroupSize >= lanes ? 1 : 0,
  };
}

/** Chooses the kernel of a Linear layer. */
export function chooseLinear(
  shape: LinearShape,
  device: Capabilities,
): LinearChoice {
  const { m, n, k, dtype, norm, swiglu } = shape;
  const EPILOGUE = swiglu ? 2 : 0;
  const defaults = defaultsFor(device);
  if (m > 1 && m <= FEW_ROWS) {
    const tuned = device.tuned?.get(linearKey("gemvRows", shape));
    const { narrow, other, sums } = defaults.gemvRows;
    const row = n <= 2048 ? narrow : other;
    return {
      kernel: "gemvRows",
      constants: {
        ...row,
        ROWS: Math.min(row.ROWS, 2 ** Math.floor(Math.log2(sums / m))),
        ...laneConstants(device, Math.max(4, Math.ceil(k / 4))),
        ...tuned,
        M: m,
        EPILOGUE,
        NORM: norm ? 1 : 0,
      },
      fusedNorm: norm,
      splits: 1,
      reason: `${m} rows: the matrix is read once for all of them${
        k % 4
          ? `, element by element, because k = ${k} is not a multiple of 4`
          : ""
      }; ${origin(tuned, defaults)}`,
    };
  }
  if (m === 1) {
    const tuned = device.tuned?.get(linearKey("gemv", shape));
    const whole = k % unitSize(dtype) === 0;
    const units = Math.ceil(k / unitSize(dtype));
    const fusedNorm = norm && whole;
    const lanes = laneConstants(device, Math.max(4, units));
    const steps = Math.ceil(units / 2 ** lanes.LOG_LANES);
    return {
      kernel: "gemv",
      constants: {
        ...gemvConstants(n, steps, swiglu, defaults),
        EPILOGUE,
        NORM: fusedNorm ? 1 : 0,
        ...lanes,
        ...tuned,
      },
      fusedNorm,
      splits: 1,
      reason: `1 row: the matrix is read once${
        whole
          ? ""
          : `, element by element, because k = ${k} is not whole 16-byte units`
      }; ${origin(tuned, defaults)}`,
    };
  }
  const tunedHalf = device.tuned?.get(linearKey("gemm", shape, true));
  const half = { ...tileFor(m, n, defaults, true), ...tunedHalf };
  // BK products of a row's largest value with the largest weight must fit f16.
  const most = shape.largest === undefined
    ? 0
    : 32768 / (Number(half.BK) * shape.largest);
  const headroom = most >= 1 && k % 4 === 0
    ? 2 ** Math.min(14, Math.floor(Math.log2(most)) - 1)
    : undefined;
  const tuned = headroom
    ? tunedHalf
    : device.tuned?.get(linearKey("gemm", shape));
  const tile = headroom ? half : { ...tileFor(m, n, defaults), ...tuned };
  const splits = swiglu ? 1 : splitsOfK(m, n, k, tile);
  const reasons = [`${m} rows: more than ${FEW_ROWS}, tiles reuse the matrix`];
  if (headroom) reasons.push("f16 products, rows scaled into range");
  if (splits > 1) reasons.push(`k in ${splits} runs to fill the GPU`);
  reasons.push(origin(tuned, defaults));
  return {
    kernel: "gemm",
    constants: {
      ...tile,
      EPILOGUE,
      F16: headroom ? 1 : 0,
      SCALED: headroom ? 1 : 0,
      SPLITS: splits,
    },
    fusedNorm: false,
    headroom,
    splits,
    reason: reasons.join("; "),
  };
}

/**
 * Rows and loads per thread: many rows share x where there are enough of them, all
 * loads of a row are in flight at once as far as registers go.
 */
function gemvConstants(
  n: number,
  steps: number,
  swiglu: boolean,
  { gemv }: Defaults,
): Constants {
  const row = n >= 32768
    ? gemv.tall
    : swiglu
    ? gemv.gated
    : n <= 2048 && steps <= 8
    ? gemv.narrow
    : gemv.other;
  return { ...row, STEPS: Math.ceil(steps / Math.ceil(steps / row.STEPS)) };
}

/** Workgroups that keep a large GPU busy. */
const ENOUGH_WORKGROUPS = 256;

/** Into how many runs k is cut, where tiles of m × n alone are too few. */
function splitsOfK(m: number, n: number, k: number, tile: Constants): number {
  const tiles = Math.ceil(m / Number(tile.BM)) * Math.ceil(n / Number(tile.BN));
  const wanted = Math.floor(ENOUGH_WORKGROUPS / tiles);
  return Math.max(1, Math.min(8, wanted, Math.floor(k / 256)));
}

/** A decode step's attention: constants, and how its keys are divided. */
export interface DecodeAttentionChoice {
  constants: Constants;
  /** Runs of keys for different workgroups at `length` cached tokens of each of `rows`; 0: another choice's. */
  splits: (length: number, rows: number) => number;
  /** Workgroups that a kv head's query heads are divided among. */
  shares: number;
  /** Whether the last workgroup of a head merges the runs; else mergeSplits does. */
  merges: boolean;
  /** Constants of reading ahead, where that was measured to help. */
  ahead?: { FETCHERS: number; AHEAD: number };
  reason: string;
}

/** Runs of keys at most. */
export const MOST_SPLITS = 64;

/**
 * Cached tokens from which on a context is of a class: from `middle` on runs of its keys
 * go to different workgroups, from `long` on reading keys once for all heads that share
 * them matters more than many threads.
 */
export const CONTEXTS: Readonly<Record<ContextClass, number>> = {
  short: 0,
  middle: 256,
  long: 3072,
};

/** What of a workgroup's query heads a lane holds, twice: of q and of the sums. */
const MOST_VALUES = 32;

/** Teams of a workgroup: what they leave is summed one after the other. */
const MOST_TEAMS = 16;

/**
 * Adapters whose storage barrier is known to reach beyond a workgroup: through Vulkan
 * its memory scope is the device. Metal's is the threadgroup.
 */
const DEVICE_BARRIERS: readonly AdapterClass[] = [
  "NVIDIA",
  "NVIDIA, large cache",
  "AMD",
  "software",
];

/** Chooses how a decode step's attention is laid out, for each class of contexts. */
export function chooseDecodeAttention(
  { headDim, group }: { headDim: number; group: number },
  device: Capabilities,
): DecodeAttentionChoice[] {
  const VEC = headDim % 8 === 0 ? 4 : 1;
  const lanes = laneConstants(device);
  const defaults = defaultsFor(device);
  const { adapterClass = "other", limits } = device;
  const merges = DEVICE_BARRIERS.includes(adapterClass);
  return CONTEXT_CLASSES.map((what, i) => {
    const from = CONTEXTS[what];
    const to = CONTEXTS[CONTEXT_CLASSES[i + 1]] ?? Infinity;
    const { WORKGROUP: threads, SHARES: least, STEPS = 1 } =
      defaults.attendDecode[what];
    const tuned = device.tuned?.get(attendKey(what, headDim, group));
    // 16 values to a lane: a pair of 16-byte loads of a key in f16.
    const wanted = Math.ceil(Math.log2(headDim / 16));
    const LOG_KEY_LANES = lanes.SUBGROUPS
      ? Math.max(0, Math.min(wanted, lanes.LOG_LANES))
      : Math.max(3, wanted);
    const most = Math.max(1, MOST_VALUES * 2 ** LOG_KEY_LANES / headDim);
    let SHARES = Math.max(least, Math.ceil(group / most));
    while (group % SHARES) SHARES++;
    const teamLanes = 2 ** (lanes.SUBGROUPS ? lanes.LOG_LANES : LOG_KEY_LANES);
    // What each team leaves must fit workgroup memory, and is summed one after the other.
    const left = 4 * (group / SHARES) * (headDim + 2) + 4 * teamLanes;
    const room = limits.maxComputeWorkgroupStorageSize;
    const teams = 2 ** Math.floor(Math.log2(Math.min(MOST_TEAMS, room / left)));
    const constants: Record<string, number | string> = {
      HEAD_DIM: headDim,
      VEC,
      SHARES,
      WORKGROUP: Math.min(
        threads,
        limits.maxComputeInvocationsPerWorkgroup,
        teams * teamLanes,
      ),
      LOG_KEY_LANES,
      STEPS,
      MERGE: merges ? 1 : 0,
      ...lanes,
      ...tuned,
    };
    const shares = Number(constants.SHARES);
    const { fetch } = defaults.attendDecode[what];
    const ahead = fetch &&
      { FETCHERS: fetch.workgroups, AHEAD: fetch.bytes / 16 };
    return {
      constants: { ...constants, GROUP: group / shares },
      shares,
      merges,
      ahead,
      splits: (length, rows) => {
        if (length < from || length >= to) return 0;
        if (what === "short") return 1;
        // Short runs while they all find room on a large GPU at once.
        const keys = length < 1536 ? 64 : 128;
        const most = Math.ceil(MOST_SPLITS / rows);
        return Math.min(most, Math.ceil((length + 1) / keys));
      },
      reason: `one token per sequence, ${
        to === Infinity ? `${from} keys or more` : `under ${to} keys`
      }: norm, RoPE, append and attention in one${
        merges
          ? ", as is the merge: a storage barrier reaches all workgroups here"
          : ""
      }; ${origin(tuned, defaults)}`,
    };
  });
}

/** Rows of a workgroup in a prompt's attention: 64 where there are many and memory allows. */
export function choosePrefillRows(
  rows: number,
  device: Capabilities,
): { ROWS: number } {
  const room = device.limits.maxComputeWorkgroupStorageSize;
  return { ROWS: rows >= 1024 && room >= 40960 ? 64 : 32 };
}

/** Lanes that share a head when it is normed and rotated. */
export function headLanes(headDim: number, device: Capabilities) {
  const pairs = headDim / 2 / (headDim % 8 === 0 ? 4 : 1);
  return laneConstants(
    device,
    Math.min(32, 2 ** Math.ceil(Math.log2(pairs))),
  );
}

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
 * import { chooseMatmul } from "./choose.ts";
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
  const shape = b.length === 1 ? [m] : [...a.slice(0, -1), n];
  const tile = {
    ...tileFor(m, n, defaultsFor(device)),
    EPILOGUE: 0,
    B_BY_COLUMN: byColumn ? 1 : 0,
  };
  const lanes = (m: number, n: number) =>
    chooseLinear({ m, n, k, dtype, norm: false, swiglu: false }, device);
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
      b.length === 2 && byColumn && m <= FEW_ROWS,
      lanes(Math.min(m, FEW_ROWS), n).constants,
      `${rows}: the matrix is read once`,
    ],
    [
      "gemvColumns",
      a.length < 4 && !byColumn && m <= FEW_COLUMNS,
      { M: m },
      `${rows}: the matrix is read once`,
    ],
    [
      "gemm",
      a.length === 2 && b.length === 2,
      tile,
      m > (byColumn ? FEW_ROWS : FEW_COLUMNS)
        ? `${rows}: more than ${
          byColumn ? FEW_ROWS : FEW_COLUMNS
        }, tiles reuse the matrix`
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
