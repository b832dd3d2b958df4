import type { LinearTarget } from "../lib/dispatch/keys.ts";
import {
  type Candidate,
  isPowerOf2,
  type Needs,
} from "../lib/dispatch/limits.ts";
import {
  chooseMatrices,
  LARGEST_HALF,
  LEAST_HALF_SQUARE,
  MATRIX,
  MATRIX_LANES,
  matrixTileBytes,
} from "../lib/dispatch/matrices.ts";
import { f16ToF32, f32Bits, f32ToF16Bits } from "../lib/dtype.ts";
import { formatNamed } from "../lib/formats/mod.ts";
import { matrixToF32, toF32 } from "../lib/formats/tensor.ts";
import {
  BLOCKS,
  type Buffers,
  type CaseRandom,
  EPS,
  type Expected,
  FLOATS,
  HALF_ROUNDED,
  halfNorms,
  type Result,
  room,
  rowSums,
  SUM,
  u32Tensor,
} from "./case.ts";
import { linearCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import { LEFT_OVERFLOWS } from "./heads.ts";
import { BEFORE, type LinearCase, linearText } from "./linear_case.ts";

/** Repeats code for each of the items of a tile that a thread loads. */
const perItem = (x: "A" | "B", code: string) => /* wgsl */ `
  @unroll for (var l = 0; l < ${x}_LOADS; l++) {
    let item = tid + l * THREADS;
    @if (l + 1) * THREADS <= ${x}_ITEMS { ${code} } @else { if (item < ${x}_ITEMS) { ${code} } }
  }`;

// What is past the last row or column repeats it and is not stored; a is zero past the end
// of k, where b is read again.
const beginA = /* wgsl */ `
  let row = min(first_row + item / (BK / 8u), u.m - 1u);
  a_begin[l] = row * u.k + item % (BK / 8u) * 8u;`;

const beginB = /* wgsl */ `
  let column = min(source_column(first_column, item / (BK / WIDE)), u.n - 1u);
  b_begin[l] = (first_held + column) * u.k + item % (BK / WIDE) * WIDE;`;

const loadA = /* wgsl */ `
  let k = k0 + item % (BK / 8u) * 8u;
  @if A_VIEW == "unit" {
    @if WHOLE { next_a[set * A_LOADS + l] = a_load((a_begin[l] + k0) / 8u); }
    @else { next_a[set * A_LOADS + l] = a_masked(a_load((a_begin[l] + k0 - k + min(k, u.k - 8u)) / 8u), k < k_end); }
  } @else {
    let at = a_begin[l] + k0;
    next_a[set * A_LOADS + l] = halves(a_span(at, remaining(k, k_end)), a_span(at + 4u, remaining(k + 4u, k_end)));
  }`;

const loadB = /* wgsl */ `
  let k = k0 + item % (BK / WIDE) * WIDE;
  @if B_VIEW == "unit" {
    @unroll for (var h = 0; h < B_PARTS; h++) {
      @if WHOLE { next_b[(set * B_LOADS + l) * B_PARTS + h] = b_load((b_begin[l] + k0) / B_UNIT + h); }
      @else { next_b[(set * B_LOADS + l) * B_PARTS + h] = b_load((b_begin[l] + k0 - k + min(k + h * B_UNIT, u.k - B_UNIT)) / B_UNIT); }
    }
  } @else {
    let at = b_begin[l] + k0;
    next_b[set * B_LOADS + l] = halves(b_span(at, remaining(k, k_end)), b_span(at + 4u, remaining(k + 4u, k_end)));
  }`;

const storeA = (set: string) => /* wgsl */ `
  let row = item / (BK / 8u);
  let at = item % (BK / 8u);
  tile[stage + at / SLICE * SLICE_BLOCKS + row / 16u][row % 16u * STRIDE + at % SLICE] = next_a[(${set}) * A_LOADS + l];`;

const storeB = (set: string) => /* wgsl */ `
  let column = item / (BK / WIDE);
  let begin = item % (BK / WIDE) * (WIDE / 8u);
  let block = stage + begin / SLICE * SLICE_BLOCKS + BM / 16u + column / 16u;
  let at = column % 16u * STRIDE + begin % SLICE;
  @unroll for (var e = 0; e < WIDE / 8; e++) {
    @if B_VIEW != "unit" || B_DTYPE == "f16" { tile[block][at + e] = next_b[(${set}) * B_LOADS + l]; }
    @else {
      @if B_PARTS == 2 { tile[block][at + e] = halves(b_four[0](next_b[((${set}) * B_LOADS + l) * 2]), b_four[0](next_b[((${set}) * B_LOADS + l) * 2 + 1])); }
      @else { tile[block][at + e] = halves(b_four[2 * e](next_b[(${set}) * B_LOADS + l]), b_four[2 * e + 1](next_b[(${set}) * B_LOADS + l])); }
    }
  }`;

/** Asks for the tile at k0, which a `set` of registers holds. */
const load = `${perItem("A", loadA)}\n${perItem("B", loadB)}`;
/** Puts the tile of a set into workgroup memory. */
const store = (set: string) =>
  `${perItem("A", storeA(set))}\n${perItem("B", storeB(set))}`;

// The index of a block depends on the subgroup, offsets within it are constants: so the
// compiler's check of bounds is one minimum, and strides stay constants.
const multiply = /* wgsl */ `
  @unroll for (var kk = 0; kk < SLICE / 2; kk++) {
    @split var left: array<Left, FM>;
    @unroll for (var i = 0; i < FM; i++) {
      left[i] = subgroupMatrixLoad<Left, row_major>(&tile[stage + my_rows + i], kk * 2u, STRIDE);
    }
    @unroll for (var j = 0; j < FN; j++) {
      {
        let right = subgroupMatrixLoad<Right, col_major>(&tile[stage + my_columns + j], kk * 2u, STRIDE);
        @unroll for (var i = 0; i < FM; i++) {
          acc[i * FN + j] = subgroupMatrixMultiplyAccumulate(left[i], right, acc[i * FN + j]);
        }
      }
    }
  }`;

/** The tile of a `set`, in workgroup memory, gives way to that of the next one. */
const exchange = /* wgsl */ `
  @if STAGES == 2 { stage = BLOCKS - stage; } @else { workgroupBarrier(); }
  ${store("(set + 1) % SETS")}
  workgroupBarrier();`;

// Sums go through workgroup memory, OUT matrices of a subgroup at a time, because what
// follows depends on rows and columns, and which lane has which is not defined.
const finish = /* wgsl */ `
  let columns = u.n / COLUMNS_PER_OUTPUT;
  let own = subgroup * OUT;
  let others = SM * SN * OUT; // from one slice's sums to the next one's
  @unroll for (var i = 0; i < FM; i++) {
    @unroll for (var p = 0; p < FN / OUT; p++) {
      workgroupBarrier();
      @unroll for (var f = 0; f < OUT; f++) {
        subgroupMatrixStore<row_major>(&tile[own + f], 0u, acc[i * FN + p * OUT + f], STRIDE);
      }
      workgroupBarrier();
      for (var e = 0u; e < 16u * FOURS; e += SK * LANES) {
        let four = min(e + slice * LANES + lane, 16u * FOURS - 1u);
        let r = four / FOURS;
        let x = four % FOURS;
        let row = first_row + (place / SN) * (BM / SM) + i * 16u + r;
        let column = first_column +
          ((place % SN) * (BN / SN) + p * OUT * 16u) / COLUMNS_PER_OUTPUT + x * 4u;
        let at = r * STRIDE + x % 4u;
        @if EPILOGUE == "swiglu" {
          let block = place * OUT + x / 4u * 2u;
          var gate = bitcast<vec4f>(tile[block][at]);
          var value = bitcast<vec4f>(tile[block + 1u][at]);
          @unroll for (var q = 1; q < SK; q++) {
            gate += bitcast<vec4f>(tile[block + q * others][at]);
            value += bitcast<vec4f>(tile[block + q * others + 1u][at]);
          }
        } @else {
          let block = place * OUT + x / 4u;
          var value = bitcast<vec4f>(tile[block][at]);
          @unroll for (var q = 1; q < SK; q++) { value += bitcast<vec4f>(tile[block + q * others][at]); }
        }
        @if NORM { let scale = factors[row - first_row]; }
        @else { @if SCALED { let scale = scales[min(row, u.m - 1u)]; } @else { let scale = f32(ROW_UNIT); } }
        value *= scale;
        @if EPILOGUE == "swiglu" {
          gate *= scale;
          value *= gate / (1.0 + exp(-gate));
        }
        let to = split * u.m * u.stride + row * u.stride + u.column + column;
        let inside = row < u.m && e + slice * LANES + lane < 16u * FOURS;
        let left = select(0u, remaining(column, columns), inside);
        @if EPILOGUE == "add" { value += c_span(to, left); }
        @if RESULT_UNIT && EPILOGUE == "add" {
          let normed = value * nextNorm_span(column, left);
          let mine = subgroup * LANES + lane; // and neighbors have the same row
          squared_parts[mine] = vec2f(dot(value, value), dot(normed, normed));
          workgroupBarrier();
          if (left > 0u && x % 4u == 0u) {
            let squared = squared_parts[mine] + squared_parts[mine + 1u] + squared_parts[mine + 2u] + squared_parts[mine + 3u];
            let part = 2u * (row * (columns / 16u) + column / 16u);
            squares[part] = squared.x;
            squares[part + 1u] = squared.y;
          }
          @if 16 * FOURS > SK * LANES { workgroupBarrier(); }
          let made = normed / f32(RESULT_UNIT);
          nextRows_store(to, left, made);
        } @else { @if RESULT_UNIT {
          value /= f32(RESULT_UNIT);
          let made = value;
        } }
        @if RESULT_UNIT {
          if (left > 0u && !all(abs(made) <= vec4f(${LARGEST_HALF}.0))) { misfit(); }
        }
        c_store(to, left, value);
      }
    }
  }`;

/** The code of a tile. expert_gemm_matrix.ts uses it too, with a matrix per tile. */
export const MATRIX_TILE = /* wgsl */ `
alias Left = subgroup_matrix_left<f16, 16, 16>;
alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Sum = subgroup_matrix_result<f32, 16, 16>;
// For each slice of k, blocks of 16 rows of a, then of 16 columns of b, BK / SK halves of each
// and 8 of padding, which spreads the rows of a block over all banks.
var<workgroup> tile: array<array<vec4u, 16u * STRIDE>, BLOCKS * STAGES>;

@if NORM || RESULT_UNIT && EPILOGUE == "add" { var<workgroup> squared_parts: array<vec2f, THREADS>; }
@if NORM { var<workgroup> factors: array<f32, BM>; }
@if NORM || RESULT_UNIT {
fn misfit() {
  flags[0] = 1u;
  flags[2] = ${LEFT_OVERFLOWS.halves}u;
}
}

fn remaining(begin: u32, size: u32) -> u32 { return size - min(begin, size); }

fn halves(low: vec4f, high: vec4f) -> vec4u {
  return vec4u(pack2x16float(low.xy), pack2x16float(low.zw), pack2x16float(high.xy), pack2x16float(high.zw));
}

@if B_VIEW == "unit" { alias NextB = b_Raw; } @else { alias NextB = vec4u; }

// Column of b for column j of this workgroup's tile. With SwiGLU, gates and what they gate
// take turns, 16 each, so that a subgroup has both.
fn source_column(first: u32, j: u32) -> u32 {
  @if EPILOGUE == "swiglu" {
    return first + j / 32u * 16u + j % 16u + select(0u, u.n / 2u, j % 32u >= 16u);
  } @else { return first + j; }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32,
        @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32) {
  @if EXPERTS > 0 {
    let expert = groups[wg.z] - u.first;
    if (expert >= EXPERTS) { return; } // b does not hold it
    let split = 0u;
    let first_row = wg.z * BM;
    let first_held = u.base + expert * u.n; // its first row of b
  } @else {
    let split = wg.z % SPLITS;
    let first_row = (wg.z / SPLITS * BAND + wg.x) * BM;
    if (first_row >= u.m) { return; } // the last band may have fewer tiles
    let first_held = 0u;
  }
  let first_column = wg.y * (BN / COLUMNS_PER_OUTPUT);
  // Subgroups share the sums of a tile, and SK of them the products of a sum.
  let place = subgroup % (SM * SN);
  let slice = subgroup / (SM * SN);
  let my_rows = slice * SLICE_BLOCKS + (place / SN) * FM;
  let my_columns = slice * SLICE_BLOCKS + BM / 16u + (place % SN) * FN;
  let k_split = (u.k + SPLITS * BK - 1u) / (SPLITS * BK) * BK;
  let k_begin = split * k_split;
  let k_end = min(u.k, k_begin + k_split);
  let k_last = (k_end - 1u) / BK * BK;
  @split var acc: array<Sum, FM * FN>;
  @split var next_a: array<vec4u, SETS * A_LOADS>;
  @split var next_b: array<NextB, SETS * B_LOADS * B_PARTS>;
  @split var a_begin: array<u32, A_LOADS>;
  @split var b_begin: array<u32, B_LOADS>;
  ${perItem("A", beginA)}
  ${perItem("B", beginB)}
  var stage = 0u;
  var k0: u32;
  @if NORM {
    @split var parts: array<vec2f, NORM_LOADS>;
    let norm_row = min(first_row + tid % BM, u.m - 1u) * (u.parts / 2u);
    @unroll for (var l = 0; l < NORM_LOADS; l++) {
      let part = 2u * (norm_row + min(tid / BM + l * (THREADS / BM), u.parts / 2u - 1u));
      parts[l] = vec2f(normSquares[part], normSquares[part + 1u]);
    }
  }
  @unroll for (var set = 0; set < SETS; set++) {
    k0 = min(k_begin + set * BK, k_last); // a split may have no tile
    ${load}
  }
  @if NORM {
    var squared = vec2f();
    @unroll for (var l = 0; l < NORM_LOADS; l++) {
      squared += select(vec2f(), parts[l], tid / BM + l * (THREADS / BM) < u.parts / 2u);
    }
    squared_parts[tid] = squared;
  }
  ${store("0")}
  workgroupBarrier();
  @if NORM { if (tid < BM) {
    var squared = vec2f();
    @unroll for (var part = 0; part < THREADS / BM; part++) { squared += squared_parts[part * BM + tid]; }
    factors[tid] = f32(ROW_UNIT) * inverseSqrt(squared.x / f32(u.k) + bitcast<f32>(EPS));
    // So small a row has lost digits.
    if (squared.x > 0.0 && squared.y < f32(u.k) * f32(ROW_UNIT * ROW_UNIT) * ${LEAST_HALF_SQUARE}) { misfit(); }
  } }
  for (var at = k_begin + SETS * BK; at < k_end; at += SETS * BK) {
    @unroll for (var set = 0; set < SETS; set++) {
      k0 = at + set * BK;
      ${load}
      ${multiply}
      ${exchange}
    }
  }
  @unroll for (var set = 0; set < SETS; set++) {
    // A split may have no tile.
    @if SPLITS > 1 { if (k_begin < k_end) { ${multiply} } } @else { ${multiply} }
    @if set + 1 < SETS { ${exchange} }
  }
  ${finish}
}`;

/** Constants of a tile. */
export const matrixConstants = {
  BM: 128,
  BN: 128,
  BK: 32,
  SM: 2,
  SN: 2,
  SK: 1,
  STAGES: 2,
  AHEAD: 1,
  BAND: 16,
  EPILOGUE: "store",
  SCALED: 0,
  NORM: 0,
  EPS: 0, // the bits of an f32
  ROW_UNIT: 1,
  RESULT_UNIT: 0,
  SPLITS: 1,
  C_FOURS: 1,
  F16: 1,
  EXPERTS: 0,
};

/** Matrices that a subgroup stores at a time: as many as its share of the tile holds. */
function storedAtOnce(
  fragments: number,
  room: number,
  swiglu: boolean,
): number {
  for (let n = fragments; n > 1; n--) {
    if (n <= room && fragments % n === 0 && !(swiglu && n % 2)) return n;
  }
  return 1;
}

/** Derives the remaining constants of a tile. */
export function deriveMatrix(
  c: Readonly<Record<string, number | string>>,
  { k, parts = 0 }: Readonly<Record<string, number>>,
) {
  const [BM, BN, BK] = [c.BM, c.BN, c.BK].map(Number);
  const [SM, SN, SK, STAGES] = [c.SM, c.SN, c.SK, c.STAGES].map(Number);
  const swiglu = c.EPILOGUE === "swiglu", byUnit = c.B_VIEW === "unit";
  const FM = BM / SM / MATRIX, FN = BN / SN / MATRIX;
  const unit = byUnit ? Number(c.B_UNIT) : 8, wide = Math.max(8, unit);
  const THREADS = SM * SN * SK * MATRIX_LANES;
  const SLICE = BK / SK / 8, SLICE_BLOCKS = (BM + BN) / MATRIX;
  const OUT = storedAtOnce(FN, SLICE_BLOCKS * STAGES / (SM * SN), swiglu);
  if (c.A_DTYPE !== "f16") {
    throw new Error(
      `Cannot multiply ${c.A_DTYPE} by tensor cores: it must be f16`,
    );
  }
  // Sums in f32 take the place of a slice, so it is two matrices deep.
  const matrices = [FM, FN, SLICE / 2].every(Number.isInteger) && SLICE >= 4;
  if (!matrices || swiglu && OUT % 2 || BK / SK % wide) {
    throw new Error(
      `Cannot multiply in tiles of ${BM} × ${BN} × ${BK} by ${SM} × ${SN} × ${SK} subgroups: each must have whole matrices of 16 × 16, two or more deep${
        swiglu ? ", an even number in a row," : ""
      } and whole loads of ${wide}`,
    );
  }
  const aItems = BM * BK / 8, bItems = BN * BK / wide;
  const aLoads = Math.ceil(aItems / THREADS);
  const bLoads = Math.ceil(bItems / THREADS), B_PARTS = wide / unit;
  return {
    THREADS,
    LANES: MATRIX_LANES,
    BLOCKS: SK * SLICE_BLOCKS,
    SLICE_BLOCKS,
    SLICE,
    STRIDE: SLICE + 1,
    FM,
    FN,
    OUT,
    FOURS: (swiglu ? 2 : 4) * OUT,
    NORM_LOADS: Math.ceil(parts / 2 * BM / THREADS),
    A_ITEMS: aItems,
    A_LOADS: aLoads,
    WIDE: wide,
    B_PARTS,
    B_ITEMS: bItems,
    B_LOADS: bLoads,
    COLUMNS_PER_OUTPUT: swiglu ? 2 : 1,
    WHOLE: k % BK === 0 && c.A_VIEW === "unit" && byUnit ? 1 : 0,
    SETS: setsOf(
      Number(c.AHEAD),
      k / BK / Number(c.SPLITS),
      aLoads + bLoads * B_PARTS,
    ),
  };
}

/** Loads on their way that fit a thread's registers, four each, beside sums and addresses. */
const MOST_LOADS = 48;

/**
 * Tiles on their way, at most `ahead`: they take turns, so they divide the `tiles` of a split.
 * Each takes `loads` of a thread.
 */
function setsOf(ahead: number, tiles: number, loads: number): number {
  for (let sets = ahead; sets > 1; sets--) {
    if (tiles % sets === 0 && sets * loads <= MOST_LOADS) return sets;
  }
  return 1;
}

/** What a tile needs. */
export function matrixNeeds(
  { swiglu, m, format }: LinearTarget,
  { BM, BN, BK, SM, SN, SK = 1, STAGES }: Candidate,
): Needs {
  const [unit] = format.loads, threads = SM * SN * SK * MATRIX_LANES;
  const [FM, FN] = [BM / SM / MATRIX, BN / SN / MATRIX];
  const depth = SK * Math.max(2 * MATRIX, unit);
  const room = (BM + BN) / MATRIX * STAGES / (SM * SN);
  return {
    threads,
    bytes: matrixTileBytes({ BM, BN, BK, SK, STAGES }),
    problem: BK % depth
      ? `BK is ${BK}, must be a multiple of ${depth}`
      : ![FM, FN].every(Number.isInteger) || !isPowerOf2(threads)
      ? `${SM} × ${SN} subgroups share ${BM} × ${BN} sums, each must have whole matrices of 16 × 16`
      : FM * FN > 16
      ? `${FM * FN} matrices per subgroup, at most 16 fit registers`
      : storedAtOnce(FN, room, swiglu) % (swiglu ? 2 : 1) || room < 1
      ? "no room for a subgroup's sums"
      : STAGES > 2
      ? `STAGES is ${STAGES}, must be 1 or 2`
      : BM > 2 * Math.max(64, m)
      ? `a tile of ${BM} rows for at most ${m}`
      : undefined,
  };
}

/** `a · bᵀ` with a in f16. */
interface MatrixCase extends LinearCase {
  /** What `a` is counted in, if not by scales. */
  rowUnit?: number;
  /** Whether `a` is also to be normed, by a factor per row. */
  normed?: boolean;
  /** What results are counted in, as f16. */
  resultUnit?: number;
  /** Whether some do not fit. */
  overflows?: boolean;
  /** Whether the first row of `a` is too small. */
  small?: boolean;
}

/**
 * Many rows times a matrix, by tensor cores: `c = a · bᵀ`, one BM × BN tile per workgroup,
 * whose SM × SN subgroups multiply matrices of 16 × 16 (WGSL's subgroup matrices, a draft:
 * https://github.com/gpuweb/gpuweb/blob/main/proposals/subgroup-matrix.md). `a` is f16,
 * scaled by rows into its range (to_f16.ts), and b becomes f16 on its way into workgroup
 * memory, whatever its format; products are exact and summed in f32.
 *
 * With SK, as many subgroups share the products of each sum, and add up theirs at the end: a few
 * rows have few tiles, and so more loads in flight for each.
 *
 * The next tiles are fetched into registers while this one is multiplied: as many as AHEAD
 * says, or fewer, so that they divide those of a split and fit registers. The last ones are
 * multiplied behind the loop, by code that need not ask whether another follows. The more are on
 * their way, the longer is the code; in large models, whose weights displace it from the caches
 * between two uses, that takes longer to fetch (bench/log.md, "16 rows: tiles that are on their
 * way"). STAGES 2 keeps two tiles in workgroup memory: one barrier per tile instead of two, and
 * less room for others.
 *
 * Tiles of BAND rows run first for all columns, so that b is read from memory once per
 * band. EPILOGUE and SPLITS: see gemm.ts.
 *
 * Instead of scales, all rows of `a` can be counted in units of ROW_UNIT, and be normed but for
 * the factor (NORM), which follows from sums of squares. Such rows are the results of this
 * kernel with RESULT_UNIT: those of SwiGLU instead of f32, those that are added to a residual
 * beside it, with the sums of squares of both. What does not fit, or is so small that digits are
 * lost, raises the cache's flags (heads.ts).
 *
 * What limits it, for 128 × 128 × 32 by 2 × 2 subgroups: each loads 8 KiB from workgroup
 * memory for 64 × 64 × 32 products, so a multiprocessor's 128 bytes per cycle take 256
 * cycles for a tile, and 128 more to store it. The tile's products take 413 cycles on an
 * H200, at the 62 % of its peak that instructions of this kind reach. From the L2 cache
 * come 16 KiB per tile, of about 25 bytes per cycle: 655 cycles, 24 KiB and 491 with 128 ×
 * 256. So about 370 TFLOP/s, 490 with the larger tile, are the most to be expected. Not
 * measured.
 */
export const gemmMatrix = defineKernel<MatrixCase>({
  name: "gemmMatrix",
  buffers: ({ SCALED, NORM, SPLITS, C_FOURS, RESULT_UNIT, EPILOGUE }) => ({
    a: "m k as unit",
    b: "n k as unit",
    ...(NORM ? { normSquares: "m parts" } : SCALED ? { scales: "m" } : {}),
    ...(NORM || RESULT_UNIT ? { flags: "inout any as raw" } : {}),
    ...(RESULT_UNIT && EPILOGUE === "add"
      ? {
        nextNorm: "n as vec4",
        nextRows: "out m n as vec4",
        squares: "out any",
      }
      : {}),
    c: `inout ${SPLITS === 1 ? "m" : "any"} any as ${
      C_FOURS ? "span" : "scalar"
    }`,
  }),
  uniforms: { stride: "u32", column: "u32" },
  constants: matrixConstants,
  derive: deriveMatrix,
  tuning: {
    of: "linear",
    grid: {
      BM: [64, 128, 256],
      BN: [64, 128, 256],
      BK: [32, 64],
      SM: [1, 2, 4],
      SN: [1, 2, 4],
      STAGES: [1, 2],
    },
    needs: matrixNeeds,
  },
  grid: ({ m, n }, { BM, BN, BAND, SPLITS }) => {
    const rows = Math.ceil(m / BM);
    return [
      Math.min(rows, BAND),
      Math.ceil(n / BN),
      Math.ceil(rows / BAND) * SPLITS,
    ];
  },
  cost: (call) => linearCost(call, "a", "b"),
  body: MATRIX_TILE,
  cases: [
    ...FLOATS.flatMap((w) => [
      { m: 41, n: 37, k: 24, w },
      { m: 33, n: 1024, k: 1024, w }, // k_proj of Qwen3-0.6B
    ]),
    { m: 41, n: 74, k: 88, w: "bf16", epilogue: "add" },
    { m: 41, n: 74, k: 88, w: "bf16", epilogue: "swiglu" },
    ...BLOCKS.map((w) => ({ m: 41, n: 36, k: 512, w })),
    { m: 41, n: 74, k: 512, w: "q4_k", epilogue: "swiglu" },
    // Few rows have other tiles.
    { m: 13, n: 74, k: 152, w: "bf16", epilogue: "add" },
    { m: 16, n: 74, k: 512, w: "q4_k", epilogue: "swiglu" },
    { m: 20, n: 37, k: 512, w: "q6_k" },
    { m: 13, n: 80, k: 152, w: "bf16", epilogue: "swiglu", resultUnit: 16 },
    { m: 13, n: 80, k: 152, w: "bf16", epilogue: "add", resultUnit: 16 },
    {
      m: 41,
      n: 80,
      k: 152,
      w: "bf16",
      epilogue: "add",
      rowUnit: 1,
      resultUnit: 16,
    },
    { m: 16, n: 74, k: 1024, w: "bf16", epilogue: "add", rowUnit: 4 },
    { m: 11, n: 80, k: 152, w: "bf16", rowUnit: 16, normed: true },
    { m: 11, n: 80, k: 152, w: "bf16", rowUnit: 4, normed: true, small: true },
    { m: 41, n: 80, k: 152, w: "f16", rowUnit: 16 },
    {
      m: 41,
      n: 80,
      k: 152,
      w: "f16",
      rowUnit: 65536,
      resultUnit: 1,
      overflows: true,
    },
  ],
  makeCase(given, { device, random, reference }) {
    const { m, n, k, w: dtype, epilogue = "store" } = given;
    const { rowUnit, normed, resultUnit, overflows, small } = given;
    const swiglu = epilogue === "swiglu", width = swiglu ? n / 2 : n;
    const format = formatNamed(dtype), largest = 1;
    const shape = { m, n, k, format, norm: false, swiglu, largest };
    const choice = chooseMatrices(shape, device);
    if (typeof choice !== "object" || !device.f16) return undefined;
    const { headroom } = choice, whole = rowUnit ?? resultUnit; // k has no splits
    const { splits, constants } = whole
      ? { splits: 1, constants: { ...choice.constants, SPLITS: 1 } }
      : choice;
    const a = random.tensor("f16", [m, k], rowUnit ? 8 : headroom);
    const b = random.matrix(dtype, [n, k], largest);
    const scales = random.tensor("f32", [m], 2 ** -14, 2 ** -13);
    if (rowUnit) scales.data.fill(rowUnit);
    const { normSquares, factors } = normsOf(given, random);
    if (normed) factors.forEach((factor, row) => scales.data[row] *= factor);
    const rounds = resultUnit !== undefined && epilogue !== "add";
    const c = splits > 1
      ? room([splits * m, n])
      : rounds
      ? random.tensor("f16", [m, width], 0, NaN)
      : room([m, width], epilogue === "add" ? BEFORE : NaN);
    const nextNorm = random.tensor("bf16", [n], 0.5, 1);
    return {
      what: caseText(given, splits),
      operands: {
        ...{ a, b, scales, c, normSquares, nextNorm },
        flags: u32Tensor([4], new Uint32Array(4)),
        nextRows: random.tensor("f16", [m, n], 0, NaN),
        squares: room([m, 2 * Math.ceil(n / 16)]),
      },
      constants: {
        ...constants,
        EPILOGUE: epilogue,
        ...(normed ? { NORM: 1, EPS: f32Bits(EPS) } : {}),
        ...(rowUnit ? { SCALED: 0, ROW_UNIT: rowUnit } : {}),
        ...(resultUnit ? { RESULT_UNIT: resultUnit } : {}),
      },
      uniforms: { stride: width, column: 0 },
      expected: () => {
        const raised = overflows || small ? [1, 0, 2, 0] : [0, 0, 0, 0];
        const flags = { of: "flags", values: Float64Array.from(raised) };
        const told = resultUnit || normed ? [{ ...flags, tolerance: 0 }] : [];
        if (overflows || small) return told;
        const rows = toF32(a), { data } = scales;
        rows.forEach((v, i) => rows[i] = v * data[Math.floor(i / k)]);
        const w = matrixToF32(b).map((v) => f16ToF32(f32ToF16Bits(v)));
        const product = reference.linear(rows, w, { m, n, k });
        const result = reference.epilogue(epilogue, product, n, BEFORE);
        const left = resultUnit && !rounds
          ? leftFor(result, toF32(nextNorm), { n, unit: resultUnit })
          : [];
        return [
          {
            of: ({ c }) =>
              Float64Array.from({ length: m * width }, (_, i) => {
                let sum = 0;
                for (let s = 0; s < splits; s++) sum += c[s * m * width + i];
                return sum * (rounds ? resultUnit : 1);
              }),
            ...result,
            ...(rounds
              ? {
                norms: halfNorms(result.norms, resultUnit),
                tolerance: HALF_ROUNDED,
              }
              : { tolerance: SUM }),
          },
          ...told,
          ...left,
        ];
      },
    };
  },
});

/** Sums of squares of rows, and of those times the norm's weights; and the rows' factors. */
function normsOf(
  { m, k, rowUnit = 1, small }: MatrixCase,
  random: CaseRandom,
) {
  const normSquares = random.tensor("f32", [m, 14], 1, 2);
  if (small) normSquares.data.fill(2 ** -31 * rowUnit ** 2, 0, 14);
  const own = toF32(normSquares).filter((_, i) => i % 2 === 0);
  const factors = rowSums("x", 7)({ x: own })
    .map((sum) => 1 / Math.sqrt(sum / k + EPS));
  return { normSquares, factors };
}

function caseText(given: MatrixCase, splits: number): string {
  const { rowUnit, normed, resultUnit, overflows, small } = given;
  return linearText(given) + ", by tensor cores" +
    (splits > 1 ? `, k in ${splits} splits` : "") +
    (rowUnit ? `, in units of ${rowUnit}` : "") + (normed ? ", normed" : "") +
    (resultUnit ? `, made f16 in units of ${resultUnit}` : "") +
    (overflows ? ", which overflow" : "") + (small ? ", of a small row" : "");
}

/** What the kernel leaves for a matmul that norms these rows. */
function leftFor(
  result: Expected,
  norm: Float32Array,
  { n, unit }: { n: number; unit: number },
): Result[] {
  const { values } = result;
  const sizes = values.map((v, i) => Math.max(Math.abs(v), result.norms[i]));
  const squared = (x: Float64Array) =>
    rowSums("x", n)({ x: x.map((v) => v * v) });
  return [
    {
      of: ({ nextRows }) => Array.from(nextRows, (v) => v * unit),
      values: values.map((v, i) => v * norm[i % n]),
      norms: halfNorms(sizes.map((v, i) => v * Math.abs(norm[i % n])), unit),
      tolerance: HALF_ROUNDED,
    },
    ...[false, true].map((normed): Result => {
      const by = (i: number) => normed ? norm[i % n] : 1;
      const values = squared(result.values.map((v, i) => v * by(i)));
      const norms = squared(sizes.map((v, i) => v * by(i)));
      const of = ({ squares }: Buffers) =>
        rowSums("x", n / 16)({
          x: Array.from(squares).filter((_, i) => i % 2 === Number(normed)),
        });
      return { of, values, norms, tolerance: SUM };
    }),
  ];
}
