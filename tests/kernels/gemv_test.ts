import { assertRejects } from "@std/assert";
import { gemv, squareParts } from "../../kernels/gemv.ts";
import { toF32 } from "../../lib/cpu_dtype.ts";
import type { Dtype } from "../../lib/ops.ts";
import type { Constants } from "../../lib/unroll.ts";
import { assertAllClose } from "../assert_all_close.ts";
import { gpuTest, lanes, type Trial } from "../gpu.ts";
import { assertSums, epilogue, linear, rmsNormed } from "../reference.ts";

const WEIGHTS = ["f32", "f16", "bf16"] as const;

interface Case {
  m?: number;
  n: number;
  k: number;
  w?: Dtype;
  x?: Dtype;
  /** Whether rows are normed, and by weights of which type. */
  norm?: Dtype;
  epilogue?: 0 | 1 | 2;
  /** Where the result lies in a wider y. */
  column?: number;
  beside?: number;
  constants?: Constants;
}

/** Runs one case and compares all of y, also around the result. */
async function check(trial: Trial, given: Case): Promise<void> {
  const { m = 1, n, k, w = "bf16", x = "f32", norm, constants = {} } = given;
  const { epilogue: kind = 0, column = 0, beside = 0 } = given;
  const { gpu, random } = trial, eps = 1e-6, before = 3;
  const message = JSON.stringify(given);
  const weights = random.tensor(w, [n, k]);
  const rows = random.tensor(x, [m, k], 2);
  const normWeights = norm && random.tensor(norm, [k], 0.5, 1);
  const width = kind === 2 ? n / 2 : n, stride = column + width + beside;
  const poison = kind === 1 ? before : NaN;
  const y = trial.filled([m + 1, stride], poison);
  // Sums of a row's squares, as who wrote it left them.
  const parts = random.pick([4, 12, 132]), given32 = toF32(rows);
  const sums = random.filled("f32", [m, parts], 0);
  given32.forEach((v, at) =>
    sums.data[Math.floor(at / k) * parts + at % parts] += v * v
  );
  const all = { ...gemv.constants, ...lanes(gpu, true), ...constants };
  const left = trial.filled([m, squareParts(n, all)]);
  trial.run(gemv, {
    w: trial.upload(weights),
    x: trial.upload(rows),
    ...(normWeights ? { norm: trial.upload(normWeights) } : {}),
    ...(normWeights ? { squares: trial.upload(sums) } : {}),
    ...(kind === 1 ? { squares: left } : {}),
    y,
  }, {
    constants: { ...all, M: m, NORM: norm ? 1 : 0, EPILOGUE: kind },
    uniforms: { stride, column, eps },
  });
  const input = normWeights
    ? rmsNormed(given32, toF32(normWeights), eps)
    : given32;
  const product = linear(input, toF32(weights), { m, n, k });
  const written = await y.read();
  const inside = (at: number) => {
    const c = at % stride - column;
    return at < m * stride && c >= 0 && c < width;
  };
  const around = written.filter((_, at) => !inside(at));
  assertAllClose(around, around.map(() => poison), {}, `around ${message}`);
  const actual = written.filter((_, at) => inside(at));
  assertSums(actual, epilogue(kind, product, n, before), message);
  if (kind !== 1) return;
  // What it leaves for the next norm.
  const squares = (list: Float32Array, length: number) =>
    Array.from(
      { length: m },
      (_, row) => list.subarray(row * length, (row + 1) * length),
    );
  const found = squares(await left.read(), left.shape[1])
    .map((row) => row.reduce((a, b) => a + b, 0));
  const wanted = squares(actual, n)
    .map((row) => row.reduce((a, b) => a + b * b, 0));
  assertAllClose(found, wanted, { relative: 1e-5 }, `squares of ${message}`);
}

gpuTest(
  "gemv multiplies rows of any length, by weights of any type",
  async (_, trial) => {
    for (const k of [1, 3, 7, 8, 12, 80, 100, 1000, 1024, 3072, 5120]) {
      for (const w of WEIGHTS) await check(trial, { n: 37, k, w });
    }
  },
);

gpuTest(
  "gemv makes any number of outputs, more than one dimension of a grid has",
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

gpuTest("gemv takes one to eight rows of x", async (_, trial) => {
  for (let m = 1; m <= 8; m++) {
    await check(trial, { m, n: 37, k: 80, constants: { STEPS: 1 } });
  }
  for (const m of [3, 8]) {
    const constants = { STEPS: 1 };
    await check(trial, { m, n: 5, k: 88, norm: "f32", constants });
    await check(trial, { m, n: 5, k: 9, constants });
  }
});

gpuTest("gemv norms rows, adds to y and gates", async (_, trial) => {
  for (const w of WEIGHTS) {
    for (const kind of [0, 1, 2] as const) {
      const shape = { m: 2, n: 74, w, epilogue: kind };
      await check(trial, { ...shape, k: 80 });
      if (kind !== 1) await check(trial, { ...shape, k: 1000, norm: w });
      await check(trial, { ...shape, k: 5 });
    }
  }
});

gpuTest("gemv reads 16-bit x", async (_, trial) => {
  for (const x of ["f16", "bf16"] as const) {
    for (const k of [7, 20, 80]) await check(trial, { m: 3, n: 9, k, x });
    await check(trial, { n: 9, k: 80, x, norm: "bf16" });
  }
});

gpuTest(
  "gemv writes its columns of a wider y and nothing else",
  async (_, trial) => {
    for (const kind of [0, 1, 2] as const) {
      for (const [column, beside] of [[0, 5], [3, 0], [16, 3]]) {
        const place = { column, beside, epilogue: kind };
        await check(trial, { m: 2, n: 38, k: 80, ...place });
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
    for (const constants of choices) {
      const ROWS = Number(constants.ROWS ?? 2);
      await check(trial, { n: 38, k: 1000, norm: "f32", constants });
      if (ROWS % 2) continue; // pairs of rows
      await check(trial, { m: 2, n: 38, k: 40, epilogue: 2, constants });
    }
    await check(trial, { n: 38, k: 33, constants: { ...none, LOG_LANES: 5 } });
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
