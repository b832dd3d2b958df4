/**
 * Texts that decode together on the GPU, each in a row of the pass. A pass is recorded once
 * for each number of rows: which texts they continue, at which positions and in which pages
 * lies in buffers, so texts come and go between passes.
 *
 * As in decode_loop.ts, tokens are sampled where the next step reads them, and the host
 * reads them once per several steps.
 *
 * @module
 */
import { LOGPROB_WORDS } from "../../kernels/sample_logprobs.ts";
import { firstChunk, nextChunk } from "../dispatch/chunks.ts";
import {
  choosePass,
  dispatchWork,
  paddedTo,
  readTogether,
} from "../dispatch/pass_rows.ts";
import { LONGEST_WAIT_MS, Rests, turns } from "../dispatch/rests.ts";
import { chooseSampling } from "../dispatch/sampling.ts";
import { DeviceError } from "../errors.ts";
import { cachedParts, type CacheDtype } from "../formats/cached.ts";
import type { Matrix } from "../formats/matrix.ts";
import type { Weights } from "../model/family.ts";
import type { CachePass } from "../model/kv_cache.ts";
import {
  firstPages,
  roomOf,
  type RowPart,
  type Rows,
  type RowsRoom,
  type RowsSize,
  type RowText,
} from "../model/rows.ts";
import {
  allowedNext,
  historyOf,
  type SampledTokens,
} from "../model/sampling.ts";
import { compileAll, type Shader } from "../webgpu/pipeline.ts";
import { type Dispatch, Plan } from "../webgpu/plan.ts";
import { Tensor } from "../webgpu/tensor.ts";
import { GpuKvCache, type LeftOverflow, leftOverflowed } from "./kv_cache.ts";
import type { GpuOps } from "./ops.ts";
import type { Paces } from "./paces.ts";
import { recordVerbs } from "./record.ts";
import { RingReader } from "./ring_reader.ts";
import { StepTime, type Submitted } from "./step_time.ts";
import {
  addSampling,
  readLogprobs,
  sampledRow,
  SamplerState,
} from "./sample.ts";

/** Positions per page. Not measured: texts share prefixes in whole pages. */
const PAGE = 32;

/** Steps whose tokens the ring holds; more than are started together. */
const RING = 256;

/** Staging buffers created in advance; see sequences.ts. */
const READBACKS = 32;

/** Steps encoded and submitted together; see decode_loop.ts. */
const PIECE = 3;

/** Steps that take longer are submitted one by one. Not measured. */
const LONG_STEP_MS = 3;

/**
 * How much work the device has before it gets more, so that little is left to do once
 * somebody leaves. Not measured: a timer may be late by a few milliseconds, and the time of
 * a step has a share of a readback, which takes up to 11.
 */
const AHEAD_MS = 16;

/**
 * How much work the device must have for the thread to wait for a timer, which may be late by
 * a few milliseconds. Not measured.
 */
const SPARE_MS = 5;

/**
 * Milliseconds without a timer after which the thread waits for one if it can, and after which
 * it does in any case. Turns of the event loop by messages run no sockets: requests and
 * replies of a server would wait for up to 61 of them (bench/log.md, "Requests that come
 * together").
 */
const TURN_MS = { soon: 8, most: 50 };

/** A recorded pass. */
interface Pass {
  readonly plan: Plan;
  /** u32 `[tokens]`, of a pass that reads. */
  readonly input: Tensor;
  /** Logits, of a decode step. */
  readonly result: Tensor;
  /** Of a decode step. */
  readonly time: StepTime;
}

/** The dispatches that sample some rows. */
interface Sampler {
  readonly plan: Plan;
  readonly logprobs: boolean;
}

/** A decode step with its sampling. */
interface Step {
  readonly pass: Pass;
  readonly sampler: Sampler;
}

/** Steps encoded in advance. */
interface Piece {
  readonly step: Step;
  readonly steps: number;
  readonly commands: GPUCommandBuffer[];
}

/** Steps that were submitted. */
interface Started {
  readonly step: Step;
  readonly pieces: Submitted[];
  /** The number of tokens each row had sampled before. */
  readonly begins: readonly number[];
  /** Rows that take the first step only. */
  readonly masked: ReadonlySet<number>;
  steps: number;
}

/** What a row was last told. */
interface Placed {
  readonly text: RowText;
  readonly pages: readonly number[];
  readonly count: number;
}

/** Texts that decode together on a GPU. */
export class GpuRows implements Rows {
  readonly page = PAGE;
  pages: number;
  readonly mostPages: number;
  readonly context: number;
  readonly #ops: GpuOps;
  readonly #slots: number;
  readonly #own = new DisposableStack();
  readonly #state: SamplerState;
  readonly #reader: RingReader;
  #cache: GpuKvCache;
  readonly #passes = new Map<string, Pass>();
  readonly #samplers = new Map<string, Sampler>();
  /** Reads log probabilities, once there are any. */
  #logprobs?: RingReader;
  #placed: (Placed | undefined)[] = [];
  /** Rows that were left out after a step. */
  #left: Iterable<number> = [];
  /** Whether prompts may still be running on the device ahead of the next steps. */
  #isBehind = false;
  #ahead?: Piece;
  #started?: Started;
  /** When a timer last fired. */
  #turned = 0;
  preparedMs = 0;
  /** Called when the cache was replaced by one of f32. */
  onWidened?: () => void;
  /** Called after what a matmul left did not fit; see {@linkcode GpuRunner.widen}. */
  onSeparated?: (what: LeftOverflow) => void;
  /** Compiles in several threads where that pays off; elsewhere asks for no shaders. */
  compileAhead?: (shaders: () => readonly Shader[]) => Promise<void>;
  /** Whether the shaders of steps of several texts were compiled ahead. */
  #prepared = false;
  /** Compiles shaders before their first use. */
  compile: (shaders: readonly Shader[]) => Promise<void> = (shaders) =>
    compileAll(this.#ops.gpu, shaders);
  /** Throws a MemoryError if there is no room for so many positions. */
  requireRoom: (positions: number, dtype: CacheDtype) => void = () => {};
  /** The longest text that was started, in cached positions after the last step. */
  #length = 0;

  private constructor(
    ops: GpuOps,
    readonly weights: Weights<Matrix<Tensor>>,
    readonly paces: Paces,
    readonly readRows: number,
    cache: GpuKvCache,
    { pages, mostPages }: { pages: number; mostPages: number },
  ) {
    const { gpu, config } = ops;
    this.#ops = ops;
    this.#cache = cache;
    this.pages = pages;
    this.mostPages = mostPages;
    this.context = cache.context;
    this.#slots = cache.sequences / 2;
    const size = {
      sequences: this.#slots,
      vocab: config.vocabSize,
      steps: RING,
    };
    this.#state = this.#own.use(
      new SamplerState(gpu, size, cache.lengthsOnDevice),
    );
    this.#reader = this.#own.use(new RingReader(gpu, this.#state.ring));
  }

  /**
   * Allocates a cache for texts of a model.
   *
   * @param readRows the most tokens of a pass that reads
   * @throws {MemoryError} if the device has no memory for it.
   */
  static async create(
    ops: GpuOps,
    weights: Weights<Matrix<Tensor>>,
    { dtype, paces, readRows, requireRoom, ...size }:
      & RowsSize
      & {
        positions: number;
        dtype: CacheDtype;
        paces: Paces;
        readRows: number;
        requireRoom: GpuRows["requireRoom"];
      },
  ): Promise<GpuRows> {
    const { slots, context, firstTexts } = size;
    const { pages, mostPages } = firstPages(size, PAGE);
    requireRoom(pages * PAGE, dtype);
    const most = 2 ** Math.ceil(Math.log2(slots)); // rows of the largest pass
    const asked = firstTexts && roomOf(firstTexts);
    const all = { slots: most, context, pages, dtype };
    const cache = await createCache(ops, all, asked);
    const made = new GpuRows(ops, weights, paces, readRows, cache, {
      pages,
      mostPages,
    });
    made.requireRoom = requireRoom;
    await made.#reader.prepare(READBACKS);
    return made;
  }

  /** A software renderer takes as long to compute as to compile. */
  get compiles(): boolean {
    return !this.#ops.gpu.software;
  }

  get firstSteps(): number {
    return firstChunk(this.#ops.gpu);
  }

  nextSteps(steps: number, ms: number): number {
    // The device stops for a readback here, even if it need not: who runs next depends on it.
    const { readsAtOnce, readsApart } = this.#ops.gpu;
    return nextChunk(steps, ms, {
      readsAtOnce: readsAtOnce || readsApart,
      shared: true,
    });
  }

  rowsFor(count: number): number {
    return 2 ** Math.ceil(Math.log2(count));
  }

  async read(parts: readonly RowPart[]): Promise<void> {
    const { paces: { work }, readRows } = this, { context } = this.#cache;
    const { software } = this.#ops.gpu;
    const how = { rows: readRows, room: context, page: PAGE, work, software };
    const ranges = parts.map(({ text: { pages }, begin, end }) => ({
      ...{ pages, begin, end },
    }));
    let at = 0;
    for (const { count, tokens } of readTogether(ranges, how)) {
      const some = parts.slice(at, at += count);
      if (count > 1) await this.#readSeveral(some, tokens);
      else await this.#readOne(some[0]);
    }
  }

  async #readOne({ text, begin, end }: RowPart): Promise<void> {
    const { paces, readRows } = this, { context } = this.#cache;
    const { gpu } = this.#ops;
    for (let at = begin; at < end;) {
      const left = end - at, place = { begin: at, left, room: context };
      const pass = choosePass(place, readRows, paces.work, gpu.software);
      at += pass.tokens;
      await this.#readSeveral(
        [{ text, begin: pass.begin, end: at }],
        pass.padded,
      );
    }
  }

  /** Reads parts of texts in one pass, each padded to so many tokens. */
  async #readSeveral(
    parts: readonly RowPart[],
    padded: number,
  ): Promise<void> {
    const cache = this.#cache, { pagesEach, sequences } = cache;
    const { paces } = this, first = this.#slots, { gpu } = this.#ops;
    const count = this.rowsFor(parts.length);
    const ids = new Uint32Array(count * padded);
    const lengths = new Uint32Array(count);
    for (let i = 0; i < count; i++) {
      const { text: { tokens, pages }, begin, end } = parts[i] ?? parts[0];
      ids.set(paddedTo(padded, tokens.slice(begin, end)), i * padded);
      const isPadding = i >= parts.length;
      cache.setPages(first + i, isPadding ? [] : pages.map(inCache));
      lengths[i] = isPadding ? 0 : begin;
    }
    const { plan, input } = await this.#recorded(first, count, padded);
    input.write(0, ids);
    const places = cache.placesOnDevice, table = first * pagesEach;
    places.write(4 * first, lengths);
    places.write(
      4 * (sequences + table),
      cache.table.subarray(table, table + count * pagesEach),
    );
    const begin = lengths.reduce((a, b) => Math.max(a, b));
    this.#isBehind = true;
    const work = { begin, tokens: count * padded };
    await paces.prompt.run(
      plan,
      { length: begin },
      (dispatch) => dispatchWork(dispatch, paces.work, work),
    );
    gpu.check();
  }

  async decode(
    texts: readonly (RowText | undefined)[],
    steps: number,
    goesOn: () => boolean = () => true,
  ): Promise<number> {
    const step = await this.#step(texts);
    for (const row of this.#left) this.#state.goOn(row);
    this.#left = [];
    this.#place(texts);
    this.#restrict(texts);
    const begins = texts.map((text) =>
      text ? text.tokens.length - text.promptTokens : 0
    );
    this.#length = texts.reduce(
      (most, text) => Math.max(most, text ? text.tokens.length - 1 : 0),
      0,
    );
    const masked = new Set(texts.flatMap((text, row) => text?.mask ? row : []));
    const most = texts.every((text) => !text || text.mask) ? 1 : steps;
    const started: Started = { step, begins, masked, steps: 0, pieces: [] };
    this.#started = started;
    if (this.#isSliced(step)) await this.#runSlices(started, most, goesOn);
    else await this.#runPieces(started, most, goesOn);
    return started.steps;
  }

  /** Submits steps in pieces, as far ahead of the device as necessary. */
  async #runPieces(
    started: Started,
    most: number,
    goesOn: () => boolean,
  ): Promise<void> {
    const { step } = started, ahead = this.#ahead;
    this.#ahead = undefined;
    let copied = false;
    const fits = ahead?.step === step && ahead.steps <= this.#first(started) &&
      ahead.steps <= most;
    if (fits) {
      this.#submit(ahead.commands);
      this.#advance(started, ahead.steps);
    }
    while (started.steps < most && !(await this.#isOver(started, goesOn))) {
      const left = most - started.steps;
      const count = Math.min(this.#first(started), left);
      copied = count === left;
      this.#submit(this.#encode(step, count, copied));
      this.#advance(started, count);
    }
    if (!copied) this.#submit(this.#copies(step));
  }

  /** Whether to submit no more steps; waits while the device has enough to do. */
  async #isOver(
    started: Started,
    goesOn: () => boolean,
  ): Promise<boolean> {
    if (started.steps === 0) return false;
    const left = this.#leftMs(started), now = performance.now();
    const since = now - this.#turned;
    const { soon, most } = TURN_MS;
    if (left > AHEAD_MS) await this.#sleep(left - AHEAD_MS);
    else if (since > (left > SPARE_MS ? soon : most)) await this.#sleep(0);
    else await turns(1);
    return !goesOn();
  }

  /** How long the device will work on what was submitted, as far as is known. */
  #leftMs({ step: { pass: { time } }, pieces }: Started): number {
    return time.left(pieces, performance.now());
  }

  /** Waits for a timer; not long, because how long the device works is a guess. */
  async #sleep(ms: number): Promise<void> {
    const most = Math.min(ms, LONGEST_WAIT_MS);
    await new Promise((resolve) => setTimeout(resolve, most));
    this.#turned = performance.now();
  }

  /** How many steps to submit together next. */
  #first({ step: { pass }, masked, steps }: Started): number {
    const isLong = pass.time.ms > LONG_STEP_MS;
    return isLong || steps === 0 && masked.size > 0 ? 1 : PIECE;
  }

  async take(): Promise<readonly SampledTokens[] | undefined> {
    const started = this.#started!, { step, steps, begins, masked } = started;
    const { gpu } = this.#ops;
    this.#started = undefined;
    await this.#reader.rest();
    // The device would wait for it otherwise: the call below returns when it is idle.
    if (!this.#isSliced(step)) {
      const count = this.#first({ ...started, steps: 0 });
      const commands = this.#encode(step, count, false);
      this.#ahead = { step, steps: count, commands };
    }
    const left = this.#leftMs(started);
    if (left > SPARE_MS) await this.#sleep(left - SPARE_MS);
    const called = performance.now();
    const arriving = this.#reader.readEach(begins, steps);
    // Elsewhere the call waits for the device, and its promise may take longer.
    if (gpu.readsApart) await arriving;
    this.#waited(started, called);
    const more = step.sampler.logprobs
      ? await this.#logprobs!.readEach(begins, steps, LOGPROB_WORDS)
      : undefined;
    const ids = await arriving;
    gpu.check();
    return ids?.map((row, i) => {
      const taken = masked.has(i) ? row.slice(0, 1) : row;
      const logprobs = more &&
        readLogprobs(more[i].slice(0, LOGPROB_WORDS * taken.length));
      return Object.assign(taken, logprobs && { logprobs });
    });
  }

  async widen(): Promise<void> {
    const { dtype, context, flags } = this.#cache, { pages } = this;
    const left = await leftOverflowed([flags]);
    if (left) {
      this.onSeparated?.(left);
      return this.#forget();
    }
    if (dtype === "f32") {
      throw new DeviceError(
        "Cannot continue: a key or value is not a finite f32, so the weights or the device are faulty",
      );
    }
    this.requireRoom(pages * PAGE, "f32");
    const size = { slots: this.#slots, context, pages, dtype: "f32" } as const;
    this.#use(await createCache(this.#ops, size));
    this.onWidened?.();
  }

  async grow(pages: number, asked?: RowsRoom): Promise<void> {
    const { dtype, context, layers, flags } = this.#cache;
    this.requireRoom(pages * PAGE, dtype);
    const size = { slots: this.#slots, context, pages, dtype };
    const cache = await createCache(this.#ops, size, asked);
    const { gpu: { device }, config } = this.#ops;
    const encoder = device.createCommandEncoder();
    const partsOf = (pages: number) => {
      const rows = (pages + 1) * config.numKeyValueHeads * PAGE;
      return cachedParts(dtype, config.headDim, rows);
    };
    const before = partsOf(this.pages), after = partsOf(pages);
    const copy = (from: Tensor, to: Tensor) =>
      before.forEach(({ at, bytes }, i) =>
        encoder.copyBufferToBuffer(
          from.buffer,
          at,
          to.buffer,
          after[i].at,
          bytes,
        )
      );
    layers.forEach(({ k, v }, i) => {
      copy(k, cache.layers[i].k);
      copy(v, cache.layers[i].v);
    });
    const { bytes } = flags;
    encoder.copyBufferToBuffer(flags.buffer, 0, cache.flags.buffer, 0, bytes);
    device.queue.submit([encoder.finish()]);
    this.#use(cache);
    this.pages = pages;
  }

  /** Goes on with another cache. */
  #use(cache: GpuKvCache): void {
    this.#forget();
    this.#cache[Symbol.dispose]();
    this.#cache = cache;
    this.#state.lengths = cache.lengthsOnDevice;
  }

  /** Tells the device what is in each row, if that is news. */
  #place(texts: readonly (RowText | undefined)[]): void {
    const known = this.#placed.length;
    let changed = texts.length !== known;
    this.#placed = texts.map((text, row): Placed | undefined => {
      const before = this.#placed[row];
      const same = row < known && text === before?.text &&
        text?.pages === before?.pages;
      if (same && text?.pages.length === before?.count) return before;
      changed = true;
      if (!text) {
        this.#state.idle(row);
        return undefined;
      }
      if (!same) this.#set(row, text);
      return { text, pages: text.pages, count: text.pages.length };
    });
    if (changed) this.#placeAll(texts);
  }

  /** Sets how a row is sampled. */
  #set(
    row: number,
    { tokens, promptTokens, sampling, mask }: RowText,
  ): void {
    const { vocabSize } = this.#ops.config;
    const history = () =>
      historyOf(
        vocabSize,
        tokens.slice(0, promptTokens),
        tokens.slice(promptTokens),
      );
    const step = tokens.length - promptTokens, masked = mask !== undefined;
    this.#state.set(row, sampling, history, { step, masked });
  }

  /** Writes lengths, pages and last tokens of all rows. */
  #placeAll(texts: readonly (RowText | undefined)[]): void {
    const cache = this.#cache, { pagesEach, sequences } = cache;
    const numbers = (of: (text: RowText) => number) =>
      Uint32Array.from(texts, (text) => text ? of(text) : 0);
    texts.forEach((text, row) =>
      cache.setPages(row, text ? text.pages.map(inCache) : [])
    );
    const places = new Uint32Array(sequences + texts.length * pagesEach);
    places.set(numbers(({ tokens }) => tokens.length - 1));
    places.set(cache.table.subarray(0, texts.length * pagesEach), sequences);
    cache.placesOnDevice.write(0, places);
    this.#state.tokens.write(0, numbers(({ tokens }) => tokens.at(-1)!));
  }

  /** Tells the device which tokens may come next. */
  #restrict(texts: readonly (RowText | undefined)[]): void {
    const masks = texts.map((text) => text?.mask);
    allowedNext(masks, this.#state.size.vocab).forEach((bits, row) => {
      if (masks[row]) this.#state.allow(row, bits);
    });
  }

  /** The recorded step of some rows. */
  async #step(texts: readonly (RowText | undefined)[]): Promise<Step> {
    if (texts.length > 1 && !this.#prepared) await this.#prepare();
    const pass = await this.#recorded(0, texts.length, 1);
    await this.#sealed(pass.plan);
    const sampler = await this.#sampler(texts, pass.result);
    const { step } = this.#ahead ?? {};
    const same = step?.pass === pass && step.sampler === sampler;
    return same ? step : { pass, sampler };
  }

  /** The dispatches that sample the rows. */
  async #sampler(
    texts: readonly (RowText | undefined)[],
    logits: Tensor,
  ): Promise<Sampler> {
    const all = texts.filter((text) => text !== undefined).map((text) =>
      sampledRow(text.sampling, text.mask !== undefined)
    );
    const choice = chooseSampling(all, logits.shape[1]);
    const { path, parts, adjusts, logprobs } = choice;
    const key = [texts.length, path, parts, adjusts, logprobs].join();
    const known = this.#samplers.get(key);
    if (known) return known;
    const { gpu } = this.#ops, state = this.#state;
    if (logprobs && !this.#logprobs) {
      const [steps] = state.ring.shape, { bytes } = state.logprobs;
      const ring = state.logprobs.view(steps, bytes / (4 * steps));
      this.#logprobs = this.#own.use(new RingReader(gpu, ring));
    }
    const plan = new Plan(gpu), longest = this.#cache.context - 1;
    addSampling(plan, logits, choice, state, { longest });
    const sampler = { plan, logprobs };
    this.#samplers.set(key, sampler);
    await this.#sealed(plan);
    return sampler;
  }

  async #sealed(plan: Plan): Promise<void> {
    if (plan.shaders.length === 0) return;
    const began = performance.now();
    await this.compile(plan.shaders);
    plan.seal();
    this.preparedMs += performance.now() - began;
  }

  /** The pass of a shape, recorded on first use; the event loop turns meanwhile. */
  async #recorded(
    first: number,
    sequences: number,
    tokens: number,
  ): Promise<Pass> {
    const key = keyOf({ first, sequences, tokens });
    const known = this.#passes.get(key);
    if (known) return known;
    const began = performance.now();
    using recording = this.#record({ first, sequences, tokens });
    const rests = new Rests();
    let verb = recording.next();
    for (; !verb.done; verb = recording.next()) await rests.rest();
    await this.compile(verb.value.plan.shaders);
    this.#passes.set(key, verb.value);
    this.preparedMs += performance.now() - began;
    return verb.value;
  }

  /**
   * Compiles what steps of any number of texts need: a batch grows through all sizes within
   * a moment, and this thread would compile one after another.
   */
  async #prepare(): Promise<void> {
    this.#prepared = true;
    const began = performance.now();
    await this.compileAhead?.(() => {
      const shaders: Shader[] = [];
      for (let sequences = 2; sequences <= this.#slots; sequences *= 2) {
        const pass = this.#recordedNow({ first: 0, sequences, tokens: 1 });
        shaders.push(...pass.plan.shaders);
      }
      return shaders;
    });
    this.preparedMs += performance.now() - began;
  }

  /** As {@linkcode #recorded}, without turns of the event loop. */
  #recordedNow(shape: CachePass): Pass {
    const key = keyOf(shape), known = this.#passes.get(key);
    if (known) return known;
    const recording = this.#record(shape);
    let verb = recording.next();
    while (!verb.done) verb = recording.next();
    this.#passes.set(key, verb.value);
    return verb.value;
  }

  /** Records a decode step, or a pass that reads, which needs no logits. */
  *#record(shape: CachePass): Generator<void, Pass> {
    const ops = this.#ops, { gpu } = ops, cache = this.#cache;
    const reads = shape.first === this.#slots;
    using unfinished = new DisposableStack();
    const literals = cache.literals(shape.tokens);
    const plan = unfinished.use(new Plan(gpu, literals));
    const owned = (label: string, data: Uint32Array<ArrayBuffer>) => {
      const { length } = data;
      const tensor = Tensor.create(gpu, "u32", [length], data, label);
      plan.own(tensor);
      return tensor;
    };
    const input = reads
      ? owned("prompt", new Uint32Array(shape.sequences * shape.tokens))
      : this.#state.tokens.rows(shape.sequences);
    const ends = reads
      ? owned("last row", Uint32Array.of(shape.tokens - 1))
      : undefined;
    const result = yield* recordVerbs(ops, {
      ...{ weights: this.weights, input, plan, cache, shape },
      wanted: { ends, states: reads },
    });
    unfinished.move();
    return { plan, input, result, time: new StepTime() };
  }

  get #stepAt() {
    return { begin: this.#length, tokens: 1 };
  }

  #workOf = (dispatch: Dispatch) =>
    dispatchWork(dispatch, this.paces.work, this.#stepAt);

  #stepWork({ pass: { plan } }: Step): number {
    return plan.dispatches.reduce((sum, one) => sum + this.#workOf(one), 0);
  }

  /** Whether a step would block the thread too long if it were submitted at once. */
  #isSliced(step: Step): boolean {
    const { step: pace } = this.paces;
    return pace.isFirst(step.pass.plan) ||
      pace.msOf(this.#stepWork(step)) > LONGEST_WAIT_MS;
  }

  async #runSlices(
    started: Started,
    most: number,
    goesOn: () => boolean,
  ): Promise<void> {
    const { step } = started;
    while (started.steps < most && (started.steps === 0 || goesOn())) {
      const state = { length: this.#length }, at = performance.now();
      await this.paces.step.run(step.pass.plan, state, this.#workOf);
      step.sampler.plan.run();
      this.#advance(started, 1, at);
    }
    this.#submit(this.#copies(step));
  }

  /** Notes how long steps took, of which the last wait began when it was `called`. */
  #waited({ step, steps, pieces }: Started, called: number): void {
    const { prompt, step: pace } = this.paces, now = performance.now();
    prompt.waited();
    pace.waited();
    const ms = now - called;
    if (ms > LONGEST_WAIT_MS) pace.measured(steps * this.#stepWork(step), ms);
    const behind = this.#isBehind;
    step.pass.time.arrived(pieces, { called, now, behind });
    this.#isBehind = false;
  }

  #encode(step: Step, steps: number, last: boolean): GPUCommandBuffer[] {
    const encoder = this.#ops.gpu.device.createCommandEncoder();
    const pass = encoder.beginComputePass(), longest = this.#cache.context - 1;
    for (let i = 0; i < steps; i++) {
      const length = Math.min(this.#length + i, longest);
      step.pass.plan.encode(pass, { length });
      step.sampler.plan.encode(pass);
    }
    pass.end();
    return last ? this.#copies(step, encoder) : [encoder.finish()];
  }

  /** Finishes `encoder` with copies of what {@linkcode take} reads. */
  #copies(
    { sampler }: Step,
    encoder = this.#ops.gpu.device.createCommandEncoder(),
  ): GPUCommandBuffer[] {
    const { device } = this.#ops.gpu, { flags } = this.#cache;
    const commands = [this.#reader.copy(encoder, flags)];
    if (sampler.logprobs) {
      const more = device.createCommandEncoder();
      commands.push(this.#logprobs!.copy(more, flags));
    }
    return commands;
  }

  /** Notes that steps were submitted, from when on. */
  #advance(started: Started, steps: number, at = performance.now()): void {
    this.#length = Math.min(this.#length + steps, this.#cache.context - 1);
    if (started.steps === 0) {
      for (const row of started.masked) this.#state.idle(row);
      this.#left = started.masked;
    }
    started.steps += steps;
    started.pieces.push({ at, steps });
  }

  #submit(commands: GPUCommandBuffer[]): void {
    this.#ops.gpu.device.queue.submit(commands);
  }

  /** Forgets everything that was recorded for the cache. */
  #forget(): void {
    this.#ahead = undefined;
    this.#started = undefined;
    this.#placed = [];
    this.#left = [];
    this.#reader.drop();
    this.#logprobs?.drop();
    for (const { plan } of this.#passes.values()) plan[Symbol.dispose]();
    for (const { plan } of this.#samplers.values()) plan[Symbol.dispose]();
    this.#passes.clear();
    this.#samplers.clear();
  }

  [Symbol.dispose](): void {
    this.#forget();
    this.#own[Symbol.dispose]();
    this.#cache[Symbol.dispose]();
  }
}

const keyOf = ({ first, sequences, tokens }: CachePass): string =>
  `${first} ${sequences} ${tokens}`;

/** Page 0 of the cache is that of rows without a text, and of padding. */
const inCache = (page: number): number => page + 1;

/** A cache of `slots` texts, and of as many that are being read. */
async function createCache(
  { gpu, config }: GpuOps,
  { slots, context, pages, dtype }: {
    slots: number;
    context: number;
    pages: number;
    dtype: CacheDtype;
  },
  asked?: RowsRoom,
): Promise<GpuKvCache> {
  const whole = Math.ceil(context / PAGE) * PAGE;
  const paging = { page: PAGE, pages: pages + 1 };
  const sequences = 2 * slots, options = { paging, asked };
  return await GpuKvCache.create(gpu, config, sequences, whole, dtype, options);
}
