/**
 * How attention is laid out on a device, and why.
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

/** A decode step's attention: constants, and how its keys are divided. */
export interface DecodeAttentionChoice {
  constants: Constants;
  /** Runs of keys for different workgroups at `length` cached tokens; 0: another choice's. */
  splits: (length: number) => number;
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

/** So many sequences keep a large GPU busy (measured with 16). */
const MANY_SEQUENCES = 8;

/** The same for `rows` sequences: many have workgroups enough for twice the keys. */
const beginsAt = (what: ContextClass | undefined, rows: number): number =>
  what === undefined
    ? Infinity
    : CONTEXTS[what] * (what === "middle" && rows >= MANY_SEQUENCES ? 2 : 1);

/** Threads of a workgroup at most where many sequences have one each. */
const THREADS_OF_MANY = 256;

/** What of a workgroup's query heads a lane holds, twice: of q and of the sums. */
const MOST_VALUES = 32;

/** Teams of a workgroup: what they leave is summed one after the other. */
const MOST_TEAMS = 16;

/**
 * Adapters whose storage barrier is known to reach beyond a workgroup, if naga writes
 * it for Vulkan: its memory scope is the device then. WGSL promises the workgroup only,
 * and no more comes of it through Metal, Direct3D or Dawn, whatever the adapter.
 */
const DEVICE_BARRIERS: readonly AdapterClass[] = [
  "NVIDIA",
  "NVIDIA, large cache",
  "AMD",
  "software",
];

/** Chooses how attention is laid out in a decode step of `rows` sequences, for each class of contexts. */
export function chooseDecodeAttention(
  { headDim, group, rows = 1 }: {
    headDim: number;
    group: number;
    rows?: number;
  },
  device: Capabilities,
): DecodeAttentionChoice[] {
  const VEC = headVector(headDim);
  const lanes = laneConstants(device);
  const defaults = defaultsFor(device);
  const { adapterClass = "other", vulkan = false, limits } = device;
  const merges = vulkan && DEVICE_BARRIERS.includes(adapterClass);
  return CONTEXT_CLASSES.map((what, i) => {
    const next = CONTEXT_CLASSES.at(i + 1);
    const from = beginsAt(what, rows), to = beginsAt(next, rows);
    const { WORKGROUP: threads, SHARES: least, STEPS = 1 } =
      defaults.attendDecode[what];
    const tuned = device.tuned?.get(attendKey(what, headDim, group));
    // 16 values to a lane: a pair of 16-byte loads of a key in f16.
    const wanted = Math.ceil(Math.log2(headDim / 16));
    const LOG_KEY_LANES = lanes.SUBGROUPS
      ? Math.max(0, Math.min(wanted, lanes.LOG_LANES))
      : Math.max(3, wanted);
    const most = Math.max(1, MOST_VALUES * 2 ** LOG_KEY_LANES / headDim);
    let SHARES = Math.min(group, Math.max(least, Math.ceil(group / most)));
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
        rows >= MANY_SEQUENCES ? Math.min(threads, THREADS_OF_MANY) : threads,
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
    const ahead = fetch && rows < MANY_SEQUENCES
      ? { FETCHERS: fetch.workgroups, AHEAD: fetch.bytes / 16 }
      : undefined;
    return {
      constants: { ...constants, GROUP: group / shares },
      shares,
      merges,
      ahead,
      splits: (length) => {
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

/** Constants for norming and rotating heads: lanes share a head. */
export function headConstants(headDim: number, device: Capabilities) {
  const VEC = headVector(headDim), pairs = headDim / 2 / VEC;
  const most = Math.min(32, 2 ** Math.ceil(Math.log2(pairs)));
  return { HEAD_DIM: headDim, VEC, ...laneConstants(device, most) };
}
