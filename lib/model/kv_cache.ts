/**
 * The KV cache: which positions a forward pass fills, how much memory keys and values
 * need, and the check that rejects a batch that does not fit before anything is
 * allocated.
 *
 * @module
 */
import { MOST_SPLITS } from "../dispatch/attention.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import { MemoryError } from "../errors.ts";
import {
  CACHE_BLOCK,
  cachedBytes,
  type CacheDtype,
} from "../formats/cached.ts";

/**
 * The tokens of one forward pass: `tokens` tokens of each of `sequences` sequences,
 * starting at sequence `first`. Row `r` is token `r % tokens` of sequence
 * `first + floor(r / tokens)`, at position `lengths[sequence] + r % tokens`.
 */
export interface CachePass {
  readonly first: number;
  readonly sequences: number;
  readonly tokens: number;
}

/** The pages of a cache: each holds `page` positions of any sequence. */
export interface Paging {
  /** Positions per page: on a GPU a power of 2, on the CPU a multiple of 12. */
  readonly page: number;
  /** The number of pages. */
  readonly pages: number;
}

/** The cache of a single sequence, whose keys and values can be saved and restored. */
export interface KeptCache {
  /** The type of keys and values. */
  readonly dtype: CacheDtype;
  /** The most tokens. */
  readonly context: number;
  /** As {@linkcode KvCache.heldOf} says. */
  heldOf(prompt: readonly number[]): number;
  /**
   * Keys and values of the first `tokens` positions: for each layer the keys, then the
   * values, as {@linkcode cachedRanges} says.
   */
  save(tokens: number): AsyncGenerator<Uint8Array<ArrayBuffer>, void>;
  /**
   * Replaces what the sequence holds by these tokens. `next` gives the parts that `save`
   * gave, in order, by their size in bytes; if it throws, the cache is empty.
   */
  restore(
    tokenIds: readonly number[],
    next: (bytes: number) => Promise<Uint8Array<ArrayBuffer>>,
  ): Promise<void>;
  /** Forgets what the sequence holds. */
  reset(): void;
}

/**
 * Keys and values of every layer, for one or more sequences. Each forward pass is
 * bracketed by {@linkcode begin} and {@linkcode advance}.
 */
export class KvCache<T> {
  readonly #lengths: Uint32Array<ArrayBuffer>;
  /** Positions per page; all of a sequence, unless the cache is paged. */
  readonly page: number;
  /** The pages of each sequence in order, `[sequences, ceil(context / page)]`. */
  readonly table: Uint32Array<ArrayBuffer>;
  /** The first tokens of sequence 0, as far as they are known. */
  #held: readonly number[] = [];
  #pass?: CachePass;
  #begun = false;

  constructor(
    /**
     * Per layer, keys (normed and rotated) and values, each
     * `[pages, kvHeads, page, headDim]`, as lib/formats/cached.ts says. Unless the cache is
     * paged, a sequence is a page.
     */
    readonly layers: readonly { k: T; v: T }[],
    readonly sequences: number,
    /** Maximum positions per sequence. */
    readonly context: number,
    paging?: Paging,
  ) {
    this.#lengths = new Uint32Array(sequences);
    this.page = paging?.page ?? context;
    const each = Math.ceil(context / this.page);
    this.table = Uint32Array.from(
      { length: sequences * each },
      (_, i) => paging ? 0 : i,
    );
  }

  /** The entries of {@linkcode table} per sequence. */
  get pagesEach(): number {
    return this.table.length / this.sequences;
  }

  /** Sets the first pages of a sequence; the others are page 0. */
  setPages(sequence: number, pages: ArrayLike<number>): void {
    const each = this.pagesEach, begin = sequence * each;
    this.table.fill(0, begin, begin + each).set(pages, begin);
  }

  /** Where the key and value of a position are: the row of a kv head, of `kvHeads`. */
  rowOf(
    sequence: number,
    head: number,
    kvHeads: number,
    position: number,
  ): number {
    const { page } = this, entry = Math.floor(position / page);
    const at = this.table[sequence * this.pagesEach + entry];
    return (at * kvHeads + head) * page + position % page;
  }

  /** Tokens already cached, per sequence. */
  get lengths(): Readonly<Uint32Array<ArrayBuffer>> {
    return this.#lengths;
  }

  /** The pass that operations are working on. */
  get pass(): CachePass {
    if (this.#pass) return this.#pass;
    throw new Error("Cannot use the KV cache: no pass has begun");
  }

  /**
   * Starts a forward pass. A pass that failed may be started again.
   *
   * @throws {Error} if a sequence has no room for its tokens.
   */
  begin(pass: CachePass): void {
    this.select(pass);
    const { first, sequences, tokens } = pass;
    for (let s = first; s < first + sequences; s++) {
      const cached = this.#lengths[s];
      if (cached + tokens > this.context) {
        throw new Error(
          `Cannot begin a pass: sequence ${s} has ${cached} tokens and adds ${tokens}, ` +
            `must be at most ${this.context} in total`,
        );
      }
    }
    this.#begun = true;
  }

  /** Ends a forward pass and counts its tokens as cached. */
  advance(): void {
    if (!this.#begun) {
      throw new Error("Cannot advance the KV cache: no pass has begun");
    }
    const { first, sequences, tokens } = this.pass;
    for (let s = first; s < first + sequences; s++) this.#lengths[s] += tokens;
    this.#pass = undefined;
    this.#begun = false;
    this.lengthsChanged();
  }

  /** Sets how many tokens are cached, per sequence; none by default. */
  reset(lengths: ArrayLike<number> = new Uint32Array(this.sequences)): void {
    this.#held = [];
    this.#lengths.set(lengths);
    this.#begun = false;
    this.lengthsChanged();
  }

  /**
   * Says which tokens the keys and values of sequence 0 belong to, so that a prompt that
   * begins with them can {@linkcode resume}. Forgotten when lengths are set.
   */
  hold(tokens: readonly number[]): void {
    // Steps past the end of a context overwrite the last position.
    this.#held = tokens.slice(0, this.context - 1);
  }

  /** The tokens given to {@linkcode hold}. */
  get held(): readonly number[] {
    return this.#held;
  }

  /**
   * How many tokens at the beginning of a prompt sequence 0 holds; not the last one, which
   * has to run for its logits.
   */
  heldOf(prompt: readonly number[]): number {
    const most = Math.min(this.#held.length, prompt.length - 1);
    let n = 0;
    while (n < most && this.#held[n] === prompt[n]) n++;
    return n;
  }

  /**
   * Continues after the first `length` tokens that sequence 0 holds.
   *
   * @throws {Error} if it holds fewer.
   */
  resume(length: number): void {
    if (length > this.#held.length) {
      throw new Error(
        `Cannot resume after ${length} tokens: the KV cache holds ${this.#held.length}`,
      );
    }
    this.#held = [];
    this.#lengths.fill(0)[0] = length;
    this.#begun = false;
    this.lengthsChanged();
  }

  /**
   * Moves full sequences back to their last position, so that they can stay in a batch
   * whose other sequences go on. Their tokens are meaningless from here on.
   */
  stepBackIfFull(): void {
    const last = this.context - 1;
    if (this.#lengths.every((n) => n <= last)) return;
    this.#lengths.forEach((n, s) => this.#lengths[s] = Math.min(n, last));
    this.lengthsChanged();
  }

  /** Sets `pass` without checking that its sequences have room. */
  protected select(pass: CachePass): void {
    const { first, sequences, tokens } = pass;
    const whole = [first, sequences, tokens].every(Number.isInteger) &&
      first >= 0 && sequences >= 1 && tokens >= 1;
    if (!whole || first + sequences > this.sequences) {
      throw new Error(
        `Cannot begin a pass of ${tokens} tokens × ${sequences} sequences, first ${first}: ` +
          `must be at least 1 × 1 and within ${this.sequences} sequences`,
      );
    }
    this.#pass = { first, sequences, tokens };
    this.#begun = false;
  }

  /** Called after the lengths change, for subclasses that keep a copy. */
  protected lengthsChanged(): void {}
}

/**
 * The size of a cache: keys and values of `sequences` × `context` positions in `dtype`.
 */
export interface CacheSize {
  sequences: number;
  context: number;
  dtype: CacheDtype;
}

/** Bytes of keys and values in all layers. */
export function cacheBytes(
  { numHiddenLayers, numKeyValueHeads, headDim }: Qwen3Config,
  sequences: number,
  context: number,
  dtype: CacheDtype,
): number {
  return 2 * numHiddenLayers * sequences * numKeyValueHeads * context *
    cachedBytes(dtype, headDim);
}

/** What takes less memory than a cache in `dtype`, to end an error with. */
export function smallerCache(
  config: Qwen3Config,
  sequences: number,
  context: number,
  dtype: CacheDtype,
): string {
  if (dtype === "q8_0" || config.headDim % CACHE_BLOCK !== 0) return "";
  const bytes = cacheBytes(config, sequences, context, "q8_0");
  return `; with kv q8_0 the cache takes ${bytes} bytes`;
}

/**
 * The number of positions that a cache needs for up to `maxTokens` tokens after each
 * prompt. The last token is not cached, and no sequence exceeds `context`.
 */
export function positionsOf(
  prompts: readonly (readonly number[])[],
  maxTokens: number,
  context: number,
): number {
  const longest = prompts.reduce((n, { length }) => Math.max(n, length), 0);
  return Math.min(context, longest + maxTokens - 1);
}

/**
 * Bytes of keys and values that texts share by default on a GPU with memory of its own.
 * WebGPU does not tell how much there is; 75,000 tokens of Qwen3-0.6B.
 */
const SHARED_BYTES = 8 * 2 ** 30;

/**
 * The positions that `slots` texts of up to `context` tokens share by default: enough for
 * all of them, or as many as fit, but for one at least.
 */
export function positionsFor(
  config: Qwen3Config,
  { slots, context, dtype }: {
    slots: number;
    context: number;
    dtype: CacheDtype;
  },
  { binding = Infinity, free = Infinity }: Omit<Room, "name">,
): number {
  const each = cacheBytes(config, 1, 1, dtype);
  const keys = each / (2 * config.numHiddenLayers);
  const fits = Math.min(
    Math.floor(Math.min(SHARED_BYTES, free / 4) / each),
    Math.floor(binding / keys) - 64, // a page is for padding
  );
  return Math.max(context, Math.min(slots * context, fits));
}

/** The known limits of a device's memory, in bytes. */
export interface Room {
  name: string;
  /** The largest binding, on a GPU. */
  binding?: number;
  /** Free main memory, if the cache goes there. */
  free?: number;
}

/** Formats a size as in `16 sequences × 4096 tokens × 2048 bytes`. */
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
  const smaller = smallerCache(config, sequences, context, dtype);
  if (keys > binding) {
    throw new MemoryError(
      `Cannot generate: one layer's keys of ${
        sizeText(size, keys)
      } are ${keys} bytes, ${name} binds at most ${binding}${smaller}`,
    );
  }
  // Scratch buffers: sampling's scores with their ids, and the sums of KV splits. Both
  // grow by doubling.
  const { vocabSize, numAttentionHeads, headDim } = config;
  const each = 4 *
    Math.max(2 * vocabSize, MOST_SPLITS * numAttentionHeads * headDim);
  const work = each * 2 ** Math.ceil(Math.log2(sequences));
  if (work > binding) {
    throw new MemoryError(
      `Cannot generate: scratch for ${sequences} sequences × ${each} bytes is ${work} bytes, rounded up to a power of 2, ${name} binds at most ${binding}`,
    );
  }
  if (all > free) {
    throw new MemoryError(
      `Cannot generate: keys and values of ${
        sizeText(size, all)
      } are ${all} bytes, ${free} bytes of main memory are free${smaller}`,
    );
  }
}
