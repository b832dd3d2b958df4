import { fewRowsBytes, sumsAtOnce } from "../lib/dispatch/linear.ts";
import {
  type Capabilities,
  laneConstants,
} from "../lib/dispatch/capabilities.ts";
import type { LinearTarget } from "../lib/dispatch/keys.ts";
import {
  type Candidate,
  isPowerOf2,
  MOST_IN_FLIGHT,
  type Needs,
} from "../lib/dispatch/limits.ts";
import type { Constants } from "../lib/dispatch/shapes.ts";
import { type Dims, type Grid, splitGrid } from "../lib/webgpu/kernel.ts";
import { BLOCKS, FLOATS } from "./case.ts";
import { linearCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import { W_ROW } from "./gemv.ts";
import { type LinearCase, linearCase } from "./linear_case.ts";
import { ofSecond, withSecond } from "./second_part.ts";

// Fours past the end of the row are zero and add nothing.
const load = (into: string, chunk: string) => /* wgsl */ `
  @unroll for (var s = 0; s < STEPS; s++) {
    let four = (${chunk} * STEPS + s) * LANES + lane;
    @unroll for (var i = 0; i < ROWS; i++) {
      @if EXACT { ${into}[i * STEPS + s] = w_load(base[i] + four); }
      @else { ${into}[i * STEPS + s] = w_masked(w_load(base[i] + min(four, FOURS - 1u)), four < FOURS); }
    }
  }`;

/**
 * Workgroup memory of {@linkcode ENDING}. Without subgroups it goes through `terms`, AT_ONCE
 * sums at a time.
 */
export const ENDING_MEMORY = /* wgsl */ `
@if EPILOGUE == "add" { var<workgroup> squared: array<f32, PER_SLICE * SUMS>; }
@if !SUBGROUPS || SLICES > 1 { var<workgroup> sums: array<f32, GROUPS * SUMS>; }
@if !SUBGROUPS { var<workgroup> terms: array<f32, AT_ONCE * WORKGROUP>; }`;

/** Row m of those from row `first` of x on; past the last one, that one again. */
export const X_ROW = /* wgsl */ `
fn x_row(first: u32, m: u32) -> u32 {
  @if WHOLE { return first + m; } @else { return min(first + m, u.m - 1u); }
}`;

/**
 * Begins `main`: the place of a thread, and its sums. Workgroups of the same rows of w follow
 * each other, so that they find them in a cache.
 */
export const BEGINNING = /* wgsl */ `@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  // 2^APART lane groups take turns, lane by lane, so that neighbors read the same of x.
  let lane = (tid >> APART) % LANES;
  let group = ((tid >> (APART + LOG_LANES)) << APART) + tid % (1u << APART);
  let first = wg.x * M;
  let index = wg.z * groups.y + wg.y;
  @if TWO {
    // The first workgroups take the first part of the matrix, the others the second one.
    let count = (u.n + PER_SLICE * ROWS - 1u) / (PER_SLICE * ROWS);
    let second = index >= count;
    let part = select(index, index - count, second);
    let rows = select(u.n, u.nv, second);
    let column = u.column + select(0u, u.n, second);
  } @else {
    let part = index;
    let rows = u.n;
    let column = u.column;
  }
  // Lane groups of a slice follow each other, so that neighbors read the same of x.
  let slice = group / PER_SLICE;
  let g = part * PER_SLICE + group % PER_SLICE;
  @split var acc: array<f32, SUMS>;`;

/**
 * Adds up `acc` over lanes and slices, and writes the results of M rows from row `first` on.
 */
export const ENDING = /* wgsl */ `  @if SUBGROUPS {
    @unroll for (var s = 0; s < LOG_LANES; s++) {
      @if (SUMS >> s) > 1 {
        let upper = (lane & (1u << (LOG_LANES - 1u - s))) != 0u;
        @unroll for (var i = 0; i < (SUMS >> s) / 2; i++) {
          let away = select(acc[i + (SUMS >> s) / 2], acc[i], upper);
          acc[i] = select(acc[i], acc[i + (SUMS >> s) / 2], upper) + subgroupShuffleXor(away, 1u << (APART + LOG_LANES - 1u - s));
        }
      } @else {
        acc[0] += subgroupShuffleXor(acc[0], 1u << (APART + LOG_LANES - 1u - s));
      }
    }
  } @else {
    // Each lane adds up one of AT_ONCE sums, starting at its own term to avoid conflicts.
    @unroll for (var s = 0; s < (M * ROWS + AT_ONCE - 1) / AT_ONCE; s++) {
      @unroll for (var i = 0; i < AT_ONCE; i++) { terms[i * WORKGROUP + tid] = acc[s * AT_ONCE + i]; }
      workgroupBarrier();
      if (lane < AT_ONCE) {
        var sum = 0.0;
        for (var l = 0u; l < LANES; l++) {
          sum += terms[lane * WORKGROUP + group * LANES + (l + lane) % LANES];
        }
        sums[group * SUMS + s * AT_ONCE + lane] = sum;
      }
      workgroupBarrier();
    }
    @unroll for (var j = 0; j < OWN; j++) { acc[j] = sums[group * SUMS + lane / SHARERS * OWN + j]; }
  }
  @if SLICES > 1 {
    @if SUBGROUPS {
      @unroll for (var j = 0; j < OWN; j++) { sums[group * SUMS + lane / SHARERS * OWN + j] = acc[j]; }
      workgroupBarrier();
    }
    @unroll for (var q = 1; q < SLICES; q++) {
      @unroll for (var j = 0; j < OWN; j++) {
        acc[j] += sums[min(group + q * PER_SLICE, GROUPS - 1u) * SUMS + lane / SHARERS * OWN + j];
      }
    }
  }
  let writes = slice == 0u && lane % SHARERS == 0u;
  @unroll for (var j = 0; j < OWN; j++) {
    let at = lane / SHARERS * OWN + j;
    let m = at / ROWS;
    let i = at % ROWS;
    @if NORM { let factor = factors[min(m, M - 1u)]; } @else { let factor = 1.0; }
    @if EPILOGUE == "swiglu" {
      // Gates are at even positions, each followed by the value it gates.
      @if OWN > 1 { @if j % 2 == 0 { let other = acc[j + 1]; } @else { let other = 0.0; } }
      @else {
        @if SUBGROUPS { let other = subgroupShuffleXor(acc[0], SHARERS << APART); }
        @else {
          var other = 0.0;
          @unroll for (var q = 0; q < SLICES; q++) { other += sums[min(group + q * PER_SLICE, GROUPS - 1u) * SUMS + min(at + 1u, SUMS - 1u)]; }
        }
      }
      let gate = acc[j] * factor;
      let output = g * (ROWS / 2u) + i / 2u;
      if (writes && m < M && first + m < u.m && i % 2u == 0u && output < rows / 2u) {
        y[(first + m) * u.stride + column + output] = gate / (1.0 + exp(-gate)) * other * factor;
      }
    } @else {
      let row = g * ROWS + i;
      let inside = writes && m < M && first + m < u.m && row < rows;
      var value = acc[j] * factor;
      @if EPILOGUE == "add" {
        if (inside) { value += y[(first + m) * u.stride + column + row]; }
        if (writes) { squared[group % PER_SLICE * SUMS + at] = select(0.0, value * value, inside); }
      }
      if (inside) { y[(first + m) * u.stride + column + row] = value; }
    }
  }
  @if EPILOGUE == "add" {
    workgroupBarrier();
    for (var m = tid; m < M; m += WORKGROUP) {
      var sum = 0.0;
      @unroll for (var q = 0; q < PER_SLICE; q++) {
        @unroll for (var i = 0; i < ROWS; i++) { sum += squared[q * SUMS + m * ROWS + i]; }
      }
      if (part < PARTS && first + m < u.m) { squares[(first + m) * PARTS + part] = sum; }
    }
  }`;

/**
 * The grid of {@linkcode BEGINNING}: workgroups that take M of the `m` rows of x, for each
 * rows of w. It alone depends on m, so that batches of all sizes share a pipeline.
 */
export function rowsGrid(
  { m, n, nv = 0 }: Dims,
  { M, PER_SLICE, ROWS }: Record<string, number>,
): Grid {
  const rows = ROWS * PER_SLICE;
  const [y, z] = splitGrid(Math.ceil(n / rows) + Math.ceil(nv / rows));
  return [Math.ceil(m / M), y, z];
}

/** Partial sums of squares per row of x that EPILOGUE "add" leaves: one per workgroup. */
export function rowParts(
  n: number,
  { WORKGROUP, LOG_LANES, ROWS, SLICES }: Readonly<
    Record<string, number | string>
  >,
): number {
  const groups = Number(WORKGROUP) >> Number(LOG_LANES);
  return Math.ceil(n / (groups / Number(SLICES) * Number(ROWS)));
}

/** Derives the constants of {@linkcode ENDING}. */
export function deriveEnding(
  { WORKGROUP, LOG_LANES, APART, SUBGROUPS, M, ROWS, SLICES, ...c }: Constants,
): Constants {
  const { TWO, EPILOGUE, W_VIEW, V_VIEW } = c;
  if (APART && !SUBGROUPS) {
    throw new Error(
      `Cannot set lanes of a group 2^${APART} apart without subgroups: they must be neighbors`,
    );
  }
  if (TWO && (EPILOGUE !== "store" || W_VIEW !== V_VIEW)) {
    throw new Error(
      `Cannot multiply by two parts of a matrix in one dispatch: results are for "${EPILOGUE}" and the parts are read as ${W_VIEW} and ${V_VIEW}, must be for "store" and read alike`,
    );
  }
  const workgroup = Number(WORKGROUP), lanes = 1 << Number(LOG_LANES);
  if (Number(SLICES) * lanes > workgroup) {
    throw new Error(
      `Cannot share k among ${SLICES} groups of ${lanes} lanes in gemvRows: a workgroup has ${WORKGROUP} threads`,
    );
  }
  const sums = 2 ** Math.ceil(Math.log2(Number(M) * Number(ROWS)));
  return {
    LANES: lanes,
    GROUPS: workgroup / lanes,
    PER_SLICE: workgroup / lanes / Number(SLICES),
    SUMS: sums,
    AT_ONCE: sumsAtOnce(workgroup, lanes, sums),
    OWN: Math.max(1, sums / lanes), // sums that a lane ends with
    SHARERS: Math.max(1, lanes / sums), // lanes that end with the same sum
  };
}

/**
 * Maximum sums per thread. Not measured: a thread has about 256 registers, so more
 * certainly spill.
 */
const MOST_SUMS = 256;

/** Rows of x that tuning tries in a workgroup. */
export const ROWS_OF_X: readonly number[] = [4, 8, 16, 32];

/** What a workgroup needs whose `lanes` share ROWS rows of w, and SLICES of k. */
export function fewRowsNeeds(
  { swiglu }: LinearTarget,
  { M, WORKGROUP, ROWS, SLICES }: Candidate,
  lanes: number,
  device: Capabilities,
): Needs {
  const groups = WORKGROUP / lanes, sums = 2 ** Math.ceil(Math.log2(M * ROWS));
  return {
    threads: WORKGROUP,
    bytes: fewRowsBytes(M, { WORKGROUP, ROWS }, lanes, device),
    problem: WORKGROUP % lanes || !isPowerOf2(WORKGROUP)
      ? `WORKGROUP is ${WORKGROUP}, must be a power of 2 and whole groups of ${lanes} lanes`
      : groups % SLICES || !isPowerOf2(SLICES)
      ? `SLICES is ${SLICES}, must be a power of 2 that divides the ${groups} lane groups`
      : !isPowerOf2(ROWS) || swiglu && ROWS % 2
      ? `ROWS is ${ROWS}, must be a power of 2, and even where gates and what they gate are summed together`
      : sums > MOST_SUMS
      ? `${sums} sums in a thread, at most ${MOST_SUMS} fit registers`
      : undefined,
  };
}

/** Lanes that share a row of w. */
const lanesOf = ({ k }: LinearTarget, device: Capabilities) =>
  2 ** laneConstants(device, Math.max(4, Math.ceil(k / 4))).LOG_LANES;

/** `acc` plus the dot product of a row's four elements with four of x. */
const multiply = (acc: string, wv: string) => /* wgsl */ `
  @if CHAIN {
    ${acc} = fma(${wv}.w, xv.w, fma(${wv}.z, xv.z, fma(${wv}.y, xv.y, fma(${wv}.x, xv.x, ${acc}))));
  } @else { ${acc} += dot(${wv}, xv); }`;

// Adds up the products of a lane's share of k.
const MULTIPLY = /* wgsl */ `
  @if W_VIEW == "vec4" {
    @split var raw: array<w_Raw, ROWS * STEPS>;
    @split var base: array<u32, ROWS>;
    @unroll for (var i = 0; i < ROWS; i++) { base[i] = w_row(g, i) * FOURS; }
    ${load("raw", "slice")}
  }
  @if NORM {
    // SHARE threads add up the PARTS partial sums of squares left with each row.
    @unroll for (var r = 0; r < ROUNDS; r++) {
      let m = min((r * WORKGROUP + tid) / SHARE, M - 1u);
      var sum = 0.0;
      @unroll for (var i = 0; i < PART_STEPS; i++) {
        let at = (i * SHARE + tid % SHARE) * 4u;
        @if PARTS % (4 * SHARE) == 0 { sum += dot(squares_span(x_row(first, m) * PARTS + at, 4u), vec4f(1.0)); }
        @else { if (at < PARTS) { sum += dot(squares_span(x_row(first, m) * PARTS + at, PARTS - at), vec4f(1.0)); } }
      }
      squared_parts[r * WORKGROUP + tid] = sum;
    }
    workgroupBarrier();
    for (var m = tid; m < M; m += WORKGROUP) {
      var sum = 0.0;
      @unroll for (var i = 0; i < SHARE; i++) { sum += squared_parts[m * SHARE + i]; }
      factors[m] = inverseSqrt(sum / f32(u.k) + u.eps);
    }
    workgroupBarrier();
  }
@if W_VIEW == "vec4" {
  for (var turn = 0u; turn < TURNS; turn++) {
    let c = turn * SLICES + slice;
    @if CHUNKS > SLICES {
      // Loaded while this chunk is multiplied; unused after the last one.
      @split var next: array<w_Raw, ROWS * STEPS>;
      @if EXACT { let after = min(c + SLICES, CHUNKS - 1u); } @else { let after = c + SLICES; }
      ${load("next", "after")}
    }
    @if STAGED {
      workgroupBarrier();
      @unroll for (var r = 0; r < STAGE_ROUNDS; r++) {
        let at = r * WORKGROUP + tid;
        if (at < M * SPAN) { staged[at] = x_at(x_row(first, at / SPAN) * FOURS + min(turn * SPAN + at % SPAN, FOURS - 1u)); }
      }
      workgroupBarrier();
    }
    @unroll for (var s = 0; s < STEPS; s++) {
      let four = min((c * STEPS + s) * LANES + lane, FOURS - 1u);
      @split var wv: array<vec4f, ROWS>;
      @if NORM { let scale = norm_at(four); }
      @unroll for (var i = 0; i < ROWS; i++) {
        @if NORM { wv[i] = w_four[0](raw[i * STEPS + s]) * scale; } @else { wv[i] = w_four[0](raw[i * STEPS + s]); }
      }
      @unroll for (var m = 0; m < M; m++) {
        @if STAGED { let xv = staged[m * SPAN + (slice * STEPS + s) * LANES + lane]; }
        @else { @if WHOLE { let xv = x_at(m * FOURS + (first * FOURS + four)); }
        @else { let xv = x_at(x_row(first, m) * FOURS + four); } }
        @unroll for (var i = 0; i < ROWS; i++) { ${
  multiply("acc[m * ROWS + i]", "wv[i]")
} }
      }
    }
    @if CHUNKS > SLICES {
      @unroll for (var i = 0; i < ROWS * STEPS; i++) { raw[i] = next[i]; }
    }
  }
} @else {
  for (var e = (slice * LANES + lane) * 4u; e < u.k; e += SLICES * LANES * 4u) {
    @if NORM { let scale = norm_span(e, u.k - e); } @else { let scale = vec4f(1.0); }
    @unroll for (var m = 0; m < M; m++) {
      let xv = x_span(x_row(first, m) * u.k + e, u.k - e) * scale;
      @unroll for (var i = 0; i < ROWS; i++) {
        acc[m * ROWS + i] += dot(w_span(w_row(g, i) * u.k + e, u.k - e), xv);
      }
    }
  }
}`;

/**
 * A few rows times a matrix stored by output row, `y = x · wᵀ`: the Linear layers of
 * sequences that decode together, and of short prompts.
 *
 * Like gemv.ts, but M rows of `x` share each value of `w`, so arithmetic and cached
 * reads of `x` are the limit. If there are more, other workgroups take the next M. A lane group of LANES neighboring threads shares ROWS rows
 * of `w`, four elements at a time, so that neighbors also read neighbors in `x`. Each
 * thread ends with M · ROWS sums. In every exchange a lane adds up half of them and
 * leaves the other half to its partner, so after log₂ LANES exchanges each lane has a few
 * finished results and all lanes write. If `w` has too few rows to fill a GPU, SLICES
 * lane groups of a workgroup share them, each with a part of k.
 *
 * CHAIN 1: adds each product to the sum, 4 instructions for 4 elements. 0: adds their dot
 * product, which takes 5.
 *
 * STAGED 1 copies what all lanes take at a time of M rows of `x` to workgroup memory, which
 * pays off where few lanes share a row of w, so that others read the same of x.
 *
 * NORM and EPILOGUE are as in gemv.ts; each workgroup leaves one sum of squares per row
 * for the next norm.
 */
export const gemvRows = defineKernel<LinearCase>({
  name: "gemvRows",
  buffers: ({ NORM, EPILOGUE, TWO }) => ({
    w: "n k as span",
    ...(TWO ? { v: "nv k as span" } : {}),
    x: "m k as span",
    y: "inout any as scalar",
    ...(NORM ? { norm: "k as span", squares: "m parts as span" } : {}),
    ...(EPILOGUE === "add" ? { squares: "out m parts" } : {}),
  }),
  // Rows of y are `stride` elements apart; the first row of w yields column `column`.
  uniforms: { stride: "u32", column: "u32", eps: "f32" },
  constants: {
    M: 2,
    WORKGROUP: 128,
    ROWS: 4,
    LOG_LANES: 5,
    APART: 0,
    SUBGROUPS: 1,
    STEPS: 2,
    SLICES: 1,
    STAGED: 0,
    CHAIN: 1,
    NORM: 0,
    EPILOGUE: "store",
    TWO: 0,
  },
  derive: (c, { m: rows, k, parts }) => {
    const m = Number(c.M);
    const fours = Math.ceil(k / 4), lanes = 1 << Number(c.LOG_LANES);
    const steps = Math.max(
      1,
      Math.min(Number(c.STEPS), Math.ceil(fours / lanes)),
    );
    const chunks = Math.ceil(fours / (lanes * steps));
    const span = lanes * steps * Number(c.SLICES); // fours that all slices take at once
    const room = Number(c.WORKGROUP) / m;
    const share = room < 1 ? 1 : Math.min(8, 2 ** Math.floor(Math.log2(room)));
    return {
      FOURS: fours,
      STEPS: steps,
      CHUNKS: chunks,
      TURNS: Math.ceil(fours / span),
      SPAN: span,
      STAGE_ROUNDS: Math.ceil(m * span / Number(c.WORKGROUP)),
      EXACT: fours % span === 0 ? 1 : 0,
      ...deriveEnding(c),
      WHOLE: rows % m ? 0 : 1, // no workgroup has rows of x to spare
      PARTS: parts ?? 0,
      SHARE: share,
      ROUNDS: Math.ceil(m * share / Number(c.WORKGROUP)),
      PART_STEPS: Math.ceil((parts ?? 0) / 4 / share),
    };
  },
  tuning: {
    of: "linear",
    grid: {
      M: ROWS_OF_X,
      WORKGROUP: [32, 64, 128, 256],
      ROWS: [1, 2, 4, 8],
      STEPS: [1, 2, 4],
      SLICES: [1, 2, 4, 8],
    },
    settle(target: LinearTarget, given, device) {
      const most = Math.ceil(target.k / 4 / lanesOf(target, device));
      return {
        ...given,
        M: Math.min(given.M, target.m),
        STEPS: Math.min(given.STEPS, most),
      };
    },
    needs(target: LinearTarget, given, device) {
      const lanes = lanesOf(target, device), loads = given.ROWS * given.STEPS;
      const needs = fewRowsNeeds(target, given, lanes, device);
      return needs.problem || loads <= MOST_IN_FLIGHT ? needs : {
        ...needs,
        problem:
          `${loads} loads in flight, at most ${MOST_IN_FLIGHT} fit registers`,
      };
    },
  },
  grid: rowsGrid,
  cost: (call) => withSecond(call, linearCost(call, "x", "w")),
  body: /* wgsl */ `
@if NORM {
  var<workgroup> squared_parts: array<f32, ROUNDS * WORKGROUP>;
  var<workgroup> factors: array<f32, M>;
}
${ENDING_MEMORY}
@if STAGED && W_VIEW == "vec4" { var<workgroup> staged: array<vec4f, M * SPAN>; }

${W_ROW}
@if TWO { ${ofSecond(W_ROW)} }

${X_ROW}

${BEGINNING}
  @if TWO {
    if (second) {
      ${ofSecond(MULTIPLY)}
    } else {
      ${MULTIPLY}
    }
  } @else { ${MULTIPLY} }
  ${ENDING}
}`,
  cases: [
    ...FLOATS.flatMap((w) => [
      { m: 5, n: 37, k: 19, w },
      { m: 16, n: 1024, k: 1024, w }, // k_proj of Qwen3-0.6B
    ]),
    ...BLOCKS.map((w) => ({ m: 3, n: 37, k: 512, w })),
    { m: 3, n: 74, k: 88, w: "bf16", epilogue: "add" },
    { m: 3, n: 74, k: 88, w: "bf16", epilogue: "swiglu" },
    { m: 17, n: 74, k: 76, w: "f32", norm: "bf16" },
    { m: 17, n: 74, k: 76, w: "f32", norm: "bf16", epilogue: "swiglu" },
    { m: 64, n: 74, k: 76, w: "bf16", epilogue: "add" },
    { m: 3, n: 37, k: 512, w: "q4_k", second: "q6_k" },
    { m: 16, n: 37, k: 512, w: "q3_k", second: "q5_k", norm: "bf16" },
  ],
  makeCase: (given, tools) => linearCase(given, tools, rowParts),
});
