/**
 * Sampling on the GPU: the dispatches that choose each sequence's next token and write
 * it where the next step reads it, so that a decode loop never waits for the CPU. The
 * choice is that of `sample` in lib/model/sampling.ts, up to f32 rounding.
 *
 * @module
 */
import { argmax } from "../../kernels/argmax.ts";
import { sampleDraw } from "../../kernels/sample_draw.ts";
import { sampleFinish } from "../../kernels/sample_finish.ts";
import { sampleHistogram } from "../../kernels/sample_histogram.ts";
import { BINS, chunkLength, WORKGROUP } from "../../kernels/sample_scores.ts";
import { sampleTopK } from "../../kernels/sample_top_k.ts";
import { laneConstants } from "../dispatch/capabilities.ts";
import {
  chooseLogitChunks,
  chooseSampling,
  chooseTopKParts,
  type SamplingPath,
} from "../dispatch/sampling.ts";
import type { Gpu } from "../webgpu/device.ts";
import type { Kernel, Operands } from "../webgpu/kernel.ts";
import type { Plan } from "../webgpu/plan.ts";
import type { Sampling } from "../model/sampling.ts";
import { LOW } from "../webgpu/wgsl.ts";
import { Tensor } from "../webgpu/tensor.ts";

/** Sampling state that a decode loop keeps on the device; all u32. */
export interface SamplerState {
  /** `[sequences]`: the chosen tokens, input of the next step. */
  tokens: Tensor;
  /** `[steps, sequences]`: the tokens or faults of step n are in row `n % steps`. */
  ring: Tensor;
  /** `[sequences]`: tokens in the KV cache. */
  lengths: Tensor;
  /**
   * `[sequences, ceil(vocab / 32)]`: a bit per token id, set if it is in the prompt or
   * the output.
   */
  seen: Tensor;
  /** `[sequences]`: tokens sampled so far, equal for all. */
  step: Tensor;
}

/** The sampling state without the lengths, which a KV cache holds. */
export type SamplerBuffers = Omit<SamplerState, "lengths">;

/** Numbers of sequences, of vocabulary tokens, and of steps that the ring keeps. */
export interface SamplerSize {
  sequences: number;
  vocab: number;
  steps: number;
}

/** Creates zeroed buffers for sampling with the lengths of a KV cache. */
export function createSamplerBuffers(
  gpu: Gpu,
  { sequences, vocab, steps }: SamplerSize,
): SamplerBuffers & Disposable {
  const u32 = (name: string, ...shape: number[]) =>
    Tensor.create(gpu, "u32", shape, undefined, `sampler ${name}`);
  const buffers = {
    tokens: u32("tokens", sequences),
    ring: u32("ring", steps, sequences),
    seen: u32("seen", sequences, Math.ceil(vocab / 32)),
    step: u32("step", sequences),
  };
  return {
    ...buffers,
    [Symbol.dispose]() {
      for (const tensor of Object.values(buffers)) tensor[Symbol.dispose]();
    },
  };
}

/** Creates zeroed buffers for sampling without a KV cache, lengths included. */
export function createSamplerState(
  gpu: Gpu,
  size: SamplerSize,
): SamplerState & Disposable {
  const buffers = createSamplerBuffers(gpu, size);
  const shape = [size.sequences];
  const lengths = Tensor.create(gpu, "u32", shape, undefined, "lengths");
  return {
    ...buffers,
    lengths,
    [Symbol.dispose]() {
      buffers[Symbol.dispose]();
      lengths[Symbol.dispose]();
    },
  };
}

/**
 * Records the dispatches that choose the next token of every sequence from
 * `logits` (f32 `[sequences, vocab]`): 2 for greedy decoding and a small top-k,
 * 3 without top-k and top-p, 4 otherwise. Sequence `s` draws with the seed
 * `(seed + s) mod 2³²` at its `state.step`.
 *
 * Each run then writes `tokens` and a row of `ring`, marks `seen`, adds `advance`
 * to `lengths` up to `longest`, and increments `step`. If logits cannot be sampled from,
 * `ring` has a `FAULT` (lib/dispatch/sampling.ts) and `tokens` some valid token.
 *
 * Dispose the result once the plan will not run again: it holds scratch memory.
 *
 * @throws {Error} if the vocabulary is not below 262,144, or a shape disagrees.
 */
export function addSampling(
  plan: Plan,
  logits: Tensor,
  sampling: Sampling,
  state: SamplerState,
  { advance = 1, longest = 2 ** 32 - 1 }: {
    advance?: number;
    longest?: number;
  } = {},
): Disposable {
  using scratch = new DisposableStack();
  new SamplingRecorder(plan, logits, sampling, state, scratch, {
    advance,
    longest,
  }).record();
  return scratch.move();
}

/** Records the sampling dispatches with the constants and uniforms they share. */
class SamplingRecorder {
  readonly #path: SamplingPath;
  readonly #reason: string;
  readonly #chunks: number;
  readonly #constants: Record<string, number>;
  readonly #uniforms: Record<string, number>;

  constructor(
    readonly plan: Plan,
    readonly logits: Tensor,
    readonly sampling: Sampling,
    readonly state: SamplerState,
    readonly scratch: DisposableStack,
    lengths: { advance: number; longest: number },
  ) {
    const [, vocab] = logits.shape;
    const { path, reason } = chooseSampling(sampling, vocab);
    this.#path = path;
    this.#reason = reason;
    this.#chunks = chooseLogitChunks(vocab, WORKGROUP);
    const { temperature, topK, topP, minP, repetitionPenalty, seed } = sampling;
    this.#constants = {
      ...laneConstants(plan.gpu),
      PENALTY: repetitionPenalty === 1 ? 0 : 1,
      HISTOGRAM: path === "histogram" ? 1 : 0,
      TOP_K: topK > 0 && topK < vocab ? 1 : 0,
      TOP_P: topP < 1 ? 1 : 0,
    };
    this.#uniforms = {
      penalty: inF32(repetitionPenalty),
      temperature: inF32(temperature),
      lowest: Math.max(Math.log(minP), LOW),
      width: 32 * Math.max(inF32(temperature), 1) / BINS, // e⁻³² is negligible
      seed,
      k: topK,
      p: inF32(topP),
      ...lengths,
    };
  }

  record(): void {
    const { state, logits } = this, [sequences] = logits.shape;
    const row: Operands = this.#constants.PENALTY
      ? { logits, seen: state.seen }
      : { logits };
    const records = this.#u32("records", sequences, this.#chunks, 4);
    if (this.#path === "greedy") {
      this.#add(argmax, { ...row, highest: records });
      this.#add(sampleFinish, { records, ...state });
    } else if (this.#path === "top-k") this.#recordTopK(row, records);
    else this.#recordDraw(row, records);
  }

  #recordTopK(row: Operands, records: Tensor): void {
    const { state, sampling: { topK } } = this;
    const candidates = this.#candidates();
    this.#add(sampleTopK, { ...row, candidates, records }, {
      PARTS: chooseTopKParts(topK),
    });
    this.#add(sampleFinish, { records, candidates, ...state }, {
      WINNERS: 0,
      CANDIDATES: 1,
    });
  }

  /** Draws from the whole vocabulary, or from the part of it that a histogram leaves. */
  #recordDraw(row: Operands, records: Tensor): void {
    const { state, state: { step }, logits: { shape: [sequences] } } = this;
    const highest = this.#u32("highest", sequences, this.#chunks, 4);
    if (this.#path === "draw") {
      this.#add(argmax, { ...row, highest });
      this.#add(sampleDraw, { ...row, highest, step, records });
      this.#add(sampleFinish, { records, ...state });
      return;
    }
    const histogram = this.#u32("histogram", sequences, 3, BINS);
    const candidates = this.#candidates();
    const limits = this.#u32("limits", sequences, 8);
    const found = { histogram, candidates, limits };
    this.#add(argmax, { ...row, highest, histogram });
    this.#add(sampleHistogram, { ...row, highest, histogram });
    this.#add(sampleDraw, { ...row, highest, step, records, ...found });
    this.#add(sampleFinish, { records, candidates, limits, ...state }, {
      CANDIDATES: 1,
      LIMITS: 1,
    });
  }

  #candidates(): Tensor {
    const [sequences, vocab] = this.logits.shape;
    const room = chunkLength(vocab, this.#chunks);
    return this.#u32("candidates", sequences, this.#chunks, room, 2);
  }

  #u32(name: string, ...shape: number[]): Tensor {
    const label = `sampling ${name}`;
    return this.scratch.use(
      Tensor.create(this.plan.gpu, "u32", shape, undefined, label),
    );
  }

  #add(
    kernel: Kernel,
    operands: Operands,
    more: Record<string, number> = {},
  ): void {
    this.plan.add(kernel, operands, {
      label: `sampling.${kernel.name}`,
      reason: this.#reason,
      constants: { ...of(this.#constants, kernel.constants), ...more },
      uniforms: of(this.#uniforms, kernel.uniforms),
    });
  }
}

/** The entries of `settings` that a kernel declares. */
function of(
  settings: Record<string, number>,
  known: object = {},
): Record<string, number> {
  return Object.fromEntries(
    Object.entries(settings).filter(([name]) => name in known),
  );
}

/**
 * Clamps a positive number so that it fits f32, as do its products with logits of up to
 * 10³⁰.
 */
const inF32 = (x: number) => Math.min(Math.max(x, 1e-20), 1e20);
