/**
 * The finished WGSL of every kernel as the library would run it: the calls of a
 * model's passes are recorded without a device's memory, so that constants and
 * reasons are those of a real run.
 *
 * @module
 */
import { batchedGemm } from "../../kernels/batched_gemm.ts";
import { gemvColumns } from "../../kernels/gemv_columns.ts";
import { findKernel, KERNEL_NAMES } from "../../kernels/list.ts";
import { maxAbs } from "../../kernels/max_abs.ts";
import { peakFma } from "../../kernels/peak_fma.ts";
import { peakRead } from "../../kernels/peak_read.ts";
import { synthesize } from "../../kernels/synthesize.ts";
import { type Capabilities, laneConstants } from "../dispatch/capabilities.ts";
import { BYTES, type Dtype } from "../dtype.ts";
import { bf16 } from "../formats/bf16.ts";
import type { Format } from "../formats/format.ts";
import { allocateMatrix } from "../formats/matrix.ts";
import type { Constants } from "../dispatch/shapes.ts";
import { chooseMatmul } from "../dispatch/matmul.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import type { Gpu } from "../webgpu/device.ts";
import { type Kernel, type Operands, showWgsl } from "../webgpu/kernel.ts";
import { GpuKvCache } from "../gpu/kv_cache.ts";
import { GpuOps } from "../gpu/ops.ts";
import { gpuStore } from "../gpu/store.ts";
import { type AddOptions, Plan } from "../webgpu/plan.ts";
import { familyOf } from "../model/families.ts";
import { mapWeights, stackedShape } from "../model/family.ts";
import { addSampling } from "../gpu/sample.ts";
import { resolveSampling, type SamplingOptions } from "../model/sampling.ts";
import { Tensor } from "../webgpu/tensor.ts";

/** What of a device the choices depend on; a `Gpu` has it all. */
export type Sketched = Capabilities & Pick<Gpu, "name" | "f16" | "software">;

/** A device as WebGPU guarantees it, with f16 and subgroups, where there is no adapter. */
export const STATED_DEVICE: Sketched = {
  name: "no adapter: WebGPU's default limits, 32 lanes, f16",
  f16: true,
  software: false,
  subgroupSize: 32,
  limits: {
    maxComputeWorkgroupStorageSize: 16384,
    maxComputeInvocationsPerWorkgroup: 256,
  },
};

/** For which pass a kernel is shown. */
export interface ShowOptions {
  config: Qwen3Config;
  /** Tokens of a pass; by default 512, or 1 where only a decode step has the kernel. */
  tokens?: number;
  /** How the weights are stored; bf16 by default. */
  format?: Format;
  /** In place of what was chosen. */
  constants?: Constants;
}

/** One kernel as it would run. */
export interface Shown {
  kernel: string;
  /** What it computes there, and whatever else this kernel does in that pass. */
  label: string;
  also: string[];
  operands: { name: string; dtype: string; shape: readonly number[] }[];
  /** The kernel's own constants; the WGSL has those that follow from them. */
  constants: Constants;
  reason: string;
  wgsl: string;
}

/**
 * Shows a kernel by its name (`attendDecode`, or as its file is called,
 * `attend_decode`) with the constants that are chosen for `device`.
 *
 * @throws {Error} if there is no such kernel, or a constant that it does not have.
 */
export function showKernel(
  name: string,
  device: Sketched,
  options: ShowOptions,
): Shown {
  const wanted = findKernel(name)?.name;
  if (!wanted) {
    throw new Error(
      `Cannot show "${name}": the kernels are ${KERNEL_NAMES.join(", ")}`,
    );
  }
  // First as it is here, then as it would be with the other kind of products.
  const other = { ...device, f16: true, software: false };
  const none = { ...device, f16: false };
  const unknown = { ...device, adapterClass: "other" as const };
  const usual = wanted === "gemv" ? 1 : wanted === "gemvRows" ? 16 : 512;
  const order = [options.tokens ?? usual, 1, 16, 64];
  for (const chosen of [device, other, none, unknown]) {
    for (const tokens of order) {
      const calls = [
        ...recordPasses(chosen, tokens, options),
        ...recordRest(chosen, tokens, options),
      ].filter(({ kernel }) => kernel.name === wanted);
      if (!calls.length) continue;
      const found = describe(calls[0], options.constants);
      const also = calls.slice(1).map(({ options }) => options.label ?? wanted);
      const where = chosen === device
        ? `${tokens} ${tokens === 1 ? "token" : "tokens"}`
        : `not chosen on this device, shown as ${
          chosen === unknown
            ? "on one of unknown make"
            : `${chosen.f16 ? "with" : "without"} f16 products`
        }`;
      return {
        ...found,
        label: `${found.label}, ${where}`,
        also: [...new Set(also)],
      };
    }
  }
  throw new Error(`Cannot show ${wanted}: nothing here runs it`);
}

/**
 * Every distinct text of the named kernels in passes of `tokens` tokens (512 by
 * default) on `device`, in the order in which they run.
 */
export function showVariants(
  names: readonly string[],
  device: Sketched,
  options: ShowOptions,
): Shown[] {
  const tokens = options.tokens ?? 512;
  const calls = [
    ...recordPasses(device, tokens, options),
    ...recordRest(device, tokens, options),
  ];
  const variants = new Map<string, Shown>();
  for (const call of calls) {
    if (!names.includes(call.kernel.name)) continue;
    const shown = describe(call, options.constants);
    const known = variants.get(shown.wgsl);
    if (!known) variants.set(shown.wgsl, shown);
    else if (!known.also.includes(shown.label)) known.also.push(shown.label);
  }
  return [...variants.values()];
}

interface Call {
  kernel: Kernel;
  operands: Operands;
  options: AddOptions;
}

function describe(
  { kernel, operands, options }: Call,
  constants: Constants = {},
): Shown {
  const wrong = Object.keys(constants).find((name) =>
    !(name in kernel.constants) && !(name in (options.constants ?? {}))
  );
  if (wrong) {
    throw new Error(
      `Cannot show ${kernel.name}: it has no constant ${wrong}, but ${
        Object.keys(kernel.constants).join(", ")
      }`,
    );
  }
  const all = { ...kernel.constants, ...options.constants, ...constants };
  const contract = typeof kernel.buffers === "function"
    ? kernel.buffers(all)
    : kernel.buffers;
  const wgsl = showWgsl(kernel, operands, { ...options, constants: all });
  return {
    kernel: kernel.name,
    label: options.label ?? kernel.name,
    also: [],
    reason: options.reason ?? "asked for",
    operands: Object.keys(contract).map((name) => {
      const operand = operands[name];
      if ("dtype" in operand) {
        const { dtype, shape } = operand;
        return { name, dtype, shape };
      }
      const matrix = "matrix" in operand ? operand.matrix : operand;
      const { format } = "matrix" in operand ? operand.part : operand.parts[0];
      const shape = matrix.n === 1 ? [matrix.k] : [matrix.n, matrix.k];
      return { name, dtype: format.name, shape };
    }),
    constants: all,
    wgsl,
  };
}

/** Keeps calls instead of compiling them. */
class Recorder extends Plan {
  readonly calls: Call[] = [];

  override add(kernel: Kernel, operands: Operands, options: AddOptions = {}) {
    this.calls.push({ kernel, operands, options });
  }
}

/** A stand-in for a device: tensors made on it have shapes but no memory. */
function sketch(device: Sketched): Gpu {
  const { name, f16, software, subgroupSize, adapterClass, vulkan } = device;
  const { limits, tuned = new Map() } = device;
  return {
    ...{ name, f16, software, subgroupSize, adapterClass, vulkan, tuned },
    limits: {
      maxComputeWorkgroupStorageSize: limits.maxComputeWorkgroupStorageSize,
      maxComputeInvocationsPerWorkgroup:
        limits.maxComputeInvocationsPerWorkgroup,
      maxStorageBufferBindingSize: Infinity,
    },
    buffer: () => ({ destroy() {} }),
    device: { queue: { writeBuffer() {} } },
  } as unknown as Gpu;
}

/** The calls of one layer's forward pass and of every way to sample. */
function recordPasses(
  device: Sketched,
  tokens: number,
  { config: whole, format = bf16 }: ShowOptions,
): Call[] {
  const config = { ...whole, numHiddenLayers: 1 };
  const gpu = sketch(device), plan = new Recorder(gpu);
  const halfProducts = device.f16 && !device.software;
  const family = familyOf(config), store = gpuStore(gpu);
  const weights = mapWeights(family.weights(config), (spec) => {
    const { label, kind, measured } = spec;
    const shape = stackedShape(spec);
    const [rows, k] = shape.length > 1 ? shape : [1, ...shape];
    const stack = [{ rows, format }];
    const pairs = { pairs: spec.split === "pairs" };
    const matrix = allocateMatrix(label, stack, k, pairs, store.allocate);
    // A usual magnitude; what measures it runs on the device.
    if (halfProducts && measured) matrix.largest = kind === "norm" ? 2 : 0.25;
    return matrix;
  });
  const { headDim, vocabSize } = config;
  const u32 = (label: string, ...shape: number[]) =>
    Tensor.create(gpu, "u32", shape, undefined, label);
  const cacheDtype = headDim % 8 === 0 ? "f16" : "f32";
  const cache = new GpuKvCache(
    gpu,
    config,
    1,
    Math.max(tokens, 4096),
    cacheDtype,
  );
  cache.record({ first: 0, sequences: 1, tokens });
  const ops = new GpuOps(gpu, config, plan);
  const logits = family.forward(ops, weights, u32("tokens", tokens), cache);
  const state = {
    tokens: u32("tokens", 1),
    ring: u32("ring", 256, 1),
    lengths: cache.lengthsOnDevice,
    seen: u32("seen", 1, Math.ceil(vocabSize / 32)),
    step: u32("step", 1),
  };
  const ways: SamplingOptions[] = [
    { temperature: 0 },
    { temperature: 1, topK: 20, topP: 0.95 },
    { temperature: 1, topK: 0, topP: 0.95 },
  ];
  for (const way of ways) {
    addSampling(plan, logits, resolveSampling({ ...way, seed: 1 }), state);
  }
  return plan.calls;
}

/** The calls of kernels that are beside the passes. */
function recordRest(
  device: Sketched,
  tokens: number,
  { config, format = bf16 }: ShowOptions,
): Call[] {
  const gpu = sketch(device);
  const { hiddenSize: k, intermediateSize: n, headDim } = config;
  const tensor = (dtype: Dtype, ...shape: number[]) =>
    Tensor.create(gpu, dtype, shape, undefined, "operand");
  // Public matmuls take tensors, whose element types some formats share.
  const dtype = format.name in BYTES ? format.name as Dtype : "f32";
  const calls: Call[] = [];
  const add = (kernel: Kernel, operands: Operands, options: AddOptions) => {
    calls.push({ kernel, operands, options });
  };
  const product = (kernel: Kernel, a: number[], b: number[], byKey = false) => {
    const choice = chooseMatmul(a, b, device, { dtype, transposeB: byKey });
    if (!choice.kernel) throw new Error(`Cannot show: ${choice.reason}`);
    const left = tensor("f32", ...a), right = tensor(dtype, ...b);
    const c = tensor("f32", ...choice.shape);
    add(kernel, { a: left, x: left, b: right, c, y: c }, {
      label: "matmul",
      ...choice,
    });
  };
  const head = [tokens, headDim], { numKeyValueHeads } = config;
  product(
    batchedGemm,
    [1, config.numAttentionHeads, ...head],
    [1, numKeyValueHeads, ...head],
    true,
  );
  product(gemvColumns, [1, k], [k, n]);
  const store = gpuStore(gpu), stack = [{ rows: n, format }];
  const w = allocateMatrix("operand", stack, k, {}, store.allocate);
  add(maxAbs, { w, largest: tensor("u32", 1) }, {
    label: "the largest weight",
    reason: "f16 products need to know how large rows may become",
    constants: laneConstants(device),
  });
  add(synthesize, { w: tensor("bf16", n, k) }, {
    label: "synthetic weights",
    reason: "made where they are used",
  });
  const y = tensor("u32", 4);
  add(peakRead, { x: tensor("u32", 1 << 26), y }, {
    label: "measures bandwidth",
  });
  add(peakFma, { y }, {
    label: "measures arithmetic",
    constants: { F16: device.f16 ? 1 : 0 },
  });
  return calls;
}
