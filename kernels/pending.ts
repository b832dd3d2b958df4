/**
 * Sums that many workgroups add to, in any order, and that other kernels read later: a row of
 * the residual stream is `x` plus what is pending for it. WGSL has no atomic addition of
 * floats, and sums of floats would depend on the order, so values are added as integers in
 * fixed point, each as a coarse and a fine part. Sums of integers are the same in any order.
 *
 * The buffer has the coarse parts of `n` sums, their fine parts, and a word that is not 0 if a
 * value was too large, or not a number: all sums are then read as NaN.
 *
 * @module
 */
import type { Constants } from "../lib/dispatch/shapes.ts";
import { type Buffers, u32Tensor } from "./case.ts";

/** Values of this size and larger do not fit: 2²⁰, 16 times the largest f16. */
const LOG_MOST = 20;

/** Words of the pending sums of `n` elements. */
export const pendingWords = (n: number): number => 2 * n + 1;

/**
 * Constants of the kernels that add to sums and that read them, if up to `adders` workgroups
 * add to each. Coarse parts count 1 / 2^LOG_COARSE, and fine parts are 2^LOG_FINE times as
 * fine; neither can overflow.
 */
export function pendingConstants(adders: number): Constants {
  const log = Math.ceil(Math.log2(adders));
  const LOG_COARSE = 30 - LOG_MOST - log;
  if (LOG_COARSE < 0) {
    throw new Error(
      `Cannot add up ${adders} values in fixed point: at most ${
        2 ** (30 - LOG_MOST)
      } fit`,
    );
  }
  return { LOG_COARSE, LOG_FINE: 31 - log };
}

/** The constants while nothing is pending. */
export const NO_PENDING: Constants = { LOG_COARSE: 0, LOG_FINE: 0 };

const UNITS = /* wgsl */ `
const COARSE = f32(1u << LOG_COARSE);
const FINE = COARSE * f32(1u << LOG_FINE);`;

/** `add_pending(n, i, value)` adds to sum i of n. */
export const ADD_PENDING = /* wgsl */ `${UNITS}
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

/** \`pending_at(n, i)\` is sum i of n, where \`read\` reads a word. */
export const readPending = (
  read = (i: string) => `pending[${i}]`,
): string =>
  /* wgsl */ `${UNITS}
fn pending_at(n: u32, i: u32) -> f32 {
  let coarse = bitcast<i32>(${read("i")});
  let fine = bitcast<i32>(${read("n + i")});
  let sum = f32(coarse) / COARSE + f32(fine) / FINE;
  return bitcast<f32>(select(bitcast<u32>(sum), 0x7fc00000u, ${
    read("2u * n")
  } != 0u));
}`;

/** What a test's buffer holds for these sums. */
export function pendingTensor(
  sums: ArrayLike<number>,
  { LOG_COARSE, LOG_FINE }: Constants,
) {
  const n = sums.length, words = new Uint32Array(pendingWords(n));
  const coarse = 2 ** Number(LOG_COARSE), fine = coarse * 2 ** Number(LOG_FINE);
  for (let i = 0; i < n; i++) {
    words[i] = Math.round(sums[i] * coarse);
    words[n + i] = Math.round((sums[i] - (words[i] | 0) / coarse) * fine);
  }
  return u32Tensor([1, words.length], words);
}

/** The sums in a buffer. */
export function pendingSums(
  { pending }: Buffers,
  { LOG_COARSE, LOG_FINE }: Constants,
): Float64Array {
  const n = (pending.length - 1) / 2;
  const coarse = 2 ** Number(LOG_COARSE), fine = coarse * 2 ** Number(LOG_FINE);
  return Float64Array.from(
    { length: n },
    (_, i) => (pending[i] | 0) / coarse + (pending[n + i] | 0) / fine,
  );
}
