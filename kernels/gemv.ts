import {
  type Capabilities,
  laneConstants,
  laneSteps,
} from "../lib/dispatch/capabilities.ts";
import type { LinearTarget } from "../lib/dispatch/keys.ts";
import {
  isPowerOf2,
  MOST_IN_FLIGHT,
  type Tuning,
} from "../lib/dispatch/limits.ts";
import type { Constants } from "../lib/dispatch/shapes.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { LANES } from "../lib/webgpu/wgsl.ts";
import { BLOCKS, FLOATS } from "./case.ts";
import { linearCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import { emulated } from "./gemv_emulated.ts";
import { deriveWalk, WALK, walkParts, walkTuning } from "./gemv_walk.ts";
import { type LinearCase, linearCase } from "./linear_case.ts";
import { NO_PENDING, PENDING_AT, RAISE_FLAGS } from "./pending.ts";

// Units past the end of the row are zero and add nothing.
const load = (chunk: string) => /* wgsl */ `
  @unroll for (var s = 0; s < STEPS; s++) {
    let unit = (${chunk} * STEPS + s) * LANES + lane;
    @unroll for (var i = 0; i < ROWS; i++) {
      @if EXACT { raw[i * STEPS + s] = w_load(base[i] + unit); }
      @else { raw[i * STEPS + s] = w_masked(w_load(base[i] + min(unit, UNITS - 1u)), unit < UNITS); }
    }
  }`;

/** `w_row(g, i)`: the row of w that accumulator i of lane group g sums. */
export const W_ROW = /* wgsl */ `
fn w_row(g: u32, i: u32) -> u32 {
  @if EPILOGUE == "swiglu" {
    return (i & 1u) * (u.n / 2u) + min(g * (ROWS / 2u) + (i >> 1u), u.n / 2u - 1u);
  } @else {
    return min(g * ROWS + i, u.n - 1u);
  }
}`;

/** A lane's part of a row's sum of squares, from partial sums that are read four at a time. */
export const SQUARED = /* wgsl */ `  @if NORM {
    var squared = 0.0;
    @unroll for (var i = 0; i < PART_STEPS; i++) {
      let part = i * LANES + lane;
      let four = squares_at(min(part, PARTS / 4u - 1u));
      squared += select(0.0, dot(four, vec4f(1.0)), part < PARTS / 4u);
    }
  }
`;

/** The factor of the norm, from `squared`. */
export const FACTOR = /* wgsl */ `  @if NORM {
    let factor = inverseSqrt(lanes_sum(squared, tid) / f32(u.k) + u.eps);
  } @else { let factor = 1.0; }
`;

// The row with what is pending, normed but for the factor, while the first loads arrive.
const ROW = /* wgsl */ `
  var squared = 0.0;
  for (var i = tid; i < ROW_FOURS; i += WORKGROUP) {
    var v = x_at(i);
    @unroll for (var e = 0; e < 4; e++) { v[e] += pending_at(u.k, 4u * i + e); }
    squared += dot(v, v);
    row[i] = v * norm_at(i);
    if (wg.x + wg.y == 0u) { added_put(i, v); }
  }
  if (wg.x + wg.y + tid == 0u) { raise_flags(u.k); }
  squared = lanes_sum(squared, tid);
  if (lane == 0u) { shares[tid / LANES] = squared; }
  workgroupBarrier();
  var all = 0.0;
  for (var i = lane; i < PER_WORKGROUP; i += LANES) { all += shares[i]; }
  let factor = inverseSqrt(lanes_sum(all, tid) / f32(u.k) + u.eps);`;

// Writes a lane group's sums; `sum` becomes the sum of their squares.
const WRITE = /* wgsl */ `
  @if EPILOGUE == "swiglu" {
    @unroll for (var i = 0; i < ROWS; i += 2) {
      write(g * (ROWS / 2u) + i / 2u, u.n / 2u, acc[i] / (1.0 + exp(-acc[i])) * acc[i + 1]);
    }
  } @else {
    @if EPILOGUE == "add" { var sum = 0.0; }
    @unroll for (var i = 0; i < ROWS; i++) {
      @if EPILOGUE == "add" {
        acc[i] += residual[i];
        if (g * ROWS + i < u.n) { sum += acc[i] * acc[i]; }
      }
      write(g * ROWS + i, u.n, acc[i]);
    }
  }`;

/** Wide loads (units) in a row of w. */
const unitsOf = ({ k, format }: LinearTarget) => Math.ceil(k / format.loads[0]);

/** What is tuned where lanes share a row of w, which takes `loadsOf` loads. */
export function rowTuning(
  loadsOf: (target: LinearTarget) => number,
): Tuning<LinearTarget> {
  const lanesOf = (target: LinearTarget, device: Capabilities) =>
    2 ** laneConstants(device, Math.max(4, loadsOf(target))).LOG_LANES;
  return {
    of: "linear",
    grid: {
      WORKGROUP: [32, 64, 128, 256, 512],
      ROWS: [1, 2, 4],
      STEPS: [1, 2, 4, 8, 12, 16],
    },
    settle(target, given, device) {
      const steps = Math.ceil(loadsOf(target) / lanesOf(target, device));
      const chunks = Math.ceil(steps / given.STEPS);
      return { ...given, STEPS: Math.ceil(steps / chunks) };
    },
    needs(target, { WORKGROUP, ROWS, STEPS }, device) {
      const lanes = lanesOf(target, device), loads = ROWS * STEPS;
      return {
        threads: WORKGROUP,
        bytes: device.subgroupSize ? 0 : 4 * WORKGROUP,
        problem: WORKGROUP % lanes || !isPowerOf2(WORKGROUP)
          ? `WORKGROUP is ${WORKGROUP}, must be a power of 2 and whole groups of ${lanes} lanes`
          : target.swiglu && ROWS % 2
          ? `ROWS is ${ROWS}, must be even: gates and what they gate are summed together`
          : loads > MOST_IN_FLIGHT
          ? `${loads} loads in flight, at most ${MOST_IN_FLIGHT} fit registers`
          : undefined,
      };
    },
  };
}

/** Rows of w per workgroup. */
const rowsOfWorkgroup = (
  { WORKGROUP, LOG_LANES, ROWS, SPREAD }: Constants,
): number =>
  (SPREAD === "rows"
    ? Number(WORKGROUP)
    : Number(WORKGROUP) >> Number(LOG_LANES)) * Number(ROWS);

/**
 * Partial sums of squares that EPILOGUE "add" leaves: one per lane group or, where
 * workgroups walk, per workgroup.
 */
export function squareParts(n: number, constants: Constants): number {
  if (Number(constants.WALKERS) > 1) return walkParts(constants);
  const groups = Number(constants.WORKGROUP) >> Number(constants.LOG_LANES);
  return Math.ceil(n / rowsOfWorkgroup(constants)) * groups;
}

/**
 * One row times a matrix stored by output row, `y = x · wᵀ`: every Linear layer of a
 * decode step. gemv_rows.ts takes more rows.
 *
 * A lane group of LANES neighboring threads shares ROWS rows of `w`, read by wide loads
 * (units), and issues all loads of a chunk before the first use. Because a dispatch costs
 * 2–3 µs, these are fused into it:
 *
 * - NORM: `x` is RMS-normed first, `x · norm / sqrt(mean(x²) + eps)`. The kernel that
 *   wrote the row left PARTS partial sums of its squares in `squares`, so the factor
 *   needs no pass over the row.
 * - EPILOGUE "store": `y = …`; "add": `y += …` (residual), and partial sums of the new
 *   row's squares, one per lane group; "swiglu": `y = silu(g) · u` with g from the
 *   first half of w's rows and u from the second.
 *
 * - PENDING, with NORM: what other workgroups have added to the row (pending.ts) is part of
 *   it. A workgroup adds it up in its memory, with the squares, and one writes the whole row.
 *
 * With FENCE, a barrier stands between a row's loads and their use, if all are issued at
 * once: without, a driver may move them to where they are used.
 *
 * If a row of `w` is not a whole number of units, the plain loop at the end handles it.
 *
 * With more than one of WALKERS, as many workgroups walk over the rows of w; see
 * gemv_walk.ts. SPREAD "rows" is for threads that a CPU emulates; see gemv_emulated.ts.
 */
export const gemv = defineKernel<LinearCase>({
  name: "gemv",
  buffers: ({ NORM, PENDING, EPILOGUE, SPREAD, W_IN }) => {
    const rows = SPREAD === "rows", view = rows ? "scalar" : "span";
    const squares = `m parts as ${rows ? "scalar" : "vec4"}`;
    return {
      w: `n k as ${W_IN === "texture" ? "texels" : "unit"}`,
      x: `m k as ${view}`,
      y: "inout any as scalar",
      ...(NORM ? { norm: `k as ${view}` } : {}),
      ...(PENDING
        ? {
          pending: "any as raw",
          added: "out m k as vec4",
          flags: "inout any as raw",
        }
        : NORM
        ? { squares }
        : {}),
      ...(EPILOGUE === "add" ? { squares: "out m parts" } : {}),
    };
  },
  // The first row of w goes to column `column` of y; `stride` is used by gemv_rows.ts.
  uniforms: { stride: "u32", column: "u32", eps: "f32" },
  constants: {
    WORKGROUP: 128,
    ROWS: 2,
    LOG_LANES: 5,
    SUBGROUPS: 1,
    STEPS: 4,
    SPREAD: "k",
    WALKERS: 1,
    W_IN: "buffer",
    FENCE: 0,
    NORM: 0,
    PENDING: 0,
    ...NO_PENDING,
    EPILOGUE: "store",
  },
  derive: (c, { m, n, k, parts }) => {
    if (m > 1) {
      throw new Error(`Cannot multiply ${m} rows in gemv: there must be one`);
    }
    const whole = c.W_VIEW === "unit" || c.W_VIEW === "texels";
    const own = c.SPREAD === "rows";
    if (c.NORM && !whole) {
      throw new Error(
        `Cannot norm rows of ${k} in gemv: they must be whole units of ${c.W_UNIT}`,
      );
    }
    if (c.W_IN === "texture" && !own) {
      throw new Error(
        `Cannot read w from a texture in gemv with SPREAD "${c.SPREAD}": it must be "rows"`,
      );
    }
    if (own && !(c.SUBGROUPS && whole)) {
      throw new Error(
        `Cannot give each lane rows of ${k} in gemv: they must be whole units of ${c.W_UNIT}, and lanes must exchange values`,
      );
    }
    const walks = Number(c.WALKERS) > 1;
    if (c.PENDING && !(c.NORM && c.SUBGROUPS && whole && !own && !walks)) {
      throw new Error(
        `Cannot add what is pending to rows of ${k} in gemv: they must be normed, in whole units of ${c.W_UNIT}, and lanes must exchange values`,
      );
    }
    const rows = Number(c.ROWS), share = 1 << Number(c.LOG_LANES);
    if (
      walks &&
      !(c.SUBGROUPS && whole && !own && isPowerOf2(rows) && rows <= share)
    ) {
      throw new Error(
        `Cannot walk over rows of ${k}, ${rows} at a time, in gemv: they must be whole units of ${c.W_UNIT}, and ${share} lanes must exchange values of a power of 2 of them`,
      );
    }
    if (c.NORM && !c.PENDING && !own && parts % 4) {
      throw new Error(
        `Cannot norm rows by ${parts} sums of squares: must be a multiple of 4`,
      );
    }
    const units = Math.ceil(k / Number(c.W_UNIT)),
      lanes = 1 << Number(c.LOG_LANES);
    return {
      UNITS: units,
      ...laneSteps(units, c),
      FOURS: Number(c.W_UNIT) / 4,
      ...(c.PENDING ? { ROW_FOURS: k / 4 } : {}),
      PARTS: parts ?? 0,
      PART_STEPS: Math.ceil((parts ?? 0) / (own ? 1 : 4) / lanes),
      ...(own ? { TAKEN: Math.min(lanes, Number(c.W_UNIT)) } : {}),
      ...(walks ? { SPREAD: "walk", ...deriveWalk(c, n, units) } : {}),
    };
  },
  tuning: walkTuning(rowTuning(unitsOf), unitsOf),
  grid: ({ n }, constants) =>
    constants.WALKERS > 1
      ? [constants.WALKERS, 1, 1]
      : splitGrid(n / rowsOfWorkgroup(constants)),
  cost: (call) => linearCost(call, "x", "w"),
  body: /* wgsl */ `
${LANES}
const PER_WORKGROUP = WORKGROUP / LANES;

${W_ROW}

fn write(row: u32, rows: u32, value: f32) {
  if (row >= rows) { return; }
  y[u.column + row] = value;
}

@if PENDING {
${PENDING_AT}
${RAISE_FLAGS}
var<workgroup> row: array<vec4f, ROW_FOURS>;
var<workgroup> shares: array<f32, PER_WORKGROUP>;
}

@if SPREAD == "walk" { ${WALK} } @else { @if SPREAD == "rows" { ${
    emulated(WRITE)
  } } @else {
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let lane = tid % LANES;
  let g = (wg.y * groups.x + wg.x) * PER_WORKGROUP + tid / LANES;
  @split var acc: array<f32, ROWS>;
@if PENDING == 0 {
${SQUARED}${FACTOR}
}
  @if EPILOGUE == "add" {
    // The residual is loaded early, so that nothing waits for it at the end.
    @split var residual: array<f32, ROWS>;
    if (lane == 0u) {
      @unroll for (var i = 0; i < ROWS; i++) { residual[i] = y[u.column + w_row(g, i)]; }
    }
  }
@if W_VIEW == "unit" {
  @split var raw: array<w_Raw, ROWS * STEPS>;
  @split var base: array<u32, ROWS>;
  @unroll for (var i = 0; i < ROWS; i++) { base[i] = w_row(g, i) * UNITS; }
  ${load("0u")}
  @if PENDING { ${ROW} }
  @if FENCE && CHUNKS == 1 { workgroupBarrier(); }
  for (var c = 0u; c < CHUNKS; c++) {
    @if CHUNKS > 1 { if (c > 0u) { ${load("c")} } }
    @unroll for (var s = 0; s < STEPS; s++) {
      let unit = min((c * STEPS + s) * LANES + lane, UNITS - 1u);
      @unroll for (var f = 0; f < FOURS; f++) {
        @if PENDING { let xv = row[unit * FOURS + f]; }
        @else { @if NORM { let xv = x_at(unit * FOURS + f) * norm_at(unit * FOURS + f); }
        @else { let xv = x_at(unit * FOURS + f); } }
        @unroll for (var i = 0; i < ROWS; i++) { acc[i] += dot(w_four[f](raw[i * STEPS + s]), xv); }
      }
    }
  }
} @else {
  for (var e = lane * 4u; e < u.k; e += LANES * 4u) {
    let four = x_span(e, u.k - e);
    @unroll for (var i = 0; i < ROWS; i++) {
      acc[i] += dot(w_span(w_row(g, i) * u.k + e, u.k - e), four);
    }
  }
}
  @unroll for (var i = 0; i < ROWS; i++) { acc[i] = lanes_sum(acc[i], tid) * factor; }
  if (lane == 0u) {
    ${WRITE}
    @if EPILOGUE == "add" { if (g < PARTS) { squares[g] = sum; } }
  }
}
} }`,
  cases: [
    ...FLOATS.flatMap((w) => [
      { m: 1, n: 37, k: 19, w },
      { m: 1, n: 1024, k: 3072, w }, // down_proj of Qwen3-0.6B
    ]),
    ...BLOCKS.map((w) => ({ m: 1, n: 37, k: 1280, w })),
    { m: 1, n: 74, k: 88, w: "bf16", epilogue: "add" },
    { m: 1, n: 74, k: 88, w: "bf16", epilogue: "swiglu" },
    { m: 1, n: 74, k: 1024, w: "bf16", norm: "bf16" },
    { m: 1, n: 74, k: 1024, w: "bf16", norm: "bf16", epilogue: "swiglu" },
    ...["f32", "bf16", "q8_0", "q4_k"].map((w): LinearCase => ({
      ...{ m: 1, n: 74, k: 1280, w, norm: "bf16", pending: true },
    })),
  ],
  makeCase: (given, tools) => linearCase(given, tools, squareParts),
});
