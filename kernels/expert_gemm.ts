import type { LinearTarget } from "../lib/dispatch/keys.ts";
import { BLOCKS, FLOATS } from "./case.ts";
import { defineKernel } from "./define.ts";
import { deriveTile, TILE, tileConstants, tileNeeds } from "./gemm.ts";
import { type GroupedCase, groupedCase, groupedCost } from "./grouped_case.ts";

/**
 * Rows that are grouped by expert, each group times the matrix of its expert: the Linear
 * layers of a prompt. A tile of BM rows has one expert, see sort_experts.ts; it is a
 * matmul of its own. Tiles that no expert has, and those of experts that `b` does not
 * hold, are left as they are.
 *
 * `b` holds EXPERTS experts from number `first` on, `n` rows for each, the first at row
 * `base`. F16, SCALED and C_FOURS are as in gemm.ts. PAIRS and COLUMNS, how many rows
 * are not padding and how many columns they get, matter only to the cost.
 */
export const expertGemm = defineKernel<GroupedCase>({
  name: "expertGemm",
  buffers: ({ F16, SCALED, C_FOURS }) => ({
    a: `padded k as ${F16 ? "half" : "span"}`,
    b: "held k as strip",
    ...(SCALED ? { scales: "padded" } : {}),
    groups: "tiles",
    c: `inout padded stride as ${C_FOURS ? "span" : "scalar"}`,
  }),
  uniforms: { m: "u32", n: "u32", first: "u32", base: "u32", column: "u32" },
  constants: { ...tileConstants, EXPERTS: 1, C_FOURS: 1, PAIRS: 0, COLUMNS: 0 },
  derive: deriveTile,
  tuning: {
    of: "linear",
    // BM is that of the tiles that rows were grouped into.
    grid: { BN: [32, 64, 128], BK: [16, 32], TM: [4, 8], TN: [4, 8] },
    needs: (target: LinearTarget, constants) =>
      tileNeeds(target, { ...constants, BM: target.m }),
  },
  grid: ({ n, tiles }, { BN }) => [Math.ceil(n / BN), 1, tiles],
  cost: (call) => groupedCost(call, call.dispatch.dims.padded),
  body: /* wgsl */ `
fn offsets(tile: u32) -> vec3u {
  let expert = groups[tile] - u.first;
  return vec3u(tile * BM * u.k, (u.base + expert * u.n) * u.k, tile * BM * u.stride);
}
fn skips(tile: u32) -> bool { return groups[tile] - u.first >= EXPERTS; }
fn splits_of_k(grid: vec3u) -> u32 { return 1u; }
${TILE}`,
  cases: [
    ...FLOATS.flatMap((w) => [
      { groups: [0, 0, 2, 3, -1], experts: 4, n: 37, k: 19, w },
      { groups: [1, 1, -1], experts: 2, n: 768, k: 256, w },
    ]),
    ...BLOCKS.map((w) => ({
      ...{ groups: [0, 1, 1, 2], experts: 3, n: 24, k: 256, w },
    })),
    {
      ...{ groups: [0, 1, 2, 3, 4, 5, -1], experts: 6, n: 34, k: 64 },
      ...{ w: "q8_0", held: [2, 3], second: true },
    },
    {
      ...{ groups: [2, 0, 1], experts: 3, n: 66, k: 128, w: "bf16" },
      ...{ second: true, largest: 0.5 },
    },
    { groups: [0, 1, -1], experts: 2, n: 64, k: 256, w: "q4_k", largest: 0.5 },
  ],
  makeCase: (given, tools) => groupedCase(given, tools, "expertGemm"),
});
