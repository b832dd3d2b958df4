/**
 * llama.cpp's k-quants: blocks of 256 elements, whose groups of 16 or 32 have small
 * integers as scales and minimums, times an f16 `d` and `dmin` per block. The products
 * with a quant take at most 24 bits, so f32 has them exactly, and the one subtraction
 * rounds as in llama.cpp, fused or not.
 *
 * @module
 */
import {
  BITS,
  blockFormat,
  type BlockSpec,
  bytesOf,
  halfAt,
  halvesOf,
  halvesOfWords,
  halvesToFloat,
  integers,
  NIBBLES,
  PAIRS,
  wordsOf,
} from "./blocks.ts";
import { f16ToF32 } from "../dtype.ts";
import type { Format, SimdBlocks, SimdCode } from "./format.ts";
import type { Bits } from "./gather.ts";

const ELEMENTS = 256;

/** `width` bits of byte `byte`, from `bit` on. */
const bits = (byte: number, bit: number, width: number): Bits => ({
  bit: 8 * byte + bit,
  width,
});

const each = <T>(count: number, of: (i: number) => T): T[] =>
  Array.from({ length: count }, (_, i) => of(i));
/** Indices of bytes: d and dmin as the upper halves of words. */
const D = [-1, -1, 0, 1, -1, -1, 2, 3, ...Array(8).fill(-1)];
/** Four bytes as the highest of words. */
const upperBytes = (first: number): number[] =>
  [0, 1, 2, 3].flatMap((i) => [-1, -1, -1, first + i]);
/** The first bytes of two, each as often as the second. */
const twice = (first: number): number[] => each(8, (i) => first + (i >> 1));

/** What reads factors that are integers times a number of their block. */
const fromIntegers = (
  groups: number,
  integers: NonNullable<SimdBlocks["integers"]>,
): Pick<SimdBlocks, "factors" | "integers"> => ({
  integers,
  factors(simd, read) {
    const { scales, d, mins, dmin } = integers(simd, read);
    // Bytes are read as the upper ones of words, 2²⁴ times as large.
    const product = <V>(of: SimdCode<V>, bytes: V, first: number, one: V) =>
      of.mul(of.toFloat(of.bytes(bytes, upperBytes(first))), one);
    const lower = (one: typeof d) =>
      simd.keep(simd.mul(one, simd.number(2 ** -24)));
    const one = lower(d), least = dmin && lower(dmin);
    const [own, ownMins] = [simd.keep(scales), mins && simd.keep(mins)];
    return each(groups / 4, (i) => ({
      scale: product(simd, own, 4 * i, one),
      ...ownMins && least && { min: product(simd, ownMins, 4 * i, least) },
    }));
  },
});

/** Bytes of nibbles, the lower one first, from 16 copies in pairs. */
const nibblesInOrder = <V>(simd: SimdCode<V>, pairs: V): V =>
  simd.or(
    simd.and(pairs, simd.bits(0x000f000f)),
    simd.and(simd.shiftRight(pairs, 4), simd.bits(0x0f000f00)),
  );

/**
 * The plane of scales of Q4_K and Q5_K: for each block a vec4u of d and dmin, four bits
 * of each scale, four of each minimum, and of each group two more of both. So each group
 * finds its bits by the same shift.
 */
const SIX_BITS = {
  elements: ELEMENTS,
  group: 32,
  min: true,
  scales: [{
    name: "scales",
    bytes: 16,
    // Of four groups each, scales and minimums have the low six bits of bytes 4 to 7 and
    // 8 to 11; the other four, the nibbles of bytes 12 to 15 and the two bits above.
    stored: [
      { bit: 0, width: 32 },
      ...each(4, (g) => bits(4 + g, 0, 4)),
      ...each(4, (g) => bits(12 + g, 0, 4)),
      ...each(4, (g) => bits(8 + g, 0, 4)),
      ...each(4, (g) => bits(12 + g, 4, 4)),
      ...each(4, (g) => [bits(4 + g, 4, 2), bits(8 + g, 4, 2)]).flat(),
      ...each(4, (g) => [bits(4 + g, 6, 2), bits(8 + g, 6, 2)]).flat(),
    ],
    type: "vec4u",
    view: wordsOf,
  }],
  wgsl: (read, Factors) =>
    `let all = ${read(0, "at / 8u")};
  let d = unpack2x16float(all.x);
  let own = (all.yzw >> vec3u(at % 8u * 4u)) & vec3u(15u);
  return ${Factors}(d.x * f32(own.x | ((own.z & 3u) << 4u)), d.y * f32(own.y | ((own.z & 12u) << 2u)));`,
  decode([scales], block, scale, min) {
    const [d, low, lowMin, more] = scales.subarray(4 * block, 4 * block + 4);
    const one = f16ToF32(d & 0xffff), least = f16ToF32(d >>> 16);
    for (let g = 0; g < 8; g++) {
      const both = more >>> 4 * g;
      scale[g] = one * ((low >>> 4 * g & 15) | (both & 3) << 4);
      min[g] = least * ((lowMin >>> 4 * g & 15) | (both & 12) << 2);
    }
  },
  ...fromIntegers(8, (simd, read) => {
    const all = simd.keep(read(0, "words"));
    const own = simd.keep(simd.bytes(all, [...twice(4), ...twice(8)]));
    const both = halvesToFloat(simd, simd.bytes(all, D));
    const [d, dmin] = [0, 4].map((first) =>
      simd.keep(simd.bytes(both, each(16, (i) => first + i % 4)))
    );
    // Of each four bits more, scales have the lower two and minimums the others.
    const more = simd.keep(
      simd.shiftLanes(
        simd.bytes(all, [...twice(12), ...twice(12)]),
        [2, 2, 0, 0],
      ),
    );
    const upper = simd.or(
      simd.and(simd.shiftLeft(more, 2), simd.bits(0x00300030)),
      simd.and(simd.shiftRight(more, 2), simd.bits(0x30003000)),
    );
    const scales = simd.keep(simd.or(nibblesInOrder(simd, own), upper));
    const mins = simd.bytes(scales, each(16, (i) => i < 8 ? 8 + i : -1));
    return { scales, mins, d, dmin };
  }),
} as const satisfies Partial<BlockSpec>;

/** Nibbles 0 to 3 of a word, or 4 to 7, as a number per lane. */
const fourNibbles = <V>(simd: SimdCode<V>, word: V, half: number): V => {
  const four = simd.shiftLanes(simd.shiftRight(word, 16 * half), [12, 8, 4, 0]);
  return simd.and(simd.shiftRight(four, 12), simd.bits(15));
};

/** Every other nibble of a word, from the first: those of its low or high halves of bytes. */
function nibblesOf(word: number): number {
  return (word & 15) | (word >>> 4 & 0xf0) | (word >>> 8 & 0xf00) |
    (word >>> 12 & 0xf000);
}

/** Every other pair of bits of four bytes' low nibbles, at the low half of each nibble. */
const pairsOf = (word: number) => nibblesOf(word & PAIRS);

/** Rearranges the three words of six-bit scales and minimums, from `at`, to `to`. */
function packSixBits(
  from: Uint32Array,
  at: number,
  into: Uint32Array,
  to: number,
): void {
  // The first four scales and minimums are whole, in the low six bits of the bytes of
  // two words; the others have their low bits in the third and their high ones above.
  const [s, m, low] = [from[at], from[at + 1], from[at + 2]];
  into[to] = nibblesOf(s) | nibblesOf(low) << 16;
  into[to + 1] = nibblesOf(m) | nibblesOf(low >>> 4) << 16;
  into[to + 2] = pairsOf(s >>> 4) | pairsOf(s >>> 6) << 16 |
    pairsOf(m >>> 4) << 2 | pairsOf(m >>> 6) << 18;
}

/** Rearranges 128 bytes: two groups of 32 in the halves of each 32 bytes. */
function packNibbles(
  from: Uint32Array,
  at: number,
  into: Uint32Array,
  to: number,
): void {
  for (let g = 0; g < 4; g++, at += 8, to += 8) {
    for (let i = 0; i < 4; i++) {
      const a = from[at + i], b = from[at + i + 4];
      into[to + i] = (a & NIBBLES) | (b & NIBBLES) << 4;
      into[to + i + 4] = (a >>> 4 & NIBBLES) | (b & ~NIBBLES);
    }
  }
}

/** Four-bit quants; scales and minimums of six bits for 32 elements. */
export const q4_k: Format = blockFormat({
  ...SIX_BITS,
  name: "q4_k",
  bytes: 144,
  bits: [4],
  stored: [{ at: 16, run: 32 }],
  values: integers(16, 0),
  less: 0,
  pack(blocks, [quants, scales]) {
    const from = wordsOf(blocks), to = wordsOf(quants), own = wordsOf(scales);
    for (let b = 0, at = 0; at < from.length; b++, at += 36) {
      own[4 * b] = from[at];
      packSixBits(from, at + 1, own, 4 * b + 1);
      packNibbles(from, at + 4, to, 32 * b);
    }
  },
});

/** Five-bit quants; scales and minimums of six bits for 32 elements. */
export const q5_k: Format = blockFormat({
  ...SIX_BITS,
  name: "q5_k",
  bytes: 176,
  bits: [4, 1],
  stored: [{ at: 48, run: 32 }, { at: 16, run: 32 }],
  values: integers(32, 0),
  less: 0,
  pack(blocks, [quants, high, scales]) {
    const from = wordsOf(blocks), to = wordsOf(quants), own = wordsOf(scales);
    const bits = wordsOf(high);
    for (let b = 0, at = 0; at < from.length; b++, at += 44) {
      own[4 * b] = from[at];
      packSixBits(from, at + 1, own, 4 * b + 1);
      // Bit g of byte l belongs to element l of group g.
      for (let g = 0; g < 8; g++) {
        let word = 0;
        for (let f = 0; f < 8; f++) {
          word |= (from[at + 4 + f] >>> g & BITS) << f;
        }
        bits[8 * b + g] = word;
      }
      packNibbles(from, at + 12, to, 32 * b);
    }
  },
});

/** Runs `body` for each block, with its words. The last one has only a half. */
function eachBlock(
  blocks: Uint8Array,
  bytes: number,
  body: (words: Uint32Array, block: number) => void,
): void {
  const from = halvesOf(blocks), last = bytes - 2 >> 2;
  const words = new Uint32Array(last + 1);
  for (let b = 0, at = 0; at < from.length; b++, at += bytes / 2) {
    for (let i = 0; i < last; i++) {
      words[i] = from[at + 2 * i] | from[at + 2 * i + 1] << 16;
    }
    words[last] = from[at + 2 * last];
    body(words, b);
  }
}

/** Six-bit quants; scales of eight bits for 16 elements. */
export const q6_k: Format = blockFormat({
  name: "q6_k",
  elements: ELEMENTS,
  bytes: 210,
  bits: [4, 2],
  stored: [{ at: 0, run: 64 }, { at: 128, run: 32 }],
  group: 16,
  values: integers(64, -32),
  less: 32,
  scales: [
    { name: "scales", bytes: 16, stored: 192, type: "u32", view: bytesOf },
    { name: "d", bytes: 2, stored: 208, type: "u32", view: halvesOf },
  ],
  wgsl: (read, Factors) =>
    `let own = bitcast<i32>(${read(0, "at / 2u")} << (16u - at % 2u * 16u));
  let d = ${halfAt(read, 1, "at / 8u")};
  return ${Factors}(d * vec2f(f32((own << 8u) >> 24u), f32(own >> 24u)));`,
  decode([scales, d], block, scale) {
    const one = f16ToF32(d[block]);
    for (let g = 0; g < 16; g++) {
      scale[g] = one * (scales[16 * block + g] << 24 >> 24);
    }
  },
  ...fromIntegers(16, (simd, read) => ({
    scales: read(0, "words"),
    d: halvesToFloat(simd, simd.shiftLeft(read(1, "half"), 16)),
  })),
  pack(blocks, [quants, high, scales, d]) {
    const to = wordsOf(quants), bits = wordsOf(high), own = wordsOf(scales);
    const ds = halvesOf(d);
    eachBlock(blocks, 210, (words, b) => {
      // Of each half of a block, group j of 32 elements is in one of the halves of 32
      // bytes, and at bits 2 j of another 32.
      for (let j = 0; j < 8; j++) {
        const at = (j >> 2) * 16 + (j & 1) * 8, shift = (j >> 1 & 1) * 4;
        const pairs = 32 + (j >> 2) * 8, by = 2 * (j & 3);
        const out = 32 * b + 4 * j;
        for (let i = 0; i < 4; i++) {
          to[out + i] = (words[at + i] >>> shift & NIBBLES) |
            (words[at + i + 4] >>> shift & NIBBLES) << 4;
        }
        let even = 0, odd = 0;
        for (let f = 0; f < 8; f += 2) {
          even |= (words[pairs + f] >>> by & PAIRS) << f;
          odd |= (words[pairs + f + 1] >>> by & PAIRS) << f;
        }
        bits[16 * b + 2 * j] = even;
        bits[16 * b + 2 * j + 1] = odd;
      }
      for (let i = 0; i < 4; i++) own[4 * b + i] = words[48 + i];
      ds[b] = words[52];
    });
  },
});

/**
 * Rearranges 64 bytes of two-bit quants to units of 64 elements: in files, bits 2 j of
 * each half's 32 bytes belong to elements 32 j to 32 j + 31.
 */
function packPairs(
  from: Uint32Array,
  at: number,
  into: Uint32Array,
  to: number,
): void {
  for (let half = 0; half < 2; half++, at += 8, to += 8) {
    for (let unit = 0; unit < 2; unit++) {
      for (let i = 0; i < 4; i++) {
        const a = from[at + i] >>> 4 * unit, b = from[at + i + 4] >>> 4 * unit;
        into[to + 4 * unit + i] = (a & PAIRS) | (b & PAIRS) << 2 |
          (a >>> 2 & PAIRS) << 4 | (b >>> 2 & PAIRS) << 6;
      }
    }
  }
}

/** Two-bit quants; scales and minimums of four bits for 16 elements. */
export const q2_k: Format = blockFormat({
  name: "q2_k",
  elements: ELEMENTS,
  bytes: 84,
  bits: [2],
  stored: [{ at: 16, run: 32 }],
  group: 16,
  min: true,
  values: integers(4, 0),
  less: 0,
  scales: [
    { name: "scales", bytes: 16, stored: 0, type: "u32", view: bytesOf },
    { name: "d", bytes: 4, stored: 80, type: "u32", view: wordsOf },
  ],
  wgsl: (read, Factors) =>
    `let own = ${read(0, "at")};
  let d = unpack2x16float(${read(1, "at / 4u")});
  return ${Factors}(d.x * vec4f(unpack4xU8(own & ${NIBBLES}u)), d.y * vec4f(unpack4xU8((own >> 4u) & ${NIBBLES}u)));`,
  decode([scales, d], block, scale, min) {
    const one = f16ToF32(d[block] & 0xffff), least = f16ToF32(d[block] >>> 16);
    for (let g = 0; g < 16; g++) {
      scale[g] = one * (scales[16 * block + g] & 15);
      min[g] = least * (scales[16 * block + g] >> 4);
    }
  },
  ...fromIntegers(16, (simd, read) => {
    const d = halvesOfWords(simd, simd.keep(read(1, "word")));
    const all = simd.keep(read(0, "words")), low = simd.bits(NIBBLES);
    return {
      scales: simd.and(all, low),
      mins: simd.and(simd.shiftRight(all, 4), low),
      d: d.lower,
      dmin: d.upper,
    };
  }),
  pack(blocks, [quants, scales, d]) {
    const from = wordsOf(blocks), to = wordsOf(quants), own = wordsOf(scales);
    const ds = wordsOf(d);
    for (let b = 0, at = 0; at < from.length; b++, at += 21) {
      for (let i = 0; i < 4; i++) own[4 * b + i] = from[at + i];
      packPairs(from, at + 4, to, 16 * b);
      ds[b] = from[at + 20];
    }
  },
});

/** Three-bit quants; scales of six bits for 16 elements. */
export const q3_k: Format = blockFormat({
  name: "q3_k",
  elements: ELEMENTS,
  bytes: 110,
  bits: [2, 1],
  stored: [{ at: 32, run: 32 }, { at: 0, run: 32 }],
  group: 16,
  values: integers(8, -4),
  less: 4,
  scales: [
    // Per block: four bits of each of 16 scales in two words, two more of each in another.
    {
      name: "scales",
      bytes: 12,
      stored: [
        ...each(8, (i) => bits(96 + i, 0, 4)),
        ...each(8, (i) => bits(96 + i, 4, 4)),
        ...each(16, (i) => bits(104 + i % 4, 2 * (i >> 2), 2)),
      ],
      type: "u32",
      view: wordsOf,
    },
    { name: "d", bytes: 2, stored: 108, type: "u32", view: halvesOf },
  ],
  wgsl: (read, Factors) =>
    `let unit = at % 4u;
  let low = ${read(0, "at / 4u * 3u + at % 4u / 2u")} >> (unit % 2u * 16u);
  let high = ${read(0, "at / 4u * 3u + 2u")} >> (unit * 8u);
  let four = vec4u(0u, 1u, 2u, 3u);
  let own = ((vec4u(low) >> (four * 4u)) & vec4u(15u)) | (((vec4u(high) >> (four * 2u)) & vec4u(3u)) << vec4u(4u));
  return ${Factors}(${halfAt(read, 1, "at / 4u")} * (vec4f(own) - 32.0));`,
  decode([scales, d], block, scale) {
    const one = f16ToF32(d[block]), at = 3 * block;
    for (let g = 0; g < 16; g++) {
      const low = scales[at + (g >> 3)] >>> 4 * (g & 7) & 15;
      scale[g] = one * ((low | (scales[at + 2] >>> 2 * g & 3) << 4) - 32);
    }
  },
  factors(simd, read) {
    const d = halvesToFloat(simd, simd.shiftLeft(read(1, "half"), 16));
    const [a, b, more] = [0, 4, 8].map((byte) =>
      simd.keep(read(0, "word", byte))
    );
    return [0, 1, 2, 3].map((i) => {
      const low = fourNibbles(simd, i < 2 ? a : b, i % 2);
      const two = simd.shiftLanes(simd.shiftRight(more, 8 * i), [6, 4, 2, 0]);
      const high = simd.and(simd.shiftRight(two, 2), simd.bits(48));
      const own = simd.subInts(simd.or(low, high), simd.bits(32));
      return { scale: simd.mul(simd.toFloat(own), d) };
    });
  },
  pack(blocks, [quants, high, scales, d]) {
    const to = wordsOf(quants), bits = wordsOf(high), own = wordsOf(scales);
    const ds = halvesOf(d);
    eachBlock(blocks, 110, (words, b) => {
      // Bit j of byte l belongs to element 32 j + l.
      for (let unit = 0; unit < 4; unit++) {
        let even = 0, odd = 0;
        for (let f = 0; f < 16; f += 2) {
          const by = 2 * unit + (f >> 3), at = f & 7;
          even |= (words[at] >>> by & BITS) << (f >> 1);
          odd |= (words[at + 1] >>> by & BITS) << (f >> 1);
        }
        bits[8 * b + 2 * unit] = even;
        bits[8 * b + 2 * unit + 1] = odd;
      }
      packPairs(words, 8, to, 16 * b);
      const [a, c, more] = [words[24], words[25], words[26]];
      own[3 * b] = nibblesOf(a) | nibblesOf(c) << 16;
      own[3 * b + 1] = nibblesOf(a >>> 4) | nibblesOf(c >>> 4) << 16;
      // Bits 2 j of byte i belong to scale 4 j + i.
      let word = 0;
      for (let g = 0; g < 16; g++) {
        word |= (more >>> 8 * (g & 3) + 2 * (g >> 2) & 3) << 2 * g;
      }
      own[3 * b + 2] = word;
      ds[b] = words[27];
    });
  },
});
