import { laneConstants } from "../lib/dispatch/capabilities.ts";
import type { LinearTarget } from "../lib/dispatch/keys.ts";
import { isPowerOf2, type Tuning } from "../lib/dispatch/limits.ts";
import { roundedBytes, roundedChunk } from "../lib/dispatch/linear.ts";
import { formatNamed } from "../lib/formats/mod.ts";
import type { Constants } from "../lib/dispatch/shapes.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { LANES } from "../lib/webgpu/wgsl.ts";
import { BLOCKS, INTEGER_SUM } from "./case.ts";
import { type Cost, type CostCall, linearCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import { FACTOR, SQUARED, W_ROW, WRITE } from "./gemv.ts";
import { BLOCK } from "./int8_case.ts";
import { type LinearCase, linearCase } from "./linear_case.ts";
import { ROUND_FOUR, roundedSizes, STEP_OF_REST } from "./rounded_row.ts";

/** Formats whose quants are integers. */
export const INTEGERS = BLOCKS.filter((name) => formatNamed(name).integers);
/**
 * Maximum loads in flight per lane: with as many loaded ahead, and their scales, they take
 * up to 10 registers each.
 */
const MOST_LOADS = 16;
/** Elements of x in 16 bytes of a plane; sums of as many are kept. */
const OWN = 16;

// Loads a chunk of the rows of lane group g. Units past the end of a phase or a row are not
// used.
const load = (into: string, phase: string, chunk: string) => /* wgsl */ `
  @unroll for (var s = 0; s < STEPS; s++) {
    let unit = min(${phase} * TAKEN + (${chunk} * STEPS + s) * LANES + lane, UNITS - 1u);
    let place = place_of(wg.y, unit);
    @unroll for (var i = 0; i < ROWS; i++) { ${into}[i * STEPS + s] = w_words(w_row(g, i) * ROW_UNITS + place); }
  }`;

// Beside outliers, 15 bits do not do: adds the products of what rounding left of their blocks,
// of which each lane takes four elements of a row. Little code, and apart from the loop that
// always runs: a large kernel waits for its instructions.
const addRests = /* wgsl */ `
      for (var word = 0u; word < OUTLIER_WORDS; word++) {
        for (var bits = atomicLoad(&outliers[phase * OUTLIER_WORDS + word]); bits != 0u; bits &= bits - 1u) {
          let b = word * 32u + firstTrailingBit(bits);
          let at = b * 8u + lane % 8u;
          let quad = at / 4u % QUADS * TAKEN + at / 4u / QUADS;
          let high = unpack4xI8(planes[quad][at % 4u]);
          let rounded = (high << vec4u(7u)) + unpack4xI8(planes[quad + OWNERS][at % 4u]);
          let rest = x_four(wg.y, phase * TAKEN * QUADS * 4u + at) - blocks[b].x * vec4f(rounded);
          let place = place_of(wg.y, phase * TAKEN + at / (QUADS * 4u));
          for (var i = lane / 8u; i < ROWS; i += LANES / 8u) {
            let unit = w_row(g, i) * ROW_UNITS + place;
            let words = w_words(unit);
            let factors = w_factors(words.scales, unit);
            var bytes = 0u;
            var scale = 0.0;
            @if MIN { var least = 0.0; }
            @unroll for (var f = 0; f < QUADS * 4; f++) {
              if (at % (QUADS * 4u) == f) {
                bytes = w_bytes[f](words);
                scale = w_scale[f / GROUP_FOURS](factors);
                @if MIN { least = w_min[f / GROUP_FOURS](factors); }
              }
            }
            let weights = scale * (vec4f(unpack4xI8(bytes)) - f32(OFFSET));
            @if MIN { let product = dot(weights - least, rest); } @else { let product = dot(weights, rest); }
            @unroll for (var r = 0; r < ROWS; r++) { acc[r] += select(0.0, product, i == r); }
          }
        }
      }`;

// The same where x comes rounded: what rounding left of the block is in two more planes.
const addRest = /* wgsl */ `
        @unroll for (var b = 0; b < (QUADS + 1) / 2; b++) {
          if (block[b].x < 0.0) {
            @split var above: array<vec4u, QUADS>;
            @split var below: array<vec4u, QUADS>;
            @unroll for (var q = b * 2; q < b * 2 + BLOCK_QUADS; q++) {
              above[q] = x[X_BEGIN + 2 * OWNERS + at + q * TAKEN];
              below[q] = x[X_BEGIN + 3 * OWNERS + at + q * TAKEN];
            }
            @unroll for (var n = b * BLOCK_GROUPS; n < (b + 1) * BLOCK_GROUPS; n++) {
              @if OFFSET > 0 || MIN {
                var upper = 0;
                var lower = 0;
                @unroll for (var f = n * GROUP_FOURS; f < (n + 1) * GROUP_FOURS; f++) {
                  upper += dot4I8Packed(0x01010101u, above[f / 4][f % 4]);
                  lower += dot4I8Packed(0x01010101u, below[f / 4][f % 4]);
                }
                let sum = f32((upper << 7u) + lower);
              }
              @unroll for (var i = 0; i < ROWS; i++) {
                var upper = 0;
                var lower = 0;
                @unroll for (var f = n * GROUP_FOURS; f < (n + 1) * GROUP_FOURS; f++) {
                  let bytes = w_bytes[f](raw[i * STEPS + s]);
                  upper += dot4I8Packed(bytes, above[f / 4][f % 4]);
                  lower += dot4I8Packed(bytes, below[f / 4][f % 4]);
                }
                let product = f32((upper << 7u) + lower);
                let factors = w_factors(raw[i * STEPS + s].scales, w_row(g, i) * ROW_UNITS + place);
                @if OFFSET > 0 { let value = product - f32(OFFSET) * sum; } @else { let value = product; }
                @if MIN { acc[i] -= block[b].x * ${STEP_OF_REST} * (w_scale[n](factors) * value - w_min[n](factors) * sum); }
                @else { acc[i] -= block[b].x * ${STEP_OF_REST} * (w_scale[n](factors) * value); }
              }
            }
          }
        }`;

/** What is tuned where workgroups round a row of x, which has `kOf` elements. */
export function int8Tuning(
  kOf: (target: LinearTarget) => number,
): Tuning<LinearTarget> {
  return {
    of: "linear",
    grid: {
      WORKGROUP: [64, 128, 256, 512, 1024],
      ROWS: [1, 2, 4],
      STEPS: [1, 2, 4],
      LOOPS: [1, 2, 4],
    },
    settle(target, given, device) {
      const lanes = 2 ** laneConstants(device).LOG_LANES;
      const most = Math.ceil(kOf(target) / target.format.loads[0] / lanes);
      return { ...given, STEPS: Math.min(given.STEPS, most) };
    },
    needs(target, given, device) {
      const k = kOf(target);
      const { WORKGROUP, ROWS, STEPS, LOOPS } = given, loads = ROWS * STEPS;
      const lanes = 2 ** laneConstants(device).LOG_LANES;
      const { chunk, phases } = roundedChunk(k, device);
      return {
        threads: WORKGROUP,
        bytes: roundedBytes(chunk) + 4 * phases * Math.ceil(chunk / 1024) + 4 +
          4 * WORKGROUP / lanes,
        problem: WORKGROUP % lanes || !isPowerOf2(WORKGROUP)
          ? `WORKGROUP is ${WORKGROUP}, must be a power of 2 and whole groups of ${lanes} lanes`
          : target.swiglu && ROWS % 2
          ? `ROWS is ${ROWS}, must be even: gates and what they gate are summed together`
          : loads > MOST_LOADS
          ? `${loads} loads in flight, at most ${MOST_LOADS} fit registers with those that follow`
          : phases > 1 && LOOPS > 1
          ? `LOOPS is ${LOOPS}, must be 1: ${k} elements of x are rounded in ${phases} parts`
          : undefined,
      };
    },
  };
}

/** Code as for the second part of a matrix, in another format. */
const ofSecond = (code: string): string =>
  code
    .replaceAll(/\bw_(?=words|Words|row|factors|scale|min|bytes)/g, "v_")
    .replaceAll(
      /\b(GROUP_FOURS|GROUPS|BLOCK_GROUPS|SUMS|OFFSET|MIN)\b/g,
      "V_$1",
    )
    .replaceAll(/\bu\.n\b/g, "u.nv");

/** What kernels know about the quants of a format, whose units are of `quads` vec4u of x. */
function deriveQuants(format: string, unit: number, prefix = ""): Constants {
  const { group = unit, offset = 0, min = false } =
    formatNamed(format).integers ?? {};
  const groups = unit / group, quads = unit / OWN;
  return Object.fromEntries(
    Object.entries({
      GROUP_FOURS: group / 4,
      GROUPS: groups,
      BLOCK_GROUPS: groups / Math.ceil(quads / 2),
      SUMS: Math.max(1, group / OWN),
      OFFSET: offset,
      MIN: min ? 1 : 0,
    }).map(([name, value]) => [prefix + name, value]),
  );
}

/** Rows of w per workgroup. */
export const int8Rows = ({ WORKGROUP, LOG_LANES, ROWS, LOOPS }: Constants) =>
  (Number(WORKGROUP) >> Number(LOG_LANES)) * Number(ROWS) * Number(LOOPS);

/**
 * Partial sums of squares that EPILOGUE "add" leaves: one per workgroup, and zeros up to a
 * multiple of four.
 */
export const int8Parts = (n: number, constants: Constants): number =>
  4 * Math.ceil(n / int8Rows(constants) / 4);

/** Constants for `rows` of `width` results that are rounded for the next kernel as one row. */
function deriveLeft(c: Constants, width: number, rows: number): Constants {
  const unit = Number(c.LEAVES);
  if (!unit) return { LEFT: 0 };
  const left = int8Rows(c) / (c.EPILOGUE === "swiglu" ? 2 : 1);
  if (left % BLOCK || width % Math.max(BLOCK, unit)) {
    throw new Error(
      `Cannot round ${width} results, ${left} per workgroup, in units of ${unit}: both must be whole blocks of ${BLOCK}, and the first whole units`,
    );
  }
  return {
    LEFT: left,
    LEFT_BEGIN: roundedSizes(rows * width).squares,
    LEFT_FOURS: width / 4,
    LEFT_OWNERS: rows * width / OWN,
    LEFT_QUADS: unit / OWN,
    LEFT_UNITS: rows * width / unit,
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
    m > 1 || !integers || Number(c.LOG_LANES) < 3 ||
    !c.SUBGROUPS || c.W_VIEW !== "unit" || k % BLOCK
  ) {
    throw new Error(
      `Cannot multiply [${m}, ${k}] by ${c.W_DTYPE} as integers: there must be one row of whole blocks of ${BLOCK}, quants that are integers, and 8 lanes or more that exchange values`,
    );
  }
  const unit = Number(c.W_UNIT), lanes = 1 << Number(c.LOG_LANES);
  const chunk = c.ROUNDED ? k : Math.min(k, Number(c.CHUNK));
  const units = k / unit, taken = chunk / unit;
  const steps = Math.max(
    1,
    Math.min(Number(c.STEPS), Math.ceil(taken / lanes)),
  );
  const { squares } = roundedSizes(k), sums = c.ROUNDED ? 4 * squares : parts;
  const quads = unit / OWN;
  if (c.TWO && (c.V_UNIT !== unit || c.V_VIEW !== "unit" || !c.ROUNDED)) {
    throw new Error(
      `Cannot multiply by ${c.W_DTYPE} and ${c.V_DTYPE} in one dispatch: their units are ${unit} and ${c.V_UNIT}, must be equal, and rows must be rounded before`,
    );
  }
  return {
    UNITS: units,
    ROW_UNITS: units / terms,
    X_FOURS: k / 4,
    LANES: lanes,
    PER_WORKGROUP: Number(c.WORKGROUP) / lanes,
    STEPS: steps,
    CHUNK: chunk,
    PHASES: Math.ceil(k / chunk),
    TAKEN: taken,
    CHUNKS: Math.ceil(taken / (lanes * steps)),
    OWNERS: chunk / OWN, // vec4u of a plane
    OUTLIER_WORDS: Math.ceil(chunk / BLOCK / 32),
    ROUNDS: Math.ceil(chunk / 4 / Number(c.WORKGROUP)),
    QUADS: quads, // vec4u of a plane in a unit
    BLOCK_QUADS: Math.min(2, quads),
    ...deriveQuants(String(c.W_DTYPE), unit),
    ...(c.TWO ? deriveQuants(String(c.V_DTYPE), unit, "V_") : {}),
    PARTS: sums,
    PART_STEPS: Math.ceil(sums / 4 / lanes),
    X_BEGIN: squares,
    ...deriveLeft(c, width, rows),
  };
}

// Rounds a chunk of x to workgroup memory. A thread takes four elements, as the next ones
// arrive; eight neighbors have a block.
const ROUND = /* wgsl */ `
    @if PHASES > 1 { workgroupBarrier(); }
    let first_four = phase * TAKEN * QUADS * 4u;
    var following = x_four(wg.y, min(first_four + tid, X_FOURS - 1u));
    for (var r = 0u; r < ROUNDS * once; r++) {
      let own = r * WORKGROUP + tid;
      let four = following;
      following = x_four(wg.y, min(first_four + own + WORKGROUP, X_FOURS - 1u));
      let made = round_four(four);
      if (own < OWNERS * 4u) {
        let quad = own / 4u % QUADS * TAKEN + own / 4u / QUADS;
        planes[quad][own % 4u] = made.planes.x;
        planes[quad + OWNERS][own % 4u] = made.planes.y;
        if (own % 8u == 0u) {
          let b = own / 8u;
          blocks[b] = vec4f(abs(made.block.x), made.block.yzw);
          if (made.block.x < 0.0) {
            atomicOr(&outliers[phase * OUTLIER_WORDS + b / 32u], 1u << (b % 32u));
            atomicOr(&outliers[PHASES * OUTLIER_WORDS], 1u);
          }
        }
      }
    }
    workgroupBarrier();`;

// Multiplies a chunk of x, whose first words of w are loaded.
const MULTIPLY = /* wgsl */ `
    for (var part = 0u; part < LOOPS * CHUNKS * once; part++) {
      let g = part / CHUNKS * apart + own_group;
      @if LOOPS * CHUNKS > 1 {
        // Loaded while this part is multiplied; unused after the last one.
        @split var next: array<w_Words, ROWS * STEPS>;
        {
          let after = min(part + 1u, LOOPS * CHUNKS - 1u);
          let g = after / CHUNKS * apart + own_group;
          ${load("next", "phase", "after % CHUNKS")}
        }
      }
      @if EPILOGUE == "add" {
        if (lane == 0u && part % CHUNKS == 0u) {
          @unroll for (var i = 0; i < ROWS; i++) { residual[i] = y[y_first + w_row(g, i)]; }
        }
      }
      @if !ROUNDED {
        if (part % CHUNKS == 0u && atomicLoad(&outliers[PHASES * OUTLIER_WORDS]) != 0u) {${addRests}
        }
      }
      @unroll for (var s = 0; s < STEPS; s++) {
        let taken = (part % CHUNKS * STEPS + s) * LANES + lane;
        let inside = taken < TAKEN && taken + phase * TAKEN < UNITS;
        let at = min(taken, TAKEN - 1u);
        let unit = min(taken + phase * TAKEN, UNITS - 1u);
        @split var high: array<vec4u, QUADS>;
        @split var low: array<vec4u, QUADS>;
        @unroll for (var q = 0; q < QUADS; q++) {
          @if ROUNDED {
            high[q] = x[X_BEGIN + at + q * TAKEN];
            low[q] = x[X_BEGIN + at + q * TAKEN + OWNERS];
          } @else {
            high[q] = planes[at + q * TAKEN];
            low[q] = planes[at + q * TAKEN + OWNERS];
          }
        }
        @split var block: array<vec4f, (QUADS + 1) / 2>;
        @unroll for (var b = 0; b < (QUADS + 1) / 2; b++) {
          @if ROUNDED { block[b] = bitcast<vec4f>(x[X_BEGIN + 4 * OWNERS + at * QUADS / 2u + b]); }
          @else { block[b] = blocks[at * QUADS / 2u + b]; }
          @if TAKEN % (LANES * STEPS) != 0 || PHASES > 1 { block[b] = select(vec4f(), block[b], inside); }
        }
        let place = place_of(wg.y, unit);
        @unroll for (var i = 0; i < ROWS; i++) {
          let factors = w_factors(raw[i * STEPS + s].scales, w_row(g, i) * ROW_UNITS + place);
          @unroll for (var n = 0; n < GROUPS; n++) {
            var upper = 0;
            var lower = 0;
            @unroll for (var f = 0; f < GROUP_FOURS; f++) {
              let bytes = w_bytes[n * GROUP_FOURS + f](raw[i * STEPS + s]);
              upper += dot4I8Packed(bytes, high[(n * GROUP_FOURS + f) / 4][(n * GROUP_FOURS + f) % 4]);
              lower += dot4I8Packed(bytes, low[(n * GROUP_FOURS + f) / 4][(n * GROUP_FOURS + f) % 4]);
            }
            let product = f32((upper << 7u) + lower);
            @if QUADS == 1 { let sum = select(block[0].y, block[0].z, at % 2u == 1u); }
            @else { @if SUMS == 2 { let sum = block[n].w; }
            @else { let sum = block[n / 2][1 + n % 2]; } }
            @if OFFSET > 0 { let value = product - f32(OFFSET) * sum; } @else { let value = product; }
            @if ROUNDED { let step = abs(block[n * SUMS / 2].x); } @else { let step = block[n * SUMS / 2].x; }
            @if MIN { acc[i] += step * (w_scale[n](factors) * value - w_min[n](factors) * sum); }
            @else { acc[i] += step * (w_scale[n](factors) * value); }
          }
        }
        @if ROUNDED {${addRest}
        }
      }
      if (part % CHUNKS == CHUNKS - 1u && phase == PHASES - 1u) {
        // No load waits for the factor.
        @if ROUNDED {
${FACTOR}        }
        @unroll for (var i = 0; i < ROWS; i++) { acc[i] = lanes_sum(acc[i], tid) * factor; }
        if (lane == 0u) {
          ${WRITE}
          @if EPILOGUE == "add" && !LEAVES { squared_sum += sum; }
        }
        @unroll for (var i = 0; i < ROWS; i++) { acc[i] = 0.0; }
      }
      @if LOOPS * CHUNKS > 1 {
        @unroll for (var i = 0; i < ROWS * STEPS; i++) { raw[i] = next[i]; }
      }
    }`;

/** All of a row that comes rounded. */
const FIRST = /* wgsl */ `
    { let g = own_group; ${load("raw", "phase", "0u")} }
${MULTIPLY}`;

// Rounds the results of a workgroup for the next kernel, normed but for the factor.
const LEAVE = /* wgsl */ `
    workgroupBarrier();
    let own = min(tid, LEFT / 4u - 1u);
    let inside = tid < LEFT / 4u && index * (LEFT / 4u) + own < LEFT_FOURS;
    @if EXPERTS > 0 { let four = wg.y * LEFT_FOURS + index * (LEFT / 4u) + own; }
    @else { let four = index * (LEFT / 4u) + own; }
    let value = left_weight(wg.y) * vec4f(results[4u * own], results[4u * own + 1u], results[4u * own + 2u], results[4u * own + 3u]);
    @if EPILOGUE == "add" {
      var squared = dot(value, value);
      @unroll for (var b = 0; b < 3; b++) { squared += subgroupShuffleXor(squared, 1u << b); }
      let made = round_four(value * nextNorm_at(min(four, LEFT_OWNERS * 4u - 1u)));
    } @else { let made = round_four(value); }
    if (inside) {
      let quad = four / 4u;
      let at = LEFT_BEGIN + quad % LEFT_QUADS * LEFT_UNITS + quad / LEFT_QUADS;
      @unroll for (var p = 0; p < 4; p++) { left[at + p * LEFT_OWNERS][four % 4u] = made.planes[p]; }
      if (four % 8u == 0u) {
        left[LEFT_BEGIN + 4u * LEFT_OWNERS + four / 8u] = bitcast<vec4u>(made.block);
        @if EPILOGUE == "add" { left[four / 32u][four / 8u % 4u] = bitcast<u32>(squared); }
      }
    }
    @if EPILOGUE == "add" && LEFT_OWNERS % 8 != 0 {
      if (index == 0u && tid == 0u) {
        for (var i = LEFT_OWNERS / 2u; i < LEFT_BEGIN * 4u; i++) { left[i / 4u][i % 4u] = 0u; }
      }
    }`;

/**
 * The kernel, without the functions that say where it reads and writes, for workgroup `y`
 * of the grid's second dimension: `w_row(g, i)` as in gemv.ts, `place_of(y, unit)` of a unit
 * in its rows of w, `x_four(y, at)`, `y_begin(y)`, `left_weight(y)` of results before they
 * are rounded, and for experts `skips(y)`.
 * expert_gemv_int8.ts uses it too.
 */
export const BODY = /* wgsl */ `
${LANES}
@if !ROUNDED || LEAVES { ${ROUND_FOUR} }
@if EPILOGUE == "add" && !LEAVES { var<workgroup> squared_sums: array<f32, PER_WORKGROUP>; }
@if LEAVES { var<workgroup> results: array<f32, LEFT>; }
@if !ROUNDED {
// Plane p of x has its 16 bytes number q of unit i at (p * QUADS + q) * TAKEN + i.
var<workgroup> planes: array<vec4u, 2 * OWNERS>;
// The scale of each block of 32, and the sums of both halves of it and of all of it.
var<workgroup> blocks: array<vec4f, (OWNERS + 1) / 2>;
// A bit per block: whether it has an outlier. Of each phase in turn. Last, whether there are any.
var<workgroup> outliers: array<atomic<u32>, PHASES * OUTLIER_WORDS + 1>;
}

var<private> y_first: u32;

fn write(row: u32, rows: u32, value: f32) {
  if (row >= rows) { return; }
  y[y_first + row] = value;
  @if LEAVES { results[row % LEFT] = value; }
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let lane = tid % LANES;
  @if EXPERTS > 0 {
    if (skips(wg.y)) { return; }
    let index = wg.x;
  } @else { let index = wg.y * groups.x + wg.x; }
  y_first = y_begin(wg.y);
  let count = (u.n + ROWS * LOOPS * PER_WORKGROUP - 1u) / (ROWS * LOOPS * PER_WORKGROUP);
  @if TWO {
    let others = (u.nv + ROWS * LOOPS * PER_WORKGROUP - 1u) / (ROWS * LOOPS * PER_WORKGROUP);
    if (index >= count + others) { return; }
  } @else { if (index >= count) { return; } }
  // Where a workgroup rounds its results, they follow one another.
  @if LEAVES {
    let own_group = index * LOOPS * PER_WORKGROUP + tid / LANES;
    let apart = PER_WORKGROUP;
  } @else {
    let own_group = index * PER_WORKGROUP + tid / LANES;
    let apart = count * PER_WORKGROUP;
  }
  @split var acc: array<f32, ROWS>;
  @if !TWO { @split var raw: array<w_Words, ROWS * STEPS>; }
  @if EPILOGUE == "add" {
    @split var residual: array<f32, ROWS>;
    @if !LEAVES { var squared_sum = 0.0; }
  }
${SQUARED}  @if !ROUNDED {
${FACTOR}  }
  @if ROLLED {
    // 1, as compilers cannot know: they would unroll loops of constant counts.
    let once = min(u.n, 1u);
  } @else { let once = 1u; }
  @if ROUNDED {
    let phase = 0u;
    @if TWO {
      // The first workgroups take the first part, the others the second one.
      if (index < count) {
        @split var raw: array<w_Words, ROWS * STEPS>;
        ${FIRST}
      } else {
        let own_group = (index - count) * PER_WORKGROUP + tid / LANES;
        let apart = others * PER_WORKGROUP;
        y_first += u.n;
        @split var raw: array<v_Words, ROWS * STEPS>;
        ${ofSecond(FIRST)}
      }
    } @else { ${FIRST} }
  } @else {
  for (var phase = 0u; phase < PHASES * once; phase++) {
    { let g = own_group; ${load("raw", "phase", "0u")} }
${ROUND}
${MULTIPLY}
  }
  }
  @if LEAVES {${LEAVE}
  } @else { @if EPILOGUE == "add" {
    if (lane == 0u) { squared_sums[tid / LANES] = squared_sum; }
    workgroupBarrier();
    if (tid == 0u) {
      var all = 0.0;
      @unroll for (var i = 0; i < PER_WORKGROUP; i++) { all += squared_sums[i]; }
      @if EXPERTS > 0 { let first = wg.y * PARTS; } @else { let first = 0u; }
      squares[first + index] = all;
      if (index == 0u) { for (var i = count; i < PARTS; i++) { squares[first + i] = 0.0; } }
    }
  } }
}`;

/** What a dispatch computes and moves, with both parts of a matrix. */
function costOf(call: CostCall): Cost[] {
  const { constants, k, dispatch: { dims: { nv = 0 } } } = call;
  return linearCost(call, "x", "w").map((cost) => {
    if (!constants.ROUNDED) return cost;
    const second = constants.TWO ? nv * k : 0,
      { w, v } = {
        w: call.dtype("w"),
        v: call.dtype("v"),
      };
    return {
      ...cost,
      shape: `[1, ${k}] × [${k}, ${call.n + nv}]`,
      dtypes: `2 × i8 × ${second ? `${w}, ${v}` : w} → f32`,
      flops: cost.flops + 2 * second,
      bytes: cost.bytes - k * (4 - 2.5) +
        (second ? second * call.size("v") + 4 * nv : 0),
    };
  });
}

/**
 * One row times a matrix of quantised blocks, `y = x · wᵀ`, multiplied as integers: four
 * products and their sum are one instruction (`dot4I8Packed`). Like gemv.ts otherwise, with the
 * same epilogues and the same fused norm.
 *
 * `x` is rounded to integers of 15 bits, with a scale per block of 32 (its largest value is
 * 127 · 128), so each element is off by at most 1/32,512 of the largest in its block. An
 * integer is `128 · high + low`, two planes of eight bits in workgroup memory, so a unit of
 * quants takes two dot products per four. A sum over a group of elements with one scale
 * is exact. What quants are less, and their minimum, multiply sums of the rounded `x`.
 *
 * In a block with an outlier (see int8_case.ts), that would round the others away: there,
 * lanes read `x` again and add the products of what is left.
 *
 * A workgroup rounds all of `x` for itself, CHUNK elements at a time, while its first
 * weights are on their way. Each of its lane groups then takes LOOPS times ROWS rows of
 * `w`, and loads the next units while it multiplies the last ones.
 *
 * Between two dispatches of a kernel, the weights of a large model displace its instructions
 * from the caches, so the less code there is, the sooner it starts. ROLLED keeps compilers
 * from unrolling its loops.
 *
 * With LEAVES, the kernel also rounds its results for the next one, whose lanes take as many
 * elements at a time: results that are added, normed by `nextNorm` but for the factor. That
 * needs all sums of squares, which are in `left` too. With ROUNDED, `x` is what the kernel
 * before left; TWO then takes a second part of the matrix, in another format, along. rounded_row.ts says how a rounded row lies in memory.
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
    ...(LEAVES
      ? {
        ...(EPILOGUE === "add" ? { nextNorm: "any as vec4" } : {}),
        left: "out any as quad",
      }
      : EPILOGUE === "add"
      ? { squares: "out m parts" }
      : {}),
  }),
  uniforms: { stride: "u32", column: "u32", eps: "f32" },
  constants: {
    WORKGROUP: 256,
    ROWS: 2,
    LOG_LANES: 5,
    SUBGROUPS: 1,
    STEPS: 4,
    LOOPS: 1,
    NORM: 0,
    EPILOGUE: "store",
    CHUNK: 12288,
    ROLLED: 0,
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
    const rows = int8Rows(constants);
    return splitGrid(Math.ceil(n / rows) + Math.ceil(nv / rows));
  },
  cost: costOf,
  body: /* wgsl */ `
${W_ROW}
@if TWO { ${ofSecond(W_ROW)} }
fn place_of(y: u32, unit: u32) -> u32 { return unit; }
@if ROUNDED { @if NORM { fn squares_at(at: u32) -> vec4f { return bitcast<vec4f>(x[at]); } } }
@else { fn x_four(y: u32, at: u32) -> vec4f { @if NORM { return x_at(at) * norm_at(at); } @else { return x_at(at); } } }
fn y_begin(y: u32) -> u32 { return u.column; }
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
