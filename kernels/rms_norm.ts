import { LANES } from "../lib/webgpu/wgsl.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { normCost } from "./cost.ts";
import { defineKernel } from "./define.ts";

/**
 * `y = x · norm / sqrt(mean(x²) + eps)` per row (RMSNorm,
 * https://arxiv.org/abs/1910.07467). One workgroup per row.
 */
export const rmsNorm = defineKernel({
  name: "rmsNorm",
  buffers: { x: "m k as span", norm: "k as span", y: "out m k as span" },
  uniforms: { eps: "f32" },
  constants: { WORKGROUP: 128, LOG_LANES: 5, SUBGROUPS: 1 },
  derive: ({ LOG_LANES }) => ({ LANES: 1 << Number(LOG_LANES) }),
  grid: ({ m }) => splitGrid(m),
  cost: normCost,
  body: /* wgsl */ `
${LANES}
var<workgroup> squares: array<f32, WORKGROUP / LANES>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let row = wg.y * groups.x + wg.x;
  var sum = 0.0;
  for (var e = tid * 4u; e < u.k; e += WORKGROUP * 4u) {
    let v = x_span(min(row, u.m - 1u) * u.k + e, u.k - e);
    sum += dot(v, v);
  }
  sum = lanes_sum(sum, tid);
  if (tid % LANES == 0u) { squares[tid / LANES] = sum; }
  workgroupBarrier();
  sum = 0.0;
  for (var i = 0u; i < WORKGROUP / LANES; i++) { sum += squares[i]; }
  let scale = inverseSqrt(sum / f32(u.k) + u.eps);
  if (row >= u.m) { return; }
  for (var e = tid * 4u; e < u.k; e += WORKGROUP * 4u) {
    y_store(row * u.k + e, u.k - e, x_span(row * u.k + e, u.k - e) * scale * norm_span(e, u.k - e));
  }
}`,
});
