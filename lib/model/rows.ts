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

/** Tokens `begin` to `end` of a text. */
export interface RowPart {
  /** The text. */
  readonly text: RowText;
  /** The first position. */
  readonly begin: number;
  /** The position after the last. */
  readonly end: number;
}

/** The size of {@linkcode Rows}. */
export interface RowsSize {
  /** The most texts at a time. */
  slots: number;
  /** The most positions of a text. */
  context: number;
  /** Positions that all texts share; by default as many as {@linkcode positionsFor}. */
  positions?: number;
  /** Texts to begin with room for, by their positions; room for all by default. */
  firstTexts?: readonly number[];
}

/** What errors say there is no memory for. */
export interface RowsRoom {
  /** Texts. */
  sequences: number;
  /** Positions of the longest. */
  context: number;
}

/**
 * Pages with room for texts of so many positions each: several that join at a time need one
 * more each (lib/engine/scheduler.ts).
 */
export function pagesOf(texts: readonly number[], page: number): number {
  const kept = texts.length > 1 ? 1 : 0;
  return texts.reduce((sum, one) => sum + Math.ceil(one / page) + kept, 0);
}

/** What texts of so many positions each ask for. */
export function roomOf(texts: readonly number[]): RowsRoom {
  const context = texts.reduce((a, b) => Math.max(a, b), 1);
  return { sequences: Math.max(1, texts.length), context };
}

/** The pages to begin with, and the most of them. */
export function firstPages(
  { positions, firstTexts }: Pick<RowsSize, "firstTexts"> & {
    positions: number;
  },
  page: number,
): { pages: number; mostPages: number } {
  const mostPages = Math.ceil(positions / page);
  const pages = firstTexts ? pagesOf(firstTexts, page) : mostPages;
  return { pages: Math.min(mostPages, pages), mostPages };
}

/** Texts that decode together. Allows one call at a time. */
export interface Rows extends Paging, Disposable {
  /** The most positions of a text. */
  readonly context: number;
  /** How many pages there may be. */
  readonly mostPages: number;
  /** The steps to begin with, of which tokens are taken together. */
  readonly firstSteps: number;
  /** Whether the first pass of each kind keeps everybody waiting for a compiler. */
  readonly compiles: boolean;
  /** Milliseconds spent so far on what is done once, such as compiling. */
  readonly preparedMs: number;
  /** The steps to go on with after `steps` took `ms` milliseconds. */
  nextSteps(steps: number, ms: number): number;
  /**
   * Adds pages, so that there are `pages`, at most {@linkcode mostPages}; the others keep
   * what they hold. Errors say what was `asked` for: by default a text of all pages.
   *
   * @throws {MemoryError} if the device has too little memory; the pages then stay.
   */
  grow(pages: number, asked?: RowsRoom): Promise<void>;
  /** The rows of a pass for `count` texts. */
  rowsFor(count: number): number;
  /**
   * Caches the keys and values of parts of texts. What comes later may continue what comes
   * earlier, in pages that they share.
   */
  read(parts: readonly RowPart[]): Promise<void>;
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
   * (lib/dispatch/sampling.ts) where logits cannot be sampled from; undefined if a key,
   * a value or a sum did not fit what holds it, so that nothing in the cache can be relied on.
   */
  take(): Promise<readonly SampledTokens[] | undefined>;
  /**
   * After {@linkcode take} gave undefined, replaces the cache with an empty f32 one, or empties
   * it and goes on with other kernels, as the case may be.
   *
   * @throws {MemoryError} if the device has too little memory; the cache then stays.
   */
  widen(): Promise<void>;
}
