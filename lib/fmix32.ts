/**
 * The 32-bit finaliser of MurmurHash3: https://github.com/aappleby/smhasher.
 *
 * @module
 */

/**
 * Mixes 32 bits so that every output bit depends on every input bit; a bijection. Wraps
 * `h` to 32 bits and returns a u32.
 */
export function fmix32(h: number): number {
  h = Math.imul(h ^ h >>> 16, 0x85ebca6b);
  h = Math.imul(h ^ h >>> 13, 0xc2b2ae35);
  return (h ^ h >>> 16) >>> 0;
}
