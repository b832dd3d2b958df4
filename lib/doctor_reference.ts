/**
 * What kernels compute, in float64 on the CPU, for a self-test: plain loops that
 * share nothing with what they check.
 *
 * @module
 */
import {
  type CpuTensor,
  elements,
  f32ToBf16Bits,
  f32ToF16Bits,
} from "./cpu_dtype.ts";
import type { Dtype } from "./ops.ts";

/** Numbers that are the same in every run (xorshift32). */
export class Random {
  #state = 0x9e3779b9 | 0;

  /** Between -1 and 1. */
  next(): number {
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    return this.#state / 2 ** 31;
  }

  /** Values between -scale and scale, plus `offset`, as `dtype` holds them. */
  tensor(
    dtype: Exclude<Dtype, "u32">,
    shape: readonly number[],
    scale = 1,
    offset = 0,
  ): CpuTensor {
    const size = elements(shape);
    const data = dtype === "f32"
      ? new Float32Array(size)
      : new Uint16Array(size);
    for (let i = 0; i < size; i++) {
      const value = Math.fround(offset + scale * this.next());
      data[i] = dtype === "f32"
        ? value
        : dtype === "f16"
        ? f32ToF16Bits(value)
        : f32ToBf16Bits(value);
    }
    return { dtype, shape, data };
  }
}

/** Values, and for each the size of what rounding acts on. */
export interface Expected {
  values: ArrayLike<number>;
  norms: ArrayLike<number>;
}

/** `x · wᵀ`: `[m, k]`, `[n, k]` → `[m, n]`; norms are those of the products. */
export function linear(
  x: ArrayLike<number>,
  w: ArrayLike<number>,
  k: number,
): { values: Float64Array; norms: Float64Array } {
  const m = x.length / k, n = w.length / k;
  const values = new Float64Array(m * n), norms = new Float64Array(m * n);
  for (let at = 0; at < m * n; at++) {
    const a = Math.floor(at / n) * k, b = at % n * k;
    let squares = 0;
    for (let i = 0; i < k; i++) {
      const product = x[a + i] * w[b + i];
      values[at] += product;
      squares += product * product;
    }
    norms[at] = Math.sqrt(squares);
  }
  return { values, norms };
}

/** SwiGLU of the two halves of each row of `n`. */
export function gated({ values, norms }: Expected, n: number): Expected {
  const half = n / 2, size = values.length / 2;
  const out = { values: new Float64Array(size), norms: new Float64Array(size) };
  for (let at = 0; at < size; at++) {
    const g = Math.floor(at / half) * n + at % half, u = g + half;
    const silu = values[g] / (1 + Math.exp(-values[g]));
    out.values[at] = silu * values[u];
    // The slope of silu is below 1.1.
    out.norms[at] = 1.1 * norms[g] * Math.abs(values[u]) +
      Math.abs(silu) * (norms[u] + Math.abs(values[u]));
  }
  return out;
}

/** RMSNorm of rows of `norm.length` elements. */
export function normed(
  x: ArrayLike<number>,
  norm: ArrayLike<number>,
  eps: number,
): Float64Array {
  const k = norm.length;
  return Float64Array.from(x, (value, at) => {
    const begin = at - at % k;
    let squares = 0;
    for (let i = 0; i < k; i++) squares += x[begin + i] ** 2;
    return value * norm[at % k] / Math.sqrt(squares / k + eps);
  });
}

/** `[rows, columns]` → `[columns, rows]`. */
export function transposed(
  x: ArrayLike<number>,
  columns: number,
): Float32Array {
  const rows = x.length / columns;
  return Float32Array.from(
    x,
    (_, at) => x[at % rows * columns + Math.floor(at / rows)],
  );
}

/** RoPE in the half-split form of one head, by a row of cosines and sines. */
export function rotated(
  x: ArrayLike<number>,
  angles: ArrayLike<number>,
): Float64Array {
  const half = x.length / 2;
  return Float64Array.from(x, (value, i) => {
    const c = angles[i % half], s = angles[half + i % half];
    return i < half ? value * c - x[half + i] * s : value * c + x[i - half] * s;
  });
}

/** Sizes of one sequence's attention: `length` tokens are cached before it. */
export interface Attention {
  heads: number;
  kvHeads: number;
  headDim: number;
  context: number;
  length: number;
  tokens: number;
}

/** Causal attention of `q` `[tokens, heads · headDim]` over a cache that has the tokens. */
export function attended(
  q: ArrayLike<number>,
  k: ArrayLike<number>,
  v: ArrayLike<number>,
  { heads, kvHeads, headDim, context, length, tokens }: Attention,
): Expected {
  const size = tokens * heads * headDim;
  const values = new Float64Array(size), norms = new Float64Array(size);
  for (let row = 0; row < tokens * heads; row++) {
    const kvHead = Math.floor(row % heads / (heads / kvHeads));
    const cached = kvHead * context * headDim, to = row * headDim;
    const keys = length + Math.floor(row / heads) + 1;
    const scores = Array.from({ length: keys }, (_, key) => {
      let sum = 0;
      for (let i = 0; i < headDim; i++) {
        sum += q[to + i] * k[cached + key * headDim + i];
      }
      return sum / Math.sqrt(headDim);
    });
    const top = Math.max(...scores);
    const weights = scores.map((score) => Math.exp(score - top));
    const total = weights.reduce((a, b) => a + b);
    weights.forEach((weight, key) => {
      for (let i = 0; i < headDim; i++) {
        const product = weight / total * v[cached + key * headDim + i];
        values[to + i] += product;
        norms[to + i] += Math.abs(product);
      }
    });
  }
  return { values, norms };
}
