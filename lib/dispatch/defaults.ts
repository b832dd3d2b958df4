/**
 * Default kernel constants by adapter class, for shapes that were not tuned on the
 * adapter itself (see tuned.ts). There is one row per class; linear.ts and attention.ts
 * pick within a row by shape. Quoted titles are entries in bench/log.md.
 *
 * @module
 */

import type { AdapterClass, Capabilities } from "./capabilities.ts";
import { f16 } from "../formats/f16.ts";
import { type Format, hasStrips } from "../formats/format.ts";
import { type ContextClass, FEW_ROWS } from "./shapes.ts";

/**
 * Threads per workgroup, rows of w per lane group, and maximum loads in flight per row.
 * `own`: rows that each lane sums by itself instead, where lanes can broadcast x.
 */
type GemvConstants = Readonly<
  { WORKGROUP: number; ROWS: number; STEPS: number; own?: number }
>;
/** Threads in all, and rows of w at a time; see kernels/gemv_walk.ts. */
type WalkConstants = Readonly<{ threads: number; ROWS: number }>;
/**
 * For a few rows of x: threads per workgroup, maximum rows of w per lane group, loads
 * in flight per row, and lane groups that share rows of w.
 */
type GemvRowsConstants = Readonly<
  { WORKGROUP: number; ROWS: number; STEPS: number; SLICES: number }
>;
/**
 * For one row of x as integers: the fewest threads of a workgroup, the most elements of x that
 * a lane holds, rows of w in flight, those of gates and ups, and the threads of all
 * workgroups, about.
 */
type Int8Constants = Readonly<
  {
    WORKGROUP: number;
    HELD: number;
    ROWS: number;
    GATED: number;
    THREADS: number;
  }
>;
/** For a few rows of x, rounded to integers; all loads are in flight. */
type Int8RowsConstants = Omit<GemvRowsConstants, "STEPS">;
/**
 * For more rows of x: the lanes that share a row of w, whether neighbors read the same of x,
 * and whether workgroups copy x to their memory.
 */
export type Spread = Readonly<
  { lanes: number; apart: boolean; staged: boolean }
>;
/** Tiles per workgroup and per thread; see kernels/gemm.ts. */
type TileConstants = Readonly<
  { BM: number; BN: number; BK: number; TM: number; TN: number }
>;
/**
 * Threads per workgroup, the minimum number of workgroups that share a kv head's query
 * heads, and keys per thread at a time. `fetch`: extra workgroups that meanwhile read
 * this many bytes of the next weights into the cache.
 */
type AttendConstants = Readonly<
  {
    WORKGROUP: number;
    SHARES: number;
    STEPS?: number;
    fetch?: { workgroups: number; bytes: number };
  }
>;

/**
 * Threads per workgroup, keys per thread at a time, rows of o_proj per workgroup, and the
 * cached tokens from which on o_proj has a dispatch of its own; `split` if merging the splits
 * of the keys takes another one.
 */
type ProjectConstants = Readonly<
  Record<"WORKGROUP" | "STEPS" | "PROJECT" | "from" | "split", number>
>;

/**
 * Threads per workgroup, columns of down_proj for each, and loads in flight, where the MLP of one
 * row is one dispatch; see kernels/feed_forward.ts. `reads`: the constants of gemv that reads
 * what is pending afterwards.
 */
type FeedForwardConstants =
  & Readonly<Record<"WORKGROUP" | "COLUMNS" | "STEPS", number>>
  & { readonly reads: GemvConstants };

/** The constants of one adapter class. */
export interface Defaults {
  /** Where the constants come from, worded to end a reason. */
  source: string;
  gemv: {
    /** Matrices with a very large number of rows: the LM head. */
    tall: GemvConstants;
    /** Gate and up projections. */
    gated: GemvConstants;
    /** Few and short rows, which make few workgroups. */
    narrow: GemvConstants;
    other: GemvConstants;
    /** Quantised blocks, unless the rows are few and short; like the others if absent. */
    blocks?: GemvConstants;
    /** Large matrices of floats; like the others if absent. */
    walks?: WalkConstants;
    /** Weights up to this many bytes are read from a copy in a texture. */
    copied?: number;
  };
  /** The MLP of one row, where it is one dispatch. */
  feedForward?: FeedForwardConstants;
  /** Quantised blocks as integers. */
  int8: {
    /** The LM head. */
    tall: Int8Constants;
    other: Int8Constants;
  };
  gemvRows: {
    /** Few rows of w, which make few workgroups. */
    narrow: GemvRowsConstants;
    other: GemvRowsConstants;
    /** For more than FEW_ROWS rows of x, where it fits; `tall` for an LM head. */
    many?: Record<"narrow" | "tall" | "other", GemvRowsConstants & Spread>;
    /** Maximum sums per thread: more would leave no registers for loads in flight. */
    sums: number;
    /** Maximum rows of x in a workgroup; others take the next ones. */
    together: number;
    /** Maximum rows of x, and those of LONG_K elements and more. */
    most: number;
    mostLong: number;
  };
  /** Quantised blocks as integers. */
  gemvRowsInt8: {
    narrow: Int8RowsConstants;
    other: Int8RowsConstants;
    /** Many rows of w, and more rows of x than a workgroup takes. */
    wide?: Int8RowsConstants & Spread;
    sums: number;
    together: number;
  };
  gemm: {
    /** Up to 32 rows. */
    few: TileConstants;
    /** In f16, more than 64 rows. */
    half: TileConstants;
    /** In f16 by weights that are f16 or were unpacked to it, where tiles fill the GPU. */
    halfLarge: TileConstants;
    /** In f32, many tiles. */
    large: TileConstants;
    other: TileConstants;
  };
  attendDecode: Readonly<Record<ContextClass, AttendConstants>> & {
    /** Few keys, multiplied by o_proj too; see kernels/attend_project.ts. */
    readonly project?: ProjectConstants;
  };
}

/** 768 threads for each of an H200's multiprocessors. */
const INT8_FOUR_ROWS: Int8Constants = {
  ...{ WORKGROUP: 128, HELD: 32, ROWS: 4, GATED: 4, THREADS: 132 * 768 },
};

// "gemv constants", "gemvRows: 2 to 32 rows in a kernel of its own", "f16 gemm" and
// "Attention with one barrier".
const NVIDIA: Defaults = {
  source: "NVIDIA's defaults, measured on an H100 and an H200",
  gemv: {
    tall: { WORKGROUP: 256, ROWS: 2, STEPS: 2 },
    gated: { WORKGROUP: 128, ROWS: 4, STEPS: 4 },
    narrow: { WORKGROUP: 128, ROWS: 1, STEPS: 8 },
    other: { WORKGROUP: 128, ROWS: 2, STEPS: 12 },
    // "Blocks in gemv: rows per lane decide".
    blocks: { WORKGROUP: 128, ROWS: 4, STEPS: 1 },
    // "Workgroups that walk": 1,024 threads for each of an H200's multiprocessors.
    walks: { threads: 1024 * 132, ROWS: 2 },
  },
  // "Blocks as integers: x in registers", "Two rows in flight in small matrices, too".
  int8: {
    tall: INT8_FOUR_ROWS,
    other: { ...INT8_FOUR_ROWS, ROWS: 2 },
  },
  gemvRows: {
    narrow: { WORKGROUP: 256, ROWS: 4, STEPS: 1, SLICES: 4 },
    other: { WORKGROUP: 128, ROWS: 4, STEPS: 1, SLICES: 1 },
    // "64 rows: x in workgroup memory".
    many: {
      narrow: {
        ...{ WORKGROUP: 128, ROWS: 4, STEPS: 2, SLICES: 4 },
        ...{ lanes: 8, apart: true, staged: true },
      },
      tall: {
        ...{ WORKGROUP: 128, ROWS: 4, STEPS: 1, SLICES: 1 },
        ...{ lanes: 8, apart: true, staged: false },
      },
      other: {
        ...{ WORKGROUP: 128, ROWS: 4, STEPS: 2, SLICES: 1 },
        ...{ lanes: 16, apart: true, staged: true },
      },
    },
    sums: 64,
    // Not measured for more than 16 rows. Then 16 of x stay in a core's cache while the
    // matrix is read up to four times, and no dispatch has to norm or convert rows, or to
    // add up splits of k.
    together: 16,
    most: 64,
    mostLong: FEW_ROWS,
  },
  // "16 rows by blocks: f32, f16 and integers", "16 rows as integers".
  gemvRowsInt8: {
    narrow: { WORKGROUP: 128, ROWS: 2, SLICES: 2 },
    other: { WORKGROUP: 128, ROWS: 4, SLICES: 1 },
    // "16 rows: two parts of a matrix, and other layouts".
    wide: {
      ...{ WORKGROUP: 128, ROWS: 4, SLICES: 1 },
      ...{ lanes: 16, apart: true, staged: true },
    },
    sums: 64,
    together: 8,
  },
  gemm: {
    few: { BM: 32, BN: 64, BK: 16, TM: 4, TN: 8 },
    half: { BM: 64, BN: 128, BK: 32, TM: 8, TN: 8 },
    halfLarge: { BM: 128, BN: 128, BK: 32, TM: 8, TN: 8 },
    large: { BM: 128, BN: 128, BK: 16, TM: 8, TN: 8 },
    other: { BM: 64, BN: 64, BK: 16, TM: 4, TN: 8 },
  },
  attendDecode: {
    // "Decode attention: one query head a workgroup", "… vectors normed once".
    short: { WORKGROUP: 512, SHARES: 4, STEPS: 2 },
    middle: { WORKGROUP: 128, SHARES: 2, STEPS: 4 },
    long: { WORKGROUP: 256, SHARES: 1, STEPS: 2 },
  },
};

// "Reading ahead", "Attention with one barrier".
const LARGE_CACHE: Defaults = {
  ...NVIDIA,
  // "An MLP in one dispatch".
  feedForward: {
    ...{ WORKGROUP: 1024, COLUMNS: 32, STEPS: 2 },
    reads: { WORKGROUP: 512, ROWS: 2, STEPS: 4 },
  },
  attendDecode: {
    short: {
      ...NVIDIA.attendDecode.short,
      fetch: { workgroups: 32, bytes: 6 << 20 },
    },
    middle: {
      ...NVIDIA.attendDecode.middle,
      fetch: { workgroups: 128, bytes: 8 << 20 },
    },
    long: NVIDIA.attendDecode.long, // keys and values already keep the memory busy
    // "Attention with o_proj".
    project: { WORKGROUP: 256, STEPS: 4, PROJECT: 64, from: 320, split: 512 },
  },
};

/** Small attention workgroups, for adapters with few threads or narrow subgroups. */
const NARROW: Defaults["attendDecode"] = {
  short: { WORKGROUP: 128, SHARES: 1 },
  middle: { WORKGROUP: 128, SHARES: 1 },
  long: { WORKGROUP: 128, SHARES: 1 },
};

// Based on registers and waves per SIMD as reported by RADV's compiler ("AMD: what
// RADV's compiler makes of the kernels").
const AMD: Defaults = {
  ...NVIDIA,
  source: "AMD's defaults, based on RADV's compiler, not measured",
  gemv: {
    ...NVIDIA.gemv,
    gated: { WORKGROUP: 128, ROWS: 2, STEPS: 4 },
    narrow: { WORKGROUP: 256, ROWS: 1, STEPS: 4 },
    other: { WORKGROUP: 128, ROWS: 2, STEPS: 6 },
  },
  gemm: {
    ...NVIDIA.gemm,
    half: { BM: 128, BN: 128, BK: 16, TM: 8, TN: 8 },
    halfLarge: { BM: 128, BN: 128, BK: 16, TM: 8, TN: 8 },
  },
  attendDecode: {
    short: { WORKGROUP: 512, SHARES: 2, STEPS: 2 },
    middle: { WORKGROUP: 256, SHARES: 2, STEPS: 2 },
    long: { WORKGROUP: 256, SHARES: 1, STEPS: 2 },
  },
};

// Kernels use an Intel GPU's smallest subgroups (8 lanes), so workgroups already have
// many hardware threads.
const INTEL: Defaults = {
  ...NVIDIA,
  source: "Intel's defaults, not measured",
  attendDecode: NARROW,
};

const APPLE: Defaults = {
  ...NVIDIA,
  source: "Apple's defaults: the same as NVIDIA's, not measured",
};

/** Few threads, since a CPU emulates them, and little code. */
const EMULATED_INT8: Int8Constants = {
  ...{ WORKGROUP: 32, HELD: 128, ROWS: 1, GATED: 2, THREADS: 1024 },
};

// With emulated threads, barriers cost more than wide tiles and rows do ("llvmpipe:
// gemv constants", "llvmpipe: rows per lane").
const SOFTWARE: Defaults = {
  source: "defaults for software renderers, measured on llvmpipe",
  gemv: {
    tall: { WORKGROUP: 32, ROWS: 4, STEPS: 2, own: 8 },
    gated: { WORKGROUP: 32, ROWS: 4, STEPS: 2, own: 8 },
    narrow: { WORKGROUP: 32, ROWS: 4, STEPS: 2, own: 4 },
    other: { WORKGROUP: 32, ROWS: 4, STEPS: 2, own: 8 },
    // Large models leave no memory for a second copy ("llvmpipe: weights in textures").
    copied: 1 << 20,
  },
  // Not used by default either.
  int8: { tall: EMULATED_INT8, other: EMULATED_INT8 },
  gemvRows: {
    narrow: { WORKGROUP: 32, ROWS: 8, STEPS: 1, SLICES: 1 },
    other: { WORKGROUP: 32, ROWS: 8, STEPS: 1, SLICES: 1 },
    sums: 256,
    together: 8,
    most: 64, // gemm takes twice as long
    mostLong: FEW_ROWS,
  },
  // Not used by default: rounding costs more than it saves there.
  gemvRowsInt8: {
    narrow: { WORKGROUP: 32, ROWS: 4, SLICES: 1 },
    other: { WORKGROUP: 32, ROWS: 4, SLICES: 1 },
    sums: 64,
    together: 8,
  },
  gemm: {
    few: { BM: 32, BN: 64, BK: 16, TM: 8, TN: 8 },
    half: { BM: 64, BN: 64, BK: 16, TM: 8, TN: 8 },
    halfLarge: { BM: 64, BN: 64, BK: 16, TM: 8, TN: 8 },
    large: { BM: 64, BN: 64, BK: 16, TM: 8, TN: 8 },
    other: { BM: 64, BN: 64, BK: 16, TM: 8, TN: 8 },
  },
  attendDecode: {
    short: { WORKGROUP: 32, SHARES: 1 },
    middle: { WORKGROUP: 64, SHARES: 1 },
    long: { WORKGROUP: 64, SHARES: 1 },
  },
};

const ROWS: Readonly<Record<AdapterClass, Defaults>> = {
  NVIDIA,
  "NVIDIA, large cache": LARGE_CACHE,
  AMD,
  Intel: INTEL,
  Apple: APPLE,
  software: SOFTWARE,
  other: {
    ...NVIDIA,
    source: "defaults for an unknown adapter, not measured",
    attendDecode: NARROW,
  },
};

/** Returns the row for an adapter; `other` if its class is not known. */
export function defaultsFor(
  { adapterClass = "other" }: { adapterClass?: AdapterClass },
): Defaults {
  return ROWS[adapterClass];
}

/**
 * Minimum rows for large tiles, and minimum outputs in f32. Not measured: these
 * outputs are 128 tiles, for the 132 multiprocessors of an H100, and 256 rows fill two
 * rows of tiles.
 */
const LARGE_ROWS = 256, LARGE_OUTPUT = 1 << 21;

/**
 * Multiprocessors of a large GPU: those of an H100 and an H200. Each takes a large tile at a
 * time, so what counts is how full the last round of tiles is.
 */
export const PROCESSORS = 132;
/** How full rounds of large tiles must be: they are a third faster ("f16 sums in pairs"). */
const LEAST_FULL = 0.75;

/** Tiles of a product. */
export const tilesOf = (
  m: number,
  n: number,
  { BM, BN }: Pick<TileConstants, "BM" | "BN">,
): number => Math.ceil(m / BM) * Math.ceil(n / BN);

/** Whether large tiles in f16 keep most multiprocessors busy in every round. */
export function fillsLarge(
  m: number,
  n: number,
  device: Pick<Capabilities, "adapterClass" | "limits">,
): boolean {
  const { halfLarge } = defaultsFor(device).gemm;
  const room = device.limits.maxComputeWorkgroupStorageSize;
  const tiles = tilesOf(m, n, halfLarge);
  const places = Math.ceil(tiles / PROCESSORS) * PROCESSORS;
  return m >= LARGE_ROWS && tiles >= LEAST_FULL * places &&
    tileBytes(halfLarge, true, f16) <= room;
}

/** Maximum bytes of the factors of a column's 32 elements: two for each of four groups. */
const FACTOR_BYTES = 32;

/** Bytes of workgroup memory that a tile takes, at most. */
export const tileBytes = (
  { BM, BN, BK }: Pick<TileConstants, "BM" | "BN" | "BK">,
  half: boolean,
  format: Format,
): number =>
  BK * (BM / 4 + 1 + BN / 4 + 1) * (half ? 8 : 16) +
  (hasStrips(format) ? BN * BK / 32 * FACTOR_BYTES : 0);

/** What the depth of a tile must be a multiple of: strips span 32 elements. */
export const tileDepth = (format: Format): number => hasStrips(format) ? 32 : 4;

/**
 * Chooses a matmul's tile by its size: large if there is enough work to fill a GPU and
 * enough workgroup memory.
 */
export function tileFor(
  m: number,
  n: number,
  format: Format,
  device: Pick<Capabilities, "adapterClass" | "limits">,
  half = false,
): TileConstants {
  const { gemm } = defaultsFor(device);
  const room = device.limits.maxComputeWorkgroupStorageSize;
  const deep = (tile: TileConstants) => ({
    ...tile,
    BK: Math.max(tile.BK, tileDepth(format)),
  });
  if (m <= 32) return deep(gemm.few);
  if (half && m > 64) {
    return format === f16 && fillsLarge(m, n, device)
      ? gemm.halfLarge
      : deep(gemm.half);
  }
  const large = deep(gemm.large);
  const suits = m >= LARGE_ROWS && m * n >= LARGE_OUTPUT &&
    tileBytes(large, half, format) <= room;
  return suits ? large : deep(gemm.other);
}
