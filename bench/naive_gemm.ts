import type { Kernel } from "../lib/webgpu/kernel.ts";

/**
 * `c = a · b`, `[m, k] × [k, n]`, with one thread per element of c and nothing shared:
 * the baseline for tiling. Only benchmarks run it.
 */
export const naiveGemm: Kernel = {
  name: "naiveGemm",
  buffers: { a: "m k", b: "k n", c: "out m n" },
  constants: { SIDE: 16 },
  grid: ({ m, n }, { SIDE }) => [Math.ceil(n / SIDE), Math.ceil(m / SIDE), 1],
  body: /* wgsl */ `
@compute @workgroup_size(SIDE, SIDE)
fn main(@builtin(global_invocation_id) at: vec3u) {
  if (at.x >= u.n || at.y >= u.m) { return; }
  var sum = 0.0;
  for (var k = 0u; k < u.k; k++) { sum += a[at.y * u.k + k] * b[k * u.n + at.x]; }
  c[at.y * u.n + at.x] = sum;
}`,
};
