import { assert } from "@std/assert";
import { attendPrefillMatrix } from "../../kernels/attend_prefill_matrix.ts";
import { testHalfPrefill } from "../support/half_prefill.ts";
import { checkCase, makeCase } from "../support/kernel_case.ts";
import { matrixTest } from "../support/subgroup_matrices.ts";

testHalfPrefill("attendPrefillMatrix", "matrices", matrixTest);

matrixTest("attendPrefillMatrix agrees in its cases", async (trial) => {
  // A software adapter takes half a minute to compile heads of 128.
  const changes = trial.gpu.software ? { headDim: 64 } : {};
  for (const one of trial.some(attendPrefillMatrix.cases, 1)) {
    const given = { ...one, ...changes };
    assert(makeCase(attendPrefillMatrix, trial, given));
    await checkCase(attendPrefillMatrix, trial, given);
  }
});
