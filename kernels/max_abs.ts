import { laneConstants } from "../lib/dispatch/capabilities.ts";
import { matrixToF32 } from "../lib/formats/tensor.ts";
import { LANES } from "../lib/webgpu/wgsl.ts";
import { BLOCKS, FLOATS, u32 } from "./case.ts";
import { defineKernel } from "./define.ts";

/**
 * Finds the largest absolute value of a weight, as f32 bits in `largest[at]`; positive
 * floats sort like u32. It limits how large activations may be if matmuls multiply in f16.
 */
export const maxAbs = defineKernel<{ n: number; k: number; w: string }>({
  name: "maxAbs",
  buffers: { w: "n k as span", largest: "inout any as atomic" },
  uniforms: { at: "u32" },
  constants: { WORKGROUP: 256, LOG_LANES: 5, SUBGROUPS: 1 },
  derive: ({ LOG_LANES }) => ({ LANES: 1 << Number(LOG_LANES) }),
  grid: ({ n }) => [Math.min(n, 1024), 1, 1],
  body: /* wgsl */ `
${LANES}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  var high = 0.0;
  for (var row = wg.x; row < u.n; row += groups.x) {
    for (var e = tid * 4u; e < u.k; e += WORKGROUP * 4u) {
      let size = abs(w_span(row * u.k + e, u.k - e));
      high = max(high, max(max(size.x, size.y), max(size.z, size.w)));
    }
  }
  high = lanes_max(high, tid);
  if (tid % LANES == 0u) { atomicMax(&largest[u.at], bitcast<u32>(high)); }
}`,
  cases: [
    ...FLOATS.map((w) => ({ n: 7, k: 45, w })),
    ...BLOCKS.map((w) => ({ n: 7, k: 512, w })),
  ],
  makeCase({ n, k, w: dtype }, { device, random }) {
    const w = random.matrix(dtype, [n, k]);
    return {
      what: `${dtype} [${n}, ${k}]`,
      operands: { w, largest: u32(7, 0, 7) },
      constants: laneConstants(device),
      uniforms: { at: 1 },
      expected: () => {
        const largest = matrixToF32(w).reduce(
          (most, value) => Math.max(most, Math.abs(value)),
          0,
        );
        const [bits] = new Uint32Array(Float32Array.of(largest).buffer);
        return [{ of: "largest", values: [7, bits, 7], tolerance: 0 }];
      },
    };
  },
});
