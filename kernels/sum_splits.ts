import { toF32 } from "../lib/formats/tensor.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { room, SUM } from "./case.ts";
import { linearName } from "./cost.ts";
import { defineKernel } from "./define.ts";
import { BEFORE } from "./linear_case.ts";

/**
 * Sums the SPLITS partial results of a gemm that split k, `[splits · m, n]`, into `y`.
 * ADD 1 adds them to the contents of `y` (residual).
 */
export const sumSplits = defineKernel<
  { m: number; n: number; splits: number; add: 0 | 1 }
>({
  name: "sumSplits",
  buffers: ({ Y_FOURS }) => ({
    partial: "any n as span",
    y: `inout m any as ${Y_FOURS ? "span" : "scalar"}`,
  }),
  // Rows of y are `stride` elements apart; the first sum goes to column `column`.
  // Y_FOURS 0: stride is a multiple of 4, but column or n is not.
  uniforms: { stride: "u32", column: "u32" },
  constants: { SPLITS: 2, ADD: 0, Y_FOURS: 1, WORKGROUP: 128 },
  grid: ({ m, n }, { WORKGROUP }) =>
    splitGrid(m * Math.ceil(n / 4) / WORKGROUP),
  cost: (call) => {
    const { m, n, constants } = call;
    const splits = Number(constants.SPLITS);
    return call.whole({
      name: linearName(call),
      group: "linear",
      shape: `[${splits}, ${m}, ${n}]`,
      flops: (splits - 1) * m * n,
      bytes: 4 * m * n * (splits + 1 + Number(constants.ADD)),
    });
  },
  body: /* wgsl */ `
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let quads = (u.n + 3u) / 4u;
  let i = (wg.y * groups.x + wg.x) * WORKGROUP + tid;
  let row = i / quads;
  let e = i % quads * 4u;
  let left = select(0u, u.n - e, row < u.m);
  let at = row * u.stride + u.column + e;
  @if ADD { var sum = y_span(at, left); } @else { var sum = vec4f(); }
  @unroll for (var s = 0; s < SPLITS; s++) { sum += partial_span((s * u.m + row) * u.n + e, left); }
  y_store(at, left, sum);
}`,
  cases: [
    { m: 5, n: 19, splits: 3, add: 1 },
    { m: 5, n: 76, splits: 2, add: 0 },
  ],
  makeCase({ m, n, splits, add }, { random }) {
    const partial = random.tensor("f32", [splits * m, n]);
    const before = add ? BEFORE : 0;
    return {
      what: `${splits} × f32 [${m}, ${n}]${add ? " added to a residual" : ""}`,
      operands: { partial, y: room([m, n], add ? BEFORE : NaN) },
      constants: { SPLITS: splits, ADD: add },
      uniforms: { stride: n, column: 0 },
      expected: () => {
        const all = toF32(partial);
        const values = Float64Array.from({ length: m * n }, (_, at) => {
          let sum = before;
          for (let s = 0; s < splits; s++) sum += all[s * m * n + at];
          return sum;
        });
        return [{ of: "y", values, tolerance: SUM }];
      },
    };
  },
});
