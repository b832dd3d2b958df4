import { batchedGemm } from "../../kernels/batched_gemm.ts";
import type { Dtype } from "../../lib/dtype.ts";
import { toF32 } from "../../lib/formats/tensor.ts";
import { gpuTest, type Trial } from "../support/gpu.ts";
import { assertSums, linear, transpose } from "../support/reference.ts";

interface Case {
  batch: number;
  heads: number;
  kvHeads?: number;
  m: number;
  n: number;
  k: number;
  b?: Dtype;
  /** Whether b is `[.., n, k]`, not `[.., k, n]`. */
  byColumn?: boolean;
}

async function check(trial: Trial, given: Case): Promise<void> {
  const { batch, heads, kvHeads = heads, m, n, k, b = "f32" } = given;
  const { byColumn = false } = given, { random } = trial;
  const left = random.tensor("f32", [batch, heads, m, k]);
  const right = random.tensor(b, [
    batch,
    kvHeads,
    ...(byColumn ? [n, k] : [k, n]),
  ]);
  const c = trial.filled([batch, heads, m, n]);
  trial.run(batchedGemm, {
    a: trial.upload(left),
    b: trial.upload(right),
    c,
  }, {
    constants: {
      BM: 32,
      BN: 32,
      BK: 8,
      TM: 4,
      TN: 4,
      B_BY_COLUMN: byColumn ? 1 : 0,
    },
    uniforms: { stride: n, column: 0 },
  });
  const actual = await c.read(), x = toF32(left), w = toF32(right);
  for (let z = 0; z < batch * heads; z++) {
    const head = Math.floor(z / heads) * kvHeads +
      Math.floor(z % heads / (heads / kvHeads));
    const columns = w.subarray(head * k * n, (head + 1) * k * n);
    const expected = linear(
      x.subarray(z * m * k, (z + 1) * m * k),
      byColumn ? columns : transpose(columns, k, n),
      { m, n, k },
    );
    assertSums(
      actual.subarray(z * m * n, (z + 1) * m * n),
      expected,
      `${JSON.stringify(given)}, matrix ${z}`,
    );
  }
}

gpuTest(
  "batchedGemm multiplies scores and values of attention",
  async (_, trial) => {
    await check(trial, { batch: 1, heads: 16, m: 5, k: 128, n: 5 });
    await check(trial, { batch: 1, heads: 16, m: 5, k: 5, n: 128 });
    await check(trial, {
      batch: 1,
      heads: 16,
      m: 1,
      k: 128,
      n: 77,
      byColumn: true,
    });
  },
);

gpuTest(
  "batchedGemm shares heads of b among groups of heads, in every batch",
  async (_, trial) => {
    for (const byColumn of [false, true]) {
      for (const b of ["f32", "f16"] as const) {
        const shape = { m: 7, n: 10, k: 12, b, byColumn };
        await check(trial, { batch: 1, heads: 6, kvHeads: 1, ...shape });
        await check(trial, { batch: 2, heads: 16, kvHeads: 8, ...shape });
        await check(trial, { batch: 2, heads: 3, ...shape });
      }
    }
  },
);

gpuTest("batchedGemm multiplies matrices of any size", async (_, trial) => {
  const { random } = trial, sizes = [1, 3, 5, 8, 16, 17, 33, 64, 65];
  for (let i = 0; i < 20; i++) {
    const [m, n, k] = [0, 0, 0].map(() => random.pick(sizes));
    await check(trial, { batch: 2, heads: 2, kvHeads: 1, m, n, k });
  }
});
