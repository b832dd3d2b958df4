/**
 * Where a model runs, and why.
 *
 * @module
 */
import { bf16 } from "./formats/bf16.ts";
import { matrixOf } from "./formats/matrix.ts";
import { Tensor } from "./webgpu/tensor.ts";
import { gemv } from "../kernels/gemv.ts";
import { chooseLinear } from "./dispatch/linear.ts";
import type { Qwen3Config } from "./checkpoint/config.ts";
import { NoAdapterError } from "./errors.ts";
import type { Choice } from "./dispatch/choice.ts";
import { openDevice } from "./open_device.ts";
import type { Gpu } from "./webgpu/device.ts";
import { CpuOps } from "./cpu/ops.ts";
import { Plan } from "./webgpu/plan.ts";

/** `auto` decides, `gpu` insists on an adapter (software too), `cpu` asks for none. */
export type DeviceKind = "auto" | "gpu" | "cpu";

/** The device that was selected: a GPU, or the CPU where `gpu` is undefined. */
export interface Selection {
  gpu?: Gpu;
  choice: Choice;
}

/**
 * Selects a device. `auto` takes a hardware GPU; where there is only a software
 * adapter, whichever of it and the CPU path reads weights faster, measured.
 *
 * @throws {NoAdapterError} if `gpu` is asked for and there is no adapter.
 */
export async function selectDevice(
  kind: DeviceKind,
  config: Qwen3Config,
  implementation?: GPU,
): Promise<Selection> {
  const what = "device";
  if (kind === "cpu") {
    return { choice: { what, value: "cpu", reason: "it was asked for" } };
  }
  let gpu: Gpu;
  try {
    gpu = await openDevice({ gpu: implementation });
  } catch (error) {
    if (kind === "gpu" || !(error instanceof NoAdapterError)) throw error;
    const reason = error.message.replace("Cannot open a GPU: ", "");
    return { choice: { what, value: "cpu", reason } };
  }
  const value = `gpu: ${gpu.name}`;
  if (kind === "gpu") {
    const software = gpu.software ? ", a software renderer" : "";
    return {
      gpu,
      choice: { what, value, reason: `it was asked for${software}` },
    };
  }
  if (!gpu.software) {
    return { gpu, choice: { what, value, reason: "a hardware GPU is here" } };
  }
  const { hiddenSize: k, intermediateSize: n } = config;
  const onGpu = await softwareRate(gpu, n, k), onCpu = cpuRate(config, n, k);
  const rates = `a [1, ${k}] × [${k}, ${n}] product reads ${
    onCpu.toFixed(2)
  } GB/s on the CPU path, ${onGpu.toFixed(2)} GB/s on ${gpu.name}`;
  if (onGpu > onCpu) {
    return {
      gpu,
      choice: {
        what,
        value,
        reason: `only a software adapter is here; ${rates}`,
      },
    };
  }
  gpu[Symbol.dispose]();
  return {
    choice: {
      what,
      value: "cpu",
      reason: `only a software adapter is here; ${rates}`,
    },
  };
}

const ROUNDS = 8;

/** GB/s at which matmuls of a decode step read bf16 weights on an adapter. */
async function softwareRate(gpu: Gpu, n: number, k: number): Promise<number> {
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
    // Deno settles the read 10 ms late.
    await y.read();
    ms = Math.min(ms, Math.max(0.1, performance.now() - began - 10));
  }
  return ROUNDS * n * k * 2 / ms / 1e6;
}

/** GB/s on the CPU path: the best matmul, as another program may take a core meanwhile. */
function cpuRate(config: Qwen3Config, n: number, k: number): number {
  using ops = new CpuOps(config);
  const w = matrixOf(ops.tensor("bf16", [n, k]));
  const x = ops.tensor("f32", [1, k]), y = ops.tensor("f32", [1, n]);
  let ms = Infinity;
  for (let i = 0; i < 2 * ROUNDS; i++) {
    const began = performance.now();
    ops.matmulAdd(x, w, y);
    ms = Math.min(ms, Math.max(0.001, performance.now() - began));
  }
  return n * k * 2 / ms / 1e6;
}
