import type { LinearTarget } from "../lib/dispatch/keys.ts";
import {
  type Candidate,
  isPowerOf2,
  type Needs,
} from "../lib/dispatch/limits.ts";
import {
  chooseMatrices,
  MATRIX,
  MATRIX_LANES,
  matrixTileBytes,
} from "../lib/dispatch/matrices.ts";
import { f16ToF32, f32ToF16Bits } from "../lib/dtype.ts";
import { formatNamed } from "../lib/formats/mod.ts";
import { matrixToF32, toF32 } from "../lib/formats/tensor.ts";
import { BLOCKS, FLOATS, room, SUM } from "./case.ts";
import { linearCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
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
    @if WHOLE { next_a[l] = a_load((a_begin[l] + k0) / 8u); }
    @else { next_a[l] = a_masked(a_load((a_begin[l] + k0 - k + min(k, u.k - 8u)) / 8u), k < k_end); }
  } @else {
    let at = a_begin[l] + k0;
    next_a[l] = halves(a_span(at, remaining(k, k_end)), a_span(at + 4u, remaining(k + 4u, k_end)));
  }`;

const loadB = /* wgsl */ `
  let k = k0 + item % (BK / WIDE) * WIDE;
  @if B_VIEW == "unit" {
    @unroll for (var h = 0; h < B_PARTS; h++) {
      @if WHOLE { next_b[l * B_PARTS + h] = b_load((b_begin[l] + k0) / B_UNIT + h); }
      @else { next_b[l * B_PARTS + h] = b_load((b_begin[l] + k0 - k + min(k + h * B_UNIT, u.k - B_UNIT)) / B_UNIT); }
    }
  } @else {
    let at = b_begin[l] + k0;
    next_b[l] = halves(b_span(at, remaining(k, k_end)), b_span(at + 4u, remaining(k + 4u, k_end)));
  }`;

const storeA = /* wgsl */ `
  let row = item / (BK / 8u);
  tile[stage + row / 16u][row % 16u * STRIDE + item % (BK / 8u)] = next_a[l];`;

const storeB = /* wgsl */ `
  let column = item / (BK / WIDE);
  let block = stage + BM / 16u + column / 16u;
  let at = column % 16u * STRIDE + item % (BK / WIDE) * (WIDE / 8u);
  @unroll for (var e = 0; e < WIDE / 8; e++) {
    @if B_VIEW != "unit" || B_DTYPE == "f16" { tile[block][at + e] = next_b[l]; }
    @else {
      @if B_PARTS == 2 { tile[block][at + e] = halves(b_four[0](next_b[l * 2]), b_four[0](next_b[l * 2 + 1])); }
      @else { tile[block][at + e] = halves(b_four[2 * e](next_b[l]), b_four[2 * e + 1](next_b[l])); }
    }
  }`;

const load = `${perItem("A", loadA)}\n${perItem("B", loadB)}`;
const store = `${perItem("A", storeA)}\n${perItem("B", storeB)}`;

// The index of a block depends on the subgroup, offsets within it are constants: so the
// compiler's check of bounds is one minimum, and strides stay constants.
const multiply = /* wgsl */ `
  @unroll for (var kk = 0; kk < BK / 16; kk++) {
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

// Sums go through workgroup memory, OUT matrices of a subgroup at a time, because what
// follows depends on rows and columns, and which lane has which is not defined.
const finish = /* wgsl */ `
  let columns = u.n / COLUMNS_PER_OUTPUT;
  let own = subgroup * OUT;
  @unroll for (var i = 0; i < FM; i++) {
    @unroll for (var p = 0; p < FN / OUT; p++) {
      workgroupBarrier();
      @unroll for (var f = 0; f < OUT; f++) {
        subgroupMatrixStore<row_major>(&tile[own + f], 0u, acc[i * FN + p * OUT + f], STRIDE);
      }
      workgroupBarrier();
      for (var e = 0u; e < 16u * FOURS; e += LANES) {
        let r = (e + lane) / FOURS;
        let x = (e + lane) % FOURS;
        let row = first_row + (subgroup / SN) * (BM / SM) + i * 16u + r;
        let column = first_column +
          ((subgroup % SN) * (BN / SN) + p * OUT * 16u) / COLUMNS_PER_OUTPUT + x * 4u;
        let at = r * STRIDE + x % 4u;
        @if EPILOGUE == "swiglu" {
          var gate = bitcast<vec4f>(tile[own + x / 4u * 2u][at]);
          var value = bitcast<vec4f>(tile[own + x / 4u * 2u + 1u][at]);
        } @else { var value = bitcast<vec4f>(tile[own + x / 4u][at]); }
        @if SCALED { value *= scales[min(row, u.m - 1u)]; }
        @if EPILOGUE == "swiglu" {
          @if SCALED { gate *= scales[min(row, u.m - 1u)]; }
          value *= gate / (1.0 + exp(-gate));
        }
        let to = split * u.m * u.stride + row * u.stride + u.column + column;
        let left = select(0u, remaining(column, columns), row < u.m);
        @if EPILOGUE == "add" { value += c_span(to, left); }
        c_store(to, left, value);
      }
    }
  }`;

/** The code of a tile. expert_gemm_matrix.ts uses it too, with a matrix per tile. */
export const MATRIX_TILE = /* wgsl */ `
alias Left = subgroup_matrix_left<f16, 16, 16>;
alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Sum = subgroup_matrix_result<f32, 16, 16>;
// Blocks of 16 rows of a, then of 16 columns of b, BK halves of each and 8 of padding, which
// spreads the rows of a block over all banks.
var<workgroup> tile: array<array<vec4u, 16u * STRIDE>, BLOCKS * STAGES>;

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
  let my_rows = (subgroup / SN) * FM;
  let my_columns = BM / 16u + (subgroup % SN) * FN;
  let k_split = (u.k + SPLITS * BK - 1u) / (SPLITS * BK) * BK;
  let k_begin = split * k_split;
  let k_end = min(u.k, k_begin + k_split);
  let k_last = (k_end - 1u) / BK * BK;
  @split var acc: array<Sum, FM * FN>;
  @split var next_a: array<vec4u, A_LOADS>;
  @split var next_b: array<NextB, B_LOADS * B_PARTS>;
  @split var a_begin: array<u32, A_LOADS>;
  @split var b_begin: array<u32, B_LOADS>;
  ${perItem("A", beginA)}
  ${perItem("B", beginB)}
  var stage = 0u;
  var k0 = min(k_begin, k_last); // a split may have no tile
  ${load}
  ${store}
  workgroupBarrier();
  // Without branches, which cost more than fetching the last tile again.
  for (var at = k_begin; at < k_end; at += BK) {
    k0 = min(at + BK, k_last);
    ${load}
    ${multiply}
    @if STAGES == 2 { stage = BLOCKS - stage; } @else { workgroupBarrier(); }
    ${store}
    workgroupBarrier();
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
  STAGES: 2,
  BAND: 16,
  EPILOGUE: "store",
  SCALED: 0,
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
  { k }: Readonly<Record<string, number>>,
) {
  const [BM, BN, BK, SM, SN, STAGES] = ["BM", "BN", "BK", "SM", "SN", "STAGES"]
    .map((name) => Number(c[name]));
  const swiglu = c.EPILOGUE === "swiglu", byUnit = c.B_VIEW === "unit";
  const FM = BM / SM / MATRIX, FN = BN / SN / MATRIX;
  const unit = byUnit ? Number(c.B_UNIT) : 8, wide = Math.max(8, unit);
  const THREADS = SM * SN * MATRIX_LANES, BLOCKS = (BM + BN) / MATRIX;
  const OUT = storedAtOnce(FN, BLOCKS * STAGES / (SM * SN), swiglu);
  if (c.A_DTYPE !== "f16") {
    throw new Error(
      `Cannot multiply ${c.A_DTYPE} by tensor cores: it must be f16`,
    );
  }
  if (![FM, FN].every(Number.isInteger) || swiglu && OUT % 2 || BK % wide) {
    throw new Error(
      `Cannot multiply in tiles of ${BM} × ${BN} × ${BK} by ${SM} × ${SN} subgroups: each must have whole matrices of 16 × 16${
        swiglu ? ", an even number in a row," : ""
      } and whole loads of ${wide}`,
    );
  }
  const aItems = BM * BK / 8, bItems = BN * BK / wide;
  return {
    THREADS,
    LANES: MATRIX_LANES,
    BLOCKS,
    STRIDE: BK / 8 + 1,
    FM,
    FN,
    OUT,
    FOURS: (swiglu ? 2 : 4) * OUT,
    A_ITEMS: aItems,
    A_LOADS: Math.ceil(aItems / THREADS),
    WIDE: wide,
    B_PARTS: wide / unit,
    B_ITEMS: bItems,
    B_LOADS: Math.ceil(bItems / THREADS),
    COLUMNS_PER_OUTPUT: swiglu ? 2 : 1,
    WHOLE: k % BK === 0 && c.A_VIEW === "unit" && byUnit ? 1 : 0,
  };
}

/** What a tile needs. */
export function matrixNeeds(
  { swiglu, m, format }: LinearTarget,
  { BM, BN, BK, SM, SN, STAGES }: Candidate,
): Needs {
  const [unit] = format.loads, threads = SM * SN * MATRIX_LANES;
  const [FM, FN] = [BM / SM / MATRIX, BN / SN / MATRIX];
  const room = (BM + BN) / MATRIX * STAGES / (SM * SN);
  return {
    threads,
    bytes: matrixTileBytes({ BM, BN, BK, STAGES }),
    problem: BK % 32 || BK % unit
      ? `BK is ${BK}, must be a multiple of ${Math.max(32, unit)}`
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
type MatrixCase = LinearCase;

/**
 * Many rows times a matrix, by tensor cores: `c = a · bᵀ`, one BM × BN tile per workgroup,
 * whose SM × SN subgroups multiply matrices of 16 × 16 (WGSL's subgroup matrices, a draft:
 * https://github.com/gpuweb/gpuweb/blob/main/proposals/subgroup-matrix.md). `a` is f16,
 * scaled by rows into its range (to_f16.ts), and b becomes f16 on its way into workgroup
 * memory, whatever its format; products are exact and summed in f32.
 *
 * The next tile is fetched into registers while this one is multiplied. STAGES 2 keeps two
 * in workgroup memory: one barrier per tile instead of two, and less room for others.
 * Tiles of BAND rows run first for all columns, so that b is read from memory once per
 * band. EPILOGUE and SPLITS: see gemm.ts.
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
  buffers: ({ SCALED, SPLITS, C_FOURS }) => ({
    a: "m k as unit",
    b: "n k as unit",
    ...(SCALED ? { scales: "m" } : {}),
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
  ],
  makeCase(given, { device, random, reference }) {
    const { m, n, k, w: dtype, epilogue = "store" } = given;
    const swiglu = epilogue === "swiglu", width = swiglu ? n / 2 : n;
    const format = formatNamed(dtype), largest = 1;
    const shape = { m, n, k, format, norm: false, swiglu, largest };
    const choice = chooseMatrices(shape, device);
    if (typeof choice !== "object" || !device.f16) return undefined;
    const { constants, headroom, splits } = choice;
    const a = random.tensor("f16", [m, k], headroom);
    const b = random.matrix(dtype, [n, k], largest);
    const scales = random.tensor("f32", [m], 2 ** -14, 2 ** -13);
    const c = splits > 1
      ? room([splits * m, n])
      : room([m, width], epilogue === "add" ? BEFORE : NaN);
    return {
      what: linearText(given) + ", by tensor cores" +
        (splits > 1 ? `, k in ${splits} splits` : ""),
      operands: { a, b, scales, c },
      constants: { ...constants, EPILOGUE: epilogue },
      uniforms: { stride: width, column: 0 },
      expected: () => {
        const rows = toF32(a), { data } = scales;
        rows.forEach((v, i) => rows[i] = v * data[Math.floor(i / k)]);
        const w = matrixToF32(b).map((v) => f16ToF32(f32ToF16Bits(v)));
        const product = reference.linear(rows, w, { m, n, k });
        return [{
          of: ({ c }) =>
            Float64Array.from({ length: m * width }, (_, i) => {
              let sum = 0;
              for (let s = 0; s < splits; s++) sum += c[s * m * width + i];
              return sum;
            }),
          ...reference.epilogue(epilogue, product, n, BEFORE),
          tolerance: SUM,
        }];
      },
    };
  },
});
