import { splitGrid } from "../lib/webgpu/kernel.ts";
import { defineKernel } from "./define.ts";

/**
 * Rows of a table by index, as f32: the embedding of tokens, and partial sums of
 * each row's squares (WORKGROUP of them) for the norm that follows. A table split
 * over several buffers takes one dispatch each: rows outside `begin … begin + n`
 * are left as they are.
 */
export const embed = defineKernel({
  name: "embed",
  buffers: {
    table: "n k as span",
    tokens: "m",
    x: "inout m k as span",
    squares: "inout m parts",
  },
  uniforms: { begin: "u32" },
  constants: { WORKGROUP: 64 },
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
});
