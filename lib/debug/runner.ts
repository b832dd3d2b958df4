/**
 * Runs a model on the GPU and checks every operation against the CPU. Slow by design:
 * each verb is awaited and read back.
 *
 * @module
 */
import type { Matrix } from "../formats/matrix.ts";
import {
  type CachePass,
  type KvCache,
  positionsOf,
} from "../model/kv_cache.ts";
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import { type CpuTensor, f32 } from "../formats/tensor.ts";
import type { Choice } from "../dispatch/choice.ts";
import { Rests } from "../dispatch/rests.ts";
import type { Gpu } from "../webgpu/device.ts";
import { GpuKvCache } from "../gpu/kv_cache.ts";
import { SamplingTwin } from "./sampling.ts";
import { GpuOps } from "../gpu/ops.ts";
import { Plan } from "../webgpu/plan.ts";
import { familyOf } from "../model/families.ts";
import { finish, pairWeights } from "../model/family.ts";
import { type Call, perform, tap, tensorsOf, translate } from "../model/tap.ts";
import { differenceText, rowDifference } from "../check/row_difference.ts";
import type { Runner } from "../model/runner.ts";
import { CpuRunner } from "../cpu/runner.ts";
import { GpuRunner, type GpuRunnerOptions } from "../gpu/runner.ts";
import {
  allowedNext,
  historyOf,
  type MaskSource,
  type SampledTokens,
  sampleEach,
  type Sampling,
  validToken,
} from "../model/sampling.ts";
import { Tensor } from "../webgpu/tensor.ts";

/** One verb, recorded for the GPU. */
interface Step {
  call: Call<Tensor>;
  plan: Plan;
  output: Tensor;
}

/** The KV caches on both sides. */
interface Caches {
  onGpu: GpuKvCache;
  onCpu: KvCache<CpuTensor>;
}

/** Thrown when a key or value does not fit the cache's type. */
class CacheOverflow extends Error {}

/**
 * A {@linkcode Runner} that throws at the first operation or sampled token that differs
 * from the CPU's. Yields the tokens that the CPU samples from the GPU's logits. Does
 * not use the decode loop of `generate`, which keeps tokens on the device.
 */
export class DebugRunner implements Runner {
  readonly fallbacks = [];
  readonly context: number;
  /** The CPU's copy of each of the GPU's weights. */
  readonly #twins: ReadonlyMap<Matrix<Tensor>, Matrix<CpuTensor>>;

  private constructor(
    readonly gpu: GpuRunner,
    readonly cpu: CpuRunner,
    readonly options: GpuRunnerOptions,
  ) {
    this.context = options.context;
    this.#twins = pairWeights(gpu.weights, cpu.weights);
  }

  /** On both sides. */
  get memoryBytes(): number {
    return this.gpu.memoryBytes + this.cpu.memoryBytes;
  }

  /** Choices that the GPU's runner has made since loading. */
  get choices(): readonly Choice[] {
    return this.gpu.choices;
  }

  /** Loads the weights on both sides. */
  static async load(
    gpu: Gpu,
    checkpoint: Checkpoint,
    options: GpuRunnerOptions,
  ): Promise<DebugRunner> {
    const { cacheDtype: kept } = options;
    const cacheDtype = kept === "f16" ? "f32" : kept;
    const cpu = await CpuRunner.load(checkpoint, { ...options, cacheDtype });
    const on = await GpuRunner.load(gpu, checkpoint, options);
    return new DebugRunner(on, cpu, options);
  }

  async logits(
    tokens: readonly number[],
    { all = false, signal }: { all?: boolean; signal?: AbortSignal } = {},
  ): Promise<Float32Array> {
    try {
      using caches = this.#caches(1, this.context);
      return await this.#append(tokens, 0, caches, { all, signal });
    } catch (error) {
      await this.#widenAfter(error);
      return this.logits(tokens, { all, signal });
    }
  }

  /** One text after another. */
  async states(
    texts: readonly (readonly number[])[],
    signal?: AbortSignal,
  ): Promise<Float32Array[]> {
    const all: Float32Array[] = [];
    while (all.length < texts.length) {
      const text = texts[all.length];
      try {
        using caches = this.#caches(1, text.length);
        const options = { states: true, signal };
        all.push(await this.#append(text, 0, caches, options));
      } catch (error) {
        await this.#widenAfter(error);
      }
    }
    return all;
  }

  /** Switches to f32 caches if a value overflowed; rethrows any other error. */
  async #widenAfter(error: unknown): Promise<void> {
    if (!(error instanceof CacheOverflow)) throw error;
    await this.gpu.widen();
  }

  /** Creates empty caches on both sides. */
  #caches(sequences: number, context: number) {
    const { gpu, config, cacheDtype } = this.gpu;
    const onGpu = new GpuKvCache(gpu, config, sequences, context, cacheDtype);
    // The CPU quantises too; a key that it rounds the other way differs by a step.
    const onCpu = this.cpu.ops.createCache(
      sequences,
      context,
      cacheDtype === "f16" ? "f32" : cacheDtype,
    );
    onGpu.reset();
    return {
      onGpu,
      onCpu,
      [Symbol.dispose]() {
        onGpu[Symbol.dispose]();
        onCpu[Symbol.dispose]();
      },
    };
  }

  async #append(
    tokens: readonly number[],
    sequence: number,
    caches: Caches,
    { all = false, states = false, signal }: {
      all?: boolean;
      states?: boolean;
      signal?: AbortSignal;
    },
  ): Promise<Float32Array> {
    const rows = this.gpu.prefillRows, parts: Float32Array[] = [];
    for (let at = 0; at < tokens.length; at += rows) {
      signal?.throwIfAborted();
      const chunk = Uint32Array.from(tokens.slice(at, at + rows));
      const pass = { first: sequence, sequences: 1, tokens: chunk.length };
      const wanted = { all, states };
      parts.push(await this.#pass(chunk, pass, wanted, caches, signal));
    }
    if (!all) return parts.at(-1)!;
    const out = new Float32Array(tokens.length * this.gpu.config.vocabSize);
    parts.reduce((at, part) => (out.set(part, at), at + part.length), 0);
    return out;
  }

  readonly hasRows = false;

  rows(): Promise<never> {
    throw new Error(
      "Cannot start an engine: debug checks one run at a time, must be off",
    );
  }

  requireRoom(sequences: number, context: number): void {
    this.gpu.requireRoom(sequences, context);
    this.cpu.requireRoom(sequences, context);
  }

  /** Every run checks the whole prompt. */
  readonly kept = undefined;

  cachedTokens(): number {
    return 0;
  }

  async *generate(
    prompts: readonly (readonly number[])[],
    sampling: Sampling,
    maxTokens: number,
    signal?: AbortSignal,
    _cached = 0,
    masks: readonly (MaskSource | undefined)[] = [],
  ): AsyncGenerator<SampledTokens, void> {
    const context = positionsOf(prompts, maxTokens, this.context);
    const texts = prompts.map((prompt) => [...prompt]);
    for (let step = 0; step < maxTokens;) {
      const steps = { step, maxTokens, masks, signal };
      try {
        for await (const ids of this.#run(texts, context, sampling, steps)) {
          ids.forEach((id, s) => texts[s].push(validToken(id)));
          step++;
          yield ids;
        }
      } catch (error) {
        await this.#widenAfter(error); // then continues after the accepted tokens
      }
    }
  }

  async *#run(
    texts: readonly (readonly number[])[],
    context: number,
    sampling: Sampling,
    { step, maxTokens, masks, signal }: {
      /** The number of tokens sampled before. */
      step: number;
      maxTokens: number;
      masks: readonly (MaskSource | undefined)[];
      signal?: AbortSignal;
    },
  ): AsyncGenerator<SampledTokens, void> {
    const { vocabSize } = this.gpu.config;
    this.requireRoom(texts.length, context);
    using caches = this.#caches(texts.length, context);
    const { gpu } = this.gpu, sequences = texts.length;
    const size = { sequences, vocab: vocabSize };
    const masked = masks.some((mask) => mask);
    using twin = new SamplingTwin(gpu, sampling, size, masked);
    const histories = texts.map((text) => {
      const begin = text.length - step;
      return historyOf(vocabSize, text.slice(0, begin), text.slice(begin));
    });
    const rows: Float32Array[] = [];
    for (const [s, text] of texts.entries()) {
      const fits = text.slice(0, context);
      rows.push(await this.#append(fits, s, caches, { signal }));
    }
    for (; step < maxTokens; step++) {
      const before = histories.map((history) => history.slice());
      const allowed = allowedNext(masks, vocabSize);
      const ids = sampleEach(rows, sampling, histories, step, allowed);
      const given = { histories: before, allowed, step };
      const wrong = await twin.difference(rows, given, ids);
      if (wrong) throw new Error(`Cannot trust ${gpu.name}: ${wrong}`);
      yield ids;
      if (step === maxTokens - 1) return;
      signal?.throwIfAborted();
      caches.onGpu.stepBackIfFull();
      caches.onCpu.stepBackIfFull();
      const pass = { first: 0, sequences, tokens: 1 };
      const chunk = Uint32Array.from(ids, validToken);
      const logits = await this.#pass(chunk, pass, {}, caches, signal);
      rows.forEach((_, s) =>
        rows[s] = logits.subarray(s * vocabSize, (s + 1) * vocabSize)
      );
    }
  }

  async #pass(
    chunk: Uint32Array<ArrayBuffer>,
    pass: CachePass,
    { all = false, states = false }: { all?: boolean; states?: boolean },
    caches: Caches,
    signal?: AbortSignal,
  ): Promise<Float32Array> {
    const { gpu, config } = this.gpu, { onGpu: cache } = caches;
    cache.begin(pass);
    caches.onCpu.begin(pass);
    using ops = new GpuOps(gpu, config);
    ops.joins = ops.halves = false; // each verb is checked by itself
    using input = Tensor.create(gpu, "u32", [chunk.length], chunk, "tokens");
    using plans = new DisposableStack();
    const steps: Step[] = [];
    const recording = tap(ops, (call, run) => {
      const plan = ops.plan = plans.use(new Plan(gpu));
      const output = run();
      steps.push({ call, plan, output });
      return output;
    });
    const { forward } = familyOf(config);
    const last = Uint32Array.of(chunk.length - 1);
    using ends = Tensor.create(gpu, "u32", [1], last, "ends");
    const wanted = { all, states, ends: states ? ends : undefined };
    finish(forward(recording, this.gpu.weights, input, cache, wanted));
    let result = new Float32Array();
    for (const step of steps) {
      const { actual, wrong } = await this.#check(step, caches, signal);
      if (wrong) throw new Error(`Cannot trust ${gpu.name}: ${wrong}`);
      result = actual;
    }
    cache.advance();
    caches.onCpu.advance();
    return result;
  }

  /**
   * Runs a verb on both sides. Returns the GPU's result, and how it differs from the
   * CPU's if it does.
   *
   * @throws {CacheOverflow} if the GPU's cache cannot hold a key or value.
   */
  async #check(
    { call, plan, output }: Step,
    { onGpu, onCpu }: Caches,
    signal?: AbortSignal,
  ): Promise<{ actual: Float32Array<ArrayBuffer>; wrong?: string }> {
    signal?.throwIfAborted();
    // Read before the GPU runs: a verb may overwrite an input.
    const inputs = new Map<Tensor, CpuTensor>();
    for (const tensor of tensorsOf(call)) {
      const { dtype, shape } = tensor, values = await tensor.read();
      const data = dtype === "u32" ? Uint32Array.from(values) : values;
      inputs.set(tensor, { dtype, shape, data });
    }
    plan.run({ length: Math.max(...onGpu.lengths) });
    const actual = await output.read() as Float32Array<ArrayBuffer>;
    this.gpu.gpu.check();
    if (call.verb === "attend" && onGpu.dtype !== "f32") {
      const [overflow] = await onGpu.flags.read();
      if (overflow) throw new CacheOverflow();
    }
    const onCpuToo = translate<Tensor, CpuTensor>(
      call,
      (tensor) => inputs.get(tensor)!,
      (weight) => this.#twins.get(weight)!,
      onCpu,
    );
    const expected = await this.#perform(onCpuToo, signal);
    const label = plan.dispatches.at(-1)?.label;
    const name = label ? `${label} (${call.verb})` : call.verb;
    // The GPU multiplies masked values by 0, which spreads non-finite ones.
    const spreads = [...inputs.values()].some(({ data }) =>
      data.some((v) => !Number.isFinite(v))
    );
    const wanted = spreads
      ? f32(expected).map((v, i) => Number.isFinite(actual[i]) ? v : actual[i])
      : f32(expected);
    // Numbers of experts are exact.
    const rounded = call.verb === "chooseExperts"
      ? "f32"
      : call.verb === "attend" && this.gpu.cacheDtype !== "f32"
      ? this.gpu.cacheDtype
      : this.options.f16Matmuls
      ? "f16"
      : "f32";
    const found = rowDifference(actual, wanted, output.shape[1], rounded);
    return { actual, wrong: found && `${name} ${differenceText(found)}` };
  }

  /** Runs a verb on the CPU; the event loop turns in between. */
  async #perform(
    call: Call<CpuTensor>,
    signal?: AbortSignal,
  ): Promise<CpuTensor> {
    const { ops } = this.cpu, rests = new Rests();
    using slices = ops.inSlices(function* (): Generator<
      CpuTensor,
      CpuTensor,
      CpuTensor
    > {
      return yield perform(ops, call);
    }());
    let next = slices.next();
    for (; !next.done; next = slices.next()) await rests.rest(signal);
    return next.value;
  }

  [Symbol.dispose](): void {
    this.cpu[Symbol.dispose]();
    this.gpu[Symbol.dispose]();
  }
}
