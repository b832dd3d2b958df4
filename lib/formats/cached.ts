/**
 * How keys and values of a KV cache are stored.
 *
 * In `q8_0`, 32 values of a head share a scale, an f16, and are integers from -127 to 127
 * (quants), as in ggml's Q8_0. RoPE rotates value `i` of a head against value
 * `i + headDim / 2`, so block `b` has values `16 b … 16 b + 15` and those half a head
 * further: a large value, which RoPE spreads over both of its pair, then coarsens one block
 * and not two. The layout of `rows` heads, in words:
 *
 * - quants, `[rows, headDim / 4]`, four to a word. Four words are a unit of 16 bytes: eight
 *   values, then the eight half a head further, so that a lane that holds RoPE's pairs loads
 *   them at once;
 * - scales, `[rows, ceil(headDim / 64)]`, two to a word.
 *
 * @module
 */
import { BYTES, elements, f16ToF32, f32ToF16Bits } from "../dtype.ts";
import { type CpuTensor, toF32 } from "./tensor.ts";

/** Types of cached keys and values. */
export type CacheDtype = "f32" | "f16" | "q8_0";

/** Values that share a scale. */
export const CACHE_BLOCK = 32;

/** Words of a head in `q8_0`. */
export const cachedWords = (headDim: number): number =>
  headDim / 4 + Math.ceil(headDim / (2 * CACHE_BLOCK));

/** Bytes of a key, or a value, of one head. */
export const cachedBytes = (dtype: CacheDtype, headDim: number): number =>
  dtype === "q8_0" ? 4 * cachedWords(headDim) : BYTES[dtype] * headDim;

/** The elements that a head is stored as: those of a tensor, and how many. */
export const storedAs = (
  dtype: CacheDtype,
  headDim: number,
): { dtype: "f32" | "f16" | "u32"; width: number } =>
  dtype === "q8_0"
    ? { dtype: "u32", width: cachedWords(headDim) }
    : { dtype, width: headDim };

/** Some bytes of a tensor. */
export interface ByteRange {
  readonly at: number;
  readonly bytes: number;
}

/**
 * Where the first `tokens` positions of keys, or values, `[kvHeads, context, headDim]` lie:
 * for each part that heads are stored as, a range for each KV head.
 */
export function cachedRanges(
  dtype: CacheDtype,
  { kvHeads, context, headDim }: {
    kvHeads: number;
    context: number;
    headDim: number;
  },
  tokens: number,
): ByteRange[] {
  const rows = kvHeads * context;
  return cachedParts(dtype, headDim, rows).flatMap(({ at, bytes }) =>
    Array.from({ length: kvHeads }, (_, head) => ({
      at: at + head * context * bytes / rows,
      bytes: tokens * bytes / rows,
    }))
  );
}

/**
 * The parts of `rows` cached heads: of each, a row has as many bytes as another. Those of
 * more rows begin elsewhere.
 */
export function cachedParts(
  dtype: CacheDtype,
  headDim: number,
  rows: number,
): ByteRange[] {
  const all = rows * cachedBytes(dtype, headDim), quants = rows * headDim;
  return dtype === "q8_0"
    ? [{ at: 0, bytes: quants }, { at: quants, bytes: all - quants }]
    : [{ at: 0, bytes: all }];
}

/** Heads in `q8_0`. */
export class QuantizedHeads {
  readonly #quants: Int8Array;
  readonly #scales: Uint16Array;

  /** `words` has {@linkcode cachedWords} words for each of `rows` heads. */
  constructor(
    words: Uint32Array,
    readonly rows: number,
    readonly headDim: number,
  ) {
    const { buffer, byteOffset } = words, quants = rows * headDim;
    this.#quants = new Int8Array(buffer, byteOffset, quants);
    const halves = 2 * rows * Math.ceil(headDim / (2 * CACHE_BLOCK));
    this.#scales = new Uint16Array(buffer, byteOffset + quants, halves);
  }

  /** Index of a block's scale. */
  #scaleAt(row: number, block: number): number {
    return row * 2 * Math.ceil(this.headDim / (2 * CACHE_BLOCK)) + block;
  }

  /** Index of the first of eight quants, whose values begin at `i` of a head. */
  #quantsAt(row: number, i: number): number {
    const half = this.headDim / 2;
    return row * this.headDim + i % half * 2 + (i < half ? 0 : 8);
  }

  /** The scale of the block that has value `i` of a head. */
  scale(row: number, i: number): number {
    const block = Math.floor(i % (this.headDim / 2) / (CACHE_BLOCK / 2));
    return f16ToF32(this.#scales[this.#scaleAt(row, block)]);
  }

  /** Sets every scale of a head. */
  fillScales(row: number, scale: number): void {
    const bits = f32ToF16Bits(scale);
    this.#scales.fill(bits, this.#scaleAt(row, 0), this.#scaleAt(row + 1, 0));
  }

  /**
   * Quantises the head of `from` that begins at `at`, with ggml's rounding.
   *
   * @throws {RangeError} if f16 cannot hold a scale.
   */
  put(row: number, from: ArrayLike<number>, at: number): void {
    const half = this.headDim / 2, eight = CACHE_BLOCK / 4;
    for (let begin = 0; begin < half; begin += 2 * eight) {
      const parts = [begin, begin + eight, begin + half, begin + half + eight];
      let most = 0;
      for (const part of parts) {
        for (let i = at + part; i < at + part + eight; i++) {
          most = Math.max(most, Math.abs(from[i]));
        }
      }
      const scale = Math.fround(Math.fround(most) / 127);
      if (scale > 65504) {
        throw new RangeError(
          most === Infinity
            ? "Cannot cache a key or value of Infinity: it must be finite, the weights are faulty"
            : `Cannot cache a key or value of ${most} in q8_0: it must be at most ${
              127 * 65504
            }, kv f32 has room for it`,
        );
      }
      const inverse = scale > 0 ? Math.fround(1 / scale) : 0;
      const block = begin / (2 * eight);
      this.#scales[this.#scaleAt(row, block)] = f32ToF16Bits(scale);
      for (const part of parts) {
        const to = this.#quantsAt(row, part);
        for (let i = 0; i < eight; i++) {
          const x = Math.fround(Math.fround(from[at + part + i]) * inverse);
          // To the nearest integer, from halves away from zero.
          this.#quants[to + i] = Math.sign(x) * Math.floor(Math.abs(x) + 0.5);
        }
      }
    }
  }

  /** Copies a head to `into`, beginning at `at`. */
  take(row: number, into: Float32Array | Float64Array, at: number): void {
    for (let part = 0; part < this.headDim; part += 8) {
      const scale = this.scale(row, part), from = this.#quantsAt(row, part);
      for (let i = 0; i < 8; i++) {
        into[at + part + i] = scale * this.#quants[from + i];
      }
    }
  }
}

/** Wraps cached keys or values in `q8_0`, whose tensor is u32 and ends with words. */
export function quantizedHeads(
  { shape, data }: CpuTensor,
  headDim: number,
): QuantizedHeads {
  const rows = elements(shape.slice(0, -1));
  return new QuantizedHeads(data as Uint32Array, rows, headDim);
}

/** Copies cached keys or values to a new array as f32; u32 tensors are in `q8_0`. */
export function cachedToF32(tensor: CpuTensor, headDim: number): Float32Array {
  if (tensor.dtype !== "u32") return toF32(tensor);
  const heads = quantizedHeads(tensor, headDim);
  const out = new Float32Array(heads.rows * headDim);
  for (let row = 0; row < heads.rows; row++) {
    heads.take(row, out, row * headDim);
  }
  return out;
}
