/**
 * IEEE 754 single precision.
 *
 * @module
 */
import type { Format } from "./format.ts";

/** The IEEE 754 single-precision format. */
export const f32: Format = {
  name: "f32",
  safetensors: "F32",
  elements: 1,
  bytes: 4,
  loads: [4, 1],
  planes: (k) => [{ name: "values", rowBytes: 4 * k }],
  wgsl(x, elements, read) {
    if (elements === 1) {
      return {
        types: ["f32"],
        code: [`fn ${x}_at(at: u32) -> f32 { return ${read(0, "at")}; }`],
      };
    }
    return {
      types: ["vec4f"],
      code: [
        `alias ${x}_Raw = vec4f;`,
        `fn ${x}_load(at: u32) -> vec4f { return ${read(0, "at")}; }`,
        `fn ${x}_four_0(raw: vec4f) -> vec4f { return raw; }`,
        `fn ${x}_masked(raw: vec4f, inside: bool) -> vec4f { return select(vec4f(), raw, inside); }`,
      ],
    };
  },
  unpack([values], row, k, into) {
    const at = values.byteOffset + 4 * row * k;
    into.set(new Float32Array(values.buffer, at, k));
  },
  simd: {
    bytes: 32,
    order: "straight",
    unpack: (_, load) => [load(0), load(16)],
  },
};
