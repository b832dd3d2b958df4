import type { LinearTarget } from "../lib/dispatch/keys.ts";
import { BLOCKS, FLOATS } from "./case.ts";
import { defineKernel } from "./define.ts";
import {
  deriveMatrix,
  MATRIX_TILE,
  matrixConstants,
  matrixNeeds,
} from "./gemm_matrix.ts";
import { type GroupedCase, groupedCase, groupedCost } from "./grouped_case.ts";

/**
 * Rows that are grouped by expert, each group times the matrix of its expert, by tensor
 * cores: what expert_gemm.ts computes, in tiles as in gemm_matrix.ts. `a` is f16, scaled by
 * rows into its range. EXPERTS, `first`, `base`, PAIRS and COLUMNS: see expert_gemm.ts.
 */
export const expertGemmMatrix = defineKernel<GroupedCase>({
  name: "expertGemmMatrix",
  buffers: ({ SCALED, C_FOURS }) => ({
    a: "m k as unit",
    b: "held k as unit",
    ...(SCALED ? { scales: "m" } : {}),
    groups: "tiles",
    c: `inout m stride as ${C_FOURS ? "span" : "scalar"}`,
  }),
  uniforms: { n: "u32", first: "u32", base: "u32", column: "u32" },
  constants: {
    ...matrixConstants,
    BM: 32,
    SM: 1,
    SN: 4,
    STAGES: 1,
    EXPERTS: 1,
    PAIRS: 0,
    COLUMNS: 0,
  },
  derive: deriveMatrix,
  tuning: {
    of: "linear",
    // BM is that of the tiles that rows were grouped into.
    grid: {
      BN: [64, 128],
      BK: [32, 64],
      SM: [1, 2],
      SN: [2, 4],
      STAGES: [1, 2],
    },
    needs: (target: LinearTarget, constants) =>
      matrixNeeds(target, { ...constants, BM: target.m }),
  },
  grid: ({ n, tiles }, { BN }) => [1, Math.ceil(n / BN), tiles],
  cost: (call) => groupedCost(call, call.dispatch.dims.m),
  body: MATRIX_TILE,
  cases: [
    ...FLOATS.flatMap((w) => [
      { groups: [0, 0, 2, 3, -1], experts: 4, n: 37, k: 24, w, largest: 1 },
      {
        groups: [1, 1, -1],
        experts: 2,
        n: 768,
        k: 256,
        w,
        largest: 1,
        rows: 32,
      },
    ]),
    ...BLOCKS.map((w) => ({
      ...{ groups: [0, 1, 1, 2], experts: 3, n: 24, k: 256, w, largest: 1 },
    })),
    {
      ...{ groups: [0, 1, 2, 3, 4, 5, -1], experts: 6, n: 34, k: 64 },
      ...{ w: "q8_0", held: [2, 3], second: true, largest: 1 },
    },
    {
      ...{ groups: [2, 0, 1], experts: 3, n: 66, k: 128, w: "bf16" },
      ...{ second: true, largest: 1, rows: 32 },
    },
  ],
  makeCase: (given, tools) => groupedCase(given, tools, "expertGemmMatrix"),
});
