import { assert } from "@std/assert";
import { attendPrefillMatrix } from "../../kernels/attend_prefill_matrix.ts";
import { testHalfPrefill } from "../support/half_prefill.ts";
import { checkCase, makeCase } from "../support/kernel_case.ts";
import { matrixTest } from "../support/subgroup_matrices.ts";

testHalfPrefill("attendPrefillMatrix", "matrices", matrixTest);

matrixTest("attendPrefillMatrix agrees in its cases", async (trial) => {
  // Software adapters take long to compile each.
  for (const given of trial.some(attendPrefillMatrix.cases, 1)) {
    assert(makeCase(attendPrefillMatrix, trial, given));
    await checkCase(attendPrefillMatrix, trial, given);
  }
});
