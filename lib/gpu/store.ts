/**
 * Uploads weights to the GPU, and measures their largest values.
 *
 * @module
 */
import { maxAbs } from "../../kernels/max_abs.ts";
import { quantize, QUANTIZED, SOURCES } from "../../kernels/quantize.ts";
import { synthesize } from "../../kernels/synthesize.ts";
import { laneConstants } from "../dispatch/capabilities.ts";
import { bf16 } from "../formats/bf16.ts";
import type { Format } from "../formats/format.ts";
import { type Matrix, piecesOf } from "../formats/matrix.ts";
import type { Gpu } from "../webgpu/device.ts";
import { Pace } from "../webgpu/pace.ts";
import { type Dispatch, Plan } from "../webgpu/plan.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import { familyOf } from "../model/families.ts";
import { pairWeights, type Weights } from "../model/family.ts";
import { Tensor } from "../webgpu/tensor.ts";
import { Staging } from "./staging.ts";
import type { StoredRows, WeightStore } from "../model/weights.ts";

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

/**
 * A store in device memory; synthetic weights are computed there.
 *
 * @param quantizes whether to quantise there, by default if that is not the CPU again: a
 * device takes milliseconds for what the CPU's threads take seconds for, but is sent the
 * unquantised weights
 */
export function gpuStore(
  gpu: Gpu,
  upload: Staging = new Staging(gpu),
  quantizes: boolean = !gpu.software,
): WeightStore<Tensor> & Disposable {
  const { queue } = gpu.device;
  const quantizer = quantizes ? new Quantizer(gpu, upload) : undefined;
  const pace = new Pace(gpu, READ[gpu.software ? "software" : "hardware"]);
  return {
    upload,
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
    quantizes: (from, to) => quantizer?.can(from, to) ?? false,
    quantize: async (...given) => await quantizer!.run(...given),
    end: async () => await quantizer?.end(),
    async settle() {
      await upload.flush();
      queue.submit([]);
      await queue.onSubmittedWorkDone();
      gpu.check();
    },
    [Symbol.dispose]() {
      upload[Symbol.dispose]();
      quantizer?.[Symbol.dispose]();
    },
  };
}

/** Elements of the blocks that are quantised here. */
const BLOCK = 32;
/** Bytes that are sent before the last ones are waited for; see staging.ts. */
const UNSETTLED = 1 << 23;

/** Quantises rows on the device. */
class Quantizer implements Disposable {
  /** Takes the rows; the queue orders its writes and their uses. */
  #stored?: Tensor;
  #flags?: Tensor;
  #unsettled = 0;
  readonly #labels: string[] = [];

  constructor(readonly gpu: Gpu, readonly upload: Staging) {}

  can(from: Format, to: Format): boolean {
    return to.name in QUANTIZED && SOURCES.some((name) => name === from.name);
  }

  async run(
    { piece: { part, at }, k }: StoredRows<Tensor>,
    from: Format,
    stored: Uint8Array<ArrayBuffer>,
    label: string,
  ): Promise<void> {
    const { gpu } = this, { format, planes: [quants, scales] } = part;
    if (this.#stored === undefined || this.#stored.bytes < stored.length) {
      this.#stored?.[Symbol.dispose]();
      const words = Math.ceil(stored.length / 4), name = "stored rows";
      this.#stored = Tensor.create(gpu, "u32", [words], undefined, name);
    }
    this.#stored.write(0, stored);
    const flags = this.#flags ??= Tensor.create(gpu, "u32", [1]);
    if (this.#labels.at(-1) !== label) this.#labels.push(label);
    using plan = new Plan(gpu);
    plan.add(quantize, { x: this.#stored, quants, scales, flags }, {
      constants: {
        SOURCE: SOURCES.findIndex((name) => name === from.name),
        BITS: QUANTIZED[format.name],
      },
      uniforms: {
        blocks: stored.length / from.bytes / BLOCK,
        to: at * k / BLOCK,
        mark: this.#labels.length,
      },
    });
    plan.run();
    this.#unsettled += stored.length;
    if (this.#unsettled < UNSETTLED) return;
    this.#unsettled = 0;
    await this.upload.flush();
  }

  /** @throws {Error} if a value was not finite */
  async end(): Promise<void> {
    if (this.#flags === undefined) return;
    const bytes = await this.gpu.readBuffer(this.#flags.buffer, 0, 4);
    const [mark] = new Uint32Array(bytes);
    if (mark === 0) return;
    throw new Error(
      `Cannot quantise ${
        this.#labels[mark - 1]
      }: it has values that are infinite or no numbers, must have finite ones`,
    );
  }

  [Symbol.dispose](): void {
    this.#stored?.[Symbol.dispose]();
    this.#flags?.[Symbol.dispose]();
  }
}
