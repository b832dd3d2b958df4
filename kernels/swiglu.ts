import { splitGrid } from "../lib/webgpu/kernel.ts";
import { toF32 } from "../lib/formats/tensor.ts";
import { room, SUM, u32 } from "./case.ts";
import { linearName } from "./cost.ts";
import { defineKernel } from "./define.ts";

/**
 * Computes `y = silu(g) · u`, where a row of `both` is `[g, u]`, for gate and up
 * projections that are stored in different types. If one buffer holds rows of both, the
 * matmul kernels do this themselves.
 *
 * PLACED 1: `both` has the row at its place in `places`; see sort_experts.ts.
 */
export const swiglu = defineKernel<
  { m: number; n: number; placed?: boolean }
>({
  name: "swiglu",
  buffers: ({ PLACED }) => ({
    both: PLACED ? "any n" : "m n",
    ...(PLACED ? { places: "m" } : {}),
    y: "out m half",
  }),
  constants: { WORKGROUP: 128, PLACED: 0 },
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
  @if PLACED { let row = places[i / u.half]; } @else { let row = i / u.half; }
  let at = row * u.n + i % u.half;
  let gate = both[at];
  y[i] = gate / (1.0 + exp(-gate)) * both[at + u.half];
}`,
  cases: [
    { m: 1, n: 2 },
    { m: 7, n: 74 },
    { m: 3, n: 6144 },
    { m: 7, n: 74, placed: true },
  ],
  makeCase({ m, n, placed }, { random, reference }) {
    const both = random.tensor("f32", [m, n], 8);
    const places = Uint32Array.from({ length: m }, (_, row) => m - 1 - row);
    return {
      what: `f32 [${m}, ${n}]${placed ? " at other places" : ""}`,
      operands: { both, places: u32(...places), y: room([m, n / 2]) },
      constants: { PLACED: placed ? 1 : 0 },
      expected: () => {
        const stored = toF32(both), values = new Float64Array(m * n);
        places.forEach((place, row) => {
          const from = placed ? place : row;
          values.set(stored.subarray(from * n, (from + 1) * n), row * n);
        });
        const given = { values, norms: new Float64Array(m * n) };
        const y = reference.epilogue("swiglu", given, n, 0);
        return [{ of: "y", ...y, tolerance: SUM }];
      },
    };
  },
});
