import { assertEquals } from "@std/assert";
import { maxAbs } from "../../kernels/max_abs.ts";
import { toF32 } from "../../lib/formats/tensor.ts";
import { gpuTest, lanes } from "../support/gpu.ts";

gpuTest(
  "maxAbs finds the largest absolute value anywhere",
  async (gpu, trial) => {
    const { random } = trial;
    for (const dtype of ["f32", "f16", "bf16"] as const) {
      for (const [n, k] of [[1, 1], [7, 5], [3, 80], [2000, 12], [2, 3001]]) {
        const w = random.tensor(dtype, [n, k]);
        const at = random.pick([0, n * k - 1, random.int(0, n * k - 1)]);
        w.data[at] = random.tensor(dtype, [1], 1, random.pick([3, -3])).data[0];
        const largest = trial.u32(0, 0, 7);
        trial.run(maxAbs, { w: trial.upload(w), largest }, {
          constants: lanes(gpu, random.pick([true, false])),
          uniforms: { at: 1 },
        });
        const bytes = await gpu.readBuffer(largest.buffer, 0, 12);
        const expected = Math.max(...toF32(w).map(Math.abs));
        const [before, , after] = new Uint32Array(bytes);
        const message = `${dtype} ${n} × ${k}`;
        assertEquals(new Float32Array(bytes)[1], expected, message);
        assertEquals([before, after], [0, 7]);
      }
    }
  },
);
