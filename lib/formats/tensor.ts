/**
 * Tensors in host memory, and conversion of their elements to f32.
 *
 * @module
 */
import type { Dtype } from "../dtype.ts";
import { BYTES, elements } from "../dtype.ts";
import { formatNamed } from "./mod.ts";
import { type Format, storedRowBytes } from "./format.ts";
import { layOut, type Matrix, packed, piecesOf } from "./matrix.ts";

/** A dense, row-major tensor in host memory. 16-bit floats are stored as their bits. */
export interface CpuTensor {
  dtype: Dtype;
  shape: readonly number[];
  data: Float32Array | Uint16Array | Uint32Array;
}

/** A view of a tensor's bytes. */
export const bytesOf = ({ data }: CpuTensor): Uint8Array =>
  new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/**
 * Copies elements `begin` to `begin + into.length` of a tensor to `into` as f32.
 * Lossless for the float types; u32 is rounded above 2²⁴.
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

/**
 * Returns the array of an f32 tensor.
 *
 * @throws {Error} if the tensor has another type
 */
export function f32(tensor: CpuTensor): Float32Array {
  if (tensor.data instanceof Float32Array) return tensor.data;
  throw new Error(
    `Cannot compute with ${tensor.dtype} here: activations and caches must be f32`,
  );
}

/** Copies all elements to a new array as f32. */
export function toF32(tensor: CpuTensor): Float32Array {
  return unpack(tensor, 0, new Float32Array(elements(tensor.shape)));
}

/** Copies all rows of a matrix to a new array as f32. */
export function matrixToF32(matrix: Matrix<CpuTensor>): Float32Array {
  const { n, k } = matrix, all = new Float32Array(n * k);
  for (let row = 0; row < n; row++) {
    unpackRow(matrix, row, all.subarray(row * k, (row + 1) * k));
  }
  return all;
}

/** A matrix in host memory, from rows as a file stores them. */
export function storedMatrix(
  format: Format,
  stored: Uint8Array<ArrayBuffer>,
  k: number,
): Matrix<CpuTensor> {
  const n = stored.length / storedRowBytes(format, k);
  const [layout] = layOut("matrix", [{ rows: n, format }], k);
  const planes = packed(format, stored, k, n).map((bytes): CpuTensor => {
    const data = new Uint32Array(Math.ceil(bytes.length / 4));
    new Uint8Array(data.buffer).set(bytes);
    return { dtype: "u32", shape: [data.length], data };
  });
  return { label: "matrix", n, k, parts: [{ ...layout, planes }] };
}

/** Copies row `row` of a matrix to `into` as f32. */
export function unpackRow(
  matrix: Matrix<CpuTensor>,
  row: number,
  into: Float32Array,
): Float32Array {
  const [{ part, at }] = piecesOf(matrix, row, 1);
  part.format.unpack(part.planes.map(bytesOf), at, matrix.k, into);
  return into;
}
