/**
 * Which constants the kernels of a mixture of experts run with, and why.
 *
 * @module
 */
import { type Format, wideLoad } from "../formats/format.ts";
import {
  type Capabilities,
  laneConstants,
  mostBuffers,
} from "./capabilities.ts";
import { defaultsFor, tileFor } from "./defaults.ts";
import { type ExpertKernel, expertKey } from "./keys.ts";
import {
  headroomOf,
  integerConstants,
  multipliesIntegers,
  origin,
  roundsFor,
} from "./linear.ts";
import { chooseGroupedMatrices } from "./matrices.ts";
import {
  type Constants,
  type Epilogue,
  FEW_ROWS,
  type NextShape,
} from "./shapes.ts";

/** A Linear layer of experts, of which each row uses some. */
export interface ExpertShape {
  m: number;
  /** Experts that a row uses. */
  used: number;
  /** Rows of an expert's matrix, gates and ups counted once, and its columns. */
  n: number;
  k: number;
  format: Format;
  /** Whether the kernel before has rounded the row. */
  rounded?: boolean;
  /** What multiplies the results next, if one kernel has all experts. */
  next?: NextShape;
  /** "add" sums the experts of a row; the others keep them apart. */
  epilogue: Epilogue;
  /** The largest absolute weight, if it was measured. */
  largest?: number;
}

/** Constants and why they were chosen. */
export interface ExpertChoice {
  constants: Constants;
  /** Whether the results are rounded for the next kernel. */
  leaves?: boolean;
  reason: string;
}

/**
 * Minimum rows per expert, on average, for which rows are grouped by expert. Not measured:
 * with fewer, most of a tile of 32 rows is padding, while a row by itself reads an expert
 * that others have left in the cache.
 */
const GROUPED = 8;

/** Whether rows are grouped by expert, so that each expert's matrix is read once for all. */
export const groupsRows = (
  rows: number,
  { count, used }: { count: number; used: number },
): boolean => rows > FEW_ROWS && rows * used >= GROUPED * count;

/** Rows of a tile of one expert, for `pairs` of a row and an expert. */
export const groupTile = (pairs: number, experts: number): 32 | 64 =>
  pairs <= 32 * experts ? 32 : 64;

/** The most tiles that pairs can take, whichever experts are used. */
export function groupTiles(
  pairs: number,
  experts: number,
  tile: number,
): number {
  return Math.floor((pairs + Math.min(pairs, experts) * (tile - 1)) / tile);
}

/** A matmul of rows that are grouped by expert. */
export interface GroupedShape {
  /** Pairs of a row and an expert. */
  pairs: number;
  experts: number;
  /** Rows of an expert's matrix, and its columns. */
  n: number;
  k: number;
  format: Format;
  /** The largest absolute weight, if it was measured. */
  largest?: number;
}

/** Chooses the tile of a matmul of grouped rows, and whether it multiplies in f16. */
export function chooseExpertGemm(
  { pairs, experts, n, k, format, largest }: GroupedShape,
  device: Capabilities,
): ExpertChoice & {
  kernel: "expertGemm" | "expertGemmMatrix";
  headroom?: number;
} {
  const rows = Math.ceil(pairs / experts), BM = groupTile(pairs, experts);
  const tunedFor = (inHalf: boolean, kernel: ExpertKernel = "expertGemm") =>
    device.tuned?.get(
      expertKey(kernel, { m: BM, n, k, format, swiglu: false }, inHalf),
    );
  const byMatrix = tunedFor(true, "expertGemmMatrix");
  const cores = chooseGroupedMatrices(
    { BM, k, format, largest },
    device,
    byMatrix,
  );
  const why = `${rows} rows per expert on average: tiles reuse its matrix`;
  if (typeof cores === "object") {
    return {
      kernel: "expertGemmMatrix",
      ...cores,
      reason:
        `${why}; tensor cores multiply f16, rows scaled into range, and sum in f32; ${
          byMatrix ? "tuned for this adapter" : "tile not measured"
        }`,
    };
  }
  const half = { ...tileFor(rows, n, format, device, true), ...tunedFor(true) };
  const headroom = headroomOf({ k, largest }, half.BK);
  const tuned = tunedFor(headroom !== undefined);
  // Large tiles are for matmuls of more rows than an expert has.
  const tile = headroom
    ? half
    : { ...tileFor(Math.min(rows, 2 * BM), n, format, device), ...tuned };
  const on = headroom ? 1 : 0;
  return {
    kernel: "expertGemm",
    constants: { ...tile, BM, F16: on, SCALED: on },
    headroom,
    reason: `${why}${
      headroom ? "; multiplies in f16, rows scaled into range" : ""
    }${cores === undefined ? "" : `; not by tensor cores: ${cores}`}; ${
      origin(tuned, defaultsFor(device))
    }`,
  };
}

/** Maximum loads in flight per row of a matrix, where a lane group sums several experts. */
const MOST_STEPS = 8;

/** Chooses the kernel that multiplies rows one by one, by each of their experts. */
export function chooseExpertGemv(
  shape: ExpertShape,
  device: Capabilities,
): ExpertChoice & { kernel: "expertGemv" | "expertGemvInt8" } {
  if (multipliesIntegers(shape, device)) return chooseIntegers(shape, device);
  const { used, k, format, epilogue } = shape, defaults = defaultsFor(device);
  const { gemv } = defaults, sums = epilogue === "add";
  const tuned = tunedFor("expertGemv", shape, device);
  const [unit] = format.loads, whole = wideLoad(format, k) === unit;
  const loads = Math.ceil(k / unit) * (sums ? used : 1);
  const lanes = laneConstants(device, Math.max(4, loads));
  const steps = Math.ceil(loads / 2 ** lanes.LOG_LANES);
  const { WORKGROUP, ROWS, STEPS } = sums
    ? { ...gemv.other, ROWS: 2, STEPS: MOST_STEPS }
    : format.elements > 1 && gemv.blocks
    ? gemv.blocks
    : gemv.gated;
  return {
    kernel: "expertGemv",
    constants: {
      WORKGROUP,
      ROWS,
      STEPS: Math.ceil(steps / Math.ceil(steps / STEPS)),
      ...lanes,
      ...tuned,
      EPILOGUE: epilogue,
    },
    reason: `only the experts that are used are read${
      sums ? ", and summed in order" : ""
    }${
      whole
        ? ""
        : `, element by element, because k = ${k} is not a multiple of ${unit}`
    }; ${origin(tuned, defaults)}`,
  };
}

/** Constants that were tuned for the experts of one row. */
function tunedFor(
  kernel: "expertGemv" | "expertGemvInt8",
  { m, used, n, k, format, epilogue }: ExpertShape,
  { tuned }: Capabilities,
): Constants | undefined {
  if (m > 1 || epilogue === "store") return undefined;
  const swiglu = epilogue === "swiglu";
  return tuned?.get(expertKey(kernel, { m: used, n, k, format, swiglu }));
}

/** Buffers beside those of w: x, chosen, y, the next norm, and the rounded row. */
const ADD_BUFFERS = 5;

function chooseIntegers(
  shape: ExpertShape,
  device: Capabilities,
): ExpertChoice & { kernel: "expertGemvInt8" } {
  const { m, used, n, k, format, largest, epilogue, next } = shape;
  const swiglu = epilogue === "swiglu", sums = epilogue === "add";
  const tuned = tunedFor("expertGemvInt8", shape, device);
  const rounded = m === 1 && shape.rounded === true;
  // Results are rounded in blocks of an expert's.
  const one = {
    ...{ m: 1, n: n * (swiglu ? 2 : 1), k, format, largest, next },
    ...{ norm: false, swiglu, rounded },
  };
  const leaves = m === 1 && roundsFor(one, device) &&
    (swiglu || format.planes(k).length + ADD_BUFFERS <= mostBuffers(device));
  // The experts of a row make one long row.
  const all = sums
    ? { ...one, n: m * n, k: used * k }
    : { ...one, n: m * used * one.n };
  return {
    kernel: "expertGemvInt8",
    constants: {
      ...integerConstants(all, leaves, device),
      NORM: rounded && !sums ? 1 : 0,
      EPILOGUE: epilogue,
      ...tuned,
    },
    leaves,
    reason:
      `only the experts that are used are read, and their quants multiply as integers, by rows rounded to 15 bits${
        rounded ? " by the kernel before" : ""
      }${leaves ? "; it rounds its results for the next kernel" : ""}; ${
        origin(tuned, defaultsFor(device))
      }`,
  };
}
