import { assertThrows } from "@std/assert";
import { expertGemm } from "../../kernels/expert_gemm.ts";
import { BLOCKS, FLOATS } from "../../kernels/case.ts";
import { gpuTest } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

const GROUPS = { groups: [0, 0, 2, 1, -1], experts: 3 };

gpuTest(
  "expertGemm multiplies groups by matrices of any size and type",
  async (_, trial) => {
    for (const w of trial.some(FLOATS, 1)) {
      for (const [n, k] of [[1, 1], [5, 8], [70, 12], [66, 100]]) {
        const second = n % 5 === 0;
        await checkCase(expertGemm, trial, { ...GROUPS, n, k, w, second });
      }
    }
    for (const w of trial.some(BLOCKS, 3)) {
      const given = { ...GROUPS, n: 20, k: 256, w, second: true };
      await checkCase(expertGemm, trial, given);
    }
  },
);

gpuTest(
  "expertGemm leaves tiles of experts that are elsewhere",
  async (_, trial) => {
    const weights = [[32, "bf16"], [9, "f32"], [64, "q8_0"]] as const;
    for (const [k, w] of trial.some(weights, 1)) {
      for (const held of [[0, 1], [1, 2], [4, 1], [2, 3]] as const) {
        const groups = [0, 1, 1, 2, 3, 4, -1];
        const given = { groups, experts: 5, n: 12, k, w, held };
        await checkCase(expertGemm, trial, given);
      }
    }
  },
);

gpuTest("expertGemm multiplies in f16", async (_, trial) => {
  for (const [n, k] of [[40, 64], [7, 12]]) {
    for (const w of trial.some(FLOATS, 1)) {
      const given = { ...GROUPS, n, k, w, largest: 0.5, second: true };
      await checkCase(expertGemm, trial, given);
    }
  }
});

gpuTest(
  "expertGemm refuses groups that are not those of its rows",
  (_, trial) => {
    const operands = {
      a: trial.filled([64, 8]),
      b: trial.filled([12, 4]),
      groups: trial.u32(0, 1),
      c: trial.filled([64, 6]),
    };
    const uniforms = { m: 32, n: 6, first: 0, base: 0, column: 0 };
    assertThrows(
      () => trial.run(expertGemm, operands, { uniforms }),
      Error,
      "Cannot run expertGemm: b has shape [12, 4], but k is 8 in a and 4 in b",
    );
  },
);
