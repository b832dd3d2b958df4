import { assertThrows } from "@std/assert";
import { expertGemv } from "../../kernels/expert_gemv.ts";
import { BLOCKS } from "../../kernels/case.ts";
import { gpuTest, lanes } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

const EPILOGUES = ["store", "swiglu", "add"] as const;

gpuTest(
  "expertGemv multiplies rows of any length, by weights of any type",
  async (_, trial) => {
    for (const epilogue of EPILOGUES) {
      for (const w of trial.some(["f32", "f16", "bf16"], 1)) {
        for (const k of [1, 7, 12, 80, 520]) {
          const given = { m: 2, experts: 5, used: 3, n: 9, k, w, epilogue };
          await checkCase(expertGemv, trial, given);
        }
      }
      for (const w of trial.some(BLOCKS, 3)) {
        const given = { m: 2, experts: 5, used: 3, n: 8, k: 256, w, epilogue };
        await checkCase(expertGemv, trial, given);
      }
    }
  },
);

gpuTest(
  "expertGemv runs with any constants, by subgroups or without",
  async (gpu, trial) => {
    const cases = [true, false].flatMap((subgroups) =>
      [[2, 1], [4, 3]].flatMap(([ROWS, STEPS]) =>
        [40, 256].map((k) => ({ k, subgroups, ROWS, STEPS }))
      )
    );
    for (const epilogue of EPILOGUES) {
      for (const { k, subgroups, ROWS, STEPS } of trial.some(cases, 3)) {
        const constants = {
          ...lanes(gpu, subgroups),
          WORKGROUP: 64,
          ROWS,
          STEPS,
        };
        const shape = { m: 3, experts: 4, used: 3, n: 21, k, epilogue };
        const given = { ...shape, w: k === 40 ? "bf16" : "q4_k" };
        await checkCase(expertGemv, trial, { ...given, constants });
      }
    }
  },
);

gpuTest("expertGemv leaves experts of other parts alone", async (_, trial) => {
  const weights = [[7, "f32"], [40, "bf16"], [64, "q8_0"]] as const;
  for (const epilogue of EPILOGUES) {
    for (const [k, w] of trial.some(weights, 1)) {
      for (const held of [[0, 1], [3, 2], [6, 1], [1, 6]] as const) {
        const given = { m: 4, experts: 7, used: 3, n: 6, k, w, epilogue, held };
        await checkCase(expertGemv, trial, given);
      }
    }
  }
});

gpuTest("expertGemv refuses rows that experts cannot share", (_, trial) => {
  const operands = {
    w: trial.filled([10, 8]),
    x: trial.filled([1, 8]),
    chosen: trial.filled([2, 2]),
    y: trial.filled([2, 3]),
  };
  const run = (EPILOGUE: string, EXPERTS: number) =>
    trial.run(expertGemv, operands, { constants: { EPILOGUE, EXPERTS } });
  assertThrows(
    () => run("store", 3),
    Error,
    "Cannot share 10 rows among 3 experts: must be a multiple",
  );
  assertThrows(
    () => run("swiglu", 2),
    Error,
    "Cannot share 10 rows among 2 experts: must be a multiple of twice as many",
  );
});
