/**
 * Tensors in host memory, and rows of them as f32.
 *
 * @module
 */
import type { Dtype } from "../dtype.ts";
import { BYTES, elements } from "../dtype.ts";
import { formatNamed } from "./mod.ts";
import { type Matrix, piecesOf } from "./matrix.ts";

/** A tensor in host memory; 16-bit floats are kept as their bits. Row-major, dense. */
export interface CpuTensor {
  dtype: Dtype;
  shape: readonly number[];
  data: Float32Array | Uint16Array | Uint32Array;
}

/** The bytes of a tensor. */
export const bytesOf = ({ data }: CpuTensor): Uint8Array =>
  new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

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
  if (dtype === "u32") into.set(data.subarray(begin, begin + into.length));
  else {
    const bytes = bytesOf(tensor).subarray(BYTES[dtype] * begin);
    formatNamed(dtype).unpack([bytes], 0, into.length, into);
  }
  return into;
}

/** The array of an f32 tensor. @throws {Error} if it has another type */
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

/** Row `row` of a matrix as f32, into `into`. */
export function unpackRow(
  matrix: Matrix<CpuTensor>,
  row: number,
  into: Float32Array,
): Float32Array {
  const [{ part, at }] = piecesOf(matrix, row, 1);
  part.format.unpack(part.planes.map(bytesOf), at, matrix.k, into);
  return into;
}
