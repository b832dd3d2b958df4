/**
 * RMSNorm and rotation of rows in TypeScript.
 *
 * @module
 */
import type { Norm, Rows } from "./kernels.ts";

/**
 * RMSNorm (https://arxiv.org/abs/1910.07467) of `weight.length` elements, which may be in
 * place.
 */
export function normalize(
  x: Float32Array,
  from: number,
  weight: Float32Array,
  eps: number,
  out: Float32Array,
  to: number,
): void {
  const size = weight.length;
  let even = 0, odd = 0; // two sums, because an addition waits for the one before
  for (let i = 0; i < size - 1; i += 2) {
    even += x[from + i] * x[from + i];
    odd += x[from + i + 1] * x[from + i + 1];
  }
  if (size % 2) even += x[from + size - 1] ** 2;
  const scale = 1 / Math.sqrt((even + odd) / size + eps);
  for (let i = 0; i < size; i++) out[to + i] = x[from + i] * scale * weight[i];
}

/**
 * Rotates `x[at .. at + angles.length]` in place: element i pairs with the one half of a
 * row later. `angles` are cosines, then sines.
 */
export function rotate(
  x: Float32Array,
  at: number,
  angles: Float32Array,
): void {
  const half = angles.length / 2;
  for (let i = 0; i < half; i++) {
    const cos = angles[i], sin = angles[half + i];
    const a = x[at + i], b = x[at + half + i];
    x[at + i] = a * cos - b * sin;
    x[at + half + i] = b * cos + a * sin;
  }
}

/** {@linkcode CpuKernels.norm} in TypeScript. */
export function normRows(
  { data, k, norm: { weight, eps } }: Rows & { norm: Norm },
  out: Float32Array,
): void {
  for (let i = 0; i < out.length; i += k) {
    normalize(data, i, weight, eps, out, i);
  }
}
