import { sumExperts } from "../../kernels/sum_experts.ts";
import { gpuTest } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

gpuTest("sumExperts adds rows of any length", async (_, trial) => {
  for (const n of [1, 3, 4, 7, 64, 515, 2048]) {
    for (const used of [1, 2, 8]) {
      await checkCase(sumExperts, trial, { m: 4, used, n });
    }
  }
});
