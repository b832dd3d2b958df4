/**
 * The 32-bit finaliser of MurmurHash3: https://github.com/aappleby/smhasher.
 *
 * @module
 */

/** A bijection of 32 bits in which every bit depends on every other; wraps `h`, gives a u32. */
export function fmix32(h: number): number {
  h = Math.imul(h ^ h >>> 16, 0x85ebca6b);
  h = Math.imul(h ^ h >>> 13, 0xc2b2ae35);
  return (h ^ h >>> 16) >>> 0;
}
