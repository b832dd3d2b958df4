/**
 * Runs a model on the CPU with {@linkcode CpuOps}.
 *
 * @module
 */
import {
  type CachePass,
  type KeptCache,
  positionsFor,
  positionsOf,
  requireRoom,
} from "../model/kv_cache.ts";
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import type { CpuCacheDtype, CpuKvCache } from "./kv_cache.ts";
import { CpuOps, type CpuOptions } from "./ops.ts";
import { CPU_PASS_ROWS } from "../dispatch/pass_rows.ts";
import { Rests } from "../dispatch/rests.ts";
import {
  chooseStateBatches,
  CPU_PASSES,
  padBatch,
} from "../dispatch/state_batches.ts";
import { bytesOf, type CpuTensor } from "../formats/tensor.ts";
import type { Matrix } from "../formats/matrix.ts";
import { familyOf } from "../model/families.ts";
import { listWeights, mapWeights, type Weights } from "../model/family.ts";
import type { Rows, RowsSize } from "../model/rows.ts";
import type { Runner } from "../model/runner.ts";
import { CpuRows, type Forward } from "./rows.ts";
import { host } from "../host.ts";
import {
  allowedNext,
  faultText,
  historyOf,
  type MaskSource,
  type SampledTokens,
  sampleEach,
  type Sampling,
  validToken,
} from "../model/sampling.ts";
import { type LoadOptions, loadWeights } from "../model/weights.ts";

/** {@linkcode Runner} on the CPU. */
export class CpuRunner implements Runner {
  readonly fallbacks = [];
  readonly hasRows = true;
  readonly #cache: CpuKvCache;
  readonly #rests = new Rests();
  #disposed = false;

  private constructor(
    readonly config: Qwen3Config,
    readonly ops: CpuOps,
    readonly weights: Weights<Matrix<CpuTensor>>,
    readonly context: number,
    readonly cacheDtype: CpuCacheDtype,
  ) {
    this.#cache = ops.createCache(1, context, cacheDtype);
  }

  /** Loads the weights of `checkpoint` into memory. */
  static async load(
    checkpoint: Checkpoint,
    options: LoadOptions & Pick<CpuOptions, "threads" | "integers"> & {
      context: number;
      cacheDtype?: CpuCacheDtype;
    },
  ): Promise<CpuRunner> {
    const { threads, integers } = options;
    const ops = new CpuOps(checkpoint.config, { threads, integers });
    try {
      const weights = await loadWeights(checkpoint, {
        allocate: (bytes) => ops.tensor("u32", [bytes / 4]),
        write: (buffer, begin, bytes) => bytesOf(buffer).set(bytes, begin),
        settle: () => Promise.resolve(),
      }, options);
      const inOrder = new Map<Matrix<CpuTensor>, Matrix<CpuTensor>>();
      const rests = new Rests();
      for (const matrix of listWeights(weights)) {
        ops.together(matrix);
        inOrder.set(matrix, matrix);
        // In f32, rows one after another are multiplied faster.
        if (!integers) continue;
        const slices = ops.interleave(matrix);
        let next = slices.next();
        for (; !next.done; next = slices.next()) {
          await rests.rest(options.signal);
        }
        await rests.rest(options.signal);
        inOrder.set(matrix, next.value);
      }
      const { context, cacheDtype = "f32" } = options;
      return new CpuRunner(
        checkpoint.config,
        ops,
        mapWeights(weights, (matrix) => inOrder.get(matrix)!),
        context,
        cacheDtype,
      );
    } catch (error) {
      ops[Symbol.dispose]();
      throw error;
    }
  }

  get memoryBytes(): number {
    return this.#disposed ? 0 : this.ops.memoryBytes;
  }

  async logits(
    tokens: readonly number[],
    { all = false, signal }: { all?: boolean; signal?: AbortSignal } = {},
  ): Promise<Float32Array> {
    this.#requireMemory("compute logits");
    const { vocabSize } = this.config;
    const out = new Float32Array((all ? tokens.length : 1) * vocabSize);
    let at = 0;
    this.#cache.reset();
    const prefill = this.#prefill(this.#cache, 0, tokens, { all, signal });
    for await (const logits of prefill) {
      out.set(logits, at);
      if (all) at += logits.length;
    }
    return out;
  }

  async states(
    texts: readonly (readonly number[])[],
    signal?: AbortSignal,
  ): Promise<Float32Array[]> {
    this.#requireMemory("embed");
    const { hiddenSize } = this.config;
    const all: Float32Array[] = new Array(texts.length);
    const lengths = texts.map(({ length }) => length);
    const rows = CPU_PASS_ROWS;
    for (const batch of chooseStateBatches(lengths, rows, CPU_PASSES)) {
      const { texts: which, tokens } = batch;
      const some = which.map((text) => texts[text]);
      let states: Float32Array;
      if (tokens <= rows) {
        const sequences = some.length;
        using cache = this.ops.createCache(
          sequences,
          tokens,
          this.cacheDtype,
          { shared: true },
        );
        const { input, ends } = padBatch(some, tokens);
        const pass = { first: 0, sequences, tokens };
        states = await this.#forward(cache, pass, input, { ends, signal });
      } else {
        this.#cache.reset();
        const options = { states: true, signal };
        for await (states of this.#prefill(this.#cache, 0, some[0], options));
      }
      which.forEach((text, i) =>
        all[text] = states.slice(i * hiddenSize, (i + 1) * hiddenSize)
      );
    }
    return all;
  }

  requireRoom(sequences: number, context: number): void {
    const dtype = this.cacheDtype;
    requireRoom(this.config, { sequences, context, dtype }, {
      name: "the CPU",
      free: host.freeMemory(),
    });
  }

  rows(size: RowsSize): Promise<Rows> {
    this.#requireMemory("start an engine");
    const { ops, config, cacheDtype: dtype } = this, { slots, context } = size;
    const free = host.freeMemory();
    const positions = size.positions ??
      positionsFor(config, { slots, context, dtype }, { free });
    const require = (positions: number) => this.requireRoom(1, positions);
    const forward: Forward = (...call) => this.#forward(...call);
    const all = { ...size, positions };
    return Promise.resolve(
      new CpuRows(ops, config, forward, dtype, all, require),
    );
  }

  get kept(): KeptCache {
    return this.#cache;
  }

  cachedTokens(prompt: readonly number[]): number {
    return this.#cache.heldOf(prompt);
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
    this.#requireMemory("generate");
    const sequences = prompts.length;
    const left = maxTokens - begun;
    using several = sequences > 1
      ? this.#several(sequences, positionsOf(prompts, left, this.context))
      : undefined;
    const cache = several ?? this.#cache;
    if (cached > 0) cache.resume(cached);
    else cache.reset();
    const texts = prompts.map((prompt) => [...prompt]);
    const options = { maxTokens, begun, cached, masks, signal };
    let isFaulty = false;
    try {
      for await (const ids of this.#run(cache, texts, sampling, options)) {
        if (ids.some((id) => faultText(id))) isFaulty = true;
        yield ids;
      }
    } finally {
      // A NaN among a pass's values spreads to the rows before it.
      cache.hold(texts[0].slice(0, isFaulty ? 0 : cache.lengths[0]));
    }
  }

  /**
   * Samples tokens after `texts`, which grow with them and end with `begun` tokens of their
   * replies. The first `cached` tokens of the first are in the cache.
   */
  async *#run(
    cache: CpuKvCache,
    texts: readonly number[][],
    sampling: Sampling,
    { maxTokens, begun, cached, masks, signal }: {
      maxTokens: number;
      begun: number;
      cached: number;
      masks: readonly (MaskSource | undefined)[];
      signal?: AbortSignal;
    },
  ): AsyncGenerator<SampledTokens, void> {
    const { vocabSize } = this.config, sequences = texts.length;
    const rows: Float32Array[] = [];
    for (const [s, text] of texts.entries()) {
      const rest = s === 0 ? text.slice(cached) : text;
      let last: Float32Array;
      for await (last of this.#prefill(cache, s, rest, { signal }));
      rows.push(last!.slice()); // the next prompt overwrites them
    }
    const histories = texts.map((text) => {
      const end = text.length - begun;
      return historyOf(vocabSize, text.slice(0, end), text.slice(end));
    });
    for (let step = begun; step < maxTokens; step++) {
      const allowed = allowedNext(masks, vocabSize);
      const ids = sampleEach(rows, sampling, histories, step, allowed);
      yield ids;
      if (step === maxTokens - 1) return;
      cache.stepBackIfFull();
      const pass = { first: 0, sequences, tokens: 1 };
      const next = ids.map(validToken);
      next.forEach((id, s) => texts[s].push(id));
      const logits = await this.#forward(cache, pass, next, { signal });
      rows.forEach((_, s) =>
        rows[s] = logits.subarray(s * vocabSize, (s + 1) * vocabSize)
      );
    }
  }

  #several(sequences: number, context: number): CpuKvCache {
    this.requireRoom(sequences, context);
    return this.ops.createCache(sequences, context, this.cacheDtype);
  }

  /**
   * Runs a prompt, or the rest of one, in chunks; yields the logits of each chunk, or with
   * `states` the normed state after its last token.
   */
  async *#prefill(
    cache: CpuKvCache,
    sequence: number,
    tokens: readonly number[],
    { all, states, signal }: {
      all?: boolean;
      states?: boolean;
      signal?: AbortSignal;
    },
  ): AsyncGenerator<Float32Array, void> {
    for (let begin = 0; begin < tokens.length; begin += CPU_PASS_ROWS) {
      const chunk = tokens.slice(begin, begin + CPU_PASS_ROWS);
      const pass = { first: sequence, sequences: 1, tokens: chunk.length };
      const ends = states ? [chunk.length - 1] : undefined;
      yield await this.#forward(cache, pass, chunk, { all, ends, signal });
    }
  }

  async #forward(
    cache: CpuKvCache,
    pass: CachePass,
    tokens: ArrayLike<number>,
    { all, ends, signal }: {
      all?: boolean;
      ends?: ArrayLike<number>;
      signal?: AbortSignal;
    },
  ): Promise<Float32Array> {
    cache.begin(pass);
    const ids = (list: ArrayLike<number>): CpuTensor => ({
      dtype: "u32",
      shape: [list.length],
      data: Uint32Array.from(list),
    });
    const { forward } = familyOf(this.config);
    const whole = forward(
      this.ops,
      this.weights,
      ids(tokens),
      cache,
      { all, ends: ends && ids(ends), states: ends !== undefined },
    );
    using slices = this.ops.inSlices(whole);
    let next = slices.next();
    for (; !next.done; next = slices.next()) await this.#rests.rest(signal);
    cache.advance();
    return next.value.data as Float32Array;
  }

  #requireMemory(action: string): void {
    if (this.#disposed) {
      throw new Error(`Cannot ${action}: the model was disposed`);
    }
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    this.#cache[Symbol.dispose]();
    this.ops[Symbol.dispose]();
  }
}
