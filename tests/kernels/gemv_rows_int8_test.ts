import { assertThrows } from "@std/assert";
import { rowParts } from "../../kernels/gemv_rows.ts";
import { gemvRowsInt8 } from "../../kernels/gemv_rows_int8.ts";
import { roundRows } from "../../kernels/int8_case.ts";
import type { Constants, Epilogue } from "../../lib/dispatch/shapes.ts";
import { formatNamed, FORMATS } from "../../lib/formats/mod.ts";
import { matrixToF32, toF32 } from "../../lib/formats/tensor.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, lanes, type Trial } from "../support/gpu.ts";
import { assertSums, epilogue, linear } from "../support/reference.ts";

/** Formats whose quants are integers. */
const INTEGERS = FORMATS.filter(({ integers }) => integers)
  .map(({ name }) => name);

/** The error of 15 bits per block, relative to the norm of the terms of a sum. */
const ROUNDED = 3e-4;

interface Case {
  m: number;
  n: number;
  k: number;
  w: string;
  /** Rows of the next part of the matrix, and their format. */
  second?: { n: number; w: string };
  epilogue?: Epilogue;
  column?: number;
  padding?: number;
  constants?: Constants;
  /** Values of x in each row, next to each other in a random block. */
  outliers?: readonly number[];
}

/** Compares all of y, and what is around the result, with the product of the values in f64. */
async function check(trial: Trial, given: Case): Promise<void> {
  const { m, n, k, w, epilogue: kind = "store" } = given;
  const { column = 0, padding = 0, second } = given;
  const { gpu, random } = trial, before = 3, message = JSON.stringify(given);
  const weights = random.matrix(w, [n, k]);
  const more = second && random.matrix(second.w, [second.n, k]);
  const all = n + (second?.n ?? 0);
  const x = toF32(random.tensor("f32", [m, k], 2));
  const others = x.slice();
  for (let row = 0; row < m; row++) {
    const block = row * k + 32 * random.int(0, k / 32 - 1);
    for (const [i, value] of (given.outliers ?? []).entries()) {
      const at = block + i;
      x[at] = value;
      others[at] = 0;
    }
  }
  const { planes, scales } = roundRows(x, k, formatNamed(w).loads[0]);
  const width = kind === "swiglu" ? n / 2 : all;
  const stride = column + width + padding;
  const poison = kind === "add" ? before : NaN;
  const y = trial.filled([m + 1, stride], poison);
  const constants = {
    ...{ M: m, WORKGROUP: 32, ROWS: m > 16 ? 2 : 4, SLICES: 1 },
    ...lanes(gpu, true),
    ...given.constants,
    EPILOGUE: kind,
    TWO: more ? 1 : 0,
  };
  const left = trial.filled([m, rowParts(n, constants)]);
  trial.run(gemvRowsInt8, {
    w: trial.uploadMatrix(weights),
    ...(more ? { v: trial.uploadMatrix(more) } : {}),
    x: trial.upload(planes),
    scales: trial.upload(scales),
    y,
    ...(kind === "add" ? { squares: left } : {}),
  }, { constants, uniforms: { stride, column } });
  const stacked = new Float32Array(all * k);
  stacked.set(matrixToF32(weights));
  if (more) stacked.set(matrixToF32(more), n * k);
  const product = linear(x, stacked, { m, n: all, k });
  const written = await y.read();
  const inside = (at: number) => {
    const c = at % stride - column;
    return at < m * stride && c >= 0 && c < width;
  };
  const around = written.filter((_, at) => !inside(at));
  assertAllClose(around, around.map(() => poison), {}, `around ${message}`);
  const actual = written.filter((_, at) => inside(at));
  const expected = epilogue(kind, product, all, before);
  if (given.outliers) {
    // Errors are those of the other values, and what f32 rounds of the outliers' products.
    const { norms } = linear(others, stacked, { m, n: all, k });
    expected.norms = norms!.map((norm, at) =>
      norm + 1e-6 / ROUNDED * product.norms![at]
    );
  }
  assertSums(actual, expected, message, ROUNDED);
  if (kind !== "add") return;
  const sums = await left.read(), parts = left.shape[1];
  const squares = (
    list: Float32Array,
    length: number,
    of: (v: number) => number,
  ) =>
    Array.from(
      { length: m },
      (_, row) =>
        list.subarray(row * length, (row + 1) * length)
          .reduce((sum, value) => sum + of(value), 0),
    );
  assertAllClose(
    squares(sums, parts, (v) => v),
    squares(actual, n, (v) => v * v),
    { relative: 1e-5 },
    `squares of ${message}`,
  );
}

gpuTest(
  "gemvRowsInt8 multiplies by blocks of every format of integers",
  async (_, trial) => {
    for (const w of trial.some(INTEGERS, 1)) {
      const whole = formatNamed(w).elements === 256;
      for (
        const k of [trial.random.pick(whole ? [256, 768] : [32, 96, 1056])]
      ) {
        const m = trial.random.pick([2, 3, 5]);
        await check(trial, { m, n: trial.random.pick([1, 37]), k, w });
      }
      const epilogue = trial.random.pick(["add", "swiglu"] as const);
      await check(trial, { m: 3, n: 38, k: 512, w, epilogue });
    }
  },
);

gpuTest(
  "gemvRowsInt8 keeps the values beside an outlier",
  async (_, trial) => {
    for (const w of trial.some(INTEGERS, 1)) {
      for (const outliers of [[1e3], [-300, 500, 2e3], [1e3, 1e3, 1e3]]) {
        await check(trial, { m: 3, n: 37, k: 1024, w, outliers });
      }
    }
  },
);

/** Formats that follow one another in qkv_proj, whose units are equal. */
const PAIRS = [
  ...[["q4_k", "q6_k"], ["q5_k", "q6_k"], ["q6_k", "q4_k"], ["q4_0", "q5_k"]],
  ["q3_k", "q2_k"],
] as const;

gpuTest(
  "gemvRowsInt8 takes the next part of a matrix along, in another format",
  async (gpu, trial) => {
    for (const [w, v] of trial.some(PAIRS, 1)) {
      const [n, more] = trial.random.pick([[37, 11], [32, 64], [1, 5]]);
      const m = trial.random.pick([2, 3, 5]), second = { n: more, w: v };
      const rows = { m, n, k: 768, w, second };
      const place = trial.random.pick([{}, { column: 3, padding: 5 }]);
      await check(trial, { ...rows, ...place, outliers: [1e3] });
      const sliced = { WORKGROUP: 64, SLICES: 2, LOG_LANES: 2 };
      const constants = { ...lanes(gpu, true), ...sliced };
      await check(trial, { ...rows, constants });
    }
  },
);

Deno.test("gemvRowsInt8 refuses a second part that lanes take otherwise", () => {
  const derive = (given: Constants) =>
    gemvRowsInt8.derive!(
      { ...gemvRowsInt8.constants, W_DTYPE: "q4_k", W_UNIT: 32, ...given },
      { m: 2, n: 8, nv: 8, k: 768 },
    );
  const two = { TWO: 1, W_VIEW: "unit", V_VIEW: "unit" };
  assertThrows(
    () => derive({ ...two, V_DTYPE: "q3_k", V_UNIT: 64 }),
    Error,
    "Cannot multiply by q4_k and q3_k in one dispatch: their units are 32 and 64, must be equal, and quants integers",
  );
  assertThrows(
    () => derive({ ...two, V_DTYPE: "q6_k", V_UNIT: 32, EPILOGUE: "add" }),
    Error,
    'Cannot multiply by two parts of a matrix in one dispatch: results are for "add" and the parts are read as unit and unit, must be for "store" and read alike',
  );
});

gpuTest("gemvRowsInt8 takes two to 32 rows of x", async (_, trial) => {
  const w = trial.random.pick(["q4_k", "q6_k", "q8_0"]);
  const cases = [[2, "add"], [4, "swiglu"], [7, "store"], [8, "add"], [
    16,
    "swiglu",
  ], [
    17,
    "add",
  ], [32, "store"]] as const;
  for (const [m, epilogue] of trial.some(cases, 1)) {
    await check(trial, { m, n: 38, k: 256, w, epilogue });
  }
});

gpuTest(
  "gemvRowsInt8 takes rows of x a few at a time, whether they divide them or not",
  async (_, trial) => {
    const cases = [
      [64, 8, "add"],
      [33, 8, "swiglu"],
      [6, 4, "store"],
    ] as const;
    for (const [m, M, epilogue] of trial.some(cases, 1)) {
      const w = trial.random.pick(INTEGERS), constants = { M };
      await check(trial, { m, n: 38, k: 256, w, epilogue, constants });
    }
  },
);

gpuTest(
  "gemvRowsInt8 copies rows of x to workgroup memory, a few at a time",
  async (gpu, trial) => {
    const { LOG_LANES, ...own } = lanes(gpu, true);
    const two = { LOG_LANES: 1, APART: Math.max(0, LOG_LANES - 1) };
    const constants = { ...own, ...two, STAGED: 1, M: 4, WORKGROUP: 64 };
    for (const m of trial.some([8, 9], 1)) {
      const rows = { m, n: 38, k: 768, w: "q4_k", constants };
      await check(trial, { ...rows, epilogue: "swiglu" });
      await check(trial, { ...rows, w: "q8_0", epilogue: "add" });
      const second = { n: 11, w: "q6_k" };
      await check(trial, { ...rows, second, outliers: [1e3] });
    }
  },
);

gpuTest(
  "gemvRowsInt8 writes its columns of a wider y and nothing else",
  async (_, trial) => {
    for (const epilogue of ["store", "add", "swiglu"] as const) {
      for (const [column, padding] of [[0, 5], [3, 0], [16, 3]]) {
        const place = { column, padding, epilogue };
        await check(trial, { m: 2, n: 38, k: 96, w: "q4_0", ...place });
      }
    }
  },
);

gpuTest(
  "gemvRowsInt8 gives the same for every choice of threads, lanes, rows and slices",
  async (gpu, trial) => {
    const none = { SUBGROUPS: 0 };
    const choices: Constants[] = [
      { ...none, LOG_LANES: 5, WORKGROUP: 32 },
      { ...none, LOG_LANES: 4, WORKGROUP: 64, ROWS: 4, SLICES: 2 },
      ...[32, 64, 128].map((WORKGROUP) => ({ WORKGROUP })),
      ...[1, 2, 4, 8].map((ROWS) => ({ ROWS })),
      ...[2, 4].map((SLICES) => ({ SLICES, WORKGROUP: 128 })),
      { ...lanes(gpu, true), LOG_LANES: 2, SLICES: 8 },
      { ...lanes(gpu, true), STAGED: 1 },
      { ...lanes(gpu, true), LOG_LANES: 2, STAGED: 1, M: 4 },
      {
        ...{ ...lanes(gpu, true), LOG_LANES: 1, APART: 1, STAGED: 1 },
        ...{ SLICES: 2, WORKGROUP: 64 },
      },
    ];
    for (const constants of trial.some(choices, 2)) {
      const w = trial.random.pick(INTEGERS);
      const pairs = Number(constants.ROWS ?? 4) % 2 === 0;
      const epilogue = trial.random.pick(
        pairs ? ["store", "add", "swiglu"] as const : ["store", "add"] as const,
      );
      const k = trial.random.pick([256, 768, 1280]);
      await check(trial, { m: 3, n: 38, k, w, epilogue, constants });
    }
  },
);

Deno.test("gemvRowsInt8 refuses formats whose quants are not integers", () => {
  const constants = { ...gemvRowsInt8.constants, W_DTYPE: "mxfp4" };
  assertThrows(
    () => gemvRowsInt8.derive!(constants, { k: 256 }),
    Error,
    "Cannot multiply rows of 256 by mxfp4 as integers: quants must be integers, and rows whole blocks of 32 that were normed before",
  );
});
