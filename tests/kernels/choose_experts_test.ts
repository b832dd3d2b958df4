import { assertThrows } from "@std/assert";
import { chooseExperts } from "../../kernels/choose_experts.ts";
import { gpuTest, lanes } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

gpuTest(
  "chooseExperts finds the highest scores, by subgroups or without",
  async (gpu, trial) => {
    for (const subgroups of [true, false]) {
      const cases = [1, 2, 7, 31, 32, 33, 128, 300].flatMap((n) =>
        [1, 2, 8, n].filter((used) => used <= n && used <= 40)
          .map((used) => ({ n, used }))
      );
      for (const one of trial.some(cases, 9)) {
        for (const normalized of trial.some([true, false], 1)) {
          const given = { m: 3, ...one, normalized };
          const constants = lanes(gpu, subgroups);
          await checkCase(chooseExperts, trial, given, constants);
        }
      }
    }
  },
);

gpuTest("chooseExperts takes the first of equal scores", async (_, trial) => {
  for (const step of [1, 4, 100]) {
    const given = { m: 9, n: 50, used: 12, normalized: true, step };
    await checkCase(chooseExperts, trial, given);
  }
});

gpuTest("chooseExperts refuses to choose more than there are", (_, trial) => {
  const operands = {
    scores: trial.filled([2, 4]),
    chosen: trial.filled([4, 5]),
  };
  assertThrows(
    () => trial.run(chooseExperts, operands),
    Error,
    "Cannot choose 5 experts: there are scores of 4",
  );
});

gpuTest(
  "scores that are not numbers choose experts that exist",
  async (_, trial) => {
    for (const value of [NaN, Infinity, -Infinity, -3.2e38]) {
      const chosen = trial.filled([4, 3]);
      const scores = trial.filled([2, 5], value);
      trial.run(chooseExperts, { scores, chosen }, {
        constants: lanes(trial.gpu, true),
      });
      const found = await chosen.read();
      for (const at of [0, 1, 2, 6, 7, 8]) {
        if (found[at] >= 0 && found[at] < 5) continue;
        throw new Error(`${value} chose expert ${found[at]} of 5`);
      }
    }
  },
);
