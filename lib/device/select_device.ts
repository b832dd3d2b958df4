/**
 * Selects the device a model runs on: a GPU or the CPU, with the reason.
 *
 * @module
 */
import { matrixOf } from "../formats/matrix.ts";
import { bf16 } from "../formats/bf16.ts";
import { Tensor } from "../webgpu/tensor.ts";
import { gemv } from "../../kernels/gemv.ts";
import { chooseLinear } from "../dispatch/linear.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import { errorText, NoAdapterError } from "../errors.ts";
import type { Choice } from "../dispatch/choice.ts";
import {
  chooseDevice,
  type DeviceKind,
  type ReadRates,
} from "../dispatch/device.ts";
import { Rests } from "../dispatch/rests.ts";
import { openDevice } from "./open_device.ts";
import type { Gpu } from "../webgpu/device.ts";
import { type DeviceOptions, deviceOptions } from "../webgpu/implementation.ts";
import { CpuOps } from "../cpu/ops.ts";
import { Plan } from "../webgpu/plan.ts";

/** The selected device; the CPU if `gpu` is undefined. */
export interface Selection {
  gpu?: Gpu;
  choice: Choice;
}

/** Options of {@linkcode selectDevice}. */
export interface SelectOptions extends DeviceOptions {
  /** Threads of the CPU path, which a software adapter is compared with. */
  threads?: number;
  signal?: AbortSignal;
}

/**
 * Selects a device. `auto` takes a hardware GPU; if there is only a software adapter,
 * it measures whether that or the CPU path reads weights faster, and takes the CPU if that
 * fails.
 *
 * @throws {NoAdapterError} if `gpu` is requested and there is no adapter.
 * @throws the reason of `signal` if it is aborted.
 */
export async function selectDevice(
  kind: DeviceKind,
  config: Qwen3Config,
  options: SelectOptions = {},
): Promise<Selection> {
  const cpu = (reason: string): Selection => ({
    choice: { what: "device", value: "cpu", reason },
  });
  if (kind === "cpu") return cpu("it was asked for");
  let gpu: Gpu;
  try {
    gpu = await openDevice(deviceOptions(options));
  } catch (error) {
    if (kind === "gpu" || !(error instanceof NoAdapterError)) throw error;
    // What is; what to do about it is for those who asked for a GPU.
    const [what] = error.message.replace("Cannot open a GPU: ", "").split("; ");
    return cpu(what);
  }
  const { threads, signal } = options;
  using unused = new DisposableStack();
  unused.use(gpu);
  signal?.throwIfAborted();
  const decided = chooseDevice(kind, gpu) ??
    chooseDevice(kind, gpu, await measureRates(gpu, config, signal, threads))!;
  if (!decided.gpu) return { choice: decided.choice };
  unused.move();
  return { gpu, choice: decided.choice };
}

/** Matmuls per measurement. */
const ROUNDS = 8;
/** How late a readback settles in Deno. */
const LATE_MS = 10;

/**
 * Bytes of weights that are enough to measure: more than a cache holds, and few enough
 * to block the thread only for a moment. Not measured.
 */
const MOST_BYTES = 2 ** 25;

/**
 * Measures how fast each side reads rows of a layer's widest weight in a decode step. A
 * failure is also a result: it must not prevent loading.
 */
export async function measureRates(
  gpu: Gpu,
  config: Qwen3Config,
  signal?: AbortSignal,
  threads?: number,
): Promise<ReadRates | { failure: string }> {
  const { hiddenSize: k, intermediateSize } = config;
  const { maxStorageBufferBindingSize, maxBufferSize } = gpu.limits;
  const bytes = Math.min(
    MOST_BYTES,
    maxStorageBufferBindingSize,
    maxBufferSize,
  );
  const rows = Math.max(1, Math.floor(bytes / (2 * k)));
  const n = Math.min(intermediateSize, rows);
  try {
    const onGpu = await gpuRate(gpu, n, k, signal);
    return {
      k,
      n,
      gpu: onGpu,
      cpu: await cpuRate(config, n, k, signal, threads),
    };
  } catch (error) {
    signal?.throwIfAborted();
    return { failure: errorText(error) };
  }
}

/** GB/s on the GPU, with bf16 weights. */
async function gpuRate(
  gpu: Gpu,
  n: number,
  k: number,
  signal?: AbortSignal,
): Promise<number> {
  using w = Tensor.create(gpu, "bf16", [n, k]);
  using x = Tensor.create(gpu, "f32", [1, k]);
  using y = Tensor.create(gpu, "f32", [1, n]);
  using plan = new Plan(gpu);
  const shape = { m: 1, n, k, norm: false, swiglu: false };
  const { constants } = chooseLinear({ ...shape, format: bf16 }, gpu);
  for (let i = 0; i < ROUNDS; i++) {
    plan.add(gemv, { w, x, y }, {
      constants,
      uniforms: { stride: n, column: 0, eps: 0 },
    });
  }
  plan.run();
  await y.read();
  let ms = Infinity;
  for (let i = 0; i < 2; i++) {
    const began = performance.now();
    plan.run();
    await y.read(); // lets the event loop turn
    signal?.throwIfAborted();
    const late = gpu.implementation === "deno" ? LATE_MS : 0;
    const took = performance.now() - began - late;
    ms = Math.min(ms, Math.max(0.1, took));
  }
  gpu.check();
  return ROUNDS * n * k * 2 / ms / 1e6;
}

/** The least time that is measured: browsers' clocks have steps of up to 1 ms. */
const LEAST_MS = 4;

/**
 * GB/s on the CPU path: the best of several tries, because another program may use a
 * core.
 */
async function cpuRate(
  config: Qwen3Config,
  n: number,
  k: number,
  signal?: AbortSignal,
  threads?: number,
): Promise<number> {
  using ops = new CpuOps(config, { threads });
  const w = matrixOf(ops.tensor("bf16", [n, k]));
  const x = ops.tensor("f32", [1, k]), y = ops.tensor("f32", [1, n]);
  const rests = new Rests();
  let ms = Infinity;
  for (let i = 0; i < 2 * ROUNDS; i++) {
    await rests.rest(signal);
    const began = performance.now();
    let done = 0, took = 0;
    while (took < LEAST_MS) {
      ops.matmulAdd(x, w, y);
      done++;
      took = performance.now() - began;
    }
    ms = Math.min(ms, took / done);
  }
  return n * k * 2 / ms / 1e6;
}
