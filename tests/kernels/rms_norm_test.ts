import { rmsNorm } from "../../kernels/rms_norm.ts";
import { toF32 } from "../../lib/formats/tensor.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, lanes } from "../support/gpu.ts";
import { rmsNormed } from "../support/reference.ts";

gpuTest(
  "rmsNorm norms rows of any length and magnitude",
  async (gpu, trial) => {
    const { random } = trial, eps = 1e-6;
    const dtypes = ["f32", "f16", "bf16"] as const;
    for (const k of [1, 2, 3, 4, 7, 80, 511, 513, 1024, 3000]) {
      for (const scale of [1e-12, 1e-3, 1, 1e4, 1e15]) {
        const m = random.pick([1, 2, 5]);
        const x = random.tensor("f32", [m, k], scale);
        const norm = random.tensor(random.pick(dtypes), [k], 0.5, 1);
        const y = trial.filled([m, k]);
        trial.run(
          rmsNorm,
          { x: trial.upload(x), norm: trial.upload(norm), y },
          {
            constants: lanes(gpu, random.pick([true, false])),
            uniforms: { eps },
          },
        );
        const expected = rmsNormed(toF32(x), toF32(norm), eps);
        assertAllClose(
          await y.read(),
          expected,
          { relative: 3e-6 },
          `${m} × ${k} of ${norm.dtype}, scale ${scale}`,
        );
      }
    }
  },
);

gpuTest(
  "rmsNorm takes 16-bit rows, more than one dimension of a grid holds",
  async (gpu, trial) => {
    const { random } = trial;
    for (const dtype of ["f16", "bf16"] as const) {
      const x = random.tensor(dtype, [3, 30]);
      const norm = random.tensor(dtype, [30]), y = trial.filled([3, 30]);
      trial.run(rmsNorm, { x: trial.upload(x), norm: trial.upload(norm), y }, {
        constants: { ...lanes(gpu, true), WORKGROUP: 32 },
        uniforms: { eps: 0.5 },
      });
      const expected = rmsNormed(toF32(x), toF32(norm), 0.5);
      assertAllClose(await y.read(), expected, { relative: 3e-6 }, dtype);
    }
    const x = random.tensor("f32", [70001, 2]), y = trial.filled([70001, 2]);
    const norm = random.tensor("f32", [2]);
    trial.run(rmsNorm, { x: trial.upload(x), norm: trial.upload(norm), y }, {
      constants: { ...lanes(gpu, true), WORKGROUP: 32 },
      uniforms: { eps: 1e-6 },
    });
    const expected = rmsNormed(toF32(x), toF32(norm), 1e-6);
    assertAllClose(await y.read(), expected, { relative: 3e-6 });
  },
);
