import { splitGrid } from "../lib/webgpu/kernel.ts";
import { toF32 } from "../lib/formats/tensor.ts";
import { room, SUM } from "./case.ts";
import { linearName } from "./cost.ts";
import { defineKernel } from "./define.ts";

/**
 * Computes `y = silu(g) · u`, where a row of `both` is `[g, u]`, for gate and up
 * projections that are stored in different types. If one buffer holds rows of both, the
 * matmul kernels do this themselves.
 */
export const swiglu = defineKernel<{ m: number; n: number }>({
  name: "swiglu",
  buffers: { both: "m n", y: "out m half" },
  constants: { WORKGROUP: 128 },
  derive: (_, { n, half }) => {
    if (n === 2 * half) return {};
    throw new Error(
      `Cannot gate rows of ${n} into rows of ${half}: must be half as wide`,
    );
  },
  grid: ({ m, half }, { WORKGROUP }) => splitGrid(m * half / WORKGROUP),
  cost: (call) => {
    const { m, n } = call;
    return call.whole({
      name: linearName(call),
      group: "linear",
      shape: `[${m}, ${n}]`,
      flops: 2 * m * n,
      bytes: 6 * m * n,
      fused: ["SwiGLU"],
    });
  },
  body: /* wgsl */ `
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let i = (wg.y * groups.x + wg.x) * WORKGROUP + tid;
  if (i >= u.m * u.half) { return; }
  let at = i / u.half * u.n + i % u.half;
  let gate = both[at];
  y[i] = gate / (1.0 + exp(-gate)) * both[at + u.half];
}`,
  cases: [{ m: 1, n: 2 }, { m: 7, n: 74 }, { m: 3, n: 6144 }],
  makeCase({ m, n }, { random, reference }) {
    const both = random.tensor("f32", [m, n], 8);
    return {
      what: `f32 [${m}, ${n}]`,
      operands: { both, y: room([m, n / 2]) },
      expected: () => {
        const values = Float64Array.from(toF32(both));
        const given = { values, norms: new Float64Array(m * n) };
        const y = reference.epilogue("swiglu", given, n, 0);
        return [{ of: "y", ...y, tolerance: SUM }];
      },
    };
  },
});
