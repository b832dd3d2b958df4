/**
 * Which kernel runs a Linear layer, with which constants, and why: pure functions of
 * shapes and limits, so that every choice can be listed. attention.ts chooses for
 * attention, matmul.ts for tensors of any shape. Thresholds were measured; quoted
 * titles are entries in bench/log.md.
 *
 * @module
 */
import {
  type Capabilities,
  laneConstants,
  mostThreads,
} from "./capabilities.ts";
import { wideLoad } from "../formats/format.ts";
import {
  type Constants,
  type Epilogue,
  FEW_ROWS,
  type LinearShape,
  LONG_K,
} from "./shapes.ts";
import { type Defaults, defaultsFor, tileFor } from "./defaults.ts";
import { type LinearKernel, linearKey } from "./keys.ts";
import { chooseMatrices } from "./matrices.ts";

/** A kernel, its constants, and the reason. */
export interface LinearChoice {
  kernel: LinearKernel;
  constants: Constants;
  /** Whether the kernel norms the rows itself; if not, rmsNorm runs before it. */
  fusedNorm: boolean;
  /** In f16, the approximate size of each row's largest value after scaling. */
  headroom?: number;
  /** In which units the results are rounded for the next kernel, if they are. */
  leaves?: number;
  /** Whether the kernel also multiplies by the matrix's next part. */
  two?: boolean;
  /**
   * The number of splits of k, which run in different workgroups and are summed
   * afterwards.
   */
  splits: number;
  reason: string;
}

/** Says where constants come from, worded to end a reason. */
export const origin = (tuned: Constants | undefined, { source }: Defaults) =>
  tuned ? "tuned for this adapter" : source;

/** Chooses the kernel of a Linear layer. */
export function chooseLinear(
  shape: LinearShape,
  device: Capabilities,
): LinearChoice {
  if (shape.m > FEW_ROWS) {
    const choice = chooseTensorCores(shape, device);
    if (choice) return choice;
  }
  return shape.m === 1
    ? chooseOneRow(shape, device)
    : shape.m <= mostFew(shape, device)
    ? chooseFewRows(shape, device)
    : chooseManyRows(shape, device);
}

/** The most rows that a matrix is read for at once; tiles reuse it for more. */
export const mostFew = (
  { k }: Pick<LinearShape, "k">,
  device: Capabilities,
): number => {
  const { most, mostLong } = defaultsFor(device).gemvRows;
  return k < LONG_K ? most : mostLong;
};

/**
 * SwiGLU is a property of the layer; the caller replaces "store" with "add" where it
 * adds to the output.
 */
const epilogueOf = ({ swiglu }: LinearShape): Epilogue =>
  swiglu ? "swiglu" : "store";

/**
 * With a few rows of x, up to this many rows of w make too few workgroups for a large
 * GPU ("gemvRows: 2 to 32 rows in a kernel of its own").
 */
const NARROW_ROWS = 2048;
/** Minimum rows of w for a matrix to count as an LM head ("gemv constants"). */
const TALL_ROWS = 32768;
/**
 * Maximum loads per lane for a row to count as short: all are in flight at once
 * ("o_proj with all its loads in flight").
 */
const SHORT_STEPS = 8;
/** Workgroups that keep a large GPU busy ("Split k"). */
const ENOUGH_WORKGROUPS = 256;
/**
 * Maximum splits of k, and minimum k per split: summing them costs a dispatch ("Split
 * k").
 */
const MOST_SPLITS_OF_K = 8, LEAST_K = 256;

/**
 * Sums that gemvRows' lanes exchange between two barriers without subgroups: as many as
 * 8 KiB hold, because each barrier takes a software adapter seconds to compile.
 */
export function sumsAtOnce(
  workgroup: number,
  lanes: number,
  sums: number,
): number {
  return Math.max(1, Math.min(lanes, sums, 2048 / workgroup));
}

/** Bytes of workgroup memory that gemvRows takes for `m` rows. */
export function fewRowsBytes(
  m: number,
  { WORKGROUP, ROWS }: { WORKGROUP: number; ROWS: number },
  lanes: number,
  { subgroupSize }: Pick<Capabilities, "subgroupSize">,
): number {
  const groups = WORKGROUP / lanes, sums = 2 ** Math.ceil(Math.log2(m * ROWS));
  const terms = subgroupSize
    ? 0
    : WORKGROUP * sumsAtOnce(WORKGROUP, lanes, sums);
  return 4 * (m + 2 * groups * sums + WORKGROUP * Math.ceil(m / WORKGROUP)) +
    4 * terms;
}

/** Halves the rows of w per lane group, then the threads, until workgroup memory fits. */
function fitFewRows<
  T extends { WORKGROUP: number; ROWS: number; SLICES: number },
>(
  row: T,
  { m, swiglu }: LinearShape,
  lanes: number,
  device: Capabilities,
): T {
  let { WORKGROUP, ROWS } = row;
  const room = device.limits.maxComputeWorkgroupStorageSize;
  const least = swiglu ? 2 : 1;
  while (fewRowsBytes(m, { WORKGROUP, ROWS }, lanes, device) > room) {
    if (ROWS > least) ROWS /= 2;
    else if (WORKGROUP > row.SLICES * lanes) WORKGROUP /= 2;
    else break;
  }
  return { ...row, WORKGROUP, ROWS };
}

/**
 * Maximum elements of w whose quants a lane of gemvRowsInt8 keeps, four in a register. Not
 * measured: they take 32 of about 256 registers, and sums another 64.
 */
const MOST_KEPT = 128;

/**
 * Minimum elements of w for gemvRowsInt8, or of products of those and rows: fewer take less
 * time than the dispatch that rounds x for them ("16 rows as integers"; products were not
 * measured but computed from its numbers).
 */
const LEAST_ROUNDED = 1e7, LEAST_PRODUCTS = 1.2e8;

/** Whether rounding x for gemvRowsInt8 pays off. */
const isRounded = ({ m, n, k }: LinearShape) =>
  n * k >= LEAST_ROUNDED || m * n * k >= LEAST_PRODUCTS;

function chooseFewIntegers(
  shape: LinearShape,
  device: Capabilities,
): LinearChoice {
  const { m, n, k, format } = shape, units = k / format.loads[0];
  const defaults = defaultsFor(device);
  const tuned = device.tuned?.get(linearKey("gemvRowsInt8", shape));
  const { narrow, other, sums, together } = defaults.gemvRowsInt8;
  const M = Math.min(m, Number(tuned?.M ?? together));
  const row = n <= NARROW_ROWS ? narrow : other;
  const lanes = laneConstants(device, units), LANES = 2 ** lanes.LOG_LANES;
  const chunks = Math.ceil(units / LANES);
  const ROWS = Math.min(
    row.ROWS,
    2 ** Math.floor(Math.log2(sums / M)),
    MOST_KEPT / format.loads[0],
  );
  const SLICES = Math.min(row.SLICES, 2 ** Math.floor(Math.log2(chunks)));
  const { WORKGROUP, ROWS: fitting } = fitFewRows(
    { ...row, ROWS, SLICES },
    { ...shape, m: M },
    LANES,
    device,
  );
  return {
    kernel: "gemvRowsInt8",
    constants: {
      ...{ WORKGROUP, ROWS: fitting, SLICES },
      ...lanes,
      ...tuned,
      M,
      EPILOGUE: epilogueOf(shape),
    },
    fusedNorm: false,
    splits: 1,
    reason: `${
      rowsText(m, M)
    }, whose quants multiply as integers, by rows rounded to 15 bits; ${
      origin(tuned, defaults)
    }`,
  };
}

/** How often the matrix is read for `m` rows, M of them at a time. */
const rowsText = (m: number, M: number) =>
  `${m} rows: the matrix is read ${
    m > M ? `once for every ${M}` : "once for all of them"
  }`;

function chooseFewRows(shape: LinearShape, device: Capabilities): LinearChoice {
  if (isRounded(shape) && multipliesIntegers(shape, device)) {
    return chooseFewIntegers(shape, device);
  }
  const { m, n, k, norm } = shape;
  const defaults = defaultsFor(device);
  const tuned = device.tuned?.get(linearKey("gemvRows", shape));
  const { narrow, other, sums, together } = defaults.gemvRows;
  const row = n <= NARROW_ROWS ? narrow : other;
  const lanes = laneConstants(device, Math.max(4, Math.ceil(k / 4)));
  const M = Math.min(m, Number(tuned?.M ?? together));
  const ROWS = Math.min(row.ROWS, 2 ** Math.floor(Math.log2(sums / M)));
  return {
    kernel: "gemvRows",
    constants: {
      ...fitFewRows(
        { ...row, ROWS },
        { ...shape, m: M },
        2 ** lanes.LOG_LANES,
        device,
      ),
      ...lanes,
      ...tuned,
      M,
      EPILOGUE: epilogueOf(shape),
      NORM: norm ? 1 : 0,
    },
    fusedNorm: norm,
    splits: 1,
    reason: `${rowsText(m, M)}${
      k % 4
        ? `, element by element, because k = ${k} is not a multiple of 4`
        : ""
    }; ${origin(tuned, defaults)}`,
  };
}

/** Bytes of workgroup memory that gemvInt8 takes for `elements` of x. */
export const roundedBytes = (elements: number): number =>
  2 * elements + elements / 2;

/** Minimum rows of w for gemvInt8's wide constants, and its most loops ("Blocks as integers"). */
const WIDE_ROWS = 6144, MOST_LOOPS = 4;
/**
 * Minimum elements of w, or of a row, of models whose weights displace instructions from
 * caches: gemvInt8 then has less code ("Less code").
 */
const LARGE = 8e6;
/** Elements of x that share a scale where rows are rounded to integers. */
const ROUNDED_BLOCK = 32;
/** Elements of x that gemvInt8 takes at a time are a multiple of this. */
const ROUNDED_STEP = 256;
/** Workgroup memory that leaves room for several workgroups, even on large GPUs. */
const ROUNDED_ROOM = 32768;

/**
 * The elements of x that gemvInt8 rounds at a time, and how often it does, so that they fit
 * workgroup memory.
 */
export function roundedChunk(
  k: number,
  { limits }: Pick<Capabilities, "limits">,
): { chunk: number; phases: number } {
  const room = Math.min(ROUNDED_ROOM, limits.maxComputeWorkgroupStorageSize);
  const most = Math.floor(room / roundedBytes(ROUNDED_STEP)) * ROUNDED_STEP;
  const phases = Math.ceil(k / most);
  return {
    chunk: Math.ceil(k / phases / ROUNDED_STEP) * ROUNDED_STEP,
    phases,
  };
}

/** Whether quants multiply as integers, by rows that are rounded to integers. */
export function multipliesIntegers(
  { k, format, largest }: Pick<LinearShape, "k" | "format" | "largest">,
  { subgroupSize }: Capabilities,
): boolean {
  // Without the largest weight, results must be as exact as f32 allows.
  return largest !== undefined && format.integers !== undefined &&
    subgroupSize >= 8 && k % ROUNDED_BLOCK === 0 && k % format.loads[0] === 0;
}

/** Whether a matrix is of a model that displaces instructions from caches. */
const isLarge = (n: number, k: number) => n * k >= LARGE || k >= LONG_K;

/** The row of defaults for gemvInt8, by the shape of w. */
function int8Row(n: number, k: number, { int8 }: Defaults) {
  if (n <= NARROW_ROWS) return int8.narrow;
  if (!isLarge(n, k)) return n >= WIDE_ROWS ? int8.wide : int8.other;
  return n >= WIDE_ROWS ? int8.wideLarge : int8.otherLarge;
}

/** Constants of a kernel that rounds `k` elements of x, for `n` rows of w in all. */
export function integerConstants(
  { n, k, format, swiglu }: Pick<LinearShape, "n" | "k" | "format" | "swiglu">,
  device: Capabilities,
  row = int8Row(n, k, defaultsFor(device)),
): Constants {
  const lanes = laneConstants(device);
  const laneCount = 2 ** lanes.LOG_LANES, [unit] = format.loads;
  const WORKGROUP = Math.min(row.WORKGROUP, mostThreads(device));
  // As many rows share a rounded x with fewer threads.
  const share = row.ROWS * row.WORKGROUP / WORKGROUP;
  const ROWS = swiglu ? Math.max(2, share) : share;
  const { chunk, phases } = roundedChunk(k, device);
  const steps = Math.ceil(Math.min(k, chunk) / unit / laneCount);
  const together = Math.ceil(row.STEPS * ROUNDED_BLOCK / unit);
  const groups = n / (ROWS * WORKGROUP / laneCount);
  return {
    WORKGROUP,
    ROWS,
    STEPS: Math.ceil(steps / Math.ceil(steps / together)),
    LOOPS: phases > 1 ? 1 : Math.max(
      1,
      Math.min(MOST_LOOPS, Math.floor(groups / ENOUGH_WORKGROUPS / 2)),
    ),
    CHUNK: chunk,
    ROLLED: isLarge(n, k) ? 1 : 0,
    ...lanes,
  };
}

/**
 * Whether a kernel rounds its results for the next one, so that the workgroups of that do
 * not: in which units, or 0. Both must multiply one row as integers, and the kernel has no
 * buffers left for a norm of its own.
 */
export function roundsFor(
  { n, k, swiglu, norm, rounded, next }: LinearShape,
  device: Capabilities,
): number {
  if (!next || !(device.roundsAhead ?? defaultsFor(device).ahead.on)) return 0;
  const { formats, largest } = next, width = swiglu ? n / 2 : n;
  const [unit] = formats[0].loads;
  const together = formats.every((format) =>
    format.loads[0] === unit &&
    multipliesIntegers({ k: width, format, largest }, device)
  );
  const whole = rounded || !norm && roundedChunk(k, device).phases === 1;
  return together && whole ? unit : 0;
}

/** Storage buffers that a kernel may bind everywhere. */
const MOST_BUFFERS = 8;

/**
 * Whether one kernel takes two parts of a matrix, which are in different formats: those that
 * read a rounded row have buffers left for both.
 */
function takesBoth(
  { k, format, other, rounded, largest, next, swiglu }: LinearShape,
  device: Capabilities,
): boolean {
  if (!other || !rounded || next || swiglu) return false;
  const planes = [format, other.format].flatMap((one) => one.planes(k));
  return other.format.loads[0] === format.loads[0] &&
    multipliesIntegers({ k, format: other.format, largest }, device) &&
    planes.length + 2 <= MOST_BUFFERS;
}

/** Constants where the row comes rounded, or its results leave so. */
export function aheadConstants(
  shape: LinearShape,
  leaves: number,
  device: Capabilities,
): Constants {
  const { ahead } = defaultsFor(device), halves = shape.swiglu ? 2 : 1;
  const row = !leaves ? ahead.reads : shape.swiglu ? ahead.gates : ahead.adds;
  const constants = integerConstants(shape, device, row);
  const { WORKGROUP, LOG_LANES, ROWS } = constants as Record<string, number>;
  const rows = ROWS * (WORKGROUP >> LOG_LANES);
  return {
    ...constants,
    // A workgroup rounds whole blocks.
    ...(leaves
      ? { LOOPS: Math.max(1, ROUNDED_BLOCK * halves / rows), LEAVES: leaves }
      : {}),
    ROUNDED: shape.rounded ? 1 : 0,
  };
}

function chooseIntegers(
  shape: LinearShape,
  device: Capabilities,
): LinearChoice {
  const leaves = roundsFor(shape, device), two = takesBoth(shape, device);
  if (leaves || shape.rounded) {
    const { n, other } = shape;
    return {
      kernel: "gemvInt8",
      constants: {
        ...aheadConstants(
          two ? { ...shape, n: n + other!.n } : shape,
          leaves,
          device,
        ),
        TWO: two ? 1 : 0,
        EPILOGUE: epilogueOf(shape),
        NORM: shape.norm ? 1 : 0,
      },
      fusedNorm: shape.norm,
      leaves,
      two,
      splits: 1,
      reason: `1 row: the matrix is read once${
        two ? ` with the next part, in ${other!.format.name}` : ""
      }, and its quants multiply as integers, by a row rounded to 15 bits${
        shape.rounded ? " by the kernel before" : ""
      }${leaves ? "; it rounds its results for the next kernel" : ""}; ${
        origin(undefined, defaultsFor(device))
      }`,
    };
  }
  const tuned = device.tuned?.get(linearKey("gemvInt8", shape));
  return {
    kernel: "gemvInt8",
    constants: {
      ...integerConstants(shape, device),
      EPILOGUE: epilogueOf(shape),
      NORM: shape.norm ? 1 : 0,
      ...tuned,
    },
    fusedNorm: shape.norm,
    splits: 1,
    reason:
      `1 row: the matrix is read once, and its quants multiply as integers, by a row rounded to 15 bits; ${
        origin(tuned, defaultsFor(device))
      }`,
  };
}

function chooseOneRow(shape: LinearShape, device: Capabilities): LinearChoice {
  if (multipliesIntegers(shape, device)) return chooseIntegers(shape, device);
  const { n, k, format, norm } = shape, [unit] = format.loads;
  const defaults = defaultsFor(device);
  const tuned = device.tuned?.get(linearKey("gemv", shape));
  const whole = wideLoad(format, k) === unit;
  const units = Math.ceil(k / unit);
  const fusedNorm = norm && whole;
  const lanes = laneConstants(device, Math.max(4, units));
  const laneCount = 2 ** lanes.LOG_LANES;
  const layout = gemvConstants(
    shape,
    Math.ceil(units / laneCount),
    whole && lanes.SUBGROUPS ? laneCount : 0,
    defaults,
  );
  const { copied = 0 } = defaults.gemv;
  // A texture holds the one plane of a format whose loads take 16 bytes.
  const [{ rowBytes }, ...others] = format.planes(k);
  const copies = shape.fixed && layout.SPREAD === "rows" && !others.length &&
    rowBytes === 16 * units && n * rowBytes <= copied;
  return {
    kernel: "gemv",
    constants: {
      ...layout,
      ...(copies ? { W_IN: "texture" } : {}),
      EPILOGUE: epilogueOf(shape),
      NORM: fusedNorm ? 1 : 0,
      ...lanes,
      ...tuned,
    },
    fusedNorm,
    splits: 1,
    reason: `1 row: the matrix is read once${
      whole
        ? ""
        : `, element by element, because k = ${k} is not a multiple of ${unit}`
    }${copies ? ", from a texture, which loads faster here" : ""}; ${
      origin(tuned, defaults)
    }`,
  };
}

/**
 * Rows and loads per thread for one row of x. Several rows of w share x if there are
 * enough rows, and as many loads of a row are in flight as registers allow.
 *
 * @param steps loads of a lane
 * @param broadcasting lanes that can broadcast x unit by unit; 0 if none can
 */
function gemvConstants(
  { n, swiglu, format }: LinearShape,
  steps: number,
  broadcasting: number,
  { gemv }: Defaults,
): Constants {
  const narrow = n <= NARROW_ROWS && steps <= SHORT_STEPS && !swiglu;
  const { own, ...row } = format.elements > 1 && !narrow && gemv.blocks
    ? gemv.blocks
    : n >= TALL_ROWS
    ? gemv.tall
    : swiglu
    ? gemv.gated
    : narrow
    ? gemv.narrow
    : gemv.other;
  if (own && broadcasting) {
    return { SPREAD: "rows", WORKGROUP: broadcasting, ROWS: own, STEPS: 1 };
  }
  return { ...row, STEPS: Math.ceil(steps / Math.ceil(steps / row.STEPS)) };
}

function chooseTensorCores(
  shape: LinearShape,
  device: Capabilities,
): LinearChoice | undefined {
  const choice = chooseMatrices(shape, device);
  if (typeof choice !== "object") return undefined;
  const { constants, headroom, splits, origin } = choice;
  const reasons = [
    `${shape.m} rows: more than ${FEW_ROWS}, tiles reuse the matrix`,
    "tensor cores multiply f16, rows scaled into range, and sum in f32",
  ];
  if (splits > 1) reasons.push(`${splits} splits of k to fill the GPU`);
  reasons.push(origin);
  return {
    kernel: "gemmMatrix",
    constants,
    fusedNorm: false,
    headroom,
    splits,
    reason: reasons.join("; "),
  };
}

function chooseManyRows(
  shape: LinearShape,
  device: Capabilities,
): LinearChoice {
  const { m, n, k, format, swiglu } = shape;
  const defaults = defaultsFor(device);
  const tunedHalf = device.tuned?.get(linearKey("gemm", shape, true));
  const half = { ...tileFor(m, n, format, device, true), ...tunedHalf };
  const room = headroomOf(shape, Number(half.BK));
  const headroom = shape.exact ? undefined : room;
  const tuned = headroom
    ? tunedHalf
    : device.tuned?.get(linearKey("gemm", shape));
  const tile = headroom ? half : { ...tileFor(m, n, format, device), ...tuned };
  const splits = swiglu ? 1 : splitsOfK(m, n, k, tile);
  const few = mostFew(shape, device);
  const reasons = [`${m} rows: more than ${few}, tiles reuse the matrix`];
  if (headroom) reasons.push("multiplies in f16, rows scaled into range");
  else if (room) reasons.push("multiplies in f32: attention magnifies errors");
  if (splits > 1) reasons.push(`${splits} splits of k to fill the GPU`);
  const refused = chooseMatrices(shape, device);
  if (typeof refused === "string") {
    reasons.push(`not by tensor cores: ${refused}`);
  }
  reasons.push(origin(tuned, defaults));
  return {
    kernel: "gemm",
    constants: {
      ...tile,
      EPILOGUE: epilogueOf(shape),
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

/** Half of f16's largest value, rounded to a power of 2: sums must stay below this. */
const F16_SUM = 32768;

/**
 * The bound that rows are scaled to: a value in [headroom, 2 · headroom) times the largest
 * weight, summed BK times, stays within f16's range. Undefined if the largest weight is
 * not known or leaves no room.
 */
export function headroomOf(
  { k, largest }: Pick<LinearShape, "k" | "largest">,
  BK: number,
): number | undefined {
  if (largest === undefined || k % 4 !== 0) return undefined;
  const most = F16_SUM / (BK * largest);
  return most >= 1
    ? 2 ** Math.min(14, Math.floor(Math.log2(most)) - 1)
    : undefined;
}

/** Splits k if the tiles of m × n alone are too few to fill a GPU. */
function splitsOfK(m: number, n: number, k: number, tile: Constants): number {
  const tiles = Math.ceil(m / Number(tile.BM)) * Math.ceil(n / Number(tile.BN));
  const wanted = Math.floor(ENOUGH_WORKGROUPS / tiles);
  const most = Math.min(MOST_SPLITS_OF_K, wanted, Math.floor(k / LEAST_K));
  return Math.max(1, most);
}
