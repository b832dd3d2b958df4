/**
 * A model on the CPU: the same forward pass over {@linkcode CpuOps}.
 *
 * @module
 */
import type { Checkpoint } from "./checkpoint.ts";
import type { Qwen3Config } from "./config.ts";
import { type CpuKvCache, CpuOps, type CpuTensor } from "./ops_cpu.ts";
import { forward, type Weights } from "./qwen3.ts";
import type { Runner } from "./runner.ts";
import { markSeen, sample, type Sampling } from "./sampling.ts";
import { type LoadOptions, loadWeights } from "./weights.ts";

/** Prompt tokens that go through the model at once. */
const PREFILL_ROWS = 256;

/** {@linkcode Runner} on the CPU. */
export class CpuRunner implements Runner {
  readonly fallbacks = [];
  readonly #cache: CpuKvCache;

  private constructor(
    readonly config: Qwen3Config,
    readonly ops: CpuOps,
    readonly weights: Weights<CpuTensor>,
    readonly context: number,
  ) {
    this.#cache = ops.createCache(1, context);
  }

  /** Loads the weights of `checkpoint` into memory. */
  static async load(
    checkpoint: Checkpoint,
    options: LoadOptions & { context: number },
  ): Promise<CpuRunner> {
    const ops = new CpuOps(checkpoint.config);
    try {
      const weights = await loadWeights(checkpoint, {
        allocate: (dtype, shape) => ops.tensor(dtype, shape),
        write({ data }, begin, bytes) {
          new Uint8Array(data.buffer, data.byteOffset + begin).set(bytes);
        },
        settle: () => Promise.resolve(),
      }, options);
      return new CpuRunner(checkpoint.config, ops, weights, options.context);
    } catch (error) {
      ops[Symbol.dispose]();
      throw error;
    }
  }

  async logits(
    tokens: readonly number[],
    { all = false, signal }: { all?: boolean; signal?: AbortSignal } = {},
  ): Promise<Float32Array> {
    const { vocabSize } = this.config;
    const out = new Float32Array((all ? tokens.length : 1) * vocabSize);
    let at = 0;
    for await (const logits of this.#prefill(tokens, all, signal)) {
      out.set(logits, at);
      if (all) at += logits.length;
    }
    return out;
  }

  async *generate(
    tokens: readonly number[],
    sampling: Sampling,
    maxTokens: number,
    signal?: AbortSignal,
  ): AsyncGenerator<readonly number[], void> {
    const seen = new Uint32Array(Math.ceil(this.config.vocabSize / 32));
    markSeen(seen, tokens);
    let logits: Float32Array | undefined;
    for await (logits of this.#prefill(tokens, false, signal));
    for (let step = 0; step < maxTokens; step++) {
      const id = sample(logits!, sampling, seen, step);
      markSeen(seen, [id]);
      yield [id];
      if (step === maxTokens - 1) return;
      await breathe();
      signal?.throwIfAborted();
      logits = this.#forward([id], false);
    }
  }

  async *#prefill(
    tokens: readonly number[],
    all: boolean,
    signal?: AbortSignal,
  ): AsyncGenerator<Float32Array, void> {
    this.#cache.lengths.fill(0);
    for (let begin = 0; begin < tokens.length; begin += PREFILL_ROWS) {
      await breathe();
      signal?.throwIfAborted();
      yield this.#forward(tokens.slice(begin, begin + PREFILL_ROWS), all);
    }
  }

  #forward(tokens: readonly number[], all: boolean): Float32Array {
    this.#cache.pass = { first: 0, tokens: tokens.length };
    const input: CpuTensor = {
      dtype: "u32",
      shape: [tokens.length],
      data: Uint32Array.from(tokens),
    };
    const logits = forward(this.ops, this.weights, input, this.#cache, all);
    this.#cache.lengths[0] += tokens.length;
    return logits.data as Float32Array;
  }

  [Symbol.dispose](): void {
    this.#cache[Symbol.dispose]();
    this.ops[Symbol.dispose]();
  }
}

/** Lets timers and signals in between two passes, which block the thread. */
const breathe = () => new Promise<void>((resolve) => setTimeout(resolve, 0));
