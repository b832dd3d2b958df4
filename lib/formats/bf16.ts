/**
 * bfloat16: the upper half of an f32.
 *
 * @module
 */
import type { Format } from "./format.ts";
import { rowBits, sixteenBits, wordReader } from "./words.ts";

/** The bfloat16 format. */
export const bf16: Format = {
  ...sixteenBits,
  name: "bf16",
  safetensors: "BF16",
  wgsl: wordReader(
    (a, b) =>
      `bitcast<vec4f>(vec4u(${a} << 16u, ${a} & 0xffff0000u, ${b} << 16u, ${b} & 0xffff0000u))`,
    (word) =>
      `let p = ${word}; return bitcast<f32>(select(p << 16u, p & 0xffff0000u, (at & 1u) == 1u));`,
  ),
  unpack([values], row, k, into) {
    const stored = rowBits(values, row, k);
    const bits = new Uint32Array(into.buffer, into.byteOffset, k);
    for (let i = 0; i < k; i++) bits[i] = stored[i] << 16;
  },
  simd: {
    bytes: 16,
    order: "even first",
    unpack(simd, load) {
      const pairs = simd.keep(load(0));
      return [
        simd.shiftLeft(pairs, 16),
        simd.and(pairs, simd.bits(0xffff0000)),
      ];
    },
  },
};
