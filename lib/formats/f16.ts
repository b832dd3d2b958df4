/**
 * IEEE 754 half precision.
 *
 * @module
 */
import { f16ToF32 } from "../dtype.ts";
import type { Format } from "./format.ts";
import {
  finiteHalves,
  halvesToFloat,
  rowBits,
  sixteenBits,
  wordReader,
} from "./words.ts";

let table: Float32Array | undefined;

/**
 * The value of each of the 65,536 bit patterns: a lookup is the fastest conversion in
 * V8.
 */
const values = (): Float32Array =>
  table ??= Float32Array.from({ length: 1 << 16 }, (_, bits) => f16ToF32(bits));

/** The IEEE 754 half-precision format. */
export const f16: Format = {
  ...sixteenBits,
  name: "f16",
  safetensors: "F16",
  wgsl: wordReader(
    (a, b) => `vec4f(unpack2x16float(${a}), unpack2x16float(${b}))`,
    (word) =>
      `let p = unpack2x16float(${word}); return select(p.x, p.y, (at & 1u) == 1u);`,
  ),
  unpack([plane], row, k, into) {
    const stored = rowBits(plane, row, k), known = values();
    for (let i = 0; i < k; i++) into[i] = known[stored[i]];
  },
  simd: {
    bytes: 16,
    order: "even first",
    unpack(simd, load) {
      const pairs = simd.keep(load(0));
      return [
        halvesToFloat(simd, simd.shiftLeft(pairs, 16)),
        halvesToFloat(simd, pairs),
      ];
    },
    finite: {
      unpack(simd, load) {
        const pairs = simd.keep(load(0));
        const sizes = simd.and(pairs, simd.bits(0x7fff7fff));
        return [
          finiteHalves(simd, simd.shiftLeft(pairs, 16)),
          finiteHalves(simd, pairs),
          simd.addInts(sizes, simd.bits(0x04000400)), // carries from the largest exponent
        ];
      },
      marks: 0x80008000,
    },
  },
};
