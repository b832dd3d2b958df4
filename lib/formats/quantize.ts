/**
 * Quantisers: functions that encode f32 values as the blocks of a format. Those of blocks
 * of 32 give the bytes of llama.cpp's reference quantisers, which defines every rounding:
 * each operation is rounded to f32, and quants are rounded half away from zero or half up.
 *
 * @module
 */
import { f32ToBf16Bits, f32ToF16Bits } from "../dtype.ts";
import type { Format } from "./format.ts";
import { quantizeK } from "./quantize_k.ts";

/**
 * Encodes values, whole blocks of them, in the order of files.
 *
 * @param values finite numbers
 */
export type Quantize = (values: Float32Array, into: Uint8Array) => void;

const { fround, abs } = Math;

/** A divisor's inverse as f32; 0 for 0. */
const inverse = (d: number) => d === 0 ? 0 : fround(1 / d);

/** Writes 16 bits. */
function put(into: Uint8Array, at: number, bits: number): void {
  into[at] = bits & 255;
  into[at + 1] = bits >>> 8;
}

/** Quants of a block that is being encoded. */
const quants = new Uint8Array(32);

/** Packs the low four bits of 32 quants: the first 16 in the low halves of bytes. */
function putNibbles(into: Uint8Array, at: number): void {
  for (let i = 0; i < 16; i++) {
    into[at + i] = (quants[i] & 15) | (quants[i + 16] & 15) << 4;
  }
}

/** Packs the fifth bits of 32 quants. */
function putFifthBits(into: Uint8Array, at: number): void {
  for (let byte = 0; byte < 4; byte++) {
    let bits = 0;
    for (let i = 0; i < 8; i++) {
      bits |= (quants[8 * byte + i] >>> 4 & 1) << i;
    }
    into[at + byte] = bits;
  }
}

const q8_0: Quantize = (values, into) => {
  const { buffer, byteOffset, length } = values;
  const signed = new Int32Array(buffer, byteOffset, length);
  for (let i = 0, at = 0; i < values.length; i += 32, at += 34) {
    let most = 0;
    for (let j = i; j < i + 32; j++) {
      const a = abs(values[j]);
      if (a > most) most = a;
    }
    const d = fround(most / 127), by = inverse(d);
    put(into, at, f32ToF16Bits(d));
    for (let j = 0; j < 32; j++) {
      const sign = signed[i + j] >> 31; // a branch would be slow
      const q = (abs(fround(values[i + j] * by)) + 0.5) | 0;
      into[at + 2 + j] = (q ^ sign) - sign;
    }
  }
};

/**
 * Quants around zero: the value that is largest without its sign becomes the lowest quant.
 *
 * @param half the quant of zero
 */
const aroundZero = (half: 8 | 16): Quantize => (values, into) => {
  const bytes = half === 8 ? 18 : 22, top = 2 * half - 1;
  for (let i = 0, at = 0; i < values.length; i += 32, at += bytes) {
    let most = 0, largest = 0;
    for (let j = i; j < i + 32; j++) {
      const v = values[j], a = abs(v);
      if (a > most) {
        most = a;
        largest = v;
      }
    }
    const d = fround(largest / -half), by = inverse(d);
    put(into, at, f32ToF16Bits(d));
    for (let j = 0; j < 32; j++) {
      const q = fround(fround(values[i + j] * by) + (half + 0.5)) | 0;
      quants[j] = q > top ? top : q;
    }
    if (half === 16) putFifthBits(into, at + 2);
    putNibbles(into, at + bytes - 16);
  }
};

/** Quants from the smallest value to the largest. */
const fromMin = (top: 15 | 31): Quantize => (values, into) => {
  const bytes = top === 15 ? 20 : 24;
  for (let i = 0, at = 0; i < values.length; i += 32, at += bytes) {
    let least = Infinity, most = -Infinity;
    for (let j = i; j < i + 32; j++) {
      const v = values[j];
      if (v < least) least = v;
      if (v > most) most = v;
    }
    const d = fround(fround(most - least) / top), by = inverse(d);
    put(into, at, f32ToF16Bits(d));
    put(into, at + 2, f32ToF16Bits(least));
    for (let j = 0; j < 32; j++) {
      const scaled = fround(fround(values[i + j] - least) * by);
      const q = fround(scaled + 0.5) | 0;
      quants[j] = q > top ? top : q;
    }
    if (top === 31) putFifthBits(into, at + 4);
    putNibbles(into, at + bytes - 16);
  }
};

const sixteenBits =
  (round: (value: number) => number): Quantize => (values, into) => {
    for (let i = 0; i < values.length; i++) put(into, 2 * i, round(values[i]));
  };

const f32: Quantize = (values, into) => {
  into.set(
    new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
  );
};

const QUANTIZERS: ReadonlyMap<string, Quantize> = new Map([
  ["f32", f32],
  ["f16", sixteenBits(f32ToF16Bits)],
  ["bf16", sixteenBits(f32ToBf16Bits)],
  ["q8_0", q8_0],
  ["q4_0", aroundZero(8)],
  ["q5_0", aroundZero(16)],
  ["q4_1", fromMin(15)],
  ["q5_1", fromMin(31)],
  ...quantizeK,
]);

/**
 * The quantiser of a format.
 *
 * ```ts
 * import { formatNamed } from "./mod.ts";
 * import { quantizerOf } from "./quantize.ts";
 *
 * const format = formatNamed("q8_0");
 * const block = new Uint8Array(format.bytes);
 * quantizerOf(format)(new Float32Array(format.elements).fill(1), block);
 * console.log(block[2]); // 127
 * ```
 *
 * @throws {Error} if there is none
 */
export function quantizerOf({ name }: Pick<Format, "name">): Quantize {
  const found = QUANTIZERS.get(name);
  if (found) return found;
  throw new Error(
    `Cannot encode weights as ${name}: it must be one of ${
      [...QUANTIZERS.keys()].join(", ")
    }`,
  );
}
