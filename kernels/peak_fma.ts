import { u32 } from "./case.ts";
import { defineKernel } from "./define.ts";

/**
 * Measures peak arithmetic in f32 or f16 by doing nothing but multiply and add in
 * registers. Independent chains of sums hide latency; 16 steps are unrolled because naga
 * adds a counter to every loop. In f16, pairs are multiplied by one value as in an outer
 * product: an H100 reaches 93 TFLOP/s that way, and 65 if the sums are multiplied.
 */
export const peakFma = defineKernel<
  { half: boolean; groups: number; rounds: number }
>({
  name: "peakFma",
  buffers: { y: "inout any" },
  uniforms: { rounds: "u32", groups: "u32" },
  constants: { WORKGROUP: 256, STEPS: 16, F16: 0 },
  derive: ({ F16 }) => ({ CHAINS: F16 ? 16 : 8 }),
  grid: ({ groups }) => [groups, 1, 1],
  body: /* wgsl */ `
@if F16 { alias T = vec2<f16>; alias S = f16; } @else { alias T = vec4f; alias S = f32; }
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) tid: u32) {
  @split var acc: array<T, CHAINS>;
  let a = T(S(1.0 - f32(tid) * 1e-4));
  let b = T(S(f32(tid) * 1e-4));
  @unroll for (var i = 0; i < CHAINS; i++) { acc[i] = b * T(S(i)); }
  for (var round = 0u; round < u.rounds; round++) {
    @unroll for (var s = 0; s < STEPS; s++) {
      @unroll for (var i = 0; i < CHAINS; i++) {
        @if F16 { acc[i] = fma(T(a.x), b, acc[i]); } @else { acc[i] = fma(acc[i], a, b); }
      }
    }
  }
  var sum = T();
  @unroll for (var i = 0; i < CHAINS; i++) { sum += acc[i]; }
  if (dot(sum, T(S(1.0))) == S(12345.0)) { y[0] = 1u; }
}`,
  cases: [
    { half: false, groups: 3, rounds: 2 },
    { half: true, groups: 3, rounds: 2 },
  ],
  makeCase({ half, groups, rounds }, { device }) {
    if (half && !device.f16) return undefined;
    return {
      what: `${groups} workgroups, ${rounds} rounds in ${half ? "f16" : "f32"}`,
      operands: { y: u32(7, 8, 9, 10) },
      constants: { F16: half ? 1 : 0 },
      uniforms: { groups, rounds },
      // The sum is never 12345, so nothing is written.
      expected: () => [{ of: "y", values: [7, 8, 9, 10], tolerance: 0 }],
    };
  },
});

/** Operations per workgroup and round; an fma counts as two. */
export const FMA_ROUND: number = 256 * 8 * 16 * 4 * 2;
