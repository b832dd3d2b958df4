/**
 * Test cases of kernels: each kernel's file lists sizes and types, and makes inputs and
 * expected results. doctor and the tests run the cases; for kernels outside the forward
 * pass, show and radv take their shapes from them.
 *
 * @module
 */
import type { Capabilities } from "../lib/dispatch/capabilities.ts";
import type { Constants, Epilogue } from "../lib/dispatch/shapes.ts";
import { type Dtype, elements } from "../lib/dtype.ts";
import type { Matrix } from "../lib/formats/matrix.ts";
import type { CacheDtype } from "../lib/formats/cached.ts";
import { FORMATS } from "../lib/formats/mod.ts";
import type { CpuTensor } from "../lib/formats/tensor.ts";
import type { Grid } from "../lib/webgpu/kernel.ts";

/** One call of a kernel, and its expected results. */
export interface KernelCase {
  /** Sizes and element types, for reports. */
  what: string;
  /** By buffer; outputs are filled with values that the kernel must overwrite. */
  operands: Readonly<Record<string, CpuTensor | Matrix<CpuTensor>>>;
  constants?: Constants;
  uniforms?: Readonly<Record<string, number>>;
  /** Overrides the kernel's own grid. */
  grid?: Grid;
  /** Computes the results in float64. */
  expected(): Result[];
}

/** Expected values of a buffer, or of something derived from several. */
export interface Result {
  of: string | ((buffers: Buffers) => ArrayLike<number>);
  /** NaN where NaN must remain. */
  values: ArrayLike<number>;
  /** Per element, what errors are relative to; without it they are absolute. */
  norms?: ArrayLike<number>;
  tolerance: number;
}

/** Contents of the writable buffers after a call, with floats widened to f32. */
export type Buffers = Readonly<Record<string, ArrayLike<number>>>;

/** What `makeCase` has to work with. */
export interface CaseTools {
  device: Capabilities & { f16: boolean };
  random: CaseRandom;
  reference: Reference;
}

/** Repeatable random inputs. */
export interface CaseRandom {
  /** A number between -1 and 1. */
  next(): number;
  /** An integer from `low` to `high`, both included. */
  int(low: number, high: number): number;
  /** Values between -scale and scale, plus `offset`. */
  tensor(
    dtype: Dtype,
    shape: readonly number[],
    scale?: number,
    offset?: number,
  ): CpuTensor;
  /** A matrix `[n, k]` in a format, of values between about -scale and scale. */
  matrix(
    format: string,
    shape: readonly [n: number, k: number],
    scale?: number,
  ): Matrix<CpuTensor>;
}

/**
 * Results, and for each the magnitude that errors are relative to: the norm of the
 * products that were summed. The error of an f32 sum is a small multiple of it.
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

/** Random inputs of a pass; the cache (lib/formats/cached.ts) is NaN where no token was cached. */
export interface AttentionInputs {
  qkv: CpuTensor;
  qNorm: CpuTensor;
  kNorm: CpuTensor;
  angles: CpuTensor;
  k: CpuTensor;
  v: CpuTensor;
}

/** How a token is chosen; see lib/model/sampling.ts. What is missing has no effect. */
export interface SamplingRule {
  temperature: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  presencePenalty?: number;
  frequencyPenalty?: number;
  logitBias?: Readonly<Record<number, number>>;
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
    dtypes: { cache: CacheDtype; norm?: Dtype },
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
  /** The token of a step. */
  sample(logits: Float32Array, rule: SamplingRule, step: number): number;
  /** Logits after biases, penalties and a mask. */
  adjusted(
    logits: Float32Array,
    rule: SamplingRule,
    history: Uint32Array,
    allowed?: Uint32Array,
  ): Float32Array;
  /** log(softmax(logits)) of each token. */
  logSoftmax(logits: Float32Array): Float64Array;
  /** The noise of a token in a step. */
  noise(seed: number, step: number, id: number): number;
}

/** Float types of weights. */
export const FLOATS = ["f32", "f16", "bf16"] as const;

/** One of {@linkcode FLOATS}. */
export type Float = typeof FLOATS[number];

/** Names of the formats that are made of blocks. */
export const BLOCKS: readonly string[] = FORMATS
  .filter(({ elements }) => elements > 1).map(({ name }) => name);

/** Tolerance of f32 sums, relative to the norm of their terms. */
export const SUM = 1e-5;
/** Tolerance of sums where matmuls multiply in f16. */
export const HALF_SUM = 1e-2;
/** Tolerance of sums by rows that are rounded to 15 bits: the error is about a tenth of it. */
export const INTEGER_SUM = 3e-4;
/** Tolerance of attention to keys in q8_0, which multiply a q of 16 bits: about ten times its error. */
export const QUERY_SUM = 1e-4;
/** Tolerance of results that are rounded to f16, relative to {@linkcode halfNorms}. */
export const HALF_ROUNDED = 2 ** -11;
/**
 * Norms of results that are stored in f16, in units of `unit`: it keeps 11 bits, of numbers below
 * 2⁻¹⁴ fewer.
 */
export const halfNorms = (norms: Float64Array, unit = 1): Float64Array =>
  norms.map((norm) => Math.max(norm, unit * 2 ** -14));
/** Tolerance of attention in f16 and of values in an f16 cache. */
export const HALF_ATTENTION = 4e-3;

export const EPS = 1e-6;

/** An f32 output filled with `value`; NaN exposes elements that are not written. */
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

/** Makes a `Result.of` that sums each row of `width` values in `buffer`. */
export const rowSums = (buffer: string, width: number) =>
(
  buffers: Buffers,
): Float64Array => {
  const all = buffers[buffer];
  const sums = new Float64Array(all.length / width);
  for (let i = 0; i < all.length; i++) sums[Math.floor(i / width)] += all[i];
  return sums;
};
