/**
 * Constants that are worth trying for a kernel, and whether a device can run them.
 *
 * @module
 */
import { sumsAtOnce } from "../../../kernels/gemv_rows.ts";
import {
  type Capabilities,
  laneConstants,
} from "../../dispatch/capabilities.ts";
import type { TunedKernel, TuningTarget } from "../../dispatch/keys.ts";
import { unitSize } from "../../dtype.ts";

/** Constants by name, as they are tuned and stored. */
export type Candidate = Readonly<Record<string, number>>;

/** Values of each constant that are tried. What follows from others is not listed. */
const GRIDS: Record<TunedKernel, Record<string, number[]>> = {
  gemv: {
    WORKGROUP: [32, 64, 128, 256, 512],
    ROWS: [1, 2, 4],
    STEPS: [1, 2, 4, 8, 12, 16],
  },
  gemvRows: {
    WORKGROUP: [32, 64, 128, 256],
    ROWS: [1, 2, 4, 8],
    STEPS: [1, 2, 4],
    SLICES: [1, 2, 4, 8],
  },
  gemm: {
    BM: [32, 64, 128],
    BN: [32, 64, 128],
    BK: [16, 32],
    TM: [4, 8],
    TN: [4, 8],
  },
  attendDecode: {
    WORKGROUP: [64, 128, 256, 512],
    SHARES: [1, 2, 4],
    LOG_KEY_LANES: [1, 2, 3, 4],
    STEPS: [1, 2, 4],
  },
};

/** The constants that a kernel's tuning decides. */
export function tunedNames(kernel: TunedKernel): string[] {
  return Object.keys(GRIDS[kernel]);
}

/** Emulated threads: more make llvmpipe slow, 1,024 of them hang it. */
const MOST_EMULATED_THREADS = 128;
/** 16-byte values in flight that registers may hold. */
const MOST_IN_FLIGHT = 48;
/** Sums that a thread may hold in registers. */
const MOST_SUMS = 256;

/** Every candidate that can run, those nearest to `now` first, and how many cannot. */
export function candidatesFor(
  target: TuningTarget,
  device: Capabilities,
  now: Candidate,
): { candidates: Candidate[]; invalid: number } {
  let all: Record<string, number>[] = [{}];
  for (const [name, values] of Object.entries(GRIDS[target.kernel])) {
    all = all.flatMap((one) =>
      values.map((value) => ({ ...one, [name]: value }))
    );
  }
  const seen = new Set([JSON.stringify(settled(target, device, now))]);
  const candidates: Candidate[] = [];
  let invalid = 0;
  for (const one of all) {
    const candidate = settled(target, device, one);
    const key = JSON.stringify(candidate);
    if (seen.has(key)) continue; // the same by another name
    seen.add(key);
    if (misfit(target, candidate, device) === undefined) {
      candidates.push(candidate);
    } else invalid++;
  }
  const distance = (one: Candidate) =>
    Object.keys(one).reduce((sum, name) => {
      return sum + Math.abs(Math.log2((one[name] + 1) / (now[name] + 1)));
    }, 0);
  candidates.sort((a, b) => distance(a) - distance(b));
  return { candidates, invalid };
}

/** A candidate with what follows from it, its constants in one order. */
function settled(
  target: TuningTarget,
  device: Capabilities,
  given: Readonly<Record<string, number>>,
): Candidate {
  const names = tunedNames(target.kernel);
  const own = Object.fromEntries(names.map((name) => [name, given[name]]));
  if (target.kernel === "gemvRows") {
    const lanes = gemvRowsLanes(target, device);
    own.STEPS = Math.min(own.STEPS, Math.ceil(target.k / 4 / lanes));
  }
  if (target.kernel === "gemv") {
    const steps = Math.ceil(unitsOf(target) / gemvLanes(target, device));
    own.STEPS = Math.ceil(steps / Math.ceil(steps / own.STEPS));
  }
  return own;
}

type Linear = Exclude<TuningTarget, { kernel: "attendDecode" }>;
type Attend = Extract<TuningTarget, { kernel: "attendDecode" }>;

const unitsOf = ({ k, dtype }: Linear) => Math.ceil(k / unitSize(dtype));
const gemvLanes = (target: Linear, device: Capabilities) =>
  2 ** laneConstants(device, Math.max(4, unitsOf(target))).LOG_LANES;

const gemvRowsLanes = ({ k }: Linear, device: Capabilities) =>
  2 ** laneConstants(device, Math.max(4, Math.ceil(k / 4))).LOG_LANES;

/** Why a device cannot run a kernel with these constants; undefined where it can. */
export function misfit(
  target: TuningTarget,
  constants: Candidate,
  device: Capabilities,
): string | undefined {
  const { limits, adapterClass } = device;
  const names = tunedNames(target.kernel);
  const unknown = Object.keys(constants).find((name) => !names.includes(name));
  if (unknown) return `${target.kernel} has no constant ${unknown}`;
  for (const name of names) {
    const value = constants[name], least = name === "LOG_KEY_LANES" ? 0 : 1;
    if (Number.isInteger(value) && value >= least && value <= 1024) continue;
    return `${name} is ${value}, must be an integer from ${least} to 1024`;
  }
  const { threads, bytes, problem } = target.kernel === "attendDecode"
    ? attendNeeds(target, constants, device)
    : target.kernel === "gemm"
    ? gemmNeeds(target, constants)
    : target.kernel === "gemvRows"
    ? gemvRowsNeeds(target, constants, device)
    : gemvNeeds(target, constants, device);
  if (problem) return problem;
  const most = Math.min(
    limits.maxComputeInvocationsPerWorkgroup,
    adapterClass === "software" ? MOST_EMULATED_THREADS : Infinity,
  );
  if (threads > most) return `${threads} threads, at most ${most} may run`;
  const room = limits.maxComputeWorkgroupStorageSize;
  return bytes > room
    ? `${bytes} bytes of workgroup memory, there are ${room}`
    : undefined;
}

/** What a workgroup takes, and what else is wrong. */
interface Needs {
  threads: number;
  bytes: number;
  problem?: string;
}

const isPower = (value: number) => Number.isInteger(Math.log2(value));

function gemvNeeds(
  target: Linear,
  { WORKGROUP, ROWS, STEPS }: Candidate,
  device: Capabilities,
): Needs {
  const lanes = gemvLanes(target, device);
  return {
    threads: WORKGROUP,
    bytes: device.subgroupSize ? 0 : 4 * WORKGROUP,
    problem: WORKGROUP % lanes || !isPower(WORKGROUP)
      ? `WORKGROUP is ${WORKGROUP}, must be a power of 2 and whole groups of ${lanes} lanes`
      : target.swiglu && ROWS % 2
      ? `ROWS is ${ROWS}, must be even: gates and what they gate are summed together`
      : ROWS * STEPS > MOST_IN_FLIGHT
      ? `${
        ROWS * STEPS
      } loads in flight, at most ${MOST_IN_FLIGHT} fit registers`
      : undefined,
  };
}

function gemvRowsNeeds(
  target: Linear,
  { WORKGROUP, ROWS, STEPS, SLICES }: Candidate,
  device: Capabilities,
): Needs {
  const lanes = gemvRowsLanes(target, device), groups = WORKGROUP / lanes;
  const sums = 2 ** Math.ceil(Math.log2(target.m * ROWS));
  return {
    threads: WORKGROUP,
    bytes: 4 * (target.m + 2 * groups * sums) +
      4 * WORKGROUP * Math.ceil(target.m / WORKGROUP) +
      (device.subgroupSize
        ? 0
        : 4 * WORKGROUP * sumsAtOnce(WORKGROUP, lanes, sums)),
    problem: WORKGROUP % lanes || !isPower(WORKGROUP)
      ? `WORKGROUP is ${WORKGROUP}, must be a power of 2 and whole groups of ${lanes} lanes`
      : groups % SLICES || !isPower(SLICES)
      ? `SLICES is ${SLICES}, must be a power of 2 that divides the ${groups} lane groups`
      : !isPower(ROWS) || target.swiglu && ROWS % 2
      ? `ROWS is ${ROWS}, must be a power of 2, and even where gates and what they gate are summed together`
      : sums > MOST_SUMS
      ? `${sums} sums in a thread, at most ${MOST_SUMS} fit registers`
      : ROWS * STEPS > MOST_IN_FLIGHT
      ? `${
        ROWS * STEPS
      } loads in flight, at most ${MOST_IN_FLIGHT} fit registers`
      : undefined,
  };
}

function gemmNeeds(
  { swiglu, half, m }: Linear,
  { BM, BN, BK, TM, TN }: Candidate,
): Needs {
  const threads = (BM / TM) * (BN / TN);
  const loads = Math.ceil((BM + BN) / 4 * (BK / 4) / threads);
  return {
    threads,
    bytes: BK * (BM / 4 + 1 + BN / 4 + 1) * (half ? 8 : 16),
    problem: [BM, BN, BK, TM, TN].some((size) => size % 4)
      ? "the sizes of a tile must be multiples of 4"
      : BM % TM || BN % TN || threads < 32 || !isPower(threads)
      ? `${threads} threads share a tile, must be a power of 2 and at least 32`
      : swiglu && TN < 8
      ? `TN is ${TN}, must be 8 or more: gates and what they gate are summed together`
      : loads > 8
      ? `${loads} blocks to load per thread, at most 8 fit registers`
      : BM > 2 * m
      ? `a tile of ${BM} rows for at most ${m}`
      : undefined,
  };
}

function attendNeeds(
  { headDim, group }: Attend,
  { WORKGROUP, SHARES, LOG_KEY_LANES, STEPS }: Candidate,
  device: Capabilities,
): Needs {
  const { LOG_LANES, SUBGROUPS } = laneConstants(device);
  const keyLanes = 2 ** LOG_KEY_LANES;
  const lanes = SUBGROUPS ? 2 ** LOG_LANES : keyLanes;
  const heads = group / SHARES;
  // A lane's part of q and of the sum per head, of a key and a value per step.
  const values = headDim / keyLanes * (2 * heads + STEPS);
  return {
    threads: WORKGROUP,
    bytes: 4 * WORKGROUP / lanes * heads * (headDim + 2) +
      (SUBGROUPS ? 0 : 4 * WORKGROUP),
    problem: group % SHARES
      ? `SHARES is ${SHARES}, must divide the ${group} query heads of a kv head`
      : keyLanes > lanes
      ? `${keyLanes} lanes share a key, subgroups have ${device.subgroupSize}`
      : !isPower(WORKGROUP) || WORKGROUP < lanes
      ? `WORKGROUP is ${WORKGROUP}, must be a power of 2 and at least ${lanes}`
      : 2 * keyLanes > headDim
      ? `${keyLanes} lanes share a key of ${headDim} values`
      : values > 4 * MOST_IN_FLIGHT
      ? `${values} values in a lane, at most ${
        4 * MOST_IN_FLIGHT
      } fit registers`
      : undefined,
  };
}
