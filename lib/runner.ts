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
   * Samples up to `maxTokens` tokens after `tokens`, in chunks as they become
   * known. The first chunk is the first token. The consumer stops by leaving.
   */
  generate(
    tokens: readonly number[],
    sampling: Sampling,
    maxTokens: number,
    signal?: AbortSignal,
  ): AsyncGenerator<readonly number[], void>;
}
