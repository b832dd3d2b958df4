/**
 * A model on the GPU. Prompts go through in chunks; the decode loop never leaves
 * the device: sampling writes each token where the next step reads it, and the
 * host reads a ring of tokens once per chunk of steps.
 *
 * @module
 */
import type { Matrix } from "../formats/matrix.ts";
import { positionsOf, requireRoom } from "../model/kv_cache.ts";
import { compileAhead } from "../webgpu/compile_ahead.ts";
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import { host } from "../host.ts";
import type { Choice } from "../dispatch/choice.ts";
import type { Gpu } from "../webgpu/device.ts";
import { GpuSequences, type Pass } from "./sequences.ts";
import { gpuStore, measureLargest } from "./store.ts";
import { GpuOps } from "./ops.ts";
import { Plan } from "../webgpu/plan.ts";
import type { Weights } from "../model/family.ts";
import { OVERFLOW, type ReadWatcher } from "./ring_reader.ts";
import type { Runner } from "../model/runner.ts";
import { addSampling } from "./sample.ts";
import { type Sampling, seenBits } from "../model/sampling.ts";
import type { Tensor } from "../webgpu/tensor.ts";
import { type LoadOptions, loadWeights } from "../model/weights.ts";

/** Prompt tokens that go through the model at once. */
const PREFILL_ROWS = 2048;
/**
 * Steps between two readbacks, a chunk: few at first, so that text flows at once, then
 * twice as many each time, fewer altogether where a readback does not sleep.
 */
const FIRST_CHUNK = { hardware: 2, software: 1 };
const LARGEST_CHUNK = { atOnce: 32, sleeping: 64 };
/**
 * Steps that are encoded and submitted together. A readback returns when all that was
 * submitted is done, and until the next piece comes the device idles: that piece waits
 * encoded. The rest of the chunk, and the next chunk's first piece, are encoded while
 * the device works; as long as a step is encoded sooner than it runs (on an H100 in 0.6
 * to 0.9 of that time), the device gets further and further behind. Larger pieces make
 * it wait longer after a readback; each costs 0.02 ms between passes.
 */
const PIECE = 3;
/** After a chunk that took longer, the next is no larger: text should flow. */
const LONG_CHUNK_MS = 50;

/** How a {@linkcode GpuRunner} is loaded. */
export interface GpuRunnerOptions extends LoadOptions {
  context: number;
  cacheDtype: "f16" | "f32";
  /** Products of many rows may be computed in f16, summed in f32. */
  f16Products: boolean;
}

/** Told what a decode loop does, by whoever measures it; times are `performance.now()`. */
export interface LoopWatcher extends ReadWatcher {
  /** Steps between two readbacks, always, instead of more and more. */
  chunk?: number;
  /** Where the pass of the next `steps` steps of a chunk of `chunk` writes its timestamps. */
  timestamps(
    steps: number,
    chunk: number,
  ): GPUComputePassTimestampWrites | undefined;
  /** Something ended that began at `began`. */
  did(what: "encode" | "submit" | "wait" | "readback", began: number): void;
}

/** {@linkcode Runner} on a GPU. */
export class GpuRunner implements Runner {
  readonly fallbacks = [];
  readonly context: number;
  /** What was decided since loading. */
  readonly choices: Choice[] = [];
  /** Set to watch the decode loop. */
  watcher?: LoopWatcher;
  readonly #ops: GpuOps;
  /** For one text at a time; its memory is there from the beginning. */
  readonly #one: GpuSequences;

  private constructor(
    readonly gpu: Gpu,
    readonly config: Qwen3Config,
    readonly weights: Weights<Matrix<Tensor>>,
    one: GpuSequences,
  ) {
    this.context = one.cache.context;
    this.#ops = one.ops;
    this.#one = one;
  }

  /** Loads the weights of `checkpoint` onto `gpu`. */
  static async load(
    gpu: Gpu,
    checkpoint: Checkpoint,
    options: GpuRunnerOptions,
  ): Promise<GpuRunner> {
    const { config } = checkpoint, { context, cacheDtype: dtype } = options;
    const weights = await loadWeights(checkpoint, gpuStore(gpu), options);
    // Only hardware is faster in f16; the widest weight tells how far rows may reach.
    if (options.f16Products) await measureLargest(gpu, config, weights);
    gpu.check();
    const size = { sequences: 1, context, dtype };
    const ops = new GpuOps(gpu, config);
    const one = await GpuSequences.create(ops, weights, size);
    return new GpuRunner(gpu, config, weights, one);
  }

  async logits(
    tokens: readonly number[],
    { all = false, signal }: { all?: boolean; signal?: AbortSignal } = {},
  ): Promise<Float32Array> {
    const { vocabSize } = this.config;
    // Logits of every position are large: as many rows at once as half a binding holds.
    const room = this.gpu.limits.maxStorageBufferBindingSize / 2;
    const rows = all
      ? Math.max(
        1,
        Math.min(256, this.prefillRows, Math.floor(room / vocabSize / 4)),
      )
      : this.prefillRows;
    const out = new Float32Array((all ? tokens.length : 1) * vocabSize);
    let at = 0, last: Tensor | undefined;
    const one = this.#one;
    one.cache.reset();
    const options = { sequence: 0, rows, all, signal };
    for (const logits of one.prefill(tokens, options)) {
      last = logits;
      if (!all) continue;
      const part = await logits.read();
      out.set(part, at);
      at += part.length;
    }
    if (!all) out.set(await last!.read());
    const flags = await one.cache.flags.read();
    if (flags[0] === 0) return out;
    await this.widen();
    return this.logits(tokens, { all, signal });
  }

  requireRoom(sequences: number, context: number): void {
    const { gpu, config, cacheDtype: dtype } = this;
    const { maxStorageBufferBindingSize, maxBufferSize } = gpu.limits;
    requireRoom(config, { sequences, context, dtype }, {
      name: gpu.name,
      binding: Math.min(maxStorageBufferBindingSize, maxBufferSize),
      free: gpu.software ? host.freeMemory() : undefined,
    });
  }

  async *generate(
    prompts: readonly (readonly number[])[],
    sampling: Sampling,
    maxTokens: number,
    signal?: AbortSignal,
  ): AsyncGenerator<readonly number[], void> {
    const sequences = prompts.length;
    using several = sequences > 1
      ? await this.#several(
        sequences,
        positionsOf(prompts, maxTokens, this.context),
      )
      : undefined;
    const texts = prompts.map((prompt) => [...prompt]);
    for (let step = 0; step < maxTokens;) {
      const run = this.#run(
        several ?? this.#one,
        texts,
        sampling,
        { step, maxTokens: maxTokens - step, signal },
      );
      let overflow = false;
      for await (const ids of run) {
        overflow = ids === OVERFLOW;
        if (overflow) break;
        ids.forEach((id, i) => texts[i % sequences].push(id));
        step += ids.length / sequences;
        yield ids;
      }
      // Go on from what was accepted, with a cache that holds any value.
      if (overflow) await this.widen(several);
    }
  }

  async #several(sequences: number, context: number): Promise<GpuSequences> {
    this.requireRoom(sequences, context);
    const dtype = this.cacheDtype;
    return await GpuSequences.create(this.#ops, this.weights, {
      sequences,
      context,
      dtype,
    });
  }

  async *#run(
    batch: GpuSequences,
    texts: readonly (readonly number[])[],
    sampling: Sampling,
    { step, maxTokens, signal }: {
      /** Tokens that were chosen before. */
      step: number;
      maxTokens: number;
      signal?: AbortSignal;
    },
  ): AsyncGenerator<readonly number[], void> {
    const { gpu } = this, { device } = gpu, { cache, state } = batch;
    const { sequences } = cache;
    const decided = await compileAhead(
      gpu,
      () => batch.shaders(texts, this.prefillRows),
    );
    if (decided) {
      const before = this.choices.findIndex(({ what }) =>
        what === decided.what
      );
      if (before >= 0) this.choices.splice(before, 1);
      this.choices.push(decided);
    }
    // The device begins at once; what else there is to prepare, is while it works.
    const logits = batch.prefillAll(texts, this.prefillRows, signal);
    texts.forEach((ids, s) => {
      const seen = seenBits(this.config.vocabSize, ids);
      state.seen.write(s * seen.byteLength, seen);
    });
    state.step.write(0, new Uint32Array(sequences).fill(step));
    // A sequence that is over while others go on writes its last place again.
    const longest = cache.context - 1;
    using sampleFirst = new Plan(gpu);
    using _first = addSampling(sampleFirst, logits, sampling, state);
    sampleFirst.run();
    const { watcher } = this, { reader } = batch, { flags } = cache;
    reader.drop();
    device.queue.submit([reader.copy(device.createCommandEncoder(), flags)]);
    // Sampling counts its token as cached; it is only once the next step has run.
    const lengths = cache.lengths.map((length) => Math.min(length, longest));
    state.lengths.write(0, lengths);
    const { decode } = batch;
    decode.plan.seal();
    using sample = new Plan(gpu);
    using _next = addSampling(sample, decode.logits, sampling, state, {
      longest,
    });
    sample.seal();

    // The host knows each step's length without asking the device.
    let length = Math.max(...lengths), planned = 1, delivered = 0;
    const largest = LARGEST_CHUNK[gpu.readsAtOnce ? "atOnce" : "sleeping"];
    let size = watcher?.chunk ??
      FIRST_CHUNK[gpu.software ? "software" : "hardware"];
    /** Steps of the next chunk. */
    const plan = () => {
      const steps = Math.min(size, maxTokens - planned);
      planned += steps;
      return steps;
    };
    /** The piece of a chunk that begins at step `at` of it. */
    const encode = (at: number, chunk: number) => {
      const began = performance.now();
      const encoder = device.createCommandEncoder();
      const steps = Math.min(PIECE, chunk - at);
      const timestampWrites = watcher?.timestamps(steps, chunk);
      const pass = encoder.beginComputePass({ timestampWrites });
      for (let i = 0; i < steps; i++) {
        decode.plan.encode(pass, { length });
        sample.encode(pass);
        length = Math.min(length + 1, longest);
      }
      pass.end();
      const commands = at + steps === chunk
        ? reader.copy(encoder, flags)
        : encoder.finish();
      watcher?.did("encode", began);
      return commands;
    };
    const submit = (commands: GPUCommandBuffer) => {
      const began = performance.now();
      device.queue.submit([commands]);
      watcher?.did("submit", began);
    };
    let chunk = plan();
    let piece = chunk > 0 ? encode(0, chunk) : undefined;
    let began = performance.now();
    for (let steps = 1; steps > 0;) {
      // Reading blocks until the submitted work is done (and Deno may sleep 10 ms then).
      const from = step + delivered;
      const arriving = reader.read(from, from + steps, watcher);
      if (piece) submit(piece);
      const now = performance.now(), quick = now - began < LONG_CHUNK_MS;
      began = now;
      if (quick && !watcher?.chunk) size = Math.min(largest, 2 * size);
      const running = chunk;
      /** Submits the rest of the chunk, and encodes the beginning of the next. */
      const goOn = () => {
        for (let at = PIECE; at < chunk; at += PIECE) submit(encode(at, chunk));
        chunk = plan();
        piece = chunk > 0 ? encode(0, chunk) : undefined;
      };
      // Whoever takes the tokens may be slow, so the device gets its work first, but
      // the first token does not wait for that.
      const first = delivered === 0;
      if (!first) goOn();
      const ids = await arriving;
      gpu.check();
      delivered += steps;
      yield ids;
      if (first) goOn();
      await reader.rest();
      signal?.throwIfAborted();
      steps = running;
    }
  }

  /** Prompt tokens that go through at once: what one binding holds of the widest activation. */
  get prefillRows(): number {
    const { config, gpu } = this;
    const heads = config.numAttentionHeads + 2 * config.numKeyValueHeads;
    const widest = Math.max(heads * config.headDim, config.intermediateSize);
    const room = gpu.limits.maxStorageBufferBindingSize / 4 / widest;
    const fits = Math.max(1, 2 ** Math.floor(Math.log2(room))); // scratch grows by doubling
    return Math.min(PREFILL_ROWS, fits);
  }

  /** How keys and values are kept. */
  get cacheDtype(): "f16" | "f32" {
    return this.#one.cache.dtype;
  }

  /** Sets how many tokens the cache holds, for whoever runs a {@linkcode pass} by hand. */
  setLength(tokens: number): void {
    this.#one.cache.reset([tokens]);
  }

  /** The recorded forward pass of `tokens` tokens; `all`: with logits of each. */
  pass(tokens: number, all: boolean): Pass {
    const pass = this.#one.pass({ first: 0, sequences: 1, tokens, all });
    pass.plan.seal();
    return pass;
  }

  /** Values beyond f16 were met: keep them as f32 from now on. */
  async widen(several?: GpuSequences): Promise<void> {
    await this.#one.widen();
    await several?.widen();
    this.choices.push({
      what: "KV cache",
      value: "f32",
      reason: "a key or value exceeded 65,504, the largest f16",
    });
  }

  [Symbol.dispose](): void {
    this.#one[Symbol.dispose]();
    this.#ops[Symbol.dispose]();
    this.gpu[Symbol.dispose]();
  }
}
