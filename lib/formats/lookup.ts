/**
 * Four-bit quants that stand for the values of a table.
 *
 * @module
 */
import { blockFormat, bytesOf, halvesOfWords, wordsOf } from "./blocks.ts";
import { ONE_SCALE, oneScale, splitScale } from "./blocks_of_32.ts";
import { f16ToF32 } from "../dtype.ts";
import type { Format } from "./format.ts";

/** The values of llama.cpp's non-linear quants: closer to each other around zero. */
const VALUES = [
  ...[-127, -104, -83, -65, -49, -35, -22, -10],
  ...[1, 13, 25, 38, 53, 69, 89, 113],
];

/** Non-linear quants; an f16 scale for 32 elements. */
export const iq4_nl: Format = blockFormat({
  ...ONE_SCALE,
  name: "iq4_nl",
  bytes: 18,
  bits: [4],
  values: VALUES,
  wgsl: oneScale(1),
  pack: splitScale(4),
});

/** Non-linear quants; scales of six bits for 32 elements, times an f16 for 256. */
export const iq4_xs: Format = blockFormat({
  name: "iq4_xs",
  elements: 256,
  bytes: 136,
  bits: [4],
  group: 32,
  values: VALUES,
  // As in files: d, two high bits of each scale, and a word of the low four.
  scales: [{ name: "scales", bytes: 8, type: "vec2u", view: wordsOf }],
  wgsl: (read, Factors) =>
    `let all = ${read(0, "at / 8u")};
  let group = at % 8u;
  let own = ((all.y >> (group * 4u)) & 15u) | (((all.x >> (16u + group * 2u)) & 3u) << 4u);
  return ${Factors}(unpack2x16float(all.x).x * (f32(own) - 32.0));`,
  decode([scales], block, scale) {
    const first = scales[2 * block], low = scales[2 * block + 1];
    const one = f16ToF32(first & 0xffff);
    for (let g = 0; g < 8; g++) {
      const high = first >>> 16 + 2 * g & 3;
      scale[g] = one * ((low >>> 4 * g & 15 | high << 4) - 32);
    }
  },
  factors(simd, read) {
    const first = simd.keep(read(0, "word")),
      low = simd.keep(read(0, "word", 4));
    const d = halvesOfWords(simd, first).lower;
    return [0, 1].map((half) => {
      const four = simd.shiftLanes(simd.shiftRight(low, 16 * half), [
        12,
        8,
        4,
        0,
      ]);
      const two = simd.shiftLanes(simd.shiftRight(first, 16 + 8 * half), [
        6,
        4,
        2,
        0,
      ]);
      const own = simd.or(
        simd.and(simd.shiftRight(four, 12), simd.bits(15)),
        simd.and(simd.shiftRight(two, 2), simd.bits(48)),
      );
      return {
        scale: simd.mul(simd.toFloat(simd.subInts(own, simd.bits(32))), d),
      };
    });
  },
  pack(blocks, [quants, scales]) {
    const from = wordsOf(blocks), to = wordsOf(quants), own = wordsOf(scales);
    for (let b = 0, at = 0; at < from.length; b++, at += 34) {
      own[2 * b] = from[at];
      own[2 * b + 1] = from[at + 1];
      for (let i = 0; i < 32; i++) to[32 * b + i] = from[at + 2 + i];
    }
  },
});

/**
 * The OCP Microscaling format of floats of four bits (E2M1); a power of two for 32
 * elements. The table has the doubles of their values, which are integers; half the power
 * of two makes up for that. As in llama.cpp, quant 8 is 0, not -0, and exponent 255 is a
 * power of two like any other.
 */
export const mxfp4: Format = blockFormat({
  name: "mxfp4",
  elements: 32,
  bytes: 17,
  bits: [4],
  group: 32,
  values: [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12],
  scales: [{ name: "scales", bytes: 1, type: "u32", view: bytesOf }],
  // Two factors that f32 has as normal numbers, even where it has not their product.
  scaleType: "vec2f",
  wgsl: (read, Factors) =>
    `let e = (${read(0, "at / 4u")} >> (at % 4u * 8u)) & 255u;
  let half = e / 2u;
  return ${Factors}(bitcast<vec2f>(vec2u(half + 63u, e - half + 63u) << vec2u(23u)));`,
  scaled: (values, scale) => `${values} * ${scale}.x * ${scale}.y`,
  decode([scales], block, scale) {
    scale[0] = 2 ** (scales[block] - 128);
  },
  factors(simd, read) {
    const e = simd.keep(read(0, "bytes")),
      half = simd.keep(simd.shiftRight(e, 1));
    const power = (exponent: typeof e) =>
      simd.shiftLeft(simd.addInts(exponent, simd.bits(63)), 23);
    return [{ scale: simd.mul(power(half), power(simd.subInts(e, half))) }];
  },
  pack(blocks, [quants, scales]) {
    for (let b = 0, at = 0, to = 0; b < scales.length; b++) {
      scales[b] = blocks[at++];
      for (let i = 0; i < 16; i++) quants[to++] = blocks[at++];
    }
  },
});
