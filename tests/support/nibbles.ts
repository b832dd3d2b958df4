/**
 * A format that only tests know: blocks of 32 elements of 4 bits with a scale, as in
 * quantised files. It takes every path that formats of single floats do not: two planes,
 * stored rows of an odd number of bytes, a rearrangement, several fours in a load, and
 * no reader for WebAssembly.
 */
import type { Format } from "../../lib/formats/format.ts";
import { bytesAt, gather } from "../../lib/formats/gather.ts";

const ELEMENTS = 32, BYTES = 17;

/** The scale in a block's first byte: a power of two from 2⁻²⁷ to 2⁴. */
const scaleOf = (byte: number) => 2 ** ((byte & 31) - 27);

/** A stored block: its scale, then elements i and i + 16 in the halves of byte i. */
export function unpackBlock(block: Uint8Array): number[] {
  return Array.from({ length: ELEMENTS }, (_, i) => {
    const pair = block[1 + i % 16];
    return ((i < 16 ? pair & 15 : pair >> 4) - 8) * scaleOf(block[0]);
  });
}

/** The block whose elements are nearest to `values`. */
export function packBlock(values: ArrayLike<number>): Uint8Array {
  let high = 0;
  for (let i = 0; i < ELEMENTS; i++) high = Math.max(high, Math.abs(values[i]));
  const exponent = Math.ceil(Math.log2(Math.max(high, 2 ** -24) / 7)) + 27;
  const block = Uint8Array.of(exponent, ...new Uint8Array(16));
  for (let i = 0; i < ELEMENTS; i++) {
    const scaled = Math.round(values[i] / scaleOf(exponent));
    const four = Math.min(Math.max(scaled, -8), 7) + 8;
    block[1 + i % 16] |= i < 16 ? four : four << 4;
  }
  return block;
}

const fourOf = (quants: string, shift: number) =>
  `raw.scale * (vec4f((vec4u(${quants}) >> vec4u(${shift}u, ${shift + 4}u, ${
    shift + 8
  }u, ${shift + 12}u)) & vec4u(15u)) - 8.0)`;

/** The format, as described at the top of this file. */
export const nibbles: Format = {
  name: "nibbles",
  elements: ELEMENTS,
  bytes: BYTES,
  loads: [32, 4],
  planes: (k) => [
    { name: "quants", rowBytes: k / 2 },
    { name: "scales", rowBytes: k / ELEMENTS },
  ],
  pack(blocks, _, [quants, scales]) {
    for (let b = 0; b < blocks.length / BYTES; b++) {
      const block = blocks.subarray(b * BYTES, (b + 1) * BYTES);
      scales[b] = block[0];
      for (let i = 0; i < ELEMENTS; i += 2) {
        const four = (i: number) =>
          i < 16 ? block[1 + i] & 15 : block[1 + i - 16] >> 4;
        quants[b * 16 + i / 2] = four(i) | four(i + 1) << 4;
      }
    }
  },
  gathers: [
    gather(
      BYTES,
      Array.from({ length: ELEMENTS }, (_, i) => ({
        bit: 8 * (1 + i % 16) + (i < 16 ? 0 : 4),
        width: 4,
      })),
    ),
    gather(BYTES, bytesAt(0, 1)),
  ],
  wgsl(x, elements, read) {
    const wide = elements === ELEMENTS;
    // The bytes are in two planes; the index of a load locates both.
    const scale = (block: string) =>
      `bitcast<f32>((((${
        read(1, `(${block}) >> 2u`)
      } >> (((${block}) & 3u) * 8u)) & 31u) + 100u) << 23u)`;
    const type = wide ? "vec4u" : "u32";
    const load = wide
      ? `${read(0, "at")}, ${scale("at")}`
      : `${read(0, "at >> 1u")} >> ((at & 1u) * 16u), ${scale("at >> 3u")}`;
    return {
      types: [type, "u32"],
      code: [
        `struct ${x}_Raw { quants: ${type}, scale: f32 }`,
        `fn ${x}_load(at: u32) -> ${x}_Raw { return ${x}_Raw(${load}); }`,
        ...Array.from({ length: elements / 4 }, (_, i) => {
          const quants = wide
            ? `raw.quants.${"xyzw"[Math.floor(i / 2)]}`
            : "raw.quants";
          const four = fourOf(quants, i % 2 * 16);
          return `fn ${x}_four_${i}(raw: ${x}_Raw) -> vec4f { return ${four}; }`;
        }),
        `fn ${x}_masked(raw: ${x}_Raw, inside: bool) -> ${x}_Raw { return ${x}_Raw(raw.quants, select(0.0, raw.scale, inside)); }`,
      ],
    };
  },
  unpack([quants, scales], row, k, into) {
    for (let i = 0; i < k; i++) {
      const at = row * k + i;
      const four = quants[at >> 1] >> (at % 2 * 4) & 15;
      into[i] = (four - 8) * scaleOf(scales[Math.floor(at / ELEMENTS)]);
    }
  },
};
