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
  constants: { HEAD_DIM: 128, VEC: 4, WORKGROUP: 32 },
  derive: (c) => ({ WIDTH: Number(c.HEAD_DIM) / Number(c.VEC) }),
  grid: ({ m, heads }) => splitGrid(m * heads),
  body: /* wgsl */ `
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let head = wg.y * groups.x + wg.x;
  if (head >= u.m * u.heads) { return; }
  let splits = flags[1];
  var top = -3.0e38;
  for (var s = 0u; s < splits; s++) { top = max(top, bitcast<f32>(stats[(head * splits + s) * 2u])); }
  var total = 0.0;
  for (var s = 0u; s < splits; s++) {
    let at = (head * splits + s) * 2u;
    total += exp(bitcast<f32>(stats[at]) - top) * bitcast<f32>(stats[at + 1u]);
  }
  for (var e = tid; e < WIDTH; e += WORKGROUP) {
    @if VEC == 4 { var sum = vec4f(); } @else { var sum = 0.0; }
    for (var s = 0u; s < splits; s++) {
      let at = head * splits + s;
      sum += partial_at(at * WIDTH + e) * exp(bitcast<f32>(stats[at * 2u]) - top);
    }
    y_put(head * WIDTH + e, sum / total);
  }
}`,
});
