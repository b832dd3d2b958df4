/** Helpers for tests that need a GPU: one device per file, seeded inputs, poisoned outputs. */
import type { CpuTensor } from "../../lib/formats/tensor.ts";
import type { Dtype } from "../../lib/dtype.ts";
import { type Matrix, withPlanes } from "../../lib/formats/matrix.ts";
import { openDevice } from "../../lib/device/open_device.ts";
import { isSoftware } from "../../lib/webgpu/adapter.ts";
import { Gpu } from "../../lib/webgpu/device.ts";
import { prepareEnvironment } from "../../lib/webgpu/environment.ts";
import type { Kernel, Operands } from "../../lib/webgpu/kernel.ts";
import { type AddOptions, Plan } from "../../lib/webgpu/plan.ts";
import { Tensor } from "../../lib/webgpu/tensor.ts";
import { QUICK } from "./quick.ts";
import { Random, registering, withSeeds } from "./random.ts";

/** If set to 1, GPU tests fail without an adapter instead of being skipped. */
const REQUIRE = "QWEN3_REQUIRE_GPU";

const required = Deno.env.get(REQUIRE) === "1";
/** The WebGPU implementation that GPU tests run on. */
const webgpu = Deno.env.get("QWEN3_TEST_WEBGPU") === "dawn"
  ? "dawn"
  : undefined;
prepareEnvironment();
const adapter = await navigator.gpu?.requestAdapter();
const available = webgpu !== undefined || adapter != null;
let opened: Promise<Gpu> | undefined;

/**
 * Registers a test that runs on the GPU. Without an adapter it is ignored, or fails if
 * QWEN3_REQUIRE_GPU=1. QWEN3_TEST_WEBGPU=dawn runs it through Dawn. An error that the device reports fails the test. Random inputs
 * are seeded as random.ts says.
 */
export function gpuTest(name: string, fn: GpuTest, quick = false): void {
  const ignore = QUICK && !quick || !available && !required;
  Deno.test({ name, ignore, fn: () => run(fn) });
}

/** Registers the test of a kernel that `deno task test --quick` runs too. */
export function quickGpuTest(name: string, fn: GpuTest): void {
  gpuTest(name, fn, true);
}

/**
 * Registers a test for the CPU and for the GPU. A software adapter takes each with a chance
 * of one in two.
 */
export function eachDevice(
  name: string,
  fn: (device: "cpu" | "gpu") => Promise<void>,
): void {
  Deno.test(`${name} (cpu)`, () => fn("cpu"));
  const isLeft = SOFTWARE && !ALL_CASES &&
    registering.pick([true, false]);
  if (!isLeft) gpuTest(`${name} (gpu)`, () => fn("gpu"));
}

/** The option of a model on `device` that chooses the implementation under test. */
export const testedOn = (device: "cpu" | "gpu"): { webgpu?: "dawn" } =>
  device === "gpu" ? { webgpu } : {};

/** Opens another device of the implementation under test, for a model to own. */
export const openTested = (): Promise<Gpu> => openDevice({ webgpu });

type GpuTest = (gpu: Gpu, trial: Trial) => void | Promise<void>;

async function run(fn: GpuTest) {
  await withSeeds(async (draw) => {
    const gpu = await (opened ??= openDevice({ webgpu }));
    try {
      using trial = new Trial(gpu, draw);
      await fn(gpu, trial);
      await gpu.device.queue.onSubmittedWorkDone();
      gpu.check();
    } catch (error) {
      opened = undefined; // a device that reported an error keeps reporting it
      gpu[Symbol.dispose]();
      throw error;
    }
  });
}

/** Whether tests try everything on a software adapter too (`deno task test --all-cases`). */
export const ALL_CASES = Deno.env.get("QWEN3_ALL_CASES") === "1";

/** Whether GPU tests run on a software adapter, which compiles each kernel for seconds. */
export const SOFTWARE = webgpu === undefined && adapter != null &&
  isSoftware(adapter.info);

/**
 * What to register tests for: on a software adapter `most` random elements of `all`, in
 * order. QWEN3_ALL_CASES=1 takes all of them.
 */
export const someOf = <T>(all: readonly T[], most: number): readonly T[] =>
  SOFTWARE ? pickSome(all, most, registering) : all;

/** Precisions that models are tested in. */
export const PRECISIONS = ["f32", "auto"] as const;
export type Precision = typeof PRECISIONS[number];

/**
 * The precisions that a model runs in on the GPU. A software adapter takes `most` random ones
 * of `names` in f32 and `most` others in auto, which differs there in the type of the cache.
 */
export function precisionsOnGpu(
  names: readonly string[],
  most: number,
): (name: string) => readonly Precision[] {
  const f32 = someOf(names, most);
  const others = names.filter((name) => !f32.includes(name));
  const auto = others.length ? someOf(others, most) : names;
  const chosen = { f32, auto };
  return (name) =>
    PRECISIONS.filter((precision) => chosen[precision].includes(name));
}

function pickSome<T>(
  all: readonly T[],
  most: number,
  random: Random,
): readonly T[] {
  if (ALL_CASES || most >= all.length) return all;
  const left = new Set(all.keys());
  while (left.size > most) left.delete(random.pick([...left]));
  return Array.from(left, (i) => all[i]);
}

/** The device, random numbers and tensors of one test; the tensors are freed at its end. */
export class Trial implements Disposable {
  #tensors: Tensor[] = [];

  constructor(readonly gpu: Gpu, readonly draw: () => Random) {}

  /** The random numbers of this test. */
  get random(): Random {
    return this.draw();
  }

  /** Copies a host tensor to the device. */
  upload({ dtype, shape, data }: CpuTensor): Tensor {
    return this.own(
      Tensor.create(this.gpu, dtype, shape, data as Float32Array<ArrayBuffer>),
    );
  }

  /** A copy of a matrix on the device. */
  uploadMatrix(matrix: Matrix<CpuTensor>): Matrix<Tensor> {
    return withPlanes(matrix, (plane) => this.upload(plane));
  }

  /** A tensor filled with one value; NaN, the default, spreads to whatever reads it. */
  filled(shape: readonly number[], value = NaN, dtype: Dtype = "f32"): Tensor {
    return this.upload(new Random().filled(dtype, shape, value)); // draws nothing
  }

  /**
   * On a software adapter, which compiles each kernel for seconds, `most` random elements of
   * `all`, in order. QWEN3_ALL_CASES=1 takes all of them.
   */
  some<T>(all: readonly T[], most: number): readonly T[] {
    return this.gpu.software ? pickSome(all, most, this.random) : all;
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

/** Constants for sums over lanes: with this device's subgroups, or without any. */
export function lanes(gpu: Gpu, subgroups: boolean) {
  return subgroups && gpu.subgroupSize
    ? { SUBGROUPS: 1, LOG_LANES: Math.log2(gpu.subgroupSize) }
    : { SUBGROUPS: 0, LOG_LANES: 5 };
}

/** A view of the device whose bindings hold at most `bytes` bytes. */
export const withBinding = (gpu: Gpu, bytes: number): Gpu =>
  withLimits(gpu, { maxStorageBufferBindingSize: bytes });

/** A view of the device with other limits. */
export function withLimits(gpu: Gpu, limits: Record<string, number>): Gpu {
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
