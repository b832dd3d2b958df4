import { laneConstants } from "../lib/dispatch/capabilities.ts";
import type { LinearTarget } from "../lib/dispatch/keys.ts";
import type { Tuning } from "../lib/dispatch/limits.ts";
import { formatNamed } from "../lib/formats/mod.ts";
import { type Constants, ROUNDED_BLOCK } from "../lib/dispatch/shapes.ts";
import { type Contract, splitGrid } from "../lib/webgpu/kernel.ts";
import { LANES } from "../lib/webgpu/wgsl.ts";
import { BLOCKS, INTEGER_SUM } from "./case.ts";
import { type Cost, type CostCall, linearCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import { FACTOR, SQUARED } from "./gemv.ts";
import { type LinearCase, linearCase } from "./linear_case.ts";
import {
  LEFT,
  ROUND_BLOCK,
  ROUND_FOUR,
  ROUNDED_PLANES,
  roundedSizes,
  STEP_OF_REST,
} from "./rounded_row.ts";
import { ofSecond, withSecond } from "./second_part.ts";

/** Formats whose quants are integers. */
export const INTEGERS = BLOCKS.filter((name) => formatNamed(name).integers);
/** Maximum blocks of x that a lane holds: a bit of a word says whether each has an outlier. */
const MOST_HELD = 32;
/**
 * Maximum loads in flight per lane: with their scales, each takes up to ten registers, of
 * about 256, and x as many for 32 elements.
 */
const MOST_LOADS = 16;
/** Results that a workgroup rounds are whole blocks. */
const LEAST_RESULTS = ROUNDED_BLOCK;

// The units of x and of w that a lane takes, and those of the first rows of w. Units past
// the end of a row count as zero.
const BEGIN = /* wgsl */ `
    @split var unit: array<u32, HELD>;
    @split var place: array<u32, HELD>;
    @split var raw: array<w_Words, ROWS * HELD>;
    @unroll for (var h = 0; h < HELD; h++) {
      unit[h] = min((h * SETS + share) * LANES + lane, UNITS - 1u);
      place[h] = place_of(wg.y, unit[h]);
    }
    @unroll for (var i = 0; i < ROWS; i++) {
      let row = w_row(first, min(i * TEAMS + team, ALL_ROWS - 1u)) * ROW_UNITS;
      @unroll for (var h = 0; h < HELD; h++) { raw[i * HELD + h] = w_words(row + place[h]); }
    }`;

// A lane's part of x: two planes of integers, and of each block the scale and the sum.
const HOLD = /* wgsl */ `
    @split var high: array<vec4u, HELD * QUADS>;
    @split var low: array<vec4u, HELD * QUADS>;
    @if !ROUNDED {
      @split var above: array<vec4u, HELD * QUADS>;
      @split var below: array<vec4u, HELD * QUADS>;
    }
    @split var scale: array<f32, HELD * QUADS>;
    @split var sum: array<f32, HELD * QUADS>;
    var outliers = 0u;
    @unroll for (var h = 0; h < HELD; h++) {
      let within = (h * SETS + share) * LANES + lane < UNITS;
      @unroll for (var q = 0; q < QUADS; q++) {
        let at = unit[h] * QUADS + q;
        @if ROUNDED {
          high[h * QUADS + q] = x[X_BEGIN + at];
          low[h * QUADS + q] = x[X_BEGIN + BLOCKS + at];
          let two = bitcast<vec4f>(x[X_BEGIN + ${ROUNDED_PLANES} * BLOCKS + at / 2u]);
          @if QUADS == 1 { let block = select(two.xy, two.zw, at % 2u == 1u); }
          @else { @if q % 2 == 0 { let block = two.xy; } @else { let block = two.zw; } }
        } @else {
          let made = round_block(x_four(wg.y, 4u * at), x_four(wg.y, 4u * at + 1u), x_four(wg.y, 4u * at + 2u), x_four(wg.y, 4u * at + 3u));
          high[h * QUADS + q] = made.planes[0];
          low[h * QUADS + q] = made.planes[1];
          above[h * QUADS + q] = made.planes[2];
          below[h * QUADS + q] = made.planes[3];
          let block = made.block;
        }
        scale[h * QUADS + q] = select(0.0, abs(block.x), within);
        sum[h * QUADS + q] = block.y;
        outliers |= select(0u, 1u << (h * QUADS + q), within && block.x < 0.0);
      }
    }`;

// Adds the products of what rounding left beside outliers. It reads the rows again, in a loop
// of little code: a large kernel waits for its instructions.
const ADD_REST = /* wgsl */ `
      if (outliers != 0u) {
        for (var i = 0u; i < ROWS * once; i++) {
          let row = w_row(first, min((turn * ROWS + i) * TEAMS + team, ALL_ROWS - 1u)) * ROW_UNITS;
          var value = 0.0;
          @unroll for (var h = 0; h < HELD; h++) {
            let words = w_words(row + place[h]);
            let factors = w_factors(words.scales, row + place[h]);
            @unroll for (var q = 0; q < QUADS; q++) {
              @if ROUNDED {
                let over = x[X_BEGIN + 2u * BLOCKS + unit[h] * QUADS + q];
                let under = x[X_BEGIN + 3u * BLOCKS + unit[h] * QUADS + q];
              } @else {
                let over = above[h * QUADS + q];
                let under = below[h * QUADS + q];
              }
              var upper = 0;
              var lower = 0;
              @unroll for (var f = 0; f < 4; f++) {
                let bytes = w_bytes[4 * q + f](words);
                upper += dot4I8Packed(bytes, over[f]);
                lower += dot4I8Packed(bytes, under[f]);
              }
              var product = f32((upper << 7u) + lower);
              @if OFFSET > 0 || MIN {
                var uppers = 0;
                var lowers = 0;
                @unroll for (var f = 0; f < 4; f++) {
                  uppers += dot4I8Packed(0x01010101u, over[f]);
                  lowers += dot4I8Packed(0x01010101u, under[f]);
                }
                let all = f32((uppers << 7u) + lowers);
                product -= f32(OFFSET) * all;
              }
              @if MIN { let weighted = w_scale[q / GROUP_BLOCKS](factors) * product - w_min[q / GROUP_BLOCKS](factors) * all; }
              @else { let weighted = w_scale[q / GROUP_BLOCKS](factors) * product; }
              let step = scale[h * QUADS + q] * ${STEP_OF_REST};
              value += select(0.0, step * weighted, ((outliers >> (h * QUADS + q)) & 1u) == 1u);
            }
          }
          @unroll for (var r = 0; r < ROWS; r++) { acc[r] += select(0.0, value, i == r); }
        }
      }`;

// Multiplies x by the rows of a team, ROWS of which are on their way at any time.
const MULTIPLY = /* wgsl */ `
    @if MIN {
      @split var total: array<f32, HELD * QUADS>;
      @unroll for (var n = 0; n < HELD * GROUPS; n++) {
        total[n] = 0.0;
        @unroll for (var q = n * GROUP_BLOCKS; q < (n + 1) * GROUP_BLOCKS; q++) { total[n] += scale[q] * sum[q]; }
      }
    }
    // once is 1, which compilers cannot know: they would unroll the loop.
    for (var turn = 0u; turn < TURNS * once; turn++) {
      @split var acc: array<f32, ROWS>;
      @unroll for (var i = 0; i < ROWS; i++) {
        let own = (turn * ROWS + i) * TEAMS + team;
        let row = w_row(first, min(own, ALL_ROWS - 1u)) * ROW_UNITS;
        acc[i] = 0.0;
        @unroll for (var h = 0; h < HELD; h++) {
          let factors = w_factors(raw[i * HELD + h].scales, row + place[h]);
          @unroll for (var n = 0; n < GROUPS; n++) {
            var value = 0.0;
            @unroll for (var q = n * GROUP_BLOCKS; q < (n + 1) * GROUP_BLOCKS; q++) {
              var upper = 0;
              var lower = 0;
              @unroll for (var f = 0; f < 4; f++) {
                let bytes = w_bytes[4 * q + f](raw[i * HELD + h]);
                upper += dot4I8Packed(bytes, high[h * QUADS + q][f]);
                lower += dot4I8Packed(bytes, low[h * QUADS + q][f]);
              }
              // Exact, so that an outlier times a quant of OFFSET is 0.
              let product = f32((upper << 7u) + lower);
              @if OFFSET > 0 { value += scale[h * QUADS + q] * (product - f32(OFFSET) * sum[h * QUADS + q]); }
              @else { value += scale[h * QUADS + q] * product; }
            }
            @if MIN { acc[i] += w_scale[n](factors) * value - w_min[n](factors) * total[h * GROUPS + n]; }
            @else { acc[i] += w_scale[n](factors) * value; }
          }
        }
        @if TURNS > 1 {
          // After the last turn, they are not used.
          let later = w_row(first, min(own + ROWS * TEAMS, ALL_ROWS - 1u)) * ROW_UNITS;
          @unroll for (var h = 0; h < HELD; h++) { raw[i * HELD + h] = w_words(later + place[h]); }
        }
      }${ADD_REST}
      @unroll for (var i = 0; i < ROWS; i++) {
        let own = (turn * ROWS + i) * TEAMS + team;
        let all = lanes_sum(acc[i], tid);
        if (lane == 0u && own < ALL_ROWS) { sums[share * ALL_ROWS + own] = all; }
      }
    }`;

/** What a workgroup does with one part of the matrix. */
const PART = BEGIN + HOLD + MULTIPLY;

// Results, each by one thread, from the sums of all sets.
const FINISH = /* wgsl */ `
  workgroupBarrier();
${FACTOR}
  @unroll for (var e = 0; e < EACH; e++) {
    let own = e * WORKGROUP + tid;
    let within = own < RESULTS && first + own < width;
    @split var all: array<f32, HALVES>;
    @unroll for (var i = 0; i < HALVES; i++) {
      all[i] = 0.0;
      @unroll for (var s = 0; s < SETS; s++) {
        all[i] += sums[s * ALL_ROWS + min(own, RESULTS - 1u) * HALVES + i];
      }
      all[i] *= factor;
    }
    @if EPILOGUE == "swiglu" { let value = all[0] / (1.0 + exp(-all[0])) * all[1]; }
    @else { @if EPILOGUE == "add" { let value = all[0] + residual[e]; } @else { let value = all[0]; } }
    if (within) { y[y_first + first + own] = value; }
    @if LEAVES { if (own < RESULTS) { results[own] = value; } }
    @else { @if EPILOGUE == "add" {
      let squared = lanes_sum(select(0.0, value * value, within), tid);
      if (lane == 0u && own < RESULTS) { squares[squares_first + index * RESULT_GROUPS + own / LANES] = squared; }
    } }
  }
  @if EPILOGUE == "add" && !LEAVES {
    if (index == 0u && tid == 0u) {
      for (var i = count * RESULT_GROUPS; i < PARTS; i++) { squares[squares_first + i] = 0.0; }
    }
  }`;

// Rounds the results of a workgroup for the next kernel, normed but for the factor.
const LEAVE = /* wgsl */ `
  workgroupBarrier();
  @unroll for (var e = 0; e < LEFT_EACH; e++) {
    let own = e * WORKGROUP + tid;
    let four = left_four(wg.y, first / 4u + own);
    let at = 4u * min(own, RESULTS / 4u - 1u);
    let value = left_weight(wg.y) * vec4f(results[at], results[at + 1u], results[at + 2u], results[at + 3u]);
    @if EPILOGUE == "add" {
      var squared = dot(value, value);
      @unroll for (var b = 0; b < 2; b++) { squared += subgroupShuffleXor(squared, 1u << b); }
      let made = round_four(value * norms[e]);
    } @else { let made = round_four(value); }
    if (own < RESULTS / 4u && first + 4u * own < width) {
      left_put(four, made);
      @if EPILOGUE == "add" { left_square(four, squared); }
    }
  }
  @if EPILOGUE == "add" { if (index == 0u && tid == 0u) { left_end(); } }`;

/** What is tuned where lanes hold a row of x, which has `kOf` elements. */
export function int8Tuning(
  kOf: (target: LinearTarget) => number,
): Tuning<LinearTarget> {
  return {
    of: "linear",
    grid: {
      WORKGROUP: [64, 128, 256, 512, 1024],
      SETS: [1, 2, 4, 8, 16],
      ROWS: [1, 2, 4],
      RESULTS: [16, 32, 64, 128],
    },
    settle(target, given, device) {
      const lanes = 2 ** laneConstants(device).LOG_LANES;
      const SETS = setsOf(given, kOf(target) / target.format.loads[0], lanes);
      return { ...given, SETS };
    },
    needs(target, { WORKGROUP, SETS, ROWS, RESULTS }, device) {
      const lanes = 2 ** laneConstants(device).LOG_LANES;
      const [unit] = target.format.loads, units = kOf(target) / unit;
      const sets = setsOf({ WORKGROUP, SETS }, units, lanes);
      const held = Math.ceil(units / (sets * lanes)), loads = ROWS * held;
      const rows = RESULTS * (target.swiglu ? 2 : 1);
      return {
        threads: WORKGROUP,
        bytes: 4 * (sets * rows + RESULTS),
        problem: WORKGROUP % lanes
          ? `WORKGROUP is ${WORKGROUP}, must be whole groups of ${lanes} lanes`
          : RESULTS % LEAST_RESULTS
          ? `RESULTS is ${RESULTS}, must be a multiple of ${LEAST_RESULTS}: they may be rounded in blocks of as many`
          : loads * unit > MOST_LOADS * 32
          ? `${loads} loads of ${unit} elements in flight, at most ${
            MOST_LOADS * 32 / unit
          } fit registers`
          : undefined,
      };
    },
  };
}

/** Lane groups that share a row: at most SETS, as divide those of a workgroup and have work. */
function setsOf(
  { WORKGROUP, SETS }: Constants,
  units: number,
  lanes: number,
): number {
  const groups = Number(WORKGROUP) / lanes;
  let sets = Math.min(Number(SETS), groups, Math.ceil(units / lanes));
  while (sets > 1 && groups % sets) sets--;
  return Math.max(1, Math.floor(sets));
}

/** What depends on the format of a part. */
const QUANTS = ["GROUPS", "GROUP_BLOCKS", "OFFSET", "MIN"];

/** What kernels know about the quants of a format, whose loads have `unit` elements. */
function deriveQuants(format: string, unit: number, prefix = ""): Constants {
  const { group = unit, offset = 0, min = false } =
    formatNamed(format).integers ?? {};
  return Object.fromEntries(
    Object.entries({
      GROUPS: unit / group,
      GROUP_BLOCKS: group / ROUNDED_BLOCK,
      OFFSET: offset,
      MIN: min ? 1 : 0,
    }).map(([name, value]) => [prefix + name, value]),
  );
}

/** Rows of w that make a result. */
const halvesOf = ({ EPILOGUE }: Constants) => EPILOGUE === "swiglu" ? 2 : 1;

/** Workgroups that make the results of `n` rows of w. */
export const int8Workgroups = (n: number, constants: Constants): number =>
  Math.ceil(n / halvesOf(constants) / Number(constants.RESULTS));

/**
 * Partial sums of squares that EPILOGUE "add" leaves: one for each lane group with results,
 * and zeros up to a multiple of four.
 */
export function int8Parts(n: number, constants: Constants): number {
  const groups = Math.ceil(
    Number(constants.RESULTS) / 2 ** Number(constants.LOG_LANES),
  );
  return 4 * Math.ceil(int8Workgroups(n, constants) * groups / 4);
}

/** Buffers for what the next kernel takes: rounded results, or what is left `otherwise`. */
export function leftBuffers(
  { LEAVES, EPILOGUE }: Constants,
  otherwise: Contract,
): Contract {
  if (!LEAVES) return otherwise;
  return {
    ...(EPILOGUE === "add" ? { nextNorm: "any as vec4" } : {}),
    left: "out any as quad",
  };
}

/** Constants for `rows` of `width` results that are rounded for the next kernel as one row. */
function deriveLeft(c: Constants, width: number, rows: number): Constants {
  if (!c.LEAVES) return {};
  const results = Number(c.RESULTS);
  if (results % ROUNDED_BLOCK || width % ROUNDED_BLOCK) {
    throw new Error(
      `Cannot round ${width} results, ${results} per workgroup: both must be whole blocks of ${ROUNDED_BLOCK}`,
    );
  }
  return {
    LEFT_BLOCKS: rows * width / ROUNDED_BLOCK,
    LEFT_FOURS: width / 4,
    LEFT_EACH: Math.ceil(results / 4 / Number(c.WORKGROUP)),
  };
}

/**
 * Derives the remaining constants for rows of x of `k` elements, each of `terms` rows of w
 * in turn.
 */
export function deriveInt8(
  c: Constants,
  { m = 1, k, terms, parts = 0, width = 0, rows = 1 }: {
    m?: number;
    k: number;
    terms: number;
    parts?: number;
    width?: number;
    rows?: number;
  },
) {
  const { integers } = formatNamed(String(c.W_DTYPE));
  if (
    m > 1 || !integers || Number(c.LOG_LANES) < 3 || !c.SUBGROUPS ||
    c.W_VIEW !== "unit"
  ) {
    throw new Error(
      `Cannot multiply [${m}, ${k}] by ${c.W_DTYPE} as integers: there must be one row of whole loads, quants that are integers, and 8 lanes or more that exchange values`,
    );
  }
  const unit = Number(c.W_UNIT), lanes = 1 << Number(c.LOG_LANES);
  if (c.TWO && (c.V_UNIT !== unit || c.V_VIEW !== "unit" || !c.ROUNDED)) {
    throw new Error(
      `Cannot multiply by ${c.W_DTYPE} and ${c.V_DTYPE} in one dispatch: their units are ${unit} and ${c.V_UNIT}, must be equal, and rows must be rounded before`,
    );
  }
  const units = k / unit, quads = unit / ROUNDED_BLOCK;
  const sets = setsOf(c, units, lanes);
  const held = Math.ceil(units / (sets * lanes));
  if (held * quads > MOST_HELD) {
    throw new Error(
      `Cannot hold rows of ${k} elements in ${sets} × ${lanes} lanes: each has ${
        held * unit
      }, must be at most ${MOST_HELD * ROUNDED_BLOCK}`,
    );
  }
  const workgroup = Number(c.WORKGROUP), results = Number(c.RESULTS);
  const all = results * halvesOf(c), teams = workgroup / lanes / sets;
  const inFlight = Math.min(Number(c.ROWS), Math.ceil(all / teams));
  const { blocks, squares } = roundedSizes(k);
  const sums = c.ROUNDED ? 4 * squares : parts;
  return {
    UNITS: units,
    ROW_UNITS: units / terms,
    X_FOURS: k / 4,
    LANES: lanes,
    SETS: sets,
    TEAMS: teams,
    HELD: held,
    QUADS: quads, // blocks of a unit
    ROWS: inFlight,
    HALVES: halvesOf(c),
    ALL_ROWS: all,
    TURNS: Math.ceil(all / teams / inFlight),
    EACH: Math.ceil(results / workgroup),
    RESULT_GROUPS: Math.ceil(results / lanes),
    ...deriveQuants(String(c.W_DTYPE), unit),
    ...(c.TWO ? deriveQuants(String(c.V_DTYPE), unit, "V_") : {}),
    PARTS: sums,
    PART_STEPS: Math.ceil(sums / 4 / lanes),
    X_BEGIN: squares,
    BLOCKS: blocks,
    ...deriveLeft(c, width, rows),
  };
}

/**
 * The kernel, without the functions that say where it reads and writes, for workgroup `y`
 * of the grid's second dimension: `w_row(first, i)`, the row of w for sum `i` of the
 * workgroup whose first result is `first`; `place_of(y, unit)` of a unit in its rows of w,
 * `x_four(y, at)`, `y_begin(y)`, and for experts `skips(y)`. Of results that are rounded,
 * `left_four(y, at)` is where they go and `left_weight(y)` what they are multiplied by.
 * expert_gemv_int8.ts uses it too.
 */
export const BODY = /* wgsl */ `
${LANES}
@if !ROUNDED || LEAVES { ${ROUND_FOUR} }
@if !ROUNDED { ${ROUND_BLOCK} }
@if LEAVES { ${LEFT} }
var<workgroup> sums: array<f32, SETS * ALL_ROWS>;
@if LEAVES { var<workgroup> results: array<f32, RESULTS>; }

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let lane = tid % LANES;
  let share = tid / LANES % SETS;
  let team = tid / LANES / SETS;
  @if EXPERTS > 0 {
    if (skips(wg.y)) { return; }
    let index = wg.x;
    let squares_first = wg.y * PARTS;
  } @else {
    let index = wg.y * groups.x + wg.x;
    let squares_first = 0u;
  }
  let count = (u.n / HALVES + RESULTS - 1u) / RESULTS;
  var width = u.n / HALVES;
  var first = index * RESULTS;
  var y_first = y_begin(wg.y);
  @if TWO {
    if (index >= count + (u.nv + RESULTS - 1u) / RESULTS) { return; }
  } @else { if (index >= count) { return; } }
  // What results need is loaded first, so that nothing waits for it at the end.
  @if EPILOGUE == "add" {
    @split var residual: array<f32, EACH>;
    @unroll for (var e = 0; e < EACH; e++) {
      residual[e] = y[y_first + min(first + min(e * WORKGROUP + tid, RESULTS - 1u), width - 1u)];
    }
    @if LEAVES {
      @split var norms: array<vec4f, LEFT_EACH>;
      @unroll for (var e = 0; e < LEFT_EACH; e++) {
        norms[e] = nextNorm_at(min(first / 4u + e * WORKGROUP + tid, LEFT_FOURS - 1u));
      }
    }
  }
${SQUARED}  let once = min(u.n, 1u);
  @if TWO {
    // The first workgroups take the first part, the others the second one.
    if (index < count) {${PART}
    } else {
      first -= count * RESULTS;
      y_first += width;
      width = u.nv;
      ${ofSecond(PART, QUANTS)}
    }
  } @else {${PART}
  }
${FINISH}
  @if LEAVES {${LEAVE}
  }
}`;

/** `w_row(first, i)`: the row of w for sum `i` of the workgroup whose first result is `first`. */
const W_ROW = /* wgsl */ `
fn w_row(first: u32, i: u32) -> u32 {
  @if EPILOGUE == "swiglu" { return (i & 1u) * (u.n / 2u) + min(first + (i >> 1u), u.n / 2u - 1u); }
  @else { return min(first + i, u.n - 1u); }
}`;

/** What a dispatch computes and moves, with both parts of a matrix. */
function costOf(call: CostCall): Cost[] {
  const { constants, k } = call;
  const costs = linearCost(call, "x", "w");
  if (!constants.ROUNDED) return costs;
  const rounded = costs.map((cost) => ({
    ...cost,
    dtypes: `2 × i8 × ${call.dtype("w")} → f32`,
    bytes: cost.bytes - k * (4 - 2.5),
  }));
  return withSecond(call, rounded);
}

/**
 * One row times a matrix of quantised blocks, `y = x · wᵀ`, multiplied as integers: four
 * products and their sum are one instruction (`dot4I8Packed`). Like gemv.ts otherwise, with the
 * same epilogues and the same fused norm.
 *
 * `x` is rounded to integers of 15 bits, with a scale per block of 16 (its largest value is
 * 127 · 128), so each element is off by at most 1/32,512 of the largest in its block. An
 * integer is `128 · high + low`, two planes of eight bits, so a unit of quants takes two dot
 * products per four. A sum over a group of elements with one scale is exact. What quants are
 * less, and their minimum, multiply sums of the rounded `x`. In a block with an outlier, that
 * would round the others away: there, lanes add the products of what rounding left.
 *
 * SETS lane groups, a team, hold all of `x` in registers, and multiply it by one row of `w`
 * after another, of which ROWS are on their way. Teams take a workgroup's rows in turns. When
 * all have their sums, a thread makes each of the RESULTS.
 *
 * With ROUNDED, `x` is a row that the kernel before has rounded; otherwise each lane rounds
 * what it holds. With LEAVES, the kernel rounds its results for the next one: results that are
 * added, normed by `nextNorm` but for the factor. That needs all sums of squares, which are in
 * `left` too. rounded_row.ts says how a rounded row lies in memory. With TWO, the kernel takes
 * a second part of the matrix, in another format, along.
 */
export const gemvInt8 = defineKernel<LinearCase>({
  name: "gemvInt8",
  buffers: ({ NORM, EPILOGUE, ROUNDED, LEAVES, TWO }) => ({
    w: "n k as unit",
    ...(TWO ? { v: "nv k as unit" } : {}),
    x: ROUNDED ? "m words as quad" : "m k as span",
    y: "inout any as scalar",
    ...(NORM && !ROUNDED && !LEAVES
      ? { norm: "k as span", squares: "m parts as vec4" }
      : {}),
    ...leftBuffers(
      { LEAVES, EPILOGUE },
      EPILOGUE === "add" ? { squares: "out m parts" } : {},
    ),
  }),
  uniforms: { stride: "u32", column: "u32", eps: "f32" },
  constants: {
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
    EXPERTS: 0,
  },
  derive: (c, { m, n, k, parts }) => {
    const width = n / (c.EPILOGUE === "swiglu" ? 2 : 1);
    return deriveInt8(c, { m, k, terms: 1, parts, width });
  },
  tuning: int8Tuning(({ k }) => k),
  grid: ({ n, nv = 0 }, constants) => {
    const [own, second] = [n, nv].map((n) => int8Workgroups(n, constants));
    return splitGrid(own + second);
  },
  cost: costOf,
  body: /* wgsl */ `
${W_ROW}
@if TWO { ${ofSecond(W_ROW)} }
fn place_of(y: u32, unit: u32) -> u32 { return unit; }
@if ROUNDED { @if NORM { fn squares_at(at: u32) -> vec4f { return bitcast<vec4f>(x[at]); } } }
@else { fn x_four(y: u32, at: u32) -> vec4f { @if NORM { return x_at(at) * norm_at(at); } @else { return x_at(at); } } }
fn y_begin(y: u32) -> u32 { return u.column; }
fn left_four(y: u32, at: u32) -> u32 { return at; }
fn left_weight(y: u32) -> f32 { return 1.0; }
${BODY}`,
  cases: [
    ...INTEGERS.map((w) => ({ m: 1, n: 37, k: 1280, w })),
    { m: 1, n: 300, k: 768, w: "q4_k", epilogue: "add" },
    { m: 1, n: 74, k: 768, w: "q6_k", norm: "f32", epilogue: "swiglu" },
    { m: 1, n: 74, k: 1312, w: "q8_0", norm: "bf16" },
  ],
  // With fewer lanes, other kernels run.
  makeCase: (given, tools) =>
    tools.device.subgroupSize < 8
      ? undefined
      : linearCase(given, tools, int8Parts, {
        largest: 1,
        tolerance: INTEGER_SUM,
      }),
});
