/**
 * What the cases of the attention kernels share.
 *
 * @module
 */
import { cacheConstant } from "../lib/dispatch/attention.ts";
import { exactLanes } from "../lib/dispatch/capabilities.ts";
import type { Constants } from "../lib/dispatch/shapes.ts";
import type { Dtype } from "../lib/dtype.ts";
import {
  CACHE_BLOCK,
  cachedToF32,
  type CacheDtype,
  QuantizedHeads,
} from "../lib/formats/cached.ts";
import { type CpuTensor, toF32 } from "../lib/formats/tensor.ts";
import {
  type Attention,
  type CaseTools,
  EPS,
  HALF_ATTENTION,
  type KernelCase,
  type Result,
  room,
  SUM,
  u32,
  u32Tensor,
} from "./case.ts";
import {
  countersAt,
  FLAG_WORDS,
  lengthRows,
  splitAt,
  stateWords,
} from "./heads.ts";

/** A pass over a cache. */
export interface AttentionCase {
  heads: number;
  kvHeads: number;
  headDim: number;
  context: number;
  /** Tokens cached before, per sequence. */
  lengths: readonly number[];
  /** New tokens of each sequence. */
  tokens: number;
  cache: CacheDtype;
  /** Type of the norms' weights. */
  norm?: Exclude<Dtype, "u32">;
}

/** Heads as in a model. */
export const HEADS_128 = { heads: 4, kvHeads: 2, headDim: 128, context: 160 };
/** Heads whose blocks are an odd number. */
export const HEADS_96 = { heads: 4, kvHeads: 2, headDim: 96, context: 160 };
/** An odd number of heads, of an unusual size. */
export const ODD_HEADS = { heads: 3, kvHeads: 1, headDim: 6, context: 40 };

/** The sizes to pass to the reference. */
export function sizesOf(
  { heads, kvHeads, headDim, context, lengths, tokens }: AttentionCase,
): Attention {
  const rows = lengths.length * tokens;
  return {
    heads,
    kvHeads,
    headDim,
    context,
    lengths,
    first: 0,
    tokens,
    rows,
    eps: EPS,
  };
}

/** Describes a case: `4 heads of 128 over 2, 154 keys in f16, norms in bf16`. */
export function attentionText(
  { heads, kvHeads, headDim, lengths, tokens, cache, norm }: AttentionCase,
): string {
  const keys = lengths.map((length) => length + tokens).join(" and ");
  return `${heads} heads of ${headDim} over ${kvHeads}, ${keys} keys in ${cache}${
    norm ? `, norms in ${norm}` : ""
  }`;
}

/** The buffer `positions` of heads.ts. */
export function positionsTensor(
  lengths: readonly number[],
  { shape: [context, headDim], data }: CpuTensor,
): CpuTensor {
  const rows = lengthRows(lengths.length, headDim);
  const words = new Uint32Array((rows + context) * headDim).fill(0xdeadbeef);
  words.set(lengths);
  words.set(new Uint32Array(data.slice().buffer), rows * headDim);
  return u32Tensor([rows + context, headDim], words);
}

/** The buffer `state` of heads.ts between passes; leftovers of earlier passes are NaN. */
export function stateTensor(sequences: number, heads: number): CpuTensor {
  const words = new Uint32Array(stateWords(sequences, heads)).fill(0x7fc00000);
  words.fill(0, 0, FLAG_WORDS);
  words.fill(0, countersAt(sequences, heads));
  return u32Tensor([words.length], words);
}

/** Whether a counter in `state` was not reset to 0. */
export const counting = (
  state: ArrayLike<number>,
  sequences: number,
  heads: number,
): boolean =>
  Array.from(state).slice(countersAt(sequences, heads)).some((word) =>
    word !== 0
  );

/**
 * Half a step between quants, plus what f16 may be off by where 127 is multiplied by the
 * scale: a unit in the last place, if it is not rounded to the nearest.
 */
export const HALF_STEP_Q8 = 0.5 + 127 * 2 ** -10;

/** Expected keys and values after the append, as stored in the type of the case. */
export function cacheResults(
  { cache, headDim }: AttentionCase,
  after: Readonly<Record<"k" | "v", ArrayLike<number>>>,
): Result[] {
  return (["k", "v"] as const).map((name): Result => {
    const values = after[name];
    if (cache !== "q8_0") {
      const tolerance = cache === "f16" ? HALF_ATTENTION : SUM;
      return { of: name, values, tolerance };
    }
    return {
      of: (buffers) => {
        const words = Uint32Array.from(buffers[name]);
        const heads = new QuantizedHeads(
          words,
          values.length / headDim,
          headDim,
        );
        const all = new Float32Array(values.length);
        for (let row = 0; row < heads.rows; row++) {
          heads.take(row, all, row * headDim);
        }
        return all;
      },
      values,
      norms: stepsOf(values, headDim),
      tolerance: HALF_STEP_Q8,
    };
  });
}

/** The step between quants of each value. */
export function stepsOf(
  values: ArrayLike<number>,
  headDim: number,
): Float64Array {
  const steps = new Float64Array(values.length);
  const half = headDim / 2, size = CACHE_BLOCK / 2;
  for (let at = 0; at < values.length; at += headDim) {
    for (let block = 0; block < half; block += size) {
      const own = Array.from(
        { length: CACHE_BLOCK },
        (_, i) => at + block + i % size + (i < size ? 0 : half),
      );
      const most = Math.max(...own.map((i) => Math.abs(values[i])));
      for (const i of own) steps[i] = most / 127;
    }
  }
  return steps;
}

/** A case of a prefill kernel; `constants` are those that only this kernel has. */
export function prefillCase(
  given: AttentionCase,
  { device, random, reference }: CaseTools,
  tolerance: number,
  constants: Constants = {},
): KernelCase {
  const sizes = sizesOf(given), { heads, kvHeads, headDim, tokens } = given;
  const { k, v } = reference.attentionInputs(random, sizes, given, tokens);
  const q = random.tensor("f32", [sizes.rows, heads * headDim], 2);
  const group = heads / kvHeads;
  return {
    what: attentionText(given),
    operands: { q, k, v, lengths: u32(...given.lengths), y: room(q.shape) },
    constants: {
      HEAD_DIM: headDim,
      ...exactLanes(device, 16),
      ...cacheConstant(given.cache),
      ...constants,
    },
    uniforms: { first: 0, tokens, group, scale: headDim ** -0.5 },
    expected: () => {
      const all = {
        q: toF32(q),
        k: cachedToF32(k, headDim),
        v: cachedToF32(v, headDim),
      };
      return [{ of: "y", ...reference.attended(all, sizes), tolerance }];
    },
  };
}

/**
 * Merges the results of a decode step's splits: `partial` is `[heads, splits, headDim]`,
 * `state` has the bits of each split's maximum and sum.
 */
export function merged(
  partial: ArrayLike<number>,
  state: ArrayLike<number>,
  headDim: number,
  splits: number,
): { values: Float64Array; norms: Float64Array } {
  const heads = partial.length / splits / headDim;
  const floats = new Float32Array(Uint32Array.from(state).buffer);
  const values = new Float64Array(heads * headDim);
  const norms = new Float64Array(heads * headDim);
  for (let head = 0; head < heads; head++) {
    const at = (split: number) => splitAt(head, splits, split);
    let top = -Infinity, total = 0;
    for (let s = 0; s < splits; s++) top = Math.max(top, floats[at(s)]);
    for (let s = 0; s < splits; s++) {
      const weight = Math.exp(floats[at(s)] - top);
      total += weight * floats[at(s) + 1];
      for (let i = 0; i < headDim; i++) {
        const value = weight * partial[(head * splits + s) * headDim + i];
        values[head * headDim + i] += value;
        norms[head * headDim + i] += Math.abs(value);
      }
    }
    for (let i = head * headDim; i < (head + 1) * headDim; i++) {
      values[i] /= total;
      norms[i] /= total;
    }
  }
  return { values, norms };
}
