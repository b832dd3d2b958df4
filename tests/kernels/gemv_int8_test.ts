import { assert, assertRejects, assertThrows } from "@std/assert";
import { gemvInt8, int8Parts } from "../../kernels/gemv_int8.ts";
import { INTEGER_SUM } from "../../kernels/case.ts";
import { LARGEST } from "../../kernels/int8_case.ts";
import {
  roundedSizes,
  roundedValues,
  roundRow,
} from "../../kernels/rounded_row.ts";
import type { Constants } from "../../lib/dispatch/shapes.ts";
import { FORMATS } from "../../lib/formats/mod.ts";
import { matrixToF32, toF32 } from "../../lib/formats/tensor.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, lanes, type Trial } from "../support/gpu.ts";
import {
  assertSums,
  epilogue as epilogueOf,
  linear,
} from "../support/reference.ts";
import { checkRows, type RowsCase } from "../support/rows_case.ts";

const INTEGERS = FORMATS.filter(({ integers }) => integers);

/** Lane groups that share a row, or do not; more results than threads, and fewer. */
const CHOICES: Constants[] = [
  { WORKGROUP: 64, SETS: 8, ROWS: 1, RESULTS: 16 },
  { WORKGROUP: 128, SETS: 4, ROWS: 4, RESULTS: 16 },
  { WORKGROUP: 64, SETS: 5, ROWS: 3, RESULTS: 48 },
  { WORKGROUP: 96, SETS: 6, ROWS: 2, RESULTS: 32 },
  { WORKGROUP: 128, SETS: 16, ROWS: 2, RESULTS: 144 },
  { WORKGROUP: 128, SETS: 16, ROWS: 5, RESULTS: 16 },
];

const check = (trial: Trial, given: RowsCase) =>
  checkRows(trial, gemvInt8, int8Parts, { ...given, tolerance: INTEGER_SUM });

gpuTest(
  "gemvInt8 multiplies by blocks of every format of integers",
  async (_, trial) => {
    for (const { name: w, elements } of trial.some(INTEGERS, 1)) {
      for (const k of elements === 32 ? [32, 1312] : [256, 1280]) {
        await check(trial, { n: 37, k, w });
      }
    }
  },
);

gpuTest(
  "gemvInt8 gives the same for every choice of threads, sets, rows and results",
  async (_, trial) => {
    for (const epilogue of ["store", "add", "swiglu"] as const) {
      for (const constants of trial.some(CHOICES, 1)) {
        const w = trial.random.pick(["q4_k", "q6_k", "q8_0", "q2_k"]);
        await check(trial, { n: 338, k: 1280, w, constants, epilogue });
      }
    }
  },
);

gpuTest("gemvInt8 holds rows as long as lanes allow", async (gpu, trial) => {
  for (const w of ["q4_k", "q8_0"]) {
    const constants = { WORKGROUP: 128, SETS: 16, ROWS: 2 };
    await check(trial, { n: 9, k: 12288, w, constants });
  }
  const WORKGROUP = gpu.subgroupSize, k = 1024 * WORKGROUP;
  await assertRejects(
    () => check(trial, { n: 1, k, w: "q8_0", constants: { WORKGROUP } }),
    Error,
    `Cannot hold rows of ${k} elements in 1 × ${WORKGROUP} lanes: each has 1024, must be at most 512`,
  );
});

gpuTest(
  "gemvInt8 norms rows, adds to y and applies SwiGLU",
  async (_, trial) => {
    const formats = ["q4_k", "q6_k", "q8_0", "q5_1"];
    for (const epilogue of ["store", "add", "swiglu"] as const) {
      for (const w of trial.some(formats, 1)) {
        const constants = trial.random.pick(CHOICES.slice(1));
        const given = { n: 174, k: 768, w, epilogue, constants };
        await check(trial, { ...given, column: 3, padding: 5 });
        if (epilogue !== "add") await check(trial, { ...given, norm: "bf16" });
      }
    }
  },
);

/** A row with several outliers. */
function withOutliers({ random }: Trial, k: number) {
  const x = random.tensor("f32", [1, k], 2);
  for (const at of [3, k - 20, k - 1]) x.data[at] = 500 * at % 2000 - 900;
  return x;
}

gpuTest(
  "gemvInt8 multiplies rows that were rounded before, beside outliers too",
  async (_, trial) => {
    const { gpu, random } = trial, eps = 1e-6;
    for (const { name: w, elements } of trial.some(INTEGERS, 1)) {
      for (const k of elements === 32 ? [64, 1312] : [256, 1280]) {
        for (const norm of [0, 1]) {
          const n = 37, x = withOutliers(trial, k), x32 = toF32(x);
          const weights = random.matrix(w, [n, k]);
          const squares = Array.from(
            { length: k / 16 },
            (_, b) =>
              x32.subarray(16 * b, 16 * b + 16).reduce((s, v) => s + v * v, 0),
          );
          const y = trial.filled([1, n + 4]);
          trial.run(gemvInt8, {
            w: trial.uploadMatrix(weights),
            x: trial.upload(roundRow(x, k, squares)),
            y,
          }, {
            constants: {
              ...lanes(gpu, true),
              ...random.pick(CHOICES.slice(1)),
              NORM: norm,
              ROUNDED: 1,
            },
            uniforms: { stride: n, column: 4, eps },
          });
          const mean = squares.reduce((a, b) => a + b, 0) / k;
          const factor = norm ? 1 / Math.sqrt(mean + eps) : 1;
          const product = (x: Float32Array) =>
            linear(x.map((v) => v * factor), matrixToF32(weights), {
              ...{ m: 1, n, k },
            });
          const { values } = product(x32);
          // Outliers must not hide what they are beside.
          const { norms } = product(x32.map((v) => Math.abs(v) > 2 ? 0 : v));
          const all = await y.read();
          assert(all.subarray(0, 4).every(Number.isNaN));
          const what = `${w}, k ${k}, norm ${norm}`;
          assertSums(all.subarray(4), { values, norms }, what, INTEGER_SUM);
        }
      }
    }
  },
);

gpuTest(
  "gemvInt8 rounds its results for the next kernel",
  async (_, trial) => {
    const { gpu, random } = trial;
    for (const epilogue of ["add", "swiglu"] as const) {
      for (const constants of trial.some(CHOICES, 2)) {
        const w = random.pick(["q4_k", "q6_k", "q8_0"]);
        const rounded = random.pick([0, 1]);
        await checkLeft({ w, epilogue, constants, rounded });
      }
    }

    async function checkLeft({ w, epilogue, constants, rounded }: {
      w: string;
      epilogue: "add" | "swiglu";
      constants: Constants;
      rounded: number;
    }) {
      const k = 768, width = random.pick([832, 816]);
      const what = JSON.stringify({ width, w, constants });
      const n = epilogue === "swiglu" ? 2 * width : width;
      const x = withOutliers(trial, k);
      const residual = withOutliers(trial, width);
      const weights = random.matrix(w, [n, k]);
      const nextNorm = random.tensor("bf16", [width], 0.5, 1);
      const { words } = roundedSizes(width);
      const y = epilogue === "add"
        ? trial.upload(residual)
        : trial.filled([1, width]);
      const left = trial.filled([1, words], 0x7f7f7f7f, "u32");
      trial.run(gemvInt8, {
        w: trial.uploadMatrix(weights),
        x: trial.upload(rounded ? roundRow(x, k) : x),
        nextNorm: trial.upload(nextNorm),
        left,
        y,
      }, {
        constants: {
          ...lanes(gpu, true),
          ...constants,
          EPILOGUE: epilogue,
          ROUNDED: rounded,
          LEAVES: 1,
        },
        uniforms: { stride: width, column: 0, eps: 0 },
      });
      const product = linear(toF32(x), matrixToF32(weights), { m: 1, n, k });
      const results = await y.read();
      if (epilogue === "add") {
        toF32(residual).forEach((v, i) => product.values[i] += v);
        assertSums(results, product, what, INTEGER_SUM);
      } else {
        const expected = epilogueOf("swiglu", product, n, 0);
        assertSums(results, expected, what, INTEGER_SUM);
      }
      const bytes = await gpu.readBuffer(left.buffer, 0, 4 * words);
      const made = roundedValues(new Uint32Array(bytes), width);
      const norms = toF32(nextNorm);
      const normed = epilogue === "add"
        ? results.map((v, i) => v * norms[i])
        : results;
      for (let b = 0; b < width / 16; b++) {
        const of = (list: ArrayLike<number>) =>
          Array.from(list).slice(16 * b, 16 * b + 16);
        const largest = Math.max(...of(normed).map(Math.abs));
        const absolute = 0.52 / LARGEST * largest;
        assertAllClose(of(made.values), of(normed), { absolute }, what);
        if (epilogue === "swiglu") continue;
        const squared = of(results).reduce((sum, v) => sum + v * v, 0);
        assertAllClose([made.squares[b]], [squared], { relative: 1e-5 }, what);
      }
      assert(made.sumsOff.every((off) => off === 0), what);
      if (epilogue === "add") {
        assert(made.squares.subarray(width / 16).every((v) => v === 0), what);
      }
    }
  },
);

gpuTest(
  "gemvInt8 multiplies by two parts in different formats",
  async (_, trial) => {
    const { gpu, random } = trial, k = 768;
    const pairs = [["q4_k", "q6_k"], ["q6_k", "q4_1"], ["q5_0", "q5_0"]];
    pairs.push(["q8_0", "q4_0"]);
    for (const [first, second] of pairs) {
      for (const [n, nv] of trial.some([[74, 37], [5, 130]], 1)) {
        const x = withOutliers(trial, k),
          what = `${first} ${n}, ${second} ${nv}`;
        const parts = [
          random.matrix(first, [n, k]),
          random.matrix(second, [nv, k]),
        ];
        const [w, v] = parts.map((part) => trial.uploadMatrix(part));
        const y = trial.filled([1, n + nv + 3]);
        const run = () =>
          trial.run(gemvInt8, {
            w,
            v,
            x: trial.upload(roundRow(x, k)),
            y,
          }, {
            constants: {
              ...lanes(gpu, true),
              ...random.pick(CHOICES.slice(1)),
              ROUNDED: 1,
              TWO: 1,
            },
            uniforms: { stride: n + nv, column: 2, eps: 0 },
          });
        if (second === "q4_0") {
          assertThrows(
            run,
            Error,
            "in one dispatch: their units are 16 and 32",
          );
          continue;
        }
        run();
        const all = await y.read();
        const ends = [all[0], all[1], all.at(-1)!];
        assert(ends.every(Number.isNaN), what);
        for (const [i, part] of parts.entries()) {
          const rows = i ? nv : n, begin = 2 + (i ? n : 0);
          const weights = matrixToF32(part);
          const product = linear(toF32(x), weights, { m: 1, n: rows, k });
          const own = all.subarray(begin, begin + rows);
          assertSums(own, product, what, INTEGER_SUM);
        }
      }
    }
  },
);
