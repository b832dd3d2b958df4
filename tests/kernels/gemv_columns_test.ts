import { gemvColumns } from "../../kernels/gemv_columns.ts";
import { toF32 } from "../../lib/formats/tensor.ts";
import { gpuTest } from "../support/gpu.ts";
import { assertSums, linear, transpose } from "../support/reference.ts";

gpuTest(
  "gemvColumns multiplies one to eight rows by matrices of any size",
  async (_, trial) => {
    const { random } = trial, sizes = [1, 3, 4, 8, 31, 128, 129, 1000];
    for (const m of trial.some([1, 2, 3, 4, 5, 6, 7, 8], 4)) {
      for (const b of ["f32", "f16", "bf16"] as const) {
        if (m > 2 && b !== random.pick(["f32", "f16", "bf16"])) continue;
        for (let i = 0; i < 4; i++) {
          const [n, k] = [random.pick(sizes), random.pick(sizes)];
          const x = random.tensor("f32", [m, k]), w = random.tensor(b, [k, n]);
          const y = trial.filled([m, n]);
          const operands = { x: trial.upload(x), b: trial.upload(w), y };
          trial.run(gemvColumns, operands, { constants: { M: m } });
          const columns = transpose(toF32(w), k, n);
          const expected = linear(toF32(x), columns, { m, n, k });
          assertSums(await y.read(), expected, `${m} × ${k} × ${n}, ${b}`);
        }
      }
    }
  },
);
