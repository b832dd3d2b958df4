/**
 * Checks the GPU's sampling against the CPU's, token by token.
 *
 * @module
 */
import type { Gpu } from "../webgpu/device.ts";
import { Plan } from "../webgpu/plan.ts";
import { chooseSampling } from "../dispatch/sampling.ts";
import { addSampling, sampledRow, SamplerState } from "../gpu/sample.ts";
import {
  adjusted,
  type History,
  sample,
  type Sampling,
} from "../model/sampling.ts";
import { Tensor } from "../webgpu/tensor.ts";

/** Runs the dispatches that sample tokens on logits that the host writes. */
export class SamplingTwin implements Disposable {
  readonly #own = new DisposableStack();
  readonly #logits: Tensor;
  readonly #state: SamplerState;
  readonly #plan: Plan;

  constructor(
    readonly gpu: Gpu,
    readonly sampling: Sampling,
    size: { sequences: number; vocab: number },
    readonly masked = false,
  ) {
    const { sequences, vocab } = size;
    this.#logits = this.#own.use(Tensor.create(gpu, "f32", [sequences, vocab]));
    this.#state = this.#own.use(
      new SamplerState(gpu, { ...size, steps: 1 }),
    );
    const choice = chooseSampling([sampledRow(sampling, masked)], vocab);
    this.#plan = this.#own.use(new Plan(gpu));
    addSampling(this.#plan, this.#logits, choice, this.#state);
  }

  /**
   * Describes how the tokens that the GPU samples from `rows` differ from the CPU's,
   * `expected`; undefined if they do not. What both depend on besides are
   * histories before sampling and bits that masks have filled.
   */
  async difference(
    rows: readonly Float32Array[],
    { histories, allowed, step }: {
      histories: readonly History[];
      allowed: readonly (Uint32Array<ArrayBuffer> | undefined)[];
      step: number;
    },
    expected: readonly number[],
  ): Promise<string | undefined> {
    const { gpu, sampling } = this, state = this.#state;
    const own = (s: number): Sampling => ({
      ...sampling,
      seed: (sampling.seed + s) >>> 0,
    });
    rows.forEach((row, s) => {
      this.#logits.write(s * row.byteLength, row.slice());
      const { masked } = this;
      state.set(s, own(s), () => histories[s], { step, masked });
      if (masked) state.allow(s, allowed[s]);
    });
    this.#plan.run();
    const { buffer, bytes } = state.ring;
    const chosen = new Uint32Array(await gpu.readBuffer(buffer, 0, bytes));
    gpu.check();
    for (const [s, row] of rows.entries()) {
      const [on, off] = [chosen[s], expected[s]];
      const scores = adjusted(row, sampling, histories[s], allowed[s]);
      if (on === off || nearly(on, off, scores, own(s), step)) continue;
      return `sampling of token ${step}${
        rows.length > 1 ? ` of sequence ${s}` : ""
      } differs from the CPU: ${on} on the GPU (logit ${
        row[on] ?? "beyond the vocabulary"
      }), ${off} on the CPU (logit ${row[off]})`;
    }
  }

  [Symbol.dispose](): void {
    this.#own[Symbol.dispose]();
  }
}

/** Whether rounding in f32 could make the GPU choose `on` instead of `off`. */
function nearly(
  on: number,
  off: number,
  scores: Float32Array,
  sampling: Sampling,
  step: number,
): boolean {
  if (on >= scores.length) return false;
  const nudged = scores.slice();
  const by = (id: number) =>
    1e-4 * Math.max(1, sampling.temperature) + 1e-6 * Math.abs(scores[id]);
  nudged[on] += by(on);
  nudged[off] -= by(off);
  return sample(nudged, sampling, step) === on;
}
