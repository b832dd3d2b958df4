/**
 * What the cases of the attention kernels share.
 *
 * @module
 */
import { exactLanes } from "../lib/dispatch/capabilities.ts";
import type { Constants } from "../lib/dispatch/shapes.ts";
import type { Dtype } from "../lib/dtype.ts";
import { type CpuTensor, toF32 } from "../lib/formats/tensor.ts";
import {
  type Attention,
  type CaseTools,
  EPS,
  type KernelCase,
  room,
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
  cache: "f32" | "f16";
  /** Type of the norms' weights. */
  norm?: Exclude<Dtype, "u32">;
}

/** Heads as in a model. */
export const HEADS_128 = { heads: 4, kvHeads: 2, headDim: 128, context: 160 };
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
    constants: { HEAD_DIM: headDim, ...exactLanes(device, 16), ...constants },
    uniforms: { first: 0, tokens, group, scale: headDim ** -0.5 },
    expected: () => {
      const all = { q: toF32(q), k: toF32(k), v: toF32(v) };
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
