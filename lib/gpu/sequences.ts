/**
 * Sequences that decode together on the GPU: their cache, their sampling state, and the
 * forward passes recorded for them.
 *
 * @module
 */
import type { Matrix } from "../formats/matrix.ts";
import type { CachePass, CacheSize } from "../model/kv_cache.ts";
import { dispatchWork, paddedTo, promptPasses } from "../dispatch/pass_rows.ts";
import { Rests } from "../dispatch/rests.ts";
import type { SamplingChoice } from "../dispatch/sampling.ts";
import { DeviceError } from "../errors.ts";
import { GpuKvCache } from "./kv_cache.ts";
import type { GpuOps } from "./ops.ts";
import { Plan } from "../webgpu/plan.ts";
import { type Paces, pacesOf } from "./paces.ts";
import type { Weights } from "../model/family.ts";
import { recordVerbs } from "./record.ts";
import { RingReader } from "./ring_reader.ts";
import type { Shader } from "../webgpu/pipeline.ts";
import { addSampling, SamplerState } from "./sample.ts";
import { Tensor } from "../webgpu/tensor.ts";

/**
 * Steps whose tokens the ring on the device holds until they are read. Not measured: the
 * largest chunk has 64 steps, and parts of two chunks are unread at a time; a row of the
 * ring takes 4 bytes per sequence.
 */
const RING = 256;
/**
 * Staging buffers created in advance. Deno settles mapAsync 10 ms late, so several are in
 * flight at once (bench/log.md, "Readbacks without waiting for the promise"). The number
 * was not measured: 10 ms are about 10 steps on an H100, even if each were a chunk.
 */
const READBACKS = 32;
/**
 * Maximum number of recorded passes to keep. Not measured: of the sizes that prompts are
 * padded to, a program that runs for long sees most; a pass is a few hundred bind groups.
 */
const MOST_PASSES = 32;

/** A forward pass: write tokens to `input`, run `plan`, read `logits`. */
export interface Pass {
  plan: Plan;
  input: Tensor;
  /** u32 `[sequences]`: the rows of the last tokens, of a pass of several without `all`. */
  ends?: Tensor;
  logits: Tensor;
}

/** The shape that a pass is recorded for. */
export interface PassShape extends CachePass {
  /** Whether to compute logits after each token, not only after the last. */
  readonly all: boolean;
  /** Whether to compute the normed state after the last token instead of logits. */
  readonly states?: boolean;
}

/** What distinguishes the recorded passes. */
const keyOf = (
  { first, sequences, tokens, all, states = false }: PassShape,
): string => JSON.stringify([first, sequences, tokens, all, states]);

/** The row of each sequence's last token, u32 `[sequences]`; belongs to `plan`. */
function lastRows(plan: Plan, { sequences, tokens }: CachePass): Tensor {
  const rows = Uint32Array.from(
    { length: sequences },
    (_, sequence) => (sequence + 1) * tokens - 1,
  );
  const shape = [sequences];
  const tensor = Tensor.create(plan.gpu, "u32", shape, rows, "last rows");
  plan.own(tensor);
  return tensor;
}

/** One or more sequences, decoded by one loop at a time. */
export class GpuSequences implements Disposable {
  readonly reader: RingReader;
  readonly #passes = new Map<string, Pass>();
  readonly #own = new DisposableStack();
  /** What sampling reads and writes. */
  readonly state: SamplerState;
  #cache: GpuKvCache;
  #firstLogits?: Tensor;

  private constructor(
    readonly ops: GpuOps,
    readonly weights: Weights<Matrix<Tensor>>,
    readonly paces: Paces,
    cache: GpuKvCache,
  ) {
    const { gpu, config } = ops, { sequences } = cache;
    this.#cache = cache;
    const size = { sequences, vocab: config.vocabSize, steps: RING };
    this.state = this.#own.use(
      new SamplerState(gpu, size, cache.lengthsOnDevice),
    );
    this.reader = this.#own.use(new RingReader(gpu, this.state.ring));
  }

  /**
   * Creates empty sequences of up to `context` tokens. `paces` are known from other
   * sequences of the model.
   *
   * @throws {MemoryError} if the device has no memory for them.
   */
  static async create(
    ops: GpuOps,
    weights: Weights<Matrix<Tensor>>,
    { sequences, context, dtype }: CacheSize,
    paces?: Paces,
  ): Promise<GpuSequences> {
    const { gpu, config } = ops;
    paces ??= pacesOf(gpu, config);
    const cache = await GpuKvCache.create(
      gpu,
      config,
      sequences,
      context,
      dtype,
    );
    const made = new GpuSequences(ops, weights, paces, cache);
    await made.reader.prepare(READBACKS);
    return made;
  }

  get cache(): GpuKvCache {
    return this.#cache;
  }

  /**
   * The shape of a decode step: one token per sequence, which sampling has written to
   * the pass's input.
   */
  get decodeShape(): PassShape {
    const { sequences } = this.#cache;
    return { first: 0, sequences, tokens: 1, all: false };
  }

  /** Returns the pass of a shape, recorded on first use and sealed when it first runs. */
  pass(shape: PassShape): Pass {
    const recording = this.#record(shape);
    for (;;) {
      const { done, value } = recording.next();
      if (done) return value;
    }
  }

  /** Returns {@linkcode pass} of a shape; the event loop turns while it is recorded. */
  async recorded(shape: PassShape, signal?: AbortSignal): Promise<Pass> {
    using recording = this.#record(shape);
    const rests = new Rests();
    for (;;) {
      const { done, value } = recording.next();
      if (done) return value;
      await rests.rest(signal);
    }
  }

  /** Records the pass of a shape, verb by verb. */
  *#record(shape: PassShape): Generator<void, Pass> {
    const { sequences, tokens, all, states = false } = shape;
    const key = keyOf(shape);
    const known = this.#passes.get(key);
    if (known) {
      this.#passes.delete(key);
      this.#passes.set(key, known); // the latest
      return known;
    }
    const { ops } = this, { gpu } = ops;
    const whole = sequences === this.#cache.sequences && tokens === 1 &&
      !states;
    if (this.#passes.size >= MOST_PASSES) {
      const [oldest, { plan }] = [...this.#passes]
        .find(([, { input }]) => input !== this.state.tokens)!;
      plan[Symbol.dispose]();
      this.#passes.delete(oldest);
    }
    using unfinished = new DisposableStack();
    const literals = this.#cache.literals(tokens);
    const plan = unfinished.use(new Plan(gpu, literals));
    const rows = sequences * tokens;
    const input = whole
      ? this.state.tokens
      : Tensor.create(gpu, "u32", [rows], undefined, "prompt");
    if (!whole) plan.own(input);
    const hasEnds = states || tokens > 1 && !all;
    const ends = hasEnds ? lastRows(plan, shape) : undefined;
    const wanted = { all, ends, states };
    const logits = yield* recordVerbs(ops, {
      ...{ weights: this.weights, input, plan, cache: this.#cache },
      ...{ shape, wanted },
    });
    const pass = { plan, input, ends, logits };
    this.#passes.set(key, pass);
    unfinished.move();
    return pass;
  }

  /** Shaders, not compiled yet, for decode steps. */
  stepShaders(): Shader[] {
    return this.pass(this.decodeShape).plan.shaders;
  }

  /**
   * Shaders, not compiled yet, for prompts in chunks of `rows` tokens. Records one pass per
   * distinct chunk length, up to the number of passes that are kept; the others need few
   * shaders of their own. The first `cached` tokens need none. If there are any, so are those that
   * sample as `sampling` says.
   */
  promptShaders(
    prompts: readonly (readonly number[])[],
    rows: number,
    { cached = 0, sampling }: { cached?: number; sampling?: SamplingChoice } =
      {},
  ): Shader[] {
    const firsts = new Map<number, number>();
    prompts.forEach(({ length }, sequence) => {
      const fits = Math.min(length, this.#cache.context);
      const parts = this.#passesOf(fits, rows, { all: false, cached });
      for (const { padded } of parts) {
        if (!firsts.has(padded)) firsts.set(padded, sequence);
      }
    });
    const passes = [...firsts].slice(0, MOST_PASSES - 1).map(
      ([tokens, first]) =>
        this.pass({ first, sequences: 1, tokens, all: false }),
    );
    const shaders = passes.flatMap(({ plan }) => plan.shaders);
    // Later runs do not record it twice before their prompt.
    if (!sampling || shaders.length === 0) return shaders;
    using sampler = new Plan(this.ops.gpu);
    addSampling(sampler, passes[0].logits, sampling, this.state);
    return [...shaders, ...sampler.shaders];
  }

  #passesOf(
    length: number,
    rows: number,
    options: { all: boolean; cached?: number },
  ) {
    const { software } = this.ops.gpu;
    const { context: room } = this.#cache;
    return promptPasses(length, rows, this.paces.work, {
      ...{ software, room },
      ...options,
    });
  }

  /**
   * Submits a prompt in passes of up to `rows` tokens into a sequence that has its first
   * `cached` tokens; yields the logits of each pass.
   */
  async *prefill(
    prompt: readonly number[],
    { sequence, rows, all, states, cached, signal }: {
      sequence: number;
      rows: number;
      all: boolean;
      states?: boolean;
      cached?: number;
      signal?: AbortSignal;
    },
  ): AsyncGenerator<Tensor, void> {
    const { paces, ops: { gpu } } = this, cache = this.#cache;
    for (
      const part of this.#passesOf(prompt.length, rows, { all, cached })
    ) {
      signal?.throwIfAborted();
      const { begin, tokens, padded } = part;
      const pass = { first: sequence, sequences: 1, tokens };
      const shape = { ...pass, tokens: padded, all, states };
      const recorded = await this.recorded(shape, signal);
      const { plan, input, ends, logits } = recorded;
      input.write(0, paddedTo(padded, prompt.slice(begin, begin + tokens)));
      ends?.write(0, Uint32Array.of(tokens - 1));
      cache.begin(pass);
      const work = { begin, tokens: padded };
      await paces.prompt.run(
        plan,
        { length: begin },
        (dispatch) => dispatchWork(dispatch, paces.work, work),
        signal,
      );
      cache.advance();
      gpu.check();
      yield logits;
    }
  }

  /**
   * Submits the prompts of all sequences one after another, each truncated to the context;
   * returns the logits after each, `[sequences, vocab]`. The sequences are empty, or a single
   * one has the first `cached` tokens of its prompt.
   */
  async prefillAll(
    prompts: readonly (readonly number[])[],
    { rows, cached, signal }: {
      rows: number;
      cached?: number;
      signal?: AbortSignal;
    },
  ): Promise<Tensor> {
    const { gpu, config } = this.ops, { sequences, context } = this.#cache;
    let last: Tensor;
    for (const [sequence, prompt] of prompts.entries()) {
      const fits = prompt.slice(0, context);
      const options = { sequence, rows, all: false, cached, signal };
      for await (last of this.prefill(fits, options));
      if (sequences === 1) break;
      // The next prompt overwrites these logits.
      this.#firstLogits ??= this.#own.use(
        Tensor.create(
          gpu,
          "f32",
          [sequences, config.vocabSize],
          undefined,
          "logits",
        ),
      );
      const row = 4 * config.vocabSize;
      const encoder = gpu.device.createCommandEncoder();
      encoder.copyBufferToBuffer(
        last!.buffer,
        0,
        this.#firstLogits.buffer,
        sequence * row,
        row,
      );
      gpu.device.queue.submit([encoder.finish()]);
    }
    return this.#firstLogits ?? last!;
  }

  /** Replaces the cache with an empty f32 one after a value did not fit f16. */
  async widen(): Promise<void> {
    const { sequences, context, dtype } = this.#cache,
      { gpu, config } = this.ops;
    if (dtype === "f32") {
      throw new DeviceError(
        "Cannot continue: a key or value is not a finite f32, so the weights or the device are faulty",
      );
    }
    this.forget();
    this.#cache[Symbol.dispose]();
    this.#cache = await GpuKvCache.create(
      gpu,
      config,
      sequences,
      context,
      "f32",
    );
    this.state.lengths = this.#cache.lengthsOnDevice;
  }

  /** Has passes recorded again. */
  forget(): void {
    for (const { plan } of this.#passes.values()) plan[Symbol.dispose]();
    this.#passes.clear();
  }

  [Symbol.dispose](): void {
    this.forget();
    this.#own[Symbol.dispose]();
    this.#cache[Symbol.dispose]();
  }
}
