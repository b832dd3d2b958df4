/**
 * What an unpacked model computes on the host between its matmuls.
 *
 * @module
 */
import { bytesOf, type CpuTensor, unpackRow } from "../../formats/tensor.ts";
import { BYTES, type Dtype, elements } from "../../dtype.ts";
import { type Matrix, piecesOf } from "../../formats/matrix.ts";

/** Elements of an f32 tensor. */
export const f32 = ({ data }: CpuTensor) => data as Float32Array;
/** A copy with its own buffer, as uploads require. */
export const exact = (x: Float32Array): Float32Array<ArrayBuffer> =>
  Float32Array.from(x);

/** An f32 tensor over `data`. */
export function tensor(shape: number[], data: Float32Array): CpuTensor {
  return { dtype: "f32", shape, data: data.subarray(0, elements(shape)) };
}

export const isDense = (name: string): name is Exclude<Dtype, "u32"> =>
  name in BYTES && name !== "u32";

/**
 * Rows of a matrix as a tensor: on the same memory if they are dense, else unpacked to
 * f32, because matmuls of tensors take no blocks.
 */
export function rowsOf(
  matrix: Matrix<CpuTensor>,
  begin: number,
  rows: number,
): CpuTensor {
  const { k } = matrix;
  const [{ part, at }, ...more] = piecesOf(matrix, begin, rows);
  const { name, planes } = part.format;
  if (more.length > 0 || !isDense(name)) {
    const values = new Float32Array(rows * k);
    for (let row = 0; row < rows; row++) {
      const into = values.subarray(row * k, (row + 1) * k);
      unpackRow(matrix, begin + row, into);
    }
    return { dtype: "f32", shape: [rows, k], data: values };
  }
  const { buffer, byteOffset } = bytesOf(part.planes[0]);
  const from = byteOffset + at * planes(k)[0].rowBytes;
  const data = name === "f32"
    ? new Float32Array(buffer, from, rows * k)
    : new Uint16Array(buffer, from, rows * k);
  return { dtype: name, shape: [rows, k], data };
}

/** Element-wise sum. */
export const add = (x: Float32Array, y: Float32Array) =>
  x.map((v, i) => v + y[i]);

/** Transposes `[outer, inner, headDim]` to `[inner, outer, headDim]`. */
export function byHead(
  x: Float32Array,
  outer: number,
  inner: number,
  headDim: number,
): Float32Array<ArrayBuffer> {
  const out = new Float32Array(x.length);
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < inner; i++) {
      const from = (o * inner + i) * headDim;
      out.set(x.subarray(from, from + headDim), (i * outer + o) * headDim);
    }
  }
  return out;
}

/** Appends `m` rows to a cache `[kvHeads, context, headDim]` that has `length` rows. */
export function append(
  cache: Float32Array,
  rows: Float32Array,
  m: number,
  kvHeads: number,
  headDim: number,
  context: number,
  length: number,
): void {
  for (let r = 0; r < m; r++) {
    for (let h = 0; h < kvHeads; h++) {
      const from = (r * kvHeads + h) * headDim;
      const to = (h * context + length + r) * headDim;
      cache.set(rows.subarray(from, from + headDim), to);
    }
  }
}

/** Causal softmax of rows of `keys` scores, in place. */
export function softmax(
  x: Float32Array,
  m: number,
  keys: number,
  length: number,
  scale: number,
): void {
  for (let at = 0, row = 0; at < x.length; at += keys, row++) {
    const seen = length + row % m + 1;
    let high = -Infinity, sum = 0;
    for (let i = 0; i < seen; i++) high = Math.max(high, x[at + i]);
    for (let i = 0; i < seen; i++) {
      sum += x[at + i] = Math.exp((x[at + i] - high) * scale);
    }
    for (let i = 0; i < keys; i++) x[at + i] = i < seen ? x[at + i] / sum : 0;
  }
}
