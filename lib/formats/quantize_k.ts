/**
 * Quantisers of k-quants. The file format leaves open which scales are best; here, each
 * group of a block gets the scale, or scale and minimum, with the least squared error:
 * values are rounded with several scales, and for the quants of each, the best scale and
 * minimum follow from linear least squares. Then the block's scales are rounded to
 * multiples of `d`, and its values once more.
 *
 * @module
 */
import { f16ToF32, f32ToF16Bits } from "../dtype.ts";

type Quantize = (values: Float32Array, into: Uint8Array) => void;

const BLOCK = 256;

const AGAIN = 3;
/** How often a group's scale and minimum are found again once they are rounded. */
const REFINEMENTS = 3;

/** Scales and minimums of a block's groups, before they are rounded. */
const scales = new Float64Array(16), mins = new Float64Array(16);
/** Both as small integers, and the block's quants. */
const scaleInts = new Int32Array(16), minInts = new Int32Array(16);
const quants = new Uint8Array(BLOCK);

/** Distances from a group's smallest value. */
const above = new Float64Array(32);

/**
 * Finds scale and minimum for `x ≈ scale · q - min`, with q from 0 to `top` and neither
 * below 0. They become entry `g` of `scales` and `mins`.
 *
 * @param from,to,step of the tried differences of the largest quant from `top`
 */
function fitFromMin(
  values: Float32Array,
  begin: number,
  size: number,
  g: number,
  top: number,
  tried: Float64Array,
): void {
  let least = 0, most = -Infinity, sum = 0;
  for (let i = begin; i < begin + size; i++) {
    const v = values[i];
    if (v < least) least = v;
    if (v > most) most = v;
  }
  scales[g] = 0;
  mins[g] = -least;
  const range = most - least;
  if (!(range > 0)) return;
  let squares = 0;
  for (let i = 0; i < size; i++) {
    const t = values[begin + i] - least;
    above[i] = t;
    sum += t;
    squares += t * t;
  }
  // Of t ≈ s · q + c, where c may not exceed -least.
  let best = Infinity, bestScale = 0, bestOffset = 0;
  for (let n = 0; n < tried.length + AGAIN; n++) {
    const isNew = n < tried.length;
    const by = isNew ? (top + tried[n]) / range : 1 / bestScale;
    const plus = isNew ? 0.5 : 0.5 - bestOffset * by;
    const before = best;
    let q1 = 0, q2 = 0, tq = 0;
    for (let i = 0; i < size; i++) {
      const t = above[i];
      let q = (t * by + plus) | 0;
      if (q > top) q = top;
      q1 += q;
      q2 += q * q;
      tq += t * q;
    }
    if (q2 === 0) continue;
    // 0 if all quants are equal, which leaves c open.
    const determinant = size * q2 - q1 * q1;
    let s = (size * tq - q1 * sum) / determinant;
    let c = (q2 * sum - q1 * tq) / determinant;
    let error: number;
    if (determinant === 0 || c > -least) {
      c = -least;
      s = (tq - c * q1) / q2;
      error = squares - 2 * s * tq - 2 * c * sum + s * s * q2 +
        2 * s * c * q1 + size * c * c;
    } else error = squares - s * tq - c * sum;
    if (error < best) {
      best = error;
      bestScale = s;
      bestOffset = c;
    }
    if (!isNew && best === before) break;
  }
  scales[g] = bestScale;
  mins[g] = -least - bestOffset;
}

/**
 * Finds the scale for `x ≈ scale · q` with q from `-half` to `half - 1`, of either sign.
 * It becomes entry `g` of `scales`.
 */
function fitAroundZero(
  values: Float32Array,
  begin: number,
  size: number,
  g: number,
  half: number,
  tried: Float64Array,
): void {
  let most = 0, largest = 0;
  for (let i = begin; i < begin + size; i++) {
    const v = values[i], a = Math.abs(v);
    if (a > most) {
      most = a;
      largest = v;
    }
  }
  scales[g] = 0;
  if (most === 0) return;
  let best = 0;
  for (let n = 0; n < tried.length + AGAIN; n++) {
    const isNew = n < tried.length;
    const by = isNew ? -(half + tried[n]) / largest : 1 / scales[g];
    const before = best;
    let q2 = 0, xq = 0;
    for (let i = begin; i < begin + size; i++) {
      const x = values[i];
      let q = Math.floor(x * by + 0.5);
      q = q < -half ? -half : q >= half ? half - 1 : q;
      q2 += q * q;
      xq += x * q;
    }
    // The error is Σx² - (Σxq)² / Σq².
    if (q2 > 0 && xq * xq > best * q2) {
      best = xq * xq / q2;
      scales[g] = xq / q2;
    }
    if (!isNew && best === before) break;
  }
}

/** Tried differences of the largest quant from the format's. */
const tries = (from: number, to: number, count: number): Float64Array =>
  Float64Array.from(
    { length: count },
    (_, i) => from + (to - from) * i / (count - 1),
  );

/**
 * Writes a block's scale as f16 and returns that. A subnormal one has few bits: it is
 * rounded away from zero, so that no group needs a multiple beyond the largest.
 */
function putHalf(into: Uint8Array, at: number, value: number): number {
  let bits = f32ToF16Bits(value);
  const isSubnormal = (bits & 0x7c00) === 0;
  if (isSubnormal && Math.abs(f16ToF32(bits)) < Math.abs(value)) bits++;
  into[at] = bits & 255;
  into[at + 1] = bits >>> 8;
  return f16ToF32(bits);
}

/** Rounds values to multiples of `d`, from `least` to `most`; to 0 if that is 0. */
function roundTo(
  d: number,
  from: Float64Array,
  count: number,
  into: Int32Array,
  least: number,
  most: number,
): void {
  for (let g = 0; g < count; g++) {
    const n = d === 0 ? 0 : Math.round(from[g] / d);
    into[g] = Math.min(most, Math.max(least, n));
  }
}

/** Sums over a group that was rounded last. */
let error = 0, sumX = 0, sumQ = 0, sumQQ = 0, sumXQ = 0;

/** Rounds a group's values with a scale and a minimum; sets the sums. */
function roundGroup(
  values: Float32Array,
  begin: number,
  size: number,
  scale: number,
  min: number,
  top: number,
  into: Uint8Array,
  to: number,
): void {
  const by = scale === 0 ? 0 : 1 / scale;
  let e = 0, x1 = 0, q1 = 0, q2 = 0, xq = 0;
  for (let i = 0; i < size; i++) {
    const x = values[begin + i];
    let q = Math.floor((x + min) * by + 0.5);
    q = q < 0 ? 0 : q > top ? top : q;
    into[to + i] = q;
    const miss = x - scale * q + min;
    e += miss * miss;
    x1 += x;
    q1 += q;
    q2 += q * q;
    xq += x * q;
  }
  error = e;
  sumX = x1;
  sumQ = q1;
  sumQQ = q2;
  sumXQ = xq;
}

/** Quants of a group with other scales than those it has. */
const other = new Uint8Array(32);

/**
 * Rounds the block's values: `x ≈ d · scale · q - dmin · min`. What rounding did to the
 * scales is made up for: for a group's quants, least squares gives scale and minimum
 * again, and what they round to is used if its error is smaller.
 *
 * @param most the largest integer for a scale or a minimum
 */
function roundFromMin(
  values: Float32Array,
  begin: number,
  size: number,
  d: number,
  dmin: number,
  top: number,
  most: number,
): void {
  const limited = (n: number) => n < 0 ? 0 : n > most ? most : Math.round(n);
  for (let g = 0, at = 0; at < BLOCK; g++, at += size) {
    let s = scaleInts[g], m = minInts[g];
    const from = begin + at;
    roundGroup(values, from, size, d * s, dmin * m, top, quants, at);
    for (let n = 0; n < REFINEMENTS; n++) {
      const determinant = size * sumQQ - sumQ * sumQ;
      if (d === 0 || determinant <= 0) break;
      const before = error;
      const scale = (size * sumXQ - sumQ * sumX) / determinant;
      const s2 = limited(scale / d);
      const m2 = dmin === 0
        ? 0
        : limited((d * s2 * sumQ - sumX) / (size * dmin));
      if (s2 === s && m2 === m) break;
      roundGroup(values, from, size, d * s2, dmin * m2, top, other, 0);
      if (error >= before) break;
      s = s2;
      m = m2;
      for (let i = 0; i < size; i++) quants[at + i] = other[i];
    }
    scaleInts[g] = s;
    minInts[g] = m;
  }
}

/** Rounds the block's values: `x ≈ d · scale · (q - half)`; scales are refined as above. */
function roundAroundZero(
  values: Float32Array,
  begin: number,
  d: number,
  half: number,
  most: number,
): void {
  const top = 2 * half - 1;
  for (let g = 0, at = 0; at < BLOCK; g++, at += 16) {
    let s = scaleInts[g];
    const from = begin + at;
    roundGroup(values, from, 16, d * s, half * d * s, top, quants, at);
    for (let n = 0; n < REFINEMENTS && d !== 0; n++) {
      const before = error;
      const q2 = sumQQ - 2 * half * sumQ + 16 * half * half;
      // A scale that became 0 may have been too small by half, for the other groups' sake.
      const scale = s === 0 || q2 === 0
        ? Math.sign(scales[g] / d)
        : Math.round((sumXQ - half * sumX) / q2 / d);
      const s2 = Math.min(most, Math.max(-most - 1, scale));
      if (s2 === s) break;
      roundGroup(values, from, 16, d * s2, half * d * s2, top, other, 0);
      if (error >= before) break;
      s = s2;
      for (let i = 0; i < 16; i++) quants[at + i] = other[i];
    }
    scaleInts[g] = s;
  }
}

/** The largest of the first scales, or minimums. */
function largestOf(from: Float64Array, count: number): number {
  let most = 0;
  for (let g = 0; g < count; g++) if (from[g] > most) most = from[g];
  return most;
}

/** The first 16 scales' value that is largest without its sign. */
function farthestFromZero(): number {
  let far = 0;
  for (const scale of scales) {
    if (Math.abs(scale) > Math.abs(far)) far = scale;
  }
  return far;
}

/** Q4_K and Q5_K: scales and minimums of six bits for groups of 32. */
const sixBits = (top: 15 | 31, tried: Float64Array): Quantize => {
  const bytes = top === 15 ? 144 : 176;
  return (values, into) => {
    for (let i = 0, at = 0; i < values.length; i += BLOCK, at += bytes) {
      for (let g = 0; g < 8; g++) {
        fitFromMin(values, i + 32 * g, 32, g, top, tried);
      }
      const d = putHalf(into, at, largestOf(scales, 8) / 63);
      const dmin = putHalf(into, at + 2, largestOf(mins, 8) / 63);
      roundTo(d, scales, 8, scaleInts, 0, 63);
      roundTo(dmin, mins, 8, minInts, 0, 63);
      roundFromMin(values, i, 32, d, dmin, top, 63);
      for (let g = 0; g < 4; g++) {
        const s = scaleInts[g + 4], m = minInts[g + 4];
        into[at + 4 + g] = scaleInts[g] | (s >>> 4) << 6;
        into[at + 8 + g] = minInts[g] | (m >>> 4) << 6;
        into[at + 12 + g] = (s & 15) | (m & 15) << 4;
      }
      if (top === 31) putBits(into, at + 16, 4);
      for (let g = 0, to = at + bytes - 128; g < BLOCK; g += 64) {
        for (let j = g; j < g + 32; j++) {
          into[to++] = (quants[j] & 15) | (quants[j + 32] & 15) << 4;
        }
      }
    }
  };
};

/** Packs bit `bit` of all quants: bit g of byte l is that of element l of group g. */
function putBits(into: Uint8Array, at: number, bit: number): void {
  for (let l = 0; l < 32; l++) {
    let bits = 0;
    for (let g = 0; g < 8; g++) bits |= (quants[32 * g + l] >>> bit & 1) << g;
    into[at + l] = bits;
  }
}

/** Packs the low two bits of all quants: each half has four groups in 32 bytes. */
function putPairs(into: Uint8Array, at: number): void {
  for (let half = 0; half < BLOCK; half += 128) {
    for (let j = half; j < half + 32; j++) {
      into[at++] = (quants[j] & 3) | (quants[j + 32] & 3) << 2 |
        (quants[j + 64] & 3) << 4 | (quants[j + 96] & 3) << 6;
    }
  }
}

/** Q2_K: scales and minimums of four bits for groups of 16. */
const q2_k = (tried: Float64Array): Quantize => (values, into) => {
  for (let i = 0, at = 0; i < values.length; i += BLOCK, at += 84) {
    for (let g = 0; g < 16; g++) {
      fitFromMin(values, i + 16 * g, 16, g, 3, tried);
    }
    const d = putHalf(into, at + 80, largestOf(scales, 16) / 15);
    const dmin = putHalf(into, at + 82, largestOf(mins, 16) / 15);
    roundTo(d, scales, 16, scaleInts, 0, 15);
    roundTo(dmin, mins, 16, minInts, 0, 15);
    roundFromMin(values, i, 16, d, dmin, 3, 15);
    for (let g = 0; g < 16; g++) into[at + g] = scaleInts[g] | minInts[g] << 4;
    putPairs(into, at + 16);
  }
};

/** Q3_K: scales of six bits, of either sign, for groups of 16. */
const q3_k = (tried: Float64Array): Quantize => (values, into) => {
  for (let i = 0, at = 0; i < values.length; i += BLOCK, at += 110) {
    for (let g = 0; g < 16; g++) {
      fitAroundZero(values, i + 16 * g, 16, g, 4, tried);
    }
    const d = putHalf(into, at + 108, farthestFromZero() / -32);
    roundTo(d, scales, 16, scaleInts, -32, 31);
    roundAroundZero(values, i, d, 4, 31);
    into.fill(0, at + 96, at + 108);
    for (let g = 0; g < 16; g++) {
      const bits = scaleInts[g] + 32;
      into[at + 96 + g % 8] |= (bits & 15) << (g < 8 ? 0 : 4);
      into[at + 104 + g % 4] |= (bits >>> 4) << 2 * (g >>> 2);
    }
    putBits(into, at, 2);
    putPairs(into, at + 32);
  }
};

/** Q6_K: scales of eight bits, of either sign, for groups of 16. */
const q6_k = (tried: Float64Array): Quantize => (values, into) => {
  for (let i = 0, at = 0; i < values.length; i += BLOCK, at += 210) {
    for (let g = 0; g < 16; g++) {
      fitAroundZero(values, i + 16 * g, 16, g, 32, tried);
    }
    const d = putHalf(into, at + 208, farthestFromZero() / -128);
    roundTo(d, scales, 16, scaleInts, -128, 127);
    roundAroundZero(values, i, d, 32, 127);
    for (let g = 0; g < 16; g++) into[at + 192 + g] = scaleInts[g];
    for (let half = 0; half < 2; half++) {
      for (let l = 0; l < 32; l++) {
        const j = 128 * half + l, to = at + 64 * half + l;
        const [a, b] = [quants[j], quants[j + 32]];
        const [c, e] = [quants[j + 64], quants[j + 96]];
        into[to] = (a & 15) | (c & 15) << 4;
        into[to + 32] = (b & 15) | (e & 15) << 4;
        into[at + 128 + 32 * half + l] = a >>> 4 | (b >>> 4) << 2 |
          (c >>> 4) << 4 | (e >>> 4) << 6;
      }
    }
  }
};

/** The quantisers by the names of their formats. */
export const quantizeK: readonly (readonly [string, Quantize])[] = [
  ["q2_k", q2_k(tries(-1.4, 0.4, 7))],
  ["q3_k", q3_k(tries(-1.4, 0.4, 7))],
  ["q4_k", sixBits(15, tries(-1.4, 0.4, 7))],
  ["q5_k", sixBits(31, tries(-1.4, 0.4, 7))],
  ["q6_k", q6_k(tries(-1.4, 0.4, 7))],
];
