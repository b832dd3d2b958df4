import { u32, u32Tensor } from "./case.ts";
import { defineKernel } from "./define.ts";

interface ReadCase {
  words: number;
  from: "buffer" | "texture";
  /** Index of the only nonzero word, if there is one. */
  at?: number;
}

/**
 * Measures peak memory bandwidth by reading a whole buffer, or its copy in a texture, and
 * doing next to nothing with it. Each thread has eight 16-byte loads in flight, and
 * neighboring threads read neighboring units.
 */
export const peakRead = defineKernel<ReadCase>({
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
  // Never true for a buffer of zeros, but the compiler does not know that.
  if ((all.x ^ all.y ^ all.z ^ all.w) == 1u) { y[0] = 1u; }
}`,
  cases: (["buffer", "texture"] as const).flatMap((from): ReadCase[] => [
    { words: 65536, from },
    { words: 12004, from, at: 0 },
    { words: 12004, from, at: 9177 },
    { words: 16384, from, at: 16383 },
  ]),
  makeCase({ words, from, at }) {
    const data = new Uint32Array(words);
    if (at !== undefined) data[at] = 1; // y shows it only if it was read
    return {
      what: `${words} words of a ${from}, ${
        at === undefined ? "all 0" : `a 1 at ${at}`
      }`,
      operands: { x: u32Tensor([words], data), y: u32(7, 8, 9, 10) },
      constants: { X_IN: from },
      expected: () => [{
        of: "y",
        values: [at === undefined ? 7 : 1, 8, 9, 10],
        tolerance: 0,
      }],
    };
  },
});
