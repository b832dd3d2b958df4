/**
 * What attend_decode.ts does with PROJECT: it also multiplies by o_proj and adds the result to
 * the residual, so that a layer has one dispatch less. A workgroup takes PROJECT rows of `w`
 * and of these the columns of its query heads, whose attention it computes for itself. The
 * sums of all heads meet in `pieces`, and the last workgroup of a block of rows to count itself
 * there adds them up, in the order of the heads. With LEAVES, it rounds them for the next
 * kernel; see rounded_row.ts.
 *
 * The counter alone does not make earlier stores visible: WGSL does not order atomics at
 * different addresses across workgroups. So each sum is its own flag: its word is 0 until the
 * sum arrives, and the workgroup that adds it up resets it. No workgroup ever waits for one
 * that may not have started.
 *
 * @module
 */
import { type Constants, ROUNDED_BLOCK } from "../lib/dispatch/shapes.ts";
import type { Matrix } from "../lib/formats/matrix.ts";
import { type CpuTensor, matrixToF32, toF32 } from "../lib/formats/tensor.ts";
import {
  type Buffers,
  type Expected,
  type Reference,
  type Result,
  room,
  rowSums,
  SUM,
  u32Tensor,
} from "./case.ts";
import { BEFORE } from "./linear_case.ts";
import {
  HALF_A_STEP,
  roundedSizes,
  roundedValues,
  stepsOff,
} from "./rounded_row.ts";

/** Words of `pieces`, of `groups` groups of heads: their sums of each row, then the counters. */
export const pieceWords = (n: number, groups: number, rows: number): number =>
  groups * n + Math.ceil(n / rows);

/** Constants of {@linkcode PROJECT}, if a workgroup has `columns` columns of `k`. */
export function deriveProject(
  c: Constants,
  { columns, k, n, parts = 0, lanes, groups }:
    & Readonly<Record<"columns" | "k" | "n" | "lanes" | "groups", number>>
    & { parts?: number },
): Constants {
  const unit = Number(c.W_UNIT), threads = Number(c.WORKGROUP);
  const rows = Number(c.PROJECT), units = columns / unit;
  const rowLanes = Math.min(lanes, units), stride = threads / rowLanes;
  const blocks = Math.ceil(n / rows), squares = Math.floor(parts / blocks);
  const left = Math.ceil(rows / lanes);
  if (c.LEAVES && (n % ROUNDED_BLOCK || rows % ROUNDED_BLOCK)) {
    throw new Error(
      `Cannot round ${n} results in attendDecode, ${rows} per workgroup: both must be whole blocks of ${ROUNDED_BLOCK}`,
    );
  }
  const problem = !c.SUBGROUPS
    ? "lanes cannot exchange values"
    : c.W_VIEW !== "unit" || !Number.isInteger(units) ||
        Math.log2(units) % 1 !== 0
    ? `${columns} columns must be a power of 2 of units of ${unit}`
    : rows % stride !== 0 || rows > threads
    ? `${rows} rows of w must be shared by ${threads} threads, ${stride} at a time`
    : !c.LEAVES && squares < left
    ? `${parts} sums of squares must be at least ${blocks * left}`
    : undefined;
  if (problem) throw new Error(`Cannot project in attendDecode: ${problem}`);
  return {
    FOURS: unit / 4,
    ROW_UNITS: k / unit,
    OWN_UNITS: units,
    ROW_LANES: rowLanes,
    LOG_ROW_LANES: Math.log2(rowLanes),
    UNIT_STEPS: units / rowLanes,
    ROW_STEPS: rows / stride,
    ROW_STRIDE: stride,
    GROUPS: groups,
    N: n,
    ...(c.LEAVES
      ? { LEFT_BLOCKS: n / ROUNDED_BLOCK }
      : { SQUARES: squares, ALL_SQUARES: parts, SQUARES_LEFT: left }),
  };
}

/** Requests all weights of the workgroup, long before they are used. */
export const LOAD_WEIGHTS = /* wgsl */ `
  @if PROJECT {
    let row_lane = tid % ROW_LANES;
    let first_w = wg.x * PROJECT + tid / ROW_LANES;
    @split var raw: array<w_Raw, ROW_STEPS * UNIT_STEPS>;
    @unroll for (var i = 0; i < ROW_STEPS; i++) {
      @unroll for (var s = 0; s < UNIT_STEPS; s++) {
        let w_row = min(first_w + i * ROW_STRIDE, N - 1u);
        raw[i * UNIT_STEPS + s] = w_load(w_row * ROW_UNITS + wg.y * OWN_UNITS + s * ROW_LANES + row_lane);
      }
    }
  }`;

/** Multiplies the attended heads in `vectors` by the weights, and adds up the heads. */
export const PROJECT = /* wgsl */ `
    workgroupBarrier();
    @split var dots: array<f32, ROW_STEPS>;
    @unroll for (var i = 0; i < ROW_STEPS; i++) {
      dots[i] = 0.0;
      @unroll for (var s = 0; s < UNIT_STEPS; s++) {
        @unroll for (var f = 0; f < FOURS; f++) {
          dots[i] += dot(w_four[f](raw[i * UNIT_STEPS + s]), vectors[(s * ROW_LANES + row_lane) * FOURS + f]);
        }
      }
      @unroll for (var b = 0; b < LOG_ROW_LANES; b++) { dots[i] += subgroupShuffleXor(dots[i], 1u << b); }
    }
    @unroll for (var i = 0; i < ROW_STEPS; i++) {
      let own = first_w + i * ROW_STRIDE;
      if (row_lane == 0u && own < N) {
        let bits = bitcast<u32>(dots[i]);
        atomicStore(&pieces[wg.y * N + own], select(bits, 0x80000000u, bits == 0u)); // -0, not 0
      }
    }
    workgroupBarrier();
    let counter = GROUPS * N + wg.x;
    if (tid == 0u) { before = atomicAdd(&pieces[counter], 1u); }
    if (workgroupUniformLoad(&before) + 1u == GROUPS) {
      if (tid == 0u) { atomicStore(&pieces[counter], 0u); } // ready for the next layer
      let own = wg.x * PROJECT + tid;
      var sum = 0.0;
      if (tid < PROJECT && own < N) {
        sum = y[own];
        @split var bits: array<u32, GROUPS>;
        @unroll for (var h = 0; h < GROUPS; h++) { bits[h] = atomicLoad(&pieces[h * N + own]); }
        @unroll for (var h = 0; h < GROUPS; h++) {
          // It was stored, and will be seen; if not, the result is NaN.
          for (var i = 0u; i < 65536u && bits[h] == 0u; i++) { bits[h] = atomicLoad(&pieces[h * N + own]); }
          atomicStore(&pieces[h * N + own], 0u);
          sum += bitcast<f32>(select(bits[h], 0x7fc00000u, bits[h] == 0u));
        }
        y[own] = sum;
      }
      @if LEAVES {
        // Rounded for the next kernel, normed but for the factor.
        if (tid < PROJECT) { results[tid] = sum; }
        workgroupBarrier();
        let four = wg.x * (PROJECT / 4u) + tid;
        let at = 4u * min(tid, PROJECT / 4u - 1u);
        let value = vec4f(results[at], results[at + 1u], results[at + 2u], results[at + 3u]);
        var squared = dot(value, value);
        @unroll for (var b = 0; b < 2; b++) { squared += subgroupShuffleXor(squared, 1u << b); }
        let made = round_four(value * nextNorm_at(min(four, N / 4u - 1u)));
        if (tid < PROJECT / 4u && four < N / 4u) {
          left_put(four, made);
          left_square(four, squared);
        }
        if (wg.x == 0u && tid == 0u) { left_end(); }
      } @else {
      var squared = sum * sum;
      @unroll for (var b = 0; b < LOG_LANES; b++) { squared += subgroupShuffleXor(squared, 1u << b); }
      if (lane == 0u && tid < PROJECT) { squares[wg.x * SQUARES + lane_group] = squared; }
      // There are as many as o_proj's own kernel would leave.
      let end = select((wg.x + 1u) * SQUARES, ALL_SQUARES, wg.x + 1u == groups.x);
      for (var e = wg.x * SQUARES + SQUARES_LEFT + tid; e < end; e += WORKGROUP) { squares[e] = 0.0; }
      }
    }`;

/** What a case of attention also binds with o_proj, the constant, and what comes out. */
export function projectedCase(
  w: Matrix<CpuTensor>,
  { columns, groups, constants, nextNorm }: {
    columns: number;
    groups: number;
    constants: Constants;
    /** By which results are normed before they are rounded, if they are. */
    nextNorm?: CpuTensor;
  },
  reference: Reference,
) {
  const { n, k, parts: [{ format }] } = w;
  const lanes = 2 ** Number(constants.LOG_LANES);
  const shared = Math.min(lanes, columns / format.loads[0]);
  const rows = Math.max(32, Number(constants.WORKGROUP) / shared);
  const blocks = Math.ceil(n / rows), words = pieceWords(n, groups, rows);
  const parts = blocks * (Math.ceil(rows / lanes) + 1) + 1; // some are left over
  return {
    operands: {
      w,
      y: room([1, n], BEFORE),
      ...(nextNorm
        ? { nextNorm, left: u32Tensor([1, roundedSizes(n).words]) }
        : { squares: room([1, parts]) }),
      pieces: u32Tensor([1, words], new Uint32Array(words)),
    },
    PROJECT: rows,
    blocks,
    expected({ values, norms }: Expected): Result[] {
      const by = (row: Float64Array) =>
        reference.linear(Float32Array.from(row), matrixToF32(w), {
          ...{ m: 1, n, k },
        });
      const made = reference.epilogue("add", by(values), n, BEFORE);
      // What attention itself may be off by passes through w, too.
      const off = by(norms).norms;
      const all = [made.values.reduce((sum, v) => sum + v * v, 0)];
      const weights = nextNorm && toF32(nextNorm);
      const rounded = ({ left }: Buffers) =>
        roundedValues(Uint32Array.from(left), n).squares.slice(0, n / 16);
      return [
        {
          of: "y",
          values: made.values,
          norms: made.norms.map((norm, i) => norm + off[i]),
          tolerance: SUM,
        },
        {
          of: weights
            ? (buffers) => [rounded(buffers).reduce((sum, v) => sum + v)]
            : rowSums("squares", parts),
          ...{ values: all, norms: all, tolerance: SUM },
        },
        ...(weights
          ? [{
            of: ({ y, left }: Buffers) =>
              stepsOff(
                Uint32Array.from(left),
                Array.from(y, (v, i) => Math.fround(v * weights[i])),
              ),
            values: new Float64Array(n),
            tolerance: HALF_A_STEP,
          }]
          : []),
        {
          of: "pieces",
          values: new Float64Array(words),
          tolerance: 0,
        },
      ];
    },
  };
}
