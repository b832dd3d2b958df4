/**
 * Decides which sequences run: who joins, whose prompt is read next, who decodes, and who
 * makes room when pages run out. Pure bookkeeping; no device.
 *
 * Sequences are served in the order in which they came. Nobody overtakes a sequence that
 * waits for pages, and only later ones are sent back to waiting to make room, so the
 * earliest always goes on and everyone's turn comes.
 *
 * @module
 */
import type { Pages } from "./pages.ts";

/** A sequence, from its arrival to its end. */
export interface Entry {
  /** The prompt and the tokens after it so far. */
  readonly tokens: number[];
  readonly promptTokens: number;
  /** The number of tokens at which it is over, prompt included. */
  readonly most: number;
  /** Whether it may share pages with others. */
  readonly reuse: boolean;
  /** Its place in the order of arrival. */
  readonly order: number;
  /** Its pages, in the order of their positions. */
  pages: number[];
  /** Positions whose keys and values are there or on their way. */
  cached: number;
  /** Prompt tokens that it found in the cache when it first joined. */
  found?: number;
  /** Its row in decode passes; undefined unless it decodes. */
  row?: number;
  state: "waiting" | "reading" | "decoding" | "paused" | "over";
}

/** Tokens of a sequence to run through the model; only their keys and values are needed. */
export interface Reading {
  readonly entry: Entry;
  readonly begin: number;
  readonly end: number;
}

/** What to do next, in this order. */
export interface Step {
  readonly readings: readonly Reading[];
  /** What is in each row of the decode pass; empty if there is none. */
  readonly rows: readonly (Entry | undefined)[];
  /** Decode steps; 0 if no request is decoding. */
  readonly steps: number;
}

/** Limits of a {@linkcode Scheduler}. */
export interface SchedulerOptions {
  pages: Pages;
  /** The most sequences at a time. */
  slots: number;
  /** The most positions of a sequence. */
  context: number;
  /** The most pages that there will be; by default as many as there are. */
  mostPages?: number;
  /** The rows of the smallest pass for `count` sequences, at least one. */
  rowsFor: (count: number) => number;
}

/** How much to do at most in a step. */
export interface StepLimits {
  /** Decode steps. */
  steps: number;
  /** Decode steps if one of them gives the first token of a sequence. */
  first: number;
  /** Tokens to read before the others decode again. */
  reading: number;
}

/** Sequences that wait and sequences that run. */
export class Scheduler {
  readonly #waiting: Entry[] = [];
  /** In the order of arrival. */
  readonly #running: Entry[] = [];
  #rows: (Entry | undefined)[] = [];
  #arrived = 0;

  constructor(readonly options: SchedulerOptions) {
    const { pages, context, mostPages = pages.count } = options;
    if (mostPages < pages.pagesFor(context)) {
      throw new Error(
        `Cannot schedule: ${mostPages} pages of ${pages.size} tokens, one sequence may have ${context} tokens`,
      );
    }
  }

  /** The number of sequences that run and that wait. */
  get counts(): { running: number; waiting: number } {
    return { running: this.#running.length, waiting: this.#waiting.length };
  }

  /**
   * How many pages are missing for all that run, and for those that wait for a slot that is
   * free, up to `most` of them, to take `steps` steps.
   */
  missing(steps: number, most = Infinity): number {
    const { pages, slots } = this.options;
    const endOf = (entry: Entry) =>
      pages.pagesFor(Math.min(entry.tokens.length - 1 + steps, entry.most));
    let wanted = 0;
    for (const entry of this.#running) {
      wanted += Math.max(0, endOf(entry) - entry.pages.length);
    }
    const free = Math.min(most, Math.max(0, slots - this.#running.length));
    for (const entry of this.#waiting.slice(0, free)) {
      wanted += endOf(entry) + 1; // one is kept for each of the others
    }
    return Math.max(0, wanted - pages.available);
  }

  /** Sequences whose tokens are more than all pages hold. */
  get tooLong(): Entry[] {
    const { pages } = this.options;
    return [...this.#running, ...this.#waiting].filter(({ tokens, most }) =>
      pages.pagesFor(Math.min(tokens.length + 1, most)) > pages.count
    );
  }

  /**
   * Adds a sequence with its tokens so far, of which the first `promptTokens` are its
   * prompt, and of up to `maxTokens` more. Without `reuse` it looks for no pages that hold
   * its beginning.
   */
  add(
    { tokens, promptTokens = tokens.length, maxTokens, reuse = true }: {
      tokens: readonly number[];
      promptTokens?: number;
      maxTokens: number;
      reuse?: boolean;
    },
  ): Entry {
    const { context } = this.options;
    const entry: Entry = {
      tokens: [...tokens],
      promptTokens,
      most: Math.min(context, tokens.length + maxTokens),
      reuse,
      order: this.#arrived++,
      pages: [],
      cached: 0,
      state: "waiting",
    };
    this.#waiting.push(entry);
    return entry;
  }

  /** Ends a sequence, whatever it is doing; its pages stay findable. */
  remove(entry: Entry): void {
    if (entry.state === "over") return;
    this.#leave(entry);
    entry.state = "over";
  }

  /** Lets a sequence rest until {@linkcode resume}; its pages stay findable. */
  pause(entry: Entry): void {
    this.#leave(entry);
    entry.state = "paused";
  }

  /** Lets a sequence that was paused wait for its turn again. */
  resume(entry: Entry): void {
    if (entry.state !== "paused") return;
    entry.state = "waiting";
    insert(this.#waiting, entry);
  }

  /** Sends all running sequences back to waiting and forgets what the cache holds. */
  restart(): void {
    for (const entry of [...this.#running]) this.#sendBack(entry, false);
    this.options.pages.clear();
  }

  /** Notes tokens that a decoding sequence continued with. */
  accept(entry: Entry, tokenIds: readonly number[]): void {
    entry.tokens.push(...tokenIds);
    entry.cached += tokenIds.length;
  }

  /** Chooses what to do next. */
  next({ steps, first, reading }: StepLimits): Step {
    // Before anyone joins, so that pages that will be read stay with their sequence.
    this.#growAll(steps);
    const readings = this.#read(reading);
    const decoding = this.#running.filter(({ state }) => state === "decoding");
    for (const entry of decoding) this.#grow(entry, steps);
    const begins = decoding.some((entry) =>
      entry.tokens.length === entry.promptTokens
    );
    const most = begins ? Math.min(first, steps) : steps;
    this.#place(decoding.filter(({ row }) => row === undefined));
    this.#compact();
    const rows = [...this.#rows];
    while (rows.length < this.#rowsFor(this.#rows.length)) {
      rows.push(undefined);
    }
    return { readings, rows, steps: this.#stepsOf(decoding, most) };
  }

  #rowsFor(count: number): number {
    return count === 0 ? 0 : this.options.rowsFor(count);
  }

  /**
   * As many steps as everyone has pages for, and somebody needs; up to the next end if
   * others wait for it.
   */
  #stepsOf(decoding: readonly Entry[], steps: number): number {
    const waited = this.#waiting.length > 0;
    let needed = waited ? steps : 0, room = steps;
    for (const { most, tokens, pages, cached } of decoding) {
      const left = most - tokens.length;
      needed = waited ? Math.min(needed, left) : Math.max(needed, left);
      const end = pages.length * this.options.pages.size;
      if (end < most) room = Math.min(room, end - cached);
    }
    return decoding.length > 0 ? Math.min(needed, room) : 0;
  }

  /** Lets sequences join while there is room, and divides the tokens to read. */
  #read(left: number): Reading[] {
    const readings: Reading[] = [];
    for (const entry of this.#running) {
      left -= this.#readPart(entry, left, readings);
    }
    while (left > 0 && this.#waiting.length > 0) {
      const entry = this.#waiting[0];
      if (!this.#join(entry)) break;
      left -= this.#readPart(entry, left, readings);
    }
    return readings;
  }

  /** Reads up to `most` tokens of a sequence; the last one is left to its decode step. */
  #readPart(entry: Entry, most: number, readings: Reading[]): number {
    if (entry.state !== "reading") return 0;
    const begin = entry.cached, last = entry.tokens.length - 1;
    const end = Math.min(last, begin + most);
    if (end < last && most < this.options.pages.size) return 0;
    if (end > begin) {
      readings.push({ entry, begin, end });
      entry.cached = end;
      this.options.pages.publish(entry.tokens.slice(0, end), entry.pages);
    }
    if (end === last) entry.state = "decoding";
    return end - begin;
  }

  /** Gives the first waiting sequence pages and a place; returns whether there was room. */
  #join(entry: Entry): boolean {
    const { pages, slots } = this.options, { tokens } = entry;
    if (this.#running.length >= slots) return false;
    const found = pages.find(tokens, entry.reuse ? tokens.length - 1 : 0);
    const wanted = pages.pagesFor(tokens.length) - found.length;
    // A page for each of the others, so that none has to make room at once.
    const kept = this.#running.length;
    const more = pages.available < wanted + kept
      ? undefined
      : pages.allocate(wanted);
    if (!more) {
      pages.release(found);
      return false;
    }
    this.#waiting.shift();
    entry.pages = [...found, ...more];
    entry.cached = found.length * pages.size;
    entry.found ??= entry.cached;
    entry.state = "reading";
    insert(this.#running, entry);
    return true;
  }

  /** Gives decoding sequences the pages that they need, the earliest first. */
  #growAll(steps: number): void {
    for (const entry of [...this.#running]) {
      while (entry.state === "decoding" && !this.#grow(entry, steps)) {
        // Fewer steps first, then the latest makes room: itself, if it is the latest.
        if (this.#grow(entry, 1)) break;
        this.#sendBack(this.#running.at(-1)!);
      }
    }
  }

  #grow(entry: Entry, steps: number): boolean {
    const { pages } = this.options;
    const end = Math.min(entry.cached + steps, entry.most);
    const more = pages.pagesFor(end) - entry.pages.length;
    if (more <= 0) return true;
    const allocated = pages.allocate(more);
    entry.pages.push(...allocated ?? []);
    return allocated !== undefined;
  }

  /** Gives sequences the lowest rows that are free. */
  #place(entries: readonly Entry[]): void {
    let row = 0;
    for (const entry of entries) {
      while (this.#rows[row]) row++;
      this.#rows[row] = entry;
      entry.row = row;
    }
  }

  /** Moves sequences to lower rows if fewer rows then do. */
  #compact(): void {
    while (this.#rows.length > 0 && !this.#rows.at(-1)) this.#rows.pop();
    const count = this.#rows.reduce((n, entry) => n + (entry ? 1 : 0), 0);
    const most = this.#rowsFor(count);
    if (most === this.#rowsFor(this.#rows.length)) return;
    const moved = this.#rows.splice(most);
    this.#place(moved.filter((entry) => entry !== undefined));
  }

  #sendBack(entry: Entry, findable = true): void {
    this.#leave(entry, findable);
    entry.state = "waiting";
    insert(this.#waiting, entry);
  }

  /** Takes a sequence out of the lists and its row, and gives its pages back. */
  #leave(entry: Entry, findable = true): void {
    const { pages } = this.options;
    for (const list of [this.#running, this.#waiting]) {
      const at = list.indexOf(entry);
      if (at >= 0) list.splice(at, 1);
    }
    if (entry.row !== undefined) this.#rows[entry.row] = undefined;
    entry.row = undefined;
    if (findable) {
      pages.publish(entry.tokens.slice(0, entry.cached), entry.pages);
    }
    pages.release(entry.pages);
    entry.pages = [];
    entry.cached = 0;
  }
}

/** Inserts by order of arrival. */
function insert(list: Entry[], entry: Entry): void {
  const at = list.findLastIndex(({ order }) => order < entry.order);
  list.splice(at + 1, 0, entry);
}
