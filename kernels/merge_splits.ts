import { kernel, splitGrid } from "../lib/kernel.ts";

/** Combines the splits of attend_decode.ts, `flags[1]` of them. One workgroup per head. */
export const mergeSplits = kernel({
  name: "mergeSplits",
  buffers: ({ VEC }) => {
    const view = VEC === 4 ? "vec4" : "scalar";
    return {
      partial: `any as ${view}`,
      stats: "any",
      flags: "any",
      y: `inout m any as ${view}`,
    };
  },
  uniforms: { heads: "u32" },
  constants: { HEAD_DIM: 128, VEC: 4, WORKGROUP: 64 },
  derive: (c) => ({ WIDTH: Number(c.HEAD_DIM) / Number(c.VEC) }),
  grid: ({ m, heads }) => splitGrid(m * heads),
  body: /* wgsl */ `
var<workgroup> tops: array<f32, WORKGROUP>;
var<workgroup> sums: array<f32, WORKGROUP>;
var<workgroup> weights: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let head = min(wg.y * groups.x + wg.x, u.m * u.heads - 1u);
  let splits = flags[1];
  // A thread weighs a split: at most WORKGROUP of them.
  var own = -3.0e38;
  var sum = 0.0;
  if (tid < splits) {
    own = bitcast<f32>(stats[(head * splits + tid) * 2u]);
    sum = bitcast<f32>(stats[(head * splits + tid) * 2u + 1u]);
  }
  tops[tid] = own;
  workgroupBarrier();
  var top = -3.0e38;
  for (var s = 0u; s < splits; s++) { top = max(top, tops[s]); }
  let weight = exp(own - top);
  weights[tid] = weight;
  sums[tid] = sum * weight;
  workgroupBarrier();
  var total = 0.0;
  for (var s = 0u; s < splits; s++) { total += sums[s]; }
  for (var e = tid; e < WIDTH; e += WORKGROUP) {
    @if VEC == 4 { var sum = vec4f(); } @else { var sum = 0.0; }
    for (var s = 0u; s < splits; s += 8u) {
      @unroll for (var i = 0; i < 8; i++) {
        let split = min(s + i, splits - 1u);
        sum += partial_at((head * splits + split) * WIDTH + e) * select(0.0, weights[split], s + i < splits);
      }
    }
    y_put(head * WIDTH + e, sum / total);
  }
}`,
});
