/**
 * Reference implementations of the kernels in float64 on the CPU: plain loops that
 * share no code with what they check. Used by the self-test and the tests.
 *
 * @module
 */
import type {
  Attention,
  AttentionInputs,
  CaseRandom,
  Expected,
} from "../../kernels/case.ts";
import type { Epilogue } from "../dispatch/shapes.ts";
import { type Dtype, elements, f32ToBf16Bits, f32ToF16Bits } from "../dtype.ts";
import {
  cachedToF32,
  type CacheDtype,
  cachedWords,
  quantizedHeads,
} from "../formats/cached.ts";
import { type Matrix, matrixOf } from "../formats/matrix.ts";
import { formatNamed } from "../formats/mod.ts";
import { type CpuTensor, storedMatrix, toF32 } from "../formats/tensor.ts";
import { randomBlocks } from "./random_blocks.ts";

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

/** A seeded random number generator (xorshift32). */
export class Random implements CaseRandom {
  #state: number;

  constructor(seed = 0x9e3779b9) {
    this.#state = seed | 0 || 1;
  }

  /** A number between -1 and 1. */
  next(): number {
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    return this.#state / 2 ** 31;
  }

  /** An integer from `low` to `high`, both inclusive. */
  int(low: number, high: number): number {
    return low + Math.floor((this.next() + 1) / 2 * (high - low + 1));
  }

  pick<T>(choices: readonly T[]): T {
    return choices[this.int(0, choices.length - 1)];
  }

  /** A tensor of values between -scale and scale, plus `offset`. */
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

  /** A matrix of values between about -scale and scale. */
  matrix(
    format: string,
    [n, k]: readonly [number, number],
    scale = 1,
  ): Matrix<CpuTensor> {
    const own = formatNamed(format);
    if (own.elements === 1) {
      return matrixOf(this.tensor(format as Dtype, [n, k], scale));
    }
    return storedMatrix(own, randomBlocks(this, own, n, k, scale), k);
  }

  filled(dtype: Dtype, shape: readonly number[], value: number): CpuTensor {
    const data = new ARRAY[dtype](elements(shape));
    return { dtype, shape, data: data.fill(ENCODE[dtype](value)) };
  }
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

/**
 * Applies what follows a matmul: nothing, adding to `before`, or SwiGLU of a row's
 * halves.
 */
export function epilogue(
  kind: Epilogue,
  { values, norms }: Expected,
  n: number,
  before: number,
): Expected {
  if (kind === "store") return { values, norms };
  if (kind === "add") {
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

/**
 * Creates the inputs of a pass. Each cache holds `more` tokens past its length; the
 * rest is NaN.
 */
export function attentionInputs(
  random: CaseRandom,
  sizes: Attention,
  dtypes: { cache: CacheDtype; norm?: Dtype },
  more = 0,
): AttentionInputs {
  const { heads, kvHeads, headDim, context, lengths, rows } = sizes;
  const angles = random.tensor("f32", [context, headDim]);
  for (let at = 0; at < angles.data.length; at += headDim) {
    for (let i = 0; i < headDim / 2; i++) {
      const angle = Math.PI * random.next();
      angles.data[at + i] = Math.cos(angle);
      angles.data[at + headDim / 2 + i] = Math.sin(angle);
    }
  }
  const cache = () => {
    const shape = [lengths.length, kvHeads, context, headDim];
    const lengthOf = (head: number) =>
      lengths[Math.floor(head / kvHeads)] + more;
    if (dtypes.cache === "q8_0") return quantizedCache(random, shape, lengthOf);
    const tensor = random.tensor(dtypes.cache, shape);
    const nan = ENCODE[dtypes.cache](NaN);
    for (let head = 0; head < lengths.length * kvHeads; head++) {
      const length = lengthOf(head);
      const begin = (head * context + length) * headDim;
      tensor.data.fill(nan, begin, (head + 1) * context * headDim);
    }
    return tensor;
  };
  const norm = dtypes.norm ?? "f32";
  return {
    qkv: random.tensor("f32", [rows, (heads + 2 * kvHeads) * headDim], 2),
    qNorm: random.tensor(norm, [headDim], 0.5, 1),
    kNorm: random.tensor(norm, [headDim], 0.5, 1),
    angles,
    k: cache(),
    v: cache(),
  };
}

/** A random cache in q8_0; its scales are NaN past the length of each head, if it has one. */
export function quantizedCache(
  random: CaseRandom,
  shape: readonly number[],
  lengthOf: (head: number) => number = () => Infinity,
): CpuTensor {
  const headDim = shape[3], context = shape[2];
  const values = toF32(random.tensor("f32", shape));
  const words = [...shape.slice(0, 3), cachedWords(headDim)];
  const data = new Uint32Array(elements(words));
  const tensor: CpuTensor = { dtype: "u32", shape: words, data };
  const heads = quantizedHeads(tensor, headDim);
  for (let row = 0; row < heads.rows; row++) {
    heads.put(row, values, row * headDim);
    const cached = row % context < lengthOf(Math.floor(row / context));
    if (!cached) heads.fillScales(row, NaN);
  }
  return tensor;
}

/** Returns the sequence and position of a row. */
export function place(
  row: number,
  { first, tokens, lengths }: Attention,
): { sequence: number; position: number } {
  const sequence = first + Math.floor(row / tokens);
  return { sequence, position: lengths[sequence] + row % tokens };
}

/**
 * Returns q, normed and rotated, `[rows, heads · headDim]`, and the caches after the
 * append.
 */
export function appended(
  inputs: AttentionInputs,
  sizes: Attention,
): { q: Float64Array; k: Float64Array; v: Float64Array } {
  const { heads, kvHeads, headDim, context, rows, eps } = sizes;
  const qkv = toF32(inputs.qkv), angles = toF32(inputs.angles);
  const qNorm = toF32(inputs.qNorm), kNorm = toF32(inputs.kNorm);
  const k = Float64Array.from(cachedToF32(inputs.k, headDim));
  const v = Float64Array.from(cachedToF32(inputs.v, headDim));
  const q = new Float64Array(rows * heads * headDim);
  for (let row = 0; row < rows; row++) {
    const { sequence, position } = place(row, sizes);
    const head = (h: number) => {
      const at = (row * (heads + 2 * kvHeads) + h) * headDim;
      return qkv.subarray(at, at + headDim);
    };
    for (let h = 0; h < heads; h++) {
      const turned = normedRotated(head(h), qNorm, angles, position, eps);
      q.set(turned, (row * heads + h) * headDim);
    }
    for (let h = 0; h < kvHeads; h++) {
      const at = ((sequence * kvHeads + h) * context + position) * headDim;
      k.set(normedRotated(head(heads + h), kNorm, angles, position, eps), at);
      v.set(head(heads + kvHeads + h), at);
    }
  }
  return { q, k, v };
}

/** RMSNorm and RoPE (half-split) of one head at `position`. */
function normedRotated(
  x: ArrayLike<number>,
  norm: ArrayLike<number>,
  angles: ArrayLike<number>,
  position: number,
  eps: number,
): Float64Array {
  const size = norm.length, half = size / 2;
  const normed = rmsNormed(x, norm, eps), y = new Float64Array(size);
  for (let i = 0; i < half; i++) {
    const c = angles[position * size + i];
    const s = angles[position * size + half + i];
    y[i] = normed[i] * c - normed[half + i] * s;
    y[half + i] = normed[half + i] * c + normed[i] * s;
  }
  return y;
}

/** Causal softmax attention of all rows over a cache that includes them: `[rows, heads · headDim]`. */
export function attended(
  { q, k, v }: Record<"q" | "k" | "v", ArrayLike<number>>,
  sizes: Attention,
): Expected {
  const { heads, kvHeads, headDim, context, rows } = sizes;
  const values = new Float64Array(q.length), norms = new Float64Array(q.length);
  const scores = new Float64Array(context);
  for (let row = 0; row < rows; row++) {
    const { sequence, position } = place(row, sizes);
    for (let h = 0; h < heads; h++) {
      const kvHead = Math.floor(h / (heads / kvHeads));
      const cached = (sequence * kvHeads + kvHead) * context * headDim;
      const to = (row * heads + h) * headDim;
      let top = -Infinity, total = 0;
      for (let key = 0; key <= position; key++) {
        let sum = 0;
        for (let i = 0; i < headDim; i++) {
          sum += q[to + i] * k[cached + key * headDim + i];
        }
        scores[key] = sum / Math.sqrt(headDim);
        top = Math.max(top, scores[key]);
      }
      for (let key = 0; key <= position; key++) {
        total += scores[key] = Math.exp(scores[key] - top);
      }
      for (let key = 0; key <= position; key++) {
        const weight = scores[key] / total;
        for (let i = 0; i < headDim; i++) {
          const product = weight * v[cached + key * headDim + i];
          values[to + i] += product;
          norms[to + i] += Math.abs(product); // each weight is off by its score's error
        }
      }
    }
  }
  return { values, norms };
}
