/**
 * Weights on the GPU: how they get there, and what is measured of them.
 *
 * @module
 */
import { maxAbs } from "../../kernels/max_abs.ts";
import { synthesize } from "../../kernels/synthesize.ts";
import { laneConstants } from "../dispatch/capabilities.ts";
import type { Gpu } from "../webgpu/device.ts";
import { Plan } from "../webgpu/plan.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import { familyOf } from "../model/families.ts";
import { pairWeights, type Weights } from "../model/family.ts";
import { Tensor } from "../webgpu/tensor.ts";
import type { WeightStore } from "../model/weights.ts";

/** Measures the largest absolute value of each weight whose table entry asks for it, with one readback. */
export async function measureLargest(
  gpu: Gpu,
  config: Qwen3Config,
  weights: Weights<Tensor>,
): Promise<void> {
  const table = familyOf(config).weights(config);
  const tensors = [...pairWeights(weights, table)]
    .filter(([, { measured }]) => measured).map(([tensor]) => tensor);
  const size = tensors.length;
  using found = Tensor.create(
    gpu,
    "u32",
    [size],
    new Uint32Array(size),
    "largest",
  );
  using plan = new Plan(gpu);
  tensors.forEach((tensor, at) => {
    for (const part of tensor.parts) {
      const w = tensor.shape.length === 1
        ? tensor.view(1, tensor.shape[0])
        : { tensor, part };
      plan.add(maxAbs, { w, largest: found }, {
        constants: laneConstants(gpu),
        uniforms: { at },
      });
    }
  });
  plan.run();
  const bits = await gpu.readBuffer(found.part.buffer, 0, 4 * size);
  const values = new Float32Array(bits);
  tensors.forEach((tensor, at) => tensor.largest = values[at]);
}

/** Puts weights into device memory; synthetic ones are made there. */
export function gpuStore(gpu: Gpu): WeightStore<Tensor> {
  const { queue } = gpu.device;
  return {
    allocate: (dtype, shape, label, split) =>
      Tensor.create(gpu, dtype, shape, undefined, label, split),
    write: (tensor, begin, bytes) => tensor.write(begin, bytes),
    synthesize(tensor, row, rows, { seed, scale, offset }) {
      const columns = tensor.shape[1];
      if (offset !== 0 || columns === undefined || columns % 2) return false;
      using plan = new Plan(gpu);
      for (const run of tensor.runs) {
        const begin = Math.max(row, run.begin);
        const end = Math.min(row + rows, run.begin + run.rows);
        if (begin >= end) continue;
        const words = (rows: number) => rows * columns / 2;
        const rowsBefore = run.offset / (2 * columns);
        const part = { ...run, offset: 0, rows: rowsBefore + run.rows };
        plan.add(synthesize, { w: { tensor, part } }, {
          uniforms: {
            seed,
            scale,
            source: words(begin - row),
            to: run.offset / 4 + words(begin - run.begin),
            words: words(end - begin),
          },
        });
      }
      plan.run();
      return true;
    },
    async settle() {
      queue.submit([]);
      await queue.onSubmittedWorkDone();
      gpu.check();
    },
  };
}
