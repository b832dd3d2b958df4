import { assert, assertEquals, assertThrows } from "@std/assert";
import { BLOCKS, FLOATS } from "../../kernels/case.ts";
import { gemmMatrix } from "../../kernels/gemm_matrix.ts";
import { MATRIX_TILES, type MatrixTile } from "../../lib/dispatch/matrices.ts";
import { f16ToF32, f32ToF16Bits } from "../../lib/dtype.ts";
import { formatNamed } from "../../lib/formats/mod.ts";
import { matrixToF32, toF32 } from "../../lib/formats/tensor.ts";
import type { Constants, Epilogue } from "../../lib/dispatch/shapes.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import type { Trial } from "../support/gpu.ts";
import { checkCase, makeCase } from "../support/kernel_case.ts";
import { assertSums, epilogue, linear } from "../support/reference.ts";
import { matrixTest } from "../support/subgroup_matrices.ts";

const SIZES = [1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129];
/** Small, so that sizes exceed it: 64 threads, one or two stages. */
const SMALL = { BM: 32, BN: 32, BK: 32, SM: 1, SN: 2, STAGES: 1 };

interface Case {
  m: number;
  n: number;
  k: number;
  /** Format of the weights. */
  b?: string;
  epilogue?: Epilogue;
  scaled?: boolean;
  /** The first column of the result in a wider c. */
  column?: number;
  padding?: number;
  constants?: Constants;
}

/** Runs a case and compares all of c, including what is around the result. */
async function check(trial: Trial, given: Case): Promise<void> {
  const { m, n, k, b = "bf16", scaled = false } = given;
  const { epilogue: kind = "store", column = 0, padding = 0 } = given;
  const { random } = trial, before = 3, message = JSON.stringify(given);
  const left = random.tensor("f16", [m, k], 2);
  const right = random.matrix(b, [n, k]);
  const scales = random.tensor("f32", [m], 0.5, 1);
  const width = kind === "swiglu" ? n / 2 : n,
    stride = column + width + padding;
  const splits = Number(given.constants?.SPLITS ?? 1), rows = m * splits;
  const poison = kind === "add" ? before : NaN;
  const c = trial.filled([rows + 2, stride], poison);
  trial.run(gemmMatrix, {
    a: trial.upload(left),
    b: trial.uploadMatrix(right),
    scales: trial.upload(scales),
    c: c.rows(rows),
  }, {
    constants: {
      ...SMALL,
      EPILOGUE: kind,
      SCALED: scaled ? 1 : 0,
      ...given.constants,
    },
    uniforms: { stride, column },
  });
  const x = toF32(left);
  if (scaled) x.forEach((v, i) => x[i] = v * scales.data[Math.floor(i / k)]);
  const w = matrixToF32(right).map((v) => f16ToF32(f32ToF16Bits(v)));
  const product = linear(x, w, { m, n, k });
  const all = await c.read();
  const inside = (at: number) => {
    const x = at % stride - column;
    return at < rows * stride && x >= 0 && x < width;
  };
  const around = all.filter((_, at) => !inside(at));
  assertAllClose(around, around.map(() => poison), {}, `around ${message}`);
  const parts = all.filter((_, at) => inside(at));
  const actual = new Float32Array(m * width);
  parts.forEach((v, at) => actual[at % (m * width)] += v);
  assertSums(actual, epilogue(kind, product, n, before), message);
}

matrixTest("gemmMatrix multiplies matrices of any size", async (trial) => {
  const { random } = trial;
  const stages = trial.some([1, 2], 1), depths = trial.some([32, 64], 1);
  for (const _ of trial.some(Array(15).fill(0), 3)) {
    const [m, n, k] = [0, 0, 0].map(() => random.pick(SIZES));
    const STAGES = random.pick(stages), BK = random.pick(depths);
    await check(trial, { m, n, k, constants: { STAGES, BK } });
    await check(trial, { m, n, k: 8 * k, constants: { STAGES, BK } });
  }
});

matrixTest("gemmMatrix reads weights of every type", async (trial) => {
  const { random } = trial;
  const cases = ["f32", "f16", "bf16"].flatMap((b) =>
    [20, 19, 64, 72].map((k) => ({ b, k }))
  );
  for (const given of trial.some(cases, 2)) {
    const STAGES = random.pick([1, 2]);
    await check(trial, { m: 17, n: 36, ...given, constants: { STAGES } });
  }
});

matrixTest("gemmMatrix multiplies by blocks of every format", async (trial) => {
  const { random } = trial;
  for (const b of trial.some(BLOCKS, 2)) {
    const { elements, loads: [unit] } = formatNamed(b);
    const wide = elements === 256 ? 256 : 96;
    const constants = {
      BK: random.pick([Math.max(32, unit), 64]),
      STAGES: random.pick([1, 2]),
    };
    const [m, n] = [random.pick(SIZES), random.pick(SIZES)];
    await check(trial, { m, n, k: wide, b, constants });
    if (b !== random.pick(BLOCKS.slice(0, 3))) continue;
    const kind = random.pick(["add", "swiglu"] as const);
    const shape = { m: 17, n: 2 * random.pick([1, 3, 18, 40]), k: 2 * wide, b };
    await check(trial, {
      ...{ ...shape, scaled: true, epilogue: kind },
      constants: { BK: 64, BN: 64 },
    });
  }
});

matrixTest("gemmMatrix scales rows, adds and applies SwiGLU", async (trial) => {
  const { random } = trial;
  for (const _ of trial.some([0, 1, 2], 1)) {
    const [m, n, k] = [0, 0, 0].map(() => random.pick(SIZES));
    const scaled = random.pick([true, false]);
    const constants = { BN: 64, STAGES: random.pick([1, 2]) };
    const shape = { m, k: 8 * k, scaled, constants };
    await check(trial, { ...shape, n });
    await check(trial, { ...shape, n, epilogue: "add" });
    await check(trial, { ...shape, n: 2 * n, epilogue: "swiglu" });
    await check(trial, { ...shape, n: 8 * n, epilogue: "swiglu" });
  }
});

matrixTest("gemmMatrix splits k and orders tiles in bands", async (trial) => {
  const { random } = trial;
  for (const SPLITS of trial.some([2, 3, 5], 1)) {
    const [m, n] = [random.pick(SIZES), random.pick(SIZES)];
    const bands = trial.some([1, 2, 16], 1);
    for (const k of [40, 168, 512]) {
      const constants = { SPLITS, BAND: random.pick(bands) };
      await check(trial, { m, n, k, scaled: true, constants });
    }
  }
  for (const BAND of trial.some([1, 2, 3], 1)) {
    await check(trial, { m: 200, n: 70, k: 32, constants: { BAND } });
  }
});

matrixTest(
  "gemmMatrix writes its columns of a wider c and nothing else",
  async (trial) => {
    const cases = (["store", "add", "swiglu"] as const).flatMap((kind) =>
      [0, 1].map((C_FOURS) => ({ kind, C_FOURS }))
    );
    for (const { kind, C_FOURS } of trial.some(cases, 2)) {
      const constants = { BN: 64, C_FOURS };
      const shape = { m: 33, k: 40, epilogue: kind, constants };
      if (C_FOURS) {
        await check(trial, { ...shape, n: 40, column: 16, padding: 8 });
        await check(trial, { ...shape, n: 72, column: 64, padding: 0 });
        continue;
      }
      const padding = kind === "swiglu" ? 2 : 1;
      await check(trial, { ...shape, n: 38, column: 16, padding });
      await check(trial, { ...shape, n: 38, column: 3, padding: 1 });
    }
  },
);

matrixTest("gemmMatrix asks for tiles ahead", async (trial) => {
  const { random } = trial;
  for (const AHEAD of trial.some([1, 2, 3, 4], 2)) {
    // Tiles of a split: as many as are asked for, or some rounds of them, or no multiple.
    for (const tiles of [1, AHEAD, 2 * AHEAD, 6]) {
      const SPLITS = random.pick([1, 2]), STAGES = random.pick([1, 2]);
      const k = 32 * tiles * SPLITS, m = random.pick(SIZES);
      const b = random.pick(FLOATS), constants = { AHEAD, SPLITS, STAGES };
      await check(trial, { m, n: 40, k, b, constants });
      await check(trial, { m, n: 40, k: k + 8, b, constants });
    }
  }
  for (const b of trial.some(BLOCKS, 1)) {
    const { elements, loads: [unit] } = formatNamed(b);
    const BK = Math.max(32, unit, elements === 256 ? 64 : 0);
    const shape = { m: 17, n: 40, k: 4 * Math.max(BK, elements), b };
    await check(trial, { ...shape, constants: { BK, AHEAD: 2 } });
  }
});

/** Tiles that were to be timed beside those of dispatch; the largest have 256 threads. */
const OTHERS: MatrixTile[] = [
  { BM: 16, BN: 32, BK: 128, SM: 1, SN: 1, SK: 4, STAGES: 1 },
  { BM: 32, BN: 32, BK: 64, SM: 2, SN: 1, SK: 2, STAGES: 2 },
  { BM: 16, BN: 16, BK: 64, SM: 1, SN: 1, SK: 2, STAGES: 1 },
  { BM: 128, BN: 128, BK: 32, SM: 2, SN: 2, STAGES: 1 },
  { BM: 128, BN: 128, BK: 64, SM: 2, SN: 2, STAGES: 1 },
  { BM: 128, BN: 128, BK: 32, SM: 2, SN: 4, STAGES: 2 },
  { BM: 128, BN: 256, BK: 32, SM: 2, SN: 4, STAGES: 1 },
  { BM: 256, BN: 128, BK: 32, SM: 4, SN: 2, STAGES: 1 },
  { BM: 64, BN: 64, BK: 64, SM: 2, SN: 2, STAGES: 2 },
  { BM: 64, BN: 64, BK: 32, SM: 1, SN: 1, STAGES: 1 },
];

// Compiling one takes llvmpipe up to 30 s.
matrixTest("gemmMatrix gives the same result with any tile", async (trial) => {
  const { random } = trial;
  const tiles = [...Object.values(MATRIX_TILES), ...OTHERS];
  for (const tile of trial.some(tiles, 1)) {
    const { AHEAD = 1, BK } = tile;
    const rounds = AHEAD > 1 ? BK * AHEAD * random.pick([1, 2, 3]) : 0;
    const k = rounds || 8 * random.pick([9, 12, 25]);
    const stored = (tile.BM + tile.BN) / 16 * tile.STAGES / tile.SM / tile.SN;
    const gates = tile.BN / tile.SN % 32 === 0 && stored >= 2; // and ups
    const kind = random.pick(
      gates ? ["store", "add", "swiglu"] as const : ["store", "add"] as const,
    );
    const shape = { m: 131, n: 140, k, scaled: true, constants: { ...tile } };
    await check(trial, { ...shape, epilogue: kind });
  }
});

matrixTest(
  "gemmMatrix agrees in its cases, as dispatch chooses",
  async (trial) => {
    const [blocks, others] = [true, false].map((are) =>
      gemmMatrix.cases.filter(({ w }) => BLOCKS.includes(w) === are)
    );
    for (const given of [trial.random.pick(blocks), ...trial.some(others, 1)]) {
      const one = makeCase(gemmMatrix, trial, given);
      assert(one?.what.includes("by tensor cores"));
      await checkCase(gemmMatrix, trial, given);
    }
  },
);

Deno.test("gemmMatrix refuses what it cannot multiply", () => {
  const { derive, constants } = gemmMatrix;
  const types = { A_DTYPE: "f16", A_VIEW: "unit", B_VIEW: "unit", B_UNIT: 8 };
  const make = (given: Constants) =>
    derive!({ ...constants, ...types, ...given }, { k: 256 });
  const refused = (given: Constants) =>
    assertThrows(() => make(given), Error).message;
  assertEquals(make({}).OUT, 4);
  // Tiles on their way divide those of a split, and fit registers.
  const sets = (given: Constants) => make(given).SETS;
  assertEquals([1, 2, 3, 5, 8].map((AHEAD) => sets({ AHEAD })), [
    1,
    2,
    2,
    4,
    4,
  ]);
  assertEquals(sets({ AHEAD: 4, SPLITS: 3 }), 1);
  assertEquals(sets({ AHEAD: 4, SPLITS: 2 }), 4);
  assertEquals(
    refused({ A_DTYPE: "f32" }),
    "Cannot multiply f32 by tensor cores: it must be f16",
  );
  assertEquals(
    refused({ BM: 40 }),
    "Cannot multiply in tiles of 40 × 128 × 32 by 2 × 2 × 1 subgroups: each must have whole matrices of 16 × 16, two or more deep and whole loads of 8",
  );
  assertEquals(
    refused({ BN: 32, EPILOGUE: "swiglu" }),
    "Cannot multiply in tiles of 128 × 32 × 32 by 2 × 2 × 1 subgroups: each must have whole matrices of 16 × 16, two or more deep, an even number in a row, and whole loads of 8",
  );
  // Sums of 16 × 16 take the place of a slice.
  assert(refused({ SK: 2 }).includes("by 2 × 2 × 2 subgroups"));
  assert(refused({ B_UNIT: 64 }).includes("whole loads of 64"));
});
