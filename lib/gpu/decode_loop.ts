/**
 * The decode loop on the GPU. It never waits for a token on the host: sampling writes
 * each token where the next step reads it, and the host reads a ring of tokens once per
 * chunk of steps (lib/dispatch/chunks.ts).
 *
 * @module
 */
import { firstChunk, nextChunk } from "../dispatch/chunks.ts";
import { dispatchWork } from "../dispatch/pass_rows.ts";
import { LONGEST_WAIT_MS } from "../dispatch/rests.ts";
import type { SamplingChoice } from "../dispatch/sampling.ts";
import {
  allowedNext,
  historyOf,
  type MaskSource,
  type SampledTokens,
  type Sampling,
} from "../model/sampling.ts";
import { compileAll, isCompiled } from "../webgpu/pipeline.ts";
import { type Dispatch, Plan } from "../webgpu/plan.ts";
import type { Tensor } from "../webgpu/tensor.ts";
import { OVERFLOW, type ReadWatcher, RingReader } from "./ring_reader.ts";
import { addSampling, readLogprobs } from "./sample.ts";
import type { GpuSequences, Pass } from "./sequences.ts";

/**
 * Steps encoded and submitted together (a piece). A readback returns when all submitted
 * work is done, and the device then idles until the next piece arrives, so that piece is
 * encoded in advance. The rest of the chunk and the first piece of the next one are
 * encoded while the device works. The host stays ahead as long as encoding a step takes
 * less time than running it (on an H100, 0.6 to 0.9 times as long). Larger pieces delay
 * the start after a readback; each piece costs 0.02 ms between passes (bench/log.md,
 * "Steps in pieces").
 */
const PIECE = 3;
/** Steps encoded before the first token is read: more would delay that. */
const FIRST_STEPS = 1;

/** Observes a decode loop; times are `performance.now()`. */
export interface LoopWatcher extends ReadWatcher {
  /** Fixes the length of every chunk, in steps. */
  chunk?: number;
  /**
   * Returns where the next pass writes its timestamps. It runs `steps` steps of a chunk of
   * `chunk` steps.
   */
  timestamps(
    steps: number,
    chunk: number,
  ): GPUComputePassTimestampWrites | undefined;
  /** Called when an activity that began at `began` ends. */
  did(what: "encode" | "submit" | "wait" | "readback", began: number): void;
}

/** How a {@linkcode DecodeLoop} runs. */
export interface DecodeOptions {
  sampling: Sampling;
  /** The dispatches that sample so. */
  choice: SamplingChoice;
  /** Tokens already sampled, per sequence. */
  step: number;
  /** Tokens to sample, per sequence. */
  maxTokens: number;
  /** Prompt tokens per forward pass. */
  prefillRows: number;
  /**
   * By sequence. If there is one, steps run one at a time: what it allows depends on the
   * token before, which the consumer accepts.
   */
  masks?: readonly (MaskSource | undefined)[];
  /** Prompt tokens that a single sequence holds. */
  cached: number;
  /** Resolves when workers no longer compile what a step needs. */
  later?: Promise<unknown>;
  signal?: AbortSignal;
  watcher?: LoopWatcher;
}

/** Prefills all sequences of a batch, then decodes them in lockstep. For a single use. */
export class DecodeLoop implements Disposable {
  readonly #own = new DisposableStack();
  /** Last position of a sequence; a full one stays there while others continue. */
  readonly #last: number;
  /** The forward pass of a step, once it is prepared. */
  #decode?: Pass;
  /** Samples from the logits of the prompts. */
  readonly #first: Plan;
  /** Samples from the logits of a step. */
  readonly #sample: Plan;
  /** Cached tokens of the longest sequence before the next step to be encoded. */
  #length = 0;
  /** Tokens per sequence that are sampled or planned. */
  #planned = 1;
  /** Current maximum size of a chunk, in steps. */
  #size: number;
  /** Steps in the chunk whose first piece was encoded most recently. */
  #chunk = 0;
  /** Whether steps run one at a time in slices, and there are no chunks. */
  #sliced = false;
  /** That piece, until it is submitted. */
  #piece?: GPUCommandBuffer[];
  /** The most steps it had: where the next piece begins. */
  #pieceSteps = 0;
  /** Reads log probabilities, if there are any. */
  readonly #logprobs?: RingReader;

  constructor(
    readonly batch: GpuSequences,
    readonly options: DecodeOptions,
  ) {
    const { gpu } = batch.ops, { watcher } = options;
    this.#last = batch.cache.context - 1;
    this.#first = this.#own.use(new Plan(gpu));
    this.#sample = this.#own.use(new Plan(gpu));
    this.#size = watcher?.chunk ?? firstChunk(gpu);
    if (options.sampling.logprobs === undefined) return;
    const { logprobs } = batch.state, [steps] = logprobs.shape;
    const ring = logprobs.view(steps, logprobs.bytes / (4 * steps));
    this.#logprobs = this.#own.use(new RingReader(gpu, ring));
  }

  /**
   * Submits the prompts and the sampling of their first tokens. The device starts
   * immediately; everything else that does not take long is prepared while it works.
   */
  async prefill(texts: readonly (readonly number[])[]): Promise<void> {
    const { batch, options, batch: { cache, state, reader } } = this;
    const { ops: { gpu, config } } = batch;
    const { sampling, step, prefillRows: rows, cached, signal } = options;
    const logits = await batch.prefillAll(texts, { rows, cached, signal });
    texts.forEach((ids, s) => {
      const own = { ...sampling, seed: (sampling.seed + s) >>> 0 };
      const begin = ids.length - step;
      const history = () =>
        historyOf(config.vocabSize, ids.slice(0, begin), ids.slice(begin));
      const masked = options.masks?.[s] !== undefined;
      state.set(s, own, history, { step, masked });
    });
    await this.#addSampling(this.#first, logits);
    this.#mask();
    this.#first.run();
    reader.drop();
    gpu.device.queue.submit(this.#copy(gpu.device.createCommandEncoder()));
    // Sampling counted its tokens as cached, but only the next step caches them.
    const lengths = cache.lengths.map((n) => Math.min(n, this.#last));
    state.lengths.write(0, lengths);
    this.#length = Math.max(...lengths); // from here on the host keeps count

    if (options.maxTokens === 1) return;
    const { plan } = await batch.recorded(batch.decodeShape, signal);
    // If a step has yet to be compiled, the first token does not wait for that.
    const isReady = plan.shaders.every((one) => isCompiled(gpu, one));
    if (isReady) await this.#prepare();
  }

  /** Compiles a step. */
  async #prepare(): Promise<void> {
    const { batch, batch: { ops: { gpu } }, options: { later, signal } } = this;
    const decode = await batch.recorded(batch.decodeShape, signal);
    const { shaders } = decode.plan;
    if (shaders.some((one) => !isCompiled(gpu, one))) await later;
    await compileAll(gpu, shaders, signal);
    decode.plan.seal();
    this.#decode = decode;
    this.#sliced = this.#isSlow || this.#isFirst;
    await this.#addSampling(this.#sample, decode.logits, this.#last);
    this.#sample.seal();
  }

  /** The dispatches of a step. */
  get #step(): Plan {
    return this.#decode!.plan;
  }

  async #addSampling(plan: Plan, logits: Tensor, longest?: number) {
    const { batch: { ops: { gpu }, state }, options } = this;
    const { choice, signal } = options;
    addSampling(plan, logits, choice, state, { longest });
    await compileAll(gpu, plan.shaders, signal);
  }

  /** Yields the first token of each sequence, then chunk after chunk of tokens. */
  async *tokens(): AsyncGenerator<SampledTokens, void> {
    const { batch: { reader, ops: { gpu } }, options } = this;
    const { step, signal } = options;
    if (this.#decode) this.#encodeNextChunk(FIRST_STEPS);
    if (gpu.readsApart) return yield* this.#tokensApart();
    let began = performance.now(), from = step;
    for (let steps = 1; steps > 0;) {
      // The call blocks until the submitted work is done; its promise may take 10 ms more.
      const called = performance.now();
      const arriving = this.#read(from, from + steps);
      this.#waited(steps, performance.now() - called);
      if (this.#piece) this.#submit(this.#piece);
      const now = performance.now();
      if (this.#decode) this.#grow(steps, now - began);
      began = now;
      let running = this.#chunk;
      // The consumer may be slow, so more work is submitted before tokens are yielded. The
      // first token does not wait for that.
      const first = from === step;
      if (!first) this.#continue();
      const ids = await arriving;
      gpu.check();
      from += steps;
      yield ids;
      if (first && this.#decode) this.#continue();
      await reader.rest();
      signal?.throwIfAborted();
      if (!this.#decode) {
        running = await this.#start();
        began = performance.now();
      }
      steps = running || await this.#slowStep();
    }
  }

  /**
   * {@linkcode tokens} where a readback does not wait for later work: the next chunk is
   * submitted before the last one is read, so the device never waits for the host. The
   * first token waits for one piece only.
   */
  async *#tokensApart(): AsyncGenerator<SampledTokens, void> {
    const { batch: { ops: { gpu }, paces }, options } = this;
    let began = performance.now(), from = options.step;
    for (let steps = 1; steps > 0;) {
      let running = this.#chunk;
      const first = from === options.step;
      if (this.#piece) this.#submit(this.#piece);
      if (!first && running) this.#continue();
      const ids = await this.#read(from, from + steps);
      gpu.check();
      paces.prompt.waited();
      paces.step.waited();
      const now = performance.now();
      if (this.#decode) this.#grow(steps, now - began);
      began = now;
      from += steps;
      yield ids;
      options.signal?.throwIfAborted();
      if (first && running) this.#continue();
      if (!this.#decode) {
        running = await this.#start();
        began = performance.now();
      }
      steps = running || await this.#slowStep();
    }
  }

  /** Prepares a step, if one follows, and submits the first chunk; returns the steps in it. */
  async #start(): Promise<number> {
    if (this.options.maxTokens === 1) return 0;
    await this.#prepare();
    this.#encodeNextChunk();
    const steps = this.#chunk;
    if (this.#piece) this.#submit(this.#piece);
    if (steps) this.#continue();
    return steps;
  }

  /** Updates the rate of steps after a wait that was too long. */
  #waited(steps: number, ms: number): void {
    const { prompt, step } = this.batch.paces;
    prompt.waited();
    step.waited();
    if (this.#planned > 1 && ms > LONGEST_WAIT_MS) {
      step.measured(steps * this.#stepWork, ms);
      this.#sliced ||= this.#isSlow;
    }
  }

  get #stepWork(): number {
    return this.#step.dispatches.reduce(
      (sum, dispatch) => sum + this.#workOf(dispatch),
      0,
    );
  }

  #workOf(dispatch: Dispatch): number {
    const pass = { begin: this.#length, tokens: 1 };
    return dispatchWork(dispatch, this.batch.paces.work, pass);
  }

  /** Whether the first step compiles shaders while the thread waits. */
  get #isFirst(): boolean {
    const { options: { watcher }, batch: { paces: { step } } } = this;
    return !watcher && step.isFirst(this.#step);
  }

  /** Whether a step blocks the thread too long if it is submitted at once. */
  get #isSlow(): boolean {
    const { step } = this.batch.paces;
    return !this.options.watcher && step.msOf(this.#stepWork) > LONGEST_WAIT_MS;
  }

  get #isMasked(): boolean {
    return this.options.masks?.some((mask) => mask) ?? false;
  }

  /** Writes which tokens may come next. */
  #mask(): void {
    const { options: { masks = [] }, batch: { state } } = this;
    allowedNext(masks, state.size.vocab).forEach((bits, s) => {
      if (masks[s]) state.allow(s, bits);
    });
  }

  /** Runs a step in slices; returns the number of steps, 0 if none is left. */
  async #slowStep(): Promise<number> {
    const { options: { maxTokens, signal }, batch } = this;
    if (this.#planned >= maxTokens) return 0;
    const { paces, ops: { gpu } } = batch;
    const state = { length: this.#length };
    await paces.step.run(
      this.#step,
      state,
      (dispatch) => this.#workOf(dispatch),
      signal,
    );
    this.#mask(); // while the device works
    this.#sample.run();
    gpu.device.queue.submit(this.#copy(gpu.device.createCommandEncoder()));
    this.#length = Math.min(this.#length + 1, this.#last);
    this.#planned++;
    this.#sliced = this.#isSlow;
    this.#encodeNextChunk();
    return 1;
  }

  /**
   * Chooses the size of the next chunks, unless the watcher fixes it, after `steps` steps took
   * `ms`; a prompt, at first, takes at least as long as a step.
   */
  #grow(steps: number, ms: number): void {
    const { batch: { ops: { gpu } }, options: { watcher } } = this;
    if (watcher?.chunk) return;
    this.#size = nextChunk(this.#size, ms / steps * this.#size, gpu);
  }

  /** Submits the rest of the running chunk, and encodes the first piece of the next. */
  #continue(): void {
    for (let at = this.#pieceSteps; at < this.#chunk; at += PIECE) {
      this.#submit(this.#encode(at, PIECE));
    }
    this.#encodeNextChunk();
  }

  /** Encodes the first piece of the next chunk, up to `most` steps. */
  #encodeNextChunk(most = PIECE): void {
    const left = this.options.maxTokens - this.#planned;
    const single = this.#sliced || this.#isMasked;
    this.#chunk = single ? 0 : Math.min(this.#size, left);
    this.#planned += this.#chunk;
    this.#pieceSteps = most;
    this.#piece = this.#chunk > 0 ? this.#encode(0, most) : undefined;
  }

  /** Encodes the piece of up to `most` steps that begins at step `at` of the chunk. */
  #encode(at: number, most: number): GPUCommandBuffer[] {
    const { batch, options: { watcher } } = this, chunk = this.#chunk;
    const { ops: { gpu } } = batch;
    const began = performance.now();
    const encoder = gpu.device.createCommandEncoder();
    const steps = Math.min(most, chunk - at);
    const timestampWrites = watcher?.timestamps(steps, chunk);
    const pass = encoder.beginComputePass({ timestampWrites });
    for (let i = 0; i < steps; i++) {
      this.#step.encode(pass, { length: this.#length });
      this.#sample.encode(pass);
      this.#length = Math.min(this.#length + 1, this.#last);
    }
    pass.end();
    const commands = at + steps === chunk
      ? this.#copy(encoder)
      : [encoder.finish()];
    watcher?.did("encode", began);
    return commands;
  }

  /** Finishes `encoder` with copies of what {@linkcode #read} reads. */
  #copy(encoder: GPUCommandEncoder): GPUCommandBuffer[] {
    const { reader, cache: { flags }, ops: { gpu } } = this.batch;
    const more = this.#logprobs &&
      [this.#logprobs.copy(gpu.device.createCommandEncoder(), flags)];
    return [reader.copy(encoder, flags), ...more ?? []];
  }

  /** Reads steps `from … to` from the oldest copy, or {@linkcode OVERFLOW}. */
  async #read(from: number, to: number): Promise<SampledTokens> {
    const { batch: { reader }, options: { watcher } } = this;
    const arriving = reader.read(from, to, watcher);
    const more = this.#logprobs?.read(from, to);
    const ids = await arriving, words = await more;
    if (ids === OVERFLOW || words === undefined) return ids;
    return Object.assign([...ids], { logprobs: readLogprobs(words) });
  }

  #submit(commands: GPUCommandBuffer[]): void {
    const began = performance.now();
    this.batch.ops.gpu.device.queue.submit(commands);
    this.options.watcher?.did("submit", began);
  }

  [Symbol.dispose](): void {
    this.#own[Symbol.dispose]();
  }
}
