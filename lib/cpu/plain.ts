/**
 * The CPU kernels in plain TypeScript: the reference. Sums are float64; results are
 * rounded to f32 when stored.
 *
 * @module
 */
import type { Dtype } from "../dtype.ts";
import { elements } from "../dtype.ts";
import { type MatrixPart, rowsHeld } from "../formats/matrix.ts";
import { quantizedHeads } from "../formats/cached.ts";
import { bytesOf, type CpuTensor, f32 } from "../formats/tensor.ts";
import {
  type Attention,
  type CpuInfo,
  type CpuKernels,
  type Finish,
  type Heads,
  type Output,
  type Rows,
  SLICE,
  type Work,
} from "./kernels.ts";
import { writerOf } from "./kv_cache.ts";
import { normalize, normRows, rotate } from "./norm.ts";

/** Runs on the caller's thread, in any JavaScript engine. */
export class PlainKernels implements CpuKernels {
  readonly info: CpuInfo;
  memoryBytes = 0;

  constructor(private readonly heads: Heads, reason: string) {
    this.info = { kernel: "plain", reason, threads: 1 };
  }

  allocate(dtype: Dtype, shape: readonly number[]): CpuTensor {
    const size = elements(shape);
    const data = dtype === "f32"
      ? new Float32Array(size)
      : dtype === "u32"
      ? new Uint32Array(size)
      : new Uint16Array(size);
    this.memoryBytes += data.byteLength;
    return { dtype, shape, data };
  }

  /** Leaves it to the garbage collector. */
  release({ data }: CpuTensor): void {
    this.memoryBytes -= data.byteLength;
  }

  /** Memory is all the same here. */
  together(): void {}

  /** Any order is as fast. */
  // deno-lint-ignore require-yield
  *interleave(
    part: MatrixPart<CpuTensor>,
  ): Generator<void, MatrixPart<CpuTensor>> {
    return part;
  }

  *matmul(
    { rows, k, ...from }: Rows,
    w: MatrixPart<CpuTensor>,
    { data, stride, column }: Output,
    finish: Finish,
  ): Work {
    const { norm } = from;
    const x = norm ? new Float32Array(rows * k) : from.data;
    if (norm) normRows({ data: from.data, rows, k, norm }, x);
    const planes = w.planes.map(bytesOf), { format } = w;
    const weights = new Float32Array(k), up = new Float32Array(k);
    const swiglu = finish === "swiglu";
    let work = 0; // since the last slice
    for (let j = 0; j < (swiglu ? w.rows : rowsHeld(w)); j++) {
      if ((work += rows * k) > SLICE) {
        yield;
        work = 0;
      }
      format.unpack(planes, j, k, weights);
      if (swiglu) format.unpack(planes, w.rows + j, k, up);
      for (let r = 0; r < rows; r++) {
        const y = dot(x, r * k, weights, 0, k), at = r * stride + column + j;
        if (swiglu) data[at] = y / (1 + Math.exp(-y)) * dot(x, r * k, up, 0, k);
        else data[at] = finish === "add" ? data[at] + y : y;
      }
    }
  }

  readonly norm = normRows;

  *attention(pass: Attention): Work {
    const { k, v, cache, out } = pass, q = this.#queries(pass);
    const { heads, kvHeads, headDim } = this.heads;
    const { first, tokens } = cache.pass;
    const keys = readerOf(k, headDim), values = readerOf(v, headDim);
    const scores = new Float64Array(cache.context);
    const sums = new Float64Array(headDim);
    let work = 0; // since the last slice
    for (let at = 0; at < q.length; at += headDim) {
      const head = at / headDim % heads;
      const row = Math.floor(at / headDim / heads);
      const sequence = first + Math.floor(row / tokens);
      const count = cache.lengths[sequence] + row % tokens + 1; // keys that the row attends to
      if ((work += 2 * count * headDim) > SLICE) {
        yield;
        work = 0;
      }
      const kvHead = Math.floor(head / (heads / kvHeads));
      const rowOf = (p: number) => cache.rowOf(sequence, kvHead, kvHeads, p);

      let max = -Infinity;
      for (let p = 0; p < count; p++) {
        scores[p] = dot(q, at, keys(rowOf(p)), 0, headDim) / Math.sqrt(headDim);
        max = Math.max(max, scores[p]);
      }
      let total = 0;
      sums.fill(0);
      for (let p = 0; p < count; p++) {
        const weight = Math.exp(scores[p] - max);
        total += weight;
        const value = values(rowOf(p));
        for (let d = 0; d < headDim; d++) sums[d] += weight * value[d];
      }
      for (let d = 0; d < headDim; d++) out[at + d] = sums[d] / total;
    }
  }

  /** Caches the keys and values of a pass; returns its queries, `[rows, heads · headDim]`. */
  #queries(
    { qkv, qNorm, kNorm, angles, k, v, cache, out }: Attention,
  ): Float32Array {
    const { heads, kvHeads, headDim } = this.heads;
    const { first, tokens } = cache.pass;
    const putKey = writerOf(k, headDim), putValue = writerOf(v, headDim);
    const width = (heads + 2 * kvHeads) * headDim, q = out.slice();
    for (let r = 0; r < qkv.length / width; r++) {
      const sequence = first + Math.floor(r / tokens);
      const position = cache.lengths[sequence] + r % tokens;
      const row = qkv.slice(r * width, (r + 1) * width);
      const turn = angles(position);
      for (let h = 0; h < heads + kvHeads; h++) {
        const { weight, eps } = h < heads ? qNorm : kNorm, at = h * headDim;
        normalize(row, at, weight, eps, row, at);
        rotate(row, at, turn);
      }
      q.set(row.subarray(0, heads * headDim), r * heads * headDim);
      for (let h = 0; h < kvHeads; h++) {
        const to = cache.rowOf(sequence, h, kvHeads, position);
        const key = (heads + h) * headDim, value = key + kvHeads * headDim;
        putKey(to, row.subarray(key, key + headDim));
        putValue(to, row.subarray(value, value + headDim));
      }
    }
    return q;
  }

  [Symbol.dispose](): void {}
}

/** Returns a function that reads a head of cached keys or values. */
function readerOf(
  cached: CpuTensor,
  headDim: number,
): (row: number) => Float32Array {
  if (cached.dtype === "f32") {
    const all = f32(cached);
    return (row) => all.subarray(row * headDim, (row + 1) * headDim);
  }
  const heads = quantizedHeads(cached, headDim);
  const head = new Float32Array(headDim);
  return (row) => (heads.take(row, head, 0), head);
}

/** `Σ a[i + j] · b[k + j]` over `length` elements; four sums keep the multiplier busy. */
function dot(
  a: Float32Array,
  i: number,
  b: Float32Array,
  k: number,
  length: number,
): number {
  let s0 = 0, s1 = 0, s2 = 0, s3 = 0, j = 0;
  for (; j + 4 <= length; j += 4) {
    s0 += a[i + j] * b[k + j];
    s1 += a[i + j + 1] * b[k + j + 1];
    s2 += a[i + j + 2] * b[k + j + 2];
    s3 += a[i + j + 3] * b[k + j + 3];
  }
  for (; j < length; j++) s0 += a[i + j] * b[k + j];
  return s0 + s1 + (s2 + s3);
}
