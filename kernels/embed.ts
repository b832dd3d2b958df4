import { matrixToF32 } from "../lib/formats/tensor.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { BLOCKS, FLOATS, room, rowSums, SUM, u32 } from "./case.ts";
import { defineKernel } from "./define.ts";

/** Threads per row; each leaves a partial sum of squares. */
const WORKGROUP = 64;

/**
 * Embeds tokens: gathers rows of a table as f32, and leaves WORKGROUP partial sums of each
 * row's squares for the norm that follows. A table split over several buffers takes one
 * dispatch per buffer, which leaves the rows of tokens outside `begin … begin + n`
 * unchanged. With CLEARS, nothing is pending in two buffers afterwards (pending.ts).
 */
export const embed = defineKernel<{ k: number; table: string }>({
  name: "embed",
  buffers: ({ CLEARS }) => ({
    table: "n k as span",
    tokens: "m",
    x: "inout m k as span",
    squares: "inout m parts",
    ...(CLEARS
      ? { first: "out words as raw", second: "out words as raw" }
      : {}),
  }),
  uniforms: { begin: "u32" },
  constants: { WORKGROUP, CLEARS: 0 },
  grid: ({ m }) => splitGrid(m),
  cost: (call) => {
    const { role, m, n, k } = call;
    return call.whole({
      name: role === "embed_tokens" ? "embedding" : role,
      group: "embedding",
      shape: `[${m}] of [${n}, ${k}]`,
      dtypes: `${call.dtype("table")} → f32`,
      bytes: m * k * (call.size("table") + 4),
    });
  },
  body: /* wgsl */ `
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let row = wg.y * groups.x + wg.x;
  if (row >= u.m) { return; }
  @if CLEARS {
    for (var i = tid; i < u.words; i += WORKGROUP) {
      first[i] = 0u;
      second[i] = 0u;
    }
  }
  let token = tokens[row] - u.begin; // wraps below begin, so one comparison is enough
  if (token >= u.n) { return; }
  var sum = 0.0;
  for (var e = tid * 4u; e < u.k; e += WORKGROUP * 4u) {
    let v = table_span(token * u.k + e, u.k - e);
    sum += dot(v, v);
    x_store(row * u.k + e, u.k - e, v);
  }
  squares[row * WORKGROUP + tid] = sum;
}`,
  cases: [
    ...FLOATS.flatMap((table) => [{ k: 19, table }, { k: 1024, table }]),
    ...BLOCKS.map((table) => ({ k: 512, table })),
  ],
  makeCase({ k, table: dtype }, { random }) {
    const n = 11, begin = 5, ids = [15, 5, 4, 8, 16]; // 4 and 16 lie outside
    const parts = WORKGROUP;
    const table = random.matrix(dtype, [n, k]);
    return {
      what: `${dtype} [${n}, ${k}]`,
      operands: {
        table,
        tokens: u32(...ids),
        x: room([ids.length, k]),
        squares: room([ids.length, parts]),
      },
      uniforms: { begin },
      expected: () => {
        const all = matrixToF32(table);
        const rows = ids.map((id) =>
          id < begin || id >= begin + n
            ? new Float32Array(k).fill(NaN)
            : all.subarray((id - begin) * k, (id - begin + 1) * k)
        );
        const squares = rows.map((row) =>
          row.reduce((sum, value) => sum + value * value, 0)
        );
        return [
          { of: "x", values: rows.flatMap((row) => [...row]), tolerance: 0 },
          {
            of: rowSums("squares", parts),
            values: squares,
            norms: squares,
            tolerance: SUM,
          },
        ];
      },
    };
  },
});
