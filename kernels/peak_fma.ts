import { kernel } from "../lib/kernel.ts";

/**
 * Multiplies and adds in registers and nothing else: how fast arithmetic can be, in
 * f32 or f16. Eight vec4 chains per thread hide the latency of each; 16 steps are
 * unrolled, because naga adds a counter to every loop.
 */
export const peakFma = kernel({
  name: "peakFma",
  buffers: { y: "inout any" },
  uniforms: { rounds: "u32", groups: "u32" },
  constants: { WORKGROUP: 256, CHAINS: 8, STEPS: 16, F16: 0 },
  grid: ({ groups }) => [groups, 1, 1],
  body: /* wgsl */ `
@if F16 { alias T = vec4<f16>; } @else { alias T = vec4f; }
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) tid: u32) {
  @split var acc: array<T, CHAINS>;
  let a = T(vec4f(1.0 - f32(tid) * 1e-4));
  let b = T(vec4f(f32(tid) * 1e-4));
  @unroll for (var i = 0; i < CHAINS; i++) { acc[i] = b * T(vec4f(f32(i))); }
  for (var round = 0u; round < u.rounds; round++) {
    @unroll for (var s = 0; s < STEPS; s++) {
      @unroll for (var i = 0; i < CHAINS; i++) { acc[i] = fma(acc[i], a, b); }
    }
  }
  var sum = T();
  @unroll for (var i = 0; i < CHAINS; i++) { sum += acc[i]; }
  let all = vec4f(sum);
  if (all.x + all.y + all.z + all.w == 12345.0) { y[0] = 1u; }
}`,
});

/** Operations that a workgroup does in a round; an fma counts as two. */
export const FMA_ROUND: number = 256 * 8 * 16 * 4 * 2;
