/**
 * Code shared by the formats of 16-bit floats: two values per word.
 *
 * @module
 */
import type { Format, SimdCode, WgslReader } from "./format.ts";

/** The fields of a 16-bit format, except for how its bits are read. */
export const sixteenBits = {
  elements: 1,
  bytes: 2,
  loads: [8, 4, 1],
  planes: (k: number) => [{ name: "values", rowBytes: 2 * k }],
} satisfies Partial<Format>;

/**
 * Returns the WGSL reader of a 16-bit format. `four` returns the expression for the
 * elements of two words; `one` returns the statements that return element `at`, the
 * upper half of `word` if `at` is odd.
 */
export const wordReader = (
  four: (a: string, b: string) => string,
  one: (word: string) => string,
): Format["wgsl"] =>
(x, elements, read): WgslReader => {
  if (elements === 1) {
    return {
      types: ["u32"],
      code: [`fn ${x}_at(at: u32) -> f32 { ${one(read(0, "at >> 1u"))} }`],
    };
  }
  const raw = elements === 8 ? "vec4u" : "vec2u";
  const fours = [four("raw.x", "raw.y"), four("raw.z", "raw.w")];
  return {
    types: [raw],
    code: [
      `alias ${x}_Raw = ${raw};`,
      `fn ${x}_load(at: u32) -> ${raw} { return ${read(0, "at")}; }`,
      ...fours.slice(0, elements / 4).map((value, i) =>
        `fn ${x}_four_${i}(raw: ${raw}) -> vec4f { return ${value}; }`
      ),
      `fn ${x}_masked(raw: ${raw}, inside: bool) -> ${raw} { return select(${raw}(), raw, inside); }`,
    ],
  };
};

/** A view of a row's bits. */
export const rowBits = (
  values: Uint8Array,
  row: number,
  k: number,
): Uint16Array =>
  new Uint16Array(values.buffer, values.byteOffset + 2 * row * k, k);

/** The values of four IEEE 754 halves that are finite, in the upper halves of lanes. */
export function finiteHalves<V>(simd: SimdCode<V>, upper: V): V {
  // Moves sign, exponent and fraction into place. A multiplication corrects the
  // exponent's bias and normalizes subnormals exactly.
  const shifted = simd.and(simd.shiftRight(upper, 3), simd.bits(0x8fffe000));
  return simd.mul(shifted, simd.number(2 ** 112));
}

/** The values of four IEEE 754 halves, in the upper halves of lanes. */
export function halvesToFloat<V>(simd: SimdCode<V>, upper: V): V {
  // The largest exponent means infinity or NaN.
  const scaled = simd.keep(finiteHalves(simd, upper));
  const special = simd.greaterEqual(simd.abs(scaled), simd.number(65536));
  // Kept, so that one vector is finished before another begins.
  return simd.keep(simd.or(scaled, simd.and(special, simd.number(Infinity))));
}
