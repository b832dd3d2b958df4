import { chooseExpertGemv } from "../lib/dispatch/experts.ts";
import { EPS, INTEGER_SUM } from "./case.ts";
import { defineKernel } from "./define.ts";
import { type ExpertCase, expertCase, expertContract } from "./expert_case.ts";
import { EXPERT_AT, expertRows } from "./expert_gemv.ts";
import {
  BODY,
  deriveInt8,
  int8Parts,
  int8Tuning,
  int8Workgroups,
  INTEGERS,
  leftBuffers,
} from "./gemv_int8.ts";

/**
 * Rows times the matrices of their experts, as expert_gemv.ts, in quantised blocks that are
 * multiplied as integers, as gemv_int8.ts does.
 *
 * With EPILOGUE "add", a row of `x` is multiplied by the weight of its expert before it is
 * rounded, so that the sum over all experts is one sum. `n` is the number of rows of an
 * expert, gates and ups counted separately. With ROUNDED, there is one row of `x`, which the
 * kernel before has rounded; with LEAVES, the results of a row's experts are weighted and
 * rounded as one row, which "add" sums next.
 */
export const expertGemvInt8 = defineKernel<ExpertCase>({
  name: "expertGemvInt8",
  ...expertContract,
  buffers: (constants) => {
    const { squares, ...contract } = expertContract.buffers(constants);
    return {
      ...contract,
      ...(constants.ROUNDED ? { x: "any words as quad" } : {}),
      ...leftBuffers(constants, squares ? { squares } : {}),
    };
  },
  uniforms: { ...expertContract.uniforms, eps: "f32" },
  constants: {
    EXPERTS: 1,
    WHOLE: 1,
    WORKGROUP: 128,
    SETS: 4,
    ROWS: 4,
    RESULTS: 16,
    LOG_LANES: 5,
    SUBGROUPS: 1,
    NORM: 0,
    EPILOGUE: "store",
    ROUNDED: 0,
    LEAVES: 0,
    TWO: 0,
  },
  derive: (c, { held, k, used, parts }) => {
    const terms = c.EPILOGUE === "add" ? used : 1;
    return {
      ...deriveInt8(c, {
        ...{ m: 1, k: terms * k, terms, parts },
        ...{ width: expertRows(held, c), rows: used / terms },
      }),
      EXPERT_ROWS: expertRows(held, c),
      USED: used,
      TERMS: terms,
    };
  },
  tuning: int8Tuning(({ swiglu, m, k }) => swiglu ? k : m * k),
  grid: ({ n, choices, used }, c) => [
    int8Workgroups(n, c),
    choices / 2 * used / c.TERMS,
    1,
  ],
  body: /* wgsl */ `
${EXPERT_AT}

/** The row of an expert for sum i of the workgroup whose first result is first. */
fn w_row(first: u32, i: u32) -> u32 {
  @if EPILOGUE == "swiglu" { return (i & 1u) * (EXPERTS * EXPERT_ROWS) + min(first + (i >> 1u), EXPERT_ROWS - 1u); }
  @else { return min(first + i, EXPERT_ROWS - 1u); }
}

/** The part of w that a unit of all experts of a row is in; y is a row, or a pair. */
fn place_of(y: u32, unit: u32) -> u32 {
  @if EPILOGUE == "add" { let expert = expert_at(y, unit / ROW_UNITS); }
  @else { let expert = expert_at(y / USED, y % USED); }
  return min(expert, EXPERTS - 1u) * EXPERT_ROWS * ROW_UNITS + unit % ROW_UNITS;
}

@if ROUNDED { @if NORM { fn squares_at(at: u32) -> vec4f { return bitcast<vec4f>(x[at]); } } }
@else {
fn x_four(y: u32, at: u32) -> vec4f {
  @if EPILOGUE == "add" {
    let s = at / (X_FOURS / USED);
    let weight = chosen_at((2u * y + 1u) * USED + s);
    @if WHOLE { return x_at(y * X_FOURS + at) * weight; }
    @else { return x_at(y * X_FOURS + at) * select(0.0, weight, expert_at(y, s) < EXPERTS); }
  } @else {
    return x_at(y / USED * X_FOURS + at);
  }
}
}

fn y_begin(y: u32) -> u32 { return y * u.stride + u.column; }

@if LEAVES {
/** Where four results of a pair are in the row of all. */
fn left_four(y: u32, at: u32) -> u32 { return y * LEFT_FOURS + at; }

/** What the results of a pair are weighted by, which are summed next. */
fn left_weight(y: u32) -> f32 {
  @if EPILOGUE == "add" { return 1.0; } @else { return chosen_at((2u * (y / USED) + 1u) * USED + y % USED); }
}
}

/** Whether the expert of a pair is elsewhere. */
fn skips(y: u32) -> bool {
  @if WHOLE || EPILOGUE == "add" { return false; }
  @else { return expert_at(y / USED, y % USED) >= EXPERTS; }
}
${BODY}`,
  cases: [
    ...INTEGERS.flatMap((w) =>
      (["swiglu", "add"] as const).map((epilogue) => ({
        ...{ m: 2, experts: 5, used: 3, n: 10, k: 512, w, epilogue },
      }))
    ),
    { m: 3, experts: 4, used: 4, n: 12, k: 256, w: "q4_0", epilogue: "store" },
    // Experts 2 to 6 of 7: each row has one of them.
    ...(["store", "swiglu", "add"] as const).map((epilogue) => ({
      ...{ m: 3, experts: 7, used: 3, n: 6, k: 256, w: "q8_0", epilogue },
      held: [2, 5] as const,
    })),
    // A layer of Qwen3-30B-A3B with fewer experts.
    ...[
      {
        m: 1,
        experts: 9,
        used: 8,
        n: 768,
        k: 2048,
        epilogue: "swiglu" as const,
      },
      { m: 1, experts: 9, used: 8, n: 2048, k: 768, epilogue: "add" as const },
    ].map((given) => ({ ...given, w: "q4_k" })),
  ],
  // With fewer lanes, expertGemv runs.
  makeCase: (given, tools) => {
    if (tools.device.subgroupSize < 8) return undefined;
    const one = expertCase(given, tools, {
      choose: (shape, device) =>
        chooseExpertGemv({ ...shape, largest: 1 }, device),
      parts: int8Parts,
      tolerance: INTEGER_SUM,
    });
    return { ...one, uniforms: { ...one.uniforms, eps: EPS } };
  },
});
