import { laneConstants } from "../lib/dispatch/capabilities.ts";
import { toF32 } from "../lib/formats/tensor.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { LANES, LOW } from "../lib/webgpu/wgsl.ts";
import { room, SUM } from "./case.ts";
import { defineKernel } from "./define.ts";

interface ChooseCase {
  m: number;
  n: number;
  used: number;
  normalized: boolean;
  /** Scores are multiples of this, so that some are equal. */
  step?: number;
}

/**
 * Chooses the USED highest of each row of scores, the first of equal ones: a row of their
 * numbers, as f32, then a row of their weights. Weights are a softmax over all scores, if
 * NORMALIZED divided by the sum of those chosen.
 *
 * A lane group per row, which finds the highest USED times. Scores that are not numbers
 * may choose any expert, but only one that exists; they and Infinity make all weights NaN.
 */
export const chooseExperts = defineKernel<ChooseCase>({
  name: "chooseExperts",
  buffers: { scores: "m n", chosen: "out any used" },
  constants: { LOG_LANES: 5, SUBGROUPS: 1, NORMALIZED: 1 },
  derive: ({ LOG_LANES }, { n, used }) => {
    if (used > n) {
      throw new Error(
        `Cannot choose ${used} experts: there are scores of ${n}`,
      );
    }
    const lanes = 1 << Number(LOG_LANES);
    return {
      WORKGROUP: lanes,
      LANES: lanes,
      OWN: Math.ceil(n / lanes),
      USED: used,
    };
  },
  grid: ({ m }) => splitGrid(m),
  cost: (call) => {
    const { m, n } = call;
    return call.whole({
      name: call.role,
      group: "other",
      shape: `[${m}, ${n}]`,
      flops: m * n,
      bytes: 4 * m * n,
    });
  },
  body: /* wgsl */ `
${LANES}
var<workgroup> weights: array<f32, USED>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.y * groups.x + wg.x;
  @split var own: array<f32, OWN>;
  @unroll for (var i = 0; i < OWN; i++) {
    let n = i * LANES + lane;
    own[i] = select(${LOW}, scores_at(min(row, u.m - 1u) * u.n + min(n, u.n - 1u)), n < u.n);
  }
  var faulty = 0.0;
  @unroll for (var i = 0; i < OWN; i++) {
    let bits = bitcast<u32>(own[i]); // shows NaN even to fast math
    faulty = select(faulty, 1.0, bits == 0x7f800000u || (bits & 0x7fffffffu) > 0x7f800000u);
  }
  faulty = lanes_max(faulty, lane);
  var highest = 0.0;
  var total = 0.0;
  @if !NORMALIZED { var all = 0.0; }
  for (var s = 0u; s < USED; s++) {
    var best = own[0];
    var number = lane;
    @unroll for (var i = 1; i < OWN; i++) {
      if (own[i] > best) { best = own[i]; number = i * LANES + lane; }
    }
    let top = lanes_max(best, lane);
    let winner = min(u32(-lanes_max(select(${LOW}, -f32(number), best == top), lane)), u.n - 1u);
    if (s == 0u) {
      highest = top;
      @if !NORMALIZED {
        @unroll for (var i = 0; i < OWN; i++) { all += select(0.0, exp(own[i] - top), i * LANES + lane < u.n); }
        all = lanes_sum(all, lane);
      }
    }
    @unroll for (var i = 0; i < OWN; i++) {
      if (i * LANES + lane == winner) { own[i] = ${LOW}; }
    }
    let weight = exp(top - highest);
    total += weight;
    if (lane == 0u) {
      weights[s] = weight;
      if (row < u.m) { chosen_put(2u * row * USED + s, f32(winner)); }
    }
  }
  workgroupBarrier();
  @if NORMALIZED { let share = 1.0 / total; } @else { let share = 1.0 / all; }
  let scale = bitcast<f32>(select(bitcast<u32>(share), 0x7fc00000u, faulty > 0.0));
  if (row >= u.m) { return; }
  for (var s = lane; s < USED; s += LANES) { chosen_put((2u * row + 1u) * USED + s, weights[s] * scale); }
}`,
  cases: [
    { m: 3, n: 8, used: 2, normalized: true },
    { m: 2, n: 13, used: 13, normalized: false },
    { m: 5, n: 37, used: 5, normalized: false },
    { m: 4, n: 40, used: 9, normalized: true, step: 0.5 },
    { m: 33, n: 128, used: 8, normalized: true }, // Qwen3-30B-A3B
  ],
  makeCase({ m, n, used, normalized, step }, { device, random }) {
    const scores = random.tensor("f32", [m, n], 4);
    const data = scores.data as Float32Array;
    if (step) data.forEach((v, i) => data[i] = step * Math.round(v / step));
    return {
      what: `${used} of ${n}, ${m} rows${normalized ? ", normalized" : ""}${
        step ? ", some equal" : ""
      }`,
      operands: { scores, chosen: room([2 * m, used]) },
      constants: {
        ...laneConstants(device, Math.max(1, n)),
        NORMALIZED: normalized ? 1 : 0,
      },
      expected: () => {
        const values: number[] = [];
        for (let r = 0; r < m; r++) {
          const row = [...toF32(scores).subarray(r * n, (r + 1) * n)];
          const order = row.map((_, i) => i)
            .sort((a, b) => row[b] - row[a] || a - b).slice(0, used);
          const share = row.map((score) => Math.exp(score - row[order[0]]));
          const over = normalized ? order.map((i) => share[i]) : share;
          const total = over.reduce((sum, value) => sum + value);
          values.push(...order, ...order.map((i) => share[i] / total));
        }
        return [{ of: "chosen", values, tolerance: SUM }];
      },
    };
  },
});
