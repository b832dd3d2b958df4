/**
 * The interface of a loaded model on one device, GPU or CPU.
 *
 * @module
 */
import type { KeptCache } from "./kv_cache.ts";
import type { Rows, RowsSize } from "./rows.ts";
import type { MaskSource, SampledTokens, Sampling } from "./sampling.ts";

/** An operation of a GPU run that had to run on the CPU. */
export interface Fallback {
  /** The operation that ran on the CPU. */
  operation: string;
  /** Why it could not run on the GPU. */
  reason: string;
  /** How many times it ran there. */
  count: number;
}

/** A loaded model on one device. Allows one call at a time. */
export interface Runner extends Disposable {
  /** The maximum length of a sequence, in tokens. */
  readonly context: number;
  /** Operations of a GPU run that ran on the CPU. */
  readonly fallbacks: readonly Fallback[];
  /**
   * Bytes that are allocated for the model now: weights, cache and work buffers; 0 once
   * it is disposed.
   */
  readonly memoryBytes: number;
  /**
   * Computes the logits after the last token, or with `all` after each, from an empty
   * cache.
   */
  logits(
    tokens: readonly number[],
    options: { all?: boolean; signal?: AbortSignal },
  ): Promise<Float32Array>;
  /**
   * Computes the normed state after the last token of each text, `[hidden]` each, from an
   * empty cache. Texts of similar length share passes.
   */
  states(
    texts: readonly (readonly number[])[],
    signal?: AbortSignal,
  ): Promise<Float32Array[]>;
  /**
   * Checks that the device can hold the keys and values of `sequences` sequences of
   * `context` tokens each.
   *
   * @throws {MemoryError} if it cannot.
   */
  requireRoom(sequences: number, context: number): void;
  /** The cache of a single prompt; undefined if every run begins with an empty one. */
  readonly kept: KeptCache | undefined;
  /** Whether texts can decode together while they come and go. */
  readonly hasRows: boolean;
  /**
   * Allocates memory for texts that decode together, coming and going.
   *
   * @throws {MemoryError} if the device has too little.
   */
  rows(size: RowsSize): Promise<Rows>;
  /**
   * How many tokens at the beginning of a prompt have their keys and values in the cache
   * since the last run of a single prompt; fewer than all.
   */
  cachedTokens(prompt: readonly number[]): number;
  /**
   * Samples up to `maxTokens` tokens after each prompt, with all sequences in lockstep.
   * Yields chunks of ids: one token of each sequence, then the next of each. The first
   * chunk holds only the first token of each. With `logprobs`, log probabilities come with
   * them. Where logits cannot be sampled from, there is a `FAULT` (lib/dispatch/sampling.ts)
   * instead of an id. Sequence `s` samples with the seed `(seed + s) mod 2³²`. Sequences do not end on their own: the consumer ignores
   * those that are finished, and leaves the loop to stop. A sequence that fills its context
   * keeps overwriting its last position, and its further tokens are meaningless.
   *
   * A single prompt may leave out its first `cached` tokens, at most as many as
   * `cachedTokens` says.
   *
   * With `masks`, by sequence, every chunk holds a single token of each. They are asked for
   * the next when the consumer is.
   *
   * The last `begun` tokens of each prompt are those of its reply so far; they count for
   * `maxTokens`, seeds and penalties.
   *
   * @throws {MemoryError} if several sequences do not fit (see `requireRoom`).
   */
  generate(
    prompts: readonly (readonly number[])[],
    sampling: Sampling,
    maxTokens: number,
    signal?: AbortSignal,
    cached?: number,
    masks?: readonly (MaskSource | undefined)[],
    begun?: number,
  ): AsyncGenerator<SampledTokens, void>;
}
