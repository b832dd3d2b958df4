/**
 * Uploads weights to the GPU, and measures their largest values.
 *
 * @module
 */
import { maxAbs } from "../../kernels/max_abs.ts";
import { synthesize } from "../../kernels/synthesize.ts";
import { laneConstants } from "../dispatch/capabilities.ts";
import { bf16 } from "../formats/bf16.ts";
import { type Matrix, piecesOf } from "../formats/matrix.ts";
import type { Gpu } from "../webgpu/device.ts";
import { Plan } from "../webgpu/plan.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import { familyOf } from "../model/families.ts";
import { pairWeights, type Weights } from "../model/family.ts";
import { Tensor } from "../webgpu/tensor.ts";
import type { WeightStore } from "../model/weights.ts";

/**
 * Measures the largest absolute value of each weight whose table entry requests it, with
 * a single readback.
 */
export async function measureLargest(
  gpu: Gpu,
  config: Qwen3Config,
  weights: Weights<Matrix<Tensor>>,
): Promise<void> {
  const table = familyOf(config).weights(config);
  const matrices = [...pairWeights(weights, table)]
    .filter(([, { measured }]) => measured).map(([matrix]) => matrix);
  const size = matrices.length, zeros = new Uint32Array(size);
  using found = Tensor.create(gpu, "u32", [size], zeros, "largest");
  using plan = new Plan(gpu);
  matrices.forEach((matrix, at) => {
    for (const part of matrix.parts) {
      plan.add(maxAbs, { w: { matrix, part }, largest: found }, {
        constants: laneConstants(gpu),
        uniforms: { at },
      });
    }
  });
  plan.run();
  const bits = await gpu.readBuffer(found.buffer, 0, 4 * size);
  const values = new Float32Array(bits);
  matrices.forEach((matrix, at) => matrix.largest = values[at]);
}

/** A store in device memory; synthetic weights are computed there. */
export function gpuStore(gpu: Gpu): WeightStore<Tensor> {
  const { queue } = gpu.device;
  return {
    most: gpu.limits.maxStorageBufferBindingSize,
    allocate: (bytes, label) =>
      Tensor.create(gpu, "u32", [bytes / 4], undefined, label),
    write: (buffer, begin, bytes) => buffer.write(begin, bytes),
    synthesize(matrix, row, rows, { seed, scale, offset }) {
      const { k, parts } = matrix;
      const able = offset === 0 && k % 2 === 0 &&
        parts.every(({ format }) => format === bf16);
      if (!able) return false;
      using plan = new Plan(gpu);
      for (const piece of piecesOf(matrix, row, rows)) {
        plan.add(synthesize, { w: piece.part.planes[0] }, {
          uniforms: {
            seed,
            scale,
            source: (piece.row - row) * k / 2,
            to: piece.at * k / 2,
            words: piece.rows * k / 2,
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
