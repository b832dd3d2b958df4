/**
 * WGSL that the sampling kernels share. They split a row of logits into chunks, one per
 * workgroup. A thread holds its STEPS · 4 scores of the chunk in registers, so that a
 * kernel reads the logits once with all loads in flight.
 *
 * Each chunk's result is a record of four or eight words in `[sequences, chunks, words]`.
 * Scores are stored as u32 keys that sort like them, with 0 for none.
 *
 * @module
 */
import type { Constants } from "../lib/dispatch/shapes.ts";
import type { Dims } from "../lib/webgpu/kernel.ts";
import { FAULT, HIGHEST_SCORE } from "../lib/dispatch/sampling.ts";
import { LANES, LOW } from "../lib/webgpu/wgsl.ts";

/** Threads of every sampling workgroup, a multiple of the chunks of a row. */
export const WORKGROUP = 256;

/** Bins of the histogram of a row's scores. */
export const BINS = 1024;

/** Defaults of every sampling kernel. */
export const SAMPLE_CONSTANTS = { WORKGROUP, LOG_LANES: 5, SUBGROUPS: 1 };

/** The buffer that {@linkcode SCORES} reads. */
export const LOGITS_CONTRACT = { logits: "sequences vocab as span" } as const;

/**
 * Words of a chunk's record. `histogram` is for those of sample_draw.ts that also say what
 * is above the bins left open.
 */
export const recordWords = (histogram: boolean): number => histogram ? 8 : 4;

/** Derives the elements of a chunk, a multiple of 4, and the loads of 4 per thread. */
export function deriveChunk(
  { LOG_LANES }: Constants,
  { vocab, chunks }: Dims,
): Constants {
  const CHUNK = chunkLength(vocab, chunks);
  return {
    LANES: 1 << Number(LOG_LANES),
    CHUNK,
    STEPS: Math.ceil(CHUNK / (4 * WORKGROUP)),
  };
}

/** Elements per chunk when a row is split into `chunks`. */
export function chunkLength(vocab: number, chunks: number): number {
  return Math.ceil(vocab / chunks / 4) * 4;
}

/** Keys of scores: order(a) < order(b) if a < b, and −0 equals 0. */
export const ORDER = /* wgsl */ `
fn order(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  if (bits >= 0x80000000u) { return select(~bits, 0x80000000u, bits == 0x80000000u); }
  return bits | 0x80000000u;
}
fn score_of(key: u32) -> f32 {
  return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}
`;

/**
 * `workgroup_best(score, id, tid)`: the key of a workgroup's highest score, and the lowest
 * id with that score. It is the same in all threads, also for compilers that check that
 * barriers are reached by all.
 */
export const BEST = /* wgsl */ `
${LANES}
var<workgroup> best_key: atomic<u32>;
var<workgroup> best_not_id: atomic<u32>;
var<workgroup> best_of_all: vec2u;
fn workgroup_best(score: f32, id: u32, tid: u32) -> vec2u {
  if (tid == 0u) { atomicStore(&best_key, 0u); atomicStore(&best_not_id, 0u); }
  workgroupBarrier();
  let highest = lanes_max(score, tid);
  if (tid % LANES == 0u) { atomicMax(&best_key, order(highest)); }
  workgroupBarrier();
  let key = atomicLoad(&best_key);
  if (order(score) == key) { atomicMax(&best_not_id, ~id); }
  workgroupBarrier();
  if (tid == 0u) { best_of_all = vec2u(key, ~atomicLoad(&best_not_id)); }
  return workgroupUniformLoad(&best_of_all);
}
`;

/**
 * Scores that stand for logits which are not finite. Finite logits are clamped to
 * ±HIGHEST, so a row's highest score tells whether it can be sampled from. ABSENT is below
 * them all.
 */
export const STANDINS = /* wgsl */ `
const ABSENT = ${LOW};
const HIGHEST = ${HIGHEST_SCORE};
const MINUS_INFINITY = -2.0 * HIGHEST;
const PLUS_INFINITY = 2.0 * HIGHEST;
const NOT_A_NUMBER = 3.0 * HIGHEST;
`;

/**
 * `fault_of(top, masked)`: why a row with this highest score cannot be sampled from, as one
 * of the codes of lib/dispatch/sampling.ts; 0 if it can.
 */
export const FAULTS = /* wgsl */ `
${STANDINS}
fn fault_of(top: f32, masked: u32) -> u32 {
  if (top >= NOT_A_NUMBER) { return ${FAULT.nan}u; }
  if (top >= PLUS_INFINITY) { return ${FAULT.infinity}u; }
  return select(0u, select(${FAULT.none}u, ${FAULT.masked}u, masked > 0u), top <= MINUS_INFINITY);
}
`;

/**
 * `scores_at(sequence, e)`: logits e … e + 3, ABSENT outside the vocabulary. What is not finite is found by its bits, because drivers may assume that
 * comparisons never meet a NaN.
 */
export const SCORES = /* wgsl */ `
${ORDER}
${FAULTS}
fn finite(logit: f32, present: bool) -> f32 {
  if (!present) { return ABSENT; }
  let bits = bitcast<u32>(logit);
  if ((bits & 0x7f800000u) == 0x7f800000u) {
    if ((bits & 0x7fffffu) != 0u) { return NOT_A_NUMBER; }
    return select(PLUS_INFINITY, MINUS_INFINITY, bits >= 0x80000000u);
  }
  return clamp(logit, -HIGHEST, HIGHEST);
}
fn scores_at(sequence: u32, e: u32, chunk: u32) -> vec4f {
  let end = min((chunk + 1u) * CHUNK, u.vocab);
  let left = select(0u, end - e, e < end);
  let x = logits_span(sequence * u.vocab + e, left);
  return vec4f(finite(x.x, left > 0u), finite(x.y, left > 1u), finite(x.z, left > 2u), finite(x.w, left > 3u));
}
`;

/** Declares a thread's scores `x[i][c]`, of token `first + i * 4 * WORKGROUP + c`. */
export const LOAD_SCORES = /* wgsl */ `
  let chunk = wg.x;
  let sequence = wg.y;
  let first = chunk * CHUNK + tid * 4u;
  @split var x: array<vec4f, STEPS>;
  @unroll for (var i = 0; i < STEPS; i++) { x[i] = scores_at(sequence, first + i * 4u * WORKGROUP, chunk); }
`;

/** Declares `own`, the key of the highest of these scores in the chunk, and its lowest id. */
export const BEST_OF_CHUNK = /* wgsl */ `
  var score = ABSENT;
  var id = 0u;
  @unroll for (var i = 0; i < STEPS; i++) {
    @unroll for (var c = 0; c < 4; c++) {
      if (x[i][c] > score) { score = x[i][c]; id = first + i * 4u * WORKGROUP + c; }
    }
  }
  let own = workgroup_best(score, id, tid);`;

/** The highest score of a row, from argmax's records. */
export const ROW_TOP = /* wgsl */ `
var<workgroup> row_top_key: atomic<u32>;
fn row_top(sequence: u32, tid: u32) -> f32 {
  if (tid < u.chunks) { atomicMax(&row_top_key, highest[(sequence * u.chunks + tid) * 4u]); }
  workgroupBarrier();
  return score_of(atomicLoad(&row_top_key));
}
`;

/**
 * Random bits and the Gumbel noise of lib/model/sampling.ts, whose `gumbel` explains how
 * f32 loses small x. Below a half, −ln(1 − x) is computed as 2 artanh(x / (2 − x)),
 * because WGSL's log has an absolute error of 2⁻²¹ near 1.
 */
export const GUMBEL = /* wgsl */ `
fn fmix32(bits: u32) -> u32 {
  var h = bits;
  h = (h ^ (h >> 16u)) * 0x85ebca6bu;
  h = (h ^ (h >> 13u)) * 0xc2b2ae35u;
  return h ^ (h >> 16u);
}
fn step_key(seed: u32, step: u32) -> u32 {
  return fmix32(fmix32(seed + 0x9e3779b9u) ^ fmix32(step + 0x7f4a7c15u));
}
fn gumbel(key: u32, id: u32) -> f32 {
  let hash = fmix32(key ^ fmix32(id + 0x94d049bbu));
  let x = min((f32(hash) + 0.5) * 0x1p-32f, 1.0 - 0x1p-24f);
  let r = x / (2.0 - x);
  let q = r * r;
  let series = 2.0 * r * (1.0 + q * (1.0 / 3.0 + q * (1.0 / 5.0 + q * (1.0 / 7.0 + q * (1.0 / 9.0 + q * (1.0 / 11.0 + q / 13.0))))));
  return -log(select(-log(1.0 - x), series, x < 0.5));
}
`;
