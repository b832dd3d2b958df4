/**
 * Texts that decode together on the CPU, one step at a time.
 *
 * @module
 */
import { CPU_PASS_ROWS } from "../dispatch/pass_rows.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import { cachedParts } from "../formats/cached.ts";
import { bytesOf, type CpuTensor } from "../formats/tensor.ts";
import type { CachePass } from "../model/kv_cache.ts";
import {
  firstPages,
  type RowPart,
  type Rows,
  type RowsSize,
  type RowText,
} from "../model/rows.ts";
import {
  adjustsLogits,
  allowedNext,
  historyOf,
  type SampledTokens,
  sampleEach,
  validToken,
} from "../model/sampling.ts";
import { CHUNK_ROWS } from "./jobs.ts";
import type { CpuCacheDtype, CpuKvCache } from "./kv_cache.ts";
import type { CpuOps } from "./ops.ts";

/** Positions per page. Not measured: about as many as on a GPU. */
const PAGE = 4 * CHUNK_ROWS;

/** Runs tokens through the model; gives logits, or with `ends` states. */
export type Forward = (
  cache: CpuKvCache,
  pass: CachePass,
  tokens: ArrayLike<number>,
  options: { ends?: ArrayLike<number> },
) => Promise<Float32Array>;

/** Texts that decode together on the CPU. */
export class CpuRows implements Rows {
  readonly page = PAGE;
  pages: number;
  readonly mostPages: number;
  readonly context: number;
  readonly firstSteps = 1;
  readonly compiles = false;
  readonly preparedMs = 0;
  #cache: CpuKvCache;
  readonly #slots: number;
  #taken: SampledTokens[] = [];

  constructor(
    readonly ops: CpuOps,
    readonly config: Qwen3Config,
    readonly forward: Forward,
    readonly dtype: CpuCacheDtype,
    size: RowsSize & { positions: number },
    /** @throws {MemoryError} if there is no room for so many positions. */
    readonly requireRoom: (positions: number) => void,
  ) {
    this.#slots = size.slots;
    this.context = size.context;
    const { pages, mostPages } = firstPages(size, PAGE);
    this.mostPages = mostPages;
    requireRoom(pages * PAGE);
    this.pages = pages;
    this.#cache = this.#created(this.pages);
  }

  #created(pages: number): CpuKvCache {
    const paging = { page: PAGE, pages };
    const { ops, context, dtype } = this;
    return ops.createCache(this.#slots + 1, context, dtype, { paging });
  }

  grow(pages: number): Promise<void> {
    this.requireRoom(pages * PAGE);
    const before = this.#cache, after = this.#created(pages);
    const { numKeyValueHeads, headDim } = this.config;
    const partsOf = (pages: number) =>
      cachedParts(this.dtype, headDim, pages * numKeyValueHeads * PAGE);
    const from = partsOf(this.pages), to = partsOf(pages);
    const copy = (old: CpuTensor, grown: CpuTensor) =>
      from.forEach(({ at, bytes }, i) =>
        bytesOf(grown).set(bytesOf(old).subarray(at, at + bytes), to[i].at)
      );
    before.layers.forEach(({ k, v }, i) => {
      copy(k, after.layers[i].k);
      copy(v, after.layers[i].v);
    });
    before[Symbol.dispose]();
    this.#cache = after;
    this.pages = pages;
    return Promise.resolve();
  }

  nextSteps(): number {
    return 1;
  }

  rowsFor(count: number): number {
    return count;
  }

  /** Puts lengths and pages of texts into the cache's sequences from `first` on. */
  #place(first: number, texts: readonly [RowText, length: number][]): void {
    const lengths = this.#cache.lengths.slice();
    texts.forEach(([{ pages }, length], i) => {
      lengths[first + i] = length;
      this.#cache.setPages(first + i, pages);
    });
    this.#cache.reset(lengths);
  }

  async read(parts: readonly RowPart[]): Promise<void> {
    for (const part of parts) await this.#read(part);
  }

  async #read({ text, begin, end }: RowPart): Promise<void> {
    const first = this.#slots;
    for (let at = begin; at < end; at += CPU_PASS_ROWS) {
      const ids = text.tokens.slice(at, Math.min(end, at + CPU_PASS_ROWS));
      this.#place(first, [[text, at]]);
      const pass = { first, sequences: 1, tokens: ids.length };
      await this.forward(this.#cache, pass, ids, { ends: [ids.length - 1] });
    }
  }

  async decode(
    texts: readonly (RowText | undefined)[],
    steps: number,
  ): Promise<number> {
    const all = texts.filter((text) => text !== undefined);
    const { vocabSize: vocab } = this.config;
    if (all.length < texts.length || steps !== 1) {
      throw new Error("Cannot decode: on the CPU, every row has one step");
    }
    this.#place(0, all.map((text) => [text, text.tokens.length - 1]));
    const pass = { first: 0, sequences: all.length, tokens: 1 };
    const last = all.map(({ tokens }) => validToken(tokens.at(-1)!));
    const logits = await this.forward(this.#cache, pass, last, {});
    this.#taken = all.map((text, s) =>
      this.#sample(text, logits.subarray(s * vocab, (s + 1) * vocab))
    );
    return 1;
  }

  /** Samples the next token of a text. */
  #sample(
    { tokens, promptTokens, sampling, mask }: RowText,
    logits: Float32Array,
  ): SampledTokens {
    const { vocabSize: vocab } = this.config;
    const prompt = tokens.slice(0, promptTokens);
    const generated = tokens.slice(promptTokens);
    const history = adjustsLogits(sampling)
      ? historyOf(vocab, prompt, generated)
      : new Uint32Array();
    return sampleEach(
      [logits],
      sampling,
      [history],
      generated.length,
      allowedNext([mask], vocab),
    );
  }

  take(): Promise<readonly SampledTokens[]> {
    return Promise.resolve(this.#taken);
  }

  widen(): Promise<void> {
    throw new Error("Cannot widen: the cache holds any value");
  }

  [Symbol.dispose](): void {
    this.#cache[Symbol.dispose]();
  }
}
