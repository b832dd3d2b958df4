/**
 * Whether the MLP of one row is one dispatch, and with which constants.
 *
 * @module
 */
import {
  type Capabilities,
  laneConstants,
  mostBuffers,
  mostThreads,
} from "./capabilities.ts";
import { defaultsFor } from "./defaults.ts";
import { type Format, storedRowBytes } from "../formats/format.ts";
import { isPowerOf2 } from "./limits.ts";

/** Threads, columns of down_proj per workgroup, loads in flight, and lanes that share rows. */
export type FeedForwardLayout = Readonly<
  Record<"WORKGROUP" | "COLUMNS" | "STEPS" | "LOG_LANES" | "SUBGROUPS", number>
>;

/** Sizes of an MLP, and elements of a load of down_proj. */
type Sizes = Readonly<Record<"hidden" | "inner" | "unit", number>>;

/** A matrix, as far as the choice depends on it. */
interface ShapedMatrix {
  readonly n: number;
  readonly k: number;
  readonly parts: readonly {
    readonly format: Format;
    readonly twin?: number;
  }[];
}

/**
 * The most storage buffers of the kernels that add to what is pending and that read it: the planes
 * of two matrices in blocks, a row, a norm, and two buffers of sums.
 */
export const PENDING_BUFFERS = 12;

/**
 * Whether the MLPs of a model may be one dispatch for one row. Only then are sums cleared where
 * a pass begins, which takes time.
 */
export const joinsMlp = (
  { hiddenSize, intermediateSize }: Readonly<
    Record<"hiddenSize" | "intermediateSize", number>
  >,
  table: Pick<ShapedMatrix, "parts">,
  device: Capabilities,
): boolean =>
  defaultsFor(device).feedForward !== undefined &&
  mostBuffers(device) >= PENDING_BUFFERS &&
  LEAST_BYTES * 3 * hiddenSize * intermediateSize <= MOST_BYTES &&
  // Where embeddings are stored in blocks, so are MLPs.
  table.parts.every(({ format }) => format.elements === 1);

/** An MLP in one dispatch. */
export interface FeedForwardChoice {
  constants: FeedForwardLayout;
  /** Workgroups that add to each result. */
  adders: number;
  reason: string;
}

/**
 * Chooses whether the MLP of one row is one dispatch ("An MLP in one dispatch").
 *
 * @returns the choice, or why the MLP has several dispatches on a device where one is the default;
 * undefined on others
 */
export function chooseFeedForward(
  { gateUp, down }: { gateUp: ShapedMatrix; down: ShapedMatrix },
  device: Capabilities,
): FeedForwardChoice | string | undefined {
  const layout = defaultsFor(device).feedForward;
  if (!layout) return undefined;
  if (mostBuffers(device) < PENDING_BUFFERS) {
    return `with it, kernels bind up to ${PENDING_BUFFERS} storage buffers, the device allows ${
      mostBuffers(device)
    }`;
  }
  const [{ format: w, twin }, ...more] = gateUp.parts;
  const [{ format: v }, ...others] = down.parts;
  if (more.length || others.length || twin === undefined) {
    return "its matrices have several parts";
  }
  if (w.elements > 1 || v.elements > 1) {
    return "other kernels multiply blocks as integers";
  }
  const hidden = gateUp.k, inner = down.k;
  const bytes = 2 * inner * storedRowBytes(w, hidden) +
    hidden * storedRowBytes(v, inner);
  if (bytes > MOST_BYTES) {
    return `its matrices take more than ${MOST_BYTES >> 20} MiB`;
  }
  const constants = {
    WORKGROUP: threadsFor(hidden, layout.WORKGROUP),
    COLUMNS: Math.max(layout.COLUMNS, v.loads[0]),
    STEPS: layout.STEPS,
    ...laneConstants(device),
  };
  const why = hidden % w.loads[0]
    ? `rows of ${hidden} are not whole loads of ${w.loads[0]}`
    : whyNotFeedForward({ hidden, inner, unit: v.loads[0] }, constants, device);
  if (why) return why;
  return {
    constants,
    adders: inner / constants.COLUMNS,
    reason:
      `1 row: each workgroup takes ${constants.COLUMNS} gates and ups, and adds their part of down_proj to the row; ${
        defaultsFor(device).source
      }`,
  };
}

/** Maximum bytes of its matrices, or it gains nothing ("An MLP in one dispatch"). */
const MOST_BYTES = 32 << 20;
/** Bytes of an element of theirs, at least. */
const LEAST_BYTES = 2;

/** The most workgroups whose results are added up in fixed point (kernels/pending.ts). */
export const MOST_ADDING = 1024;

/** The most threads that share `hidden` rows evenly. */
const threadsFor = (hidden: number, most: number): number =>
  hidden % most === 0 || most === 1 ? most : threadsFor(hidden, most / 2);

/** Why a device cannot run such an MLP with these constants; undefined if it can. */
export function whyNotFeedForward(
  { hidden, inner, unit }: Sizes,
  { WORKGROUP, COLUMNS, LOG_LANES, SUBGROUPS }: FeedForwardLayout,
  { limits }: Pick<Capabilities, "limits">,
): string | undefined {
  const lanes = 2 ** LOG_LANES;
  const bytes = 4 * (hidden + WORKGROUP / lanes + COLUMNS);
  const { maxComputeWorkgroupStorageSize: room } = limits;
  const threads = mostThreads({ limits });
  return !SUBGROUPS
    ? "lanes cannot exchange values"
    : WORKGROUP > threads || bytes > room
    ? `it takes ${WORKGROUP} threads and ${bytes} bytes of workgroup memory, the device has ${threads} and ${room}`
    : misfit({ hidden, inner, pieces: COLUMNS / unit }, {
      ...{ threads: WORKGROUP, columns: COLUMNS, lanes },
    });
}

/** Why sizes do not suit a layout; undefined if they do. */
export function misfit(
  { hidden, inner, pieces }: Readonly<
    Record<"hidden" | "inner" | "pieces", number>
  >,
  { threads, columns, lanes }: Readonly<
    Record<"threads" | "columns" | "lanes", number>
  >,
): string | undefined {
  return inner % columns
    ? `${inner} columns of down_proj are not a multiple of ${columns}`
    : pieces < 1 || !isPowerOf2(pieces) || pieces > lanes
    ? `${columns} columns are not a power of 2 of loads of down_proj, at most ${lanes}`
    : hidden % threads
    ? `${hidden} rows of down_proj are not a multiple of ${threads} threads`
    : threads % lanes || lanes < 4
    ? `${threads} threads, as share ${hidden} rows of down_proj evenly, are not whole groups of ${
      Math.max(4, lanes)
    } lanes`
    : inner / columns > MOST_ADDING
    ? `${
      inner / columns
    } workgroups would add to each result, at most ${MOST_ADDING} may`
    : columns * lanes % threads
    ? `${threads} threads, ${lanes} for each row, do not share ${columns} columns evenly`
    : undefined;
}
