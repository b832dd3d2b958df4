/**
 * The finished WGSL of every kernel as the library would run it. The calls of a model's
 * passes are recorded without memory on a device, so constants and reasons are those of a
 * real run.
 *
 * @module
 */
import { inPasses, type LibraryKernel } from "../../kernels/define.ts";
import { findKernel, KERNEL_NAMES, KERNELS } from "../../kernels/list.ts";
import { reference } from "../check/kernel_case.ts";
import { Random } from "../check/reference.ts";
import { described, wrongOption } from "../errors.ts";
import type { Capabilities } from "../dispatch/capabilities.ts";
import { bf16 } from "../formats/bf16.ts";
import type { Format } from "../formats/format.ts";
import { f32 } from "../formats/f32.ts";
import { allocateMatrix, withPlanes } from "../formats/matrix.ts";
import type { CpuTensor } from "../formats/tensor.ts";
import {
  cacheRefusal,
  type CacheRequest,
  chooseCacheDtype,
  chooseMatmulDtype,
  HALF_PREFILL_BYTES,
} from "../dispatch/precision.ts";
import type { Constants } from "../dispatch/shapes.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import { type Gpu, LEAST_LIMITS } from "../webgpu/device.ts";
import { type Kernel, type Operands, showWgsl } from "../webgpu/kernel.ts";
import { GpuKvCache } from "../gpu/kv_cache.ts";
import { GpuOps } from "../gpu/ops.ts";
import { gpuStore } from "../gpu/store.ts";
import { type AddOptions, Plan } from "../webgpu/plan.ts";
import { familyOf } from "../model/families.ts";
import { finish, mapWeights, stackedShape } from "../model/family.ts";
import { shortened, tryInstead } from "../text/messages.ts";
import { chooseSampling } from "../dispatch/sampling.ts";
import { addSampling, sampledRow, SamplerState } from "../gpu/sample.ts";
import { resolveSampling, type SamplingOptions } from "../model/sampling.ts";
import { Tensor } from "../webgpu/tensor.ts";
import {
  type ChosenCall,
  impossible,
  isTuned,
  type ShownOperand,
  untried,
} from "./constants.ts";

/** The properties of a device that choices depend on; a `Gpu` has them. */
export type Sketched = Capabilities & Pick<Gpu, "name" | "f16" | "software">;

/**
 * Stands in for a missing adapter: the least that kernels run on, with f16, subgroups and
 * the workgroup memory that f16 takes.
 */
export const STATED_DEVICE: Sketched = {
  name: "no adapter: 32 KiB of workgroup memory, 256 threads, 32 lanes, f16",
  f16: true,
  software: false,
  subgroupSize: 32,
  limits: { ...LEAST_LIMITS, maxComputeWorkgroupStorageSize: 32768 },
};

/** The most tokens of a pass: the longest context of the Qwen3 family. */
export const MOST_TOKENS = 131072;

/** The pass that a kernel is shown for. */
export interface ShowOptions {
  config: Qwen3Config;
  /** Tokens in the pass, at most {@linkcode MOST_TOKENS}; by default 512, or the number that the kernel is for. */
  tokens?: number;
  /** How the weights are stored; bf16 by default. */
  format?: Format;
  /** How keys and values are cached; as a GPU would by default. */
  kv?: CacheRequest;
  /** Constants that replace the chosen ones. */
  constants?: Constants;
  /** Called by `showVariants` for each call that these constants do not suit. */
  onLeftOut?: (kernel: string, why: Error) => void;
}

/** A kernel as it would run. */
export interface Shown {
  kernel: string;
  /** What this call computes, and the other calls of the kernel in the pass. */
  label: string;
  also: string[];
  operands: readonly ShownOperand[];
  /** The kernel's own constants; the WGSL also has those derived from them. */
  constants: Constants;
  reason: string;
  wgsl: string;
}

/**
 * Finds a kernel by its name or its file's, before anything is opened.
 *
 * @throws {Error} if there is no such kernel, or a constant that it does not have.
 */
export function kernelToShow(
  name: string,
  constants?: Constants,
): LibraryKernel {
  const kernel = findKernel(name);
  if (!kernel) {
    throw new Error(
      `Cannot show ${described(name)}: no such kernel, ${
        tryInstead(name, KERNEL_NAMES, "deno task show --help")
      }`,
    );
  }
  requireConstants(kernel, constants);
  return kernel;
}

/** @throws {Error} if a constant is not one of the kernel's. */
export function requireConstants(
  kernel: Kernel,
  constants: Constants = {},
  cannot = `Cannot show ${kernel.name}`,
): void {
  const own = Object.keys(kernel.constants);
  const wrong = Object.keys(constants).find((name) => !own.includes(name));
  if (wrong === undefined) return;
  throw new Error(
    `${cannot}: it has no constant ${shortened(wrong, 24)}, ${
      tryInstead(wrong, own, `deno task show ${kernel.name}`)
    }`,
  );
}

/**
 * Shows a kernel by its name (`attendDecode`) or its file's (`attend_decode`), with the
 * constants chosen for `device`.
 *
 * @throws {Error} if there is no such kernel, a constant that it does not have, or a value
 * that no choice could give it.
 */
export function showKernel(
  name: string,
  device: Sketched,
  options: ShowOptions,
): Shown {
  const kernel = kernelToShow(name, options.constants);
  const wanted = kernel.name;
  // As this device runs it if it does, otherwise with matmuls of the other type.
  const { limits } = device;
  const other = {
    ...device,
    f16: true,
    software: false,
    limits: {
      maxComputeInvocationsPerWorkgroup:
        limits.maxComputeInvocationsPerWorkgroup,
      maxComputeWorkgroupStorageSize: Math.max(
        HALF_PREFILL_BYTES,
        limits.maxComputeWorkgroupStorageSize,
      ),
    },
  };
  const none = { ...device, f16: false };
  const unknown = { ...device, adapterClass: "other" as const };
  const usual = wanted === "gemv" ? 1 : /^gemvRows/.test(wanted) ? 16 : 512;
  const order = [options.tokens ?? usual, 1, 16, 64];
  for (const chosen of [device, other, none, unknown]) {
    for (const tokens of order) {
      const recording = new Recording(chosen, tokens, options);
      const calls = recording.of(wanted);
      if (!calls.length) continue;
      const found = describe(recording, wanted, 0);
      const also = calls.slice(1).map(({ options }) => options.label ?? wanted);
      const where = chosen === device
        ? `${tokens} ${tokens === 1 ? "token" : "tokens"}`
        : `not chosen on this device, shown as ${
          chosen === unknown
            ? "on a device of unknown kind"
            : `${chosen.f16 ? "with" : "without"} f16 matmuls`
        }`;
      return {
        ...found,
        label: inPasses(kernel) ? `${found.label}, ${where}` : found.label,
        also: [...new Set(also)],
      };
    }
  }
  // Only its test cases run it.
  const recording = new Recording(device, usual, options, false);
  return describe(recording, wanted, 0);
}

/**
 * Every distinct WGSL of the named kernels in passes of `tokens` tokens (512 by default)
 * on `device`, in the order in which they run. Calls that no choice could give the
 * constants are left out.
 *
 * @throws {Error} if they do not suit any call of a kernel.
 */
export function showVariants(
  names: readonly string[],
  device: Sketched,
  options: ShowOptions,
): Shown[] {
  const tokens = options.tokens ?? 512;
  const recording = new Recording(device, tokens, options);
  const variants = new Map<string, Shown>();
  const all = names.flatMap((name) =>
    recording.of(name).map((_, i) => ({ name, i }))
  );
  for (const { name, i } of all) {
    let shown: Shown;
    try {
      shown = describe(recording, name, i);
    } catch (error) {
      if (!(error instanceof ImpossibleError)) throw error;
      options.onLeftOut?.(name, error);
      continue;
    }
    const known = variants.get(shown.wgsl);
    if (!known) variants.set(shown.wgsl, shown);
    else if (!known.also.includes(shown.label)) known.also.push(shown.label);
  }
  return [...variants.values()];
}

interface Call {
  kernel: LibraryKernel;
  operands: Operands;
  options: AddOptions;
}

/** No choice could give a call these constants. */
class ImpossibleError extends Error {}

/** The calls of each kernel in a pass, or in its test cases, as they are asked for. */
class Recording {
  readonly #calls = new Map<string, Call[]>();
  #pass?: Call[];
  #elsewhere?: Recording[];
  #retuned?: Recording;

  constructor(
    readonly device: Sketched,
    readonly tokens: number,
    readonly options: ShowOptions,
    readonly inPass: boolean = true,
  ) {}

  of(name: string): Call[] {
    const known = this.#calls.get(name);
    if (known) return known;
    const { device, tokens, options } = this, kernel = findKernel(name)!;
    const calls = inPasses(kernel) && this.inPass
      ? (this.#pass ??= recordPasses(device, tokens, options))
        .filter(({ kernel }) => kernel.name === name)
      : recordCases(device, options.format, [kernel]);
    this.#calls.set(name, calls);
    return calls;
  }

  #on(device: Sketched): Recording {
    return new Recording(device, this.tokens, this.options, this.inPass);
  }

  /** As if the given constants had been tuned, with what follows from them. */
  get retuned(): Recording {
    const { device, options: { constants = {} } } = this;
    return this.#retuned ??= this.#on({
      ...device,
      tuned: { get: (key) => ({ ...device.tuned?.get(key), ...constants }) },
    });
  }

  /**
   * The constants of calls like this one, with equal tuned ones, on devices with other
   * subgroups or types.
   */
  *elsewhere(call: Call): Generator<Constants> {
    const text = (call: Call) => {
      const all = Object.entries(chosenConstants(call));
      const tuned = all.filter(([name]) => isTuned(call.kernel, name));
      return JSON.stringify([chosenOperands(call), tuned]);
    };
    const { device } = this, { name } = call.kernel, own = text(call);
    this.#elsewhere ??= [
      ...[0, 4, 8, 16, 32].map((subgroupSize) => ({ ...device, subgroupSize })),
      { ...device, f16: !device.f16 },
    ].map((other) => this.#on(other));
    for (const other of this.#elsewhere) {
      for (const one of other.of(name)) {
        if (text(one) === own) yield chosenConstants(one);
      }
    }
  }
}

const chosenConstants = ({ kernel, options }: Call): Constants => ({
  ...kernel.constants,
  ...options.constants,
});

/** Describes the i-th call of a kernel, with the constants that are given. */
function describe(recording: Recording, name: string, i: number): Shown {
  const { device, options: { constants: given = {} } } = recording;
  const call = recording.of(name)[i], { kernel } = call;
  requireConstants(kernel, given);
  const chosen = {
    kernel,
    operands: chosenOperands(call),
    constants: chosenConstants(call),
  };
  const why = impossible(
    chosen,
    given,
    device,
    () => recording.elsewhere(call),
  );
  if (why !== undefined) {
    throw new ImpossibleError(`Cannot show ${name}: ${why}`);
  }
  const tuned = Object.keys(given).some((name) => isTuned(kernel, name));
  const { operands, options } = tuned ? recording.retuned.of(name)[i] : call;
  const all = { ...kernel.constants, ...options.constants, ...given };
  const reason = options.reason ?? "asked for";
  return {
    kernel: name,
    label: options.label ?? name,
    also: [],
    reason: tuned
      ? reason.replace("tuned for this adapter", asSet(chosen, given, device))
      : reason,
    operands: chosenOperands({ kernel, operands, options }, all),
    constants: all,
    wgsl: showWgsl(
      kernel,
      operands,
      { ...options, constants: all },
      device.compiler,
    ),
  };
}

function asSet(
  call: ChosenCall,
  given: Constants,
  device: Capabilities,
): string {
  const never = untried(call, given, device);
  return never === "" ? "as set" : `as set, though tuning only tries ${never}`;
}

/** The operands of a call with `constants`, in binding order. */
function chosenOperands(
  { kernel, operands, options }: Call,
  constants = chosenConstants({ kernel, operands, options }),
): ShownOperand[] {
  const contract = typeof kernel.buffers === "function"
    ? kernel.buffers(constants)
    : kernel.buffers;
  return Object.keys(contract).map((name) => {
    const operand = operands[name];
    if ("dtype" in operand) {
      const { dtype, shape } = operand;
      return { name, dtype, shape };
    }
    const matrix = "matrix" in operand ? operand.matrix : operand;
    const { format } = "matrix" in operand ? operand.part : operand.parts[0];
    const shape = matrix.n === 1 ? [matrix.k] : [matrix.n, matrix.k];
    return { name, dtype: format.name, shape };
  });
}

/** Keeps the calls of a plan instead of compiling them. */
class CallPlan extends Plan {
  readonly calls: Call[] = [];

  override add(kernel: Kernel, operands: Operands, options: AddOptions = {}) {
    const known = findKernel(kernel.name)!; // passes run kernels of the list only
    this.calls.push({ kernel: known, operands, options });
  }
}

/** A device without memory: its tensors have only shapes. */
function sketch(device: Sketched): Gpu {
  const { name, f16, software, subgroupSize, adapterClass, vulkan } = device;
  const { compiler = "naga", limits, tuned = new Map() } = device;
  return {
    name,
    f16,
    software,
    subgroupSize,
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

/** The calls of one layer's forward pass and of every way to sample. */
function recordPasses(
  device: Sketched,
  tokens: number,
  { config: whole, format = bf16, kv }: ShowOptions,
): Call[] {
  const config = { ...whole, numHiddenLayers: 1 };
  const gpu = sketch(device), plan = new CallPlan(gpu);
  const halfMatmuls = chooseMatmulDtype(device).dtype === "f16";
  const family = familyOf(config), store = gpuStore(gpu);
  const weights = mapWeights(family.weights(config), (spec) => {
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
  const { headDim, vocabSize } = config;
  const u32 = (label: string, ...shape: number[]) =>
    Tensor.create(gpu, "u32", shape, undefined, label);
  const must = cacheRefusal(headDim, kv);
  if (must !== undefined) throw wrongOption("Cannot show", "kv", kv, must);
  const { dtype: cacheDtype } = chooseCacheDtype(headDim, { kv });
  const cache = new GpuKvCache(
    gpu,
    config,
    1,
    Math.max(tokens, 4096),
    cacheDtype,
  );
  cache.record({ first: 0, sequences: 1, tokens });
  const ops = new GpuOps(gpu, config, plan);
  const logits = finish(
    family.forward(ops, weights, u32("tokens", tokens), cache),
  );
  const size = { sequences: 1, vocab: vocabSize, steps: 256 };
  const state = new SamplerState(gpu, size, cache.lengthsOnDevice);
  const ways: SamplingOptions[] = [
    { temperature: 0 },
    { temperature: 1, topK: 20, topP: 0.95 },
    { temperature: 1, topK: 0, topP: 0.95 },
    { temperature: 0, presencePenalty: 1, logprobs: 20 },
  ];
  for (const way of ways) {
    const row = sampledRow(resolveSampling({ ...way, seed: 1 }));
    addSampling(plan, logits, chooseSampling([row], vocabSize), state);
  }
  return plan.calls;
}

/** Calls of kernels that no pass runs, from their test cases; a model's sizes come first. */
function recordCases(
  device: Sketched,
  { name }: Format = bf16,
  kernels = KERNELS.filter((kernel) => !inPasses(kernel)),
): Call[] {
  const gpu = sketch(device);
  const tools = { device, random: new Random(), reference };
  return kernels.flatMap((kernel) => {
    const cases = kernel.cases.toReversed().flatMap((given) =>
      kernel.makeCase(given, tools) ?? []
    );
    const ofType = cases.filter(({ operands }) =>
      Object.values(operands).some((operand) =>
        ("parts" in operand ? operand.parts[0].format.name : operand.dtype) ===
          name
      )
    );
    const on = ({ dtype, shape }: CpuTensor, name: string) =>
      Tensor.create(gpu, dtype, shape, undefined, name);
    return (ofType.length ? ofType : cases).map((one): Call => ({
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
  });
}
