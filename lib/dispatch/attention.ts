/**
 * How attention is laid out on a device, and why. Thresholds were measured; the quoted
 * titles are entries of bench/log.md.
 *
 * @module
 */
import {
  type AdapterClass,
  type Capabilities,
  laneConstants,
} from "./capabilities.ts";
import {
  type Constants,
  CONTEXT_CLASSES,
  type ContextClass,
} from "./shapes.ts";
import { origin } from "./linear.ts";
import { defaultsFor } from "./defaults.ts";
import { attendKey } from "./keys.ts";
import { headVector } from "./precision.ts";

/** Attention of a decode step: constants, and how its keys are split. */
export interface DecodeAttentionChoice {
  constants: Constants;
  /** KV splits at `length` cached tokens; 0 if another layout covers that length. */
  splits: (length: number) => number;
  /** Workgroups that share a kv head's query heads. */
  shares: number;
  /** Whether the last workgroup of a head merges the splits; if not, mergeSplits does. */
  merges: boolean;
  /** Constants of reading ahead, where it was measured to help. */
  ahead?: { FETCHERS: number; AHEAD: number };
  reason: string;
}

/** KV splits at most; mergeSplits takes no more. */
export const MOST_SPLITS = 64;

/**
 * Cached tokens from which a class of contexts begins. From `middle` on, keys are split
 * over workgroups ("Decode attention: two layouts"); from `long` on, reading keys once
 * for all heads that share them matters more than many threads ("Attention with one
 * barrier").
 */
export const CONTEXTS: Readonly<Record<ContextClass, number>> = {
  short: 0,
  middle: 256,
  long: 3072,
};

/** Sequences that keep a large GPU busy: measured with 16 ("16 rows: down to 1.69 ms"). */
const MANY_SEQUENCES = 8;

/** Threads per workgroup at most for many sequences ("16 rows: down to 1.69 ms"). */
const THREADS_FOR_MANY = 256;

/** Keys per split, up to and from this many cached tokens ("Attention with one barrier"). */
const SPLIT_KEYS = { below: 64, from: 128, at: 1536 };

/** Elements of a workgroup's query heads per lane, which it holds twice: of q and of the sums. */
const MOST_VALUES = 32;

/** Lane groups per workgroup: their results are summed one after the other. */
const MOST_LANE_GROUPS = 16;

/**
 * Adapters whose storage barrier is known to reach beyond a workgroup where naga compiles
 * for Vulkan, which gives it the memory scope of the device ("The last workgroup merges
 * the splits"). WGSL promises the workgroup only, and Metal, Direct3D and Dawn no more.
 */
const DEVICE_BARRIERS: readonly AdapterClass[] = [
  "NVIDIA",
  "NVIDIA, large cache",
  "AMD",
  "software",
];

/** Attention of a decode step: sizes of heads, and sequences. */
interface DecodeShape {
  headDim: number;
  /** Query heads that share a kv head. */
  group: number;
  rows?: number;
}

/** Chooses the layout of a decode step's attention for each class of contexts. */
export function chooseDecodeAttention(
  shape: DecodeShape,
  device: Capabilities,
): DecodeAttentionChoice[] {
  const { headDim, group, rows = 1 } = shape;
  const defaults = defaultsFor(device);
  const { adapterClass = "other", vulkan = false } = device;
  const merges = vulkan && DEVICE_BARRIERS.includes(adapterClass);
  return CONTEXT_CLASSES.map((context, i) => {
    const from = beginsAt(context, rows);
    const to = beginsAt(CONTEXT_CLASSES.at(i + 1), rows);
    const tuned = device.tuned?.get(attendKey(context, headDim, group));
    const constants: Constants = {
      ...layoutConstants(shape, context, device),
      MERGE: merges ? 1 : 0,
      ...tuned,
    };
    const shares = Number(constants.SHARES);
    const { fetch } = defaults.attendDecode[context];
    return {
      constants: { ...constants, GROUP: group / shares },
      shares,
      merges,
      ahead: fetch && rows < MANY_SEQUENCES
        ? { FETCHERS: fetch.workgroups, AHEAD: fetch.bytes / 16 }
        : undefined,
      splits: (length) =>
        length < from || length >= to
          ? 0
          : context === "short"
          ? 1
          : splitsOfKeys(length, rows),
      reason: `one token per sequence, ${
        to === Infinity ? `${from} keys or more` : `under ${to} keys`
      }: norm, RoPE, append and attention in one dispatch${
        merges
          ? ", and the merge, because a storage barrier reaches all workgroups"
          : ""
      }; ${origin(tuned, defaults)}`,
    };
  });
}

/** Where a class of contexts begins; many sequences have workgroups for twice the keys. */
function beginsAt(context: ContextClass | undefined, rows: number): number {
  if (context === undefined) return Infinity;
  const twice = context === "middle" && rows >= MANY_SEQUENCES;
  return CONTEXTS[context] * (twice ? 2 : 1);
}

/** Threads, lanes and heads of a workgroup, by what registers and workgroup memory hold. */
function layoutConstants(
  { headDim, group, rows = 1 }: DecodeShape,
  context: ContextClass,
  device: Capabilities,
): Constants {
  const { limits } = device, lanes = laneConstants(device);
  const { WORKGROUP: threads, SHARES: least, STEPS = 1 } =
    defaultsFor(device).attendDecode[context];
  // 16 elements to a lane: a pair of 16-byte loads of a key in f16.
  const wanted = Math.ceil(Math.log2(headDim / 16));
  const LOG_KEY_LANES = lanes.SUBGROUPS
    ? Math.max(0, Math.min(wanted, lanes.LOG_LANES))
    : Math.max(3, wanted);
  const most = Math.max(1, MOST_VALUES * 2 ** LOG_KEY_LANES / headDim);
  let SHARES = Math.min(group, Math.max(least, Math.ceil(group / most)));
  while (group % SHARES) SHARES++;
  const laneCount = 2 ** (lanes.SUBGROUPS ? lanes.LOG_LANES : LOG_KEY_LANES);
  const bytes = 4 * (group / SHARES) * (headDim + 2) + 4 * laneCount;
  const room = limits.maxComputeWorkgroupStorageSize / bytes;
  const laneGroups = 2 **
    Math.floor(Math.log2(Math.min(MOST_LANE_GROUPS, room)));
  return {
    HEAD_DIM: headDim,
    VEC: headVector(headDim),
    SHARES,
    WORKGROUP: Math.min(
      rows >= MANY_SEQUENCES ? Math.min(threads, THREADS_FOR_MANY) : threads,
      limits.maxComputeInvocationsPerWorkgroup,
      laneGroups * laneCount,
    ),
    LOG_KEY_LANES,
    STEPS,
    ...lanes,
  };
}

/** Short splits while a large GPU runs all of them at once. */
function splitsOfKeys(length: number, rows: number): number {
  const { below, from, at } = SPLIT_KEYS;
  const keys = length < at ? below : from;
  return Math.min(
    Math.ceil(MOST_SPLITS / rows),
    Math.ceil((length + 1) / keys),
  );
}

/** Rows from which a prompt's attention takes 64 per workgroup, and the bytes that needs ("Prefill attention in f16"). */
const MANY_PREFILL_ROWS = 1024, WIDE_PREFILL_BYTES = 40960;

/** Rows per workgroup in a prompt's attention. */
export function choosePrefillRows(
  rows: number,
  device: Capabilities,
): { ROWS: number } {
  const room = device.limits.maxComputeWorkgroupStorageSize;
  return {
    ROWS: rows >= MANY_PREFILL_ROWS && room >= WIDE_PREFILL_BYTES ? 64 : 32,
  };
}

/** Constants for norming and rotating heads; lanes share a head. */
export function headConstants(headDim: number, device: Capabilities) {
  const VEC = headVector(headDim), pairs = headDim / 2 / VEC;
  const most = Math.min(32, 2 ** Math.ceil(Math.log2(pairs)));
  return { HEAD_DIM: headDim, VEC, ...laneConstants(device, most) };
}
