/**
 * WGSL shared by the attention kernels: Qwen3's per-head RMSNorm of q and k, then RoPE
 * (https://arxiv.org/abs/2104.09864) in the half-split form. It also defines two buffers
 * of a KV cache, each of which holds several things, because a kernel may bind only
 * eight storage buffers on many devices:
 *
 * - `state`: flags, then the bits of the maximum and the sum of each split of each head,
 *   then a counter per row and head, which is 0 between passes. `[0]` is set if the cache
 *   cannot hold a value, `[1]` is the number of splits, `[3]` belongs to attend_decode.ts.
 *   Flags and counters have cache lines of their own (bench/log.md, "Eight storage buffers").
 * - `positions`: the lengths of the sequences, padded to whole rows of headDim words, then
 *   the bits of the cosines and sines of each position.
 *
 * @module
 */
import { MOST_SPLITS } from "../lib/dispatch/attention.ts";

/** Words of `state` before the splits, so that the splits begin at a cache line. */
export const FLAG_WORDS = 64;

/** Words of `state` before the counters. */
export const countersAt = (sequences: number, heads: number): number =>
  FLAG_WORDS + sequences * heads * MOST_SPLITS * 2;

/** Words of `state`. */
export const stateWords = (sequences: number, heads: number): number =>
  countersAt(sequences, heads) + sequences * heads;

/** Rows of `positions` that hold the lengths. */
export const lengthRows = (sequences: number, headDim: number): number =>
  Math.ceil(sequences / headDim);

/** Where a split begins in `state`. */
export const splitAt = (head: number, splits: number, split: number): number =>
  FLAG_WORDS + (head * splits + split) * 2;

/** The WGSL of {@linkcode splitAt}. */
export const STATE = /* wgsl */ `
fn split_of(head: u32, splits: u32, split: u32) -> u32 {
  return ${FLAG_WORDS}u + (head * splits + split) * 2u;
}
`;

/** Where the counters begin in `state`, if a row has `heads` heads. */
export const COUNTERS = (heads: string) =>
  `${FLAG_WORDS}u + u.sequences * ${heads} * ${2 * MOST_SPLITS}u`;

/** Declares `past`, the length of a sequence, and `turns`, where the angles begin. */
export const POSITIONS = (sequence: string) => /* wgsl */ `
  @if VEC == 4 { let past = positions[${sequence} / 4u][${sequence} % 4u]; }
  @else { let past = positions[${sequence}]; }
  let turns = (u.sequences + HEAD_DIM - 1u) / HEAD_DIM * 2u * HALF;`;

/** An element of `positions`: cosines or sines. */
export const angle = (at: string) => `bitcast<E>(positions[turns + ${at}])`;

/**
 * Heads are processed in elements `E` of VEC values: vec4f if the head size is a multiple
 * of 8, otherwise single floats. `guard` sets `state[0]` if the cache cannot hold a value.
 */
export const HEADS = /* wgsl */ `
@if VEC == 4 { alias E = vec4f; } @else { alias E = f32; }
const HALF = HEAD_DIM / 2u / VEC; // elements in half a head
fn squares(v: E) -> f32 { @if VEC == 4 { return dot(v, v); } @else { return v * v; } }
fn guard(v: E) {
  @if K_DTYPE == "f16" { if (!all(abs(v) <= vec4f(65504.0))) { atomicStore(&state[0], 1u); } }
}
`;

/**
 * Norms a pair by `factor` and its weights, then rotates it by an angle given as cosine
 * and sine, in place.
 */
export const turnPair = (
  [a, b]: [string, string],
  [gainA, gainB]: [string, string],
  [cos, sin]: [string, string],
) => /* wgsl */ `
    let na = ${a} * factor * ${gainA};
    let nb = ${b} * factor * ${gainB};
    ${a} = na * ${cos} - nb * ${sin};
    ${b} = nb * ${cos} + na * ${sin};`;
