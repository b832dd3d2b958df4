/**
 * Records what a device would run, without the device: tensors have only shapes, and
 * calls are kept instead of compiled, so constants and reasons are those of a real run.
 *
 * @module
 */
import type { LibraryKernel } from "../../kernels/define.ts";
import { findKernel } from "../../kernels/list.ts";
import { reference } from "../check/kernel_case.ts";
import { Random } from "../check/reference.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import type { Capabilities } from "../dispatch/capabilities.ts";
import {
  cacheRefusal,
  type CacheRequest,
  chooseCacheDtype,
  chooseMatmulDtype,
} from "../dispatch/precision.ts";
import { chooseSampling } from "../dispatch/sampling.ts";
import { wrongOption } from "../errors.ts";
import { bf16 } from "../formats/bf16.ts";
import { f32 } from "../formats/f32.ts";
import type { Format } from "../formats/format.ts";
import { allocateMatrix, type Matrix, withPlanes } from "../formats/matrix.ts";
import type { CpuTensor } from "../formats/tensor.ts";
import { GpuKvCache } from "../gpu/kv_cache.ts";
import { GpuOps } from "../gpu/ops.ts";
import { addSampling, sampledRow, SamplerState } from "../gpu/sample.ts";
import { gpuStore } from "../gpu/store.ts";
import { familyOf } from "../model/families.ts";
import {
  finish,
  mapWeights,
  stackedShape,
  type Weights,
} from "../model/family.ts";
import { resolveSampling, type SamplingOptions } from "../model/sampling.ts";
import type { Gpu } from "../webgpu/device.ts";
import type { Kernel, Operands } from "../webgpu/kernel.ts";
import { type AddOptions, Plan } from "../webgpu/plan.ts";
import { Tensor } from "../webgpu/tensor.ts";

/** The properties of a device that choices depend on; a `Gpu` has them. */
export type Sketched = Capabilities & Pick<Gpu, "name" | "f16" | "software">;

/** A call of a kernel. */
export interface Call {
  kernel: LibraryKernel;
  operands: Operands;
  options: AddOptions;
}

/** Keeps the calls of a plan instead of compiling them. */
class CallPlan extends Plan {
  readonly calls: Call[] = [];

  override add(kernel: Kernel, operands: Operands, options: AddOptions = {}) {
    const known = findKernel(kernel.name)!; // passes run kernels of the list only
    const { literal } = this;
    this.calls.push({
      kernel: known,
      operands,
      options: { literal, ...options },
    });
  }
}

/** A device without memory: its tensors have only shapes. */
function sketch(device: Sketched): Gpu {
  const { name, f16, software, subgroupSize, adapterClass, vulkan } = device;
  const { compiler = "naga", limits, tuned = new Map() } = device;
  const { subgroupMatrices } = device;
  return {
    name,
    f16,
    software,
    subgroupSize,
    subgroupMatrices,
    adapterClass,
    compiler,
    vulkan,
    tuned,
    limits: {
      maxComputeWorkgroupStorageSize: limits.maxComputeWorkgroupStorageSize,
      maxComputeInvocationsPerWorkgroup:
        limits.maxComputeInvocationsPerWorkgroup,
      maxComputeWorkgroupSizeX: limits.maxComputeWorkgroupSizeX,
      maxStorageBuffersPerShaderStage: limits.maxStorageBuffersPerShaderStage,
      maxStorageBufferBindingSize: Infinity,
    },
    requireLive() {},
    buffer: () => ({ destroy() {} }),
    device: { queue: { writeBuffer() {} } },
  } as unknown as Gpu;
}

/** A forward pass of a model. */
export interface SketchedPass {
  config: Qwen3Config;
  /** Tokens of each sequence. */
  tokens: number;
  /** 1 by default. */
  sequences?: number;
  /** Positions per page, if the cache has pages. */
  page?: number;
  /** Whether the states after the last tokens are computed, instead of logits. */
  states?: boolean;
  /** How the weights are stored; bf16 by default. */
  format?: Format;
  /** How keys and values are cached; as a GPU would by default. */
  kv?: CacheRequest;
  /** Positions that the cache has, at least; 4096 by default. */
  context?: number;
}

/** Samples tokens in every way that takes other dispatches. */
const WAYS: readonly SamplingOptions[] = [
  { temperature: 0 },
  { temperature: 1, topK: 20, topP: 0.95 },
  { temperature: 1, topK: 0, topP: 0.95 },
  { temperature: 0, presencePenalty: 1, logprobs: 20 },
];

/** Weights of a layer, as allocated on a device. */
function sketchWeights(
  device: Sketched,
  gpu: Gpu,
  { config, format = bf16 }: SketchedPass,
): Weights<Matrix<Tensor>> {
  const halfMatmuls = chooseMatmulDtype(device).dtype === "f16";
  const store = gpuStore(gpu);
  return mapWeights(familyOf(config).weights(config), (spec) => {
    const { label, kind, measured, split, exact } = spec;
    const shape = stackedShape(spec);
    const [rows, k] = shape.length > 1 ? shape : [1, ...shape];
    // Files of quantised weights have norms and routers in f32.
    const plain = format.elements > 1 &&
      (kind === "norm" || kind === "router");
    const stack = [{ rows, format: plain ? f32 : format }];
    const options = { pairs: split === "pairs", exact };
    const matrix = allocateMatrix(label, stack, k, options, store.allocate);
    // A typical magnitude, since measuring it takes a device.
    if (halfMatmuls && (measured || format.integers)) {
      matrix.largest = kind === "norm" ? 2 : 0.25;
    }
    return matrix;
  });
}

/** The calls of one layer's forward pass and of every way to sample. */
export function recordPass(device: Sketched, pass: SketchedPass): Call[] {
  const { tokens, sequences = 1, page, states = false, kv } = pass;
  const config = { ...pass.config, numHiddenLayers: 1 };
  const gpu = sketch(device);
  const weights = sketchWeights(device, gpu, { ...pass, config });
  const { headDim, vocabSize } = config;
  const u32 = (label: string, ...shape: number[]) =>
    Tensor.create(gpu, "u32", shape, undefined, label);
  const must = cacheRefusal(headDim, kv);
  if (must !== undefined) throw wrongOption("Cannot show", "kv", kv, must);
  const { dtype } = chooseCacheDtype(headDim, { kv });
  const context = Math.max(tokens, pass.context ?? 4096);
  const paging = page ? { page, pages: sequences * context / page } : undefined;
  const cache = new GpuKvCache(gpu, config, sequences, context, dtype, {
    paging,
  });
  cache.record({ first: 0, sequences, tokens });
  const plan = new CallPlan(gpu, cache.literals(tokens));
  const ops = new GpuOps(gpu, config, plan);
  const ends = states ? u32("ends", sequences) : undefined;
  const input = u32("tokens", sequences * tokens);
  const { forward } = familyOf(config);
  const result = finish(forward(ops, weights, input, cache, { ends, states }));
  if (states) return plan.calls;
  const size = { sequences, vocab: vocabSize, steps: 256 };
  const state = new SamplerState(gpu, size, cache.lengthsOnDevice);
  const samples = new CallPlan(gpu);
  for (const way of WAYS) {
    const row = sampledRow(resolveSampling({ ...way, seed: 1 }));
    addSampling(samples, result, chooseSampling([row], vocabSize), state);
  }
  return [...plan.calls, ...samples.calls];
}

/** The calls of a kernel's test cases; a model's sizes come first. */
export function recordCases(
  device: Sketched,
  kernel: LibraryKernel,
): Call[] {
  const gpu = sketch(device);
  const tools = { device, random: new Random(), reference };
  const on = ({ dtype, shape }: CpuTensor, name: string) =>
    Tensor.create(gpu, dtype, shape, undefined, name);
  const cases = kernel.cases.toReversed().flatMap((given) =>
    kernel.makeCase(given, tools) ?? []
  );
  return cases.map((one) => ({
    kernel,
    operands: Object.fromEntries(
      Object.entries(one.operands).map(([name, operand]) => [
        name,
        "parts" in operand
          ? withPlanes(operand, (plane) => on(plane, name))
          : on(operand, name),
      ]),
    ),
    options: {
      label: `test case ${one.what}`,
      reason: "no pass of a model runs this kernel",
      constants: one.constants,
    },
  }));
}
