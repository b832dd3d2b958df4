import { assert, assertEquals } from "@std/assert";
import { CpuOps } from "../../lib/cpu/ops.ts";
import { FEW_ROWS } from "../../lib/dispatch/shapes.ts";
import { GpuOps } from "../../lib/gpu/ops.ts";
import type { Matrix } from "../../lib/formats/matrix.ts";
import {
  type CpuTensor,
  matrixToF32,
  toF32,
} from "../../lib/formats/tensor.ts";
import { Plan } from "../../lib/webgpu/plan.ts";
import type { Tensor } from "../../lib/webgpu/tensor.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import {
  mixtureConfig,
  MIXTURES,
  mixtureVerbs,
  randomMixture,
  runMixture,
} from "../support/experts.ts";
import { gpuTest, someOf } from "../support/gpu.ts";

const CLOSE = { absolute: 5e-5, relative: 5e-5 };
/** Where rows are rounded to integers of 15 bits, and where matmuls are in f16. */
const ROUNDED = { absolute: 1e-3, relative: 1e-3 };
const HALF = { absolute: 2e-2, relative: 2e-2 };

const largestOf = (matrix: Matrix<CpuTensor>): number =>
  matrixToF32(matrix).reduce((most, v) => Math.max(most, Math.abs(v)), 0);

for (const [name, mixture] of someOf(Object.entries(MIXTURES), 2)) {
  gpuTest(
    `a mixture of experts agrees with the CPU: ${name}`,
    async (gpu, trial) => {
      const { random } = trial, host = randomMixture(random, mixture);
      const { norm, router, gateUp, down } = host;
      if (mixture.most) assert(gateUp.parts.length > 1);
      const device = {
        norm: trial.uploadMatrix(norm),
        router: trial.uploadMatrix(router),
        gateUp: trial.uploadMatrix(gateUp),
        down: trial.uploadMatrix(down),
      };
      for (
        const [normalized, known, counts] of [
          [true, false, [1, 3, FEW_ROWS + 1, 90]],
          [false, false, [2]],
          [true, gpu.f16, [1, 90]],
        ] as const
      ) {
        const config = mixtureConfig(mixture, normalized);
        for (const w of ["gateUp", "down"] as const) {
          device[w].largest = known ? largestOf(host[w]) : undefined;
        }
        using cpu = new CpuOps(config, { simd: false });
        using ops = new GpuOps(gpu, config);
        for (const rows of counts) {
          const x = random.tensor("f32", [rows, mixture.hidden], 2);
          const onDevice = trial.upload(x);
          const results: Tensor[] = [], before: CpuTensor[] = [];
          const onCpu = mixtureVerbs(host);
          for (const [name, verb] of Object.entries(mixtureVerbs(device))) {
            using plan = ops.plan = new Plan(gpu);
            const result = verb(ops, onDevice, results);
            plan.run();
            const data = await result.read() as Float32Array<ArrayBuffer>;
            const expected = onCpu[name](cpu, x, before);
            const what = `${name}, ${rows} rows, largest known: ${known}`;
            const close = !(known && /gated|sum/.test(name))
              ? CLOSE
              : rows > FEW_ROWS
              ? HALF
              : ROUNDED;
            assertAllClose(data, toF32(expected), close, what);
            results.push(result);
            // The CPU goes on with the GPU's results: it might choose another expert.
            before.push({ dtype: "f32", shape: expected.shape, data });
          }
        }
      }
    },
  );
}

gpuTest(
  "a mixture of experts gives the same bits every time",
  async (gpu, trial) => {
    const mixture = MIXTURES.bf16, config = mixtureConfig(mixture);
    const host = randomMixture(trial.random, mixture);
    const device = {
      norm: trial.uploadMatrix(host.norm),
      router: trial.uploadMatrix(host.router),
      gateUp: trial.uploadMatrix(host.gateUp),
      down: trial.uploadMatrix(host.down),
    };
    const x = trial.random.tensor("f32", [70, mixture.hidden], 2);
    const run = async () => {
      using ops = new GpuOps(gpu, config);
      using plan = ops.plan = new Plan(gpu);
      const [, , , sum] = runMixture(ops, device, trial.upload(x));
      plan.run();
      return await sum.read();
    };
    const first = await run();
    for (let i = 0; i < 3; i++) assertEquals(await run(), first);
  },
);
