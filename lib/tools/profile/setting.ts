/**
 * The options of a profile, with every default resolved.
 *
 * @module
 */
import type { Checkpoint } from "../../checkpoint/checkpoint.ts";
import type { OpenOptions } from "../../checkpoint/sources.ts";
import { contextLimit } from "../../checkpoint/config.ts";
import type { CacheRequest } from "../../dispatch/precision.ts";
import { OptionError } from "../../errors.ts";
import type { AllowedKernel } from "./kernels.ts";
import type { ProfileReport, TimelineEvent } from "./report.ts";
import type { Findings } from "./verdict.ts";
import { resolveSampling, type Sampling } from "../../model/sampling.ts";
import type { DeviceKind } from "../../dispatch/device.ts";
import {
  checkImplementation,
  type DeviceOptions,
} from "../../webgpu/implementation.ts";

/** Options of {@linkcode profile}. */
export interface ProfileOptions extends DeviceOptions {
  device?: DeviceKind;
  /** How keys and values are cached; as on loading by default. */
  kv?: CacheRequest;
  /** Prompt length; by default 512, or as much as the checkpoint has room for. */
  promptTokens?: number;
  /** Tokens to generate; 64 by default. */
  maxTokens?: number;
  /** Sequences that run together as in `generateBatch`; 1 by default. */
  batch?: number;
  /** Steps between two readbacks; a growing number by default. */
  chunk?: number;
  /** Runs the model unpacked on these matmul kernels only. */
  kernels?: readonly AllowedKernel[];
  /** Whether to run the CPU path too. */
  compare?: boolean;
  /** How the checkpoint is opened, where progress goes, and the threads of the CPU path. */
  opening?: OpenOptions & { threads?: number };
  /** Called with each stage of the profile. */
  onProgress?: (what: string) => void;
  signal?: AbortSignal;
}

const PROMPT_TOKENS = 512, MAX_TOKENS = 64;
const MOST_BATCH = 256, MOST_CHUNK = 128;

/** Options with every default resolved. */
export interface Setting extends ProfileOptions {
  promptTokens: number;
  maxTokens: number;
  batch: number;
  sampling: Sampling;
  notes: string[];
  /** Start of the timeline, in `performance.now()` time. */
  origin: number;
  progress: (what: string) => void;
}

/** Results of profiling, before the verdicts. */
export interface Profiled {
  findings: Findings;
  timeline: TimelineEvent[];
}

/** @throws {OptionError} if `value` is not a whole number from `least` to `most`, if given. */
function requireWhole(
  option: string,
  value: number | undefined,
  least: number,
  most = Infinity,
  why = "",
): void {
  if (value === undefined) return;
  if (Number.isInteger(value) && value >= least && value <= most) return;
  const range = most === Infinity
    ? `of at least ${least}`
    : `from ${least} to ${most}`;
  throw new OptionError(
    option,
    `Cannot profile: ${option} is ${value}, must be an integer ${range}${why}`,
  );
}

/**
 * Checks what can be checked before a checkpoint is opened.
 *
 * @throws {Error} if an option is out of range, or two exclude each other.
 */
export function checkProfiling(options: ProfileOptions): void {
  const { kernels, compare, device, chunk, kv } = options;
  checkImplementation("Cannot profile", options, device);
  requireWhole("maxTokens", options.maxTokens, 2);
  requireWhole("promptTokens", options.promptTokens, 1);
  requireWhole("batch", options.batch, 1, MOST_BATCH);
  requireWhole("chunk", chunk, 1, MOST_CHUNK);
  const against = [
    device === "cpu" ? "on the CPU" : "",
    compare ? "in a comparison" : "",
    chunk === undefined ? "" : "with a fixed chunk",
    kv === undefined ? "" : "with a type of the cache",
  ].find(Boolean);
  if (kernels && against) {
    throw new Error(
      `Cannot profile: kernels cannot be restricted ${against}, drop one of the two`,
    );
  }
}

/** Fills in defaults and checks what depends on the checkpoint. */
export function settle(
  { config, generation, notices }: Checkpoint,
  options: ProfileOptions,
): Setting {
  const room = contextLimit(config).tokens;
  const { maxTokens = Math.min(MAX_TOKENS, room - 1), batch = 1 } = options;
  // The prompt yields the first token, a decode step the second.
  requireWhole("maxTokens", maxTokens, 2, room - 1);
  const most = room - maxTokens;
  const promptTokens = options.promptTokens ?? Math.min(PROMPT_TOKENS, most);
  const why = ` (context ${room})`;
  requireWhole("promptTokens", promptTokens, 1, most, why);
  const notes = [...notices];
  if (options.promptTokens === undefined && promptTokens < PROMPT_TOKENS) {
    notes.push(
      `the prompt has ${promptTokens} tokens instead of ${PROMPT_TOKENS}: ${maxTokens} more fill the context of ${room}`,
    );
  }
  return {
    ...options,
    promptTokens,
    maxTokens,
    batch,
    notes,
    sampling: resolveSampling({ seed: 1 }, generation),
    origin: performance.now(),
    progress: options.onProgress ?? (() => {}),
  };
}

/** The part of a report that is known before timing anything. */
export function subject(
  { name }: Checkpoint,
  { promptTokens, maxTokens, batch }: Setting,
  { kind, adapter, software, choices }: ProfileReport["device"],
) {
  return {
    model: name,
    device: { kind, adapter, software, choices },
    promptTokens,
    maxTokens,
    batch,
  };
}

/** Sequences of a batch whose prompts are timed; all have the same length. */
export function prefillSamples(batch: number): number[] {
  return batch === 1 ? [0] : [0, batch - 1];
}

/** Token ids spread over the vocabulary. */
export function promptIds(tokens: number, vocab: number): number[] {
  return Array.from({ length: tokens }, (_, i) => i * 7919 % vocab);
}
