/**
 * Runs a model on the GPU: prompts in chunks, and text by a decode loop that stays on the
 * device.
 *
 * @module
 */
import type { CacheDtype } from "../formats/cached.ts";
import type { Matrix } from "../formats/matrix.ts";
import {
  type KeptCache,
  positionsFor,
  positionsOf,
  requireRoom,
  type Room,
} from "../model/kv_cache.ts";
import {
  type Ahead,
  type AheadOptions,
  compileAhead,
} from "../webgpu/compile_ahead.ts";
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import { host } from "../host.ts";
import type { Choice } from "../dispatch/choice.ts";
import { chooseLogitsRows, choosePassRows } from "../dispatch/pass_rows.ts";
import {
  chooseStateBatches,
  GPU_PASSES,
  readTogether,
} from "../dispatch/state_batches.ts";
import { chooseSampling, requireVocabulary } from "../dispatch/sampling.ts";
import type { Gpu } from "../webgpu/device.ts";
import { GpuRows } from "./rows.ts";
import { sampledRow } from "./sample.ts";
import { GpuSequences, type Pass } from "./sequences.ts";
import {
  type GpuKvCache,
  type LeftOverflow,
  leftOverflowed,
} from "./kv_cache.ts";
import { GpuStates } from "./states.ts";
import { gpuStore, measureLargest } from "./store.ts";
import { GpuOps } from "./ops.ts";
import type { Weights } from "../model/family.ts";
import { DecodeLoop, type LoopWatcher } from "./decode_loop.ts";
import type { Paces } from "./paces.ts";
import { OVERFLOW } from "./ring_reader.ts";
import type { RowsSize } from "../model/rows.ts";
import type { Runner } from "../model/runner.ts";
import {
  faultText,
  type MaskSource,
  type SampledTokens,
  type Sampling,
  validToken,
} from "../model/sampling.ts";
import { compileAll, type Shader } from "../webgpu/pipeline.ts";
import type { Tensor } from "../webgpu/tensor.ts";
import { type LoadOptions, loadWeights } from "../model/weights.ts";

/** Options of {@linkcode GpuRunner.load}. */
export interface GpuRunnerOptions extends LoadOptions {
  context: number;
  cacheDtype: CacheDtype;
  /**
   * Whether matmuls of many rows may multiply in f16; they sum in f32. Those of fewer rows
   * by quantised blocks may then round rows to integers of 15 bits.
   */
  f16Matmuls: boolean;
}

/** Why a cache is no longer f16. */
const WIDENED: Choice = {
  what: "KV cache",
  value: "f32",
  reason: "a key or value exceeded 65,504, the largest f16",
};

/** Why attention with o_proj, and an MLP, are no longer one dispatch. */
const SEPARATED: Choice = {
  what: "MLP and attention of one row",
  value: "a dispatch for each matmul",
  reason:
    "an MLP's result was not a number, or too large for sums in fixed point: 2²⁰, or 2²⁰ times the root mean square of a smaller row",
};

/** Why matmuls no longer leave rows in f16 for the next one. */
const WIDE_ROWS: Choice = {
  what: "rows between matmuls",
  value: "f32, converted to f16 with a scale each",
  reason:
    "a value was not a number, or did not fit f16 in units of 16: it was above 1,048,064, or a row's root mean square below 2.4e-4",
};

/** {@linkcode Runner} on a GPU. */
export class GpuRunner implements Runner {
  readonly fallbacks = [];
  readonly hasRows = true;
  readonly context: number;
  /** Choices made since loading. */
  readonly choices: Choice[] = [];
  /** Set to watch the decode loop. */
  watcher?: LoopWatcher;
  readonly #ops: GpuOps;
  /** The sequence used for a single text, allocated on loading. */
  readonly #one: GpuSequences;
  /** Passes of many texts, once there are any. */
  #states?: GpuStates;
  #disposed = false;

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
    requireVocabulary(`load ${checkpoint.name}`, config.vocabSize);
    using store = gpuStore(gpu);
    const weights = await loadWeights(checkpoint, store, options);
    if (options.f16Matmuls) {
      // The largest weights bound how far rows may be scaled up in f16.
      await measureLargest(gpu, config, weights, options.signal);
    }
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
    this.#requireDevice("compute logits");
    const { vocabSize } = this.config, { prefillRows } = this;
    const { maxStorageBufferBindingSize } = this.gpu.limits;
    const rows = all
      ? chooseLogitsRows(prefillRows, vocabSize, maxStorageBufferBindingSize)
      : prefillRows;
    const out = new Float32Array((all ? tokens.length : 1) * vocabSize);
    let at = 0, last: Tensor | undefined;
    const one = this.#one;
    one.cache.reset();
    const options = { sequence: 0, rows, all, signal };
    for await (const logits of one.prefill(tokens, options)) {
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

  async states(
    texts: readonly (readonly number[])[],
    signal?: AbortSignal,
  ): Promise<Float32Array[]> {
    this.#requireDevice("embed");
    const { hiddenSize } = this.config;
    const all: Float32Array[] = new Array(texts.length);
    let states = this.#states ??= new GpuStates(this.#one, this.prefillRows);
    const lengths = texts.map(({ length }) => length);
    const batches = chooseStateBatches(lengths, states.rows, GPU_PASSES);
    const passes = states;
    using _ = await this.#compileAhead(() => passes.shaders(batches), {
      signal,
    });
    for (const part of readTogether(batches)) {
      let values = await states.run(part, texts, signal);
      while (values === undefined) { // something did not fit
        await this.widen();
        states = this.#states = new GpuStates(this.#one, this.prefillRows);
        values = await states.run(part, texts, signal);
      }
      part.flatMap(({ texts }) => texts).forEach((text, i) =>
        all[text] = values.slice(i * hiddenSize, (i + 1) * hiddenSize)
      );
    }
    return all;
  }

  requireRoom(sequences: number, context: number): void {
    const { config, cacheDtype: dtype } = this;
    requireRoom(config, { sequences, context, dtype }, this.#room);
  }

  get #room(): Room {
    const { name, limits, software } = this.gpu;
    const { maxStorageBufferBindingSize, maxBufferSize } = limits;
    return {
      name,
      binding: Math.min(maxStorageBufferBindingSize, maxBufferSize),
      free: software ? host.freeMemory() : undefined,
    };
  }

  async rows(size: RowsSize): Promise<GpuRows> {
    this.#requireDevice("start an engine");
    const { cacheDtype: dtype, prefillRows: readRows, paces, config } = this;
    const { slots, context } = size, room = this.#room;
    const positions = size.positions ??
      positionsFor(config, { slots, context, dtype }, room);
    const require = (context: number, dtype: CacheDtype) =>
      requireRoom(config, { sequences: 1, context, dtype }, this.#room);
    const how = { positions, dtype, paces, readRows, requireRoom: require };
    const all = { ...size, ...how };
    const rows = await GpuRows.create(this.#ops, this.weights, all);
    rows.onWidened = () => this.choices.push(WIDENED);
    rows.onSeparated = (what) => this.#separate(what);
    rows.compileAhead = async (shaders) => {
      using _ = await this.#compileAhead(shaders);
    };
    rows.compile = async (shaders) => {
      using _ = await this.#compileAhead(() => shaders);
      await compileAll(this.gpu, shaders);
    };
    return rows;
  }

  get kept(): KeptCache {
    return this.#one.cache;
  }

  cachedTokens(prompt: readonly number[]): number {
    return this.#one.cache.heldOf(prompt);
  }

  async *generate(
    prompts: readonly (readonly number[])[],
    sampling: Sampling,
    maxTokens: number,
    signal?: AbortSignal,
    cached = 0,
    masks: readonly (MaskSource | undefined)[] = [],
    begun = 0,
  ): AsyncGenerator<SampledTokens, void> {
    this.#requireDevice("generate");
    const sequences = prompts.length;
    using several = sequences > 1
      ? await this.#several(
        sequences,
        positionsOf(prompts, maxTokens - begun, this.context),
      )
      : undefined;
    const texts = prompts.map((prompt) => [...prompt]);
    const batch = several ?? this.#one;
    const isMasked = masks.some((mask) => mask !== undefined);
    const row = sampledRow(sampling, isMasked);
    const choice = chooseSampling([row], this.config.vocabSize);
    for (let step = begun; step < maxTokens;) {
      const shaders = () =>
        batch.promptShaders(texts, this.prefillRows, {
          ...{ cached, sampling: choice },
        });
      const later = maxTokens - step > 1
        ? () => batch.stepShaders()
        : undefined;
      using ahead = await this.#compileAhead(shaders, { later, signal });
      let overflow = false;
      {
        using held = this.#begun(batch.cache, texts[0], cached);
        using loop = new DecodeLoop(batch, {
          ...{ sampling, choice },
          step,
          maxTokens: maxTokens - step,
          prefillRows: this.prefillRows,
          masks,
          cached,
          later: ahead.later,
          signal,
          watcher: this.watcher,
        });
        await loop.prefill(texts);
        for await (const ids of loop.tokens()) {
          overflow = ids === OVERFLOW;
          if (overflow) break;
          if (ids.some((id) => faultText(id))) held.isFaulty = true;
          ids.forEach((id, i) => texts[i % sequences].push(validToken(id)));
          step += ids.length / sequences;
          yield ids;
        }
      }
      // Continue after the accepted tokens, with a cache or kernels that hold any value.
      if (overflow) await this.widen(several);
      cached = 0;
    }
  }

  /**
   * Begins a run on a text whose first `cached` tokens the cache holds. Once disposed, the
   * cache knows the tokens whose keys and values it has: those of the passes that were
   * submitted, and all that steps have run on since. None if the run was faulty: a NaN among
   * a pass's values spreads to the rows before it.
   */
  #begun(
    cache: GpuKvCache,
    text: readonly number[],
    cached: number,
  ): Disposable & { isFaulty: boolean } {
    const { length } = text;
    // Resuming keeps the flags: an aborted run may have set one that nobody has read.
    if (cached > 0) cache.resume(cached);
    else cache.reset();
    return {
      isFaulty: false,
      [Symbol.dispose]() {
        const decoded = text.length > length;
        const end = decoded ? -1 : cache.lengths[0];
        cache.hold(text.slice(0, this.isFaulty ? 0 : end));
      },
    };
  }

  async #several(sequences: number, context: number): Promise<GpuSequences> {
    this.requireRoom(sequences, context);
    const size = { sequences, context, dtype: this.cacheDtype };
    const { paces } = this.#one;
    return await GpuSequences.create(this.#ops, this.weights, size, paces);
  }

  /** Compiles the shaders that a run needs, in several threads where that pays off. */
  async #compileAhead(
    shaders: () => readonly Shader[],
    options?: AheadOptions,
  ): Promise<Ahead> {
    const ahead = await compileAhead(this.gpu, shaders, options);
    const note = (choice: Choice | undefined) => {
      if (!choice) return;
      const before = this.choices.findIndex(({ what }) => what === choice.what);
      if (before >= 0) this.choices.splice(before, 1);
      this.choices.push(choice);
    };
    note(ahead.choice);
    ahead.later.then(note);
    return ahead;
  }

  /** Prompt tokens per forward pass. */
  get prefillRows(): number {
    const { config, gpu } = this;
    const heads = config.numAttentionHeads + 2 * config.numKeyValueHeads;
    const { experts, hiddenSize } = config;
    // Results of experts are kept apart, with padding; see lib/dispatch/experts.ts.
    const mlp = experts
      ? 4 * experts.used * Math.max(hiddenSize, 2 * experts.intermediateSize)
      : config.intermediateSize;
    const widest = Math.max(heads * config.headDim, mlp);
    return choosePassRows(widest, gpu.limits.maxStorageBufferBindingSize);
  }

  get memoryBytes(): number {
    return this.gpu.allocated;
  }

  /** The measured pace of the device. */
  get paces(): Paces {
    return this.#one.paces;
  }

  /** The type of cached keys and values. */
  get cacheDtype(): CacheDtype {
    return this.#one.cache.dtype;
  }

  /** Sets how many tokens the cache holds, before running a {@linkcode pass} by hand. */
  setLength(tokens: number): void {
    this.#one.cache.reset([tokens]);
  }

  /** The recorded forward pass of `tokens` tokens, with logits for each if `all`. */
  pass(tokens: number, all: boolean): Pass {
    const pass = this.#one.pass({ first: 0, sequences: 1, tokens, all });
    pass.plan.seal();
    return pass;
  }

  /**
   * Replaces the cache with an f32 one after a value did not fit f16; or, if what a matmul left
   * for the next one did not fit, has passes recorded again in which each is a dispatch.
   */
  async widen(several?: GpuSequences): Promise<void> {
    const flags = [this.#one.cache, several?.cache, this.#states].map((cache) =>
      cache?.flags
    );
    const left = await leftOverflowed(flags);
    this.#states?.[Symbol.dispose]();
    this.#states = undefined;
    if (left) {
      this.#one.cache.reset(); // it may hold tokens of an aborted run that overflowed
      this.#one.forget();
      several?.forget();
      return this.#separate(left);
    }
    await this.#one.widen();
    await several?.widen();
    this.choices.push(WIDENED);
  }

  /** Leaves nothing of that kind between matmuls from now on. */
  #separate(what: LeftOverflow): void {
    const [choice, key] = what === "sums"
      ? [SEPARATED, "joins"] as const
      : [WIDE_ROWS, "halves"] as const;
    if (this.#ops[key]) this.choices.push(choice);
    this.#ops[key] = false;
  }

  #requireDevice(action: string): void {
    if (this.#disposed) {
      throw new Error(`Cannot ${action}: the model was disposed`);
    }
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    this.#states?.[Symbol.dispose]();
    this.#one[Symbol.dispose]();
    this.#ops[Symbol.dispose]();
    this.gpu[Symbol.dispose]();
  }
}
