import { toF32 } from "../lib/formats/tensor.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { type Float, FLOATS, room, SUM } from "./case.ts";
import { defineKernel } from "./define.ts";

interface ColumnsCase {
  m: number;
  n: number;
  k: number;
  b: Float;
}

/**
 * One or a few rows times a matrix stored by input row: `y = x · b`, `[m, k] × [k, n]`.
 *
 * A thread takes four neighboring columns, so that a row of `b` is read in whole cache
 * lines. SLICES threads share a column's k and add their sums in workgroup memory.
 */
export const gemvColumns = defineKernel<ColumnsCase>({
  name: "gemvColumns",
  buffers: { x: "m k as scalar", b: "k n as span", y: "inout m n as span" },
  constants: { M: 1, COLUMNS: 32, SLICES: 8 },
  derive: ({ COLUMNS, SLICES }) => ({
    WORKGROUP: Number(COLUMNS) * Number(SLICES),
  }),
  grid: ({ n }, { COLUMNS }) => splitGrid(n / (4 * COLUMNS)),
  body: /* wgsl */ `
var<workgroup> sums: array<vec4f, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let column = ((wg.y * groups.x + wg.x) * COLUMNS + tid % COLUMNS) * 4u;
  let left = u.n - min(column, u.n);
  @split var acc: array<vec4f, M>;
  for (var i = tid / COLUMNS; i < u.k; i += SLICES) {
    let v = b_span(i * u.n + column, left);
    @unroll for (var m = 0; m < M; m++) { acc[m] += x_at(m * u.k + i) * v; }
  }
  @unroll for (var m = 0; m < M; m++) {
    sums[tid] = acc[m];
    workgroupBarrier();
    if (tid < COLUMNS) {
      var sum = sums[tid];
      for (var r = 1u; r < SLICES; r++) { sum += sums[r * COLUMNS + tid]; }
      y_store(m * u.n + column, left, sum);
    }
    workgroupBarrier();
  }
}`,
  cases: FLOATS.flatMap((b) => [
    { m: 1, n: 37, k: 19, b },
    { m: 3, n: 3072, k: 256, b },
  ]),
  makeCase({ m, n, k, b: dtype }, { random, reference }) {
    const x = random.tensor("f32", [m, k]);
    const b = random.tensor(dtype, [k, n]);
    return {
      what: `${dtype} [${m}, ${k}] × [${k}, ${n}]`,
      operands: { x, b, y: room([m, n]) },
      constants: { M: m },
      expected: () => {
        const columns = reference.transpose(toF32(b), k, n);
        const product = reference.linear(toF32(x), columns, { m, n, k });
        return [{ of: "y", ...product, tolerance: SUM }];
      },
    };
  },
});
