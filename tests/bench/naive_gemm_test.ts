import { naiveGemm } from "../../bench/naive_gemm.ts";
import { toF32 } from "../../lib/formats/tensor.ts";
import { linear, transpose } from "../../lib/check/reference.ts";
import { gpuTest } from "../support/gpu.ts";
import { assertSums } from "../support/reference.ts";

for (const [m, n, k] of [[1, 1, 1], [17, 33, 5], [16, 16, 64], [3, 50, 127]]) {
  gpuTest(
    `the baseline multiplies [${m}, ${k}] × [${k}, ${n}]`,
    async (_, trial) => {
      const a = trial.random.tensor("f32", [m, k]);
      const b = trial.random.tensor("f32", [k, n]);
      const c = trial.filled([m, n]);
      trial.run(naiveGemm, { a: trial.upload(a), b: trial.upload(b), c });
      const expected = linear(toF32(a), transpose(toF32(b), k, n), { m, n, k });
      assertSums(await c.read(), expected, "naiveGemm");
    },
  );
}
