import { bf16 } from "../../lib/formats/bf16.ts";
import { formatNamed } from "../../lib/formats/mod.ts";
import { assertThrows } from "@std/assert";
import { BLOCKS, HALF_SUM } from "../../kernels/case.ts";
import { gemm } from "../../kernels/gemm.ts";
import { chooseLinear } from "../../lib/dispatch/linear.ts";
import type { Dtype } from "../../lib/dtype.ts";
import { matrixToF32, toF32 } from "../../lib/formats/tensor.ts";
import type { Constants, Epilogue } from "../../lib/dispatch/shapes.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, type Trial } from "../support/gpu.ts";
import {
  assertSums,
  epilogue,
  linear,
  transpose,
} from "../support/reference.ts";

const SIZES = [1, 2, 3, 4, 5, 8, 16, 17, 31, 32, 63, 64, 65, 100, 129];
const SMALL = { BM: 32, BN: 32, BK: 8, TM: 4, TN: 4 };

interface Case {
  m: number;
  n: number;
  k: number;
  a?: Dtype;
  /** Format of the weights. */
  b?: string;
  /** Whether b is `[n, k]`, not `[k, n]`. */
  byColumn?: boolean;
  epilogue?: Epilogue;
  /** The first column of the result in a wider c. */
  column?: number;
  padding?: number;
  constants?: Constants;
  /** Relative to the norm of the products. */
  tolerance?: number;
}

/** Of sums of up to 32 terms in f16. */

/** Runs a case and compares all of c, including what is around the result. */
async function check(trial: Trial, given: Case): Promise<void> {
  const { m, n, k, a = "f32", b = "bf16", byColumn = true } = given;
  const { epilogue: kind = "store", column = 0, padding = 0 } = given;
  const { random } = trial, before = 3, message = JSON.stringify(given);
  const { tolerance } = given;
  const left = random.tensor(a, [m, k], 2);
  const right = random.matrix(b, byColumn ? [n, k] : [k, n]);
  const width = kind === "swiglu" ? n / 2 : n,
    stride = column + width + padding;
  const poison = kind === "add" ? before : NaN;
  const c = trial.filled([m + 2, stride], poison);
  trial.run(gemm, {
    a: trial.upload(left),
    b: trial.uploadMatrix(right),
    c: c.rows(m),
  }, {
    constants: {
      ...SMALL,
      B_BY_COLUMN: byColumn ? 1 : 0,
      EPILOGUE: kind,
      ...given.constants,
    },
    uniforms: { stride, column },
  });
  const columns = matrixToF32(right);
  const w = byColumn ? columns : transpose(columns, k, n);
  const product = linear(toF32(left), w, { m, n, k });
  const all = await c.read();
  const inside = (at: number) => {
    const x = at % stride - column;
    return at < m * stride && x >= 0 && x < width;
  };
  const around = all.filter((_, at) => !inside(at));
  assertAllClose(around, around.map(() => poison), {}, `around ${message}`);
  const actual = all.filter((_, at) => inside(at));
  assertSums(actual, epilogue(kind, product, n, before), message, tolerance);
}

gpuTest(
  "gemm multiplies matrices of any size, stored by row or by column",
  async (_, trial) => {
    const { random } = trial;
    for (const byColumn of [true, false]) {
      for (let i = 0; i < 60; i++) {
        const [m, n, k] = [0, 0, 0].map(() => random.pick(SIZES));
        await check(trial, { m, n, k, byColumn });
      }
    }
  },
);

gpuTest("gemm reads a and b of every type", async (_, trial) => {
  const { random } = trial;
  for (const b of ["f32", "f16", "bf16"] as const) {
    await check(trial, { m: 17, n: 36, k: 20, b });
    await check(trial, { m: 5, n: 33, k: 19, b });
    const [n, k] = [random.pick(SIZES), random.pick(SIZES)];
    await check(trial, { m: 20, n, k, b, byColumn: false });
  }
  for (const a of ["f16", "bf16"] as const) {
    await check(trial, { m: 35, n: 9, k: random.pick([7, 20]), a, b: a });
  }
});

gpuTest("gemm multiplies by blocks of every format", async (_, trial) => {
  const { random } = trial;
  for (const b of trial.some(BLOCKS, 1)) {
    const wide = formatNamed(b).elements === 256 ? 256 : 96;
    const size = () => random.pick(SIZES);
    for (const BK of trial.some([32, 64], 1)) {
      // 96 is not a multiple of every depth.
      const constants = { BK };
      await check(trial, { m: size(), n: size(), k: wide, b, constants });
      await check(trial, { m: size(), n: size(), k: 2 * wide, b, constants });
    }
    const epilogue = random.pick(["add", "swiglu"] as const);
    const constants = { TN: 8, BK: 32, BN: random.pick([32, 64]) };
    const n = 2 * random.pick([1, 3, 18, 40]);
    await check(trial, { m: 17, n, k: wide, b, epilogue, constants });
  }
});

gpuTest(
  "gemm multiplies by blocks in the tiles that dispatch chooses",
  async (gpu, trial) => {
    const { random } = trial;
    const chosen = [20, 50, 70, 300].map((m) => {
      const b = random.pick(BLOCKS), n = random.pick([70, 132]), k = 768;
      const shape = { m, n, k, format: formatNamed(b), norm: false };
      const choice = chooseLinear({ ...shape, swiglu: false }, gpu);
      return { m, n, k, b, ...choice };
    }).filter(({ kernel }) => kernel === "gemm");
    for (const { m, n, k, b, constants } of trial.some(chosen, 1)) {
      const { BM, BN, BK, TM, TN } = constants;
      const tile = { BM, BN, BK, TM, TN };
      await check(trial, { m, n, k, b, constants: tile });
      const place = {
        column: 3,
        padding: 1,
        constants: { ...tile, C_FOURS: 0 },
      };
      await check(trial, { m, n, k, b, ...place });
    }
  },
);

Deno.test("gemm refuses tiles that do not hold whole strips", () => {
  const strips = { ...gemm.constants, B_VIEW: "strip" };
  for (
    const [BK, B_DTYPE, least] of [
      [16, "q4_k", 32],
      [48, "q4_k", 32],
      [96, "q2_k", 64],
    ] as const
  ) {
    assertThrows(
      () => gemm.derive!({ ...strips, BK, B_DTYPE }, { k: 256 }),
      Error,
      `Cannot multiply by ${B_DTYPE} in tiles ${BK} deep: it must be 32 or a multiple of ${least}`,
    );
  }
});

gpuTest("gemm adds to c and applies SwiGLU", async (_, trial) => {
  const { random } = trial;
  const odd = SIZES.filter((size) => size % 2), constants = { TN: 8 };
  for (let i = 0; i < 12; i++) {
    const [m, n, k] = [0, 0, 0].map(() => random.pick(odd));
    await check(trial, { m, n, k, epilogue: "add" });
    await check(trial, { m, n: 2 * n, k, epilogue: "swiglu", constants });
    const whole = { m, n: 8 * n, k: 4 * k };
    await check(trial, { ...whole, epilogue: "add" });
    await check(trial, { ...whole, epilogue: "swiglu", constants });
  }
});

// If rows of c are whole vec4, the columns written must be too.
gpuTest(
  "gemm writes its columns of a wider c and nothing else",
  async (_, trial) => {
    for (const kind of ["store", "add", "swiglu"] as const) {
      const constants = { TN: kind === "swiglu" ? 8 : 4 };
      const shape = { m: 33, k: 20, epilogue: kind, constants };
      await check(trial, { ...shape, n: 40, column: 16, padding: 8 });
      await check(trial, { ...shape, n: 72, column: 64, padding: 0 });
      const padding = kind === "swiglu" ? 2 : 1;
      await check(trial, { ...shape, n: 38, column: 16, padding });
      await check(trial, { ...shape, n: 38, column: 3, padding: 1 });
    }
  },
);

gpuTest(
  "gemm refuses SwiGLU in tiles that cannot hold a gate and its pair",
  (_, trial) => {
    const operands = {
      a: trial.filled([9, 8], 0),
      b: trial.filled([8, 8], 0),
      c: trial.filled([9, 4], 0),
    };
    const uniforms = { stride: 4, column: 0 };
    const wrong: Constants[] = [{ TN: 4 }, { B_BY_COLUMN: 0 }];
    for (const constants of wrong) {
      assertThrows(
        () =>
          trial.run(gemm, operands, {
            constants: { ...SMALL, TN: 8, ...constants, EPILOGUE: "swiglu" },
            uniforms,
          }),
        Error,
        'Cannot gate (EPILOGUE "swiglu") with TN',
      );
    }
  },
);

gpuTest("gemm gives the same result with any tile", async (gpu, trial) => {
  const chosen = new Map<string, Constants>();
  for (const m of [9, 17, 33, 65, 300, 2048, 8192]) {
    for (const n of [8, 64, 1024, 6144, 151936]) {
      const shape = { m, n, k: 1024, format: bf16, norm: false };
      const choice = chooseLinear({ ...shape, swiglu: false }, gpu);
      const { BM, BN, BK, TM, TN } = choice.constants;
      const tile = { BM, BN, BK, TM, TN };
      if (choice.kernel === "gemm") chosen.set(JSON.stringify(tile), tile);
    }
  }
  const others: Constants[] = [
    { BM: 32, BN: 64, BK: 16, TM: 4, TN: 8 },
    { BM: 64, BN: 32, BK: 32, TM: 4, TN: 4 },
    { BM: 128, BN: 32, BK: 8, TM: 8, TN: 4 },
    { BM: 16, BN: 64, BK: 12, TM: 8, TN: 4 }, // too few threads to share fours
    // Tiles that are partly unrolled.
    { BM: 32, BN: 32, BK: 48, TM: 4, TN: 4 },
    { BM: 32, BN: 32, BK: 32, TM: 4, TN: 4, UNROLL: 8 },
  ];
  for (const constants of trial.some([...chosen.values(), ...others], 2)) {
    await check(trial, { m: 131, n: 140, k: 68, constants });
  }
  const tile = trial.random.pick([...chosen.values()]);
  await check(trial, {
    m: 65,
    n: 280,
    k: 36,
    epilogue: "swiglu",
    constants: tile,
  });
  const other = trial.random.pick(others);
  const shape = { m: 35, n: 131, k: 33, byColumn: false };
  await check(trial, { ...shape, constants: other });
});

gpuTest("gemm multiplies in f16 in any tile", async (gpu, trial) => {
  if (!gpu.f16) return;
  const { random } = trial;
  const tiles: Constants[] = [
    { BM: 32, BN: 32, BK: 8, TM: 4, TN: 4 },
    { BM: 32, BN: 64, BK: 16, TM: 8, TN: 8 },
    { BM: 16, BN: 64, BK: 32, TM: 8, TN: 8 }, // too few threads to share fours
    { BM: 128, BN: 64, BK: 16, TM: 8, TN: 4 },
    { BM: 64, BN: 32, BK: 32, TM: 4, TN: 8, UNROLL: 8 },
    { BM: 32, BN: 32, BK: 64, TM: 4, TN: 4 },
  ];
  for (const tile of trial.some(tiles, 1)) {
    const constants = { ...tile, F16: 1 };
    const tolerance = HALF_SUM * Math.max(1, Number(tile.BK) / 32);
    const base = { a: "f16", tolerance, constants } as const;
    const [m, n] = [random.pick(SIZES), random.pick(SIZES)];
    const k = 4 * random.pick(SIZES);
    const b = random.pick(["f32", "f16", "bf16"] as const);
    await check(trial, { ...base, m, n, k, b });
    // Whole tiles of k, and rows that end within one, read as they are.
    const whole = { ...base, b: "f16", constants: { ...constants, B_HALF: 1 } };
    await check(trial, { ...whole, m: 35, n: 131, k: 128 });
    await check(trial, { ...whole, m: 33, n: 68, k: 68 });
    if (tile.TN === 8) {
      await check(trial, { ...base, m: 35, n: 70, k, b, epilogue: "swiglu" });
    }
    if (Number(tile.BK) % 32 === 0) {
      await check(trial, {
        ...base,
        m: 9,
        n: 132,
        k: 256,
        b: random.pick(BLOCKS),
      });
    }
  }
});

gpuTest("gemm refuses rows of k in f16", (_, trial) => {
  const operands = {
    a: trial.filled([9, 8], 0, "f16"),
    b: trial.filled([8, 8], 0),
    c: trial.filled([9, 8], 0),
  };
  assertThrows(
    () =>
      trial.run(gemm, operands, {
        constants: { ...SMALL, F16: 1, B_BY_COLUMN: 0 },
        uniforms: { stride: 8, column: 0 },
      }),
    Error,
    "Cannot multiply in f16 with B_BY_COLUMN 0: it must be 1",
  );
});
