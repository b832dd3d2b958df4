import { formatNamed } from "../lib/formats/mod.ts";
import type { LinearTarget } from "../lib/dispatch/keys.ts";
import { tileBytes, tileDepth } from "../lib/dispatch/defaults.ts";
import {
  type Candidate,
  isPowerOf2,
  type Needs,
} from "../lib/dispatch/limits.ts";
import { chooseLinear } from "../lib/dispatch/linear.ts";
import { matrixToF32, toF32 } from "../lib/formats/tensor.ts";
import { BLOCKS, FLOATS, HALF_SUM, room, SUM } from "./case.ts";
import { linearCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import { BEFORE, type LinearCase, linearText } from "./linear_case.ts";

/** Applies `a` or `b` to a thread's block l, depending on which tile it belongs to. */
const perBlock = (a: string, b: string) => /* wgsl */ `
  @if (l + 1) * THREADS <= A_BLOCKS { ${a} } @else {
    @if STRIPS > 0 {
      if (block < A_BLOCKS) { ${a} }
    } @else {
      @if l * THREADS >= A_BLOCKS && (l + 1) * THREADS <= BLOCKS { ${b} } @else {
        if (block < A_BLOCKS) { ${a} } else if (block < BLOCKS) { ${b} }
      }
    }
  }`;

/** Repeats code for each of a thread's strips of b. */
const perStrip = (code: string) => /* wgsl */ `
  @unroll for (var s = 0; s < STRIP_LOADS; s++) {
    let strip = tid + s * THREADS;
    @if (s + 1) * THREADS <= STRIPS { ${code} } @else { if (strip < STRIPS) { ${code} } }
  }`;

/**
 * Which four steps of k, and which four rows or columns, a thread's block of a tile has:
 * those that are stored together lie in different banks of workgroup memory.
 */
const depthOf = (block: string) =>
  `(${block} % K_TOGETHER + ${block} / (K_TOGETHER * TOGETHER) % (BK / 4u / K_TOGETHER) * K_TOGETHER)`;
const placeOf = (block: string) =>
  `(${block} / K_TOGETHER % TOGETHER + ${block} / (BK / 4u * TOGETHER) * TOGETHER)`;

/**
 * Stores a 4 × 4 block from step `at` of k on, k outermost; `of(i)` has four steps of row
 * or column i. In f16, pairs of steps lie next to each other.
 */
const storeBlock = (
  tile: string,
  four: string,
  side: string,
  of: (i: number) => string,
) => {
  const transposed = ["x", "y", "z", "w"].map((c, i) =>
    `${tile}[at / UNROLL][at % UNROLL + ${i}u][${four}] = T(vec4(${
      [0, 1, 2, 3].map((i) => `${of(i)}.${c}`).join(", ")
    }));`
  );
  const pairs = ["xy", "zw"].map((c, k) =>
    [0, 1].map((h) =>
      `${tile}[at / UNROLL][at % UNROLL / 2u + ${k}u][place + ${h}u * ${side}] = T(vec4(${
        of(2 * h)
      }.${c}, ${of(2 * h + 1)}.${c}));`
    ).join("\n")
  );
  return /* wgsl */ `
    @if F16 {
      let four = ${four};
      let place = four / ${side} * 2u * ${side} + four % ${side};
      ${pairs.join("\n")}
    } @else { ${transposed.join("\n")} }`;
};

// A strip is a word of quants of each of four columns. Their factors are computed once for
// all strips of a unit, each by the thread that loaded its scales.
const beginStrip = /* wgsl */ `
  @unroll for (var i = 0; i < 4; i++) {
    let column = source_column(first_column, strip / (BK / 8u) * 4u + i);
    strip_begin[s * 4 + i] = offset.y / 8u + min(column, u.n - 1u) * (u.k / 8u) + strip % 4u;
  }`;

// Past the last column or k others are read, and what they yield is not stored or
// multiplied by zero.
const loadStrip = /* wgsl */ `
  @if WHOLE { let at = (k0 + strip % (BK / 8u) / 4u * 32u) / 8u; }
  @else { let at = min(k0 + strip % (BK / 8u) / 4u * 32u, u.k - 32u) / 8u; }
  @unroll for (var i = 0; i < 4; i++) { words[s * 4 + i] = b_words(strip_begin[s * 4 + i] + at); }`;

const storeStrip = /* wgsl */ `
  let first = strip % (BK / 8u) / 4u * 32u;
  let own = first / UNIT * BN + strip / (BK / 8u) * 4u;
  @split var raw: array<b_Raw, 4>;
  @unroll for (var i = 0; i < 4; i++) {
    raw[i] = b_raw(words[s * 4 + i], factor_tile[own + i], (k0 - BK + first) / 8u + strip % 4u);
  }
  @unroll for (var f = 0; f < 2; f++) {
    @split var four: array<vec4f, 4>;
    @unroll for (var i = 0; i < 4; i++) { four[i] = b_four[f](raw[i]); }
    let at = first + strip % 4u * 4u + f * 16u;
    ${storeBlock("b_tile", "strip / (BK / 8u)", "WIDE", (i) => `four[${i}]`)}
  }`;

/** Repeats code for each of the units whose factors a thread computes. */
const perFactors = (code: string) => /* wgsl */ `
  @unroll for (var s = 0; s < FACTOR_LOADS; s++) {
    let own = tid + s * THREADS;
    @if (s + 1) * THREADS <= FACTORS { ${code} } @else { if (own < FACTORS) { ${code} } }
  }`;

const loadScales = /* wgsl */ `
  let column = min(source_column(first_column, own % BN), u.n - 1u);
  scale_unit[s] = offset.y / UNIT + column * (u.k / UNIT) + min(k0 / UNIT + own / BN, u.k / UNIT - 1u);
  scales_of[s] = b_scale_words(scale_unit[s]);`;

const storeFactors =
  "factor_tile[own] = b_factors(scales_of[s], scale_unit[s]);";

const storeA = /* wgsl */ `
  let at = ${depthOf("block")} * 4u;
  ${
  storeBlock("a_tile", placeOf("block"), "HIGH", (i) => `next[l * 4 + ${i}]`)
}`;

const storeB = /* wgsl */ `
  let j = block - A_BLOCKS;
  @if B_BY_COLUMN {
    let at = ${depthOf("j")} * 4u;
    ${storeBlock("b_tile", placeOf("j"), "WIDE", (i) => `next[l * 4 + ${i}]`)}
  } @else {
    let at = j / (BN / 4u) * 4u;
    @unroll for (var i = 0; i < 4; i++) { b_tile[at / UNROLL][at % UNROLL + i][j % (BN / 4u)] = next[l * 4 + i]; }
  }`;

// WHOLE: no row of a or b ends within a tile of k, so loads need no check. Threads past
// the last row read that row again, and their results are not stored.
const beginA = /* wgsl */ `
  let row = first_row + ${placeOf("block")} * 4u;
  @unroll for (var i = 0; i < 4; i++) {
    begin[l * 4 + i] = (offset.x + min(row + i, u.m - 1u) * u.k) / 4u + ${
  depthOf("block")
};
  }`;

const beginB = /* wgsl */ `
  let j = block - A_BLOCKS;
  @unroll for (var i = 0; i < 4; i++) {
    @if B_BY_COLUMN {
      let column = source_column(first_column, ${placeOf("j")} * 4u + i);
      begin[l * 4 + i] = (offset.y + min(column, u.n - 1u) * u.k) / 4u + ${
  depthOf("j")
};
    } @else {
      let column = min(first_column + j % (BN / 4u) * 4u, u.n - 4u);
      begin[l * 4 + i] = (offset.y + (j / (BN / 4u) * 4u + i) * u.n + column) / 4u;
    }
  }`;

const loadA = /* wgsl */ `
  @unroll for (var i = 0; i < 4; i++) {
    @if WHOLE { next[l * 4 + i] = T(a_at(begin[l * 4 + i] + k4)); } @else {
      let k = k0 + ${depthOf("block")} * 4u;
      let row = first_row + ${placeOf("block")} * 4u + i;
      next[l * 4 + i] = T(a_span(offset.x + row * u.k + k, remaining(k, k_end, row < u.m)));
    }
  }`;

const loadB = /* wgsl */ `
  let j = block - A_BLOCKS;
  @unroll for (var i = 0; i < 4; i++) {
    @if B_BY_COLUMN {
      @if WHOLE { next[l * 4 + i] = T(b_at(begin[l * 4 + i] + k4)); } @else {
        let k = k0 + ${depthOf("j")} * 4u;
        let column = source_column(first_column, ${placeOf("j")} * 4u + i);
        next[l * 4 + i] = T(b_span(offset.y + column * u.k + k, remaining(k, k_end, column < u.n)));
      }
    } @else {
      @if WHOLE { next[l * 4 + i] = T(b_at(begin[l * 4 + i] + k4 * u.n)); } @else {
        let row = k0 + j / (BN / 4u) * 4u + i;
        let column = first_column + j % (BN / 4u) * 4u;
        next[l * 4 + i] = T(b_span(offset.y + row * u.n + column, remaining(column, u.n, row < k_end)));
      }
    }
  }`;

/**
 * UNROLL steps of k, from part `q` of the tile. A vector has sums of four rows, not of four
 * columns, and nothing calls fma: NVIDIA's compiler makes the fastest code of that, in this order
 * ("f32 gemm: sums along rows").
 */
const multiply = (q: string) => /* wgsl */ `
  @unroll for (var kk = 0; kk < UNROLL; kk++) {
    @unroll for (var i = 0; i < TM4; i++) { av[i] = a_tile[${q}][kk][i * HIGH + tm]; }
    @unroll for (var j = 0; j < TN4; j++) { bv[j] = b_tile[${q}][kk][j * WIDE + tn]; }
    @unroll for (var j = 0; j < TN4; j++) {
      @unroll for (var i = 0; i < TM4; i++) {
        @unroll for (var c = 0; c < 4; c++) { acc[(j * 4 + c) * TM4 + i] += bv[j][c] * av[i]; }
      }
    }
  }`;

/** UNROLL steps of k in f16, two at a time: no value is spread over a vector first. */
const multiplyPairs = (q: string) => /* wgsl */ `
  @unroll for (var kk = 0; kk < UNROLL / 2; kk++) {
    @unroll for (var i = 0; i < TM / 2; i++) { av[i] = a_tile[${q}][kk][i * HIGH + tm]; }
    @unroll for (var j = 0; j < TN / 2; j++) { bv[j] = b_tile[${q}][kk][j * WIDE + tn]; }
    @unroll for (var i = 0; i < TM / 2; i++) {
      @unroll for (var j = 0; j < TN / 2; j++) {
        sums[i * 2 * TN + j * 2] = fma(av[i].xy, bv[j].xy, sums[i * 2 * TN + j * 2]);
        sums[i * 2 * TN + j * 2 + 1] = fma(av[i].xy, bv[j].zw, sums[i * 2 * TN + j * 2 + 1]);
        sums[(i * 2 + 1) * TN + j * 2] = fma(av[i].zw, bv[j].xy, sums[(i * 2 + 1) * TN + j * 2]);
        sums[(i * 2 + 1) * TN + j * 2 + 1] = fma(av[i].zw, bv[j].zw, sums[(i * 2 + 1) * TN + j * 2 + 1]);
      }
    }
  }`;

/** Row `i * 4 + r` of a thread's sums, of its columns j * 4 … j * 4 + 3. */
const sumsOf = (j: string) =>
  `(@if F16 { acc[(i * 4 + r) * TN4 + ${j}] } @else { vec4f(${
    [0, 1, 2, 3].map((c) => `acc[((${j}) * 4 + ${c}) * TM4 + i][r]`).join(", ")
  }) })`;

/**
 * One BM × BN tile of `c = a · b` per workgroup, TM × TN per thread.
 *
 * What makes it fast under naga: UNROLL steps of k are unrolled in the text (unrolling
 * the whole tile runs fastest, unrolling less compiles faster); accumulators are named
 * vec4f variables; both tiles are in workgroup memory with k outermost, so that a thread
 * reads four rows or columns at once; and the next tile is fetched into registers while
 * this one is multiplied.
 *
 * batched_gemm.ts uses this code too, with offsets per head, and expert_gemm.ts, with
 * offsets per expert.
 */
export const TILE = /* wgsl */ `
@if F16 {
const A_STRIDE = BM / 2u + 1u;
const B_STRIDE = BN / 2u + 1u;
} @else {
const A_STRIDE = BM / 4u + 1u;
const B_STRIDE = BN / 4u + 1u;
}
// In f16, two steps of k of two rows or columns; in f32, four rows or columns.
@if F16 { alias T = vec4<f16>; } @else { alias T = vec4f; }
// Nested arrays, because naga checks every index: this way the checks of indices that
// depend on the thread are the same for every k.
var<workgroup> a_tile: array<array<array<T, A_STRIDE>, STEPS>, BK / UNROLL>;
var<workgroup> b_tile: array<array<array<T, B_STRIDE>, STEPS>, BK / UNROLL>;
@if STRIPS > 0 { var<workgroup> factor_tile: array<b_Factors, FACTORS>; }

fn remaining(begin: u32, size: u32, inside: bool) -> u32 {
  return select(0u, size - min(begin, size), inside);
}

// Column of b for column j of this workgroup's tile.
fn source_column(first: u32, j: u32) -> u32 {
  @if EPILOGUE == "swiglu" { return select(first + j, u.n / 2u + first + j - BN / 2u, j >= BN / 2u); }
  @else { return first + j; }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let first_row = wg.y * BM;
  let first_column = wg.x * (BN / COLUMNS_PER_OUTPUT);
  let offset = offsets(wg.z); // of a, b and c, in elements
  @if EXPERTS > 0 { if (skips(wg.z)) { return; } }
  @if QUADS {
    // Of four neighboring threads, two share rows and two share columns: workgroup memory
    // then serves a subgroup's reads at once.
    let tn = (tid >> 1u) % 2u + tid / 8u % (WIDE / 2u) * 2u;
    let tm = tid % 2u + (tid >> 2u) % 2u * 2u + tid / (4u * WIDE) * 4u;
  } @else {
    let tn = tid % WIDE;
    let tm = tid / WIDE;
  }
  @split var acc: array<vec4f, TM * TN4>;
  @split var next: array<T, LOADS * 4>;
  @if STRIPS > 0 {
    @split var words: array<b_Words, STRIP_LOADS * 4>;
    @split var strip_begin: array<u32, STRIP_LOADS * 4>;
    @split var scales_of: array<b_ScaleWords, FACTOR_LOADS>;
    @split var scale_unit: array<u32, FACTOR_LOADS>;
    ${perStrip(beginStrip)}
  }
  let splits = splits_of_k(groups);
  let k_split = (u.k + splits * BK - 1u) / (splits * BK) * BK;
  let k_begin = wg.z % splits * k_split;
  let k_end = min(u.k, k_begin + k_split);
  @if WHOLE {
    @split var begin: array<u32, LOADS * 4>;
    @unroll for (var l = 0; l < LOADS; l++) {
      let block = tid + l * THREADS;
      ${perBlock(beginA, beginB)}
    }
  }
  for (var k0 = k_begin; k0 < k_end + BK; k0 += BK) {
    if (k0 > k_begin) {
      workgroupBarrier();
      @unroll for (var l = 0; l < LOADS; l++) {
        let block = tid + l * THREADS;
        ${perBlock(storeA, storeB)}
      }
      @if STRIPS > 0 { ${perStrip(storeStrip)} }
      workgroupBarrier();
    }
    if (k0 < k_end) {
      let k4 = k0 / 4u;
      @unroll for (var l = 0; l < LOADS; l++) {
        let block = tid + l * THREADS;
        ${perBlock(loadA, loadB)}
      }
      @if STRIPS > 0 {
        ${perStrip(loadStrip)}
        ${perFactors(loadScales)}
      }
    }
    if (k0 > k_begin) {
      @if F16 {
        @split var av: array<T, TM / 2>;
        @split var bv: array<T, TN / 2>;
        // Sums of the even and of the odd steps of one tile of k.
        @split var sums: array<vec2<f16>, TM * TN>;
        @unroll for (var i = 0; i < TM * TN; i++) { sums[i] = vec2<f16>(); }
        @if UNROLL == BK { ${multiplyPairs("0")} }
        @else { for (var q = 0u; q < BK / UNROLL; q++) { ${
  multiplyPairs("q")
} } }
        @unroll for (var i = 0; i < TM * TN4; i++) {
          acc[i] += vec4f(T(sums[i * 4].x + sums[i * 4].y, sums[i * 4 + 1].x + sums[i * 4 + 1].y, sums[i * 4 + 2].x + sums[i * 4 + 2].y, sums[i * 4 + 3].x + sums[i * 4 + 3].y));
        }
      } @else {
        @split var av: array<T, TM4>;
        @split var bv: array<T, TN4>;
        @if UNROLL == BK { ${multiply("0")} }
        @else { for (var q = 0u; q < BK / UNROLL; q++) { ${multiply("q")} } }
      }
    }
    // Read after the next barrier; what it replaces was read before the last one.
    @if STRIPS > 0 { if (k0 < k_end) { ${perFactors(storeFactors)} } }
  }
  let columns = u.n / COLUMNS_PER_OUTPUT;
  @unroll for (var i = 0; i < TM4; i++) {
    @unroll for (var r = 0; r < 4; r++) {
      let row = first_row + i * (BM / TM4) + tm * 4u + r;
      @if SCALED { let scale = scales[offset.x / u.k + min(row, u.m - 1u)]; } @else { let scale = 1.0; }
      @if EPILOGUE == "swiglu" {
        // The left half of the tile holds gates, the right half the values they gate.
        @unroll for (var j = 0; j < TN4 / 2; j++) {
          let column = first_column + j * (BN / TN4) + tn * 4u;
          let gate = ${sumsOf("j")} * scale;
          let value = gate / (1.0 + exp(-gate)) * ${
  sumsOf("TN4 / 2 + j")
} * scale;
          c_store(offset.z + row * u.stride + u.column + column, remaining(column, columns, row < u.m), value);
        }
      } @else {
        @unroll for (var j = 0; j < TN4; j++) {
          let column = first_column + j * (BN / TN4) + tn * 4u;
          let at = offset.z + row * u.stride + u.column + column;
          let left = remaining(column, columns, row < u.m);
          let value = ${sumsOf("j")} * scale;
          @if EPILOGUE == "add" { c_store(at, left, c_span(at, left) + value); } @else { c_store(at, left, value); }
        }
      }
    }
  }
}`;

/** Constants of a tile. */
export const tileConstants = {
  BM: 64,
  BN: 64,
  BK: 16,
  TM: 4,
  TN: 8,
  EPILOGUE: "store",
  B_BY_COLUMN: 1,
  F16: 0,
  SCALED: 0,
  SPLITS: 1,
  UNROLL: 32,
  EXPERTS: 0,
};

/**
 * Maximum 4 × 4 blocks that a thread fetches while it multiplies. Not measured: in f32,
 * eight take 128 of about 256 registers, and the sums of 8 × 8 outputs another 64.
 */
const MOST_BLOCKS = 8;

const commonDivisor = (a: number, b: number): number =>
  b === 0 ? a : commonDivisor(b, a % b);

/** Derives the remaining constants of a tile. */
export function deriveTile(
  c: Readonly<Record<string, number | string>>,
  { k }: Readonly<Record<string, number>>,
) {
  const [BM, BN, BK, TM, TN] = ["BM", "BN", "BK", "TM", "TN"].map((x) =>
    Number(c[x])
  );
  if (c.EPILOGUE === "swiglu" && (TN < 8 || !c.B_BY_COLUMN)) {
    throw new Error(
      `Cannot gate (EPILOGUE "swiglu") with TN ${TN} and B_BY_COLUMN ${c.B_BY_COLUMN}: TN must be at least 8, B_BY_COLUMN 1`,
    );
  }
  if (c.F16 && !c.B_BY_COLUMN) {
    throw new Error(
      `Cannot multiply in f16 with B_BY_COLUMN ${c.B_BY_COLUMN}: it must be 1`,
    );
  }
  const byStrip = c.B_VIEW === "strip";
  const unit = byStrip ? formatNamed(String(c.B_DTYPE)).loads[0] : 0;
  if (byStrip && (BK % 32 || BK > 32 && BK % unit)) {
    throw new Error(
      `Cannot multiply by ${c.B_DTYPE} in tiles ${BK} deep: it must be 32 or a multiple of ${
        Math.max(32, unit)
      }`,
    );
  }
  const THREADS = (BM / TM) * (BN / TN);
  const aBlocks = BM / 4 * (BK / 4), bBlocks = BN / 4 * (BK / 4);
  const strips = byStrip ? bBlocks / 2 : 0;
  const factors = byStrip ? BN * Math.ceil(BK / unit) : 0;
  const blocks = aBlocks + (byStrip ? 0 : bBlocks);
  const steps = commonDivisor(BK, Number(c.UNROLL)); // must divide BK
  // In f32, eight lanes store at once; in f16, pairs of steps are apart enough.
  const apart = !c.F16 && BK % 8 === 0 && BM % 16 === 0 && BN % 16 === 0;
  return {
    THREADS,
    WIDE: BN / TN,
    HIGH: BM / TM,
    QUADS: BM / TM % 4 === 0 && BN / TN % 2 === 0 ? 1 : 0,
    K_TOGETHER: apart ? 2 : BK / 4,
    TOGETHER: apart ? 4 : 1,
    UNROLL: steps,
    STEPS: c.F16 ? steps / 2 : steps,
    TM4: TM / 4,
    TN4: TN / 4,
    A_BLOCKS: aBlocks,
    BLOCKS: blocks,
    LOADS: Math.ceil(blocks / THREADS),
    STRIPS: strips,
    STRIP_LOADS: Math.ceil(strips / THREADS),
    UNIT: unit,
    FACTORS: factors,
    FACTOR_LOADS: Math.ceil(factors / THREADS),
    WHOLE: k % BK === 0 && (c.A_VIEW === "vec4" || c.A_VIEW === "half") &&
        c.B_VIEW !== "scalar"
      ? 1
      : 0,
    COLUMNS_PER_OUTPUT: c.EPILOGUE === "swiglu" ? 2 : 1,
  };
}

/** `a · bᵀ`, in f16 if the largest weight is given. */
interface GemmCase extends LinearCase {
  largest?: number;
}

/** What a tile needs. */
export function tileNeeds(
  { swiglu, half, m, format }: LinearTarget,
  { BM, BN, BK, TM, TN }: Candidate,
): Needs {
  const threads = (BM / TM) * (BN / TN);
  const loads = Math.ceil((BM + BN) / 4 * (BK / 4) / threads);
  return {
    threads,
    bytes: tileBytes({ BM, BN, BK }, half, format),
    problem: [BM, BN, BK, TM, TN].some((size) => size % 4)
      ? "the sizes of a tile must be multiples of 4"
      : BK % tileDepth(format)
      ? `BK is ${BK}, must be a multiple of ${
        tileDepth(format)
      } for ${format.name}`
      : BM % TM || BN % TN || threads < 32 || !isPowerOf2(threads)
      ? `${threads} threads share a tile, must be a power of 2 and at least 32`
      : swiglu && TN < 8
      ? `TN is ${TN}, must be 8 or more: gates and what they gate are summed together`
      : loads > MOST_BLOCKS
      ? `${loads} blocks to load per thread, at most ${MOST_BLOCKS} fit registers`
      : BM > 2 * m
      ? `a tile of ${BM} rows for at most ${m}`
      : undefined,
  };
}

/**
 * Many rows times a matrix: `c = a · b`, the Linear layers of a prompt.
 *
 * B_BY_COLUMN 1: `b` is `[n, k]`, as checkpoints store weights; 0: `[k, n]`.
 * EPILOGUE "store": `c = …`, "add": `c += …` (residual), "swiglu": see gemv.ts.
 *
 * F16 1: multiplies in f16, and sums in f16 over the even and the odd ones of BK terms, in
 * f32 beyond. `a` is then f16 with a factor per row in `scales` (SCALED 1, see to_f16.ts), so that every
 * activation is in f16's range.
 *
 * SPLITS > 1 splits k if m × n alone is too small to fill a GPU. Each split writes m rows
 * of its own in `c`, which sum_splits.ts adds up.
 */
export const gemm = defineKernel<GemmCase>({
  name: "gemm",
  buffers: ({ B_BY_COLUMN, SCALED, SPLITS, C_FOURS, F16, B_HALF }) => ({
    a: `m k as ${F16 ? "half" : "span"}`,
    b: B_BY_COLUMN ? `n k as ${B_HALF ? "half" : "strip"}` : "k n as span",
    ...(SCALED ? { scales: "m" } : {}),
    c: `inout ${SPLITS === 1 ? "m" : "any"} any as ${
      C_FOURS ? "span" : "scalar"
    }`,
  }),
  // Rows of c are `stride` elements apart; the first result goes to column `column`.
  // C_FOURS 0: stride is a multiple of 4, but column or the number of columns is not.
  uniforms: { stride: "u32", column: "u32" },
  constants: { ...tileConstants, C_FOURS: 1, B_HALF: 0 },
  derive: deriveTile,
  tuning: {
    of: "linear",
    grid: {
      BM: [32, 64, 128],
      BN: [32, 64, 128],
      BK: [16, 32],
      TM: [4, 8],
      TN: [4, 8],
    },
    needs: tileNeeds,
  },
  grid: ({ m, n }, { BM, BN, SPLITS }) => [
    Math.ceil(n / BN),
    Math.ceil(m / BM),
    SPLITS,
  ],
  cost: (call) => linearCost(call, "a", "b"),
  body: `
fn offsets(z: u32) -> vec3u { return vec3u(0u, 0u, z * u.m * u.stride); }
fn splits_of_k(groups: vec3u) -> u32 { return groups.z; }
${TILE}`,
  cases: [
    ...FLOATS.flatMap((w) => [
      { m: 71, n: 37, k: 19, w },
      { m: 65, n: 1024, k: 1024, w }, // k_proj of Qwen3-0.6B
    ]),
    { m: 71, n: 74, k: 88, w: "bf16", epilogue: "add" },
    { m: 71, n: 74, k: 88, w: "bf16", epilogue: "swiglu" },
    { m: 71, n: 37, k: 1019, w: "f32" }, // long enough to be split
    ...BLOCKS.map((w) => ({ m: 71, n: 36, k: 512, w })),
    { m: 71, n: 74, k: 512, w: "q4_k", epilogue: "swiglu" },
    { m: 70, n: 1024, k: 1024, w: "bf16", largest: 0.5 },
    { m: 70, n: 132, k: 1024, w: "q4_k", largest: 0.5 },
    { m: 70, n: 132, k: 1024, w: "q6_k", largest: 0.5 },
  ],
  makeCase(given, { device, random, reference }) {
    const { m, n, k, w: dtype, largest, epilogue = "store" } = given;
    if (largest !== undefined && !device.f16) return undefined;
    const swiglu = epilogue === "swiglu", width = swiglu ? n / 2 : n;
    const format = formatNamed(dtype);
    const shape = { m, n, k, format, norm: false, swiglu, largest };
    const plain = { ...device, subgroupMatrices: undefined };
    const { constants, headroom, splits } = chooseLinear(shape, plain);
    const a = random.tensor(headroom ? "f16" : "f32", [m, k], headroom ?? 2);
    const b = random.matrix(dtype, [n, k], largest);
    const scales = random.tensor("f32", [m], 0.5, 1);
    const c = splits > 1
      ? room([splits * m, n])
      : room([m, width], epilogue === "add" ? BEFORE : NaN);
    return {
      what: linearText(given) + (headroom ? " in f16" : "") +
        (splits > 1 ? `, k in ${splits} splits` : ""),
      operands: { a, b, scales, c },
      constants: { ...constants, EPILOGUE: epilogue },
      uniforms: { stride: width, column: 0 },
      expected: () => {
        const rows = toF32(a), { data } = scales;
        if (headroom) {
          rows.forEach((v, i) => rows[i] = v * data[Math.floor(i / k)]);
        }
        const product = reference.linear(rows, matrixToF32(b), { m, n, k });
        return [{
          of: ({ c }) =>
            Float64Array.from({ length: m * width }, (_, i) => {
              let sum = 0;
              for (let s = 0; s < splits; s++) sum += c[s * m * width + i];
              return sum;
            }),
          ...reference.epilogue(epilogue, product, n, BEFORE),
          tolerance: headroom ? HALF_SUM : SUM,
        }];
      },
    };
  },
});
