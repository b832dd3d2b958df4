import { assertRejects } from "@std/assert";
import { gemv, squareParts } from "../../kernels/gemv.ts";
import { BLOCKS } from "../../kernels/case.ts";
import type { Constants } from "../../lib/dispatch/shapes.ts";
import { gpuTest, lanes, type Trial } from "../support/gpu.ts";
import { checkRows, type RowsCase } from "../support/rows_case.ts";

const WEIGHTS = ["f32", "f16", "bf16"] as const;

const check = (trial: Trial, given: RowsCase) =>
  checkRows(trial, gemv, squareParts, given);

gpuTest(
  "gemv multiplies rows of any length, by weights of any type",
  async (_, trial) => {
    for (const k of [1, 3, 7, 8, 12, 80, 100, 1000, 1024, 3072, 5120]) {
      for (const w of WEIGHTS) await check(trial, { n: 37, k, w });
    }
  },
);

gpuTest(
  "gemv makes any number of outputs, more than one dimension of a grid holds",
  async (_, trial) => {
    for (const n of [1, 2, 3, 37, 1024]) {
      await check(trial, { n, k: 80 });
      await check(trial, { n, k: 7 });
    }
    // One row of w per workgroup: 151,936 of them.
    const one = { WORKGROUP: 8, LOG_LANES: 3, ROWS: 1 };
    await check(trial, { n: 151936, k: 8, constants: one });
  },
);

gpuTest(
  "gemv multiplies by blocks of every format, in any spread",
  async (gpu, trial) => {
    const plain: Constants = { ...lanes(gpu, true), STEPS: 2 };
    const rows: Constants = { SPREAD: "rows", WORKGROUP: 64 };
    const spreads = gpu.subgroupSize ? [plain, { ...plain, ...rows }] : [plain];
    for (const constants of spreads) {
      for (const w of trial.some(BLOCKS, 4)) {
        await check(trial, { n: 37, k: 1280, w, constants });
      }
    }
    for (const constants of spreads) {
      const given = { n: 38, k: 768, w: "q4_k", constants };
      await check(trial, { ...given, norm: "f32", epilogue: "swiglu" });
      await check(trial, { ...given, w: "q6_k", epilogue: "add" });
    }
  },
);

gpuTest("gemv may keep its loads ahead of their use", async (gpu, trial) => {
  for (const STEPS of [1, 16]) { // in several chunks, and in one
    const constants = { ...lanes(gpu, true), STEPS, FENCE: 1 };
    for (const w of WEIGHTS) {
      await check(trial, { n: 37, k: 1000, w, constants });
      await check(trial, { n: 37, k: 7, w, constants });
    }
    const given = { n: 74, k: 80, w: "bf16", constants };
    await check(trial, { ...given, epilogue: "add" });
    await check(trial, { ...given, norm: "f32", epilogue: "swiglu" });
  }
});

gpuTest("gemv norms rows, adds to y and applies SwiGLU", async (_, trial) => {
  for (const w of WEIGHTS) {
    for (const kind of ["store", "add", "swiglu"] as const) {
      const shape = { n: 74, w, epilogue: kind };
      await check(trial, { ...shape, k: 80 });
      if (kind !== "add") await check(trial, { ...shape, k: 1000, norm: w });
      await check(trial, { ...shape, k: 5 });
    }
  }
});

gpuTest("gemv reads 16-bit x", async (_, trial) => {
  for (const x of ["f16", "bf16"] as const) {
    for (const k of [7, 20, 80]) await check(trial, { n: 9, k, x });
    await check(trial, { n: 9, k: 80, x, norm: "bf16" });
  }
});

gpuTest(
  "gemv writes its columns of a wider y and nothing else",
  async (_, trial) => {
    for (const kind of ["store", "add", "swiglu"] as const) {
      for (const [column, padding] of [[0, 5], [3, 0], [16, 3]]) {
        const place = { column, padding, epilogue: kind };
        await check(trial, { n: 38, k: 80, ...place });
      }
    }
  },
);

gpuTest(
  "gemv gives the same for every choice of threads, lanes and rows",
  async (gpu, trial) => {
    const none = { SUBGROUPS: 0 };
    const choices: Constants[] = [
      { ...none, LOG_LANES: 5, WORKGROUP: 32 },
      { ...none, LOG_LANES: 5, WORKGROUP: 128, ROWS: 1 },
      { ...none, LOG_LANES: 5, WORKGROUP: 256, ROWS: 4, STEPS: 2 },
      { ...none, LOG_LANES: 3, WORKGROUP: 64, STEPS: 1 },
      { ...none, LOG_LANES: 0, WORKGROUP: 32, STEPS: 1 },
      ...[32, 64, 128, 256].map((WORKGROUP) => ({ WORKGROUP, STEPS: 1 })),
      ...[1, 2, 4].map((ROWS) => ({ ROWS })),
      ...[1, 2, 3, 8].map((STEPS) => ({ STEPS })),
      { ...lanes(gpu, true), LOG_LANES: 2 },
    ];
    for (const constants of trial.some(choices, 4)) {
      const ROWS = Number(constants.ROWS ?? 2);
      await check(trial, { n: 38, k: 1000, norm: "f32", constants });
      if (ROWS % 2) continue; // pairs of rows
      await check(trial, { n: 38, k: 40, epilogue: "swiglu", constants });
    }
    await check(trial, { n: 38, k: 33, constants: { ...none, LOG_LANES: 5 } });
  },
);

gpuTest(
  "gemv gives the same result with rows per lane, from a buffer or a texture",
  async (gpu, trial) => {
    if (!gpu.subgroupSize) return; // refused, see below
    for (const W_IN of ["buffer", "texture"]) {
      const rows = { SPREAD: "rows", W_IN, WORKGROUP: 64 };
      for (const ROWS of [1, 4]) {
        for (const w of trial.some(WEIGHTS, 1)) {
          const constants = { ...rows, ROWS };
          for (const k of [8, 1000]) {
            await check(trial, { n: 37, k, w, constants });
            await check(trial, { n: 74, k, w, norm: w, constants });
            await check(trial, { n: 300, k, w, epilogue: "add", constants });
            if (ROWS % 2) continue; // pairs of rows
            await check(trial, { n: 74, k, w, epilogue: "swiglu", constants });
          }
        }
      }
      for (const x of ["f16", "bf16"] as const) {
        await check(trial, { n: 9, k: 80, x, norm: "bf16", constants: rows });
      }
      for (const LOG_LANES of [0, 1, 2]) {
        const constants = { ...rows, ...lanes(gpu, true), LOG_LANES };
        await check(trial, { n: 74, k: 88, norm: "f32", constants });
        await check(trial, { n: 74, k: 88, epilogue: "add", constants });
      }
      const place = { column: 3, padding: 5, constants: rows };
      await check(trial, { n: 38, k: 80, epilogue: "add", ...place });
      for (const n of [255, 256, 512, 151936]) { // whole rows of texels and partial ones
        const constants = { ...lanes(gpu, true), ...rows, ROWS: 1 };
        const narrow = { WORKGROUP: 2, LOG_LANES: 1 };
        await check(trial, { n, k: 8, constants: { ...constants, ...narrow } });
      }
    }
  },
);

gpuTest(
  "gemv refuses rows per lane that are not whole units, or without subgroups",
  async (_, trial) => {
    for (const W_IN of ["buffer", "texture"]) {
      for (const [k, SUBGROUPS] of [[12, 1], [16, 0]]) {
        const constants = { SPREAD: "rows", W_IN, SUBGROUPS, LOG_LANES: 2 };
        await assertRejects(
          () => check(trial, { n: 4, k, constants }),
          Error,
          `Cannot give each lane rows of ${k} in gemv: they must be whole units of 8, and lanes must exchange values`,
        );
      }
    }
    await assertRejects(
      () => check(trial, { n: 4, k: 16, constants: { W_IN: "texture" } }),
      Error,
      'Cannot read w from a texture in gemv with SPREAD "k": it must be "rows"',
    );
  },
);

gpuTest(
  "gemv refuses to norm rows that are not whole units",
  async (_, trial) => {
    await assertRejects(
      () => check(trial, { n: 4, k: 12, norm: "f32" }),
      Error,
      "Cannot norm rows of 12 in gemv: they must be whole units of 8",
    );
  },
);

gpuTest("gemv refuses more than one row", async (_, trial) => {
  await assertRejects(
    () => check(trial, { m: 2, n: 4, k: 16 }),
    Error,
    "Cannot multiply 2 rows in gemv: there must be one",
  );
});

gpuTest("gemv walks over rows of any number and length", async (gpu, trial) => {
  if (!gpu.subgroupSize) return;
  const { random } = trial;
  const base: Constants = lanes(gpu, true);
  for (const ROWS of [1, 2, 4, 8]) {
    const walk = { ...base, ROWS, WORKGROUP: random.pick([32, 64]) };
    for (const w of trial.some(WEIGHTS, 1)) {
      const constants = { ...walk, WALKERS: random.pick([2, 3, 8, 40]) };
      const n = random.pick([1, 5, 38, 77]);
      const k = random.pick([8, 80, 512, 1024, 1032]);
      await check(trial, {
        n,
        k,
        w,
        constants,
        norm: random.pick([w, undefined]),
      });
      await check(trial, { n, k, w, constants, epilogue: "add" });
      if (ROWS === 1) continue;
      const gated = { constants, epilogue: "swiglu" } as const;
      await check(trial, { n: 2 * n, k, w, norm: "bf16", ...gated });
    }
    const constants = { ...walk, WALKERS: 3 };
    await check(trial, { n: 37, k: 1280, w: random.pick(BLOCKS), constants });
    await check(trial, { n: 9, k: 80, x: "bf16", norm: "bf16", constants });
    const place = { column: 3, padding: 2, epilogue: "add" } as const;
    await check(trial, { n: 38, k: 80, constants, ...place });
  }
});
