/**
 * A row that one kernel rounds to integers for the next, gemvInt8: WGSL that rounds, and the
 * same on the CPU.
 *
 * In units of 16 bytes, a row of `k` elements has a sum of squares of each block of 16, before
 * it was normed; then four planes of bytes; then of each block its scale and its sum. An
 * element is `128 · high + low` times the scale, of 15 bits: the first two planes. Beside an
 * outlier that would not do: the scale of such a block is negative, and to its integers
 * belongs what rounding left, in the same way in the last two planes, in steps of
 * {@linkcode STEP_OF_REST}. Its sum is without that.
 *
 * @module
 */
import { ROUNDED_BLOCK } from "../lib/dispatch/shapes.ts";
import { type CpuTensor, toF32 } from "../lib/formats/tensor.ts";
import { u32Tensor } from "./case.ts";
import { IS_NAN, LARGEST, LEAST } from "./int8_case.ts";

/** What a step of the rest is of one of the integers. */
export const STEP_OF_REST = 1 / (2 * LARGEST);
/**
 * A block whose largest value is so many times the mean size of its values has outliers. The
 * mean is that of fourth roots, to the fourth power, in which few outliers do not hide one
 * another: here each of six beside small values is 50 times as large. The largest of 16 random
 * numbers is usually four times as large as their mean, and of products of two, twelve times.
 */
const OUTLIER = 28;
/** Planes of bytes. */
export const ROUNDED_PLANES = 4;

/**
 * WGSL: `round_four(four)` rounds four elements of a block, of which four neighboring lanes
 * have all. It returns their bytes in each plane, and the block's scale and sum.
 */
export const ROUND_FOUR = /* wgsl */ `
${IS_NAN}
fn halves_of(whole: vec4i) -> vec2u {
  let high = (whole + vec4i(64)) >> vec4u(7u);
  return vec2u(pack4xI8(high), pack4xI8(whole - (high << vec4u(7u))));
}
fn planes_of(scaled: vec4f) -> vec4u {
  let whole = round(scaled);
  return vec4u(halves_of(vec4i(whole)), halves_of(vec4i(round((scaled - whole) * ${
  1 / STEP_OF_REST
}.0))));
}
fn roots_of(size: vec4f) -> f32 { return dot(sqrt(sqrt(size)), vec4f(1.0)); }
/** The factor of a block's elements, and its scale, from its largest size and the sum of roots. */
fn scales_of(size: f32, roots: f32) -> vec2f {
  let scale = size / ${LARGEST}.0;
  let signed = select(scale, -scale, sqrt(sqrt(size)) * ${
  ROUNDED_BLOCK / OUTLIER ** 0.25
} > roots);
  return vec2f(select(0.0, ${LARGEST}.0 / size, size > ${LEAST}), select(signed, roots, is_nan(roots)));
}
fn sum_of(planes: vec4u) -> f32 {
  return f32((dot4I8Packed(0x01010101u, planes.x) << 7u) + dot4I8Packed(0x01010101u, planes.y));
}
struct Rounded { planes: vec4u, block: vec2f }
fn round_four(four: vec4f) -> Rounded {
  let each = abs(four);
  var size = max(max(each.x, each.y), max(each.z, each.w));
  var roots = roots_of(each);
  @unroll for (var b = 0; b < 2; b++) {
    size = max(size, subgroupShuffleXor(size, 1u << b));
    roots += subgroupShuffleXor(roots, 1u << b);
  }
  let scales = scales_of(size, roots);
  let planes = planes_of(four * scales.x);
  var sum = sum_of(planes);
  @unroll for (var b = 0; b < 2; b++) { sum += subgroupShuffleXor(sum, 1u << b); }
  return Rounded(planes, vec2f(scales.y, sum));
}`;

/**
 * WGSL: `left_put(four, made)` stores what {@linkcode ROUND_FOUR} made of the four elements
 * from `4 · four` on in the buffer `left`, a row of LEFT_BLOCKS blocks. Every lane of a block
 * calls it. `left_square(four, squared)` stores the sum of squares of their block, and
 * `left_end()`, which one lane calls, zeros behind those of the last block.
 */
export const LEFT = /* wgsl */ `
const LEFT_BEGIN = (LEFT_BLOCKS + 3u) / 4u;
fn left_put(four: u32, made: Rounded) {
  let block = four / 4u;
  @unroll for (var p = 0; p < ${ROUNDED_PLANES}; p++) {
    left[LEFT_BEGIN + p * LEFT_BLOCKS + block][four % 4u] = made.planes[p];
  }
  if (four % 4u < 2u) {
    left[LEFT_BEGIN + ${ROUNDED_PLANES}u * LEFT_BLOCKS + block / 2u][block % 2u * 2u + four % 4u] =
      bitcast<u32>(select(made.block.x, made.block.y, four % 4u == 1u));
  }
}
fn left_square(four: u32, squared: f32) {
  if (four % 4u == 0u) { left[four / 16u][four / 4u % 4u] = bitcast<u32>(squared); }
}
fn left_end() {
  for (var i: u32 = LEFT_BLOCKS; i < 4u * LEFT_BEGIN; i++) { left[i / 4u][i % 4u] = 0u; }
}`;

/**
 * WGSL, beside {@linkcode ROUND_FOUR}: `round_block(a, b, c, d)` rounds a block that one lane
 * has.
 */
export const ROUND_BLOCK = /* wgsl */ `
struct RoundedBlock { planes: array<vec4u, 4>, block: vec2f }
fn round_block(a: vec4f, b: vec4f, c: vec4f, d: vec4f) -> RoundedBlock {
  let most = max(max(abs(a), abs(b)), max(abs(c), abs(d)));
  let size = max(max(most.x, most.y), max(most.z, most.w));
  let roots = roots_of(abs(a)) + roots_of(abs(b)) + roots_of(abs(c)) + roots_of(abs(d));
  let scales = scales_of(size, roots);
  let made = array(planes_of(a * scales.x), planes_of(b * scales.x), planes_of(c * scales.x), planes_of(d * scales.x));
  let sum = sum_of(made[0]) + sum_of(made[1]) + sum_of(made[2]) + sum_of(made[3]);
  return RoundedBlock(
    array(
      vec4u(made[0].x, made[1].x, made[2].x, made[3].x),
      vec4u(made[0].y, made[1].y, made[2].y, made[3].y),
      vec4u(made[0].z, made[1].z, made[2].z, made[3].z),
      vec4u(made[0].w, made[1].w, made[2].w, made[3].w)),
    vec2f(scales.y, sum));
}`;

/** Blocks of a row, units of 16 bytes of its sums of squares, and words of all. */
export function roundedSizes(
  k: number,
): { blocks: number; squares: number; words: number } {
  const blocks = Math.ceil(k / ROUNDED_BLOCK), squares = Math.ceil(blocks / 4);
  const units = squares + ROUNDED_PLANES * blocks + Math.ceil(blocks / 2);
  return { blocks, squares, words: 4 * units };
}

/** Views of a row in memory: sums of squares, planes, and two numbers of each block. */
function partsOf(words: Uint32Array<ArrayBuffer>, k: number) {
  const { blocks, squares } = roundedSizes(k), { buffer } = words;
  const at = 16 * squares, end = at + ROUNDED_PLANES * k;
  return {
    squares: new Float32Array(buffer, 0, 4 * squares),
    planes: new Int8Array(buffer, at, ROUNDED_PLANES * k),
    blocks: new Float32Array(buffer, end, 2 * blocks),
  };
}

/** Rounds a row; `squares` are of each block. */
export function roundRow(
  x: CpuTensor,
  k: number,
  squares: ArrayLike<number> = [],
): CpuTensor {
  const words = new Uint32Array(roundedSizes(k).words), row = toF32(x);
  const { squares: sums, planes, blocks } = partsOf(words, k);
  sums.set(Array.from(squares));
  for (let b = 0; b < k / ROUNDED_BLOCK; b++) {
    const begin = ROUNDED_BLOCK * b;
    const own = row.subarray(begin, begin + ROUNDED_BLOCK);
    const size = Math.max(...own.map(Math.abs));
    const roots = own.reduce((sum, v) => sum + Math.abs(v) ** 0.25, 0);
    const outlier = (size / OUTLIER) ** 0.25 * ROUNDED_BLOCK > roots;
    const store = (whole: number, at: number) => {
      const high = whole + 64 >> 7;
      planes[at] = high;
      planes[at + k] = whole - 128 * high;
    };
    let sum = 0;
    own.forEach((v, i) => {
      const scaled = size ? v / size * LARGEST : 0, whole = Math.round(scaled);
      store(whole, begin + i);
      store(Math.round((scaled - whole) / STEP_OF_REST), begin + i + 2 * k);
      sum += whole;
    });
    const scale = size / LARGEST;
    blocks.set([outlier ? -scale : scale, sum], 2 * b);
  }
  return u32Tensor([1, words.length], words);
}

/** What a row means, and how far the sum of each block is off. */
export function roundedValues(
  words: Uint32Array<ArrayBuffer>,
  k: number,
): { values: Float64Array; sumsOff: number[]; squares: Float32Array } {
  const { squares, planes, blocks } = partsOf(words, k);
  const values = new Float64Array(k), sumsOff: number[] = [];
  const integer = (at: number) => 128 * planes[at] + planes[at + k];
  for (let b = 0; b < k / ROUNDED_BLOCK; b++) {
    const [scale, sum] = blocks.subarray(2 * b, 2 * b + 2);
    let own = 0;
    for (let e = ROUNDED_BLOCK * b; e < ROUNDED_BLOCK * (b + 1); e++) {
      const rest = scale < 0 ? integer(e + 2 * k) * STEP_OF_REST : 0;
      values[e] = (integer(e) + rest) * Math.abs(scale);
      own += integer(e);
    }
    sumsOff.push(sum - own);
  }
  return { values, sumsOff, squares };
}

/** What {@linkcode stepsOff} may be: half a step, with what f32 rounds off a value before. */
export const HALF_A_STEP = 0.51;

/**
 * How many steps a row is off from `row`. Beside an outlier, they are those of the rest, or of
 * f32, which is coarser for large values. A NaN must be in the block that has one, and nowhere
 * else.
 */
export function stepsOff(
  words: Uint32Array<ArrayBuffer>,
  row: ArrayLike<number>,
): Float64Array {
  const k = row.length, { values } = roundedValues(words, k);
  const { blocks } = partsOf(words, k), all = Float64Array.from(row);
  return all.map((value, i) => {
    const b = Math.floor(i / ROUNDED_BLOCK), scale = blocks[2 * b];
    const own = all.subarray(ROUNDED_BLOCK * b, ROUNDED_BLOCK * (b + 1));
    if (own.some(isNaN)) return isNaN(values[i]) ? 0 : NaN;
    const size = own.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
    if (size === 0) return values[i];
    const step = size / LARGEST;
    const least = scale < 0
      ? step * STEP_OF_REST + Math.abs(value) * 2 ** -21
      : step;
    return (values[i] - value) / least;
  });
}
