/**
 * The decode loop on the GPU. It never waits for a token on the host: sampling writes
 * each token where the next step reads it, and the host reads a ring of tokens once per
 * chunk of steps.
 *
 * @module
 */
import { type Sampling, seenBits } from "../model/sampling.ts";
import { Plan } from "../webgpu/plan.ts";
import type { Tensor } from "../webgpu/tensor.ts";
import type { ReadWatcher } from "./ring_reader.ts";
import { addSampling } from "./sample.ts";
import type { GpuSequences, Pass } from "./sequences.ts";

/**
 * Steps between two readbacks, a chunk. The first chunk is small, so that text appears
 * at once; each is twice the one before, up to a largest size, which is smaller where a
 * readback does not sleep (bench/log.md, "Chunks of steps" and "Steps in pieces").
 */
const FIRST_CHUNK = { hardware: 2, software: 1 };
const LARGEST_CHUNK = { atOnce: 32, sleeping: 64 };
/** Chunks stop growing once one takes longer than this, so that text keeps streaming. */
const LONG_CHUNK_MS = 50;
/**
 * Steps that are encoded and submitted together. A readback returns when all submitted
 * work is done, and the device idles until the next piece arrives, so that piece is
 * already encoded. The rest of the chunk, and the first piece of the next one, are
 * encoded while the device works. As long as encoding a step is faster than running it
 * (on an H100 it takes 0.6 to 0.9 of that time), the host stays ahead. Larger pieces
 * delay the start after a readback; each piece costs 0.02 ms between passes
 * (bench/log.md, "Steps in pieces").
 */
const PIECE = 3;

/** Observes a decode loop; times are `performance.now()`. */
export interface LoopWatcher extends ReadWatcher {
  /** Makes every chunk this many steps. */
  chunk?: number;
  /** Where the pass of the next `steps` steps of a chunk of `chunk` writes its timestamps. */
  timestamps(
    steps: number,
    chunk: number,
  ): GPUComputePassTimestampWrites | undefined;
  /** Reports the end of something that began at `began`. */
  did(what: "encode" | "submit" | "wait" | "readback", began: number): void;
}

/** How a {@linkcode DecodeLoop} runs. */
export interface DecodeOptions {
  sampling: Sampling;
  /** Tokens that were sampled before. */
  step: number;
  /** Tokens to sample, per sequence. */
  maxTokens: number;
  /** Prompt tokens that go through the model at once. */
  prefillRows: number;
  signal?: AbortSignal;
  watcher?: LoopWatcher;
}

/** Prefills all sequences of a batch, then decodes them in step; for one use. */
export class DecodeLoop implements Disposable {
  readonly #own = new DisposableStack();
  /** Last position of a sequence: one that is full stays there while others go on. */
  readonly #last: number;
  /** The forward pass of a step. */
  #decode!: Pass;
  /** Samples from the logits of a step. */
  readonly #sample: Plan;
  /** Tokens in the cache, of the longest sequence, before the next step to encode. */
  #length = 0;
  /** Tokens per sequence that are sampled, or will be by what is planned. */
  #planned = 1;
  /** Steps of the largest chunk allowed at present. */
  #size: number;
  /** Steps of the chunk whose first piece was encoded last. */
  #chunk = 0;
  /** That piece, until it is submitted. */
  #piece?: GPUCommandBuffer;

  constructor(
    readonly batch: GpuSequences,
    readonly options: DecodeOptions,
  ) {
    const { gpu } = batch.ops, { watcher } = options;
    this.#last = batch.cache.context - 1;
    this.#sample = this.#own.use(new Plan(gpu));
    this.#size = watcher?.chunk ??
      FIRST_CHUNK[gpu.software ? "software" : "hardware"];
  }

  /**
   * Submits the prompts and the sampling of their first tokens. The device starts at
   * once; everything else is prepared while it works.
   */
  prefill(texts: readonly (readonly number[])[]): void {
    const { batch, options, batch: { cache, state, reader } } = this;
    const { ops: { gpu, config } } = batch, { sampling, signal } = options;
    const logits = batch.prefillAll(texts, options.prefillRows, signal);
    texts.forEach((ids, s) => {
      const seen = seenBits(config.vocabSize, ids);
      state.seen.write(s * seen.byteLength, seen);
    });
    state.step.write(0, new Uint32Array(cache.sequences).fill(options.step));
    this.#addFirstSampling(logits);
    reader.drop();
    const encoder = gpu.device.createCommandEncoder();
    gpu.device.queue.submit([reader.copy(encoder, cache.flags)]);
    // Sampling counted its tokens as cached, but only the next step caches them.
    const lengths = cache.lengths.map((n) => Math.min(n, this.#last));
    state.lengths.write(0, lengths);
    this.#length = Math.max(...lengths); // from here on the host counts along

    this.#decode = batch.decode;
    const { plan, logits: next } = this.#decode;
    plan.seal();
    const longest = { longest: this.#last };
    this.#own.use(addSampling(this.#sample, next, sampling, state, longest));
    this.#sample.seal();
  }

  #addFirstSampling(logits: Tensor): void {
    const { batch: { ops: { gpu }, state }, options: { sampling } } = this;
    const plan = this.#own.use(new Plan(gpu));
    this.#own.use(addSampling(plan, logits, sampling, state));
    plan.run();
  }

  /** Yields the first token of each sequence, then chunk after chunk of tokens. */
  async *tokens(): AsyncGenerator<readonly number[], void> {
    const { batch: { reader, ops: { gpu } }, options } = this;
    const { step, signal, watcher } = options;
    this.#encodeNextChunk();
    let began = performance.now(), from = step;
    for (let steps = 1; steps > 0;) {
      // This call blocks until the submitted work is done; its promise may take 10 ms more.
      const arriving = reader.read(from, from + steps, watcher);
      if (this.#piece) this.#submit(this.#piece);
      const now = performance.now();
      this.#grow(now - began);
      began = now;
      const running = this.#chunk;
      // The consumer may be slow, so the device gets its work first; but the first token
      // does not wait for that.
      const first = from === step;
      if (!first) this.#continue();
      const ids = await arriving;
      gpu.check();
      from += steps;
      yield ids;
      if (first) this.#continue();
      await reader.rest();
      signal?.throwIfAborted();
      steps = running;
    }
  }

  /** Doubles the size of chunks unless the last one took long. */
  #grow(ms: number): void {
    const { batch: { ops: { gpu } }, options: { watcher } } = this;
    if (watcher?.chunk || ms >= LONG_CHUNK_MS) return;
    const largest = LARGEST_CHUNK[gpu.readsAtOnce ? "atOnce" : "sleeping"];
    this.#size = Math.min(largest, 2 * this.#size);
  }

  /** Submits the rest of the running chunk, and encodes the first piece of the next. */
  #continue(): void {
    for (let at = PIECE; at < this.#chunk; at += PIECE) {
      this.#submit(this.#encode(at));
    }
    this.#encodeNextChunk();
  }

  #encodeNextChunk(): void {
    const left = this.options.maxTokens - this.#planned;
    this.#chunk = Math.min(this.#size, left);
    this.#planned += this.#chunk;
    this.#piece = this.#chunk > 0 ? this.#encode(0) : undefined;
  }

  /** The piece of the chunk that begins at its step `at`. */
  #encode(at: number): GPUCommandBuffer {
    const { batch, options: { watcher } } = this, chunk = this.#chunk;
    const { reader, cache, ops: { gpu } } = batch;
    const began = performance.now();
    const encoder = gpu.device.createCommandEncoder();
    const steps = Math.min(PIECE, chunk - at);
    const timestampWrites = watcher?.timestamps(steps, chunk);
    const pass = encoder.beginComputePass({ timestampWrites });
    for (let i = 0; i < steps; i++) {
      this.#decode.plan.encode(pass, { length: this.#length });
      this.#sample.encode(pass);
      this.#length = Math.min(this.#length + 1, this.#last);
    }
    pass.end();
    const commands = at + steps === chunk
      ? reader.copy(encoder, cache.flags)
      : encoder.finish();
    watcher?.did("encode", began);
    return commands;
  }

  #submit(commands: GPUCommandBuffer): void {
    const began = performance.now();
    this.batch.ops.gpu.device.queue.submit([commands]);
    this.options.watcher?.did("submit", began);
  }

  [Symbol.dispose](): void {
    this.#own[Symbol.dispose]();
  }
}
