/**
 * Whether matrices are multiplied by tensor cores, through WGSL's subgroup matrices, and in
 * which tiles: pure functions of shapes and capabilities.
 *
 * @module
 */
import type { Capabilities, SubgroupMatrix } from "./capabilities.ts";
import type { Format } from "../formats/format.ts";
import { linearKey } from "./keys.ts";
import {
  type Constants,
  FEW_ROWS,
  type LinearShape,
  splitsWithin,
} from "./shapes.ts";

/** Rows, columns and depth of the matrices that kernels multiply. */
export const MATRIX = 16;

/**
 * Lanes per subgroup in kernels that use matrices. `subgroupMatrices` is empty on devices
 * whose subgroups may have another size.
 */
export const MATRIX_LANES = 32;

/** The largest f16. */
export const LARGEST_HALF = 65504;

/** What the rows of a are scaled to: twice as much is still in f16's range, sums are f32. */
const HEADROOM = 2 ** 14;

/**
 * What rows are counted in that a matmul leaves in f16 for the next one, without knowing how
 * large they get: those of real checkpoints can exceed 65,504. Half of f16's last place is 5e-7
 * then for what is below 16 · 2⁻¹⁴.
 */
export const HALF_UNIT = 16;

/**
 * The least mean of squares of normed rows in f16, in units: smaller ones have lost so many
 * digits that they are computed again ({@linkcode HALF_UNIT}). Such rows are off by 1e-3.
 */
export const LEAST_HALF_SQUARE = 2 ** -32;

/**
 * The largest weight that may multiply gates in f16. How small those are is not known; but what
 * they add to the residual is off by less than 1e-4 then, even if they are all rounding.
 */
export const MOST_HALF_GAIN = 8;

/** Storage buffers beside those of a matrix that gemmMatrix binds if it leaves rows in f16. */
export const MATRIX_BUFFERS = 7;

/** A tile: sums of a workgroup, their depth, and the subgroups that share them. */
export type MatrixTile = Readonly<
  & Record<"BM" | "BN" | "BK" | "SM" | "SN" | "STAGES", number>
  & {
    /** Subgroups that share the products of a sum; 1 by default. */
    SK?: number;
    /** Tiles that are on their way while one is multiplied, at most; 1 by default. */
    AHEAD?: number;
  }
>;

/** Bytes of workgroup memory that a tile takes. */
export const matrixTileBytes = (
  { BM, BN, BK, SK = 1, STAGES }: Omit<MatrixTile, "SM" | "SN">,
): number => STAGES * (BM + BN) * (BK / 8 + SK) * 16;

/**
 * Whether there is room for what a matmul in a tile also needs that leaves normed rows in f16, or
 * reads such: sums of squares of its threads, and a factor per row.
 */
export function normsFit(
  constants: Constants,
  { limits: { maxComputeWorkgroupStorageSize: room } }: Capabilities,
): boolean {
  const { BM, SM, SN, SK = 1 } = constants as MatrixTile;
  const threads = SM * SN * SK * MATRIX_LANES;
  return matrixTileBytes(constants as MatrixTile) + 8 * threads + 4 * BM <=
    room;
}

/** A tile of BM × BN × BK by SM × SN subgroups. */
const makeTile = (
  BM: number,
  BN: number,
  BK: number,
  SM: number,
  SN: number,
  more: Pick<MatrixTile, "SK" | "AHEAD"> = {},
): MatrixTile => ({ BM, BN, BK, SM, SN, STAGES: 1, ...more });

/**
 * Tiles by how many rows there are ("Tensor cores through Dawn: f16 255 TFLOP/s"). With few
 * rows, workgroups wait for weights: either four on each of an H200's multiprocessors, or one
 * with twice the depth of the tile ("Tensor cores for 16 rows", "Tensor cores for 64 rows"), or
 * with more tiles on their way ("16 rows: tiles that are on their way").
 */
export const MATRIX_TILES = {
  /** On an H200 the fastest for 512 and 4,096 rows, or within 6 % of it. */
  large: makeTile(128, 128, 32, 2, 2),
  /** If there is no room for another one, and for 64 rows of an expert. */
  small: makeTile(64, 128, 32, 2, 2),
  /** Up to 64 rows. */
  medium: makeTile(64, 64, 128, 4, 2),
  /** … with SwiGLU, where a subgroup has gates and ups. */
  mediumGated: makeTile(64, 64, 128, 2, 2),
  /** Up to 32 rows. */
  some: makeTile(32, 64, 128, 2, 2, { AHEAD: 2 }),
  /** … with SwiGLU. */
  someGated: makeTile(32, 32, 128, 2, 1, { AHEAD: 2 }),
  /** Up to 16 rows, by splits of k. */
  few: makeTile(16, 64, 64, 1, 4),
  /** … of large matrices. */
  fewLarge: makeTile(16, 32, 64, 1, 2, { AHEAD: 4 }),
  /** … with so many rows of w that k has no splits. */
  fewTall: makeTile(16, 64, 64, 1, 4, { AHEAD: 4 }),
  /** … with SwiGLU. */
  fewGated: makeTile(16, 64, 64, 1, 2, { SK: 2, AHEAD: 2 }),
  /** … of small matrices, whose splits would be summed for longer than this takes. */
  deep: makeTile(16, 32, 256, 1, 2, { SK: 4, AHEAD: 4 }),
  /** … with so few rows of w that there are few tiles. */
  deeper: makeTile(16, 16, 512, 1, 1, { SK: 8, AHEAD: 6 }),
  /** … if there is no room for that. */
  deepNarrow: makeTile(16, 16, 256, 1, 1, { SK: 4, AHEAD: 4 }),
  /** … with SwiGLU. */
  deepGated: makeTile(16, 64, 256, 1, 2, { SK: 4, AHEAD: 4 }),
  /** … if there is no room for that either. */
  deepGatedNarrow: makeTile(16, 32, 128, 1, 1, { SK: 4, AHEAD: 4 }),
  /** If there is no room for that, and for 32 rows of an expert. Not measured. */
  narrow: makeTile(32, 128, 32, 1, 4),
} satisfies Record<string, MatrixTile>;

/** What kernels multiply: f16, with sums in f32. */
export const HALF_MATRICES: SubgroupMatrix = {
  componentType: "f16",
  resultComponentType: "f32",
  M: MATRIX,
  N: MATRIX,
  K: MATRIX,
};

/** Whether a device multiplies {@linkcode HALF_MATRICES}. */
export const hasMatrices = (
  { subgroupMatrices = [] }: Pick<Capabilities, "subgroupMatrices">,
): boolean =>
  subgroupMatrices.some((one) =>
    one.componentType === HALF_MATRICES.componentType &&
    one.resultComponentType === HALF_MATRICES.resultComponentType &&
    [one.M, one.N, one.K].every((size) => size === MATRIX)
  );

/** How tensor cores run a Linear layer. */
export interface MatrixChoice {
  constants: Constants;
  /** The approximate size of each row's largest value after scaling. */
  headroom: number;
  splits: number;
  /** Where the tile comes from. */
  origin: string;
}

/** Why tensor cores cannot run a Linear layer; undefined if they can. */
function refusal(
  { k, largest }: { k: number; largest: number },
): string | undefined {
  if (k % 8) return `rows of ${k} are not whole 16-byte units of f16`;
  // A NaN, too, is beyond the range.
  return largest <= LARGEST_HALF
    ? undefined
    : `the largest weight is ${largest}, beyond f16's ${LARGEST_HALF}`;
}

/**
 * Chooses a tile for a Linear layer of many rows. Returns undefined if the device has no
 * tensor cores that sum in f32 or f16 is not allowed (the largest weight is unknown), and why
 * if they cannot run this layer.
 */
export function chooseMatrices(
  shape: LinearShape,
  device: Capabilities,
): MatrixChoice | string | undefined {
  const { m, n, k, format, swiglu, largest } = shape;
  if (!hasMatrices(device) || largest === undefined) return undefined;
  const refused = refusal({ k, largest });
  if (refused !== undefined) return refused;
  const tuned = m > FEW_ROWS // fewer were not timed
    ? device.tuned?.get(linearKey("gemmMatrix", shape, true))
    : undefined;
  const { tiles, enough } = tilesFor(shape);
  const tile = fitting(tiles, format, tuned, device);
  if (typeof tile === "string") return tile;
  const splits = swiglu || tile.SK
    ? 1
    : splitsOfK(Math.floor(enough / tilesOf(m, n, tile)), k, tile);
  return {
    constants: {
      ...tile,
      EPILOGUE: swiglu ? "swiglu" : "store",
      SCALED: 1,
      SPLITS: splits,
    },
    headroom: HEADROOM,
    splits,
    origin: tuned ? "tuned for this adapter" : "tile measured on an H200",
  };
}

/**
 * Splits of k: as many as are wanted, or some more if splits then have whole rounds of the tiles
 * that are on their way.
 */
function splitsOfK(
  wanted: number,
  k: number,
  { BK, AHEAD = 1 }: MatrixTile,
): number {
  const { splits, most } = splitsWithin(wanted, k);
  if (AHEAD === 1 || splits === 1) return splits;
  for (let more = splits; more <= most; more++) {
    if (k % (more * AHEAD * BK) === 0) return more;
  }
  return splits;
}

/** Maximum elements of a matrix that a few rows are multiplied by without splits of k. */
const MOST_DEEP = 2 ** 23;

/**
 * Maximum elements of a matrix that is not worth the longer code of tiles with more on their way
 * ("16 rows: tiles that are on their way").
 */
const MOST_SHORT = 2 ** 25;

/** Rows of w up to which tiles of 16 of them are not too many. */
const MOST_NARROW = 2048;

/** Rows of w up to which k has splits: more have tiles enough without. */
const MOST_SPLIT_ROWS = 2 ** 14;

/**
 * The tiles for `m` rows, the best first, and how many workgroups keep a large GPU busy with
 * them.
 */
function tilesFor(
  { m, n, k, swiglu }: Pick<LinearShape, "m" | "n" | "k" | "swiglu">,
): { tiles: readonly MatrixTile[]; enough: number } {
  const { large, small, medium, mediumGated, some, someGated, narrow } =
    MATRIX_TILES;
  if (m > 64) return { tiles: [large, small], enough: 256 };
  if (m > 32) {
    return { tiles: [swiglu ? mediumGated : medium, small], enough: 128 };
  }
  if (m > 16) {
    return { tiles: [swiglu ? someGated : some, narrow], enough: 128 };
  }
  return { tiles: fewRowsTiles({ n, k, swiglu }), enough: 512 };
}

/** The tiles for up to 16 rows. */
function fewRowsTiles(
  { n, k, swiglu }: Pick<LinearShape, "n" | "k" | "swiglu">,
): readonly MatrixTile[] {
  const { few, fewLarge, fewTall, fewGated } = MATRIX_TILES;
  const { deep, deeper, deepNarrow, deepGated, deepGatedNarrow } = MATRIX_TILES;
  const size = n * k;
  if (swiglu) {
    return size > MOST_DEEP ? [fewGated] : [deepGated, deepGatedNarrow];
  }
  if (n > MOST_SPLIT_ROWS) return [fewTall];
  if (size > MOST_SHORT) return [fewLarge];
  if (size > MOST_DEEP) return [few];
  return n > MOST_NARROW ? [deep, few] : [deeper, deepNarrow, few];
}

/** The first of `tiles` that there is room for, or why there is none. */
function fitting(
  tiles: readonly MatrixTile[],
  { loads: [unit] }: Format,
  tuned: Constants | undefined,
  { limits: { maxComputeWorkgroupStorageSize: room } }: Capabilities,
): MatrixTile | string {
  const fits = (tile: MatrixTile) => matrixTileBytes(tile) <= room;
  const suitable = tiles.map((given) => ({
    ...given,
    BK: Math.max(given.BK, unit * (given.SK ?? 1)),
  }));
  const tile = { ...suitable.find(fits) ?? suitable.at(-1)!, ...tuned };
  if (fits(tile)) return tile;
  return `a tile takes ${
    matrixTileBytes(tile)
  } bytes of workgroup memory, the device has ${room}`;
}

/**
 * Chooses a tile for rows that are grouped by expert, `BM` of one expert each. If there is
 * none, returns undefined or why, as {@linkcode chooseMatrices} does.
 */
export function chooseGroupedMatrices(
  { BM, k, format, largest }: {
    BM: 32 | 64;
    k: number;
    format: Format;
    largest?: number;
  },
  device: Capabilities,
  tuned?: Constants,
): { constants: Constants; headroom: number } | string | undefined {
  if (!hasMatrices(device) || largest === undefined) return undefined;
  const refused = refusal({ k, largest });
  if (refused !== undefined) return refused;
  const { small, narrow } = MATRIX_TILES;
  const tile = fitting([BM === 32 ? narrow : small], format, tuned, device);
  if (typeof tile === "string") return tile;
  return { constants: { ...tile, SCALED: 1 }, headroom: HEADROOM };
}

const tilesOf = (
  m: number,
  n: number,
  { BM, BN }: Pick<MatrixTile, "BM" | "BN">,
): number => Math.ceil(m / BM) * Math.ceil(n / BN);

/** Keys of a tile in prefill attention. */
const KEYS = 64;

/** Bytes of workgroup memory that prefill attention takes for `ROWS` rows. */
export const attentionTileBytes = (
  headDim: number,
  { ROWS, KEYS }: { ROWS: number; KEYS: number },
): number =>
  16 * (Math.max(ROWS, KEYS) * (headDim / 8 + 1) + ROWS * (KEYS / 16) * 5);

/**
 * Chooses the rows of a workgroup in prefill attention, of which there are `rows` per kv head.
 * Returns undefined without tensor cores, and why if they cannot run it. That it may multiply
 * in f16 was decided before (precision.ts).
 */
export function chooseMatrixAttention(
  { rows, headDim }: { rows: number; headDim: number },
  device: Pick<Capabilities, "subgroupMatrices" | "limits">,
): { constants: { ROWS: number; KEYS: number } } | string | undefined {
  if (!hasMatrices(device)) return undefined;
  const room = device.limits.maxComputeWorkgroupStorageSize;
  const sizes = (rows > 32 ? [64, 32] : [32]).map((ROWS) => ({ ROWS, KEYS }));
  const constants = sizes.find((one) =>
    attentionTileBytes(headDim, one) <= room
  );
  if (constants) return { constants };
  return `a tile takes ${
    attentionTileBytes(headDim, sizes.at(-1)!)
  } bytes of workgroup memory, the device has ${room}`;
}
