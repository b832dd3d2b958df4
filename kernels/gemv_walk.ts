/**
 * The variant of gemv.ts whose workgroups walk over the rows of w: WALKERS of them, about
 * as many as a GPU has room for, so that none waits for others to end. A row is shared by all threads of a workgroup, so each keeps its part of x, normed, in
 * registers, and reads nothing but weights in the loop: ROWS rows at a time, the next ones
 * while it multiplies these.
 *
 * Lanes add up ROWS sums together: each step that exchanges values halves how many a lane
 * has, until it has one. What is left, a sum per row and subgroup, waits in workgroup
 * memory for the only barrier.
 */
import type { LinearTarget } from "../lib/dispatch/keys.ts";
import type { Tuning } from "../lib/dispatch/limits.ts";
import { laneConstants } from "../lib/dispatch/capabilities.ts";
import type { Constants } from "../lib/dispatch/shapes.ts";
import { exchangeSums, ownedSum } from "../lib/webgpu/wgsl.ts";

/** What a workgroup takes at a time: number `i` of its blocks of ROWS rows of w. */
const load = (into: string, i: string) => /* wgsl */ `
    {
      let g = (${i}) * groups.x + index;
      // Past the end, all lanes read one place, which takes no time.
      let needed = g < count;
      @unroll for (var i = 0; i < ROWS; i++) {
        let base = w_row(g, i) * UNITS;
        @unroll for (var s = 0; s < STEPS; s++) {
          let unit = s * WORKGROUP + tid;
          @if EXACT { ${into}[i * STEPS + s] = w_load(select(0u, base + unit, needed)); }
          @else { ${into}[i * STEPS + s] = w_masked(w_load(select(0u, base + min(unit, UNITS - 1u), needed)), unit < UNITS); }
        }
      }
    }`;

/** The sums of the rows that a workgroup takes at a time. */
const SUMS = { sums: "acc", count: "ROWS", log: "LOG_ROWS", lane: "lane" };

/** Adds up `acc` over lanes. Lane l < ROWS then has in `acc[0]` the sum of row `owned`. */
const exchange = /* wgsl */ `${exchangeSums(SUMS)}
    @unroll for (var b = LOG_ROWS; b < LOG_LANES; b++) { acc[0] += subgroupShuffleXor(acc[0], 1u << b); }`;

/** Declarations and the kernel; `W_ROW` and `write` are those of gemv.ts. */
export const WALK = /* wgsl */ `
// A sum per row that the workgroup takes and subgroup, and the subgroups' sums of squares.
var<workgroup> sums: array<f32, ROOM>;
@if EPILOGUE == "add" { var<workgroup> squared_sums: array<f32, SHARES>; }

fn sum_of(row: u32) -> f32 {
  var sum = 0.0;
  @unroll for (var i = 0; i < SHARES; i++) { sum += sums[row * SHARES + i]; }
  return sum;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let lane = tid % LANES;
  let share = tid / LANES;
  let index = wg.x;
  let count = (u.n + ROWS - 1u) / ROWS;
  let rounds = (count + groups.x - 1u) / groups.x;
  @split var raw: array<w_Raw, ROWS * STEPS>;
  ${load("raw", "0u")}
  @if NORM {
    var squared = 0.0;
    @unroll for (var i = 0; i < PART_STEPS; i++) {
      let part = i * LANES + lane;
      let four = squares_at(min(part, PARTS / 4u - 1u));
      squared += select(0.0, dot(four, vec4f(1.0)), part < PARTS / 4u);
    }
  }
  @split var xs: array<vec4f, STEPS * FOURS>;
  @unroll for (var s = 0; s < STEPS; s++) {
    let unit = min(s * WORKGROUP + tid, UNITS - 1u);
    @unroll for (var f = 0; f < FOURS; f++) {
      @if NORM { xs[s * FOURS + f] = x_at(unit * FOURS + f) * norm_at(unit * FOURS + f); }
      @else { xs[s * FOURS + f] = x_at(unit * FOURS + f); }
    }
  }
  // The row of a block whose sum lane l < ROWS gets.
${ownedSum(SUMS)}
  for (var round = 0u; round < rounds; round++) {
    @split var next: array<w_Raw, ROWS * STEPS>;
    ${load("next", "round + 1u")}
    @split var acc: array<f32, ROWS>;
    @unroll for (var i = 0; i < ROWS; i++) { acc[i] = 0.0; }
    @unroll for (var s = 0; s < STEPS; s++) {
      @unroll for (var f = 0; f < FOURS; f++) {
        @unroll for (var i = 0; i < ROWS; i++) { acc[i] += dot(w_four[f](raw[i * STEPS + s]), xs[s * FOURS + f]); }
      }
    }
    ${exchange}
    if (lane < ROWS) { sums[(round * ROWS + owned) * SHARES + share] = acc[0]; }
    @unroll for (var i = 0; i < ROWS * STEPS; i++) { raw[i] = next[i]; }
  }
  @if NORM {
    let factor = inverseSqrt(lanes_sum(squared, tid) / f32(u.k) + u.eps);
  } @else { let factor = 1.0; }
  workgroupBarrier();
  @if EPILOGUE == "add" { var squared_sum = 0.0; }
  @if EPILOGUE == "swiglu" { const EACH = ROWS / 2u; } @else { const EACH = ROWS; }
  for (var own = tid; own < rounds * EACH; own += WORKGROUP) {
    let g = own / EACH * groups.x + index;
    let row = g * EACH + own % EACH;
    @if EPILOGUE == "swiglu" {
      let at = own / EACH * ROWS + own % EACH * 2u;
      let gate = sum_of(at) * factor;
      write(row, u.n / 2u, gate / (1.0 + exp(-gate)) * sum_of(at + 1u) * factor);
    } @else {
      var sum = sum_of(own) * factor;
      @if EPILOGUE == "add" {
        if (row < u.n) {
          sum += y[u.column + row];
          squared_sum += sum * sum;
        }
      }
      write(row, u.n, sum);
    }
  }
  @if EPILOGUE == "add" {
    squared_sum = lanes_sum(squared_sum, tid);
    if (lane == 0u) { squared_sums[share] = squared_sum; }
    workgroupBarrier();
    if (tid == 0u) {
      var all = 0.0;
      @unroll for (var i = 0; i < SHARES; i++) { all += squared_sums[i]; }
      squares[index] = all;
      if (index == 0u) { for (var i = groups.x; i % 4u != 0u; i++) { squares[i] = 0.0; } }
    }
  }
}`;

/** Most loads of a lane at a time; the next ones are on their way, too. Not measured. */
const MOST_LOADS = 16;
/** Workgroups to try: one, two and four for each of an H200's multiprocessors. */
const TRIED = [132, 264, 528];

/** Adds to what is tuned without walking whether, and in how many workgroups, to do so. */
export function walkTuning(
  { of, grid, settle, needs }: Tuning<LinearTarget>,
  unitsOf: (target: LinearTarget) => number,
): Tuning<LinearTarget> {
  return {
    of,
    grid: { ...grid, WALKERS: [1, ...TRIED] },
    settle: (target, given, device) =>
      given.WALKERS > 1
        ? { ...given, STEPS: 1 } // which follow from the threads
        : settle?.(target, given, device) ?? given,
    needs(target, given, device) {
      if (given.WALKERS === 1) return needs(target, given, device);
      const { WORKGROUP, ROWS } = given, units = unitsOf(target);
      const { LOG_LANES, SUBGROUPS } = laneConstants(device);
      const loads = ROWS * Math.ceil(units / WORKGROUP);
      const { ROOM, SHARES } = deriveWalk(
        { ...given, LOG_LANES },
        target.n,
        units,
      );
      const plain = needs(target, { ...given, STEPS: 1 }, device);
      return {
        ...plain,
        bytes: 4 * (ROOM + SHARES),
        problem: plain.problem ??
          (device.adapterClass === "software"
            ? "WALKERS must be 1: each lane has rows of its own here"
            : !SUBGROUPS
            ? "WALKERS must be 1: lanes do not exchange values"
            : target.k % target.format.loads[0]
            ? `WALKERS must be 1: rows of ${target.k} are not whole loads`
            : WORKGROUP > units
            ? `WORKGROUP is ${WORKGROUP}, must be at most the ${units} loads of a row`
            : loads > MOST_LOADS
            ? `${loads} loads in flight, at most ${MOST_LOADS} fit registers with those that follow`
            : undefined),
      };
    },
  };
}

/** Sums of squares that it leaves: one per workgroup, and zeros up to a multiple of four. */
export const walkParts = ({ WALKERS }: Constants): number =>
  4 * Math.ceil(Number(WALKERS) / 4);

/** Derives its constants for `n` rows of `units` loads. */
export function deriveWalk(c: Constants, n: number, units: number) {
  const rows = Number(c.ROWS), workgroup = Number(c.WORKGROUP);
  const shares = workgroup >> Number(c.LOG_LANES);
  const rounds = Math.ceil(Math.ceil(n / rows) / Number(c.WALKERS));
  return {
    STEPS: Math.ceil(units / workgroup),
    EXACT: units % workgroup === 0 ? 1 : 0,
    LOG_ROWS: Math.log2(rows),
    SHARES: shares,
    // A power of 2, so that matrices of similar sizes share a shader.
    ROOM: 2 ** Math.ceil(Math.log2(rounds * rows * shares)),
  };
}
