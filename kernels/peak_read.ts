import { otherCost } from "./cost.ts";
import { defineKernel } from "./define.ts";

/**
 * Reads a whole buffer, or its copy in a texture, and does next to nothing with it: how
 * fast memory can be.
 * Each thread has eight 16-byte loads in flight, neighbours read neighbours.
 */
export const peakRead = defineKernel({
  name: "peakRead",
  buffers: ({ X_IN }) => ({
    x: `n as ${X_IN === "texture" ? "texels" : "unit"}`,
    y: "inout any",
  }),
  constants: { WORKGROUP: 256, LOADS: 8, X_IN: "buffer" },
  grid: ({ n }, { WORKGROUP, LOADS }) => [
    Math.min(4096, Math.ceil(n / 4 / (WORKGROUP * LOADS))),
    1,
    1,
  ],
  cost: otherCost,
  body: /* wgsl */ `
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let units = u.n / 4u;
  @split var acc: array<vec4u, LOADS>;
  let stride = groups.x * WORKGROUP * LOADS;
  for (var at = wg.x * WORKGROUP * LOADS + tid; at < units; at += stride) {
    @unroll for (var i = 0; i < LOADS; i++) {
      @if X_VIEW == "texels" { acc[i] ^= x_unit(min(at + i * WORKGROUP, units - 1u)); }
      @else { acc[i] ^= x[min(at + i * WORKGROUP, units - 1u)]; }
    }
  }
  var all = vec4u();
  @unroll for (var i = 0; i < LOADS; i++) { all ^= acc[i]; }
  // Never true of a buffer of zeros, which the compiler cannot know.
  if ((all.x ^ all.y ^ all.z ^ all.w) == 1u) { y[0] = 1u; }
}`,
});
