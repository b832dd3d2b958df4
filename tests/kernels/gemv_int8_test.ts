import { squareParts } from "../../kernels/gemv.ts";
import { gemvInt8 } from "../../kernels/gemv_int8.ts";
import { FORMATS } from "../../lib/formats/mod.ts";
import { gpuTest, type Trial } from "../support/gpu.ts";
import { checkRows, type RowsCase } from "../support/rows_case.ts";

/** Rounding x to 15 bits is off by about 3e-5 of the norm of the products. */
const INTEGER_SUM = 3e-4;

const INTEGERS = FORMATS.filter(({ integers }) => integers);

const check = (trial: Trial, given: RowsCase) =>
  checkRows(trial, gemvInt8, squareParts, { ...given, tolerance: INTEGER_SUM });

gpuTest(
  "gemvInt8 multiplies by blocks of every format of integers",
  async (_, trial) => {
    for (const { name: w, elements } of INTEGERS) {
      for (const k of elements === 32 ? [32, 96, 1312] : [256, 1280]) {
        for (const n of [1, 37, 300]) await check(trial, { n, k, w });
      }
    }
  },
);

gpuTest(
  "gemvInt8 gives the same for every choice of threads, rows, steps and chunks",
  async (_, trial) => {
    for (const w of ["q4_k", "q6_k", "q8_0", "q2_k"]) {
      for (const WORKGROUP of [32, 128, 256]) {
        for (const ROWS of [1, 2, 4]) {
          for (const STEPS of [1, 2, 4]) {
            for (const CHUNK of [256, 1024, 12288]) {
              const constants = { WORKGROUP, ROWS, STEPS, CHUNK };
              await check(trial, { n: 38, k: 2304, w, constants });
            }
          }
        }
      }
    }
  },
);

gpuTest(
  "gemvInt8 norms rows, adds to y and applies SwiGLU",
  async (_, trial) => {
    for (const w of ["q4_k", "q6_k", "q8_0", "q5_1"]) {
      for (const epilogue of ["store", "add", "swiglu"] as const) {
        const given = { n: 74, k: 1280, w, epilogue };
        await check(trial, given);
        await check(trial, { ...given, column: 3, padding: 5 });
        if (epilogue !== "add") await check(trial, { ...given, norm: "bf16" });
      }
    }
  },
);
