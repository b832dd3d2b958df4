import { gemvInt8, int8Parts } from "../../kernels/gemv_int8.ts";
import { INTEGER_SUM } from "../../kernels/case.ts";
import type { Constants } from "../../lib/dispatch/shapes.ts";
import { FORMATS } from "../../lib/formats/mod.ts";
import { gpuTest, type Trial } from "../support/gpu.ts";
import { checkRows, type RowsCase } from "../support/rows_case.ts";

const INTEGERS = FORMATS.filter(({ integers }) => integers);

const check = (trial: Trial, given: RowsCase) =>
  checkRows(trial, gemvInt8, int8Parts, { ...given, tolerance: INTEGER_SUM });

gpuTest(
  "gemvInt8 multiplies by blocks of every format of integers",
  async (_, trial) => {
    for (const { name: w, elements } of INTEGERS) {
      for (const k of elements === 32 ? [32, 1312] : [256, 1280]) {
        await check(trial, { n: 37, k, w });
      }
    }
  },
);

gpuTest(
  "gemvInt8 gives the same for every choice of threads, rows, steps and loops",
  async (_, trial) => {
    const choices: Constants[] = [
      { WORKGROUP: 32, ROWS: 1, STEPS: 1 },
      { WORKGROUP: 128, ROWS: 4, STEPS: 4, CHUNK: 256 },
      { WORKGROUP: 64, ROWS: 2, STEPS: 2, CHUNK: 1024, ROLLED: 1 },
      { WORKGROUP: 64, ROWS: 2, STEPS: 1, LOOPS: 2, ROLLED: 1 },
      { WORKGROUP: 32, ROWS: 1, STEPS: 8, LOOPS: 5 },
    ];
    for (const w of ["q4_k", "q6_k", "q8_0", "q2_k"]) {
      for (const constants of choices) {
        const epilogue = constants.LOOPS ? "add" : "store";
        await check(trial, { n: 338, k: 2304, w, constants, epilogue });
      }
    }
  },
);

gpuTest(
  "gemvInt8 norms rows, adds to y and applies SwiGLU",
  async (_, trial) => {
    for (const w of ["q4_k", "q6_k", "q8_0", "q5_1"]) {
      for (const epilogue of ["store", "add", "swiglu"] as const) {
        const constants = { WORKGROUP: 64, LOOPS: 2 };
        const given = { n: 174, k: 768, w, epilogue, constants };
        await check(trial, { ...given, column: 3, padding: 5 });
        if (epilogue !== "add") await check(trial, { ...given, norm: "bf16" });
      }
    }
  },
);
