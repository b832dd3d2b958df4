/**
 * What a profile is asked for, with every default settled.
 *
 * @module
 */
import type { Checkpoint } from "../../checkpoint/checkpoint.ts";
import type { AllowedKernel } from "./kernels.ts";
import type { ProfileReport, TimelineEvent } from "./report.ts";
import type { Findings } from "./verdict.ts";
import { resolveSampling, type Sampling } from "../../model/sampling.ts";
import type { DeviceKind } from "../../dispatch/device.ts";

/** What {@linkcode profile} takes. */
export interface ProfileOptions {
  device?: DeviceKind;
  /** Tokens of the prompt; by default 512, or what the checkpoint has room for. */
  promptTokens?: number;
  /** Tokens to generate; 64 by default. */
  maxTokens?: number;
  /** Sequences that run together, as `generateBatch` does; 1 by default. */
  batch?: number;
  /** Steps between two readbacks; by default a growing number. */
  chunk?: number;
  /** Runs the model unpacked on these matmul kernels alone. */
  kernels?: readonly AllowedKernel[];
  /** Runs the CPU path too. */
  compare?: boolean;
  /** Any WebGPU implementation instead of `navigator.gpu`. */
  gpu?: GPU;
  /** Told what is going on. */
  onProgress?: (what: string) => void;
  signal?: AbortSignal;
}

const PROMPT_TOKENS = 512, MAX_TOKENS = 64;
const MOST_BATCH = 256, MOST_CHUNK = 128;

/** Options with every default settled. */
export interface Setting extends ProfileOptions {
  promptTokens: number;
  maxTokens: number;
  batch: number;
  sampling: Sampling;
  notes: string[];
  /** When the timeline begins. */
  origin: number;
  progress: (what: string) => void;
}

/** What profiling gives before the verdict. */
export interface Profiled {
  findings: Findings;
  timeline: TimelineEvent[];
}

/** Checks the options before anything long begins. */
export function settle(
  { config, generation, name }: Checkpoint,
  options: ProfileOptions,
): Setting {
  const whole = (
    what: string,
    value: number,
    least: number,
    most: number,
    why = "",
  ) => {
    if (Number.isInteger(value) && value >= least && value <= most) return;
    throw new RangeError(
      `Cannot profile ${name}: ${what} is ${value}, must be an integer from ${least} to ${most}${why}`,
    );
  };
  const room = config.maxPositionEmbeddings;
  const { maxTokens = Math.min(MAX_TOKENS, room - 1), batch = 1, chunk } =
    options;
  whole(
    "maxTokens",
    maxTokens,
    2,
    room - 1,
    " (the prompt gives the first, a decode step the second)",
  );
  const most = room - maxTokens;
  const promptTokens = options.promptTokens ?? Math.min(PROMPT_TOKENS, most);
  whole(
    "promptTokens",
    promptTokens,
    1,
    most,
    ` (with ${maxTokens} generated the context of ${room} is full)`,
  );
  whole("batch", batch, 1, MOST_BATCH);
  if (chunk !== undefined) whole("chunk", chunk, 1, MOST_CHUNK);
  const { kernels, compare, device } = options;
  const against = [
    device === "cpu" ? "on the CPU" : "",
    compare ? "in a comparison" : "",
    chunk === undefined ? "" : "with a fixed chunk",
  ].find(Boolean);
  if (kernels && against) {
    throw new Error(
      `Cannot profile ${name}: kernels cannot be restricted ${against}, leave one of the two out`,
    );
  }
  const notes: string[] = [];
  if (options.promptTokens === undefined && promptTokens < PROMPT_TOKENS) {
    notes.push(
      `the prompt has ${promptTokens} tokens instead of ${PROMPT_TOKENS}: with ${maxTokens} generated the context of ${room} is full`,
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

/** The part of a report that is known before anything is timed. */
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

/** Sequences of a batch whose prompts are timed; all are of one length. */
export function prefillSamples(batch: number): number[] {
  return batch === 1 ? [0] : [0, batch - 1];
}

/** Ids all over the vocabulary. */
export function promptIds(tokens: number, vocab: number): number[] {
  return Array.from({ length: tokens }, (_, i) => i * 7919 % vocab);
}
