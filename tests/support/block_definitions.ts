/**
 * What the bits of quantised blocks mean, one element after the other, as llama.cpp
 * defines them: shares no code with lib/formats.
 *
 * @module
 */
import { decodeFloat } from "./decode_float.ts";

type Definition = (block: DataView) => number[];

const list = (count: number, element: (i: number) => number) =>
  Array.from({ length: count }, (_, i) => element(i));

/** The f16 at a byte of a block. */
const half = (block: DataView, at: number) =>
  decodeFloat(block.getUint16(at, true), 5, 10);

/** Bit `bit` of the bytes from `at` on, and more after it. */
const bitsAt = (block: DataView, at: number, bit: number, count = 1) =>
  block.getUint8(at + (bit >> 3)) >> (bit & 7) & ((1 << count) - 1);

/** Quant `i` of 32 in 16 bytes: those of the low halves come first. */
const nibble = (block: DataView, at: number, i: number) =>
  block.getUint8(at + i % 16) >> (i < 16 ? 0 : 4) & 15;

/** Quant `i` of 256: of each 64, the low halves of 32 bytes come first. */
const wideNibble = (block: DataView, at: number, i: number) =>
  block.getUint8(at + (i >> 6) * 32 + i % 32) >> (i & 32 ? 4 : 0) & 15;

/** Quant `i` of 256, of two bits. */
const pair = (block: DataView, at: number, i: number) =>
  block.getUint8(at + (i >> 7) * 32 + i % 32) >> 2 * (i >> 5 & 3) & 3;

/** Scale and minimum of group `j` of Q4_K and Q5_K, of six bits each. */
function sixBits(block: DataView, j: number): [number, number] {
  const b = (i: number) => block.getUint8(4 + i);
  if (j < 4) return [b(j) & 63, b(j + 4) & 63];
  return [
    b(j + 4) & 15 | b(j - 4) >> 6 << 4,
    b(j + 4) >> 4 | b(j) >> 6 << 4,
  ];
}

const LOOKUP = [
  ...[-127, -104, -83, -65, -49, -35, -22, -10],
  ...[1, 13, 25, 38, 53, 69, 89, 113],
];

const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

/** The elements of a block, by format. */
export const BLOCK_DEFINITIONS: Record<string, Definition> = {
  q8_0: (block) => list(32, (i) => half(block, 0) * block.getInt8(2 + i)),
  q4_0: (block) => list(32, (i) => half(block, 0) * (nibble(block, 2, i) - 8)),
  q4_1: (block) =>
    list(32, (i) => half(block, 0) * nibble(block, 4, i) + half(block, 2)),
  q5_0: (block) =>
    list(32, (i) => {
      const q = nibble(block, 6, i) | bitsAt(block, 2, i) << 4;
      return half(block, 0) * (q - 16);
    }),
  q5_1: (block) =>
    list(32, (i) => {
      const q = nibble(block, 8, i) | bitsAt(block, 4, i) << 4;
      return half(block, 0) * q + half(block, 2);
    }),
  q2_k: (block) =>
    list(256, (i) => {
      const both = block.getUint8(i >> 4);
      return half(block, 80) * (both & 15) * pair(block, 16, i) -
        half(block, 82) * (both >> 4);
    }),
  q3_k: (block) =>
    list(256, (i) => {
      const j = i >> 4;
      const low = block.getUint8(96 + j % 8) >> (j < 8 ? 0 : 4) & 15;
      const high = block.getUint8(104 + j % 4) >> 2 * (j >> 2) & 3;
      const bit = block.getUint8(i % 32) >> (i >> 5) & 1;
      return half(block, 108) * ((low | high << 4) - 32) *
        (pair(block, 32, i) - (bit ? 0 : 4));
    }),
  q4_k: (block) =>
    list(256, (i) => {
      const [scale, min] = sixBits(block, i >> 5);
      return half(block, 0) * scale * wideNibble(block, 16, i) -
        half(block, 2) * min;
    }),
  q5_k: (block) =>
    list(256, (i) => {
      const [scale, min] = sixBits(block, i >> 5);
      const bit = block.getUint8(16 + i % 32) >> (i >> 5) & 1;
      const q = wideNibble(block, 48, i) | bit << 4;
      return half(block, 0) * scale * q - half(block, 2) * min;
    }),
  q6_k: (block) =>
    list(256, (i) => {
      const [h, l] = [i >> 7, i % 128];
      const low = block.getUint8(64 * h + l % 64) >> (l < 64 ? 0 : 4) & 15;
      const high = block.getUint8(128 + 32 * h + l % 32) >> 2 * (l >> 5) & 3;
      return half(block, 208) * block.getInt8(192 + (i >> 4)) *
        ((low | high << 4) - 32);
    }),
  iq4_nl: (block) =>
    list(32, (i) => half(block, 0) * LOOKUP[nibble(block, 2, i)]),
  iq4_xs: (block) =>
    list(256, (i) => {
      const j = i >> 5;
      const low = bitsAt(block, 4, 4 * j, 4), high = bitsAt(block, 2, 2 * j, 2);
      return half(block, 0) * ((low | high << 4) - 32) *
        LOOKUP[nibble(block, 8 + 16 * j, i % 32)];
    }),
  mxfp4: (block) =>
    list(32, (i) => {
      const q = nibble(block, 1, i), value = E2M1[q & 7];
      return (q > 8 ? -value : value) * 2 ** (block.getUint8(0) - 127);
    }),
};
