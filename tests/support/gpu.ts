/** Tests that need a GPU: one device per file, seeded inputs, poisoned outputs. */
import type { Dtype } from "../../lib/dtype.ts";
import type { CpuTensor } from "../../lib/cpu/tensor.ts";
import type { Matrix } from "../../lib/formats/matrix.ts";
import { openDevice } from "../../lib/open_device.ts";
import { Gpu } from "../../lib/webgpu/device.ts";
import type { Kernel, Operands } from "../../lib/webgpu/kernel.ts";
import { type AddOptions, Plan } from "../../lib/webgpu/plan.ts";
import { Tensor } from "../../lib/webgpu/tensor.ts";
import { Random } from "./reference.ts";

/** What GPU tests need instead of passing unrun, and where a failure's seed goes. */
const REQUIRE = "QWEN3_REQUIRE_GPU", SEED = "QWEN3_TEST_SEED";

const required = Deno.env.get(REQUIRE) === "1";
const available = await navigator.gpu?.requestAdapter() != null;
let opened: Promise<Gpu> | undefined;

/**
 * Registers a test that runs on the GPU. Where there is no adapter it counts as
 * ignored, or fails if the environment says QWEN3_REQUIRE_GPU=1. What the device
 * reports fails the test. A failure names the seed of its random inputs;
 * QWEN3_TEST_SEED repeats it.
 */
export function gpuTest(
  name: string,
  fn: (gpu: Gpu, trial: Trial) => void | Promise<void>,
): void {
  Deno.test({ name, ignore: !available && !required, fn: () => run(fn) });
}

async function run(fn: (gpu: Gpu, trial: Trial) => void | Promise<void>) {
  const seed = Number(
    Deno.env.get(SEED) ?? Math.floor(Math.random() * 2 ** 32),
  );
  const gpu = await (opened ??= openDevice());
  try {
    using trial = new Trial(gpu, new Random(seed));
    await fn(gpu, trial);
    await gpu.device.queue.onSubmittedWorkDone();
    gpu.check();
  } catch (error) {
    opened = undefined; // a device that reported an error goes on reporting it
    gpu[Symbol.dispose]();
    throw new Error(`with seed ${seed} (${SEED}=${seed} repeats it)`, {
      cause: error,
    });
  }
}

/** The tensors of one test, freed at its end. */
export class Trial implements Disposable {
  #tensors: Tensor[] = [];

  constructor(readonly gpu: Gpu, readonly random: Random) {}

  /** The values of `host` on the device. */
  upload({ dtype, shape, data }: CpuTensor): Tensor {
    return this.own(
      Tensor.create(this.gpu, dtype, shape, data as Float32Array<ArrayBuffer>),
    );
  }

  /** A copy of a matrix on the device. */
  uploadMatrix(matrix: Matrix<CpuTensor>): Matrix<Tensor> {
    const parts = matrix.parts.map((part) => ({
      ...part,
      planes: part.planes.map((plane) => this.upload(plane)),
    }));
    return { ...matrix, parts };
  }

  /** A tensor full of one value (NaN by default: it shows wherever it is read). */
  filled(shape: readonly number[], value = NaN, dtype: Dtype = "f32"): Tensor {
    return this.upload(this.random.filled(dtype, shape, value));
  }

  u32(...values: number[]): Tensor {
    const data = Uint32Array.from(values);
    return this.upload({ dtype: "u32", shape: [data.length], data });
  }

  own(tensor: Tensor): Tensor {
    this.#tensors.push(tensor);
    return tensor;
  }

  /** Runs one kernel once. */
  run(kernel: Kernel, operands: Operands, options: AddOptions = {}): void {
    using plan = new Plan(this.gpu);
    plan.add(kernel, operands, options);
    plan.run();
  }

  [Symbol.dispose](): void {
    for (const tensor of this.#tensors) tensor[Symbol.dispose]();
  }
}

/** Lanes of a sum as kernels take them: subgroups as this device has them, or none. */
export function lanes(gpu: Gpu, subgroups: boolean) {
  return subgroups && gpu.subgroupSize
    ? { SUBGROUPS: 1, LOG_LANES: Math.log2(gpu.subgroupSize) }
    : { SUBGROUPS: 0, LOG_LANES: 5 };
}

/** The same device, but a binding may have only so many bytes. */
export function withBinding(gpu: Gpu, bytes: number): Gpu {
  const limits = { maxStorageBufferBindingSize: bytes };
  const narrow = <T extends object>(target: T, own: object): T =>
    new Proxy(target, {
      get(target, name) {
        if (name in own) return Reflect.get(own, name);
        const value = Reflect.get(target, name, target);
        return typeof value === "function" ? value.bind(target) : value;
      },
    });
  const device = narrow(gpu.device, { limits: narrow(gpu.limits, limits) });
  return new Gpu(gpu.adapter, device, { ...gpu, choices: [] });
}
