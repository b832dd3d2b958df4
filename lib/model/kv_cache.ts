/**
 * What keys and values take of a device, and the refusal of a batch for which it
 * has no room, before anything is allocated.
 *
 * @module
 */
import { MOST_SPLITS } from "../dispatch/attention.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import { MemoryError } from "../errors.ts";

/** Keys and values of every layer, for one or more sequences. */
export interface KvCache<T> {
  /** Per layer, keys (normed and rotated) and values, each `[sequences, kvHeads, context, headDim]`. */
  readonly layers: readonly { k: T; v: T }[];
  /** Positions that a sequence has room for. */
  readonly context: number;
  /** Tokens already cached, per sequence. The caller advances it after a pass. */
  readonly lengths: Uint32Array;
  /**
   * Which sequences the rows of this pass belong to: row `r` is token
   * `r % tokens` of sequence `first + floor(r / tokens)`, at position
   * `lengths[sequence] + r % tokens`.
   */
  pass: { first: number; tokens: number };
}

/** Keys and values of `sequences` × `context` positions in `dtype`. */
export interface CacheSize {
  sequences: number;
  context: number;
  dtype: "f16" | "f32";
}

/** Bytes of keys and values, in every layer. */
export function cacheBytes(
  { numHiddenLayers, numKeyValueHeads, headDim }: Qwen3Config,
  sequences: number,
  context: number,
  dtype: "f16" | "f32",
): number {
  return 2 * numHiddenLayers * sequences * numKeyValueHeads * context *
    headDim * (dtype === "f16" ? 2 : 4);
}

/**
 * Positions that a cache needs for up to `maxTokens` tokens after each prompt: the
 * last token is not cached, and no sequence has more than `context`.
 */
export function positionsOf(
  prompts: readonly (readonly number[])[],
  maxTokens: number,
  context: number,
): number {
  const longest = prompts.reduce((n, { length }) => Math.max(n, length), 0);
  return Math.min(context, longest + maxTokens - 1);
}

/** What is known of a device's memory. */
export interface Room {
  name: string;
  /** Of one binding, on a GPU. */
  binding?: number;
  /** Free main memory, where the cache lies in it. */
  free?: number;
}

/** In words: `16 sequences × 4096 tokens × 2048 bytes`. */
export function sizeText(
  { sequences, context }: Pick<CacheSize, "sequences" | "context">,
  bytes: number,
): string {
  const each = bytes / sequences / context;
  return `${sequences} ${
    sequences === 1 ? "sequence" : "sequences"
  } × ${context} tokens × ${each} bytes`;
}

/** @throws {MemoryError} if the device cannot hold a batch of `size`. */
export function requireRoom(
  config: Qwen3Config,
  size: CacheSize,
  { name, binding = Infinity, free = Infinity }: Room,
): void {
  const { sequences, context, dtype } = size;
  const all = cacheBytes(config, sequences, context, dtype);
  const keys = all / (2 * config.numHiddenLayers);
  if (keys > binding) {
    throw new MemoryError(
      `Cannot generate: one layer's keys of ${
        sizeText(size, keys)
      } are ${keys} bytes, ${name} binds at most ${binding}`,
    );
  }
  // Scores with their ids in sampling, and sums of runs of keys; both grow by doubling.
  const { vocabSize, numAttentionHeads, headDim } = config;
  const each = 4 *
    Math.max(2 * vocabSize, MOST_SPLITS * numAttentionHeads * headDim);
  const work = each * 2 ** Math.ceil(Math.log2(sequences));
  if (work > binding) {
    throw new MemoryError(
      `Cannot generate: work space of ${sequences} sequences × ${each} bytes is ${work} bytes, rounded up to a power of 2, ${name} binds at most ${binding}`,
    );
  }
  if (all > free) {
    throw new MemoryError(
      `Cannot generate: keys and values of ${
        sizeText(size, all)
      } are ${all} bytes, ${free} of main memory are free`,
    );
  }
}
