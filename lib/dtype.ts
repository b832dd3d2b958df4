/**
 * bf16 and f16, stored as bits in a Uint16Array, to and from f32.
 *
 * @module
 */

/** Element types. 16-bit weights stay as stored; arithmetic is f32. */
export type Dtype = "f32" | "f16" | "bf16" | "u32";

/** A tensor in host memory; 16-bit floats are kept as their bits. Row-major, dense. */
export interface CpuTensor {
  dtype: Dtype;
  shape: readonly number[];
  data: Float32Array | Uint16Array | Uint32Array;
}

/** Bytes per element. */
export const BYTES: Record<Dtype, number> = { f32: 4, f16: 2, bf16: 2, u32: 4 };

/** Elements in 16 bytes. */
export function unitSize(dtype: Dtype): number {
  return dtype === "f16" || dtype === "bf16" ? 8 : 4;
}

/** Elements in a tensor of `shape`. */
export const elements = (shape: readonly number[]): number =>
  shape.reduce((n, size) => n * size, 1);

/** One number seen as f32, f16 and their bits. */
const scratch = new DataView(new ArrayBuffer(4));

/** The value of bf16 `bits`, exactly: bf16 is the upper half of an f32. */
export function bf16ToF32(bits: number): number {
  scratch.setUint32(0, bits << 16);
  return scratch.getFloat32(0);
}

/** The value of IEEE 754 binary16 `bits`, exactly; subnormals, infinities and NaN included. */
export function f16ToF32(bits: number): number {
  scratch.setUint16(0, bits);
  return scratch.getFloat16(0);
}

/** The f32 nearest to `value`, rounded to bf16 (nearest even; NaN stays NaN). */
export function f32ToBf16Bits(value: number): number {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  if (Number.isNaN(value)) return (bits >>> 16) | 0x40;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/** The f32 nearest to `value`, rounded to binary16 (nearest even; overflow gives infinity). */
export function f32ToF16Bits(value: number): number {
  scratch.setFloat16(0, Math.fround(value));
  return scratch.getUint16(0);
}

let f16Table: Float32Array | undefined;

/** The value of each of the 65,536 f16 bit patterns: a look-up is the fastest conversion in V8. */
function f16Values(): Float32Array {
  return f16Table ??= Float32Array.from(
    { length: 1 << 16 },
    (_, bits) => f16ToF32(bits),
  );
}

/**
 * Elements `begin` to `begin + into.length` of a tensor as f32, into `into`.
 * Lossless for the float types; u32 rounds above 2²⁴.
 */
export function unpack(
  tensor: CpuTensor,
  begin: number,
  into: Float32Array,
): Float32Array {
  const { dtype, data } = tensor;
  if (dtype === "bf16") {
    const bits = new Uint32Array(into.buffer, into.byteOffset, into.length);
    for (let i = 0; i < bits.length; i++) bits[i] = data[begin + i] << 16;
  } else if (dtype === "f16") {
    const values = f16Values();
    for (let i = 0; i < into.length; i++) into[i] = values[data[begin + i]];
  } else {
    into.set(data.subarray(begin, begin + into.length));
  }
  return into;
}

/** The array of an f32 tensor. @throws {Error} where it is of another type */
export function f32(tensor: CpuTensor): Float32Array {
  if (tensor.data instanceof Float32Array) return tensor.data;
  throw new Error(
    `Cannot compute with ${tensor.dtype} here: activations and caches must be f32`,
  );
}

/** All elements as f32, in a new array. */
export function toF32(tensor: CpuTensor): Float32Array {
  return unpack(tensor, 0, new Float32Array(elements(tensor.shape)));
}
