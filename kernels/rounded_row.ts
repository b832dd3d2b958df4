/**
 * A row that one gemvInt8 rounds for the next, so that the workgroups of that do not: WGSL
 * that rounds, and the same on the CPU.
 *
 * In units of 16 bytes, a row of `k` elements has a sum of squares of each block of 32, before
 * it was normed; then four planes of bytes; then of each block its scale and the sums of its
 * halves and of all of it. An element is `128 · high + low` times the scale, of 15 bits. Beside
 * an outlier that would not do: the scale of such a block is negative, and the last two planes
 * have what rounding left, in the same way, in steps of {@linkcode STEP_OF_REST}.
 *
 * A unit is what a lane of the next kernel takes. In a plane, first come the first 16 elements
 * of all units, then the second ones, so that neighboring lanes read neighbors.
 *
 * @module
 */
import { type CpuTensor, toF32 } from "../lib/formats/tensor.ts";
import { u32Tensor } from "./case.ts";
import { BLOCK, hasOutlier, IS_NAN, LARGEST, OUTLIER } from "./int8_case.ts";

/** What a step of the rest is of one of the integers. */
export const STEP_OF_REST = 1 / (2 * LARGEST);
/** Below this, a block's largest value counts as zero: its reciprocal would overflow. */
const LEAST = 1e-30;
/** Planes of bytes, and elements in 16 bytes of one. */
const PLANES = 4, OWN = 16;

/**
 * WGSL: `round_four(four)` rounds four elements of a block, of which eight neighboring lanes
 * have all. `block` is its scale and its sums.
 */
export const ROUND_FOUR = /* wgsl */ `
${IS_NAN}
struct Rounded { planes: vec4u, block: vec4f }
fn planes_of(whole: vec4i) -> vec2u {
  let high = (whole + vec4i(64)) >> vec4u(7u);
  return vec2u(pack4xI8(high), pack4xI8(whole - (high << vec4u(7u))));
}
fn round_four(four: vec4f) -> Rounded {
  let each = abs(four);
  var size = max(max(each.x, each.y), max(each.z, each.w));
  var roots = dot(sqrt(each), vec4f(1.0));
  @unroll for (var b = 0; b < 3; b++) {
    size = max(size, subgroupShuffleXor(size, 1u << b));
    roots += subgroupShuffleXor(roots, 1u << b);
  }
  let scaled = four * select(0.0, ${LARGEST}.0 / size, size > ${LEAST});
  let whole = vec4i(round(scaled));
  var sum = f32(whole.x + whole.y + whole.z + whole.w);
  @unroll for (var b = 0; b < 2; b++) { sum += subgroupShuffleXor(sum, 1u << b); }
  let other = subgroupShuffleXor(sum, 4u);
  let scale = size / ${LARGEST}.0;
  let signed = select(scale, -scale, ${hasOutlier("size", "roots")});
  let rest = vec4i(round((scaled - vec4f(whole)) * ${1 / STEP_OF_REST}.0));
  return Rounded(
    vec4u(planes_of(whole), planes_of(rest)),
    vec4f(select(signed, roots, is_nan(roots)), sum, other, sum + other));
}`;

/** Units of 16 bytes of the sums of squares, and words of all. */
export function roundedSizes(
  k: number,
): { squares: number; words: number } {
  const squares = Math.ceil(k / BLOCK / 4);
  return { squares, words: 4 * squares + PLANES * k / 4 + 4 * k / BLOCK };
}

/** The byte of element `e` in the planes, where a lane takes `unit` elements. */
function placeOf(e: number, k: number, unit: number): number {
  const quads = unit / OWN, units = k / unit, quad = Math.floor(e / OWN);
  return ((quad % quads) * units + Math.floor(quad / quads)) * OWN + e % OWN;
}

/** Views of a row in memory: sums of squares, planes, and four numbers of each block. */
function partsOf(words: Uint32Array<ArrayBuffer>, k: number) {
  const { squares } = roundedSizes(k), { buffer } = words;
  const at = 16 * squares, end = at + PLANES * k;
  return {
    squares: new Float32Array(buffer, 0, 4 * squares),
    planes: new Int8Array(buffer, at, PLANES * k),
    blocks: new Float32Array(buffer, end, 4 * k / BLOCK),
  };
}

/** Rounds a row; `squares` are of each block. */
export function roundRow(
  x: CpuTensor,
  k: number,
  unit: number,
  squares: ArrayLike<number> = [],
): CpuTensor {
  const words = new Uint32Array(roundedSizes(k).words), row = toF32(x);
  const { squares: sums, planes, blocks } = partsOf(words, k);
  sums.set(Array.from(squares));
  const store = (whole: number, at: number) => {
    const high = whole + 64 >> 7;
    planes[at] = high;
    planes[at + k] = whole - 128 * high;
  };
  for (let b = 0; b < k / BLOCK; b++) {
    const sizes = row.subarray(BLOCK * b, BLOCK * (b + 1)).map(Math.abs);
    const size = Math.max(...sizes), halves = [0, 0];
    const roots = sizes.reduce((sum, v) => sum + Math.sqrt(v), 0);
    for (let i = 0; i < BLOCK; i++) {
      const e = BLOCK * b + i, at = placeOf(e, k, unit);
      const scaled = size ? row[e] / size * LARGEST : 0;
      const whole = Math.round(scaled);
      store(whole, at);
      store(Math.round((scaled - whole) / STEP_OF_REST), at + 2 * k);
      halves[i < BLOCK / 2 ? 0 : 1] += whole;
    }
    const outlier = Math.sqrt(size) * BLOCK > Math.sqrt(OUTLIER) * roots;
    const scale = size / LARGEST;
    const all = [outlier ? -scale : scale, ...halves, halves[0] + halves[1]];
    blocks.set(all, 4 * b);
  }
  return u32Tensor([1, words.length], words);
}

/** What a row means, and how far the sums of each block are off. */
export function roundedValues(
  words: Uint32Array<ArrayBuffer>,
  k: number,
  unit: number,
): { values: Float64Array; sumsOff: number[]; squares: Float32Array } {
  const { squares, planes, blocks } = partsOf(words, k);
  const values = new Float64Array(k), sumsOff: number[] = [];
  const integer = (at: number) => 128 * planes[at] + planes[at + k];
  for (let b = 0; b < k / BLOCK; b++) {
    const [scale, first, second, whole] = blocks.subarray(4 * b, 4 * b + 4);
    const sums = [0, 0];
    for (let i = 0; i < BLOCK; i++) {
      const e = BLOCK * b + i, at = placeOf(e, k, unit);
      const rest = scale < 0 ? integer(at + 2 * k) * STEP_OF_REST : 0;
      values[e] = (integer(at) + rest) * Math.abs(scale);
      sums[i < BLOCK / 2 ? 0 : 1] += integer(at);
    }
    sumsOff.push(first - sums[0], second - sums[1], whole - sums[0] - sums[1]);
  }
  return { values, sumsOff, squares };
}
