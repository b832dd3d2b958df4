/**
 * Which dispatches sample a token on the GPU, into how many parts they split its logits,
 * and what they report in place of a token.
 *
 * @module
 */
import { DeviceError } from "../errors.ts";

/**
 * What samplers return in place of a token if logits cannot be sampled from: one is NaN,
 * one is +Infinity, or all are -Infinity. Some models mask tokens with -Infinity, so that
 * alone is no fault. No vocabulary has ids this large.
 */
export const FAULT = {
  nan: 0xffffffff,
  infinity: 0xfffffffe,
  none: 0xfffffffd,
} as const;

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

/** Chooses the dispatches, with the reason. */
export function chooseSampling(
  { temperature, topK, topP }: {
    readonly temperature: number;
    readonly topK: number;
    readonly topP: number;
  },
  vocab: number,
): { path: SamplingPath; reason: string } {
  if (temperature === 0) {
    return { path: "greedy", reason: "temperature 0: the highest logit" };
  }
  if (topK > 0 && topK < vocab) {
    return topK <= SMALL_TOP_K
      ? { path: "top-k", reason: `top-k of ${topK}: at most ${SMALL_TOP_K}` }
      : {
        path: "histogram",
        reason: `top-k of ${topK}: more than ${SMALL_TOP_K}`,
      };
  }
  return topP < 1
    ? { path: "histogram", reason: `top-p of ${topP} over the vocabulary` }
    : { path: "draw", reason: "neither top-k nor top-p" };
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
