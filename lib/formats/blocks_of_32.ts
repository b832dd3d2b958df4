/**
 * Blocks of 32 quants with one scale `d`, an f16: `d · (q - offset)`, or `d · q + m`.
 *
 * @module
 */
import {
  BITS,
  blockFormat,
  type BlockSpec,
  halfAt,
  halvesOf,
  halvesOfWords,
  integers,
  type ScalePlane,
  wordsOf,
} from "./blocks.ts";
import { f16ToF32 } from "../dtype.ts";
import type { Format } from "./format.ts";
import { halvesToFloat } from "./words.ts";

const ELEMENTS = 32;

/** One scale per block. */
export const ONE_SCALE = {
  elements: ELEMENTS,
  group: ELEMENTS,
  scales: [{ name: "scales", bytes: 2, type: "u32", view: halvesOf }],
  decode([scales], block, scale) {
    scale[0] = f16ToF32(scales[block]);
  },
  factors(simd, read) {
    const upper = simd.shiftLeft(read(0, "halves"), 16);
    return [{ scale: halvesToFloat(simd, upper) }];
  },
} as const satisfies Partial<BlockSpec>;

/** Its WGSL, where a block has `units` units. */
export const oneScale = (units: number): BlockSpec["wgsl"] => (read, Factors) =>
  `return ${Factors}(${
    halfAt(read, 0, units === 1 ? "at" : `at / ${units}u`)
  });`;

/** A scale and a minimum per block, which is added. */
const SCALE_AND_MIN = {
  elements: ELEMENTS,
  group: ELEMENTS,
  min: true,
  scales: [
    { name: "scales", bytes: 4, type: "u32", view: wordsOf },
  ] as readonly ScalePlane[],
  wgsl: (read, Factors) =>
    `let dm = unpack2x16float(${read(0, "at")});
  return ${Factors}(dm.x, -dm.y);`,
  decode([scales], block, scale, min) {
    scale[0] = f16ToF32(scales[block] & 0xffff);
    min[0] = -f16ToF32(scales[block] >>> 16);
  },
  factors(simd, read) {
    const dm = halvesOfWords(simd, simd.keep(read(0, "words")));
    return [{ scale: dm.lower, min: simd.mul(dm.upper, simd.number(-1)) }];
  },
} as const satisfies Partial<BlockSpec>;

/** Splits blocks of a scale and `words` words of quants, which are not aligned. */
export const splitScale =
  (words: number): BlockSpec["pack"] => (blocks, [quants, scales]) => {
    const from = halvesOf(blocks), to = wordsOf(quants), d = halvesOf(scales);
    for (let b = 0, at = 0, out = 0; b < d.length; b++) {
      d[b] = from[at++];
      for (let i = 0; i < words; i++, at += 2) {
        to[out++] = from[at] | from[at + 1] << 16;
      }
    }
  };

/** Eight-bit quants. */
export const q8_0: Format = blockFormat({
  ...ONE_SCALE,
  name: "q8_0",
  bytes: 34,
  bits: [8],
  values: [...integers(128, 0), ...integers(128, -128)],
  less: "signed",
  wgsl: oneScale(2),
  pack: splitScale(8),
});

/** Four-bit quants. */
export const q4_0: Format = blockFormat({
  ...ONE_SCALE,
  name: "q4_0",
  bytes: 18,
  bits: [4],
  values: integers(16, -8),
  less: 8,
  wgsl: oneScale(1),
  pack: splitScale(4),
});

/** Four-bit quants and a minimum. */
export const q4_1: Format = blockFormat({
  ...SCALE_AND_MIN,
  name: "q4_1",
  bytes: 20,
  bits: [4],
  values: integers(16, 0),
  less: 0,
  pack(blocks, [quants, scales]) {
    const from = wordsOf(blocks), to = wordsOf(quants), dm = wordsOf(scales);
    for (let b = 0; b < dm.length; b++) {
      dm[b] = from[5 * b];
      for (let i = 0; i < 4; i++) to[4 * b + i] = from[5 * b + 1 + i];
    }
  },
});

/** Moves bit `4 f + e` to bit `8 e + f`: from the order of elements to that of a plane. */
function transposed(bits: number): number {
  let word = 0;
  for (let f = 0; f < 8; f++) {
    // The product has bit e of four f at bit 8 e, and others that the mask removes.
    word |= (((bits >>> 4 * f) & 15) * 0x00204081 & BITS) << f;
  }
  return word;
}

/** Five-bit quants. */
export const q5_0: Format = blockFormat({
  ...ONE_SCALE,
  name: "q5_0",
  bytes: 22,
  bits: [4, 1],
  values: integers(32, -16),
  less: 16,
  wgsl: oneScale(1),
  pack(blocks, [quants, high, scales]) {
    const from = halvesOf(blocks), to = wordsOf(quants), d = halvesOf(scales);
    const bits = wordsOf(high);
    for (let b = 0, at = 0; b < d.length; b++, at += 11) {
      d[b] = from[at];
      bits[b] = transposed(from[at + 1] | from[at + 2] << 16);
      for (let i = 0; i < 4; i++) {
        to[4 * b + i] = from[at + 3 + 2 * i] | from[at + 4 + 2 * i] << 16;
      }
    }
  },
});

/** Five-bit quants and a minimum. */
export const q5_1: Format = blockFormat({
  ...SCALE_AND_MIN,
  name: "q5_1",
  bytes: 24,
  bits: [4, 1],
  values: integers(32, 0),
  less: 0,
  pack(blocks, [quants, high, scales]) {
    const from = wordsOf(blocks), to = wordsOf(quants), dm = wordsOf(scales);
    const bits = wordsOf(high);
    for (let b = 0; b < dm.length; b++) {
      dm[b] = from[6 * b];
      bits[b] = transposed(from[6 * b + 1]);
      for (let i = 0; i < 4; i++) to[4 * b + i] = from[6 * b + 2 + i];
    }
  },
});
