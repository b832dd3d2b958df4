import { assertEquals, assertThrows } from "@std/assert";
import { gemvRows, rowParts } from "../../kernels/gemv_rows.ts";
import { BLOCKS } from "../../kernels/case.ts";
import type { Constants } from "../../lib/dispatch/shapes.ts";
import { gpuTest, lanes, type Trial } from "../support/gpu.ts";
import { checkRows, type RowsCase } from "../support/rows_case.ts";

const WEIGHTS = ["f32", "f16", "bf16"] as const;
const SMALL = { WORKGROUP: 32, STEPS: 1 };

const check = (trial: Trial, given: RowsCase) =>
  checkRows(trial, gemvRows, rowParts, {
    ...given,
    constants: { ...SMALL, ...given.constants },
  });

gpuTest(
  "gemvRows multiplies rows of any length, by weights of any type",
  async (_, trial) => {
    const lengths = [1, 3, 4, 7, 8, 12, 80, 100, 1000, 1024];
    for (const k of trial.some(lengths, 2)) {
      for (const w of WEIGHTS) await check(trial, { m: 2, n: 37, k, w });
    }
  },
);

gpuTest(
  "gemvRows multiplies by blocks of every format",
  async (gpu, trial) => {
    for (const w of trial.some(BLOCKS, 2)) {
      const m = trial.random.pick([2, 3, 5]);
      const constants = { ...lanes(gpu, true), ROWS: 2, STEPS: 2 };
      await check(trial, { m, n: 37, k: 768, w, constants });
    }
    const epilogue = { m: 3, n: 38, k: 512, norm: "f32" } as const;
    await check(trial, { ...epilogue, w: "q4_k", epilogue: "swiglu" });
  },
);

gpuTest("gemvRows takes one to 32 rows of x", async (_, trial) => {
  const all = Array.from({ length: 32 }, (_, i) => i + 1);
  for (const m of trial.some(all, 2)) {
    const constants = { ROWS: m > 16 ? 2 : 4 };
    await check(trial, { m, n: 37, k: 80, constants });
    if (m % 3) continue;
    await check(trial, { m, n: 38, k: 20, norm: "f32", constants });
    await check(trial, { m, n: 38, k: 20, epilogue: "add", constants });
    await check(trial, { m, n: 38, k: 20, epilogue: "swiglu", constants });
  }
});

gpuTest(
  "gemvRows takes rows of x a few at a time, whether they divide them or not",
  async (_, trial) => {
    const w = () => trial.random.pick(WEIGHTS);
    const turns = [[32, 16], [64, 16], [64, 8], [17, 16], [63, 16]];
    for (const [m, M] of trial.some(turns, 1)) {
      const rows = { m, n: 38, w: w(), constants: { M } };
      await check(trial, { ...rows, k: 80 });
      await check(trial, { ...rows, k: 20, norm: w() });
      await check(trial, { ...rows, k: 20, epilogue: "add" });
      await check(trial, { ...rows, k: 7, norm: w(), epilogue: "swiglu" });
    }
    const sliced = { M: 4, SLICES: 2, WORKGROUP: 128, LOG_LANES: 3, CHAIN: 0 };
    for (const m of [8, 9]) {
      const rows = { m, n: 38, k: 264, constants: sliced };
      await check(trial, { ...rows, norm: "f32" });
      await check(trial, { ...rows, epilogue: "add", column: 3, padding: 5 });
    }
  },
);

gpuTest(
  "gemvRows copies rows of x to workgroup memory, a few at a time",
  async (gpu, trial) => {
    const { LOG_LANES, ...own } = lanes(gpu, true);
    const two = { LOG_LANES: 1, APART: Math.max(0, LOG_LANES - 1) };
    const constants = {
      ...{ ...own, ...two, STAGED: 1, STEPS: 2 },
      ...{ M: 4, SLICES: 2, WORKGROUP: 64 },
    };
    for (const m of trial.some([8, 33], 1)) {
      const rows = {
        m,
        n: 38,
        k: 264,
        w: trial.random.pick(WEIGHTS),
        constants,
      };
      await check(trial, { ...rows, norm: "f32", epilogue: "swiglu" });
      await check(trial, { ...rows, epilogue: "add", column: 3, padding: 5 });
      const second = { n: 11, w: "q6_k" };
      await check(trial, { ...rows, w: "q4_k", k: 768, norm: "f32", second });
    }
  },
);

gpuTest(
  "gemvRows makes any number of outputs, more than one dimension of a grid holds",
  async (_, trial) => {
    for (const n of [1, 2, 3, 37, 1024]) {
      await check(trial, { m: 3, n, k: 80 });
      await check(trial, { m: 3, n, k: 7 });
    }
    const one = { WORKGROUP: 8, LOG_LANES: 3, ROWS: 1 }; // 151,936 workgroups
    await check(trial, { m: 2, n: 151936, k: 8, constants: one });
    const two = { ...one, M: 2 };
    await check(trial, { m: 3, n: 151936, k: 8, constants: two });
  },
);

gpuTest(
  "gemvRows norms rows, adds to y and applies SwiGLU",
  async (_, trial) => {
    for (const kind of ["store", "add", "swiglu"] as const) {
      for (const w of trial.some(WEIGHTS, 1)) {
        const shape = { m: 3, n: 74, w, epilogue: kind };
        await check(trial, { ...shape, k: 80 });
        if (kind !== "add") {
          await check(trial, { ...shape, k: 1000, norm: w });
          await check(trial, { ...shape, k: 45, norm: w });
        }
        await check(trial, { ...shape, k: 5 });
      }
    }
  },
);

/** Formats that follow one another in qkv_proj: of Q3_K_M, Q4_K_M, Q5_K_M, and others. */
const PAIRS = [
  ...[["q3_k", "q5_k"], ["q3_k", "q4_k"], ["q4_k", "q6_k"], ["q5_k", "q6_k"]],
  ...[["q6_k", "q4_k"], ["bf16", "q8_0"], ["q4_0", "f32"]],
] as const;

gpuTest(
  "gemvRows takes the next part of a matrix along, in any format",
  async (gpu, trial) => {
    for (const [w, v] of trial.some(PAIRS, 1)) {
      const [n, more] = trial.random.pick([[37, 11], [32, 64], [1, 5]]);
      const rows = { m: trial.random.pick([2, 3, 5]), n, w, k: 768 };
      const constants = { ...lanes(gpu, true), ROWS: 2, STEPS: 2 };
      const place = trial.random.pick([{}, { column: 3, padding: 5 }]);
      const second = { n: more, w: v };
      await check(trial, { ...rows, ...place, second, constants });
      const sliced = { WORKGROUP: 64, SLICES: 2, LOG_LANES: 3 };
      const norm = trial.random.pick(WEIGHTS);
      await check(trial, { ...rows, second, norm, constants: sliced });
    }
    const floats = { m: 3, n: 9, w: "bf16", second: { n: 7, w: "f32" } };
    await check(trial, { ...floats, k: 33, norm: "f32" }); // element by element
    const none = { SUBGROUPS: 0, LOG_LANES: 5 };
    await check(trial, { ...floats, k: 80, constants: none });
  },
);

gpuTest("gemvRows reads 16-bit x", async (_, trial) => {
  for (const x of ["f16", "bf16"] as const) {
    for (const k of [7, 20, 80]) await check(trial, { m: 3, n: 9, k, x });
    await check(trial, { m: 3, n: 9, k: 80, x, norm: "bf16" });
  }
});

gpuTest(
  "gemvRows writes its columns of a wider y and nothing else",
  async (_, trial) => {
    for (const kind of ["store", "add", "swiglu"] as const) {
      for (const [column, padding] of [[0, 5], [3, 0], [16, 3]]) {
        const place = { column, padding, epilogue: kind };
        await check(trial, { m: 3, n: 38, k: 80, ...place });
      }
    }
  },
);

gpuTest(
  "gemvRows gives the same for every choice of threads, lanes, rows and slices",
  async (gpu, trial) => {
    const none = { SUBGROUPS: 0 };
    const choices: Constants[] = [
      { ...none, LOG_LANES: 5, WORKGROUP: 32 },
      { ...none, LOG_LANES: 5, WORKGROUP: 128, ROWS: 2, SLICES: 4 },
      { ...none, LOG_LANES: 4, WORKGROUP: 64, ROWS: 4, SLICES: 2, STEPS: 2 },
      { ...none, LOG_LANES: 2, WORKGROUP: 32, ROWS: 4, SLICES: 8 },
      { ...none, LOG_LANES: 0, WORKGROUP: 32 },
      ...[32, 64, 128].map((WORKGROUP) => ({ WORKGROUP })),
      ...[1, 2, 4, 8].map((ROWS) => ({ ROWS })),
      ...[1, 2, 3].map((STEPS) => ({ STEPS })),
      ...[1, 3, 4].map((M) => ({ M })),
      { CHAIN: 0 },
      ...[2, 4].map((SLICES) => ({ SLICES, WORKGROUP: 128 })),
      ...[2, 4].map((SLICES) => ({ SLICES, ROWS: 2, WORKGROUP: 256 })),
      { ...lanes(gpu, true), LOG_LANES: 2, SLICES: 8 },
      { ...lanes(gpu, true), STAGED: 1, M: 4, STEPS: 3 },
      { ...lanes(gpu, true), LOG_LANES: 2, APART: 1 },
      { ...lanes(gpu, true), LOG_LANES: 2, STAGED: 1, STEPS: 2 },
      // Threads that are not a power of 2, and rows of w that are none either.
      { ...lanes(gpu, true), LOG_LANES: 2, STAGED: 1, WORKGROUP: 48 },
      { ...none, LOG_LANES: 4, WORKGROUP: 192, ROWS: 6 },
      {
        ...{ ...lanes(gpu, true), LOG_LANES: 1, APART: 2, STAGED: 1 },
        ...{ SLICES: 4, WORKGROUP: 64, STEPS: 2 },
      },
    ];
    for (const constants of trial.some(choices, 3)) {
      const m = 3, n = 38;
      await check(trial, { m, n, k: 392, norm: "f32", constants });
      await check(trial, { m, n, k: 264, epilogue: "add", constants });
      if (Number(constants.ROWS ?? 4) % 2) continue; // pairs of rows
      await check(trial, { m, n, k: 40, epilogue: "swiglu", constants });
      await check(trial, { m, n, k: 33, epilogue: "swiglu", constants });
    }
  },
);

Deno.test("gemvRows refuses more slices than a workgroup has lane groups", () => {
  const constants = { ...gemvRows.constants, WORKGROUP: 64, SLICES: 4 };
  assertThrows(
    () => gemvRows.derive!(constants, { k: 1024 }),
    Error,
    "Cannot share k among 4 groups of 32 lanes in gemvRows: a workgroup has 64 threads",
  );
});

Deno.test("gemvRows checks the end of a row unless slices take all of it in whole turns", () => {
  const constants = { ...gemvRows.constants, M: 4, STEPS: 2, SLICES: 4 };
  for (
    const [k, exact] of [[512, 0], [1000, 0], [1024, 1], [1280, 0], [2048, 1]]
  ) {
    const { EXACT } = gemvRows.derive!(constants, { k });
    assertEquals(EXACT, exact, `${k}`);
  }
});
