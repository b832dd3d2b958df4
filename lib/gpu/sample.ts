/**
 * Sampling on the GPU: the dispatches that choose each sequence's next token and
 * write it where the next step reads it, so that a decode loop never waits for
 * the CPU. They choose what {@linkcode sample} of lib/model/sampling.ts chooses, up to
 * the rounding of f32.
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
import type { Gpu } from "../webgpu/device.ts";
import type { Kernel, Operands } from "../webgpu/kernel.ts";
import type { Plan } from "../webgpu/plan.ts";
import type { Sampling } from "../model/sampling.ts";
import { Tensor } from "../webgpu/tensor.ts";

/** What a decode loop keeps on the device, all u32. */
export interface SamplerState {
  /** `[sequences]`: the chosen tokens, input of the next step. */
  tokens: Tensor;
  /** `[steps, sequences]`: the tokens of step n are in row `n % steps`. */
  ring: Tensor;
  /** `[sequences]`: tokens in the KV cache. */
  lengths: Tensor;
  /** `[sequences, ceil(vocab / 32)]`: a bit for each token of prompt and output (see `markSeen`). */
  seen: Tensor;
  /** `[sequences]`: tokens chosen so far, the same for all. */
  step: Tensor;
}

/** What sampling keeps besides the lengths, which a KV cache has. */
export type SamplerBuffers = Omit<SamplerState, "lengths">;

/** Sequences to sample for, and the steps whose tokens the ring keeps. */
export interface SamplerSize {
  sequences: number;
  vocab: number;
  steps: number;
}

/** Buffers of zeros for sampling with the lengths of a KV cache. */
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

/** Buffers of zeros for sampling, with lengths of their own. */
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

/** Which dispatches choose a token. */
export type SamplingPath = "greedy" | "draw" | "top-k" | "histogram";

/** Up to this many, top-k is left to one workgroup after each chunk has named its own. */
const SMALL_TOP_K = 64;

/** Chooses the dispatches, and says why. */
export function chooseSampling(
  { temperature, topK, topP }: Sampling,
  vocab: number,
): { path: SamplingPath; reason: string } {
  if (temperature === 0) {
    return { path: "greedy", reason: "temperature 0: the highest logit" };
  }
  if (topK > 0 && topK < vocab) {
    return topK <= SMALL_TOP_K
      ? { path: "top-k", reason: `top-k of ${topK}: at most ${SMALL_TOP_K}` }
      : {
        path: "histogram",
        reason: `top-k of ${topK}: more than ${SMALL_TOP_K}`,
      };
  }
  return topP < 1
    ? { path: "histogram", reason: `top-p of ${topP} over the vocabulary` }
    : { path: "draw", reason: "neither top-k nor top-p" };
}

/**
 * Records the dispatches that choose the next token of every sequence from
 * `logits` (f32 `[sequences, vocab]`): 2 for greedy decoding and a small top-k,
 * 3 without top-k and top-p, 4 otherwise. Sequence `s` draws as
 * {@linkcode sample} does with `(seed + s) mod 2³²` at its `state.step`.
 *
 * Each run then writes `tokens` and a row of `ring`, marks `seen`, adds `advance`
 * to `lengths` (1 after a decode step, the prompt's tokens after a prefill), up to
 * `longest`, and counts `step` up. A logit that is NaN or −Infinity counts as −10³⁰, +Infinity
 * as 10³⁰: some token is always chosen.
 *
 * Dispose the result when the plan is not run any more: it holds scratch memory.
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
  const { gpu } = plan;
  const [sequences, vocab] = logits.shape;
  const chunks = chunksOf(vocab);
  const { path, reason } = chooseSampling(sampling, vocab);
  const { temperature, topK, topP, minP, repetitionPenalty, seed } = sampling;

  using scratch = new DisposableStack();
  const u32 = (name: string, ...shape: number[]) =>
    scratch.use(
      Tensor.create(gpu, "u32", shape, undefined, `sampling ${name}`),
    );
  const constants = {
    ...laneConstants(gpu),
    PENALTY: repetitionPenalty === 1 ? 0 : 1,
    HISTOGRAM: path === "histogram" ? 1 : 0,
    TOP_K: topK > 0 && topK < vocab ? 1 : 0,
    TOP_P: topP < 1 ? 1 : 0,
  };
  const uniforms = {
    penalty: inF32(repetitionPenalty),
    temperature: inF32(temperature),
    lowest: Math.max(Math.log(minP), -3e38),
    width: 32 * Math.max(inF32(temperature), 1) / BINS, // e⁻³² is as good as nothing
    seed,
    k: topK,
    p: inF32(topP),
    advance,
    longest,
  };
  const add = (
    kernel: Kernel,
    operands: Operands,
    more: Record<string, number> = {},
  ) =>
    plan.add(kernel, operands, {
      label: `sampling.${kernel.name}`,
      reason,
      constants: { ...of(constants, kernel.constants), ...more },
      uniforms: of(uniforms, kernel.uniforms),
    });

  const row: Operands = constants.PENALTY
    ? { logits, seen: state.seen }
    : { logits };
  const records = u32("records", sequences, chunks, 4);
  const room = chunkLength(vocab, chunks);
  if (path === "greedy") {
    add(argmax, { ...row, highest: records });
    add(sampleFinish, { records, ...state });
  } else if (path === "top-k") {
    const candidates = u32("candidates", sequences, chunks, room, 2);
    add(sampleTopK, { ...row, candidates, records }, {
      PARTS: topK <= 32 ? 64 : 128,
    });
    add(sampleFinish, { records, candidates, ...state }, {
      WINNERS: 0,
      CANDIDATES: 1,
    });
  } else {
    const { step } = state;
    const highest = u32("highest", sequences, chunks, 4);
    if (path === "draw") {
      add(argmax, { ...row, highest });
      add(sampleDraw, { ...row, highest, step, records });
      add(sampleFinish, { records, ...state });
    } else {
      const histogram = u32("histogram", sequences, 3, BINS);
      const candidates = u32("candidates", sequences, chunks, room, 2);
      const limits = u32("limits", sequences, 8);
      const found = { histogram, candidates, limits };
      add(argmax, { ...row, highest, histogram });
      add(sampleHistogram, { ...row, highest, histogram });
      add(sampleDraw, { ...row, highest, step, records, ...found });
      add(sampleFinish, { records, candidates, limits, ...state }, {
        CANDIDATES: 1,
        LIMITS: 1,
      });
    }
  }
  return scratch.move();
}

/** Of the settings of all kernels, those that one of them has. */
function of(
  settings: Record<string, number>,
  known: object = {},
): Record<string, number> {
  return Object.fromEntries(
    Object.entries(settings).filter(([name]) => name in known),
  );
}

/** Workgroups over a row: a power of 2, each with at most 16 logits a thread. */
function chunksOf(vocab: number): number {
  if (vocab >= 2 ** 18) {
    throw new Error(
      `Cannot sample: the vocabulary is ${vocab}, it must be below ${2 ** 18}`,
    );
  }
  const most = 2 ** 18 / (16 * WORKGROUP); // 64
  return Math.min(most, 2 ** Math.ceil(Math.log2(Math.max(1, vocab / 1024))));
}

/** A positive number that f32 can hold, and its products with logits too (at most 10³⁰). */
const inF32 = (x: number) => Math.min(Math.max(x, 1e-20), 1e20);
