import { assert } from "@std/assert";
import { BLOCKS, FLOATS } from "../../kernels/case.ts";
import { expertGemmMatrix } from "../../kernels/expert_gemm_matrix.ts";
import { checkCase, makeCase } from "../support/kernel_case.ts";
import { matrixTest } from "../support/subgroup_matrices.ts";

const GROUPS = { groups: [0, 0, 2, 1, -1], experts: 3, largest: 1 };

matrixTest(
  "expertGemmMatrix multiplies groups by matrices of any size and type",
  async (trial) => {
    for (const rows of [32, 40]) { // tiles of 32 and of 64 rows
      const w = trial.random.pick(FLOATS);
      for (const [n, k] of [[1, 8], [5, 32], [70, 24], [130, 72]]) {
        const given = { ...GROUPS, n, k, rows, w };
        const one = makeCase(expertGemmMatrix, trial, given);
        assert(one?.constants?.BM === (rows === 32 ? 32 : 64));
        await checkCase(expertGemmMatrix, trial, given);
      }
    }
  },
);

matrixTest("expertGemmMatrix reads floats and blocks", async (trial) => {
  for (const w of [...trial.some(FLOATS, 1), trial.random.pick(BLOCKS)]) {
    const given = { ...GROUPS, n: 20, k: 256, w, rows: 32, second: true };
    await checkCase(expertGemmMatrix, trial, given);
  }
});

matrixTest(
  "expertGemmMatrix leaves tiles of experts that are elsewhere",
  async (trial) => {
    const weights = [[32, "bf16"], [64, "q8_0"]] as const;
    for (const [k, w] of trial.some(weights, 1)) {
      for (const held of [[0, 1], [1, 2], [4, 1], [2, 3]] as const) {
        const groups = [0, 1, 1, 2, 3, 4, -1];
        const shape = { groups, experts: 5, n: 12, k, w, held };
        const given = { ...shape, largest: 1, rows: 32 };
        await checkCase(expertGemmMatrix, trial, given);
      }
    }
  },
);
