/**
 * The GPU: adapter, limits, features, and every choice with its reason.
 *
 * @module
 */
import { BYTES, elements } from "../dtype.ts";
import {
  type AdapterClass,
  adapterClass,
  defaultsFor,
} from "../dispatch/defaults.ts";
import type { Dtype } from "../model/ops.ts";
import type { Constants } from "./unroll.ts";
import { Tensor, type TensorPart } from "./tensor.ts";
import { TEXELS_WIDE } from "./wgsl.ts";

/** Something that was decided, and why. */
export interface Choice {
  what: string;
  value: string;
  reason: string;
}

/** What {@linkcode openDevice} takes. */
export interface DeviceOptions {
  /** Any WebGPU implementation; `navigator.gpu` by default. */
  gpu?: GPU;
}

/** No adapter could be had, or it refuses what is needed. */
export class NoAdapterError extends Error {
  override name = "NoAdapterError";
}

/** The device was lost, ran out of memory, or refused a command. */
export class DeviceError extends Error {
  override name = "DeviceError";
}

const BRINGS_ONE =
  "install a Vulkan driver (Debian, Ubuntu: apt-get install mesa-vulkan-drivers brings a software one) or run on the CPU";

/**
 * Opens a GPU: asks for the adapter's own limits (WebGPU's defaults allow
 * bindings of 128 MiB only), for f16, subgroups and timestamps where they can be had.
 *
 * @throws {NoAdapterError} if there is no adapter.
 */
export async function openDevice(options: DeviceOptions = {}): Promise<Gpu> {
  const implementation = options.gpu ?? navigator.gpu;
  if (!implementation) {
    throw new NoAdapterError(
      "Cannot open a GPU: this runtime has no WebGPU (navigator.gpu), it must be Deno 2.9 or later, or pass one as `gpu`",
    );
  }
  const request = () =>
    implementation.requestAdapter({ powerPreference: "high-performance" });
  let adapter = await request();
  if (!adapter) {
    throw new NoAdapterError(
      `Cannot open a GPU: there is no WebGPU adapter here, ${BRINGS_ONE}`,
    );
  }
  const workgroup = adapter.limits.maxComputeWorkgroupStorageSize;
  if (workgroup < 32768) {
    throw new NoAdapterError(
      `Cannot open a GPU: ${adapter.info.description} has ${workgroup} bytes of workgroup memory, the kernels must have 32768`,
    );
  }
  const choices: Choice[] = [];
  const features: GPUFeatureName[] = [];
  const want = (feature: GPUFeatureName, without: string) => {
    const there = adapter!.features.has(feature);
    if (there) features.push(feature);
    choices.push({
      what: feature,
      value: there ? "on" : "off",
      reason: there ? "the adapter has it" : `the adapter lacks it: ${without}`,
    });
    return there;
  };
  want("shader-f16", "products are computed in f32");
  const timestamps = want("timestamp-query", "passes are timed by wall clock");
  const requiredLimits: Record<string, number> = {};
  for (const limit of LIMITS) {
    requiredLimits[limit] = adapter.limits[limit] as number;
  }
  // Deno grants subgroups without listing them, so try, and do without if refused.
  const subgroups = "subgroups" as GPUFeatureName;
  let descriptor = {
    requiredFeatures: [...features, subgroups],
    requiredLimits,
  };
  let device: GPUDevice, why = "";
  try {
    device = await adapter.requestDevice(descriptor);
  } catch (error) {
    why = error instanceof Error ? error.message : String(error);
    adapter = await request(); // a refused request uses the adapter up
    if (!adapter) {
      throw new NoAdapterError("Cannot open a GPU: the adapter is gone");
    }
    descriptor = { requiredFeatures: features, requiredLimits };
    device = await adapter.requestDevice(descriptor);
  }
  // A subgroup of which only the size range is known is used by its smallest size.
  const smallest = why === "" ? adapter.info.subgroupMinSize ?? 0 : 0;
  const subgroupSize = smallest >= 4 ? Math.min(smallest, 32) : 0;
  choices.push({
    what: "subgroups",
    value: subgroupSize ? `${subgroupSize} lanes` : "off",
    reason: subgroupSize
      ? `granted; the adapter's subgroups have ${adapter.info.subgroupMinSize} to ${adapter.info.subgroupMaxSize} lanes`
      : `sums go through workgroup memory: ${
        why || "the adapter names no subgroup size"
      }`,
  });
  // Other versions may panic where this one has the bytes, so it is not tried there.
  const readsAtOnce = options.gpu === undefined &&
    Deno.version.deno === READS_AT_ONCE;
  choices.push({
    what: "readback",
    value: readsAtOnce ? "at once" : "when mapAsync settles",
    reason: readsAtOnce
      ? `Deno ${READS_AT_ONCE} has a buffer mapped when mapAsync returns, 10 ms before its promise settles`
      : options.gpu === undefined
      ? `Deno ${Deno.version.deno} was not tested for more, ${READS_AT_ONCE} was`
      : "another WebGPU than Deno's own",
  });
  // Deno does not say which it is. On Linux it is Vulkan, or GL, which has no subgroups.
  const vulkan = options.gpu === undefined && Deno.build.os === "linux" &&
    subgroupSize > 0;
  const found = {
    ...{ descriptor, subgroupSize, vulkan, timestamps, readsAtOnce, choices },
  };
  const gpu = new Gpu(adapter, device, found);
  choices.push({
    what: "kernel constants",
    value: `defaults for ${gpu.adapterClass}`,
    reason: defaultsFor(gpu).source,
  });
  // Imported late: the kernels whose text it looks at import this module.
  const { loadTuning } = await import("../dispatch/tuned.ts");
  choices.push(await loadTuning(gpu));
  return gpu;
}

/** The Deno whose buffers were found mapped when `mapAsync` returns. */
const READS_AT_ONCE = "2.9.6";

const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxStorageBuffersPerShaderStage",
] as const;

/** What an adapter calls itself. */
export function adapterName(
  { description, device, vendor }: GPUAdapterInfo,
): string {
  return description || device || vendor || "GPU";
}

/** An open device. Made by {@linkcode openDevice}. */
export class Gpu implements Disposable {
  /** What the adapter calls itself. */
  readonly name: string;
  /** Whether it is a software renderer (llvmpipe, SwiftShader, …). */
  readonly software: boolean;
  /** What the adapter was asked for. */
  readonly descriptor: {
    requiredFeatures: GPUFeatureName[];
    requiredLimits: Record<string, number>;
  };
  /** Lanes that may exchange values directly; 0 without subgroups. */
  readonly subgroupSize: number;
  /**
   * Whether a buffer's bytes are there as soon as `mapAsync` was called for it, not
   * only when its promise settles (in Deno 10 ms later).
   */
  readonly readsAtOnce: boolean;
  /** Whether it is known to be Deno's own WebGPU through Vulkan. */
  readonly vulkan: boolean;
  /** Whose defaults the kernels take. */
  readonly adapterClass: AdapterClass;
  readonly f16: boolean;
  readonly timestamps: boolean;
  readonly limits: GPUSupportedLimits;
  /** Every choice made when the device was opened. */
  readonly choices: readonly Choice[];
  /** Constants that were measured to be best on this adapter (see choose.ts). */
  readonly tuned: Map<string, Constants> = new Map();
  /** Bytes allocated on the device and not freed. */
  allocated = 0;
  #failure?: DeviceError;
  #disposed = false;

  constructor(
    readonly adapter: GPUAdapter,
    readonly device: GPUDevice,
    found: {
      descriptor: Gpu["descriptor"];
      subgroupSize: number;
      vulkan: boolean;
      timestamps: boolean;
      readsAtOnce: boolean;
      choices: Choice[];
    },
  ) {
    const { info } = adapter;
    this.name = adapterName(info);
    this.software = info.isFallbackAdapter ||
      /llvmpipe|swiftshader|software/i.test(this.name);
    this.adapterClass = adapterClass(info, this.software);
    this.descriptor = found.descriptor;
    this.subgroupSize = found.subgroupSize;
    this.vulkan = found.vulkan;
    this.timestamps = found.timestamps;
    this.readsAtOnce = found.readsAtOnce;
    this.choices = found.choices;
    this.f16 = device.features.has("shader-f16");
    this.limits = device.limits;
    device.addEventListener("uncapturederror", (event) => {
      const { error } = event as GPUUncapturedErrorEvent;
      this.#failure ??= new DeviceError(
        `Cannot go on with ${this.name}: ${oneLine(error.message)} (${
          megabytes(this.allocated)
        } MB were allocated)`,
      );
    });
    device.lost.then((info) => {
      if (this.#disposed) return;
      this.#failure ??= new DeviceError(
        `Cannot go on with ${this.name}: the device was lost (${info.reason}: ${
          oneLine(info.message)
        }), ${megabytes(this.allocated)} MB were allocated`,
      );
    });
  }

  /** Throws what the device reported since the last call, if anything. */
  check(): void {
    if (this.#failure) throw this.#failure;
  }

  /**
   * A buffer of at least `bytes` (rounded up to 16).
   *
   * @throws {DeviceError} if the adapter's limit is smaller.
   */
  buffer(
    bytes: number,
    label: string,
    usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC |
      GPUBufferUsage.COPY_DST,
  ): GPUBuffer {
    const size = Math.max(16, Math.ceil(bytes / 16) * 16);
    if (size > this.limits.maxBufferSize) {
      throw new DeviceError(
        `Cannot allocate ${label}: ${size} bytes, ${this.name} allows ${this.limits.maxBufferSize} in one buffer`,
      );
    }
    return this.#count(
      this.device.createBuffer({ size, usage, label }),
      size,
    );
  }

  /** Counts `what` as allocated until it is destroyed. */
  #count<T extends GPUBuffer | GPUTexture>(what: T, size: number): T {
    this.allocated += size;
    const destroy = what.destroy.bind(what);
    what.destroy = () => {
      this.allocated -= size;
      what.destroy = () => {};
      destroy();
    };
    return what;
  }

  /**
   * A tensor of `shape`, with `data` in it if given. With `split`, rows that one
   * binding cannot hold are spread over several buffers: runs of rows, or `pairs`:
   * each buffer then has a run of the first half of the rows and the same run of
   * the second half (gate and up projections, which are read together).
   *
   * @throws {DeviceError} if the adapter's limits are smaller.
   */
  tensor(
    dtype: Dtype,
    shape: readonly number[],
    data?: ArrayBufferView<ArrayBuffer>,
    label = "tensor",
    split?: "rows" | "pairs",
  ): Tensor {
    const bytes = elements(shape) * BYTES[dtype];
    const rows = shape[0] ?? 1, rowBytes = bytes / rows;
    const limit = this.limits.maxStorageBufferBindingSize;
    if (bytes <= limit) {
      const part = { buffer: this.buffer(bytes, label), offset: 0 };
      const all = [{ ...part, begin: 0, rows }];
      const tensor = new Tensor(this, dtype, shape, all, label);
      if (data) this.write(tensor, 0, data);
      return tensor;
    }
    // Whole groups of 8 rows keep every run aligned to 16 bytes, whatever a row has.
    const most = Math.floor(limit / rowBytes / 16) * 8;
    if (!split || most === 0) {
      throw new DeviceError(
        `Cannot allocate ${label} of shape [${
          shape.join(", ")
        }]: ${bytes} bytes, ${this.name} binds at most ${limit}`,
      );
    }
    const parts: TensorPart[] = [], runs: TensorPart[] = [];
    const step = split === "pairs" ? most : 2 * most;
    const end = split === "pairs" ? rows / 2 : rows;
    for (let begin = 0; begin < end; begin += step) {
      const n = Math.min(step, end - begin);
      const stacked = split === "pairs" ? 2 * n : n;
      const buffer = this.buffer(stacked * rowBytes, label);
      parts.push({ buffer, offset: 0, begin, rows: stacked });
      runs.push({ buffer, offset: 0, begin, rows: n });
      if (split === "pairs") {
        runs.push({
          buffer,
          offset: n * rowBytes,
          begin: end + begin,
          rows: n,
        });
      }
    }
    const tensor = new Tensor(this, dtype, shape, parts, label, runs);
    if (data) this.write(tensor, 0, data);
    return tensor;
  }

  /** A copy of whole 16 bytes of a buffer as a texture, see {@linkcode TEXELS_WIDE}. */
  texels(
    { buffer, offset }: Pick<TensorPart, "buffer" | "offset">,
    bytes: number,
    label: string,
  ): GPUTexture {
    const { device } = this, bytesPerRow = 16 * TEXELS_WIDE;
    const rows = Math.floor(bytes / bytesPerRow);
    const rest = bytes / 16 % TEXELS_WIDE;
    const texture = device.createTexture({
      size: [TEXELS_WIDE, rows + (rest ? 1 : 0)],
      format: "rgba32uint",
      usage: GPUTextureUsage.COPY_DST | GPUTextureUsage.TEXTURE_BINDING,
      label,
    });
    const encoder = device.createCommandEncoder();
    const source = { buffer, bytesPerRow };
    if (rows) {
      encoder.copyBufferToTexture({ ...source, offset }, { texture }, [
        TEXELS_WIDE,
        rows,
      ]);
    }
    if (rest) {
      const last = offset + rows * bytesPerRow, origin = [0, rows];
      encoder.copyBufferToTexture({ ...source, offset: last }, {
        texture,
        origin,
      }, [rest]);
    }
    device.queue.submit([encoder.finish()]);
    return this.#count(texture, bytes);
  }

  /** Copies `data` into a tensor from byte `begin` on. @throws {DeviceError} off 4 bytes */
  write(
    tensor: Tensor,
    begin: number,
    data: ArrayBufferView<ArrayBuffer>,
  ): void {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    const rowBytes = elements(tensor.shape) * BYTES[tensor.dtype] /
      (tensor.shape[0] ?? 1);
    for (const run of tensor.runs) {
      const from = run.begin * rowBytes;
      const to = tensor.runs.length === 1
        ? Infinity
        : from + run.rows * rowBytes;
      const a = Math.max(begin, from), b = Math.min(begin + bytes.length, to);
      if (a >= b) continue;
      const piece = bytes.subarray(a - begin, b - begin);
      // writeBuffer takes multiples of 4 bytes; only a tensor's end may fall short.
      const whole = piece.length & ~3;
      const at = run.offset + a - from;
      if (at % 4) {
        throw new DeviceError(
          `Cannot write ${tensor.label}: rows begin at byte ${at} of a buffer, must be at a multiple of 4`,
        );
      }
      if (whole) this.device.queue.writeBuffer(run.buffer, at, piece, 0, whole);
      if (whole < piece.length) {
        const rest = new Uint8Array(4);
        rest.set(piece.subarray(whole));
        this.device.queue.writeBuffer(run.buffer, at + whole, rest);
      }
    }
  }

  /** The bytes of a buffer, after all submitted work. */
  async readBuffer(
    source: GPUBuffer,
    offset: number,
    bytes: number,
  ): Promise<ArrayBuffer> {
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
   * Maps a buffer for reading, after all submitted work, unless `mapping` has begun.
   *
   * @throws {DeviceError} if the device was lost or reported anything.
   */
  async map(
    buffer: GPUBuffer,
    mapping = buffer.mapAsync(GPUMapMode.READ),
  ): Promise<ArrayBuffer> {
    try {
      await mapping;
    } catch (error) {
      await new Promise((resolve) => setTimeout(resolve, 0)); // why comes after that
      this.check();
      throw new DeviceError(
        `Cannot read from ${this.name}: ${oneLine(String(error))} (${
          megabytes(this.allocated)
        } MB were allocated)`,
      );
    }
    if (this.#failure) buffer.unmap(); // a device with a mapped buffer may hang at its end
    this.check();
    return buffer.getMappedRange();
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    this.device.destroy(); // with all its memory
    this.allocated = 0;
  }
}

const oneLine = (text: string) => text.replaceAll(/\s+/g, " ").trim();
const megabytes = (bytes: number) => Math.round(bytes / 1e6);
