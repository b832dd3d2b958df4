/**
 * The pages of a KV cache: who holds them, and which hold the keys and values of a known
 * prefix. Pure bookkeeping; no device.
 *
 * A page holds the keys and values of a block of `size` tokens. They depend on every token
 * before them too, so a full page is found by its tokens and by the page before it. Pages
 * without holders stay findable until they are needed for something else, the least
 * recently used first.
 *
 * @module
 */
import { fmix32 } from "../fmix32.ts";

/** A full page that can be found by its tokens. */
interface Block {
  readonly page: number;
  readonly hash: number;
  /** The block before it; undefined for the first block of a text. */
  readonly before: Block | undefined;
  readonly tokens: readonly number[];
}

/** How many pages there are of each kind. */
export interface PageStats {
  /** All pages that sequences may use. */
  readonly total: number;
  /** Held by at least one sequence. */
  readonly held: number;
  /** Held by none, with keys and values that can be found. */
  readonly cached: number;
  /** Held by none and empty. */
  readonly free: number;
}

/** Hands out the pages of a KV cache. */
export class Pages {
  /** How many sequences hold each page. */
  readonly #holders: number[];
  readonly #free: number[];
  /** Findable pages without holders, the least recently used first. */
  readonly #idle = new Map<number, Block>();
  /** What each findable page holds. */
  readonly #blocks = new Map<number, Block>();
  readonly #byHash = new Map<number, Block[]>();

  /**
   * @param count how many pages there are
   * @param size tokens per page
   */
  constructor(count: number, readonly size: number) {
    this.#holders = [];
    this.#free = [];
    this.grow(count);
  }

  /** How many pages there are. */
  get count(): number {
    return this.#holders.length;
  }

  /** Adds empty pages, so that there are `count`. */
  grow(count: number): void {
    const before = this.count;
    for (let page = before; page < count; page++) this.#holders.push(0);
    // Those that are free already go first.
    const more = Array.from(
      { length: count - before },
      (_, i) => count - 1 - i,
    );
    this.#free.unshift(...more);
  }

  /** How many tokens at the beginning of `tokens` are in pages that can be found. */
  known(tokens: ArrayLike<number>, limit = tokens.length): number {
    let before: Block | undefined, end = 0;
    for (; end + this.size <= limit; end += this.size) {
      before = this.#known(tokens, end + this.size, before);
      if (!before) break;
    }
    return end;
  }

  /** Pages that can be allocated. */
  get available(): number {
    return this.#free.length + this.#idle.size;
  }

  /** How many pages there are of each kind. */
  get stats(): PageStats {
    const free = this.#free.length, cached = this.#idle.size;
    return {
      total: this.count,
      held: this.count - free - cached,
      cached,
      free,
    };
  }

  /** The number of pages that `tokens` tokens take. */
  pagesFor(tokens: number): number {
    return Math.ceil(tokens / this.size);
  }

  /**
   * Finds the pages of the longest known prefix of `tokens`, in whole pages of at most
   * `limit` tokens, and holds them.
   */
  find(tokens: ArrayLike<number>, limit = tokens.length): number[] {
    const found: number[] = [];
    let before: Block | undefined;
    for (let end = this.size; end <= limit; end += this.size) {
      before = this.#known(tokens, end, before);
      if (!before) break;
      this.#hold(before.page);
      found.push(before.page);
    }
    return found;
  }

  /**
   * Allocates `count` pages with unknown contents and holds them; undefined, and no page,
   * if there are not as many.
   */
  allocate(count: number): number[] | undefined {
    if (count > this.available) return undefined;
    return Array.from({ length: count }, () => {
      const page = this.#free.pop() ?? this.#evict();
      this.#holders[page] = 1;
      return page;
    });
  }

  /**
   * Makes pages findable: `pages[i]` holds the keys and values of block `i` of `tokens`,
   * for each whole block. A block that another page has already stays there.
   */
  publish(tokens: ArrayLike<number>, pages: readonly number[]): void {
    let before: Block | undefined;
    const blocks = Math.min(
      pages.length,
      Math.floor(tokens.length / this.size),
    );
    for (let i = 0; i < blocks; i++) {
      const end = (i + 1) * this.size, page = pages[i];
      let block = this.#known(tokens, end, before);
      if (!block) {
        // It may still be known as what followed a page that is gone.
        const old = this.#blocks.get(page);
        if (old) this.#forget(old);
        block = this.#add(page, tokens, end, before);
      }
      before = block;
    }
  }

  /** Stops holding pages of a sequence, given in their order. */
  release(pages: readonly number[]): void {
    // The last first: a page is of no use without those before it, so it must go earlier.
    for (const page of pages.toReversed()) {
      if (this.#holders[page] === 0) {
        throw new Error(`Cannot release page ${page}: nobody holds it`);
      }
      if (--this.#holders[page] > 0) continue;
      const block = this.#blocks.get(page);
      if (block) this.#idle.set(page, block);
      else this.#free.push(page);
    }
  }

  /** How many sequences hold a page. */
  holders(page: number): number {
    return this.#holders[page];
  }

  /** Forgets all contents, e.g. because the cache's memory was replaced. */
  clear(): void {
    this.#free.push(...this.#idle.keys());
    this.#idle.clear();
    this.#blocks.clear();
    this.#byHash.clear();
  }

  #hold(page: number): void {
    if (this.#holders[page]++ === 0) this.#idle.delete(page);
  }

  /** Takes the least recently used page without holders. */
  #evict(): number {
    const [[page, block]] = this.#idle;
    this.#idle.delete(page);
    this.#forget(block);
    return page;
  }

  #forget(block: Block): void {
    this.#blocks.delete(block.page);
    const same = this.#byHash.get(block.hash)!.filter((one) => one !== block);
    if (same.length > 0) this.#byHash.set(block.hash, same);
    else this.#byHash.delete(block.hash);
  }

  #hash(tokens: ArrayLike<number>, end: number, before?: Block): number {
    let hash = before?.hash ?? 0x9e3779b9;
    for (let i = end - this.size; i < end; i++) {
      hash = fmix32(hash ^ fmix32(tokens[i] + 0x7f4a7c15));
    }
    return hash;
  }

  /** The findable block that ends at `end` and follows `before`. */
  #known(
    tokens: ArrayLike<number>,
    end: number,
    before: Block | undefined,
  ): Block | undefined {
    return this.#byHash.get(this.#hash(tokens, end, before))?.find((block) =>
      block.before === before &&
      block.tokens.every((id, i) => id === tokens[end - this.size + i])
    );
  }

  #add(
    page: number,
    tokens: ArrayLike<number>,
    end: number,
    before: Block | undefined,
  ): Block {
    const hash = this.#hash(tokens, end, before);
    const own = Array.from(
      { length: this.size },
      (_, i) => tokens[end - this.size + i],
    );
    const block = { page, hash, before, tokens: own };
    this.#blocks.set(page, block);
    this.#byHash.set(hash, [...this.#byHash.get(hash) ?? [], block]);
    return block;
  }
}
