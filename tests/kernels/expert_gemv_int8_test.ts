import { assert } from "@std/assert";
import { expertGemvInt8 } from "../../kernels/expert_gemv_int8.ts";
import { BLOCKS } from "../../kernels/case.ts";
import { roundRow } from "../../kernels/rounded_row.ts";
import { compare, passes, runCase } from "../../lib/check/kernel_case.ts";
import { formatNamed } from "../../lib/formats/mod.ts";
import { gpuTest } from "../support/gpu.ts";
import type { CpuTensor } from "../../lib/formats/tensor.ts";
import { checkCase, makeCase } from "../support/kernel_case.ts";

const EPILOGUES = ["store", "swiglu", "add"] as const;

gpuTest(
  "expertGemvInt8 multiplies by blocks of every format of integers",
  async (_, trial) => {
    const formats = BLOCKS.filter((name) => formatNamed(name).integers);
    for (const w of formats) {
      for (const epilogue of EPILOGUES) {
        const given = { m: 2, experts: 5, used: 3, n: 9, k: 512, w, epilogue };
        await checkCase(expertGemvInt8, trial, given);
      }
    }
  },
);

gpuTest(
  "expertGemvInt8 gives the same for every choice of threads, rows, steps, loops and chunks",
  async (gpu, trial) => {
    const lanes = { LOG_LANES: Math.log2(gpu.subgroupSize), SUBGROUPS: 1 };
    const choices = [[32, 2, 1, 1], [64, 4, 3, 1], [64, 2, 2, 3]];
    for (const [WORKGROUP, ROWS, STEPS, LOOPS] of choices) {
      for (const epilogue of EPILOGUES) {
        for (const CHUNK of LOOPS === 1 ? [256, 12288] : [12288]) {
          const constants = { ...lanes, WORKGROUP, ROWS, STEPS, LOOPS, CHUNK };
          const shape = { m: 2, experts: 4, used: 3, n: 37, k: 512 };
          const given = { ...shape, w: "q4_k", epilogue, constants };
          await checkCase(expertGemvInt8, trial, given);
        }
      }
    }
  },
);

gpuTest(
  "expertGemvInt8 leaves experts of other parts alone",
  async (_, trial) => {
    for (const epilogue of EPILOGUES) {
      for (const held of [[0, 1], [3, 2], [6, 1], [1, 6]] as const) {
        const shape = { m: 4, experts: 7, used: 3, n: 6, k: 256 };
        const given = { ...shape, w: "q8_0", epilogue, held };
        await checkCase(expertGemvInt8, trial, given);
      }
    }
  },
);

gpuTest(
  "expertGemvInt8 multiplies a row that was rounded before",
  async (gpu, trial) => {
    const sizes = { m: 1, experts: 5, used: 3, n: 10, k: 512 };
    const formats = BLOCKS.filter((name) => formatNamed(name).integers);
    for (const w of formats) {
      for (const epilogue of ["store", "swiglu"] as const) {
        const held = trial.random.pick([[0, 5], [1, 3]] as const);
        const given = { ...sizes, w, epilogue, held };
        const one = makeCase(expertGemvInt8, trial, given);
        if (!one) return;
        const x = one.operands.x as CpuTensor, [unit] = formatNamed(w).loads;
        const buffers = await runCase(gpu, expertGemvInt8, {
          ...one,
          operands: { ...one.operands, x: roundRow(x, sizes.k, unit) },
          constants: { ...one.constants, ROUNDED: 1 },
        });
        for (const result of one.expected()) {
          const found = compare(result, buffers);
          assert(passes(found), `${one.what}: ${JSON.stringify(found)}`);
        }
      }
    }
  },
);
