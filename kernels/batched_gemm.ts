import { deriveTile, TILE, tileConstants } from "./gemm.ts";
import { otherCost } from "./cost.ts";
import { defineKernel } from "./define.ts";

/**
 * A matrix product per batch and head, `[batch, heads, m, k] × [batch, kvHeads, k, n]`:
 * attention scores and values. `heads` is a multiple of `kvHeads`; each group of
 * query heads reads its own head of `b`, which is never copied.
 *
 * B_BY_COLUMN 1: `b` is `[batch, kvHeads, n, k]` (keys as they are cached).
 */
export const batchedGemm = defineKernel({
  name: "batchedGemm",
  buffers: ({ B_BY_COLUMN }) => ({
    a: "batch heads m k as span",
    b: `batch kvHeads ${B_BY_COLUMN ? "n k" : "k n"} as span`,
    c: "inout batch heads m n as span",
  }),
  uniforms: { stride: "u32", column: "u32" },
  constants: { ...tileConstants, B_BY_COLUMN: 0 },
  derive: deriveTile,
  grid: ({ m, n, batch, heads }, { BM, BN }) => [
    Math.ceil(n / BN),
    Math.ceil(m / BM),
    batch * heads,
  ],
  cost: otherCost,
  body: `
fn offsets(z: u32) -> vec3u {
  let kv_head = z / u.heads * u.kvHeads + z % u.heads / (u.heads / u.kvHeads);
  return vec3u(z * u.m * u.k, kv_head * u.k * u.n, z * u.m * u.n);
}
fn runs_of_k(groups: vec3u) -> u32 { return 1u; }
${TILE}`,
});
