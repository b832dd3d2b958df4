import { laneConstants } from "../lib/dispatch/capabilities.ts";
import { toF32 } from "../lib/formats/tensor.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { LANES } from "../lib/webgpu/wgsl.ts";
import { EPS, type Float, FLOATS, room, SUM } from "./case.ts";
import { normCost } from "./cost.ts";
import { defineKernel } from "./define.ts";

/**
 * RMSNorm (https://arxiv.org/abs/1910.07467): `y = x · norm / sqrt(mean(x²) + eps)` for
 * each row. One workgroup per row.
 */
export const rmsNorm = defineKernel<{ k: number; norm: Float }>({
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
  cases: FLOATS.flatMap((norm) => [{ k: 19, norm }, { k: 1024, norm }]),
  makeCase({ k, norm: dtype }, { device, random, reference }) {
    const x = random.tensor("f32", [3, k], 2);
    const norm = random.tensor(dtype, [k], 0.5, 1);
    return {
      what: `[3, ${k}] by ${dtype}`,
      operands: { x, norm, y: room([3, k]) },
      constants: laneConstants(device),
      uniforms: { eps: EPS },
      expected: () => {
        const values = reference.rmsNormed(toF32(x), toF32(norm), EPS);
        const norms = values.map(Math.abs);
        return [{ of: "y", values, norms, tolerance: SUM }];
      },
    };
  },
});
