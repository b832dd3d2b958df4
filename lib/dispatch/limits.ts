/**
 * Which constants a kernel's tuning may try, and whether a device can run them. A
 * kernel's needs are data in its own file; nothing here refers to a kernel by name.
 *
 * @module
 */
import { jsonText, quoted } from "../errors.ts";
import { type Capabilities, mostThreads } from "./capabilities.ts";
import type { TuningTarget } from "./keys.ts";

/** Constants by name, as they are tuned and stored. */
export type Candidate = Readonly<Record<string, number>>;

/**
 * What a workgroup needs from a device, and any other reason why the constants cannot
 * be used.
 */
export interface Needs {
  threads: number;
  /** Bytes of workgroup memory. */
  bytes: number;
  problem?: string;
}

/** The constants of a kernel that tuning decides. */
export interface Tuning<T extends TuningTarget = TuningTarget> {
  readonly of: "linear" | "attention";
  /** Values to try, by constant. Constants derived from others are not listed. */
  readonly grid: Readonly<Record<string, readonly number[]>>;
  /** Replaces values with smaller ones that have the same effect. */
  settle?(target: T, constants: Candidate, device: Capabilities): Candidate;
  needs(target: T, constants: Candidate, device: Capabilities): Needs;
}

/** A kernel that can be tuned. */
export interface Tunable {
  readonly name: string;
  readonly tuning: Tuning;
}

/**
 * Maximum emulated threads: 128 are fine on llvmpipe and 1,024 hang it ("llvmpipe: 1,024
 * threads hang").
 */
const MOST_EMULATED_THREADS = 128;
/**
 * Maximum 16-byte values in flight. Not measured: at four registers each they take 192 of
 * the registers of a thread, about 256.
 */
export const MOST_IN_FLIGHT = 48;

export const isPowerOf2 = (value: number): boolean =>
  Number.isInteger(Math.log2(value));

/**
 * Explains why a device cannot run a kernel with these constants; undefined if it can.
 */
export function misfit(
  { name: kernel, tuning }: Tunable,
  target: TuningTarget,
  constants: Candidate,
  device: Capabilities,
): string | undefined {
  const { limits, adapterClass } = device;
  if (tuning.of !== ("headDim" in target ? "attention" : "linear")) {
    return `${kernel} is tuned for ${tuning.of} shapes`;
  }
  const names = Object.keys(tuning.grid);
  const unknown = Object.keys(constants).find((name) => !names.includes(name));
  if (unknown) return `${kernel} has no constant ${quoted(unknown)}`;
  for (const name of names) {
    const value = constants[name], least = name.startsWith("LOG_") ? 0 : 1;
    if (Number.isInteger(value) && value >= least && value <= 1024) continue;
    return `${name} is ${
      jsonText(value)
    }, must be an integer from ${least} to 1024`;
  }
  const { threads, bytes, problem } = tuning.needs(target, constants, device);
  if (problem) return problem;
  const most = Math.min(
    mostThreads(device),
    adapterClass === "software" ? MOST_EMULATED_THREADS : Infinity,
  );
  if (threads > most) return `${threads} threads, must be at most ${most}`;
  const room = limits.maxComputeWorkgroupStorageSize;
  return bytes > room
    ? `${bytes} bytes of workgroup memory, must be at most ${room}`
    : undefined;
}
