/**
 * The interface of a device that continues several texts together, one token of each per
 * step. Between calls, rows may be given to other texts.
 *
 * @module
 */
import type { Paging } from "./kv_cache.ts";
import type { SampledTokens, Sampling, TokenMask } from "./sampling.ts";

/** A text that a row continues. The caller appends its tokens and pages. */
export interface RowText {
  /** The tokens so far; the last one's key and value are not cached yet. */
  readonly tokens: readonly number[];
  /** How many of them are the prompt's. */
  readonly promptTokens: number;
  /** The pages of its positions, in their order; as many as it needs next. */
  readonly pages: readonly number[];
  /** How its next tokens are sampled. */
  readonly sampling: Sampling;
  /** Restricts its next token; of several steps it takes the first. */
  readonly mask?: TokenMask;
}

/** The size of {@linkcode Rows}. */
export interface RowsSize {
  /** The most texts at a time. */
  slots: number;
  /** The most positions of a text. */
  context: number;
  /** Positions that all texts share; by default as many as {@linkcode positionsFor}. */
  positions?: number;
  /** How many of them to begin with; all by default. */
  firstPositions?: number;
}

/** Texts that decode together. Allows one call at a time. */
export interface Rows extends Paging, Disposable {
  /** The most positions of a text. */
  readonly context: number;
  /** How many pages there may be. */
  readonly mostPages: number;
  /** The steps to begin with, of which tokens are taken together. */
  readonly firstSteps: number;
  /** The steps to go on with after `steps` took `ms` milliseconds. */
  nextSteps(steps: number, ms: number): number;
  /**
   * Adds pages, so that there are `pages`, at most {@linkcode mostPages}; the others keep
   * what they hold.
   *
   * @throws {MemoryError} if the device has too little memory; the pages then stay.
   */
  grow(pages: number): Promise<void>;
  /** The rows of a pass for `count` texts. */
  rowsFor(count: number): number;
  /** Caches the keys and values of tokens `begin` to `end` of a text. */
  read(text: RowText, begin: number, end: number): Promise<void>;
  /**
   * Starts up to `steps` steps of the texts by row; there are {@linkcode rowsFor} rows. Stops
   * early when `goesOn` says so, and when all texts have a mask. Returns the steps that
   * were started.
   */
  decode(
    texts: readonly (RowText | undefined)[],
    steps: number,
    goesOn?: () => boolean,
  ): Promise<number>;
  /**
   * Waits for the steps that were started. Returns each row's tokens, a single one of a row
   * with a mask, and with a `FAULT`
   * (lib/dispatch/sampling.ts) where logits cannot be sampled from; undefined if a key or
   * value did not fit the cache's type, so that nothing in the cache can be relied on.
   */
  take(): Promise<readonly SampledTokens[] | undefined>;
  /**
   * Replaces the cache with an empty f32 one, after {@linkcode take} gave undefined.
   *
   * @throws {MemoryError} if the device has too little memory; the cache then stays.
   */
  widen(): Promise<void>;
}
