/**
 * The interface of a loaded model on one device, GPU or CPU.
 *
 * @module
 */
import type { Sampling } from "./sampling.ts";

/** An operation that a GPU run had to do on the CPU. */
export interface Fallback {
  /** What ran on the CPU. */
  operation: string;
  /** Why the GPU could not. */
  reason: string;
  /** How many times. */
  count: number;
}

/** A loaded model on one device. One call at a time. */
export interface Runner extends Disposable {
  /** Tokens that a sequence may have. */
  readonly context: number;
  /** Operations of a GPU run that ran on the CPU. */
  readonly fallbacks: readonly Fallback[];
  /** Logits after the last token, or after each (`all`), from an empty cache. */
  logits(
    tokens: readonly number[],
    options: { all?: boolean; signal?: AbortSignal },
  ): Promise<Float32Array>;
  /**
   * Checks that the device can hold the keys and values of `sequences` sequences of
   * `context` tokens each.
   *
   * @throws {MemoryError} if it cannot.
   */
  requireRoom(sequences: number, context: number): void;
  /**
   * Samples up to `maxTokens` tokens after each prompt, all sequences in step. Yields
   * chunks of ids: one token of each sequence, then the next of each; the first chunk
   * is the first token of each. Sequence `s` samples with the seed `(seed + s) mod 2³²`.
   * Sequences do not end by themselves: the consumer ignores those that are over and
   * leaves the loop to stop. One that fills its context keeps overwriting the last
   * position, and its further tokens are meaningless.
   *
   * @throws {MemoryError} if several do not fit (see `requireRoom`).
   */
  generate(
    prompts: readonly (readonly number[])[],
    sampling: Sampling,
    maxTokens: number,
    signal?: AbortSignal,
  ): AsyncGenerator<readonly number[], void>;
}
