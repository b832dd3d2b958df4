/**
 * A model on the GPU. Prompts go through in chunks; the decode loop never leaves
 * the device: sampling writes each token where the next step reads it, and the
 * host reads a ring of tokens once per chunk of steps.
 *
 * @module
 */
import { maxAbs } from "../kernels/max_abs.ts";
import { synthesize } from "../kernels/synthesize.ts";
import type { Checkpoint } from "./checkpoint.ts";
import { laneConstants } from "./choose.ts";
import type { Qwen3Config } from "./config.ts";
import { type Choice, DeviceError, type Gpu } from "./device.ts";
import { GpuKvCache } from "./kv_cache.ts";
import { GpuOps } from "./ops_gpu.ts";
import { Plan } from "./plan.ts";
import { forward, type Weights } from "./qwen3.ts";
import { OVERFLOW, type ReadWatcher, RingReader } from "./ring_reader.ts";
import type { Runner } from "./runner.ts";
import { addSampling, type SamplerState } from "./sampler.ts";
import { markSeen, type Sampling } from "./sampling.ts";
import type { Tensor } from "./tensor.ts";
import { type LoadOptions, loadWeights, type WeightStore } from "./weights.ts";

/** Prompt tokens that go through the model at once. */
const PREFILL_ROWS = 2048;
/** Steps whose tokens the device keeps until they are read. */
const RING = 256;
/**
 * Steps submitted between two readbacks: few at first, so that text appears at once,
 * and fewer altogether where a readback does not sleep. Each chunk is encoded while
 * the one before it runs, in about two thirds of its time.
 */
const CHUNKS = {
  atOnce: { first: 1, largest: 16 },
  sleeping: { first: 4, largest: 64 },
};
const CHUNK_GROWTH = 1.5;
/** Readbacks whose promises Deno still sleeps on while others go out. */
const READBACKS = 16;
/** Recorded passes that are kept; each length of prompt needs its own. */
const MOST_PASSES = 8;
/** A chunk that takes longer is not made larger: text should flow. */
const LONG_CHUNK_MS = 150;

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
  /** Where the pass of the next `steps` steps writes its timestamps. */
  timestamps(steps: number): GPUComputePassTimestampWrites | undefined;
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
  readonly #reader: RingReader;
  #cache: GpuKvCache;
  #passes = new Map<string, Pass>();
  readonly #state: SamplerState;

  private constructor(
    readonly gpu: Gpu,
    readonly config: Qwen3Config,
    readonly weights: Weights<Tensor>,
    { context, cacheDtype }: GpuRunnerOptions,
  ) {
    this.context = context;
    this.#ops = new GpuOps(gpu, config);
    this.#cache = new GpuKvCache(gpu, config, 1, context, cacheDtype);
    const u32 = (label: string, ...shape: number[]) =>
      gpu.tensor("u32", shape, undefined, label);
    this.#state = {
      tokens: u32("tokens", 1),
      ring: u32("ring", RING, 1),
      lengths: this.#cache.lengthsOnDevice,
      seen: u32("seen", 1, Math.ceil(config.vocabSize / 32)),
      step: u32("step", 1),
    };
    this.#reader = new RingReader(gpu, this.#state.ring);
  }

  /** Loads the weights of `checkpoint` onto `gpu`. */
  static async load(
    gpu: Gpu,
    checkpoint: Checkpoint,
    options: GpuRunnerOptions,
  ): Promise<GpuRunner> {
    const weights = await loadWeights(checkpoint, gpuStore(gpu), options);
    // Only hardware is faster in f16; the widest weight tells how far rows may reach.
    if (options.f16Products) await measureLargest(gpu, weights);
    gpu.check();
    const runner = new GpuRunner(gpu, checkpoint.config, weights, options);
    await runner.#reader.prepare(READBACKS);
    return runner;
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
    for (const logits of this.#prefill(tokens, rows, all, signal)) {
      last = logits;
      if (!all) continue;
      const part = await logits.read();
      out.set(part, at);
      at += part.length;
    }
    if (!all) out.set(await last!.read());
    const flags = await this.#cache.flags.read();
    if (flags[0] === 0) return out;
    this.#widenCache();
    return this.logits(tokens, { all, signal });
  }

  async *generate(
    tokens: readonly number[],
    sampling: Sampling,
    maxTokens: number,
    signal?: AbortSignal,
  ): AsyncGenerator<readonly number[], void> {
    const accepted = [...tokens];
    const end = tokens.length + maxTokens;
    while (accepted.length < end) {
      const step = accepted.length - tokens.length;
      const most = end - accepted.length;
      let overflow = false;
      for await (
        const ids of this.#run(accepted, sampling, step, most, signal)
      ) {
        overflow = ids === OVERFLOW;
        if (overflow) break;
        accepted.push(...ids);
        yield ids;
      }
      // Go on from what was accepted, with a cache that holds any value.
      if (overflow) this.#widenCache();
    }
  }

  async *#run(
    tokens: readonly number[],
    sampling: Sampling,
    step: number,
    maxTokens: number,
    signal?: AbortSignal,
  ): AsyncGenerator<readonly number[], void> {
    const { gpu } = this, { device } = gpu;
    const seen = new Uint32Array(Math.ceil(this.config.vocabSize / 32));
    markSeen(seen, tokens);
    gpu.write(this.#state.seen, 0, seen);
    gpu.write(this.#state.step, 0, new Uint32Array([step]));
    let logits: Tensor | undefined;
    for (logits of this.#prefill(tokens, this.prefillRows, false, signal));
    using sampleFirst = new Plan(gpu);
    using _first = addSampling(sampleFirst, logits!, sampling, this.#state);
    sampleFirst.run();
    // Sampling counts its token as cached; it is only once the next step has run.
    gpu.write(this.#state.lengths, 0, this.#cache.lengths);
    const decode = this.pass(1, false);
    using sample = new Plan(gpu);
    using _next = addSampling(sample, decode.logits, sampling, this.#state);
    sample.seal();

    const { watcher } = this, reader = this.#reader, { flags } = this.#cache;
    reader.drop();
    device.queue.submit([reader.copy(device.createCommandEncoder(), flags)]);
    // The host knows each step's length without asking the device.
    let length = tokens.length, submitted = 1, delivered = 0;
    const encode = (steps: number) => {
      const began = performance.now();
      const encoder = device.createCommandEncoder();
      const timestampWrites = watcher?.timestamps(steps);
      const pass = encoder.beginComputePass({ timestampWrites });
      for (let i = 0; i < steps; i++) {
        decode.plan.encode(pass, { length: length++ });
        sample.encode(pass);
      }
      pass.end();
      submitted += steps;
      const commands = reader.copy(encoder, flags);
      watcher?.did("encode", began);
      return commands;
    };
    const submit = (commands: GPUCommandBuffer) => {
      const began = performance.now();
      device.queue.submit([commands]);
      watcher?.did("submit", began);
    };
    const { first, largest } = CHUNKS[gpu.readsAtOnce ? "atOnce" : "sleeping"];
    let size = watcher?.chunk ?? first, quick = true;
    /** The next chunk, if more tokens are wanted; each is longer than the last. */
    const following = () => {
      const steps = Math.min(Math.floor(size), maxTokens - submitted);
      if (steps <= 0) return undefined;
      if (quick && !watcher?.chunk) {
        size = Math.min(largest, size * CHUNK_GROWTH);
      }
      return { steps, commands: encode(steps) };
    };
    let next = following();
    for (let steps = 1; steps > 0;) {
      const began = performance.now();
      // Reading blocks until the submitted work is done (and Deno may sleep 10 ms
      // then). So the next chunk goes out right after it, and the one after that is
      // encoded while the device works.
      const from = step + delivered;
      const arriving = reader.read(from, from + steps, watcher);
      if (next) submit(next.commands);
      const after = next && following();
      const ids = await arriving;
      gpu.check();
      delivered += steps;
      quick = performance.now() - began < LONG_CHUNK_MS;
      yield ids;
      signal?.throwIfAborted();
      steps = next?.steps ?? 0;
      next = after;
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

  /** Submits all chunks of a prompt into an empty cache; yields the logits of each. */
  *#prefill(
    tokens: readonly number[],
    rows: number,
    all: boolean,
    signal?: AbortSignal,
  ): Generator<Tensor, void> {
    const cache = this.#cache;
    cache.reset([0]);
    for (let begin = 0; begin < tokens.length; begin += rows) {
      signal?.throwIfAborted();
      const chunk = Uint32Array.from(tokens.slice(begin, begin + rows));
      const { plan, input, logits } = this.pass(chunk.length, all);
      this.gpu.write(input, 0, chunk);
      this.gpu.write(cache.lengthsOnDevice, 0, cache.lengths);
      plan.run({ length: begin });
      cache.lengths[0] += chunk.length;
      this.gpu.check();
      yield logits;
    }
    this.gpu.write(cache.lengthsOnDevice, 0, cache.lengths);
  }

  /** How keys and values are kept. */
  get cacheDtype(): "f16" | "f32" {
    return this.#cache.dtype;
  }

  /** Sets how many tokens the cache holds, for whoever runs a {@linkcode pass} by hand. */
  setLength(tokens: number): void {
    this.#cache.reset([tokens]);
  }

  /** The recorded forward pass of `rows` tokens; `all`: with logits of each. */
  pass(rows: number, all: boolean): Pass {
    const key = `${rows} ${all}`;
    const known = this.#passes.get(key);
    if (known) return known;
    if (this.#passes.size >= MOST_PASSES) {
      const oldest = [...this.#passes.keys()].find((key) => key !== "1 false")!;
      this.#passes.get(oldest)!.plan[Symbol.dispose]();
      this.#passes.delete(oldest);
    }
    const plan = new Plan(this.gpu);
    const input = rows === 1
      ? this.#state.tokens
      : this.gpu.tensor("u32", [rows], undefined, "prompt");
    if (rows > 1) plan.own(input);
    this.#ops.plan = plan;
    this.#cache.pass = { first: 0, tokens: rows };
    const logits = forward(this.#ops, this.weights, input, this.#cache, all);
    const pass = { plan: plan.seal(), input, logits };
    this.#passes.set(key, pass);
    return pass;
  }

  /** Values beyond f16 were met: keep them as f32 from now on. */
  #widenCache(): void {
    if (this.#cache.dtype === "f32") {
      throw new DeviceError(
        "Cannot go on: a key or value is not a finite f32, the weights or the device are broken",
      );
    }
    this.#forgetPasses();
    const { context } = this;
    this.#cache[Symbol.dispose]();
    this.#cache = new GpuKvCache(this.gpu, this.config, 1, context, "f32");
    this.#state.lengths = this.#cache.lengthsOnDevice;
    this.choices.push({
      what: "KV cache",
      value: "f32",
      reason: "a key or value exceeded 65,504, the largest f16",
    });
  }

  #forgetPasses(): void {
    for (const { plan } of this.#passes.values()) plan[Symbol.dispose]();
    this.#passes.clear();
  }

  [Symbol.dispose](): void {
    this.#forgetPasses();
    this.#ops[Symbol.dispose]();
    this.#cache[Symbol.dispose]();
    this.gpu[Symbol.dispose]();
  }
}

/** A forward pass: write tokens to `input`, run `plan`, read `logits`. */
export interface Pass {
  plan: Plan;
  input: Tensor;
  logits: Tensor;
}

/** Measures the largest absolute value of every Linear weight and head norm, with one readback. */
async function measureLargest(
  gpu: Gpu,
  { layers }: Weights<Tensor>,
): Promise<void> {
  const linears = layers.flatMap((
    { qkvProj, oProj, gateUpProj, downProj, qNorm, kNorm },
  ) => [qkvProj, oProj, gateUpProj, downProj, qNorm, kNorm]);
  const size = linears.length;
  using found = gpu.tensor("u32", [size], new Uint32Array(size), "largest");
  using plan = new Plan(gpu);
  linears.forEach((tensor, at) => {
    for (const part of tensor.parts) {
      const w = tensor.shape.length === 1
        ? tensor.view(1, tensor.shape[0])
        : { tensor, part };
      plan.add(maxAbs, { w, largest: found }, {
        constants: laneConstants(gpu),
        uniforms: { at },
      });
    }
  });
  plan.run();
  const bits = await gpu.readBuffer(found.part.buffer, 0, 4 * size);
  const values = new Float32Array(bits);
  linears.forEach((tensor, at) => tensor.largest = values[at]);
}

/** Puts weights into device memory; synthetic ones are made there. */
function gpuStore(gpu: Gpu): WeightStore<Tensor> {
  const { queue } = gpu.device;
  return {
    allocate: (dtype, shape, label, split) =>
      gpu.tensor(dtype, shape, undefined, label, split),
    write: (tensor, begin, bytes) => gpu.write(tensor, begin, bytes),
    synthesize(tensor, row, rows, { seed, scale, offset }) {
      const columns = tensor.shape[1];
      if (offset !== 0 || columns === undefined || columns % 2) return false;
      using plan = new Plan(gpu);
      for (const run of tensor.runs) {
        const begin = Math.max(row, run.begin);
        const end = Math.min(row + rows, run.begin + run.rows);
        if (begin >= end) continue;
        const words = (rows: number) => rows * columns / 2;
        const rowsBefore = run.offset / (2 * columns);
        const part = { ...run, offset: 0, rows: rowsBefore + run.rows };
        plan.add(synthesize, { w: { tensor, part } }, {
          uniforms: {
            seed,
            scale,
            source: words(begin - row),
            to: run.offset / 4 + words(begin - run.begin),
            words: words(end - begin),
          },
        });
      }
      plan.run();
      return true;
    },
    async settle() {
      queue.submit([]);
      await queue.onSubmittedWorkDone();
      gpu.check();
    },
  };
}
