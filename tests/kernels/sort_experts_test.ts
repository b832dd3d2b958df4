import { sortExperts } from "../../kernels/sort_experts.ts";
import { gpuTest } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

gpuTest(
  "sortExperts gives each pair a place in a tile of its expert",
  async (_, trial) => {
    for (const experts of [1, 2, 7, 128, 300]) {
      for (const used of [1, 3, 8]) {
        if (used > experts) continue;
        for (const [m, tile] of [[1, 32], [33, 4], [200, 32], [257, 64]]) {
          await checkCase(sortExperts, trial, { m, experts, used, tile });
        }
      }
    }
  },
);

gpuTest("sortExperts needs only a few threads", async (_, trial) => {
  for (const WORKGROUP of [1, 5, 64]) {
    const given = { m: 50, experts: 9, used: 3, tile: 8 };
    await checkCase(sortExperts, trial, given, { WORKGROUP });
  }
});
