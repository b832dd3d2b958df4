/**
 * Which kernel runs a Linear layer, with which constants, and why: pure functions of
 * shapes and limits, so that every choice can be listed. attention.ts chooses for
 * attention, matmul.ts for tensors of any shape. Thresholds were measured; quoted
 * titles are entries in bench/log.md.
 *
 * @module
 */
import {
  type AdapterClass,
  type Capabilities,
  laneConstants,
  mostBuffers,
  mostThreads,
} from "./capabilities.ts";
import { f16 } from "../formats/f16.ts";
import { storedRowBytes, wideLoad } from "../formats/format.ts";
import {
  type Constants,
  type Epilogue,
  FEW_ROWS,
  type LinearShape,
  LONG_K,
  ROUNDED_BLOCK,
  splitsWithin,
} from "./shapes.ts";
import {
  type Defaults,
  defaultsFor,
  fillsLarge,
  PROCESSORS,
  type Spread,
  tileFor,
  tilesOf,
} from "./defaults.ts";
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
  /** Whether the matrix is unpacked to f16 before it is multiplied. */
  unpacks?: boolean;
  /** Whether the results are rounded for the next kernel. */
  leaves?: boolean;
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
  if (suitsTensorCores(shape)) {
    const choice = chooseTensorCores(shape, device);
    if (choice) return choice;
  }
  return shape.m === 1
    ? chooseOneRow(shape, device)
    : shape.m <= mostFew(shape, device)
    ? chooseFewRows(shape, device)
    : chooseManyRows(shape, device);
}

/**
 * Whether tensor cores would be faster, if there are any: for many rows, for up to 16 unless the
 * matrix is tiny ("16 rows by tensor cores: nothing between matmuls"), and for others where
 * products take longer than the dispatches that make rows f16 and sum splits ("Tensor cores for
 * 64 rows"); but not by blocks, which other kernels multiply as integers.
 */
const suitsTensorCores = ({ m, n, k, format }: LinearShape): boolean =>
  m > FEW_ROWS ||
  m > TENSOR_ROWS && format.elements === 1 && n * k >= leastWeights(m);

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
/** Rows above which tensor cores multiply, if there are so many products: 17 rows of a 4B. */
const TENSOR_ROWS = 8, TENSOR_PRODUCTS = 1.5e8;
/** Up to so many rows, tensor cores multiply by matrices with at least so many elements. */
const DEEP_ROWS = 16, DEEP_WEIGHTS = 2 ** 20;

/** Elements of a matrix from which on tensor cores multiply a few rows by it. */
const leastWeights = (m: number): number =>
  m > DEEP_ROWS ? Math.ceil(TENSOR_PRODUCTS / m) : DEEP_WEIGHTS;

/**
 * Maximum loads per lane for a row to count as short: all are in flight at once
 * ("o_proj with all its loads in flight").
 */
const SHORT_STEPS = 8;
/** Workgroups that keep a large GPU busy ("Split k"). */
const ENOUGH_WORKGROUPS = 256;
/** Threads that keep it busy: those workgroups had 128. */
const ENOUGH_THREADS = ENOUGH_WORKGROUPS * 128;
/** What one more split of k must leave of the time: it costs another sum. */
const LEAST_GAIN = 0.9;

/**
 * Sums that gemvRows' lanes exchange between two barriers without subgroups: as many as
 * 8 KiB hold, because each barrier takes a software adapter seconds to compile.
 */
export function sumsAtOnce(
  workgroup: number,
  lanes: number,
  sums: number,
): number {
  const most = 2 ** Math.floor(Math.log2(2048 / workgroup));
  return Math.max(1, Math.min(lanes, sums, most));
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

/** Whether a kernel takes the next part of a matrix along, and why, worded to follow a reason. */
type Both = Readonly<{ two: boolean; reason: string }>;

/** The next part, if there is one, in a dispatch of its own. */
const apart = (other: LinearShape["other"], why: string): Both => ({
  two: false,
  reason: other
    ? `, apart from its next part, in ${other.format.name}: ${why}`
    : "",
});

/**
 * Whether a kernel takes the next part of the matrix along, which is in another format: a
 * dispatch less. It binds the planes of both parts, and `buffers` more.
 */
function bothParts(
  { k, format, other, largest }: LinearShape,
  kernel: { integers: boolean; buffers: number },
  device: Capabilities,
): Both {
  if (!other) return apart(other, "");
  const own = format;
  const planes = [own, other.format].flatMap((one) => one.planes(k)).length;
  const buffers = planes + kernel.buffers;
  const [unit] = own.loads, [otherUnit] = other.format.loads;
  const why = kernel.integers &&
      !multipliesIntegers({ k, format: other.format, largest }, device)
    ? "its quants do not multiply as integers"
    : kernel.integers && unit !== otherUnit
    ? `lanes take ${otherUnit} elements of it, and ${unit} of this one`
    : buffers > mostBuffers(device)
    ? `both bind ${buffers} storage buffers, the adapter allows ${
      mostBuffers(device)
    }`
    : undefined;
  return why
    ? apart(other, why)
    : { two: true, reason: `, with its next part, in ${other.format.name}` };
}

/** `shape` with the rows of the next part, if the kernel takes both. */
const withOther = (shape: LinearShape, two: boolean): LinearShape =>
  two ? { ...shape, n: shape.n + shape.other!.n } : shape;

/**
 * Minimum rows of w for gemvRowsInt8's wide constants ("16 rows: two parts of a matrix, and
 * other layouts").
 */
const WIDE_ROWS = 6144;

/** Bytes of an element of x that is rounded for gemvRowsInt8: two planes, and numbers of a block. */
const ROUNDED_BYTES = 2.5;

/** How lanes share rows of w and read x, where constants say so. */
function spreadOf(
  { lanes, apart, staged }: Spread,
  loads: number,
  device: Capabilities,
): Constants {
  const own = laneConstants(device, Math.min(lanes, loads));
  const most = Math.log2(device.subgroupSize || 1);
  return {
    ...own,
    APART: apart ? Math.max(0, most - own.LOG_LANES) : 0,
    STAGED: staged ? 1 : 0,
  };
}

/**
 * The row of defaults for more rows of x than one workgroup takes, if what it keeps in
 * workgroup memory fits: `bytes` per element of x, for lanes that take `loads` elements at a
 * time.
 */
function manyRow<
  T extends Spread & { WORKGROUP: number; ROWS: number; SLICES: number },
>(
  row: T & { STEPS?: number } | undefined,
  { M, loads, bytes }: { M: number; loads: number; bytes: number },
  device: Capabilities,
): T | undefined {
  if (!row || !device.subgroupSize) return undefined;
  const lanes = Math.min(row.lanes, device.subgroupSize);
  const taken = lanes * row.SLICES * (row.STEPS ?? 1) * loads;
  const most = device.limits.maxComputeWorkgroupStorageSize;
  const all = fewRowsBytes(M, row, lanes, device) +
    (row.staged ? M * taken * bytes : 0);
  return all <= most ? row : undefined;
}

function chooseFewIntegers(
  shape: LinearShape,
  both: Both,
  device: Capabilities,
): LinearChoice {
  const { m, n, k, format } = withOther(shape, both.two);
  const units = k / format.loads[0];
  const defaults = defaultsFor(device);
  const tuned = device.tuned?.get(linearKey("gemvRowsInt8", shape));
  const { narrow, other, wide, sums, together } = defaults.gemvRowsInt8;
  const M = Math.min(m, Number(tuned?.M ?? together));
  const many = !tuned && m > together && n >= WIDE_ROWS && n < TALL_ROWS
    ? manyRow(wide, { M, loads: format.loads[0], bytes: ROUNDED_BYTES }, device)
    : undefined;
  const row = many ?? (n <= NARROW_ROWS ? narrow : other);
  const lanes = many
    ? spreadOf(many, units, device)
    : laneConstants(device, units);
  const LANES = 2 ** Number(lanes.LOG_LANES);
  const chunks = Math.ceil(units / LANES);
  const ROWS = Math.min(
    row.ROWS,
    2 ** Math.floor(Math.log2(sums / M)),
    MOST_KEPT / format.loads[0],
  );
  const SLICES = Math.min(row.SLICES, 2 ** Math.floor(Math.log2(chunks)));
  const { WORKGROUP, ROWS: fitting } = fitFewRows(
    { WORKGROUP: row.WORKGROUP, ROWS, SLICES },
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
      TWO: both.two ? 1 : 0,
      EPILOGUE: epilogueOf(shape),
    },
    fusedNorm: false,
    two: both.two,
    splits: 1,
    reason: `${
      rowsText(m, M)
    }${both.reason}; quants multiply as integers, by rows rounded to 15 bits; ${
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
  if (multipliesIntegers(shape, device)) {
    const both = bothParts(shape, { integers: true, buffers: 3 }, device);
    if (isRounded(withOther(shape, both.two))) {
      return chooseFewIntegers(shape, both, device);
    }
  }
  const { m, k, norm } = shape;
  const kernel = { integers: false, buffers: norm ? 4 : 2 };
  const both = bothParts(shape, kernel, device);
  const { n } = withOther(shape, both.two);
  const defaults = defaultsFor(device);
  const tuned = device.tuned?.get(linearKey("gemvRows", shape));
  const { narrow, other, many, sums, together } = defaults.gemvRows;
  const M = Math.min(m, Number(tuned?.M ?? together));
  const kind = n <= NARROW_ROWS ? "narrow" : n < TALL_ROWS ? "other" : "tall";
  const spread = !tuned && m > FEW_ROWS && k % 4 === 0
    ? manyRow(many?.[kind], { M, loads: 4, bytes: 4 }, device)
    : undefined;
  const { WORKGROUP, STEPS, SLICES, ...row } = spread ??
    (kind === "narrow" ? narrow : other);
  const loads = Math.max(4, Math.ceil(k / 4));
  const lanes = spread
    ? spreadOf(spread, loads, device)
    : laneConstants(device, loads);
  const ROWS = Math.min(row.ROWS, 2 ** Math.floor(Math.log2(sums / M)));
  return {
    kernel: "gemvRows",
    constants: {
      ...fitFewRows(
        { WORKGROUP, ROWS, STEPS, SLICES },
        { ...shape, m: M },
        2 ** Number(lanes.LOG_LANES),
        device,
      ),
      ...lanes,
      ...tuned,
      M,
      TWO: both.two ? 1 : 0,
      EPILOGUE: epilogueOf(shape),
      NORM: norm ? 1 : 0,
    },
    fusedNorm: norm,
    two: both.two,
    splits: 1,
    reason: `${rowsText(m, M)}${both.reason}${
      k % 4
        ? `, element by element, because k = ${k} is not a multiple of 4`
        : ""
    }; ${origin(tuned, defaults)}`,
  };
}

/** Rows of x of a multiple of so many elements can be rounded for every kernel. */
const ROUNDED_ROW = 32;
/** Results that a workgroup of gemvInt8 rounds are whole blocks. */
const LEAST_RESULTS = ROUNDED_BLOCK;
/**
 * Maximum results of a workgroup. Not measured: their sums take 8 KiB of workgroup memory if
 * four lane groups share a row.
 */
const MOST_RESULTS = 256;

/** Whether quants multiply as integers, by rows that are rounded to integers. */
export function multipliesIntegers(
  { k, format, largest }: Pick<LinearShape, "k" | "format" | "largest">,
  { subgroupSize }: Capabilities,
): boolean {
  // Without the largest weight, results must be as exact as f32 allows.
  return largest !== undefined && format.integers !== undefined &&
    subgroupSize >= 8 && k % ROUNDED_ROW === 0 && k % format.loads[0] === 0;
}

/** Constants of gemvInt8 for `n` rows of w in all, of which the results may be rounded. */
export function integerConstants(
  { n, k, format, swiglu, rounded }: Pick<
    LinearShape,
    "n" | "k" | "format" | "swiglu" | "rounded"
  >,
  leaves: boolean,
  device: Capabilities,
): Constants {
  const { int8 } = defaultsFor(device);
  const { WORKGROUP, HELD, THREADS, ...row } = n >= TALL_ROWS
    ? int8.tall
    : int8.other;
  const ROWS = swiglu ? row.GATED : row.ROWS, halves = swiglu ? 2 : 1;
  const lanes = laneConstants(device), own = 2 ** lanes.LOG_LANES;
  const units = k / format.loads[0], results = n / halves;
  const held = Math.max(1, Math.floor(HELD / format.loads[0]));
  const most = Math.floor(mostThreads(device) / own);
  const SETS = Math.min(most, Math.ceil(units / held / own));
  // With few results, more teams share those of a workgroup, each a few at a time.
  const threads = Math.max(WORKGROUP, THREADS * LEAST_RESULTS / results);
  const share = Math.min(
    Math.round(threads / own / SETS),
    Math.floor(most / SETS),
    LEAST_RESULTS / ROWS,
  );
  const teams = 2 ** Math.floor(Math.log2(Math.max(1, share)));
  const workgroup = teams * SETS * own;
  const needed = results * workgroup / THREADS / LEAST_RESULTS;
  return {
    WORKGROUP: workgroup,
    SETS,
    ROWS,
    RESULTS: Math.min(
      MOST_RESULTS,
      LEAST_RESULTS * Math.max(1, Math.ceil(needed)),
    ),
    ROUNDED: rounded ? 1 : 0,
    LEAVES: leaves ? 1 : 0,
    ...lanes,
  };
}

/**
 * Whether a kernel rounds its results for the next one, so that the workgroups of that do
 * not. Both must multiply one row as integers, and a kernel that norms a row that it rounds
 * itself has no buffers left.
 */
export function roundsFor(
  { n, swiglu, norm, rounded, next }: LinearShape,
  device: Capabilities,
): boolean {
  if (!next || norm && !rounded) return false;
  const { formats, largest } = next, k = swiglu ? n / 2 : n;
  return formats.every((format) =>
    multipliesIntegers({ k, format, largest }, device)
  );
}

function chooseIntegers(
  shape: LinearShape,
  device: Capabilities,
): LinearChoice {
  const { norm, other, rounded } = shape, leaves = roundsFor(shape, device);
  const both = rounded
    ? bothParts(shape, { integers: true, buffers: 2 }, device)
    : apart(other, "no kernel before rounded its row");
  const tuned = device.tuned?.get(linearKey("gemvInt8", shape));
  return {
    kernel: "gemvInt8",
    constants: {
      ...integerConstants(withOther(shape, both.two), leaves, device),
      TWO: both.two ? 1 : 0,
      EPILOGUE: epilogueOf(shape),
      NORM: norm ? 1 : 0,
      ...tuned,
    },
    fusedNorm: norm,
    leaves,
    two: both.two,
    splits: 1,
    reason:
      `1 row: the matrix is read once${both.reason}, and its quants multiply as integers, by a row rounded to 15 bits${
        rounded ? " by the kernel before" : ""
      }${leaves ? "; it rounds its results for the next kernel" : ""}; ${
        origin(tuned, defaultsFor(device))
      }`,
  };
}

/** Whether one row that is partly pending can be read as it is, for a matrix like this. */
export const readsPending = (
  { n, k, format }: Pick<LinearShape, "n" | "k" | "format">,
  device: Capabilities,
): boolean =>
  n < TALL_ROWS && wideLoad(format, k) === format.loads[0] &&
  device.subgroupSize > 0 &&
  mostThreads(device) >=
    (defaultsFor(device).feedForward?.reads.WORKGROUP ?? 0) &&
  4 * k + 1024 <= device.limits.maxComputeWorkgroupStorageSize;

function chooseOneRow(shape: LinearShape, device: Capabilities): LinearChoice {
  const { pending = false } = shape;
  if (multipliesIntegers(shape, device) && !pending) {
    return chooseIntegers(shape, device);
  }
  const { n, k, format, norm } = shape, [unit] = format.loads;
  const defaults = defaultsFor(device);
  const tuned = pending
    ? undefined
    : device.tuned?.get(linearKey("gemv", shape));
  const whole = wideLoad(format, k) === unit;
  const units = Math.ceil(k / unit);
  const fusedNorm = norm && whole;
  const lanes = laneConstants(device, Math.max(4, units));
  const laneCount = 2 ** lanes.LOG_LANES;
  const exchanging = whole && lanes.SUBGROUPS ? laneCount : 0;
  const layout =
    (exchanging && !pending ? walkConstants(shape, device) : undefined) ??
      gemvConstants(shape, Math.ceil(units / laneCount), exchanging, defaults);
  const { copied = 0 } = defaults.gemv;
  const { adapterClass = "other", compiler } = device;
  const fence = whole && layout.WALKERS === 1 && compiler === "tint" &&
    LOADS_LATE.includes(adapterClass);
  // A texture holds the one plane of a format whose loads take 16 bytes.
  const [{ rowBytes }, ...others] = format.planes(k);
  const copies = shape.fixed && !pending && layout.SPREAD === "rows" &&
    !others.length &&
    rowBytes === 16 * units && n * rowBytes <= copied;
  return {
    kernel: "gemv",
    constants: {
      ...layout,
      ...(copies ? { W_IN: "texture" } : {}),
      ...(fence ? { FENCE: 1 } : {}),
      EPILOGUE: epilogueOf(shape),
      NORM: fusedNorm ? 1 : 0,
      PENDING: pending ? 1 : 0,
      ...lanes,
      ...tuned,
    },
    fusedNorm,
    splits: 1,
    reason: `1 row: the matrix is read once${
      whole
        ? ""
        : `, element by element, because k = ${k} is not a multiple of ${unit}`
    }${copies ? ", from a texture, which loads faster here" : ""}${
      Number(layout.WALKERS) > 1
        ? ", by workgroups that walk over its rows"
        : ""
    }${pending ? "; it adds what is pending for the row" : ""}${
      fence ? "; a barrier keeps the driver from loading late" : ""
    }; ${origin(tuned, defaults)}`,
  };
}

/**
 * Adapters whose driver moves loads to where they are used, unless a barrier keeps them ahead.
 * naga's loops do as well ("gemv through Dawn: a barrier after the loads").
 */
const LOADS_LATE: readonly AdapterClass[] = ["NVIDIA", "NVIDIA, large cache"];

/** Minimum bytes of a matrix over whose rows workgroups walk ("Workgroups that walk"). */
const WALKED_BYTES = 1 << 24;
/** Threads of such a workgroup, and loads of a row for each ("Workgroups that walk"). */
const WALKING_THREADS = [128, 512], LOADS_OF_ROW = 2;

/** Constants for workgroups that walk over the rows of w; undefined if they should not. */
function walkConstants(
  { n, k, format }: LinearShape,
  device: Capabilities,
): Constants | undefined {
  const { walks } = defaultsFor(device).gemv, loads = k / format.loads[0];
  const [least, most] = WALKING_THREADS;
  if (
    !walks || format.elements > 1 || n >= TALL_ROWS ||
    n * storedRowBytes(format, k) < WALKED_BYTES || loads < LOADS_OF_ROW * least
  ) return undefined;
  const WORKGROUP = Math.min(
    most,
    mostThreads(device),
    2 ** Math.floor(Math.log2(loads / LOADS_OF_ROW)),
  );
  return {
    WORKGROUP,
    ROWS: walks.ROWS,
    STEPS: 1,
    WALKERS: walks.threads / WORKGROUP,
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
  { n, swiglu, format, pending }: LinearShape,
  steps: number,
  broadcasting: number,
  { gemv, feedForward }: Defaults,
): Constants {
  const narrow = n <= NARROW_ROWS && steps <= SHORT_STEPS && !swiglu;
  const { own, ...row } = pending && feedForward
    ? feedForward.reads
    : format.elements > 1 && !narrow && gemv.blocks
    ? gemv.blocks
    : n >= TALL_ROWS
    ? gemv.tall
    : swiglu
    ? gemv.gated
    : narrow
    ? gemv.narrow
    : gemv.other;
  if (own && broadcasting) {
    return {
      ...{ SPREAD: "rows", WORKGROUP: broadcasting, ROWS: own, STEPS: 1 },
      WALKERS: 1,
    };
  }
  const STEPS = Math.ceil(steps / Math.ceil(steps / row.STEPS));
  return { ...row, STEPS, WALKERS: 1 };
}

function chooseTensorCores(
  shape: LinearShape,
  device: Capabilities,
): LinearChoice | undefined {
  const choice = chooseMatrices(shape, device);
  if (typeof choice !== "object") return undefined;
  const { constants, headroom, splits, origin } = choice;
  const reasons = [
    shape.m > FEW_ROWS
      ? `${shape.m} rows: more than ${FEW_ROWS}, tiles reuse the matrix`
      : `${shape.m} rows by ${shape.n * shape.k} weights, ${
        leastWeights(shape.m)
      } or more`,
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
  const unpacks = unpacksFirst(shape, device);
  const stored = unpacks ? f16 : format;
  const half = { ...tileFor(m, n, stored, device, true), ...tunedHalf };
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
  else if (room) reasons.push("multiplies in f32: its results must be exact");
  if (headroom && unpacks) {
    reasons.push(`${format.name} is unpacked to f16 once for all rows`);
  }
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
      B_HALF: headroom && stored === f16 ? 1 : 0,
      SPLITS: splits,
    },
    fusedNorm: false,
    headroom,
    unpacks: headroom !== undefined && unpacks,
    splits,
    reason: reasons.join("; "),
  };
}

/**
 * Whether a matrix is unpacked to f16 once, rather than by every tile that reads it, which
 * makes room for large tiles ("f16 sums in pairs"). Not if a binding cannot hold that.
 */
function unpacksFirst(
  { m, n, k, format, exact, largest }: LinearShape,
  device: Capabilities,
): boolean {
  const { maxStorageBufferBindingSize: most = 0 } = device.limits;
  return !exact && largest !== undefined && format !== f16 &&
    k % 4 === 0 && 2 * n * k <= most && fillsLarge(m, n, device);
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

/**
 * Splits k if the tiles of m × n alone are too few to fill a GPU, or if their last round
 * would leave too much of it idle.
 */
function splitsOfK(m: number, n: number, k: number, tile: Constants): number {
  const [BM, BN, TM, TN] = ["BM", "BN", "TM", "TN"].map((x) => Number(tile[x]));
  const tiles = tilesOf(m, n, { BM, BN });
  const threads = (BM / TM) * (BN / TN);
  const wanted = Math.floor(ENOUGH_THREADS / threads / tiles);
  const { splits: least, most } = splitsWithin(wanted, k);
  // Rounds of tiles, as many times shorter as there are splits.
  const rounds = (splits: number) =>
    Math.ceil(tiles * splits / PROCESSORS) / splits;
  return least < most && rounds(least + 1) < LEAST_GAIN * rounds(least)
    ? least + 1
    : least;
}
