/**
 * How attention is laid out on a device, and why. Thresholds were measured; quoted
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
import {
  type Constants,
  CONTEXT_CLASSES,
  type ContextClass,
  type NextShape,
  ROUNDED_BLOCK,
} from "./shapes.ts";
import type { CacheDtype } from "../formats/cached.ts";
import type { Format } from "../formats/format.ts";
import { isPowerOf2 } from "./limits.ts";
import { multipliesIntegers, origin } from "./linear.ts";
import { defaultsFor, PROCESSORS } from "./defaults.ts";
import { attendKey } from "./keys.ts";
import { headVector } from "./precision.ts";

/** Attention in a decode step: its constants, and how its keys are split. */
export interface DecodeAttentionChoice {
  constants: Constants;
  /** Cached tokens from which on another layout takes over. */
  to: number;
  /** KV splits at `length` cached tokens; 0 if another layout covers that length. */
  splits: (length: number) => number;
  /** Workgroups that share a kv head's query heads. */
  shares: number;
  /** Whether the last workgroup of a head merges the splits; if not, mergeSplits does. */
  merges: boolean;
  /** Whether the row is rounded for the matrix that multiplies it. */
  leaves: boolean;
  /** Constants for reading ahead, where that was measured to help. */
  ahead?: { FETCHERS: number; AHEAD: number };
  reason: string;
}

/**
 * Maximum number of KV splits: the limit of mergeSplits. Not measured: each lane of 32
 * there keeps the maximum and the sum of two splits.
 */
export const MOST_SPLITS = 64;

/**
 * The number of cached tokens at which each context class begins. From `middle` on,
 * keys are split over workgroups ("Decode attention: two layouts"); from `long` on,
 * reading keys once for all heads that share them matters more than many threads
 * ("Decode attention: vectors normed once").
 */
export const CONTEXTS: Readonly<Record<ContextClass, number>> = {
  short: 0,
  middle: 256,
  long: 1536,
};

/**
 * Sequences that keep a large GPU busy: measured with 16 ("16 rows: down to 1.69 ms"). They
 * are laid out as for long contexts ("Decode attention: vectors normed once").
 */
const MANY_SEQUENCES = 8;

/** Least keys per split ("Attention with one barrier"). */
const SPLIT_KEYS = 64;

/**
 * Maximum workgroups of a single sequence: about two for each multiprocessor of an H200. More
 * splits than that were slower ("Decode attention: vectors normed once").
 */
const MOST_WORKGROUPS = 256;

/**
 * Maximum elements of a workgroup's query heads per lane. A lane holds that many of q
 * and as many sums. Not measured: together they take 64 of the registers of a thread,
 * about 256, which leaves room for the keys and values in flight.
 */
const MOST_VALUES = 32;

/**
 * Maximum lane groups per workgroup: their results are summed one after another. With 32
 * lanes, 16 are 512 threads, and 1,024 threads were slower ("Decode attention: two
 * layouts").
 */
const MOST_LANE_GROUPS = 16;

/**
 * Adapters whose storage barrier is known to reach beyond a workgroup when naga
 * compiles for Vulkan, because naga gives it device memory scope ("The last workgroup
 * merges the splits"). WGSL guarantees workgroup scope only, and Metal, Direct3D and
 * Dawn provide no more.
 */
const DEVICE_BARRIERS: readonly AdapterClass[] = [
  "NVIDIA",
  "NVIDIA, large cache",
  "AMD",
  "software",
];

/** Whether the last workgroup of a head can merge its splits. */
const mergesSplits = (
  { adapterClass = "other", vulkan = false }: Capabilities,
): boolean => vulkan && DEVICE_BARRIERS.includes(adapterClass);

/** Storage buffers that decode attention binds if it also reads the next weights ahead. */
export const AHEAD_BUFFERS = 10;
/** Storage buffers that it binds if it rounds its row, or leaves rows in f16. */
export const LEAVING_BUFFERS = 9;

/**
 * Maximum bytes of the matrices that are read ahead, in part. That paid for those of 0.6B, 19
 * MB ("Reading ahead"), and cost 2 % for those of 8B, 302 MB ("Reading ahead: not for an 8B");
 * what is in between was not measured. This is about the cache of an H200.
 */
const MOST_AHEAD_BYTES = 48 << 20;

/** Attention in a decode step: head sizes and sequences. */
interface DecodeShape {
  headDim: number;
  /** Query heads that share a kv head. */
  group: number;
  /** 8 by default, as in most Qwen3. */
  kvHeads?: number;
  rows?: number;
  /** How keys and values are stored; as floats by default. */
  cache?: CacheDtype;
  /** The matrix that multiplies the result, and its row's elements. */
  next?: NextShape & { k: number };
  /** Bytes of the matrices that are read after that one. */
  bytesAfter?: number;
}

/** The constant of attention's kernels that says how keys and values are stored. */
export const cacheConstant = (cache?: CacheDtype): Constants => ({
  CACHE: cache === "q8_0" ? cache : "float",
});

/** Chooses the layout of attention in a decode step, for each context class. */
export function chooseDecodeAttention(
  shape: DecodeShape,
  device: Capabilities,
): DecodeAttentionChoice[] {
  const { headDim, group, kvHeads = 8, rows = 1 } = shape;
  const { cache, bytesAfter = 0 } = shape;
  const defaults = defaultsFor(device);
  const merges = mergesSplits(device);
  const rounding = roundsAttended(shape, merges, device);
  const leaves = rounding === true;
  const buffers = mostBuffers(device);
  const notAhead = leaves || rows >= MANY_SEQUENCES
    ? ""
    : buffers < AHEAD_BUFFERS
    ? `that binds ${AHEAD_BUFFERS} storage buffers, the device allows ${buffers}`
    : bytesAfter > MOST_AHEAD_BYTES
    ? `the next matrices have ${bytesAfter} bytes, it pays up to ${MOST_AHEAD_BYTES}`
    : undefined;
  return CONTEXT_CLASSES.map((context, i) => {
    const from = beginsAt(context, rows);
    const to = beginsAt(CONTEXT_CLASSES.at(i + 1), rows);
    const tuned = device.tuned?.get(attendKey(context, headDim, group, cache));
    const constants: Constants = {
      ...layoutConstants(shape, context, device),
      MERGE: merges ? 1 : 0,
      LEAVES: leaves ? 1 : 0,
      ...cacheConstant(cache),
      ...tuned,
    };
    const shares = Number(constants.SHARES);
    const { fetch } = defaults.attendDecode[context];
    return {
      constants: { ...constants, GROUP: group / shares },
      to,
      shares,
      merges,
      leaves,
      ahead: fetch && notAhead === undefined
        ? { FETCHERS: fetch.workgroups, AHEAD: fetch.bytes / 16 }
        : undefined,
      splits: (length) =>
        length < from || length >= to
          ? 0
          : context === "short"
          ? 1
          : splitsOfKeys(length, rows, kvHeads * shares),
      reason: `one token per sequence, ${
        to === Infinity ? `${from} keys or more` : `under ${to} keys`
      }: norm, RoPE, append and attention in one dispatch${
        merges ? ", merge included: storage barriers reach all workgroups" : ""
      }${fetch && notAhead ? `; nothing is read ahead: ${notAhead}` : ""}${
        leaves
          ? "; it rounds its results for the next kernel, and reads nothing ahead, which made steps by quantised blocks slower"
          : rounding
          ? `; the next kernel rounds them: ${rounding}`
          : ""
      }; ${origin(tuned, defaults)}`,
    };
  });
}

/**
 * Whether the row is rounded for the matrix that multiplies it as integers ("Attention rounds
 * the row of o_proj"); if not although that does, why.
 */
function roundsAttended(
  { headDim, rows = 1, next }: DecodeShape,
  merges: boolean,
  device: Capabilities,
): boolean | string {
  if (rows > 1 || !next) return false;
  const { k, formats, largest } = next;
  const integers = formats.every((format) =>
    multipliesIntegers({ k, format, largest }, device)
  );
  if (!integers) return false;
  if (headDim % ROUNDED_BLOCK) {
    return `heads of ${headDim} are no whole blocks of ${ROUNDED_BLOCK}`;
  }
  if (!merges) return "another kernel merges splits";
  const buffers = mostBuffers(device);
  return buffers >= LEAVING_BUFFERS ||
    `that binds ${LEAVING_BUFFERS} storage buffers, the device allows ${buffers}`;
}

/** Attention of few keys and o_proj in one dispatch. */
export interface ProjectionChoice {
  constants: Constants;
  /** Cached tokens from which on they are dispatches of their own. */
  from: number;
  reason: string;
}

/**
 * Maximum workgroups of attention with o_proj, each of which reads all keys of its heads: those
 * of 0.6B. More were not measured.
 */
const MOST_PROJECTING = 128;

/** Maximum loads of o_proj in flight in a lane, beside those of keys and values. */
const MOST_PROJECTED = 16;

/**
 * Storage buffers that attention binds with o_proj: qkv, two norms, positions, k, v and state,
 * up to four planes of a matrix, y, pieces, and a rounded row with its norm.
 */
export const PROJECTING_BUFFERS = 15;

/** The matrix that multiplies attention's result. */
interface ProjectedMatrix {
  readonly n: number;
  readonly parts: readonly { readonly format: Format }[];
}

/** A single row's heads, and the matrix that multiplies their attention. */
type ProjectedShape =
  & Pick<DecodeShape, "headDim" | "group" | "cache">
  & Readonly<{ kvHeads: number; rows: number; w: ProjectedMatrix }>;

/**
 * Chooses whether attention of a single row's few keys also multiplies by o_proj ("Attention
 * with o_proj"): each block of rows of `w` then computes its heads' attention for itself, which
 * costs less than a dispatch as long as there are few blocks.
 *
 * @returns the choice, or why they are apart on a device where one dispatch is the default;
 * undefined on others
 */
export function chooseProjection(
  shape: ProjectedShape,
  device: Capabilities,
): ProjectionChoice | string | undefined {
  const { project } = defaultsFor(device).attendDecode;
  if (!project || shape.rows > 1) return undefined;
  const { headDim, group, cache } = shape;
  const layout = {
    ...layoutConstants({ headDim, group, cache }, "short", device),
    ...{ WORKGROUP: project.WORKGROUP, STEPS: project.STEPS },
    ...{ PROJECT: project.PROJECT, SHARES: 1, GROUP: group },
  };
  const problem = whyApart(shape, layout, device);
  if (problem) return problem;
  const from = mergesSplits(device) ? project.from : project.split;
  return {
    constants: { ...layout, ...cacheConstant(cache) },
    from,
    reason:
      `one token, under ${from} keys: norm, RoPE, append, attention and o_proj in one dispatch; each block of ${project.PROJECT} rows of o_proj computes the attention of a kv head's query heads for itself`,
  };
}

/** Why attention and o_proj are dispatches of their own; undefined if they need not be. */
function whyApart(
  { headDim, group, kvHeads, w, cache }: ProjectedShape,
  { WORKGROUP, PROJECT, LOG_KEY_LANES, LOG_LANES, SUBGROUPS }: Constants,
  device: Capabilities,
): string | undefined {
  const threads = Number(WORKGROUP), rows = Number(PROJECT);
  const lanes = 2 ** Number(LOG_LANES);
  const [{ format: { loads: [unit] } }, ...more] = w.parts;
  const units = group * headDim / unit, loads = rows * units / threads;
  const stride = threads / Math.min(units, lanes);
  const blocks = Math.ceil(w.n / rows);
  const values = group * headDim / 2 ** Number(LOG_KEY_LANES);
  const { once, laneGroup } = decodeBytes(headDim, group, cache);
  const bytes = once + 4 * rows + 4 + threads / lanes * laneGroup;
  const memory = device.limits.maxComputeWorkgroupStorageSize;
  const most = mostThreads(device), buffers = mostBuffers(device);
  return more.length > 0
    ? "its parts have different types"
    : !SUBGROUPS || headVector(headDim) !== 4
    ? `lanes cannot share heads of ${headDim}`
    : values > MOST_VALUES
    ? `${group} heads of ${headDim} are ${values} values in a lane, at most ${MOST_VALUES} fit registers`
    : most < threads || bytes > memory
    ? `it takes ${threads} threads and ${bytes} bytes of workgroup memory, the device has ${most} and ${memory}`
    : !isPowerOf2(units)
    ? `${group * headDim} columns are not a power of 2 of loads of ${unit}`
    : stride > rows
    ? `${threads} threads share ${stride} rows at a time, a workgroup has ${rows}`
    : loads > MOST_PROJECTED
    ? `${loads} loads of it would be in flight in a lane, at most ${MOST_PROJECTED} fit registers`
    : kvHeads * blocks > MOST_PROJECTING
    ? `${kvHeads} kv heads × ${blocks} blocks of ${rows} rows would be more than ${MOST_PROJECTING} workgroups`
    : buffers < PROJECTING_BUFFERS
    ? `with it, attention binds ${PROJECTING_BUFFERS} storage buffers or more, the device allows ${buffers}`
    : undefined;
}

/**
 * Where a context class begins. Many sequences have enough workgroups for twice the
 * keys.
 */
function beginsAt(context: ContextClass | undefined, rows: number): number {
  if (context === undefined) return Infinity;
  const twice = context === "middle" && rows >= MANY_SEQUENCES;
  return CONTEXTS[context] * (twice ? 2 : 1);
}

/**
 * Bytes of workgroup memory that decode attention takes for `heads` query heads: for them, as
 * integers too if keys are, the new key and value, and for the results of each lane group.
 */
export function decodeBytes(
  headDim: number,
  heads: number,
  cache?: CacheDtype,
): { once: number; laneGroup: number } {
  const integers = cache === "q8_0" ? heads * (2 * headDim + headDim / 4) : 0;
  return {
    once: 4 * (heads + 2) * headDim + 8 * heads + integers,
    laneGroup: 4 * heads * (headDim + 2),
  };
}

/**
 * Sizes a workgroup's threads, lanes and heads to fit registers and workgroup memory. Keys
 * in q8_0 are half as many bytes as in f16, so a lane loads twice as many at a time where
 * splits are long; that was not measured.
 */
function layoutConstants(
  { headDim, group, rows = 1, cache }: DecodeShape,
  context: ContextClass,
  device: Capabilities,
): Constants {
  const { limits } = device, lanes = laneConstants(device);
  const { WORKGROUP: threads, SHARES: least, STEPS = 1 } = defaultsFor(device)
    .attendDecode[rows >= MANY_SEQUENCES ? "long" : context];
  // 16 elements per lane: two 16-byte loads of an f16 key.
  const wanted = Math.ceil(Math.log2(headDim / 16));
  const LOG_KEY_LANES = lanes.SUBGROUPS
    ? Math.max(0, Math.min(wanted, lanes.LOG_LANES))
    : Math.max(3, wanted);
  const most = Math.max(1, MOST_VALUES * 2 ** LOG_KEY_LANES / headDim);
  let SHARES = Math.min(group, Math.max(least, Math.ceil(group / most)));
  while (group % SHARES) SHARES++;
  const laneCount = 2 ** (lanes.SUBGROUPS ? lanes.LOG_LANES : LOG_KEY_LANES);
  const { once, laneGroup } = decodeBytes(headDim, group / SHARES, cache);
  const room = (limits.maxComputeWorkgroupStorageSize - once) /
    (laneGroup + 4 * laneCount);
  const laneGroups = 2 **
    Math.floor(Math.log2(Math.min(MOST_LANE_GROUPS, room)));
  return {
    HEAD_DIM: headDim,
    VEC: headVector(headDim),
    SHARES,
    WORKGROUP: Math.min(threads, mostThreads(device), laneGroups * laneCount),
    LOG_KEY_LANES,
    STEPS: cache === "q8_0" && context === "long" ? 2 * STEPS : STEPS,
    ...lanes,
  };
}

/** Keeps splits short as long as a large GPU can run all `workgroups` of each at once. */
function splitsOfKeys(
  length: number,
  rows: number,
  workgroups: number,
): number {
  const most = rows >= MANY_SEQUENCES
    ? Math.ceil(MOST_SPLITS / 2 / rows)
    : rows > 1
    ? Math.ceil(MOST_SPLITS / rows)
    : Math.min(MOST_SPLITS, Math.ceil(MOST_WORKGROUPS / workgroups));
  return Math.min(most, Math.ceil(length / SPLIT_KEYS));
}

/** The maximum number of splits of a row, at any length up to the context. */
export function mostSplits(context: number, rows: number): number {
  return Math.min(
    Math.ceil(MOST_SPLITS / rows),
    Math.ceil(context / SPLIT_KEYS),
  );
}

/**
 * From this many rows on, prefill attention in f16 takes 64 per workgroup, which needs this
 * many bytes of workgroup memory ("Prefill attention in f16").
 */
const MANY_PREFILL_ROWS = 1024, WIDE_PREFILL_BYTES = 40960;
/** Bytes of workgroup memory that prefill attention in f32 needs for 64 rows. */
const PLAIN_PREFILL_BYTES = 25600;

/** Chooses the rows per workgroup in prefill attention, in f16 or f32. */
export function choosePrefillRows(
  rows: number,
  device: Capabilities,
  half: boolean,
): { ROWS: number } {
  const room = device.limits.maxComputeWorkgroupStorageSize;
  if (!half) return { ROWS: room >= PLAIN_PREFILL_BYTES ? 64 : 32 };
  return {
    ROWS: rows >= MANY_PREFILL_ROWS && room >= WIDE_PREFILL_BYTES ? 64 : 32,
  };
}

/**
 * How the keys of a few tokens are split in prefill attention ("Few tokens after many keys"):
 * over how many workgroups per multiprocessor, from how many cached tokens on, and how many
 * tiles of `keys` a split has at least. A multiprocessor runs two workgroups no faster than one
 * after another, so splits end in whole rounds.
 */
const PREFILL_SPLITS = { rounds: 2, from: 512, tiles: 2, keys: 64 };

/** Splits of the keys in prefill attention. */
export interface PrefillSplits {
  /** Splits after `length` cached tokens. */
  splits: (length: number) => number;
  /** The maximum, at any length up to the context. */
  most: number;
  reason: string;
}

/**
 * Chooses over how many workgroups the keys of a block of rows are split, of `workgroups`
 * blocks in all, so that few tokens after many do not leave most of the device idle.
 */
export function choosePrefillSplits(
  { workgroups, tokens, context }: Readonly<
    Record<"workgroups" | "tokens" | "context", number>
  >,
  device: Pick<Capabilities, "adapterClass">,
): PrefillSplits {
  const { rounds, from, tiles, keys } = PREFILL_SPLITS;
  const why = device.adapterClass === "software"
    ? "a software renderer has few workgroups at a time"
    : workgroups > PROCESSORS / 2
    ? `${workgroups} workgroups keep most of the device busy`
    : context < from
    ? `the context has under ${from}`
    : undefined;
  if (why) {
    return { splits: () => 1, most: 1, reason: `keys are not split: ${why}` };
  }
  const wanted = Math.floor(rounds * PROCESSORS / workgroups);
  const most = Math.min(MOST_SPLITS, wanted);
  const splits = (length: number) => {
    if (length < from) return 1;
    const all = Math.ceil((length + tokens) / keys);
    return Math.ceil(all / Math.max(tiles, Math.ceil(all / most)));
  };
  const fit = Math.ceil(Math.ceil((context + tokens) / keys) / tiles);
  return {
    splits,
    most: Math.min(most, fit),
    reason:
      `from ${from} cached tokens on, several workgroups share their keys, because there are only ${workgroups} without`,
  };
}

/** Constants for norming and rotating heads, with lanes that share a head. */
export function headConstants(headDim: number, device: Capabilities) {
  const VEC = headVector(headDim), pairs = headDim / 2 / VEC;
  const most = Math.min(32, 2 ** Math.ceil(Math.log2(pairs)));
  return { HEAD_DIM: headDim, VEC, ...laneConstants(device, most) };
}
