/**
 * What runs a model: a GPU or the CPU behind the same few calls.
 *
 * @module
 */
import type { Sampling } from "./sampling.ts";

/** An operation that a GPU run had to do on the CPU. */
export interface Fallback {
  operation: string;
  reason: string;
  count: number;
}

/** A loaded model on one device. One call at a time. */
export interface Runner extends Disposable {
  /** Tokens that a sequence may have. */
  readonly context: number;
  readonly fallbacks: readonly Fallback[];
  /** Logits after the last token, or after each (`all`), from an empty cache. */
  logits(
    tokens: readonly number[],
    options: { all?: boolean; signal?: AbortSignal },
  ): Promise<Float32Array>;
  /**
   * @throws {MemoryError} if it cannot hold `sequences` of `context` tokens each,
   * keys and values of a batch.
   */
  requireRoom(sequences: number, context: number): void;
  /**
   * Samples up to `maxTokens` tokens after each prompt, all sequences in step, in
   * chunks as they become known: one token of each sequence, then the next of each.
   * The first chunk is the first token of each. Sequence `s` draws with the seed
   * `(seed + s) mod 2³²`. None is told to end, but one that reaches the context goes
   * on in its last place, and its tokens mean nothing. The consumer stops by leaving.
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
