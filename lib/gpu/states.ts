/**
 * The states after the last tokens of many texts, which share forward passes on the GPU.
 *
 * @module
 */
import { FLAG_WORDS } from "../../kernels/heads.ts";
import { chooseStateRows, dispatchWork } from "../dispatch/pass_rows.ts";
import { Rests } from "../dispatch/rests.ts";
import { padBatch, type StateBatch } from "../dispatch/state_batches.ts";
import { storedAs } from "../formats/cached.ts";
import type { Matrix } from "../formats/matrix.ts";
import { recordVerbs } from "./record.ts";
import type { Weights } from "../model/family.ts";
import type { Shader } from "../webgpu/pipeline.ts";
import { Plan } from "../webgpu/plan.ts";
import { Tensor } from "../webgpu/tensor.ts";
import { GpuKvCache, type SharedLayers } from "./kv_cache.ts";
import type { GpuOps } from "./ops.ts";
import type { GpuSequences } from "./sequences.ts";

/** Maximum number of recorded passes to keep. Not measured. */
const MOST_PASSES = 8;

/** A pass of several texts: write `input` and `ends`, run `plan`, read `states`. */
interface StatesPass {
  plan: Plan;
  input: Tensor;
  ends: Tensor;
  states: Tensor;
}

const keyOf = (sequences: number, tokens: number) => `${sequences} ${tokens}`;

/** Copies bytes to byte `at` of another tensor. */
function copy(from: Tensor, to: Tensor, at: number, bytes: number): void {
  const { device } = from.gpu;
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(from.buffer, 0, to.buffer, at, bytes);
  device.queue.submit([encoder.finish()]);
}

/** Passes of several short texts, whose keys and values are kept for one layer at a time. */
export class GpuStates implements Disposable {
  readonly #ops: GpuOps;
  readonly #weights: Weights<Matrix<Tensor>>;
  readonly #shared: SharedLayers;
  readonly #passes = new Map<string, StatesPass>();

  /** The most rows of a pass of several texts. */
  readonly rows: number;

  /** The flags of passes of several texts. */
  get flags(): Tensor {
    return this.#shared.state;
  }

  /**
   * @param one the sequence for texts that take several passes
   * @param passRows the most rows of such a pass
   */
  constructor(readonly one: GpuSequences, readonly passRows: number) {
    this.#ops = one.ops;
    const { work } = one.paces, { software } = one.ops.gpu;
    const rows = this.rows = chooseStateRows(passRows, work, software);
    this.#weights = one.weights;
    const { gpu, config } = this.#ops;
    const { dtype, width } = storedAs(one.cache.dtype, config.headDim);
    const shape = [rows, config.numKeyValueHeads, width];
    const create = (label: string) =>
      Tensor.create(gpu, dtype, shape, undefined, label);
    this.#shared = {
      k: create("keys of a layer"),
      v: create("values of a layer"),
      state: Tensor.create(gpu, "u32", [FLAG_WORDS], undefined, "flags"),
    };
  }

  /**
   * Computes the states of the texts in `batches`, one after another, `[texts, hidden]`;
   * undefined if the cache's flags say that something did not fit.
   */
  async run(
    batches: readonly StateBatch[],
    texts: readonly (readonly number[])[],
    signal?: AbortSignal,
  ): Promise<Float32Array | undefined> {
    const { one, rows } = this, { gpu, config } = this.#ops;
    const { hiddenSize } = config, { state } = this.#shared;
    const count = batches.reduce((sum, { texts }) => sum + texts.length, 0);
    // The last element is a flag, so that one read does.
    const shape = [count * hiddenSize + 1];
    using all = Tensor.create(gpu, "f32", shape, undefined, "states");
    state.write(0, new Uint32Array(FLAG_WORDS));
    let at = 0;
    for (const batch of batches) {
      const some = batch.texts.map((text) => texts[text]);
      let states: Tensor;
      if (batch.tokens <= rows) {
        states = await this.#short(some, batch.tokens, signal);
      } else {
        states = await this.#long(some[0], signal);
        // The next text clears the flags.
        if ((await one.cache.flags.read())[0] !== 0) return undefined;
      }
      const bytes = 4 * some.length * hiddenSize;
      copy(states, all, at, bytes);
      at += bytes;
    }
    copy(state, all, at, 4);
    const values = await all.read();
    return values.at(-1) === 0 ? values.subarray(0, -1) : undefined;
  }

  /** Runs texts together, each padded to `tokens` tokens. */
  async #short(
    texts: readonly (readonly number[])[],
    tokens: number,
    signal?: AbortSignal,
  ): Promise<Tensor> {
    const { paces } = this.one;
    const pass = await this.#recorded(texts.length, tokens, signal);
    const padded = padBatch(texts, tokens);
    pass.input.write(0, padded.input);
    pass.ends.write(0, padded.ends);
    await paces.prompt.run(
      pass.plan,
      { length: 0 },
      (dispatch) => dispatchWork(dispatch, paces.work, { begin: 0, tokens }),
      signal,
    );
    this.#ops.gpu.check();
    return pass.states;
  }

  /** Runs a text in several passes. */
  async #long(text: readonly number[], signal?: AbortSignal): Promise<Tensor> {
    const { one, passRows: rows } = this;
    one.cache.reset();
    let last: Tensor;
    const options = { sequence: 0, rows, all: false, states: true, signal };
    for await (last of one.prefill(text, options));
    return last!;
  }

  /**
   * Shaders, not compiled yet, of passes of several texts. Records the passes of up to as
   * many shapes as are kept.
   */
  shaders(batches: readonly StateBatch[]): Shader[] {
    const shapes = new Map(
      batches.filter(({ tokens }) => tokens <= this.rows)
        .map(({ texts, tokens }) => [keyOf(texts.length, tokens), [
          texts.length,
          tokens,
        ]]),
    );
    return [...shapes.values()].slice(0, MOST_PASSES).flatMap(
      ([sequences, tokens]) => {
        const recording = this.#record(sequences, tokens);
        for (;;) {
          const { done, value } = recording.next();
          if (done) return value.plan.shaders;
        }
      },
    );
  }

  /** Returns the pass of a shape; the event loop turns while it is recorded. */
  async #recorded(
    sequences: number,
    tokens: number,
    signal?: AbortSignal,
  ): Promise<StatesPass> {
    using recording = this.#record(sequences, tokens);
    const rests = new Rests();
    for (;;) {
      const { done, value } = recording.next();
      if (done) return value;
      await rests.rest(signal);
    }
  }

  /** Records the pass of a shape, verb by verb. */
  *#record(sequences: number, tokens: number): Generator<void, StatesPass> {
    const key = keyOf(sequences, tokens), known = this.#passes.get(key);
    if (known) return known;
    if (this.#passes.size >= MOST_PASSES) {
      const [[oldest, { plan }]] = this.#passes;
      plan[Symbol.dispose]();
      this.#passes.delete(oldest);
    }
    const ops = this.#ops, { gpu, config } = ops, { dtype } = this.one.cache;
    using unfinished = new DisposableStack();
    const plan = unfinished.use(new Plan(gpu));
    const owned = (label: string, rows: number) => {
      const tensor = Tensor.create(gpu, "u32", [rows], undefined, label);
      plan.own(tensor);
      return tensor;
    };
    const input = owned("texts", sequences * tokens);
    const ends = owned("ends of texts", sequences);
    const shared = this.#shared;
    const cache = new GpuKvCache(gpu, config, sequences, tokens, dtype, {
      shared,
    });
    plan.own(cache);
    const states = yield* recordVerbs(ops, {
      ...{ weights: this.#weights, input, plan, cache },
      shape: { first: 0, sequences, tokens },
      wanted: { ends, states: true },
    });
    const pass = { plan, input, ends, states };
    this.#passes.set(key, pass);
    unfinished.move();
    return pass;
  }

  [Symbol.dispose](): void {
    for (const { plan } of this.#passes.values()) plan[Symbol.dispose]();
    this.#passes.clear();
    const { k, v, state } = this.#shared;
    for (const tensor of [k, v, state]) tensor[Symbol.dispose]();
  }
}
