/**
 * The GPU: its limits and features, buffers, readback, and every choice made when it
 * was opened, with the reason.
 *
 * @module
 */
import type {
  AdapterClass,
  Compiler,
  SubgroupMatrix,
} from "../dispatch/capabilities.ts";
import type { Choice } from "../dispatch/choice.ts";
import { MATRIX_LANES } from "../dispatch/matrices.ts";
import type { Constants } from "../dispatch/shapes.ts";
import { DeviceError, errorText, NoAdapterError } from "../errors.ts";
import { host } from "../host.ts";
import { adapterClass, adapterName, isSoftware } from "./adapter.ts";
import {
  type DeviceOptions,
  findImplementation,
  type Implementation,
  powerPreference,
  type WebGpuName,
} from "./implementation.ts";

/**
 * Limits that are requested from the adapter, and the least that the kernels run on:
 * WebGPU's defaults or less. Weights are split to fit any binding.
 */
export const LEAST_LIMITS = {
  maxBufferSize: 0,
  maxStorageBufferBindingSize: 0,
  maxComputeWorkgroupStorageSize: 2 ** 14,
  maxComputeInvocationsPerWorkgroup: 256,
  maxComputeWorkgroupSizeX: 256,
  maxStorageBuffersPerShaderStage: 8,
} as const;
type Limit = keyof typeof LEAST_LIMITS;
const LIMITS = Object.keys(LEAST_LIMITS) as Limit[];

/** The version of Deno in which a buffer is already mapped when `mapAsync` returns. */
const READS_AT_ONCE = "2.9.6";

/** Features that are used if the adapter has them, and what happens without. */
const FEATURES: readonly [GPUFeatureName, without: string][] = [
  ["shader-f16", "matmuls are computed in f32"],
  ["timestamp-query", "passes are timed by wall clock"],
];
const SUBGROUPS = "subgroups" as GPUFeatureName;
const SUBGROUP_MATRICES =
  "chromium-experimental-subgroup-matrix" as GPUFeatureName;

/**
 * Opens a GPU with the adapter's own limits (WebGPU's defaults allow bindings of
 * 128 MiB only), and with f16, subgroups and timestamps where the adapter has them.
 *
 * @throws {NoAdapterError} if there is no adapter, it gives no device, or its limits are
 * too low.
 */
export async function openGpu(options: DeviceOptions = {}): Promise<Gpu> {
  const implementation = await findImplementation(options);
  const found = await requestDevice(implementation, options);
  const { adapter, device, descriptor, subgroupSize, choices } = found;
  // Other versions may panic where this one returns the bytes.
  const { version, os } = host.runtime, own = implementation.name === "deno";
  const readsAtOnce = own && version === READS_AT_ONCE;
  const compiler = await findCompiler(device, subgroupSize > 0);
  choices.push(compiler);
  const readsApart = implementation.name === "dawn";
  choices.push({
    what: "readback",
    value: readsAtOnce
      ? "at once"
      : readsApart
      ? "while later work runs"
      : "when mapAsync settles",
    reason: readsAtOnce
      ? `Deno ${READS_AT_ONCE} maps a buffer before mapAsync returns, its promise settles 10 ms later`
      : readsApart
      ? "Dawn's mapAsync waits for the work before it only, and blocks nothing"
      : own
      ? `early reads were tested in Deno ${READS_AT_ONCE} only, this is ${version}`
      : "not Deno's own WebGPU",
  });
  // Deno does not name its backend. On Linux it is Vulkan or GL, and GL has no subgroups.
  const vulkan = own && os === "linux" && subgroupSize > 0;
  return new Gpu(adapter, device, {
    implementation: implementation.name,
    descriptor,
    subgroupSize,
    subgroupMatrices: found.subgroupMatrices,
    compiler: compiler.value,
    vulkan,
    timestamps: adapter.features.has("timestamp-query"),
    readsAtOnce,
    readsApart,
    choices,
  });
}

async function findAdapter(
  { gpu, name }: Implementation,
  { adapter: wanted }: DeviceOptions,
): Promise<GPUAdapter> {
  let adapter: GPUAdapter | null;
  try {
    adapter = await gpu.requestAdapter({
      powerPreference: powerPreference(wanted),
    });
  } catch (error) {
    throw new NoAdapterError(
      `Cannot open a GPU: requestAdapter failed with ${errorText(error)}`,
    );
  }
  if (!adapter && name === "dawn") {
    throw new NoAdapterError(
      "Cannot open a GPU: Dawn supports no adapter here; update its driver or leave webgpu out",
    );
  }
  if (!adapter) {
    const driver = host.runtime.os === "linux" ? "Vulkan driver" : "driver";
    throw new NoAdapterError(
      `Cannot open a GPU: no WebGPU adapter here; install the GPU's ${driver} or run on the CPU`,
    );
  }
  const lacking = LIMITS.flatMap((limit) => {
    const value = adapter.limits[limit] as number, least = LEAST_LIMITS[limit];
    return value < least ? [`${limit} is ${value}, must be ${least}`] : [];
  });
  if (lacking.length) {
    throw new NoAdapterError(
      `Cannot open a GPU: the limits of ${
        adapterName(adapter.info)
      } are too low: ${lacking.join(", ")}`,
    );
  }
  return adapter;
}

/** Requests the adapter's own limits, the features that it has, and `more`. */
function descriptorFor(adapter: GPUAdapter, more: readonly GPUFeatureName[]) {
  const requiredLimits: Record<string, number> = {};
  for (const limit of LIMITS) {
    requiredLimits[limit] = adapter.limits[limit] as number;
  }
  const names = FEATURES.map(([name]) => name);
  const there = names.filter((name) => adapter.features.has(name));
  return { requiredFeatures: [...there, ...more], requiredLimits };
}

/** Requests subgroups first: Deno grants them although it does not list them. */
async function requestDevice(
  implementation: Implementation,
  options: DeviceOptions,
) {
  let adapter = await findAdapter(implementation, options);
  const matrices = [SUBGROUP_MATRICES].filter((name) =>
    adapter.features.has(name)
  );
  let descriptor = descriptorFor(adapter, [SUBGROUPS, ...matrices]);
  let device: GPUDevice, refusal = "";
  try {
    device = await adapter.requestDevice(descriptor);
  } catch (error) {
    refusal = errorText(error);
    // A failed requestDevice() consumes the adapter; ask for another.
    adapter = await findAdapter(implementation, options);
    descriptor = descriptorFor(adapter, []);
    try {
      device = await adapter.requestDevice(descriptor);
    } catch (error) {
      throw new NoAdapterError(
        `Cannot open a GPU: ${adapterName(adapter.info)} gives no device, ${
          errorText(error)
        }`,
      );
    }
  }
  const choices: Choice[] = [...implementation.choices, {
    what: "adapter request",
    value: powerPreference(options.adapter),
    reason: options.adapter ? "it was asked for" : "the default",
  }];
  for (const [what, without] of FEATURES) {
    const there = adapter.features.has(what);
    choices.push({
      what,
      value: there ? "on" : "off",
      reason: there ? "the adapter has it" : `the adapter lacks it: ${without}`,
    });
  }
  // Only the range of subgroup sizes is reported, so kernels assume the smallest.
  const { subgroupMinSize = 0, subgroupMaxSize } = adapter.info;
  const smallest = refusal ? 0 : subgroupMinSize;
  const subgroupSize = smallest >= 4 ? Math.min(smallest, 32) : 0;
  choices.push({
    what: "subgroups",
    value: subgroupSize ? `${subgroupSize} lanes` : "off",
    reason: subgroupSize
      ? `granted; the adapter's subgroups have ${subgroupMinSize} to ${subgroupMaxSize} lanes`
      : `sums go through workgroup memory: ${
        refusal || "the adapter reports no subgroup size"
      }`,
  });
  const found = device.features.has(SUBGROUP_MATRICES)
    ? matricesOf(adapter)
    : [];
  const lanes = [subgroupMinSize, subgroupMaxSize];
  const suits = lanes.every((size) => size === MATRIX_LANES);
  const subgroupMatrices = suits ? found : [];
  if (implementation.name === "dawn") {
    choices.push(matricesChoice(found, lanes, suits));
  }
  return {
    adapter,
    device,
    descriptor,
    subgroupSize,
    subgroupMatrices,
    choices,
  };
}

function matricesOf({ info }: GPUAdapter): SubgroupMatrix[] {
  const { subgroupMatrixConfigs = [] } = info as GPUAdapterInfo & {
    subgroupMatrixConfigs?: Iterable<SubgroupMatrix>;
  };
  return [...subgroupMatrixConfigs].map(
    ({ componentType, resultComponentType, M, N, K }) => ({
      componentType,
      resultComponentType,
      M,
      N,
      K,
    }),
  );
}

function matricesChoice(
  matrices: readonly SubgroupMatrix[],
  [least, most]: readonly (number | undefined)[],
  suits: boolean,
): Choice {
  const what = "subgroup matrices";
  if (matrices.length === 0 || !suits) {
    const reason = matrices.length === 0
      ? "the adapter lacks them"
      : `kernels take subgroups of ${MATRIX_LANES} lanes, the adapter's have ${least} to ${most}`;
    return {
      what,
      value: matrices.length === 0 ? "none" : "off",
      reason: `${reason}: matmuls run on vector units`,
    };
  }
  const texts = matrices.map((
    { componentType, resultComponentType, M, N, K },
  ) => `${componentType} to ${resultComponentType} ${M}×${N}×${K}`);
  return { what, value: texts.join(", "), reason: "the adapter has them" };
}

/** Finds out how shaders are compiled: not by name, since runtimes and versions differ. */
async function findCompiler(
  device: GPUDevice,
  subgroups: boolean,
): Promise<Choice & { value: Compiler }> {
  const what = "WGSL compiler";
  if (!subgroups) {
    return { what, value: "naga", reason: "without subgroups all are alike" };
  }
  device.pushErrorScope("validation");
  device.createShaderModule({ code: "enable subgroups;", label: "probe" });
  const refusal = await device.popErrorScope();
  return refusal
    ? { what, value: "naga", reason: "it refuses `enable subgroups;`" }
    : { what, value: "tint", reason: "it accepts `enable subgroups;`" };
}

/** An open device. Made by {@linkcode openDevice}. */
export class Gpu implements Disposable {
  /** The adapter's name. */
  readonly name: string;
  /** Whether it is a software renderer (llvmpipe, SwiftShader, …). */
  readonly software: boolean;
  /** The features and limits that were requested. */
  readonly descriptor: {
    requiredFeatures: GPUFeatureName[];
    requiredLimits: Record<string, number>;
  };
  /** The WebGPU implementation; `other` is not known to the library. */
  readonly implementation: WebGpuName | "other";
  /** How many lanes can exchange values directly; 0 without subgroups. */
  readonly subgroupSize: number;
  /** The products of small matrices that a subgroup computes at once; often none. */
  readonly subgroupMatrices: readonly SubgroupMatrix[];
  /**
   * Whether a buffer is mapped as soon as `mapAsync` returns, rather than when its
   * promise settles (in Deno 10 ms later).
   */
  readonly readsAtOnce: boolean;
  /** Compiles shaders; decides which directives they begin with. */
  readonly compiler: Compiler;
  /**
   * Whether a readback waits for the work before it only and settles at once, so that the
   * next work is submitted first. In Deno it waits for all that was submitted.
   */
  readonly readsApart: boolean;
  /** Whether this is Deno's own WebGPU on Vulkan, as far as can be determined. */
  readonly vulkan: boolean;
  /** Selects the defaults for the kernels' constants. */
  readonly adapterClass: AdapterClass;
  /** Whether shaders may use f16. */
  readonly f16: boolean;
  /** Whether passes can be timed by timestamp queries; see lib/webgpu/clock.ts. */
  timestamps: boolean;
  /** The device's limits, equal to the adapter's. */
  readonly limits: GPUSupportedLimits;
  /** Constants that measured fastest on this adapter (see lib/dispatch/keys.ts). */
  readonly tuned: Map<string, Constants> = new Map();
  /** Bytes allocated on the device and not freed yet. */
  allocated = 0;
  readonly #choices: Choice[];
  #failure?: DeviceError;
  #disposed = false;
  readonly #destroyed = new WeakSet<GPUBuffer | GPUTexture>();

  /** @ignore Made by {@linkcode openDevice}. */
  constructor(
    readonly adapter: GPUAdapter,
    readonly device: GPUDevice,
    found: {
      implementation: Implementation["name"];
      descriptor: Gpu["descriptor"];
      subgroupSize: number;
      subgroupMatrices: readonly SubgroupMatrix[];
      compiler: Compiler;
      vulkan: boolean;
      timestamps: boolean;
      readsAtOnce: boolean;
      readsApart: boolean;
      choices: readonly Choice[];
    },
  ) {
    const { info } = adapter;
    this.name = adapterName(info);
    this.software = isSoftware(info);
    this.adapterClass = adapterClass(info, this.software);
    this.implementation = found.implementation;
    this.descriptor = found.descriptor;
    this.subgroupSize = found.subgroupSize;
    this.subgroupMatrices = found.subgroupMatrices;
    this.compiler = found.compiler;
    this.vulkan = found.vulkan;
    this.timestamps = found.timestamps;
    this.readsAtOnce = found.readsAtOnce;
    this.readsApart = found.readsApart;
    this.#choices = [...found.choices];
    this.f16 = device.features.has("shader-f16");
    this.limits = device.limits;
    device.addEventListener("uncapturederror", (event) => {
      const { error } = event as GPUUncapturedErrorEvent;
      this.#failure ??= new DeviceError(
        `Cannot go on with ${this.name}: ${errorText(error.message)} (${
          megabytes(this.allocated)
        } MB were allocated)`,
      );
    });
    device.lost.then((info) => {
      if (this.#disposed) return;
      this.#failure ??= new DeviceError(
        `Cannot go on with ${this.name}: the device was lost (${info.reason}: ${
          errorText(info.message)
        }), ${megabytes(this.allocated)} MB were allocated`,
      );
    });
  }

  /** The choices made when the device was opened. */
  get choices(): readonly Choice[] {
    return this.#choices;
  }

  /** @ignore Only {@linkcode openDevice} adds choices: those of kernel constants. */
  addChoice(choice: Choice): void {
    this.#choices.push(choice);
  }

  /**
   * Checks that the device, and `what` if given, were not disposed.
   *
   * @ignore
   * @throws {Error} naming `action`, which cannot be done.
   */
  requireLive(
    action: string,
    what?: { label: string; buffer: GPUBuffer },
  ): void {
    if (this.#disposed) throw new Error(`Cannot ${action}: ${DISPOSED}`);
    if (what && this.#destroyed.has(what.buffer)) {
      throw new Error(`Cannot ${action}: ${what.label} was disposed`);
    }
  }

  /** Throws the first error that the device has reported, if any. */
  check(): void {
    if (this.#failure) throw this.#failure;
  }

  /**
   * Creates a buffer of at least `bytes`, rounded up to 16.
   *
   * @throws {DeviceError} if the adapter's limit is smaller.
   */
  buffer(
    bytes: number,
    label: string,
    usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC |
      GPUBufferUsage.COPY_DST,
  ): GPUBuffer {
    this.requireLive(`allocate ${label}`);
    const size = Math.max(16, Math.ceil(bytes / 16) * 16);
    if (size > this.limits.maxBufferSize) {
      throw new DeviceError(
        `Cannot allocate ${label}: it takes ${size} bytes, ${this.name} allows ${this.limits.maxBufferSize} per buffer`,
      );
    }
    return this.count(
      this.device.createBuffer({ size, usage, label }),
      size,
    );
  }

  /**
   * Counts `what` as allocated until it is destroyed. Public because tensors create
   * textures themselves, and their bytes belong in the device's total.
   *
   * @ignore
   */
  count<T extends GPUBuffer | GPUTexture>(what: T, size: number): T {
    this.allocated += size;
    const destroy = what.destroy.bind(what);
    what.destroy = () => {
      if (!this.#disposed) this.allocated -= size;
      this.#destroyed.add(what);
      what.destroy = () => {};
      destroy();
    };
    return what;
  }

  /** Reads bytes from a buffer once all submitted work is done. */
  async readBuffer(
    source: GPUBuffer,
    offset: number,
    bytes: number,
  ): Promise<ArrayBuffer> {
    this.requireLive(`read from ${this.name}`);
    this.check();
    const size = Math.ceil(bytes / 4) * 4;
    const staging = this.device.createBuffer({
      size,
      usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ,
    });
    try {
      const encoder = this.device.createCommandEncoder();
      encoder.copyBufferToBuffer(source, offset, staging, 0, size);
      this.device.queue.submit([encoder.finish()]);
      const copy = (await this.map(staging)).slice(0);
      staging.unmap();
      return copy;
    } finally {
      staging.destroy();
    }
  }

  /**
   * Maps a buffer for reading once all submitted work is done; pass `mapping` if
   * `mapAsync` was already called.
   *
   * @throws {DeviceError} if the device was lost or reported an error.
   */
  async map(
    buffer: GPUBuffer,
    mapping: Promise<void> = buffer.mapAsync(GPUMapMode.READ),
  ): Promise<ArrayBuffer> {
    try {
      await mapping;
    } catch (error) {
      await new Promise((resolve) => setTimeout(resolve, 0)); // the reason arrives later
      this.requireLive(`read from ${this.name}`);
      this.check();
      throw new DeviceError(
        `Cannot read from ${this.name}: ${errorText(error)} (${
          megabytes(this.allocated)
        } MB were allocated)`,
      );
    }
    if (this.#failure) buffer.unmap(); // destroying a device with a mapped buffer may hang
    this.requireLive(`read from ${this.name}`);
    this.check();
    return buffer.getMappedRange();
  }

  /** Destroys the device and frees all its memory. */
  [Symbol.dispose](): void {
    this.#disposed = true;
    this.device.destroy();
    this.allocated = 0;
  }
}

const DISPOSED = "the device was disposed";

const megabytes = (bytes: number) => Math.round(bytes / 1e6);
