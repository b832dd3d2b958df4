/**
 * Sums that many workgroups add to, in any order, and that other kernels read later: a row of
 * the residual stream is `x` plus what is pending for it. WGSL has no atomic addition of
 * floats, and sums of floats would depend on the order, so values are added as integers in
 * fixed point, each as a coarse and a fine part. Sums of integers are the same in any order.
 *
 * The buffer has the coarse parts of `n` sums, their fine parts, and two more words: the second
 * is the unit in which values are counted, an f32: 1, or a power of 2 of about the size of a
 * smaller row, which so keeps its digits. The first is not 0 if a value was too large for it,
 * or not a number: all sums are then read as NaN, and who reads them raises a flag.
 *
 * @module
 */
import { MOST_ADDING } from "../lib/dispatch/feed_forward.ts";
import type { Constants } from "../lib/dispatch/shapes.ts";
import { type Buffers, u32Tensor } from "./case.ts";
import { LEFT_OVERFLOWS } from "./heads.ts";
import { bitsOf } from "./sample_case.ts";

/** Values of 2²⁰ units and larger do not fit. */
const LOG_MOST = 20;

/** Words of the pending sums of `n` elements. */
export const pendingWords = (n: number): number => 2 * n + 2;

/**
 * Constants of the kernels that add to sums and that read them, if up to `adders` workgroups
 * add to each. Coarse parts count 1 / 2^LOG_COARSE, and fine parts are 2^LOG_FINE times as
 * fine; neither can overflow.
 */
export function pendingConstants(adders: number): Constants {
  const log = Math.ceil(Math.log2(adders));
  const LOG_COARSE = 30 - LOG_MOST - log;
  if (adders > MOST_ADDING) {
    throw new Error(
      `Cannot add up ${adders} values in fixed point: at most ${MOST_ADDING} may`,
    );
  }
  return { LOG_COARSE, LOG_FINE: 31 - log };
}

/** The constants while nothing is pending. */
export const NO_PENDING: Constants = { LOG_COARSE: 0, LOG_FINE: 0 };

const UNITS = /* wgsl */ `
const COARSE = f32(1u << LOG_COARSE);
const FINE = COARSE * f32(1u << LOG_FINE);`;

/**
 * `unit_of(mean)` is the unit for a row with this mean of squares, `keep_unit(n, unit)` stores it
 * for those who read the n sums, and `add_pending(n, i, value)` adds a value, divided by it, to
 * sum i.
 */
export const ADD_PENDING = /* wgsl */ `${UNITS}
fn unit_of(mean: f32) -> f32 {
  // Between 2⁻⁶³ and 1: a few large elements must not cost the others their digits.
  return bitcast<f32>(clamp(bitcast<u32>(sqrt(mean)) & 0x7f800000u, 0x20000000u, 0x3f800000u));
}
fn keep_unit(n: u32, unit: f32) { atomicStore(&pending[2u * n + 1u], bitcast<u32>(unit)); }
fn add_pending(n: u32, i: u32, value: f32) {
  // Bits, because compilers may take NaN for impossible.
  if ((bitcast<u32>(value) & 0x7fffffffu) >= ${(127 + LOG_MOST) << 23}u) {
    atomicStore(&pending[2u * n], 1u);
    return;
  }
  let coarse = i32(round(value * COARSE));
  let fine = i32(round((value - f32(coarse) / COARSE) * FINE));
  atomicAdd(&pending[i], bitcast<u32>(coarse));
  atomicAdd(&pending[n + i], bitcast<u32>(fine));
}`;

/** `pending_at(n, i)` is sum i of n. */
export const PENDING_AT = /* wgsl */ `${UNITS}
fn pending_at(n: u32, i: u32) -> f32 {
  let sum = f32(bitcast<i32>(pending[i])) / COARSE + f32(bitcast<i32>(pending[n + i])) / FINE;
  let unit = bitcast<f32>(pending[2u * n + 1u]);
  return bitcast<f32>(select(bitcast<u32>(sum * unit), 0x7fc00000u, pending[2u * n] != 0u));
}`;

/** `raise_flags(n)` raises the flags of a cache (lib/gpu/kv_cache.ts) if something did not fit. */
export const RAISE_FLAGS = /* wgsl */ `
fn raise_flags(n: u32) {
  if (pending[2u * n] != 0u) {
    flags[0] = 1u;
    flags[2] = ${LEFT_OVERFLOWS.sums}u;
  }
}`;

/** What a test's buffer holds for these sums, counted in `unit`. */
export function pendingTensor(
  sums: ArrayLike<number>,
  { LOG_COARSE, LOG_FINE }: Constants,
  unit = 1,
) {
  const n = sums.length, words = new Uint32Array(pendingWords(n));
  const coarse = 2 ** Number(LOG_COARSE), fine = coarse * 2 ** Number(LOG_FINE);
  for (let i = 0; i < n; i++) {
    const value = sums[i] / unit;
    words[i] = Math.round(value * coarse);
    words[n + i] = Math.round((value - (words[i] | 0) / coarse) * fine);
  }
  words[2 * n + 1] = bitsOf(unit);
  return u32Tensor([1, words.length], words);
}

/** The most that rounding changes a sum by: each of `adders` values, and what was there before. */
export function pendingRounding(
  { LOG_COARSE, LOG_FINE }: Constants,
  { adders, unit }: { adders: number; unit: number },
): number {
  return unit * 2 ** -(Number(LOG_COARSE) + Number(LOG_FINE)) * (adders + 1) /
    2;
}

/** The sums in a buffer. */
export function pendingSums(
  { pending }: Buffers,
  { LOG_COARSE, LOG_FINE }: Constants,
): Float64Array {
  const n = (pending.length - 2) / 2;
  const coarse = 2 ** Number(LOG_COARSE), fine = coarse * 2 ** Number(LOG_FINE);
  const [unit] = new Float32Array(Uint32Array.of(pending[2 * n + 1]).buffer);
  return Float64Array.from(
    { length: n },
    (_, i) => unit * ((pending[i] | 0) / coarse + (pending[n + i] | 0) / fine),
  );
}
