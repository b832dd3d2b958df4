import { toF32 } from "../lib/formats/tensor.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { room, u32Tensor } from "./case.ts";
import { defineKernel } from "./define.ts";
import { NONE } from "./sort_experts.ts";

interface GatherCase {
  rows: number;
  k: number;
  used: number;
}

/**
 * Copies rows of `x` to the places of their pairs: row `pair / USED` of `x` for each pair
 * in `order`, zeros for padding. See sort_experts.ts.
 */
export const gatherRows = defineKernel<GatherCase>({
  name: "gatherRows",
  buffers: { x: "rows k as span", order: "padded", y: "out padded k as span" },
  constants: { WORKGROUP: 128, USED: 1 },
  grid: ({ padded }) => splitGrid(padded),
  cost: (call) => {
    const { padded, k } = call.dispatch.dims;
    const shape = `[${padded}, ${k}]`;
    return call.whole({
      name: "gathered rows",
      group: "other",
      shape,
      bytes: 8 * padded * k,
    });
  },
  body: /* wgsl */ `
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let place = wg.y * groups.x + wg.x;
  if (place >= u.padded) { return; }
  let pair = order[place];
  let row = min(pair / USED, u.rows - 1u);
  for (var e = tid * 4u; e < u.k; e += WORKGROUP * 4u) {
    var four = x_span(row * u.k + e, u.k - e);
    if (pair == ${NONE}u) { four = vec4f(); }
    y_store(place * u.k + e, u.k - e, four);
  }
}`,
  cases: [
    { rows: 5, k: 7, used: 1 },
    { rows: 9, k: 1024, used: 3 },
  ],
  makeCase({ rows, k, used }, { random }) {
    const x = random.tensor("f32", [rows, k]);
    const pairs = Array.from({ length: rows * used }, (_, pair) => pair);
    const order = [NONE, ...pairs.toReversed(), NONE];
    return {
      what: `[${rows}, ${k}], ${used} of each`,
      operands: {
        x,
        order: u32Tensor([order.length], Uint32Array.from(order)),
        y: room([order.length, k]),
      },
      constants: { USED: used },
      expected: () => [{
        of: "y",
        values: order.flatMap((pair) => {
          if (pair === NONE) return new Array(k).fill(0);
          const row = Math.floor(pair / used);
          return [...toF32(x).subarray(row * k, (row + 1) * k)];
        }),
        tolerance: 0,
      }],
    };
  },
});
