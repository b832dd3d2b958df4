/**
 * Blocks of random bits: their quants and small scales may be anything, their f16 scales
 * and minimums are set so that the elements have the size of weights.
 *
 * @module
 */
import { f32ToF16Bits } from "../dtype.ts";
import type { Format } from "./format.ts";

/**
 * Where a block has its f16 scale and minimum, and their sizes for elements with a root
 * mean square of 1. Minimums make the mean zero.
 */
const FACTORS: Readonly<Record<string, [at: number, size: number][]>> = {
  q8_0: [[0, 1 / 73.9]],
  q4_0: [[0, 1 / 4.64]],
  q4_1: [[0, 1 / 4.61], [2, -7.5 / 4.61]],
  q5_0: [[0, 1 / 9.25]],
  q5_1: [[0, 1 / 9.23], [2, -15.5 / 9.23]],
  q2_k: [[80, 1 / 13.9], [82, 1.5 / 13.9]],
  q3_k: [[108, 1 / 43.3]],
  q4_k: [[0, 1 / 258], [2, 7.5 / 258]],
  q5_k: [[0, 1 / 527], [2, 15.5 / 527]],
  q6_k: [[208, 1 / 1366]],
  iq4_nl: [[0, 1 / 67.4]],
  iq4_xs: [[0, 1 / 1246]],
};

/** The root mean square of MXFP4's elements of random bits with an exponent of 128. */
const MXFP4 = 5.85;

/**
 * Sets the scales of whole blocks of random bits. `size` returns the root mean square of
 * the elements of block `i`. With `signed`, the bit that is in the place of the scale's
 * sign stays, so that elements have a mean of zero where quants have not.
 */
export function setScales(
  { name, bytes }: Pick<Format, "name" | "bytes">,
  blocks: Uint8Array,
  size: (i: number) => number,
  signed = false,
): void {
  const view = new DataView(blocks.buffer, blocks.byteOffset, blocks.length);
  const factors = FACTORS[name] ?? [];
  let last = NaN, bits: number[] = [];
  for (let at = 0, i = 0; at < blocks.length; at += bytes, i++) {
    const own = size(i);
    if (own !== last) {
      bits = name === "mxfp4"
        ? [128 + Math.round(Math.log2(own / MXFP4))]
        : factors.map(([, one]) => f32ToF16Bits(own * one));
      last = own;
    }
    if (name === "mxfp4") blocks[at] = bits[0];
    const flip = signed && factors.length > 0
      ? view.getUint16(at + factors[0][0], true) & 0x8000
      : 0;
    for (let f = 0; f < factors.length; f++) {
      view.setUint16(at + factors[f][0], bits[f] ^ flip, true);
    }
  }
}
