/**
 * Requests that share a model: they join and leave one batch between decode steps.
 *
 * @module
 */
import { turn, turns } from "../dispatch/rests.ts";
import { MemoryError } from "../errors.ts";
import { type GenerateOptions, Run, type RunParts } from "../generate.ts";
import {
  pagesOf,
  roomOf,
  type Rows,
  type RowsRoom,
  type RowText,
} from "../model/rows.ts";
import {
  faultText,
  type SampledTokens,
  type Sampling,
  type TokenMask,
  validToken,
} from "../model/sampling.ts";
import type { Prompt } from "../text/prompt.ts";
import type { Chat, ChatSettings } from "./chat.ts";
import { Pages, type PageStats } from "./pages.ts";
import { type Entry, Scheduler } from "./scheduler.ts";

/** What an engine does and did. */
export interface EngineStats {
  /** Requests that have a slot. */
  readonly running: number;
  /** Requests that wait for one. */
  readonly waiting: number;
  /** The most requests that run at a time. */
  readonly slots: number;
  /** Pages of the KV cache. */
  readonly pages: PageStats;
  /** Tokens per page. */
  readonly pageTokens: number;
  /** Prompt tokens of all requests that gave a token. */
  readonly promptTokens: number;
  /** Those of them whose keys and values earlier requests had left. */
  readonly cachedTokens: number;
  /** Tokens generated. */
  readonly tokens: number;
}

/** A request as the model checked it. */
export interface Asked {
  readonly tokens: readonly number[];
  /** How many of them are the prompt's; by default all. */
  readonly promptTokens?: number;
  readonly maxTokens: number;
  readonly sampling: Sampling;
  readonly mask?: TokenMask;
  /** Whether keys and values of earlier requests may be used. */
  readonly reuse: boolean;
  readonly eosTokenIds: readonly number[];
  readonly signal?: AbortSignal;
}

/** How the tokens of a request are computed. */
export type Started = Pick<RunParts, "start" | "cachedTokens">;

/** What an engine needs from its model. */
export interface EngineParts {
  readonly rows: Rows;
  readonly slots: number;
  /** Makes a run whose tokens `start` gives. */
  prepare(
    prompt: Prompt,
    options: GenerateOptions,
    start: (asked: Asked) => Started,
  ): RunParts;
  /** Begins a conversation whose replies run as `start` says. */
  chat(settings: ChatSettings, start: (asked: Asked) => Started): Chat;
  /** Does something while nothing else uses the device. */
  exclusive<R>(work: () => Promise<R>): Promise<R>;
}

/**
 * A reader that is this many tokens behind loses its slot until it has caught up, and goes
 * on at half as many. Not measured: some seconds of one reply on a fast GPU.
 */
const MOST_UNREAD = 512;

/**
 * The most steps together while requests wait for a slot, or one has a mask and takes one of
 * them. Not measured: replies of 100 tokens then leave their slot unused for 4 % of them.
 */
const FEW_STEPS = 8;

/**
 * Prompt tokens between two chunks of decode steps: at first, at most, at least, and how
 * long they may take beside other requests, and without. Not measured.
 */
const READING = { first: 512, most: 2048, least: 64, ms: 150, aloneMs: 1000 };

/**
 * Of requests that warm an engine up: tokens of long and of short prompts, which other kernels
 * read, and steps, of which the first are submitted one by one.
 */
const WARM = { long: 300, short: 40, steps: 4 };

/** A signal that is not aborted. */
const NEVER = new AbortController().signal;

/** Tokens of a request, and whether they are its last. */
interface Taken {
  readonly request: Request;
  readonly ids: SampledTokens;
  readonly ends: boolean;
}

/** A request in progress: what the consumer of its tokens sees. */
class Request implements RowText {
  entry?: Entry;
  /** Tokens that were not consumed yet. */
  readonly #chunks: SampledTokens[] = [];
  /** Whether all its tokens were given. */
  ended = false;
  readonly mask?: TokenMask;
  #error?: { reason: unknown };
  #wake?: () => void;

  constructor(readonly asked: Asked) {
    const { mask } = asked;
    if (!mask) return;
    // A mask that throws ends its own request only.
    const guarded = <R>(call: () => R): R | undefined => {
      try {
        return this.failed ? undefined : call();
      } catch (reason) {
        this.fail(reason);
      }
    };
    this.mask = {
      fill: (bits) => guarded(() => mask.fill(bits)) ?? false,
      accept: (id) => guarded(() => mask.accept(id)),
    };
  }

  /** Whether it ended with an error. */
  get failed(): boolean {
    return this.#error !== undefined;
  }

  get tokens(): readonly number[] {
    return this.entry!.tokens;
  }

  get pages(): readonly number[] {
    return this.entry!.pages;
  }

  get promptTokens(): number {
    return this.entry!.promptTokens;
  }

  get sampling(): Sampling {
    return this.asked.sampling;
  }

  fail(reason: unknown): void {
    this.#error ??= { reason };
    this.#wake?.();
  }

  give(tokenIds: SampledTokens): void {
    this.#chunks.push(tokenIds);
    this.#wake?.();
  }

  /** The number of tokens that were not consumed yet. */
  get unread(): number {
    return this.#chunks.reduce((sum, { length }) => sum + length, 0);
  }

  /** The next tokens; undefined at the end. */
  async next(): Promise<SampledTokens | undefined> {
    while (this.#chunks.length === 0 && !this.ended && !this.#error) {
      await new Promise<void>((resolve) => this.#wake = resolve);
    }
    if (this.#error) throw this.#error.reason;
    return this.#chunks.shift();
  }
}

/**
 * Requests that share a model, made by {@linkcode Qwen3.engine}. Each is answered as if it
 * ran alone; together they take far less time than one after another. What a prompt shares
 * with earlier ones is not read again.
 *
 * ```ts
 * import { loadQwen3 } from "../../mod.ts";
 *
 * using qwen = await loadQwen3();
 * using engine = await qwen.engine({ slots: 4 });
 * const replies = await Promise.all(
 *   ["Once upon a time", "A dog"].map(async (prompt) =>
 *     await engine.submit(prompt, { maxTokens: 8 })
 *   ),
 * );
 * for (const { text } of replies) console.log(text);
 * ```
 */
export class Engine implements Disposable {
  readonly #parts: EngineParts;
  readonly #pages: Pages;
  readonly #scheduler: Scheduler;
  readonly #requests = new Map<Entry, Request>();
  /** Requests that ended for their consumer. */
  readonly #gone = new Set<Request>();
  #running = false;
  /** Whether a request came since the last step began. */
  #hasNews = false;
  #disposed?: Error;
  /** Steps together, by the rows of the pass. */
  readonly #steps = new Map<number, number>();
  #reading = READING.first;
  #promptTokens = 0;
  #cachedTokens = 0;
  #tokens = 0;
  /** Tokens that were not given to their requests yet. */
  #taken: Taken[] = [];
  /** Wakes the loop while everybody is paused. */
  #wake?: () => void;
  /** Up to how many pages the cache may grow. */
  #mostPages: number;
  /** Why it grows no further. */
  #full?: MemoryError;

  /** @ignore Made by {@linkcode Qwen3.engine}. */
  constructor(parts: EngineParts) {
    const { rows, slots } = this.#parts = parts;
    this.#mostPages = rows.mostPages;
    this.#pages = new Pages(rows.pages, rows.page);
    this.#scheduler = new Scheduler({
      pages: this.#pages,
      slots,
      context: rows.context,
      mostPages: rows.mostPages,
      rowsFor: (count) => rows.rowsFor(count),
    });
  }

  /** Whether there is something to compute. */
  get isBusy(): boolean {
    const { running, waiting } = this.#scheduler.counts;
    return running + waiting > 0;
  }

  /** Whether there is no request, not even one that is paused. */
  get isEmpty(): boolean {
    return this.#requests.size === 0 && !this.isBusy;
  }

  /** How many tokens of a prompt a request would find in the cache. */
  cachedTokens(tokens: readonly number[]): number {
    return this.#pages.known(tokens, tokens.length - 1);
  }

  /**
   * @ignore Whether the cache has room for texts of so many positions each, or is as large as
   * it may be.
   */
  hasRoom(positions: readonly number[]): boolean {
    return this.#pagesOf(positions) <= this.#parts.rows.pages;
  }

  /**
   * @ignore Lets the cache grow until it {@linkcode hasRoom}; only while nothing computes.
   *
   * @throws {MemoryError} if the device has too little memory.
   */
  async reserve(positions: readonly number[]): Promise<void> {
    if (this.hasRoom(positions)) return;
    await this.#addPages(this.#pagesOf(positions), roomOf(positions));
  }

  #pagesOf(positions: readonly number[]): number {
    return Math.min(this.#mostPages, pagesOf(positions, this.#pages.size));
  }

  /** What it does now, and sums over all requests. */
  get stats(): EngineStats {
    return {
      ...this.#scheduler.counts,
      slots: this.#parts.slots,
      pages: this.#pages.stats,
      pageTokens: this.#pages.size,
      promptTokens: this.#promptTokens,
      cachedTokens: this.#cachedTokens,
      tokens: this.#tokens,
    };
  }

  /**
   * Generates text after a prompt, as {@linkcode Qwen3.generate} does. The request waits for
   * a slot from the moment its run is awaited or iterated over; it frees the slot when the
   * run ends, its consumer leaves it, or its signal is aborted.
   *
   * @throws {OptionError} if an option is unknown or has a wrong value.
   * @throws {Error} if the prompt is empty or leaves no room for a reply in the context, or
   * the engine or its model was disposed.
   */
  submit(prompt: Prompt, options: GenerateOptions = {}): Run {
    if (this.#disposed) throw this.#disposed;
    return new Run(this.#parts.prepare(prompt, options, this.start));
  }

  /**
   * Begins a conversation, as {@linkcode Qwen3.chat} does. Its replies are requests, so that
   * several conversations go on at a time and none takes what another has cached; files of
   * it have no keys and values.
   *
   * @throws {OptionError} if an option is unknown or has a wrong value.
   * @throws {Error} if the checkpoint has no tokenizer or no chat template, or the engine or
   * its model was disposed.
   */
  chat(settings: ChatSettings = {}): Chat {
    if (this.#disposed) throw this.#disposed;
    return this.#parts.chat(settings, this.start);
  }

  /**
   * Answers small requests of its own, 1, 2, 4 … up to all slots at a time, so that the first
   * ones of others do not wait for a compiler, which on a GPU may take seconds. Where nothing
   * has to be compiled, does nothing.
   *
   * @throws the reason of `signal` if it is aborted.
   */
  async warmUp({ signal }: { signal?: AbortSignal } = {}): Promise<void> {
    const { rows, slots } = this.#parts;
    if (!rows.compiles) return;
    let texts = 0;
    const answer = async (count: number, tokens: number) => {
      const length = Math.max(1, Math.min(tokens, rows.context - WARM.steps));
      await Promise.all(Array.from({ length: count }, async (_, request) => {
        // Different texts, so that none is found in the cache.
        const digits = [texts % 97, Math.floor(texts++ / 97)];
        const prompt = Array.from({ length }, (_, i) => digits[i] ?? i % 97);
        const sampling = request % 2 ? { temperature: 0 } : {};
        const options = { maxTokens: WARM.steps, ignoreEos: true, signal };
        await this.submit(prompt, { ...options, ...sampling });
      }));
    };
    await answer(1, WARM.long);
    for (let count = 1; count < slots; count *= 2) {
      await answer(count, WARM.short);
    }
    await answer(slots, WARM.short);
  }

  /** @ignore How a request runs. */
  readonly start = (asked: Asked): Started => {
    const request = new Request(asked);
    return {
      start: () => ({
        signal: asked.signal ?? NEVER,
        [Symbol.asyncIterator]: () => this.#iterate(request),
      }),
      cachedTokens: () => request.entry?.found ?? 0,
    };
  };

  async *#iterate(request: Request): AsyncGenerator<SampledTokens, void> {
    const { signal } = request.asked;
    const abort = () => {
      request.fail(signal!.reason);
      // Its consumer may never ask again.
      if (this.#requests.has(request.entry!)) this.#gone.add(request);
      this.#wake?.();
    };
    signal?.addEventListener("abort", abort);
    try {
      if (this.#disposed) throw this.#disposed;
      signal?.throwIfAborted();
      const entry = request.entry = this.#scheduler.add(request.asked);
      this.#requests.set(entry, request);
      this.#hasNews = true;
      this.#wake?.();
      this.#run();
      for (;;) {
        const ids = await request.next();
        if (!ids) return;
        yield ids;
        if (entry.state === "paused" && request.unread === 0) {
          this.#scheduler.resume(entry);
          this.#wake?.();
        }
      }
    } finally {
      signal?.removeEventListener("abort", abort);
      this.#gone.add(request);
      this.#wake?.();
    }
  }

  /** Runs until no request is left, unless it does already. */
  async #run(): Promise<void> {
    if (this.#running) return;
    this.#running = true;
    await turns(1); // those that come at the same time begin together
    try {
      while (this.#requests.size > 0) {
        await this.#parts.exclusive(() => this.#step());
        if (this.isBusy) continue;
        this.#give();
        if (this.#requests.size === 0) return;
        if (this.#gone.size > 0) continue; // somebody left during the step
        await new Promise<void>((resolve) => this.#wake = resolve); // all are paused
      }
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#running = false;
    }
  }

  /** Ends all requests with an error. */
  #fail(reason: unknown): void {
    this.#give();
    for (const [entry, request] of this.#requests) {
      this.#scheduler.remove(entry);
      request.ended = true;
      request.fail(reason);
    }
    this.#requests.clear();
    this.#gone.clear();
  }

  /** Reads some of the prompts that wait, and decodes a few steps of the others. */
  async #step(): Promise<void> {
    if (this.#disposed) throw this.#disposed;
    for (const { entry } of this.#gone) if (entry) this.#leave(entry);
    this.#gone.clear();
    const { rows } = this.#parts, began = performance.now();
    const { preparedMs: before } = rows;
    const took = () => performance.now() - began - (rows.preparedMs - before);
    const steps = this.#stepsNext();
    await this.#makeRoom(steps);
    this.#hasNews = false;
    const step = this.#scheduler.next({
      steps,
      first: rows.firstSteps,
      reading: this.#reading,
    });
    await rows.read(step.readings.map(({ entry, begin, end }) => ({
      text: this.#requests.get(entry)!,
      ...{ begin, end },
    })));
    if (step.steps === 0) {
      this.#give();
      await turn();
      if (step.readings.length > 0) this.#adaptReading(took());
      return;
    }
    const texts = step.rows.map((entry) => entry && this.#requests.get(entry));
    const taken = await rows.decode(texts, step.steps, this.#goesOn);
    this.#give(); // while the device works
    const ids = await rows.take();
    if (!ids) {
      this.#scheduler.restart();
      return await rows.widen();
    }
    const ms = took();
    if (step.readings.length > 0) this.#adaptReading(ms);
    else if (taken === this.#steps.get(texts.length)) {
      this.#steps.set(texts.length, rows.nextSteps(taken, ms));
    }
    texts.forEach((request, row) => request && this.#accept(request, ids[row]));
  }

  /** How many steps to take together next, at most. */
  #stepsNext(): number {
    const { rows, slots } = this.#parts;
    const { running, waiting } = this.#scheduler.counts;
    const count = rows.rowsFor(Math.max(1, Math.min(running + waiting, slots)));
    const steps = this.#steps.get(count) ?? rows.firstSteps;
    this.#steps.set(count, steps);
    const isShort = running + waiting > slots ||
      running + waiting > 1 && this.#requests.values().some(({ mask }) => mask);
    return isShort ? Math.min(steps, FEW_STEPS) : steps;
  }

  /** Whether to go on with the chunk: no request has left, and none could join. */
  readonly #goesOn = (): boolean => {
    const { running } = this.#scheduler.counts;
    if (this.#hasNews && running < this.#parts.slots) return false;
    return !this.#requests.values().some((request) => this.#hasLeft(request));
  };

  /** Whether a request has a slot that it does not need. */
  #hasLeft(request: Request): boolean {
    return request.failed || this.#gone.has(request);
  }

  /** Lets the cache grow if requests need more pages than there are. */
  async #makeRoom(steps: number): Promise<void> {
    const { rows } = this.#parts, { pages } = rows;
    let most = Math.max(1, this.#scheduler.counts.waiting);
    // If there is no memory for all that wait, then perhaps for some.
    for (let grown = false; !grown && most >= 1; most = Math.floor(most / 2)) {
      const missing = this.#scheduler.missing(steps, most);
      if (missing === 0 || pages >= this.#mostPages) break;
      const wanted = pages + missing;
      for (const size of [2 * pages, Math.ceil(1.25 * pages), wanted]) {
        grown = size >= wanted && await this.#grow(size);
        if (grown) break;
      }
    }
    if (this.#full) this.#mostPages = rows.pages;
    if (!this.#full) return;
    for (const entry of this.#scheduler.tooLong) {
      this.#requests.get(entry)!.fail(this.#full);
      this.#leave(entry);
    }
  }

  /** As {@linkcode #addPages}; returns whether the device has memory for them. */
  async #grow(pages: number): Promise<boolean> {
    try {
      await this.#addPages(Math.min(this.#mostPages, pages));
      return true;
    } catch (error) {
      if (!(error instanceof MemoryError)) throw error;
      this.#full = error;
      return false;
    }
  }

  /** Adds pages to the cache, so that there are `pages`. */
  async #addPages(pages: number, asked?: RowsRoom): Promise<void> {
    const { rows } = this.#parts;
    await rows.grow(pages, asked);
    this.#pages.grow(rows.pages);
  }

  /** Adapts the size of the next read: others wait for it, and so does a cancelled request. */
  #adaptReading(ms: number): void {
    const { most, least } = READING;
    const limit = this.#requests.size > 1 ? READING.ms : READING.aloneMs;
    if (ms > limit) this.#reading = Math.max(least, this.#reading / 2);
    else if (ms < limit / 2) this.#reading = Math.min(most, 2 * this.#reading);
  }

  /** Takes the tokens of a row, up to the end of its text. */
  #accept(request: Request, ids: SampledTokens): void {
    const entry = request.entry!, { eosTokenIds } = request.asked;
    if (entry.state !== "decoding") return; // paused meanwhile
    if (this.#hasLeft(request)) return this.#leave(entry);
    const isFirst = entry.tokens.length === entry.promptTokens;
    const last = ids.findIndex((id) =>
      eosTokenIds.includes(id) || faultText(id) !== undefined
    );
    const left = entry.most - entry.tokens.length;
    const count = Math.min(last < 0 ? ids.length : last + 1, left);
    const taken = ids.slice(0, count), ends = last >= 0 || count === left;
    this.#scheduler.accept(entry, taken.map(validToken));
    for (const id of taken) {
      if (faultText(id) === undefined) request.mask?.accept(id);
    }
    this.#tokens += count;
    const logprobs = request.sampling.logprobs === undefined
      ? undefined
      : ids.logprobs;
    this.#taken.push({
      request,
      ids: Object.assign(taken, {
        ...logprobs && { logprobs: logprobs.slice(0, count) },
      }),
      ends,
    });
    if (ends) this.#leave(entry);
    if (!isFirst) return;
    this.#promptTokens += entry.promptTokens;
    this.#cachedTokens += entry.found!;
    this.#give(); // the first token does not wait for the next steps
  }

  /** Gives tokens to their requests. */
  #give(): void {
    for (const { request, ids, ends } of this.#taken.splice(0)) {
      request.ended = ends;
      request.give(ids);
      const { entry, unread } = request;
      if (!ends && unread > MOST_UNREAD) this.#scheduler.pause(entry!);
    }
  }

  #leave(entry: Entry): void {
    this.#scheduler.remove(entry);
    this.#requests.delete(entry);
  }

  /** Ends all requests, and frees the cache once nothing uses it. */
  [Symbol.dispose](): void {
    this.end(new Error("Cannot generate: the engine was disposed"));
  }

  /** @ignore Disposes it; its requests end with an error of the device. */
  end(reason: Error): void {
    if (this.#disposed) return;
    this.#disposed = reason;
    this.#fail(reason);
    this.#wake?.();
    const { rows, exclusive } = this.#parts;
    const free = () => Promise.resolve(rows[Symbol.dispose]());
    exclusive(free).catch(() => {}); // the model was disposed, and the cache with it
  }
}
