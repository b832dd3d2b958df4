import { gatherRows } from "../../kernels/gather_rows.ts";
import { gpuTest } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

gpuTest("gatherRows copies rows of any length", async (_, trial) => {
  for (const k of [1, 3, 4, 7, 64, 515, 2048]) {
    for (const used of [1, 2, 8]) {
      await checkCase(gatherRows, trial, { rows: 6, k, used });
    }
  }
});
