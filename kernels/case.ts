/**
 * Test cases of kernels: sizes and types in a kernel's own file, inputs made by a rule,
 * and expected results. doctor and the tests run them; show and radv read shapes from
 * those of kernels that no pass runs.
 *
 * @module
 */
import type { Capabilities } from "../lib/dispatch/capabilities.ts";
import type { Constants, Epilogue } from "../lib/dispatch/shapes.ts";
import { type Dtype, elements } from "../lib/dtype.ts";
import type { CpuTensor } from "../lib/formats/tensor.ts";
import type { Grid } from "../lib/webgpu/kernel.ts";

/** One call of a kernel, and its expected results. */
export interface KernelCase {
  /** Sizes and element types, for a report. */
  what: string;
  /** By buffer; outputs hold what must not be left in them. */
  operands: Readonly<Record<string, CpuTensor>>;
  constants?: Constants;
  uniforms?: Readonly<Record<string, number>>;
  /** In place of the kernel's own. */
  grid?: Grid;
  /** Computed in float64 when asked for. */
  expected(): Result[];
}

/** Expected values of a buffer, or of something read out of several. */
export interface Result {
  of: string | ((buffers: Buffers) => ArrayLike<number>);
  /** NaN where NaN must be left. */
  values: ArrayLike<number>;
  /** Per element the size of what rounding acts on; errors are absolute without. */
  norms?: ArrayLike<number>;
  tolerance: number;
}

/** What a call left in the buffers that it may write; floats are widened to f32. */
export type Buffers = Readonly<Record<string, ArrayLike<number>>>;

/** What a case is made with. */
export interface CaseTools {
  device: Capabilities & { f16: boolean };
  random: CaseRandom;
  reference: Reference;
}

/** Repeatable random inputs. */
export interface CaseRandom {
  /** Between -1 and 1. */
  next(): number;
  /** Both ends included. */
  int(low: number, high: number): number;
  /** Values between -scale and scale, plus `offset`. */
  tensor(
    dtype: Dtype,
    shape: readonly number[],
    scale?: number,
    offset?: number,
  ): CpuTensor;
}

/**
 * Results, and per element the size of what rounding acts on: the norm of the
 * products that were summed. f32 sums are off by a small multiple of it.
 */
export interface Expected {
  values: Float64Array;
  norms: Float64Array;
}

/** Sizes of attention: row `r` is token `r % tokens` of sequence `first + floor(r / tokens)`. */
export interface Attention {
  heads: number;
  kvHeads: number;
  headDim: number;
  context: number;
  /** Tokens in the cache before the pass, per sequence. */
  lengths: readonly number[];
  first: number;
  tokens: number;
  rows: number;
  eps: number;
}

/** Random inputs of a pass; the cache is NaN where no token was cached. */
export interface AttentionInputs {
  qkv: CpuTensor;
  qNorm: CpuTensor;
  kNorm: CpuTensor;
  angles: CpuTensor;
  k: CpuTensor;
  v: CpuTensor;
}

/** How tokens are chosen; see lib/model/sampling.ts. */
export interface SamplingRule {
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  repetitionPenalty: number;
  seed: number;
}

/** Plain implementations on the CPU, in float64: lib/check/reference.ts. */
export interface Reference {
  linear(
    x: ArrayLike<number>,
    w: ArrayLike<number>,
    size: { m: number; n: number; k: number },
  ): Expected;
  transpose(
    x: ArrayLike<number>,
    rows: number,
    columns: number,
  ): Float32Array;
  rmsNormed(
    x: ArrayLike<number>,
    norm: ArrayLike<number>,
    eps: number,
  ): Float64Array;
  epilogue(
    kind: Epilogue,
    product: Expected,
    n: number,
    before: number,
  ): Expected;
  attentionInputs(
    random: CaseRandom,
    sizes: Attention,
    dtypes: { cache: "f32" | "f16"; norm?: Dtype },
    more?: number,
  ): AttentionInputs;
  appended(
    inputs: AttentionInputs,
    sizes: Attention,
  ): { q: Float64Array; k: Float64Array; v: Float64Array };
  attended(
    tensors: Record<"q" | "k" | "v", ArrayLike<number>>,
    sizes: Attention,
  ): Expected;
  /** Synthetic weights as bf16 bits. */
  fillSynthetic(
    rule: { seed: number; scale: number; offset: 0 | 1 },
    begin: number,
    into: Uint16Array,
  ): void;
  sample(
    logits: Float32Array,
    rule: SamplingRule,
    seen: Uint32Array,
    step: number,
  ): number;
  /** The noise of a token in a step. */
  noise(seed: number, step: number, id: number): number;
}

/** Float types of weights. */
export const FLOATS = ["f32", "f16", "bf16"] as const;

/** One of {@linkcode FLOATS}. */
export type Float = typeof FLOATS[number];

/** How far f32 sums may be off, in norms of what they sum. */
export const SUM = 1e-5;
/** How far sums may be off where matmuls multiply in f16. */
export const HALF_SUM = 1e-2;
/** How far attention in f16, or what an f16 cache keeps, may be off. */
export const HALF_ATTENTION = 4e-3;

export const EPS = 1e-6;

/** A f32 output filled with `value`: NaN exposes elements that are not written. */
export function room(shape: readonly number[], value = NaN): CpuTensor {
  const data = new Float32Array(elements(shape)).fill(value);
  return { dtype: "f32", shape, data };
}

export function u32(...values: number[]): CpuTensor {
  return u32Tensor([values.length], Uint32Array.from(values));
}

export function u32Tensor(
  shape: readonly number[],
  data: Uint32Array = new Uint32Array(elements(shape)).fill(0xdeadbeef),
): CpuTensor {
  return { dtype: "u32", shape, data };
}

/** `of` for all values of `buffer` in rows of `width`, each row summed. */
export const rowSums = (buffer: string, width: number) =>
(
  buffers: Buffers,
): Float64Array => {
  const all = buffers[buffer];
  const sums = new Float64Array(all.length / width);
  for (let i = 0; i < all.length; i++) sums[Math.floor(i / width)] += all[i];
  return sums;
};
