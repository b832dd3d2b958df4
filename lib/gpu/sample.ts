/**
 * Sampling on the GPU: the dispatches that choose each sequence's next token and write
 * it where the next step reads it, so that a decode loop never waits for the CPU. The
 * choice is that of `sample` in lib/model/sampling.ts, up to f32 rounding.
 *
 * @module
 */
import { argmax } from "../../kernels/argmax.ts";
import { sampleAdjust } from "../../kernels/sample_adjust.ts";
import { sampleDraw } from "../../kernels/sample_draw.ts";
import { sampleFinish } from "../../kernels/sample_finish.ts";
import { foundWords, sampleGreedy } from "../../kernels/sample_greedy.ts";
import { sampleHistogram } from "../../kernels/sample_histogram.ts";
import {
  LOGPROB_WORDS,
  sampleLogprobs,
} from "../../kernels/sample_logprobs.ts";
import {
  BINS,
  chunkLength,
  recordWords,
  WORKGROUP,
} from "../../kernels/sample_scores.ts";
import {
  binWidth,
  SETTING_WORDS,
  settingsRow,
} from "../../kernels/sample_settings.ts";
import { sampleTopK } from "../../kernels/sample_top_k.ts";
import { laneConstants } from "../dispatch/capabilities.ts";
import {
  chooseLogitChunks,
  chooseTopKParts,
  MOST_BIASES,
  MOST_LOGPROBS,
  type SampledRow,
  type SamplingChoice,
} from "../dispatch/sampling.ts";
import type { Gpu } from "../webgpu/device.ts";
import type { Kernel, Operands } from "../webgpu/kernel.ts";
import type { Plan } from "../webgpu/plan.ts";
import {
  adjustsLogits,
  type History,
  type Logprobs,
  type Sampling,
} from "../model/sampling.ts";
import { LOW } from "../webgpu/wgsl.ts";
import { Tensor } from "../webgpu/tensor.ts";

/** Numbers of sequences, of vocabulary tokens, and of steps that the ring keeps. */
export interface SamplerSize {
  sequences: number;
  vocab: number;
  steps: number;
}

/** What changes logits before sampling; all zero at first. */
interface Adjustments {
  /** u32 `[sequences, vocab]`: see `historyOf` in lib/model/sampling.ts. */
  history: Tensor;
  /** u32 `[sequences, MOST_BIASES, 2]`: token ids, and what is added to their logits. */
  biases: Tensor;
  /** u32 `[sequences, ceil(vocab / 32)]`: a bit per token, set if it may come next. */
  allowed: Tensor;
}

/**
 * Sampling state that a decode loop keeps on the device; all u32. Each sequence has a row,
 * whose settings the host may change between two runs of a plan.
 */
export class SamplerState implements Disposable {
  /** `[sequences]`: the chosen tokens, input of the next step. */
  readonly tokens: Tensor;
  /**
   * `[steps, sequences]`: the token or fault of a sequence's step n is in row `n % steps`.
   */
  readonly ring: Tensor;
  /** `[sequences]`: tokens in the KV cache, which may own this. */
  lengths: Tensor;
  /** `[sequences]`: tokens sampled so far. */
  readonly step: Tensor;
  /** `[sequences, SETTING_WORDS]`: how each is sampled. */
  readonly settings: Tensor;
  #adjustments?: Adjustments;
  #logprobs?: Tensor;
  readonly #scratch = new Map<string, Tensor>();
  /** The settings of each sequence when it was set last. */
  readonly #rows = new Map<number, Uint32Array<ArrayBuffer>>();
  readonly #own = new DisposableStack();

  /** Creates zeroed buffers; `lengths` are those of a KV cache, if there is one. */
  constructor(
    readonly gpu: Gpu,
    readonly size: SamplerSize,
    lengths?: Tensor,
  ) {
    const { sequences, steps } = size;
    this.tokens = this.#u32("tokens", sequences);
    this.ring = this.#u32("ring", steps, sequences);
    this.lengths = lengths ?? this.#u32("lengths", sequences);
    this.step = this.#u32("step", sequences);
    this.settings = this.#u32("settings", sequences, SETTING_WORDS);
  }

  /** Allocated on first use: as large as the logits. */
  get adjustments(): Adjustments {
    const { sequences, vocab } = this.size;
    return this.#adjustments ??= {
      history: this.#u32("history", sequences, vocab),
      biases: this.#u32("biases", sequences, MOST_BIASES, 2),
      allowed: this.#u32("allowed", sequences, Math.ceil(vocab / 32)),
    };
  }

  /**
   * `[steps, sequences, LOGPROB_WORDS]`, allocated on first use: for each token of the ring,
   * what {@linkcode readLogprobs} reads.
   */
  get logprobs(): Tensor {
    const { sequences, steps } = this.size;
    return this.#logprobs ??= this.#u32(
      "logprobs",
      ...[steps, sequences, LOGPROB_WORDS],
    );
  }

  /**
   * Memory that all plans use which need this shape: they run one after another, and leave
   * nothing in it for the next.
   */
  scratch(name: string, ...shape: number[]): Tensor {
    const key = `${name} ${shape}`, known = this.#scratch.get(key);
    if (known) return known;
    const tensor = this.#u32(name, ...shape);
    this.#scratch.set(key, tensor);
    return tensor;
  }

  #u32(name: string, ...shape: number[]): Tensor {
    const label = `sampler ${name}`;
    return this.#own.use(
      Tensor.create(this.gpu, "u32", shape, undefined, label),
    );
  }

  /**
   * Sets how a sequence is sampled from now on. `history` is called if that depends on it;
   * `step` counts the tokens that were sampled before.
   */
  set(
    sequence: number,
    sampling: Sampling,
    history: () => History,
    { step = 0, masked = false } = {},
  ): void {
    const { vocab } = this.size, biases = Object.entries(sampling.logitBias);
    const { temperature, topK, topP, minP } = sampling;
    const greedy = temperature === 0, adjusts = adjustsLogits(sampling);
    const divisor = greedy ? 1 : inF32(temperature);
    const row = settingsRow({
      temperature: divisor,
      noise: greedy ? 0 : 1,
      k: greedy ? 1 : topK < vocab ? topK : 0,
      p: greedy ? 1 : inF32(topP),
      lowest: Math.max(Math.log(minP), LOW),
      width: binWidth(divisor),
      seed: sampling.seed,
      adjusts: adjusts || masked ? 1 : 0,
      repetition: inF32(sampling.repetitionPenalty),
      presence: sampling.presencePenalty,
      frequency: sampling.frequencyPenalty,
      biases: biases.length,
      masked: masked ? 1 : 0,
      alternatives: sampling.logprobs,
    });
    this.settings.write(sequence * row.byteLength, row);
    this.#rows.set(sequence, row);
    this.step.write(4 * sequence, Uint32Array.of(step));
    if (!adjusts) return;
    this.adjustments.history.write(4 * vocab * sequence, history());
    const pairs = new Uint32Array(2 * biases.length);
    const floats = new Float32Array(pairs.buffer);
    biases.forEach(([id, bias], i) => {
      pairs[2 * i] = Number(id);
      floats[2 * i + 1] = bias;
    });
    this.adjustments.biases.write(8 * MOST_BIASES * sequence, pairs);
  }

  /**
   * Lets only some tokens come next in a sequence that is set as masked, or without `bits`
   * all.
   */
  allow(sequence: number, bits?: Uint32Array<ArrayBuffer>): void {
    const words = Math.ceil(this.size.vocab / 32);
    bits ??= new Uint32Array(words).fill(0xffffffff);
    this.adjustments.allowed.write(4 * words * sequence, bits);
  }

  /**
   * Leaves out a sequence until it is set again or goes on: plans do not change its state.
   */
  idle(sequence: number): void {
    const row = settingsRow({ idle: 1 });
    this.settings.write(sequence * row.byteLength, row);
  }

  /** Lets a sequence go on as it was set. */
  goOn(sequence: number): void {
    const row = this.#rows.get(sequence)!;
    this.settings.write(sequence * row.byteLength, row);
  }

  /** Frees the buffers that it created. */
  [Symbol.dispose](): void {
    this.#own[Symbol.dispose]();
  }
}

/** The log probabilities in some rows of `SamplerState.logprobs`. */
export function readLogprobs(words: ArrayLike<number>): Logprobs[] {
  const all = Uint32Array.from(words), floats = new Float32Array(all.buffer);
  return Array.from({ length: all.length / LOGPROB_WORDS }, (_, row) => {
    const at = row * LOGPROB_WORDS, n = all[at + 1];
    const top = Array.from({ length: n }, (_, i) => ({
      tokenId: all[at + 2 + 2 * i],
      logprob: floats[at + 3 + 2 * i],
    }));
    return {
      logprob: floats[at],
      top: top.filter(({ logprob }) => logprob > IMPOSSIBLE),
    };
  });
}

/** Log probabilities of tokens that cannot come next are below this. */
const IMPOSSIBLE = -1e29;

/** What the choice of dispatches depends on, of a sequence. */
export const sampledRow = (sampling: Sampling, masked = false): SampledRow => ({
  ...sampling,
  adjusts: masked || adjustsLogits(sampling),
});

/**
 * Records the dispatches of `choice`, which choose the next token of every sequence from
 * `logits` (f32 `[sequences, vocab]`, which they may change): 1 for greedy decoding, 2 for a
 * small top-k, 3 without top-k and top-p, 4 otherwise; one before them if any sequence has
 * penalties, biases or a mask, and two after them for log probabilities. The sequences are
 * the first ones of `state`, which may have more.
 *
 * Each run then writes `tokens` and a row of `ring`, adds `advance` to `lengths` up to
 * `longest`, and increments `step`. If logits cannot be sampled from, `ring` has a `FAULT`
 * (lib/dispatch/sampling.ts) and `tokens` some valid token.
 *
 * @throws {Error} if the vocabulary is not below 262,144, or a shape disagrees.
 */
export function addSampling(
  plan: Plan,
  logits: Tensor,
  choice: SamplingChoice,
  state: SamplerState,
  { advance = 1, longest = 2 ** 32 - 1 }: {
    advance?: number;
    longest?: number;
  } = {},
): void {
  const lengths = { advance, longest };
  new SamplingRecorder(plan, logits, choice, state, lengths).record();
}

/** Records the sampling dispatches with what they share. */
class SamplingRecorder {
  readonly #chunks: number;
  readonly #constants: Record<string, number>;
  /** Those that a row of logits is read with. */
  readonly #row: Operands;

  constructor(
    readonly plan: Plan,
    readonly logits: Tensor,
    readonly choice: SamplingChoice,
    readonly state: SamplerState,
    readonly lengths: { advance: number; longest: number },
  ) {
    const [sequences, vocab] = logits.shape;
    this.#chunks = chooseLogitChunks(vocab, WORKGROUP);
    this.#constants = {
      ...laneConstants(plan.gpu),
      HISTOGRAM: choice.path === "histogram" ? 1 : 0,
    };
    this.#row = { logits, settings: state.settings.rows(sequences) };
  }

  record(): void {
    const { choice: { path, adjusts } } = this;
    if (adjusts) this.#recordAdjusting();
    if (path === "greedy") this.#recordGreedy();
    else if (path === "top-k") this.#recordTopK();
    else this.#recordDraw();
    if (this.choice.logprobs) this.#recordLogprobs();
  }

  #recordAdjusting(): void {
    const { history, biases, allowed } = this.state.adjustments;
    this.#add(sampleAdjust, {
      ...this.#row,
      ...this.#first({ history, biases, allowed }),
    });
  }

  #recordGreedy(): void {
    const { logits, state } = this, [sequences] = logits.shape;
    const words = foundWords(sequences, this.#chunks);
    const found = state.scratch("found", words);
    const all = { logits, found, ...this.#loop() };
    this.#add(sampleGreedy, all, {
      ...{ CHUNKS: this.#chunks, COUNTS: this.choice.adjusts ? 1 : 0 },
    }, this.lengths);
  }

  #recordTopK(): void {
    const records = this.#records(), candidates = this.#candidates();
    this.#add(sampleTopK, { ...this.#row, candidates, records }, {
      PARTS: this.choice.parts,
    });
    this.#finish({ records, candidates }, { WINNERS: 0, CANDIDATES: 1 });
  }

  /** Draws from the whole vocabulary, or from the part of it that a histogram leaves. */
  #recordDraw(): void {
    const { logits, logits: { shape: [sequences] } } = this;
    const { step } = this.#first({ step: this.state.step });
    const highest = this.state.scratch("highest", sequences, this.#chunks, 4);
    if (this.choice.path === "draw") {
      const records = this.#records();
      this.#add(argmax, { logits, highest });
      this.#add(sampleDraw, { ...this.#row, highest, step, records });
      this.#finish({ records });
      return;
    }
    const records = this.#records(true), candidates = this.#candidates();
    const histogram = this.state.scratch("histogram", sequences, 3, BINS);
    const found = { histogram, candidates };
    this.#add(argmax, { logits, highest, histogram });
    this.#add(sampleHistogram, { ...this.#row, highest, histogram });
    this.#add(sampleDraw, { ...this.#row, highest, step, records, ...found });
    this.#finish({ records, candidates }, { CANDIDATES: 1, ABOVE: 1 });
  }

  #recordLogprobs(): void {
    const records = this.#records(), candidates = this.#candidates();
    const { logits, state: { tokens, step, logprobs } } = this;
    this.#add(sampleTopK, { logits, candidates, records }, {
      MASS: 1,
      PARTS: chooseTopKParts(MOST_LOGPROBS),
    });
    this.#add(sampleLogprobs, {
      ...this.#row,
      records,
      candidates,
      ...this.#first({ tokens, step }),
      logprobs,
    });
  }

  #finish(found: Operands, constants: Record<string, number> = {}): void {
    this.#add(
      sampleFinish,
      { ...found, ...this.#loop() },
      { ...constants, COUNTS: this.choice.adjusts ? 1 : 0 },
      this.lengths,
    );
  }

  /** What the choice of a token advances. */
  #loop(): Operands {
    const { state, choice: { adjusts } } = this, { settings } = this.#row;
    const { tokens, lengths, step, ring } = state;
    return {
      ...{ settings, ring },
      ...this.#first({ tokens, lengths, step }),
      ...adjusts ? this.#first({ history: state.adjustments.history }) : {},
    };
  }

  /** The rows of tensors of the state that are sampled. */
  #first<N extends string>(tensors: Record<N, Tensor>): Record<N, Tensor> {
    const [sequences] = this.logits.shape;
    return Object.fromEntries(
      Object.entries<Tensor>(tensors)
        .map(([name, tensor]) => [name, tensor.rows(sequences)]),
    ) as Record<N, Tensor>;
  }

  #records(histogram = false): Tensor {
    const [sequences] = this.logits.shape, words = recordWords(histogram);
    return this.state.scratch("records", sequences, this.#chunks, words);
  }

  #candidates(): Tensor {
    const [sequences, vocab] = this.logits.shape;
    const room = chunkLength(vocab, this.#chunks);
    const shape = [sequences, this.#chunks, room, 2];
    return this.state.scratch("candidates", ...shape);
  }

  #add(
    kernel: Kernel,
    operands: Operands,
    more: Record<string, number> = {},
    uniforms: Record<string, number> = {},
  ): void {
    const shared = Object.entries(this.#constants)
      .filter(([name]) => name in kernel.constants);
    this.plan.add(kernel, operands, {
      label: `sampling.${kernel.name}`,
      reason: this.choice.reason,
      constants: { ...Object.fromEntries(shared), ...more },
      uniforms,
    });
  }
}

/**
 * Clamps a positive number so that it fits f32, as do its products with logits of up to
 * 10³⁰.
 */
const inF32 = (x: number) => Math.min(Math.max(x, 1e-20), 1e20);
