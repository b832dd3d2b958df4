/**
 * Rows as integers in planes of eight bits, as to_int8.ts leaves them, on the CPU.
 *
 * @module
 */
import type { CpuTensor } from "../lib/formats/tensor.ts";
import { u32Tensor } from "./case.ts";

/** Elements that share a scale. */
export const BLOCK = 32;
/** The largest integer: 127 · 128. */
export const LARGEST = 16256;
/** Below this, the largest value counts as zero: its reciprocal would overflow. */
export const LEAST = 1e-30;
/** Planes: the integers' high and low bytes, and what rounding left, in 1/256. */
export const PLANES = 3;
/**
 * A block whose largest value is so many times the squared mean of the roots of all sizes
 * needs the third plane. In a mean of the sizes themselves, two outliers would hide each
 * other; here each of six beside small values is 28.4 times as large.
 */
export const OUTLIER = 28;

/** WGSL: whether a block has an outlier, from its largest size and the sum of the roots. */
export const hasOutlier = (size: string, roots: string): string =>
  `sqrt(${size}) * ${BLOCK / Math.sqrt(OUTLIER)} > ${roots}`;

/**
 * Whether a block's sum is NaN, by its bits. Neither integers nor the largest of a block show
 * a NaN, so its scale has to.
 */
export const IS_NAN = /* wgsl */ `
fn is_nan(v: f32) -> bool { return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u; }`;

/** Words of a row's planes, and numbers in its scales. */
export const int8Sizes = (
  k: number,
): { words: number; numbers: number } => ({
  words: PLANES * k / 4,
  numbers: 4 * k / BLOCK,
});

/** The byte of element `e` in a plane, where a lane takes `unit` elements. */
function placeOf(e: number, k: number, unit: number): number {
  const quads = unit / 16, units = k / unit, quad = Math.floor(e / 16);
  return ((quad % quads) * units + Math.floor(quad / quads)) * 16 + e % 16;
}

/** The values of planes and scales, and how far the sums of each block are off. */
export function int8Values(
  planes: ArrayLike<number>,
  scales: ArrayLike<number>,
  k: number,
  unit: number,
): { values: Float64Array; sumsOff: Float64Array } {
  const bytes = new Int8Array(Uint32Array.from(planes).buffer);
  const blocks = k / BLOCK, m = bytes.length / (PLANES * k);
  const values = new Float64Array(m * k);
  const sumsOff = new Float64Array(3 * m * blocks);
  for (let row = 0; row < m; row++) {
    for (let block = 0; block < blocks; block++) {
      const [scale, whole, ...halves] = [0, 1, 2, 3].map((which) =>
        scales[4 * (row * blocks + block) + which]
      );
      const sums = [0, 0];
      for (let i = 0; i < BLOCK; i++) {
        const e = block * BLOCK + i;
        const at = PLANES * row * k + placeOf(e, k, unit);
        const integer = 128 * bytes[at] + bytes[at + k];
        const rest = scale < 0 ? bytes[at + 2 * k] / 256 : 0;
        values[row * k + e] = (integer + rest) * Math.abs(scale);
        sums[i < BLOCK / 2 ? 0 : 1] += integer;
      }
      sumsOff.set([
        whole - sums[0] - sums[1],
        halves[0] - sums[0],
        halves[1] - sums[1],
      ], 3 * (row * blocks + block));
    }
  }
  return { values, sumsOff };
}

/** Rounds rows of `k` as the kernel does. */
export function roundRows(
  x: ArrayLike<number>,
  k: number,
  unit: number,
): { planes: CpuTensor; scales: CpuTensor } {
  const m = x.length / k, { words, numbers } = int8Sizes(k), blocks = k / BLOCK;
  const planes = new Int8Array(PLANES * m * k);
  const scales = new Float32Array(m * numbers);
  for (let row = 0; row < m; row++) {
    for (let block = 0; block < blocks; block++) {
      const begin = row * k + block * BLOCK;
      let size = 0, roots = 0;
      for (let i = 0; i < BLOCK; i++) {
        size = Math.max(size, Math.abs(x[begin + i]));
        roots += Math.sqrt(Math.abs(x[begin + i]));
      }
      const sums = [0, 0];
      for (let i = 0; i < BLOCK; i++) {
        const scaled = size ? x[begin + i] / size * LARGEST : 0;
        const integer = Math.round(scaled), high = integer + 64 >> 7;
        const at = PLANES * row * k + placeOf(block * BLOCK + i, k, unit);
        planes[at] = high;
        planes[at + k] = integer - 128 * high;
        planes[at + 2 * k] = Math.min(
          127,
          Math.round(256 * (scaled - integer)),
        );
        sums[i < BLOCK / 2 ? 0 : 1] += integer;
      }
      const outlier = size * BLOCK ** 2 > OUTLIER * roots ** 2;
      const scale = (outlier ? -size : size) / LARGEST;
      [scale, sums[0] + sums[1], ...sums].forEach((value, which) =>
        scales[4 * (row * blocks + block) + which] = value
      );
    }
  }
  return {
    planes: u32Tensor([m, words], new Uint32Array(planes.buffer)),
    scales: { dtype: "f32", shape: [m, numbers], data: scales },
  };
}
