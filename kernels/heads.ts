/**
 * WGSL shared by the attention kernels: Qwen3's per-head RMSNorm of q and k, then RoPE
 * (https://arxiv.org/abs/2104.09864) in the half-split form. It also defines two buffers
 * of a KV cache, each of which holds several things, because a kernel may bind only
 * eight storage buffers on many devices:
 *
 * - `state`: flags, then the bits of the maximum and the sum of each split of each head,
 *   then a counter per row and head, which is 0 between passes. `[0]` is set if the cache
 *   cannot hold a value, and with `[2]` if sums in fixed point (pending.ts), or rows that are left
 *   in f16 (gemm_matrix.ts), cannot: it says which. `[1]` is the number of splits, `[3]` belongs
 *   to attend_decode.ts.
 *   Flags and counters have cache lines of their own (bench/log.md, "Eight storage buffers").
 * - `positions`: the lengths of the sequences, padded to whole rows of headDim words, then
 *   the bits of the cosines and sines of each position.
 *
 * The positions of a sequence are one run of the cache, or in a paged cache (LOG_PAGE > 0)
 * runs of 2^LOG_PAGE, anywhere: keys and values are then `[pages, kvHeads, page, headDim]`.
 * The lengths of its SLOTS sequences are followed by the pages of each, TABLE numbers.
 *
 * @module
 */
import type { Constants } from "../lib/dispatch/shapes.ts";
import { MOST_SPLITS } from "../lib/dispatch/attention.ts";
import type { Grid } from "../lib/webgpu/kernel.ts";

/** What `state[2]` is set to if what a matmul left for the next one did not fit. */
export const LEFT_OVERFLOWS = { sums: 1, halves: 2 } as const;

/** Words of `state` before the splits, so that the splits begin at a cache line. */
export const FLAG_WORDS = 64;

/** Words of `state` before what follows `splits` splits of `heads` heads. */
export const splitsEnd = (heads: number, splits: number): number =>
  FLAG_WORDS + heads * splits * 2;

/** Words of `state` before the counters. */
export const countersAt = (sequences: number, heads: number): number =>
  splitsEnd(sequences * heads, MOST_SPLITS);

/** Words of `state`. */
export const stateWords = (sequences: number, heads: number): number =>
  countersAt(sequences, heads) + sequences * heads;

/**
 * Rows of `positions` that hold the lengths of `sequences` sequences, each with a table of
 * `table` pages.
 */
export const lengthRows = (
  sequences: number,
  headDim: number,
  table = 0,
): number => Math.ceil(sequences * (1 + table) / headDim);

/** The constants of a cache that is not paged. */
export const NOT_PAGED = { LOG_PAGE: 0, SLOTS: 0, TABLE: 0 } as const;

/** Where a split begins in `state`. */
export const splitAt = (head: number, splits: number, split: number): number =>
  FLAG_WORDS + (head * splits + split) * 2;

/** The WGSL of {@linkcode splitAt}. */
export const STATE = /* wgsl */ `
fn split_of(head: u32, splits: u32, split: u32) -> u32 {
  return ${FLAG_WORDS}u + (head * splits + split) * 2u;
}
`;

/** Declares `counters`, where they begin in `state`, if a row has `heads` heads. */
export const COUNTERS = (heads: string) => /* wgsl */ `
  @if LOG_PAGE { let slots = SLOTS; } @else { let slots = u.sequences; }
  let counters = ${FLAG_WORDS}u + slots * ${heads} * ${2 * MOST_SPLITS}u;`;

/** Declares `past`, the length of a sequence, and `turns`, where the angles begin. */
export const POSITIONS = (sequence: string) => /* wgsl */ `
  let past = ${positionsWord(sequence)};
  @if LOG_PAGE { let turns = (SLOTS * (1 + TABLE) + HEAD_DIM - 1) / HEAD_DIM * 2u * HALF; }
  @else { let turns = (u.sequences + HEAD_DIM - 1u) / HEAD_DIM * 2u * HALF; }`;

/**
 * Declares `name`, from which {@linkcode cacheRow} finds the rows of a sequence's kv head.
 * These are texts and not functions: see lib/webgpu/inline.ts.
 */
export const cacheBase = (
  name: string,
  sequence: string,
  kvHead: string,
) => /* wgsl */ `
  @if LOG_PAGE { let ${name} = SLOTS + (${sequence}) * TABLE; }
  @else { let ${name} = ((${sequence}) * u.kvHeads + ${kvHead}) * u.context; }`;

/** Declares `name`, the row of keys or values of a position; `word` reads the table. */
export const cacheRow = (
  name: string,
  { base, kvHead, position, word }: {
    base: string;
    kvHead: string;
    position: string;
    word: (at: string) => string;
  },
) => /* wgsl */ `
  @if LOG_PAGE {
    let ${name}_position = ${position};
    let ${name}_entry = ${base} + (${name}_position >> LOG_PAGE);
    let ${name} = ((${
  word(`${name}_entry`)
} * u.kvHeads + ${kvHead}) << LOG_PAGE) + (${name}_position & ((1u << LOG_PAGE) - 1u));
  } @else { let ${name} = ${base} + ${position}; }`;

/** A word of `positions`. */
export const positionsWord = (at: string): string =>
  `(@if VEC == 4 { positions[(${at}) / 4u][(${at}) % 4u] } @else { positions[${at}] })`;

/** An element of `positions`: cosines or sines. */
export const angle = (at: string) => `bitcast<E>(positions[turns + ${at}])`;

/**
 * Heads are processed in elements `E` of VEC values: vec4f if the head size is a multiple
 * of 8, otherwise single floats. `guard` sets `state[0]` if a value exceeds f16, and the cache is not f32.
 */
export const HEADS = /* wgsl */ `
@if VEC == 4 { alias E = vec4f; } @else { alias E = f32; }
const HALF = HEAD_DIM / 2u / VEC; // elements in half a head
fn square(v: E) -> f32 { @if VEC == 4 { return dot(v, v); } @else { return v * v; } }
fn guard(v: E) {
  @if K_DTYPE != "f32" { if (!all(abs(v) <= vec4f(65504.0))) { atomicStore(&state[0], 1u); } }
}
`;

/**
 * Keys and values in q8_0, if CACHE says so (lib/formats/cached.ts). `row` counts heads
 * through the whole cache. A four of a head is four neighboring values, in one word.
 */
export const QUANTS = /* wgsl */ `
@if CACHE == "q8_0" {
const SCALES = (HEAD_DIM + 63u) / 64u; // words of scales of a head
fn quants_at(row: u32, four: u32) -> u32 {
  let half = HEAD_DIM / 8u;
  let i = four % half;
  return row * (HEAD_DIM / 4u) + i / 2u * 4u + four / half * 2u + i % 2u;
}
fn scale_at(row: u32, block: u32) -> u32 {
  return u.sequences * u.kvHeads * u.context * (HEAD_DIM / 4u) + row * SCALES + block / 2u;
}
fn scale_of(word: u32, block: u32) -> f32 { return unpack2x16float(word >> (block % 2u * 16u)).x; }
fn values_of(quants: u32) -> vec4f { return vec4f(unpack4xI8(quants)); }
fn largest(v: vec4f) -> f32 {
  let a = abs(v);
  return max(max(a.x, a.y), max(a.z, a.w));
}
// ggml's rounding: to the nearest integer, from halves away from zero.
fn quantized(v: vec4f, most: f32) -> u32 {
  let scale = most / 127.0;
  let x = v * select(0.0, 1.0 / scale, scale > 0.0);
  return pack4xI8(vec4i(x + select(vec4f(-0.5), vec4f(0.5), x >= vec4f())));
}
fn scales_word(most: f32, next: f32) -> u32 { return pack2x16float(vec2f(most, next) / 127.0); }
}
`;

/** Declares `k_cached(row, four)` for buffer `k`, which is raw: four values of a head. */
export const dequantized = (x: string) => /* wgsl */ `
@if CACHE == "q8_0" {
fn ${x}_cached(row: u32, four: u32) -> vec4f {
  let block = four % (HEAD_DIM / 8u) / 4u;
  return values_of(${x}[quants_at(row, four)]) * scale_of(${x}[scale_at(row, block)], block);
}
}
`;

/** Place of a lane's pair p of a vector that NORM_LANES lanes norm. */
export const NORM_PLACE = "p * NORM_LANES + norm_lane";

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

/**
 * Buffers of prefill attention, which reads a cache that is not q8_0 by `unit` and rows by
 * `view`.
 */
export const prefillBuffers =
  (unit: string, view = "vec4") => ({ CACHE, LOG_PAGE }: Constants) => {
    const cache = CACHE === "q8_0" ? "any as raw" : `headDim as ${unit}`;
    return {
      q: `m any as ${view}`,
      lengths: LOG_PAGE ? "any" : "sequences",
      k: `sequences kvHeads context ${cache}`,
      v: `sequences kvHeads context ${cache}`,
      y: `inout m any as ${view}`,
    };
  };

/** {@linkcode prefillBuffers}; `y` and `state` have room for results of splits if SPLIT is set. */
export const splitBuffers =
  (unit: string, view = "vec4") => (constants: Constants) => ({
    ...prefillBuffers(unit, view)(constants),
    ...(constants.SPLIT
      ? { y: `inout any as ${view}`, state: "inout any" }
      : {}),
  });

/** The grid of prefill attention in blocks of ROWS rows, each with `splits` splits of its keys. */
export const prefillGrid = (
  { m, tokens, group, kvHeads }: Readonly<
    Record<"m" | "tokens" | "group" | "kvHeads", number>
  >,
  ROWS: number,
  splits = 1,
): Grid => [Math.ceil(tokens * group / ROWS) * splits, kvHeads, m / tokens];

/**
 * Declares `first_row` of a workgroup in prefill attention and its keys, from `begin` to
 * before `keys`. If SPLIT is set, `splits` workgroups share those of a block of rows, in whole
 * tiles of 64 (flash decoding, https://pytorch.org/blog/flash-decoding/); a split may have
 * none, or none that some row sees.
 */
export const PREFILL_KEYS = /* wgsl */ `
  @if SPLIT {
    let blocks = (rows + ROWS - 1u) / ROWS;
    let splits = groups.x / blocks;
    let split = wg.x / blocks;
    let first_row = wg.x % blocks * ROWS;
  } @else { let first_row = wg.x * ROWS; }
  let last_key = length + min(first_row + ROWS - 1u, rows - 1u) / u.group;
  @if SPLIT {
    let each = (last_key / 64u + splits) / splits * 64u;
    let begin = min(split * each, last_key + 1u);
    let keys = min(begin + each, last_key + 1u);
  } @else {
    let begin = 0u;
    let keys = last_key + 1u;
  }`;

/**
 * Declares `to`, where the result of the thread's row `r` goes, in heads. That of one split
 * among several is not divided by the sum; with it and the maximum it is left for
 * merge_splits.ts.
 */
export const prefillHead = (row: string) => /* wgsl */ `
  let token = wg.z * u.tokens + ${row} / u.group;
  var to = token * u.kvHeads * u.group + kv_head * u.group + ${row} % u.group;
  @if SPLIT {
    if (splits > 1u) {
      if (tn == 0u) {
        let at = split_of(to, splits, split);
        state[at] = bitcast<u32>(top[r]);
        state[at + 1u] = bitcast<u32>(total[r]);
      }
      if (tid == 0u && all(wg == vec3u())) { state[1] = splits; }
      to = groups.z * u.tokens * u.kvHeads * u.group + to * splits + split;
      total[r] = 1.0;
    }
  }`;
