import { matrixToF32 } from "../lib/formats/tensor.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { BLOCKS, FLOATS, HALF_ROUNDED, halfNorms } from "./case.ts";
import { defineKernel } from "./define.ts";

/**
 * Unpacks a matrix to f16, for a gemm of so many rows that each of its workgroups would
 * unpack the same weights again. Values are rounded once, as gemm rounds them.
 */
export const unpack = defineKernel<{ n: number; k: number; w: string }>({
  name: "unpack",
  buffers: { w: "n k as span", y: "out n k as vec4" },
  constants: { WORKGROUP: 256 },
  grid: ({ n, k }, { WORKGROUP }) => splitGrid(n * k / 4 / WORKGROUP),
  cost: (call) => {
    const { n, k } = call;
    return call.whole({
      name: "unpack weights",
      group: "linear",
      shape: `[${n}, ${k}]`,
      dtypes: `${call.dtype("w")} → f16`,
      flops: 0,
      bytes: n * k * (call.size("w") + 2),
    });
  },
  body: /* wgsl */ `
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let at = (wg.y * groups.x + wg.x) * WORKGROUP + tid;
  if (at < u.n * (u.k / 4u)) { y_put(at, w_at(at)); }
}`,
  cases: [...FLOATS, ...BLOCKS].map((w) => ({ n: 37, k: 512, w })),
  makeCase({ n, k, w: dtype }, { random }) {
    const w = random.matrix(dtype, [n, k]);
    return {
      what: `${dtype} [${n}, ${k}]`,
      operands: { w, y: random.tensor("f16", [n, k], 0, NaN) },
      expected: () => {
        const values = Float64Array.from(matrixToF32(w));
        return [{
          of: "y",
          values,
          norms: halfNorms(values.map(Math.abs)),
          tolerance: HALF_ROUNDED,
        }];
      },
    };
  },
});
