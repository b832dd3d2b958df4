import { assert } from "@std/assert";
import { expertGemvInt8 } from "../../kernels/expert_gemv_int8.ts";
import { BLOCKS } from "../../kernels/case.ts";
import { LARGEST } from "../../kernels/int8_case.ts";
import {
  roundedSizes,
  roundedValues,
  roundRow,
} from "../../kernels/rounded_row.ts";
import type { Constants } from "../../lib/dispatch/shapes.ts";
import { compare, passes, runCase } from "../../lib/check/kernel_case.ts";
import { formatNamed } from "../../lib/formats/mod.ts";
import { gpuTest } from "../support/gpu.ts";
import { type CpuTensor, toF32 } from "../../lib/formats/tensor.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
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

/** Weights of the experts of the only row. */
const weightsOf = (chosen: CpuTensor, used: number) =>
  toF32(chosen).subarray(used, 2 * used);

gpuTest(
  "expertGemvInt8 multiplies a row that was rounded before",
  async (gpu, trial) => {
    const sizes = { m: 1, experts: 5, used: 3, n: 10, k: 512 };
    const formats = BLOCKS.filter((name) => formatNamed(name).integers);
    for (const w of formats) {
      for (const epilogue of EPILOGUES) {
        const sums = epilogue === "add";
        const held = sums
          ? undefined
          : trial.random.pick([[0, 5], [1, 3]] as const);
        const given = { ...sizes, w, epilogue, held };
        const one = makeCase(expertGemvInt8, trial, given);
        if (!one) return;
        const [unit] = formatNamed(w).loads, { used, k } = sizes;
        const x = one.operands.x as CpuTensor;
        const weights = weightsOf(one.operands.chosen as CpuTensor, used);
        const row: CpuTensor = {
          ...x,
          data: toF32(x).map((v, i) =>
            sums ? v * weights[Math.floor(i / k)] : v
          ),
        };
        const buffers = await runCase(gpu, expertGemvInt8, {
          ...one,
          operands: {
            ...one.operands,
            x: roundRow(row, row.data.length, unit),
          },
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

gpuTest(
  "expertGemvInt8 weights and rounds the results of a row's experts as one row",
  async (gpu, trial) => {
    const sizes = { m: 1, experts: 5, used: 3, n: 192, k: 512 };
    const width = sizes.used * sizes.n;
    for (const unit of [16, 32, 64]) {
      for (const w of ["q4_k", "q6_k", "q8_0"]) {
        const given = { ...sizes, w, epilogue: "swiglu" as const };
        const one = makeCase(expertGemvInt8, trial, given);
        if (!one) return;
        const { words } = roundedSizes(width);
        const shape = trial.random.pick<Constants>([
          { WORKGROUP: 32, ROWS: 4, LOOPS: 4, ROLLED: 1 },
          { WORKGROUP: 128, ROWS: 2, LOOPS: 2 },
        ]);
        const data = new Uint32Array(words).fill(0x7f7f7f7f);
        const { y, left } = await runCase(gpu, expertGemvInt8, {
          ...one,
          operands: {
            ...one.operands,
            left: { dtype: "u32", shape: [1, words], data },
          },
          constants: { ...one.constants, ...shape, LEAVES: unit },
        });
        const found = compare(one.expected()[0], { y });
        assert(passes(found), `${one.what}: ${JSON.stringify(found)}`);
        const weights = weightsOf(one.operands.chosen as CpuTensor, sizes.used);
        const made = roundedValues(Uint32Array.from(left), width, unit);
        const wanted = Array.from(
          y,
          (v, i) => v * weights[Math.floor(i / sizes.n)],
        );
        for (let b = 0; b < width; b += 32) {
          const own = wanted.slice(b, b + 32);
          const largest = Math.max(...own.map(Math.abs));
          const absolute = 0.52 / LARGEST * largest;
          assertAllClose(made.values.slice(b, b + 32), own, { absolute }, w);
        }
        assert(made.sumsOff.every((off) => off === 0), w);
      }
    }
  },
);
