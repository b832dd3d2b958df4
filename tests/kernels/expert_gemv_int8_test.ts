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

/** Lane groups that share a row, or do not; more results than threads, and fewer. */
const CHOICES: Constants[] = [
  { WORKGROUP: 64, SETS: 4, ROWS: 1, RESULTS: 16 },
  { WORKGROUP: 128, SETS: 16, ROWS: 3, RESULTS: 32 },
  { WORKGROUP: 96, SETS: 6, ROWS: 4, RESULTS: 48 },
  { WORKGROUP: 64, SETS: 8, ROWS: 2, RESULTS: 144 },
];

const EPILOGUES = ["store", "swiglu", "add"] as const;

/** Formats of integers and what is done with results. */
const FORMAT_CASES = BLOCKS.filter((name) => formatNamed(name).integers)
  .flatMap((w) => EPILOGUES.map((epilogue) => ({ w, epilogue })));

gpuTest(
  "expertGemvInt8 multiplies by blocks of every format of integers",
  async (_, trial) => {
    for (const one of trial.some(FORMAT_CASES, 5)) {
      const given = { m: 2, experts: 5, used: 3, n: 9, k: 512, ...one };
      await checkCase(expertGemvInt8, trial, given);
    }
  },
);

gpuTest(
  "expertGemvInt8 gives the same for every choice of threads, sets, rows and results",
  async (gpu, trial) => {
    const lanes = { LOG_LANES: Math.log2(gpu.subgroupSize), SUBGROUPS: 1 };
    for (const one of CHOICES) {
      for (const epilogue of trial.some(EPILOGUES, 1)) {
        const shape = { m: 2, experts: 4, used: 3, n: 37, k: 512 };
        const constants = { ...lanes, ...one };
        const given = { ...shape, w: "q4_k", epilogue, constants };
        await checkCase(expertGemvInt8, trial, given);
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
    for (const { w, epilogue } of trial.some(FORMAT_CASES, 5)) {
      const sums = epilogue === "add";
      const held = sums
        ? undefined
        : trial.random.pick([[0, 5], [1, 3]] as const);
      const given = { ...sizes, w, epilogue, held };
      const one = makeCase(expertGemvInt8, trial, given);
      if (!one) return;
      const { used, k } = sizes;
      const x = one.operands.x as CpuTensor;
      const weights = weightsOf(one.operands.chosen as CpuTensor, used);
      const row: CpuTensor = {
        ...x,
        data: toF32(x).map((v, i) => sums ? v * weights[Math.floor(i / k)] : v),
      };
      const buffers = await runCase(gpu, expertGemvInt8, {
        ...one,
        operands: {
          ...one.operands,
          x: roundRow(row, row.data.length),
        },
        constants: { ...one.constants, ROUNDED: 1 },
      });
      for (const result of one.expected()) {
        const found = compare(result, buffers);
        assert(passes(found), `${one.what}: ${JSON.stringify(found)}`);
      }
    }
  },
);

gpuTest(
  "expertGemvInt8 rounds its results as one row: those of a row's experts, weighted, or their sums",
  async (gpu, trial) => {
    const sizes = { m: 1, experts: 5, used: 3, n: 192, k: 512 };
    for (const epilogue of ["swiglu", "add"] as const) {
      for (const shape of trial.some(CHOICES, 1)) {
        const w = trial.random.pick(["q4_k", "q6_k", "q8_0"]);
        const one = makeCase(expertGemvInt8, trial, { ...sizes, w, epilogue });
        if (!one) return;
        const sums = epilogue === "add";
        const width = sizes.n * (sums ? 1 : sizes.used);
        const { words } = roundedSizes(width);
        const data = new Uint32Array(words).fill(0x7f7f7f7f);
        const nextNorm = trial.random.tensor("bf16", [sizes.n], 0.5, 1);
        const { y, left } = await runCase(gpu, expertGemvInt8, {
          ...one,
          operands: {
            ...one.operands,
            nextNorm,
            left: { dtype: "u32", shape: [1, words], data },
          },
          constants: { ...one.constants, ...shape, LEAVES: 1 },
        });
        const found = compare(one.expected()[0], { y });
        assert(passes(found), `${one.what}: ${JSON.stringify(found)}`);
        const weights = weightsOf(one.operands.chosen as CpuTensor, sizes.used);
        const made = roundedValues(Uint32Array.from(left), width);
        const norms = toF32(nextNorm);
        const wanted = Array.from(
          y,
          (v, i) => v * (sums ? norms[i] : weights[Math.floor(i / sizes.n)]),
        );
        for (let b = 0; b < width / 16; b++) {
          const of = (list: ArrayLike<number>) =>
            Array.from(list).slice(16 * b, 16 * b + 16);
          const largest = Math.max(...of(wanted).map(Math.abs));
          const absolute = 0.52 / LARGEST * largest;
          assertAllClose(of(made.values), of(wanted), { absolute }, w);
          if (!sums) continue;
          const squared = of(y).reduce((sum, v) => sum + v * v, 0);
          assertAllClose([made.squares[b]], [squared], { relative: 1e-5 }, w);
        }
        assert(made.sumsOff.every((off) => off === 0), w);
      }
    }
  },
);
