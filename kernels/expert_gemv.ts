import { laneSteps } from "../lib/dispatch/capabilities.ts";
import { chooseExpertGemv } from "../lib/dispatch/experts.ts";
import type { Constants } from "../lib/dispatch/shapes.ts";
import { LANES } from "../lib/webgpu/wgsl.ts";
import { BLOCKS, FLOATS } from "./case.ts";
import { defineKernel } from "./define.ts";
import { type ExpertCase, expertCase, expertContract } from "./expert_case.ts";
import { rowTuning } from "./gemv.ts";

// Loads past the last, and those of experts in other parts, are zero and add nothing.
const LOAD = /* wgsl */ `
  @unroll for (var s = 0; s < STEPS; s++) {
    let j = (c * STEPS + s) * LANES + lane;
    let at = min(j, TERMS * UNITS - 1u);
    @if EPILOGUE == "add" {
      let expert = expert_at(row, at / UNITS);
      weight[s] = chosen_at((2u * row + 1u) * USED + at / UNITS);
    } @else { let expert = own; }
    let base = min(expert, EXPERTS - 1u) * EXPERT_ROWS;
    @unroll for (var i = 0; i < ROWS; i++) {
      @if EXACT && WHOLE { raw[i * STEPS + s] = w_load((base + w_row(g, i)) * UNITS + at % UNITS); }
      @else { raw[i * STEPS + s] = w_masked(w_load((base + w_row(g, i)) * UNITS + at % UNITS), j < TERMS * UNITS && expert < EXPERTS); }
    }
  }`;

const WRITE = /* wgsl */ `
  @if EPILOGUE == "swiglu" {
    @unroll for (var i = 0; i < ROWS; i += 2) {
      write(wg.y, g * (ROWS / 2u) + i / 2u, acc[i] / (1.0 + exp(-acc[i])) * acc[i + 1]);
    }
  } @else {
    @if EPILOGUE == "add" { var sum = 0.0; }
    @unroll for (var i = 0; i < ROWS; i++) {
      @if EPILOGUE == "add" {
        acc[i] += residual[i];
        if (g * ROWS + i < EXPERT_ROWS) { sum += acc[i] * acc[i]; }
      }
      write(wg.y, g * ROWS + i, acc[i]);
    }
    @if EPILOGUE == "add" { if (g < PARTS) { squares[row * PARTS + g] = sum; } }
  }`;

/** Outputs of an expert per workgroup. */
const rowsOfWorkgroup = (
  { WORKGROUP, LOG_LANES, ROWS, EPILOGUE }: Constants,
): number =>
  (Number(WORKGROUP) >> Number(LOG_LANES)) * Number(ROWS) /
  (EPILOGUE === "swiglu" ? 2 : 1);

/** Partial sums of squares per row that EPILOGUE "add" leaves: one per lane group. */
export function expertSquareParts(n: number, constants: Constants): number {
  const groups = Number(constants.WORKGROUP) >> Number(constants.LOG_LANES);
  return Math.ceil(n / rowsOfWorkgroup(constants)) * groups;
}

/** WGSL: the experts of a row. */
export const EXPERT_AT = /* wgsl */ `
/** Number s of a row's experts, among those in w. */
fn expert_at(row: u32, s: u32) -> u32 { return u32(chosen_at(2u * row * USED + s)) - u.first; }`;

/** WGSL: the row of an expert that an accumulator sums. */
const EXPERT_ROW = /* wgsl */ `
/** The row of an expert that accumulator i of lane group g sums. */
fn w_row(g: u32, i: u32) -> u32 {
  @if EPILOGUE == "swiglu" {
    return (i & 1u) * (EXPERTS * EXPERT_ROWS) + min(g * (ROWS / 2u) + (i >> 1u), EXPERT_ROWS - 1u);
  } @else {
    return min(g * ROWS + i, EXPERT_ROWS - 1u);
  }
}`;

/**
 * Rows of each expert's matrix, gates and ups counted once.
 *
 * @throws {Error} if experts cannot share the rows.
 */
export function expertRows(
  held: number,
  { EXPERTS, EPILOGUE }: Constants,
): number {
  const swiglu = EPILOGUE === "swiglu", experts = Number(EXPERTS);
  const rows = held / experts / (swiglu ? 2 : 1);
  if (Number.isInteger(rows)) return rows;
  throw new Error(
    `Cannot share ${held} rows among ${experts} experts: must be a multiple${
      swiglu ? " of twice as many" : ""
    }`,
  );
}

/**
 * Rows times the matrices of the experts that chooseExperts chose for each, stored by
 * output row, one expert after another. Only those are read. As in gemv.ts, a lane group
 * shares ROWS rows of `w`, and all loads of a chunk are issued before the first use.
 *
 * EPILOGUE "store", "swiglu": each expert of each row of `x` makes a row of `y`; "swiglu"
 * as in gemv.ts, with the gates of all experts in the first half of `w`. "add": a row of
 * `y` is added to by its experts, each multiplied by its weight; their rows of `x` follow
 * one another, so that the sum of all is one long sum, in an order that never changes.
 *
 * `w` holds EXPERTS experts, the first of which has number `first`. WHOLE 0: others are
 * elsewhere.
 */
export const expertGemv = defineKernel<ExpertCase>({
  name: "expertGemv",
  ...expertContract,
  constants: {
    EXPERTS: 1,
    WHOLE: 1,
    WORKGROUP: 128,
    ROWS: 2,
    LOG_LANES: 5,
    SUBGROUPS: 1,
    STEPS: 4,
    EPILOGUE: "store",
  },
  derive: (c, { held, k, used, parts }) => {
    const units = Math.ceil(k / Number(c.W_UNIT));
    const terms = c.EPILOGUE === "add" ? used : 1, loads = terms * units;
    return {
      USED: used,
      TERMS: terms,
      EXPERT_ROWS: expertRows(held, c),
      UNITS: units,
      ...laneSteps(loads, c),
      FOURS: Number(c.W_UNIT) / 4,
      PARTS: parts ?? 0,
    };
  },
  // A row of "add" is that of all its experts.
  tuning: rowTuning(({ swiglu, m, k, format }) =>
    Math.ceil(k / format.loads[0]) * (swiglu ? 1 : m)
  ),
  grid: ({ choices, used }, c) => [
    Math.ceil(c.EXPERT_ROWS / rowsOfWorkgroup(c)),
    choices / 2 * used / c.TERMS,
    1,
  ],
  body: /* wgsl */ `
${LANES}
const PER_WORKGROUP = WORKGROUP / LANES;

${EXPERT_ROW}
${EXPERT_AT}

fn write(at: u32, column: u32, value: f32) {
  if (column >= EXPERT_ROWS) { return; }
  y[at * u.stride + u.column + column] = value;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  let lane = tid % LANES;
  let g = wg.x * PER_WORKGROUP + tid / LANES;
  @split var acc: array<f32, ROWS>;
  @if EPILOGUE == "add" {
    let row = wg.y;
    @split var residual: array<f32, ROWS>;
    if (lane == 0u) {
      @unroll for (var i = 0; i < ROWS; i++) { residual[i] = y[row * u.stride + u.column + w_row(g, i)]; }
    }
  } @else {
    let row = wg.y / USED;
    let own = expert_at(row, wg.y % USED);
    @if !WHOLE { if (own >= EXPERTS) { return; } }
  }
@if W_VIEW == "unit" {
  @split var raw: array<w_Raw, ROWS * STEPS>;
  @if EPILOGUE == "add" { @split var weight: array<f32, STEPS>; }
  for (var c = 0u; c < CHUNKS; c++) {
    ${LOAD}
    @unroll for (var s = 0; s < STEPS; s++) {
      let at = row * TERMS * UNITS + min((c * STEPS + s) * LANES + lane, TERMS * UNITS - 1u);
      @unroll for (var f = 0; f < FOURS; f++) {
        @if EPILOGUE == "add" { let xv = x_at(at * FOURS + f) * weight[s]; } @else { let xv = x_at(at * FOURS + f); }
        @unroll for (var i = 0; i < ROWS; i++) { acc[i] += dot(w_four[f](raw[i * STEPS + s]), xv); }
      }
    }
  }
} @else {
  for (var t = 0u; t < TERMS; t++) {
    @if EPILOGUE == "add" {
      let expert = expert_at(row, t);
      let weight = chosen_at((2u * row + 1u) * USED + t);
    } @else {
      let expert = own;
      let weight = 1.0;
    }
    let base = min(expert, EXPERTS - 1u) * EXPERT_ROWS;
    for (var e = lane * 4u; e < u.k; e += LANES * 4u) {
      let four = x_span((row * TERMS + t) * u.k + e, u.k - e) * weight;
      @unroll for (var i = 0; i < ROWS; i++) {
        let product = dot(w_span((base + w_row(g, i)) * u.k + e, u.k - e), four);
        acc[i] += select(0.0, product, expert < EXPERTS);
      }
    }
  }
}
  @unroll for (var i = 0; i < ROWS; i++) { acc[i] = lanes_sum(acc[i], tid); }
  if (lane == 0u) {
    ${WRITE}
  }
}`,
  cases: [
    ...FLOATS.flatMap((w) => [
      {
        m: 2,
        experts: 5,
        used: 2,
        n: 19,
        k: 7,
        w,
        epilogue: "swiglu" as const,
      },
      { m: 2, experts: 5, used: 2, n: 37, k: 24, w, epilogue: "add" as const },
    ]),
    ...BLOCKS.flatMap((w) =>
      (["swiglu", "add"] as const).map((epilogue) => ({
        m: 1,
        experts: 6,
        used: 3,
        n: 10,
        k: 256,
        w,
        epilogue,
      }))
    ),
    { m: 3, experts: 4, used: 4, n: 12, k: 40, w: "bf16", epilogue: "store" },
    // Experts 2 to 6 of 7: each row has one of them.
    ...(["store", "swiglu", "add"] as const).map((epilogue) => ({
      m: 3,
      experts: 7,
      used: 3,
      n: 6,
      k: 64,
      w: "q8_0",
      epilogue,
      held: [2, 5] as const,
    })),
    // A layer of Qwen3-30B-A3B with fewer experts.
    {
      m: 1,
      experts: 9,
      used: 8,
      n: 768,
      k: 2048,
      w: "q4_k",
      epilogue: "swiglu",
    },
    { m: 1, experts: 9, used: 8, n: 2048, k: 768, w: "q4_k", epilogue: "add" },
  ],
  makeCase: (given, tools) =>
    expertCase(given, tools, {
      choose: chooseExpertGemv,
      parts: expertSquareParts,
    }),
});
