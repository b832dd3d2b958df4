/**
 * Constants of the kernels by kind of adapter, where nothing was tuned on the adapter
 * itself (see tuning.ts). One row per kind; choose.ts picks within a row by shape.
 *
 * @module
 */

import type { AdapterClass } from "./capabilities.ts";
import type { ContextClass } from "./shapes.ts";

/**
 * Threads of a workgroup, rows of w that a lane group sums, loads in flight per row at
 * most; rows that each lane sums alone instead, where lanes can give one another x.
 */
type GemvConstants = Readonly<
  { WORKGROUP: number; ROWS: number; STEPS: number; own?: number }
>;
/** The same, at most, for a few rows of x; lane groups that share rows of w. */
type GemvRowsConstants = Readonly<
  { WORKGROUP: number; ROWS: number; STEPS: number; SLICES: number }
>;
/** A tile of a workgroup, and of a thread; see kernels/gemm.ts. */
type TileConstants = Readonly<
  { BM: number; BN: number; BK: number; TM: number; TN: number }
>;
/**
 * Threads of a workgroup, workgroups at least that a kv head's query heads are divided
 * among, keys that a thread takes part in at once, and workgroups that meanwhile read
 * so many bytes of the next weights into the cache.
 */
type AttendConstants = Readonly<
  {
    WORKGROUP: number;
    SHARES: number;
    STEPS?: number;
    fetch?: { workgroups: number; bytes: number };
  }
>;

/** One kind's constants. */
export interface Defaults {
  /** Where they come from: ends the reason of whatever uses them. */
  source: string;
  gemv: {
    /** Matrices of very many rows: the LM head. */
    tall: GemvConstants;
    /** Gate and up projections. */
    gated: GemvConstants;
    /** Few and short rows: workgroups are scarce. */
    narrow: GemvConstants;
    other: GemvConstants;
    /** Weights of up to so many bytes are read from a copy of them, a texture. */
    copied?: number;
  };
  gemvRows: {
    /** Few rows of w: workgroups are scarce. */
    narrow: GemvRowsConstants;
    other: GemvRowsConstants;
    /** What a thread sums, at most: more leaves no registers for what is in flight. */
    sums: number;
  };
  gemm: {
    /** Up to 32 rows. */
    few: TileConstants;
    /** Products in f16, more than 64 rows. */
    half: TileConstants;
    /** Products in f32, many tiles. */
    large: TileConstants;
    other: TileConstants;
  };
  attendDecode: Readonly<Record<ContextClass, AttendConstants>>;
}

const NVIDIA: Defaults = {
  source: "NVIDIA's defaults, measured on an H100 and an H200",
  gemv: {
    tall: { WORKGROUP: 256, ROWS: 2, STEPS: 2 },
    gated: { WORKGROUP: 128, ROWS: 4, STEPS: 4 },
    narrow: { WORKGROUP: 128, ROWS: 1, STEPS: 8 },
    other: { WORKGROUP: 128, ROWS: 2, STEPS: 12 },
  },
  gemvRows: {
    narrow: { WORKGROUP: 256, ROWS: 4, STEPS: 1, SLICES: 4 },
    other: { WORKGROUP: 128, ROWS: 4, STEPS: 1, SLICES: 1 },
    sums: 64,
  },
  gemm: {
    few: { BM: 32, BN: 64, BK: 16, TM: 4, TN: 8 },
    half: { BM: 64, BN: 128, BK: 32, TM: 8, TN: 8 },
    large: { BM: 128, BN: 128, BK: 16, TM: 8, TN: 8 },
    other: { BM: 64, BN: 64, BK: 16, TM: 4, TN: 8 },
  },
  attendDecode: {
    short: { WORKGROUP: 512, SHARES: 2, STEPS: 2 },
    middle: { WORKGROUP: 128, SHARES: 2, STEPS: 4 },
    long: { WORKGROUP: 128, SHARES: 1, STEPS: 2 },
  },
};

const LARGE_CACHE: Defaults = {
  ...NVIDIA,
  attendDecode: {
    short: {
      ...NVIDIA.attendDecode.short,
      fetch: { workgroups: 32, bytes: 6 << 20 },
    },
    middle: {
      ...NVIDIA.attendDecode.middle,
      fetch: { workgroups: 128, bytes: 8 << 20 },
    },
    long: NVIDIA.attendDecode.long, // keys and values keep the memory busy
  },
};

/** Small workgroups of attention, where threads may be few or subgroups narrow. */
const NARROW: Defaults["attendDecode"] = {
  short: { WORKGROUP: 128, SHARES: 1 },
  middle: { WORKGROUP: 128, SHARES: 1 },
  long: { WORKGROUP: 128, SHARES: 1 },
};

// By registers and waves to a SIMD, as RADV compiles the kernels (`deno task radv`).
const AMD: Defaults = {
  ...NVIDIA,
  source: "AMD's defaults, by RADV's compiler, not measured",
  gemv: {
    ...NVIDIA.gemv,
    gated: { WORKGROUP: 128, ROWS: 2, STEPS: 4 },
    narrow: { WORKGROUP: 256, ROWS: 1, STEPS: 4 },
    other: { WORKGROUP: 128, ROWS: 2, STEPS: 6 },
  },
  gemm: {
    ...NVIDIA.gemm,
    half: { BM: 128, BN: 128, BK: 16, TM: 8, TN: 8 },
  },
  attendDecode: {
    short: { WORKGROUP: 512, SHARES: 2, STEPS: 2 },
    middle: { WORKGROUP: 256, SHARES: 2, STEPS: 2 },
    long: { WORKGROUP: 256, SHARES: 1, STEPS: 2 },
  },
};

// Deno counts on an Intel GPU's smallest subgroups (8 lanes), so threads are many already.
const INTEL: Defaults = {
  ...NVIDIA,
  source: "Intel's defaults, not measured",
  attendDecode: NARROW,
};

const APPLE: Defaults = {
  ...NVIDIA,
  source: "Apple's defaults, not measured: as on NVIDIA",
};

// Emulated threads cost more at each barrier than wide tiles and rows do.
const SOFTWARE: Defaults = {
  source: "defaults for threads emulated on a CPU, measured on llvmpipe",
  gemv: {
    tall: { WORKGROUP: 32, ROWS: 4, STEPS: 2, own: 8 },
    gated: { WORKGROUP: 32, ROWS: 4, STEPS: 2, own: 8 },
    narrow: { WORKGROUP: 32, ROWS: 4, STEPS: 2, own: 4 },
    other: { WORKGROUP: 32, ROWS: 4, STEPS: 2, own: 8 },
    copied: 1 << 20, // large models have no memory for all of their weights twice
  },
  gemvRows: {
    narrow: { WORKGROUP: 32, ROWS: 8, STEPS: 1, SLICES: 1 },
    other: { WORKGROUP: 32, ROWS: 8, STEPS: 1, SLICES: 1 },
    sums: 256,
  },
  gemm: {
    few: { BM: 32, BN: 64, BK: 16, TM: 8, TN: 8 },
    half: { BM: 64, BN: 64, BK: 16, TM: 8, TN: 8 },
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
    source: "defaults for an adapter of unknown make, not measured",
    attendDecode: NARROW,
  },
};

/** Every kind. */
export const ADAPTER_CLASSES = Object.keys(ROWS) as readonly AdapterClass[];

/** The row for an adapter; one that does not say what it is counts as `other`. */
export function defaultsFor(
  { adapterClass = "other" }: { adapterClass?: AdapterClass },
): Defaults {
  return ROWS[adapterClass];
}

/** The tile of a product by its size: large where there is enough work to fill a GPU. */
export function tileFor(
  m: number,
  n: number,
  { gemm }: Defaults,
  half = false,
): TileConstants {
  if (m <= 32) return gemm.few;
  if (half && m > 64) return gemm.half;
  return m >= 256 && m * n >= 1 << 21 ? gemm.large : gemm.other;
}
