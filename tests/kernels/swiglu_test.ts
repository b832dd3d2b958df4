import { assertThrows } from "@std/assert";
import { swiglu } from "../../kernels/swiglu.ts";
import { gpuTest } from "../support/gpu.ts";

gpuTest("swiglu refuses rows that are not twice as wide", (_, trial) => {
  const operands = { both: trial.filled([3, 10]), y: trial.filled([3, 6]) };
  assertThrows(
    () => trial.run(swiglu, operands),
    Error,
    "Cannot gate rows of 10 into rows of 6: must be half as wide",
  );
});
