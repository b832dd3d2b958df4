import { toF32 } from "../lib/formats/tensor.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { room, SUM, u32Tensor } from "./case.ts";
import { defineKernel } from "./define.ts";
import { randomChoice } from "./expert_case.ts";
import { BEFORE } from "./linear_case.ts";

interface SumCase {
  m: number;
  used: number;
  n: number;
}

/**
 * Adds the results of a row's experts to the row, each multiplied by its weight, in the
 * order in which they were chosen. The results of pairs are at their `places` in
 * `partial`; see sort_experts.ts.
 */
export const sumExperts = defineKernel<SumCase>({
  name: "sumExperts",
  buffers: {
    partial: "any n as span",
    places: "any",
    chosen: "choices used",
    y: "inout m n as span",
  },
  constants: { WORKGROUP: 128 },
  grid: ({ m }) => splitGrid(m),
  cost: (call) => {
    const { m, n, used } = call.dispatch.dims;
    return call.whole({
      name: call.role,
      group: "linear",
      shape: `[${m}, ${used}, ${n}]`,
      flops: 2 * m * used * n,
      bytes: 4 * m * n * (used + 2),
      fused: ["residual add"],
    });
  },
  body: /* wgsl */ `
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let row = wg.y * groups.x + wg.x;
  if (row >= u.m) { return; }
  for (var e = tid * 4u; e < u.n; e += WORKGROUP * 4u) {
    var sum = y_span(row * u.n + e, u.n - e);
    for (var s = 0u; s < u.used; s++) {
      let weight = chosen_at((2u * row + 1u) * u.used + s);
      sum += weight * partial_span(places[row * u.used + s] * u.n + e, u.n - e);
    }
    y_store(row * u.n + e, u.n - e, sum);
  }
}`,
  cases: [{ m: 3, used: 2, n: 7 }, { m: 5, used: 8, n: 2048 }],
  makeCase({ m, used, n }, { random }) {
    const partial = random.tensor("f32", [m * used + 3, n]);
    const chosen = randomChoice(random, { m, used, experts: used });
    const places = Uint32Array.from(
      { length: m * used },
      (_, pair) => m * used + 2 - pair,
    );
    return {
      what: `[${m}, ${used}, ${n}]`,
      operands: {
        partial,
        places: u32Tensor([places.length], places),
        chosen,
        y: room([m, n], BEFORE),
      },
      expected: () => {
        const values = new Float64Array(m * n).fill(BEFORE);
        const norms = new Float64Array(m * n).fill(BEFORE);
        const from = toF32(partial);
        places.forEach((place, pair) => {
          const row = Math.floor(pair / used), s = pair % used;
          const weight = chosen.data[(2 * row + 1) * used + s];
          for (let c = 0; c < n; c++) {
            const term = weight * from[place * n + c];
            values[row * n + c] += term;
            norms[row * n + c] = Math.hypot(norms[row * n + c], term);
          }
        });
        return [{ of: "y", values, norms, tolerance: SUM }];
      },
    };
  },
});
