/** What kernels compute, in float64 from the same inputs, plainly. */
import {
  type CpuTensor,
  elements,
  f32ToBf16Bits,
  f32ToF16Bits,
} from "../lib/cpu_dtype.ts";
import type { Dtype } from "../lib/ops.ts";
import { assertAllClose } from "./assert_all_close.ts";

const ENCODE = {
  f32: Math.fround,
  f16: f32ToF16Bits,
  bf16: f32ToBf16Bits,
  u32: (value: number) => value,
};
const ARRAY = {
  f32: Float32Array,
  f16: Uint16Array,
  bf16: Uint16Array,
  u32: Uint32Array,
};

/** Numbers that a seed reproduces (xorshift32). */
export class Random {
  constructor(private state: number) {
    this.state ||= 1;
  }

  /** Between -1 and 1. */
  next(): number {
    this.state ^= this.state << 13;
    this.state ^= this.state >>> 17;
    this.state ^= this.state << 5;
    return this.state / 2 ** 31;
  }

  /** A whole number from `low` to `high`, both included. */
  int(low: number, high: number): number {
    return low + Math.floor((this.next() + 1) / 2 * (high - low + 1));
  }

  pick<T>(choices: readonly T[]): T {
    return choices[this.int(0, choices.length - 1)];
  }

  /** Values between -scale and scale, plus `offset`. */
  tensor(
    dtype: Dtype,
    shape: readonly number[],
    scale = 1,
    offset = 0,
  ): CpuTensor {
    const data = new ARRAY[dtype](elements(shape));
    const encode = ENCODE[dtype];
    for (let i = 0; i < data.length; i++) {
      data[i] = encode(offset + scale * this.next());
    }
    return { dtype, shape, data };
  }

  filled(dtype: Dtype, shape: readonly number[], value: number): CpuTensor {
    const data = new ARRAY[dtype](elements(shape));
    return { dtype, shape, data: data.fill(ENCODE[dtype](value)) };
  }
}

/**
 * Results, and per element the size of what rounding acts on: the norm of the
 * products that were summed. f32 sums are off by a small multiple of it.
 */
export interface Expected {
  values: Float64Array;
  norms: Float64Array;
}

/** Asserts `|actual − expected| ≤ tolerance · norm` for every element. */
export function assertSums(
  actual: ArrayLike<number>,
  { values, norms }: Expected,
  message: string,
  tolerance = 1e-5,
): void {
  const by = (list: ArrayLike<number>) =>
    Float64Array.from(list, (value, i) => norms[i] ? value / norms[i] : value);
  assertAllClose(by(actual), by(values), { absolute: tolerance }, message);
}

/** `x · wᵀ`: `[m, k]`, `[n, k]` → `[m, n]`. */
export function linear(
  x: ArrayLike<number>,
  w: ArrayLike<number>,
  { m, n, k }: { m: number; n: number; k: number },
): Expected {
  const values = new Float64Array(m * n), norms = new Float64Array(m * n);
  for (let r = 0; r < m; r++) {
    for (let c = 0; c < n; c++) {
      let sum = 0, squares = 0;
      for (let i = 0, a = r * k, b = c * k; i < k; i++) {
        const product = x[a + i] * w[b + i];
        sum += product;
        squares += product * product;
      }
      values[r * n + c] = sum;
      norms[r * n + c] = Math.sqrt(squares);
    }
  }
  return { values, norms };
}

/** `[rows, columns]` → `[columns, rows]`. */
export function transpose(
  x: ArrayLike<number>,
  rows: number,
  columns: number,
): Float32Array {
  const y = new Float32Array(rows * columns);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) y[c * rows + r] = x[r * columns + c];
  }
  return y;
}

/** RMSNorm of each row of `norm.length` elements. */
export function rmsNormed(
  x: ArrayLike<number>,
  norm: ArrayLike<number>,
  eps: number,
): Float64Array {
  const k = norm.length, y = new Float64Array(x.length);
  for (let at = 0; at < x.length; at += k) {
    let squares = 0;
    for (let i = 0; i < k; i++) squares += x[at + i] ** 2;
    const scale = 1 / Math.sqrt(squares / k + eps);
    for (let i = 0; i < k; i++) y[at + i] = x[at + i] * scale * norm[i];
  }
  return y;
}

/** What follows a product: 0 nothing, 1 added to `before`, 2 SwiGLU of the two halves of a row. */
export function epilogue(
  kind: number,
  { values, norms }: Expected,
  n: number,
  before: number,
): Expected {
  if (kind === 0) return { values, norms };
  if (kind === 1) {
    return {
      values: values.map((value) => value + before),
      norms: norms.map((norm) => norm + Math.abs(before)),
    };
  }
  const half = n / 2, rows = values.length / n;
  const out = {
    values: new Float64Array(rows * half),
    norms: new Float64Array(rows * half),
  };
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < half; c++) {
      const g = r * n + c, u = g + half, at = r * half + c;
      const silu = values[g] / (1 + Math.exp(-values[g]));
      out.values[at] = silu * values[u];
      // The slope of silu is below 1.1; exp and the division add a few ulps.
      out.norms[at] = 1.1 * norms[g] * Math.abs(values[u]) +
        Math.abs(silu) * norms[u] + Math.abs(silu * values[u]);
    }
  }
  return out;
}

/** Sizes of attention. */
export interface Heads {
  heads: number;
  kvHeads: number;
  headDim: number;
}

/** Norms and rotates heads of one row: `[heads, headDim]` at `position`. */
export function normedRotated(
  x: ArrayLike<number>,
  norm: ArrayLike<number>,
  angles: ArrayLike<number>,
  position: number,
  eps: number,
): Float64Array {
  const size = norm.length, half = size / 2;
  const normed = rmsNormed(x, norm, eps), y = new Float64Array(x.length);
  for (let at = 0; at < x.length; at += size) {
    for (let i = 0; i < half; i++) {
      const c = angles[position * size + i];
      const s = angles[position * size + half + i];
      y[at + i] = normed[at + i] * c - normed[at + half + i] * s;
      y[at + half + i] = normed[at + half + i] * c + normed[at + i] * s;
    }
  }
  return y;
}

/**
 * Softmax attention of one query over keys `0 … keys - 1` of one kv head.
 *
 * @param q `[headDim]`
 * @param k `[.., headDim]`, from element `at` on; `v` likewise
 */
export function attended(
  q: ArrayLike<number>,
  k: ArrayLike<number>,
  v: ArrayLike<number>,
  at: number,
  keys: number,
  scale: number,
): Expected {
  const headDim = q.length;
  const scores = Float64Array.from({ length: keys }, (_, key) => {
    let sum = 0;
    for (let i = 0; i < headDim; i++) sum += q[i] * k[at + key * headDim + i];
    return sum * scale;
  });
  const top = scores.reduce((a, b) => Math.max(a, b));
  const weights = scores.map((score) => Math.exp(score - top));
  const total = weights.reduce((a, b) => a + b);
  const values = new Float64Array(headDim), norms = new Float64Array(headDim);
  for (let key = 0; key < keys; key++) {
    const weight = weights[key] / total;
    for (let i = 0; i < headDim; i++) {
      const product = weight * v[at + key * headDim + i];
      values[i] += product;
      norms[i] += Math.abs(product); // each weight is off by exp's error of its score
    }
  }
  return { values, norms };
}
