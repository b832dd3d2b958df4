/**
 * Which dispatches sample a token on the GPU, into how many parts they split its logits,
 * and what they report in place of a token.
 *
 * @module
 */
import { DeviceError } from "../errors.ts";

/**
 * What samplers return in place of a token if logits cannot be sampled from: one is NaN,
 * one is +Infinity, all are -Infinity, or those that a mask allows are. Some models mask
 * tokens with -Infinity, so that alone is no fault. No vocabulary has ids this large.
 */
export const FAULT = {
  nan: 0xffffffff,
  infinity: 0xfffffffe,
  none: 0xfffffffd,
  masked: 0xfffffffc,
} as const;

/** The most tokens that `logitBias` may name, and the most alternatives with `logprobs`. */
export const MOST_BIASES = 1024, MOST_LOGPROBS = 20;

/** Finite scores are clamped to ± this, which leaves room for f32 arithmetic. */
export const HIGHEST_SCORE = 1e30;

/** Which dispatches choose a token. */
export type SamplingPath = "greedy" | "draw" | "top-k" | "histogram";

/**
 * Up to this top-k, one workgroup finishes the sampling from the top k of each chunk. Not
 * measured: Qwen3 recommends 20, and the 128 partial maxima that 64 takes are half a
 * workgroup's threads.
 */
const SMALL_TOP_K = 64;

/** What the choice of dispatches depends on, for one row of logits. */
export interface SampledRow {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  /** Whether penalties, biases or a mask change its logits first. */
  readonly adjusts?: boolean;
  /** How many alternatives are reported with its log probability, if any are. */
  readonly logprobs?: number;
}

/**
 * The dispatches that sample some rows. They do for any other rows for which the same
 * would be chosen, because temperature, top-k and so on are read from a buffer.
 */
export interface SamplingChoice {
  path: SamplingPath;
  /** Partial maxima per chunk, for the path "top-k". */
  parts: number;
  /** Whether logits are changed first. */
  adjusts: boolean;
  /** Whether log probabilities are computed. */
  logprobs: boolean;
  reason: string;
}

/** Chooses the fewest dispatches that are right for all of `rows`, with the reason. */
export function chooseSampling(
  rows: readonly SampledRow[],
  vocab: number,
): SamplingChoice {
  const drawing = rows.filter(({ temperature }) => temperature > 0);
  const kOf = ({ topK }: SampledRow) => topK < vocab ? topK : 0;
  const most = drawing.reduce((most, row) => Math.max(most, kOf(row)), 0);
  const all = drawing.filter((row) => kOf(row) === 0);
  const nucleus = all.find(({ topP }) => topP < 1);
  const [path, reason]: [SamplingPath, string] = drawing.length === 0
    ? ["greedy", "temperature 0: the highest logit"]
    : most > SMALL_TOP_K
    ? ["histogram", `top-k of ${most}: more than ${SMALL_TOP_K}`]
    : nucleus
    ? ["histogram", `top-p of ${nucleus.topP} over the vocabulary`]
    : most > 0 && all.length > 0
    ? ["histogram", `top-k of ${most} beside draws from the whole vocabulary`]
    : most > 0
    ? ["top-k", `top-k of ${most}: at most ${SMALL_TOP_K}`]
    : ["draw", "neither top-k nor top-p"];
  return {
    path,
    parts: chooseTopKParts(path === "top-k" ? most : 1),
    adjusts: rows.some(({ adjusts }) => adjusts),
    logprobs: rows.some(({ logprobs }) => logprobs !== undefined),
    reason,
  };
}

/**
 * Chooses the partial maxima per chunk that bound a small top-k: at least twice as many as
 * k, so that few tokens beyond the top k reach the bound.
 */
export function chooseTopKParts(topK: number): number {
  return topK <= SMALL_TOP_K / 2 ? SMALL_TOP_K : 2 * SMALL_TOP_K;
}

/** The vocabulary must be below this: 64 chunks for 256 threads with 16 logits each. */
const VOCAB_LIMIT = 2 ** 18;
/**
 * Checks a vocabulary before a model is loaded.
 *
 * @throws {DeviceError} if it is too large for the samplers on a GPU.
 */
export function requireVocabulary(action: string, vocab: number): void {
  if (vocab < VOCAB_LIMIT) return;
  throw new DeviceError(
    `Cannot ${action}: the vocabulary is ${vocab}, it must be below ${VOCAB_LIMIT} on a GPU`,
  );
}

/** Maximum logits per thread, which stay in registers: four vec4s. Not measured. */
const MOST_LOGITS = 16;
/** Logits per chunk of a small vocabulary: one vec4 per thread of 256. Not measured. */
const SMALL_CHUNK = 1024;

/**
 * Chooses the chunks of a row of logits, one per workgroup of `threads`: a power of 2 that
 * divides the threads which then merge the chunks, with at most 16 logits per thread.
 *
 * @throws {DeviceError} if the vocabulary is too large.
 */
export function chooseLogitChunks(vocab: number, threads: number): number {
  requireVocabulary("sample", vocab);
  const most = VOCAB_LIMIT / (MOST_LOGITS * threads);
  const chunks = 2 ** Math.ceil(Math.log2(Math.max(1, vocab / SMALL_CHUNK)));
  return Math.min(most, chunks);
}
