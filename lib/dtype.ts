/**
 * Tensor element types, and conversions between f32 and the bits of 16-bit floats.
 *
 * @module
 */

/** Element types of activations, caches, norms and indices; arithmetic is f32. */
export type Dtype = "f32" | "f16" | "bf16" | "u32";

/** Bytes per element. */
export const BYTES: Record<Dtype, number> = { f32: 4, f16: 2, bf16: 2, u32: 4 };

/** The number of elements in a tensor of `shape`. */
export const elements = (shape: readonly number[]): number =>
  shape.reduce((n, size) => n * size, 1);

/** Scratch space for reading a number as f32, as f16 or as bits. */
const scratch = new DataView(new ArrayBuffer(4));

/** The bits of a number as f32. */
export function f32Bits(value: number): number {
  scratch.setFloat32(0, value);
  return scratch.getUint32(0);
}

/** Converts bf16 bits to a number, exactly: bf16 is the upper half of an f32. */
export function bf16ToF32(bits: number): number {
  scratch.setUint32(0, bits << 16);
  return scratch.getFloat32(0);
}

/**
 * Converts IEEE 754 binary16 bits to a number, exactly, including subnormals,
 * infinities and NaN.
 */
export function f16ToF32(bits: number): number {
  scratch.setUint16(0, bits);
  return scratch.getFloat16(0);
}

/**
 * Rounds `value` to f32, then to bf16 (to nearest even; NaN stays NaN). Returns the
 * bits.
 */
export function f32ToBf16Bits(value: number): number {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  if (Number.isNaN(value)) return (bits >>> 16) | 0x40;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/**
 * Rounds `value` to f32, then to binary16 (to nearest even; overflow gives infinity).
 * Returns the bits.
 */
export function f32ToF16Bits(value: number): number {
  scratch.setFloat16(0, Math.fround(value));
  return scratch.getUint16(0);
}
