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
import { Pace } from "../webgpu/pace.ts";
import { type Dispatch, Plan } from "../webgpu/plan.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import { familyOf } from "../model/families.ts";
import { pairWeights, type Weights } from "../model/family.ts";
import { Tensor } from "../webgpu/tensor.ts";
import type { WeightStore } from "../model/weights.ts";

/**
 * Weights that the device reads per millisecond, until that is measured. Too low a guess
 * costs a wait; llvmpipe on two cores reads 2 to 4 million.
 */
const READ = { hardware: 1e8, software: 2e6 };
/** Weights that one dispatch synthesizes: about 0.1 s on llvmpipe. */
const SYNTHESIZED = 1 << 24;

/**
 * Measures the largest absolute value of each weight whose table entry requests it, and of
 * those whose quants can multiply as integers, with a single readback.
 */
export async function measureLargest(
  gpu: Gpu,
  config: Qwen3Config,
  weights: Weights<Matrix<Tensor>>,
  signal?: AbortSignal,
): Promise<void> {
  const table = familyOf(config).weights(config);
  const matrices = [...pairWeights(weights, table)]
    .filter(([{ parts }, { measured }]) =>
      measured || parts.some(({ format }) => format.integers)
    ).map(([matrix]) => matrix);
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
  const pace = new Pace(gpu, READ[gpu.software ? "software" : "hardware"]);
  const elements = ({ dims: { n, k } }: Dispatch) => n * k;
  await pace.run(plan, { length: 0 }, elements, signal);
  const bits = await gpu.readBuffer(found.buffer, 0, 4 * size);
  const values = new Float32Array(bits);
  matrices.forEach((matrix, at) => matrix.largest = values[at]);
}

/** A store in device memory; synthetic weights are computed there. */
export function gpuStore(gpu: Gpu): WeightStore<Tensor> {
  const { queue } = gpu.device;
  const pace = new Pace(gpu, READ[gpu.software ? "software" : "hardware"]);
  return {
    most: gpu.limits.maxStorageBufferBindingSize,
    allocate: (bytes, label) =>
      Tensor.create(gpu, "u32", [bytes / 4], undefined, label),
    write: (buffer, begin, bytes) => buffer.write(begin, bytes),
    async synthesize(matrix, row, rows, rule, signal) {
      const { seed, scale, offset } = rule;
      const { k, parts } = matrix;
      const able = offset === 0 && k % 2 === 0 &&
        parts.every(({ format }) => format === bf16);
      if (!able) return false;
      using plan = new Plan(gpu);
      const step = Math.ceil(SYNTHESIZED / k);
      for (let from = row; from < row + rows; from += step) {
        const count = Math.min(step, row + rows - from);
        for (const piece of piecesOf(matrix, from, count)) {
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
      }
      plan.seal();
      // A weight takes about as long as reading eight.
      const each = 8 * rows * k / plan.dispatches.length;
      await pace.run(plan, { length: 0 }, () => each, signal);
      return true;
    },
    async settle() {
      queue.submit([]);
      await queue.onSubmittedWorkDone();
      gpu.check();
    },
  };
}
