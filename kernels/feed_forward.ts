import { laneConstants, laneSteps } from "../lib/dispatch/capabilities.ts";
import { misfit, whyNotFeedForward } from "../lib/dispatch/feed_forward.ts";
import { formatNamed } from "../lib/formats/mod.ts";
import { matrixToF32, toF32 } from "../lib/formats/tensor.ts";
import { exchangeSums, LANES, ownedSum } from "../lib/webgpu/wgsl.ts";
import { EPS, type Float, SUM, u32Tensor } from "./case.ts";
import type { Cost, CostCall } from "./cost.ts";
import { defineKernel } from "./define.ts";
import {
  ADD_PENDING,
  NO_PENDING,
  pendingConstants,
  pendingRounding,
  pendingSums,
  pendingTensor,
  pendingWords,
} from "./pending.ts";

interface FeedForwardCase {
  hidden: number;
  inner: number;
  w: string;
  down: string;
  norm: Float;
  /** How large the row is, and what the MLP adds to it; 1 by default. */
  scale?: number;
  /** Constants; some that the device can run by default. */
  layout?: Readonly<Record<"WORKGROUP" | "COLUMNS" | "STEPS", number>>;
}

// Loads of one gate, one up and the lanes' parts of them; past the end of a row, zero.
const load = (chunk: string, column: string) => /* wgsl */ `
    @unroll for (var s = 0; s < STEPS; s++) {
      let unit = (${chunk} * STEPS + s) * LANES + lane;
      @unroll for (var i = 0; i < 2; i++) {
        let base = (${column} + i * INNER) * UNITS;
        @if EXACT { raw[i * STEPS + s] = w_load(base + unit); }
        @else { raw[i * STEPS + s] = w_masked(w_load(base + min(unit, UNITS - 1u)), unit < UNITS); }
      }
    }`;

// Workgroups begin at different rows of down_proj: it takes longer to add to the same sums at
// the same time. Rows stay in the 32 bytes that a memory access takes.
const TURN = /* wgsl */ `
fn turned(row: u32, group: u32) -> u32 { return (row + group * 40u) % HIDDEN; }`;

// A round of loads of down_proj: PIECES threads share a row of it.
const loadDown = (into: string, round: string) => /* wgsl */ `
    @unroll for (var s = 0; s < PIECES; s++) {
      ${into}[s] = down_load(turned((${round}) * WORKGROUP + s * (WORKGROUP / PIECES) + tid / PIECES, wg.x) * DOWN_UNITS + wg.x * PIECES + piece);
    }`;

// A column's gate and up, and what they give.
const MULTIPLY = (c: string) => /* wgsl */ `
      @unroll for (var s = 0; s < STEPS; s++) {
        let unit = min((${c} * STEPS + s) * LANES + lane, UNITS - 1u);
        @unroll for (var f = 0; f < FOURS; f++) {
          let v = row[unit * FOURS + f];
          gate += dot(w_four[f](raw[s]), v);
          up += dot(w_four[f](raw[STEPS + s]), v);
        }
      }`;
const GATED = /* wgsl */ `
    let column = first + turn * GROUPS;
    var gate = 0.0;
    var up = 0.0;
    @if CHUNKS > 1 {
      for (var c = 0u; c < CHUNKS; c++) {
        if (turn + c > 0u) { ${load("c", "column")} }
        ${MULTIPLY("c")}
      }
    } @else {
      @if TURNS > 1 { if (turn > 0u) { ${load("0u", "column")} } }
      ${MULTIPLY("0u")}
    }
    gate = lanes_sum(gate, tid) * factor;
    up = lanes_sum(up, tid) * factor;
    if (lane == 0u) {
      let own = turn * GROUPS + group;
      gated[own] = gate / (1.0 + exp(-gate)) * up;
    }`;

// Sums of a round of rows of down_proj.
const SUMS = {
  sums: "sums",
  count: "PIECES",
  log: "LOG_PIECES",
  lane: "piece",
};
const DOWN = /* wgsl */ `
    @split var sums: array<f32, PIECES>;
    @unroll for (var s = 0; s < PIECES; s++) {
      sums[s] = 0.0;
      @unroll for (var f = 0; f < DOWN_FOURS; f++) {
        sums[s] += dot(down_four[f](low[s]), gated_four(piece * DOWN_FOURS + f));
      }
    }
    ${exchangeSums(SUMS)}
    add_pending(u.k, turned(round * WORKGROUP + owned * (WORKGROUP / PIECES) + tid / PIECES, wg.x), sums[0] / unit);`;

/**
 * The whole MLP of one row: `x += down · (silu(gate · n) · (up · n))`, where n is x,
 * RMS-normed. A workgroup takes COLUMNS gates and ups, and with what they give the same columns
 * of down_proj, so that nothing but its part of each sum leaves it: that is added to what is
 * pending for the row (pending.ts). Two dispatches take a third longer, because the second
 * one waits for all of the first ("An MLP in one dispatch").
 *
 * Lanes of a subgroup share rows of gate_proj and up_proj, as in gemv.ts; the row is in
 * workgroup memory. Of down_proj, PIECES neighboring threads share a row, and exchange sums
 * until each has one row's. Its first loads are issued before anything is multiplied.
 *
 * The sums are added to the row by the kernel that reads it next, which cannot clear them: others
 * are still reading. So there are two buffers that take turns, and this kernel clears `cleared`.
 */
export const feedForward = defineKernel<FeedForwardCase>({
  name: "feedForward",
  buffers: {
    w: "n k as unit",
    down: "k inner as unit",
    x: "m k",
    norm: "k",
    pending: "inout any as atomic",
    cleared: "out words as raw",
  },
  uniforms: { eps: "f32" },
  constants: {
    WORKGROUP: 256,
    COLUMNS: 32,
    LOG_LANES: 5,
    SUBGROUPS: 1,
    STEPS: 2,
    ...NO_PENDING,
  },
  derive: (c, { m, n, k, inner, words }) => {
    const threads = Number(c.WORKGROUP), columns = Number(c.COLUMNS);
    const lanes = 2 ** Number(c.LOG_LANES);
    const pieces = columns / Number(c.DOWN_UNIT);
    const problem = m > 1
      ? `there must be one row, not ${m}`
      : n !== 2 * inner
      ? `${n} gates and ups must be twice the ${inner} columns of down_proj`
      : c.W_VIEW !== "unit" || c.DOWN_VIEW !== "unit"
      ? `rows of ${k} and ${inner} must be whole units of ${c.W_UNIT} and ${c.DOWN_UNIT}`
      : misfit({ hidden: k, inner, pieces }, { threads, columns, lanes });
    if (problem) throw new Error(`Cannot run feedForward: ${problem}`);
    const units = k / Number(c.W_UNIT);
    return {
      INNER: inner,
      UNITS: units,
      ...laneSteps(units, c),
      FOURS: Number(c.W_UNIT) / 4,
      TURNS: columns * lanes / threads,
      SHARE_STEPS: Math.ceil(threads / lanes / lanes),
      HIDDEN: k,
      DOWN_UNITS: inner / Number(c.DOWN_UNIT),
      DOWN_FOURS: Number(c.DOWN_UNIT) / 4,
      PIECES: pieces,
      LOG_PIECES: Math.log2(pieces),
      ROUNDS: k / threads,
      CLEARED: Math.ceil(words / (inner / columns)),
    };
  },
  grid: ({ inner }, { COLUMNS }) => [inner / COLUMNS, 1, 1],
  cost: (call) => feedForwardCost(call),
  body: /* wgsl */ `
${LANES}
${ADD_PENDING}
${TURN}
const GROUPS = WORKGROUP / LANES;
var<workgroup> row: array<vec4f, HIDDEN / 4u>;
var<workgroup> shares: array<f32, GROUPS>;
var<workgroup> gated: array<f32, COLUMNS>;

fn gated_four(i: u32) -> vec4f { return vec4f(gated[4u * i], gated[4u * i + 1u], gated[4u * i + 2u], gated[4u * i + 3u]); }

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  let lane = tid % LANES;
  let group = tid / LANES;
  let piece = tid % PIECES;
  let first = wg.x * COLUMNS + group;
  // The row is requested first: it must be there before weights can be used.
  @split var value: array<f32, ROUNDS>;
  @split var weight: array<f32, ROUNDS>;
  @unroll for (var i = 0; i < ROUNDS; i++) {
    value[i] = x_at(i * WORKGROUP + tid);
    weight[i] = norm_at(i * WORKGROUP + tid);
  }
  @split var raw: array<w_Raw, 2 * STEPS>;
  ${load("0u", "first")}
  @split var low: array<down_Raw, PIECES>;
  ${loadDown("low", "0u")}
  // The row, normed but for the factor.
  var squared = 0.0;
  @unroll for (var i = 0; i < ROUNDS; i++) {
    let at = i * WORKGROUP + tid;
    squared += value[i] * value[i];
    let normed = value[i] * weight[i];
    // One thread writes the four elements of a vector.
    let four = vec4f(normed, subgroupShuffleXor(normed, 1u), subgroupShuffleXor(normed, 2u), subgroupShuffleXor(normed, 3u));
    if (lane % 4u == 0u) { row[at / 4u] = four; }
  }
  squared = lanes_sum(squared, tid);
  if (lane == 0u) { shares[group] = squared; }
  workgroupBarrier();
  var all = 0.0;
  @unroll for (var i = 0; i < SHARE_STEPS; i++) {
    let at = i * LANES + lane;
    all += select(0.0, shares[min(at, GROUPS - 1u)], at < GROUPS);
  }
  let mean = lanes_sum(all, tid) / f32(u.k);
  let factor = inverseSqrt(mean + u.eps);
  let unit = unit_of(mean); // the same in all workgroups
  if (wg.x == 0u && tid == 0u) { keep_unit(u.k, unit); }
  @if TURNS > 1 { for (var turn = 0u; turn < TURNS; turn++) { ${GATED} } }
  @else { let turn = 0u; ${GATED} }
  workgroupBarrier();
  // Which of a round's rows are this thread's in the end.
  ${ownedSum(SUMS)}
  @if ROUNDS > 1 {
    for (var round = 0u; round < ROUNDS; round++) {
      @split var next: array<down_Raw, PIECES>;
      ${loadDown("next", "min(round + 1u, ROUNDS - 1u)")}
      ${DOWN}
      @unroll for (var s = 0; s < PIECES; s++) { low[s] = next[s]; }
    }
  } @else { let round = 0u; ${DOWN} }
  for (var i = wg.x * CLEARED + tid; i < min((wg.x + 1u) * CLEARED, u.words); i += WORKGROUP) { cleared[i] = 0u; }
}`,
  cases: [
    { hidden: 64, inner: 96, w: "f32", down: "bf16", norm: "bf16" },
    { hidden: 96, inner: 64, w: "f16", down: "f32", norm: "f32" },
    { hidden: 256, inner: 512, w: "q4_k", down: "q6_k", norm: "f32" },
    { hidden: 256, inner: 160, w: "q8_0", down: "q8_0", norm: "f16" },
    { hidden: 1024, inner: 256, w: "bf16", down: "bf16", norm: "bf16" },
  ],
  makeCase(given, { device, random, reference }) {
    const { hidden, inner } = given;
    const loaded = formatNamed(given.down).loads[0];
    const layouts = given.layout
      ? [given.layout]
      : [256, 128, 64, 32].map((WORKGROUP) => ({
        ...{ WORKGROUP, COLUMNS: Math.max(32, loaded), STEPS: 4 },
      }));
    const layout = layouts.map((layout) => ({
      ...layout,
      ...laneConstants(device),
    })).find((layout) =>
      !whyNotFeedForward({ hidden, inner, unit: loaded }, layout, device)
    );
    if (!layout) return undefined;
    const adders = inner / layout.COLUMNS;
    const constants = {
      ...layout,
      ...pendingConstants(adders),
    };
    const { scale = 1 } = given,
      x = random.tensor("f32", [1, hidden], 2 * scale);
    const norm = random.tensor(given.norm, [hidden], 0.5, 1);
    const w = random.matrix(given.w, [2 * inner, hidden], 0.2);
    const down = random.matrix(given.down, [hidden, inner], 0.2 * scale);
    const before = Float32Array.from(
      { length: hidden },
      () => scale * random.next(),
    );
    const unit = unitOf(toF32(x));
    // Counts too for a sum that is nearly zero.
    const rounding = pendingRounding(constants, { adders, unit }) / SUM;
    return {
      what: `${given.w} [1, ${hidden}] × [${
        2 * inner
      }, ${hidden}]ᵀ with SwiGLU, normed first, × ${given.down} [${hidden}, ${inner}]ᵀ, ${layout.WORKGROUP} threads`,
      operands: {
        ...{ w, down, x, norm },
        pending: pendingTensor(before, constants, unit),
        cleared: u32Tensor([pendingWords(hidden)]),
      },
      constants,
      uniforms: { eps: EPS },
      expected: () => {
        const rows = reference.rmsNormed(toF32(x), toF32(norm), EPS);
        const both = reference.linear(rows, matrixToF32(w), {
          ...{ m: 1, n: 2 * inner, k: hidden },
        });
        const gated = reference.epilogue("swiglu", both, 2 * inner, 0);
        const by = (values: Float64Array) =>
          reference.linear(values, matrixToF32(down), {
            ...{ m: 1, n: hidden, k: inner },
          });
        const product = by(gated.values), off = by(gated.norms);
        return [{
          of: (buffers) => pendingSums(buffers, constants),
          values: product.values.map((v, i) => v + before[i]),
          norms: product.norms.map((norm, i) =>
            norm + off.norms[i] + Math.abs(before[i]) + rounding
          ),
          tolerance: SUM,
        }, {
          of: "cleared",
          values: new Float64Array(pendingWords(hidden)),
          tolerance: 0,
        }];
      },
    };
  },
});

/** What the kernel counts sums in: a power of 2 up to the root of the mean square, and up to 1. */
function unitOf(row: Float32Array): number {
  const mean = row.reduce((sum, v) => sum + v * v, 0) / row.length;
  return Math.min(1, 2 ** Math.floor(Math.log2(Math.sqrt(mean))));
}

/** Costs of both matmuls, split by their bytes. */
function feedForwardCost(call: CostCall): Cost[] {
  const { k, n, dispatch: { dims: { inner } } } = call;
  const bytes = {
    gate_up_proj: n * k * call.size("w") + 4 * k,
    down_proj: k * inner * call.size("down") + 8 * k,
  };
  const all = bytes.gate_up_proj + bytes.down_proj;
  const matmul = (name: keyof typeof bytes, [n, k]: [number, number]) =>
    call.whole({
      name,
      group: "linear",
      matmul: true,
      shape: `[1, ${k}] × [${k}, ${n}]`,
      dtypes: `f32 × ${call.dtype(name === "down_proj" ? "down" : "w")} → f32`,
      flops: 2 * n * k,
      bytes: bytes[name],
      part: bytes[name] / all,
      fused: name === "down_proj" ? ["residual add"] : ["RMSNorm", "SwiGLU"],
    });
  return [
    ...matmul("gate_up_proj", [n, k]),
    ...matmul("down_proj", [k, inner]),
  ];
}
