/**
 * The KV cache on the GPU, with the lengths, RoPE angles and flags that kernels need.
 *
 * @module
 */
import { errorText, MemoryError } from "../errors.ts";
import {
  cacheBytes,
  type CachePass,
  KvCache,
  sizeText,
} from "../model/kv_cache.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import type { Gpu } from "../webgpu/device.ts";
import { fillAngles, ropeFrequencies } from "../model/rope.ts";
import { Tensor } from "../webgpu/tensor.ts";

/**
 * Keys and values of every layer on the device. Once all submitted work is done,
 * `lengths` matches the device's copy, except while a decode loop runs.
 */
export class GpuKvCache extends KvCache<Tensor> implements Disposable {
  /** u32 `[sequences]`: kernels read it, and sampling advances it. */
  readonly lengthsOnDevice: Tensor;
  /** u32 `[4]`: `[0]` is set if a value did not fit the cache's type. */
  readonly flags: Tensor;
  /** f32 `[context, headDim]`: cosines, then sines, of every position. */
  readonly angles: Tensor;

  constructor(
    gpu: Gpu,
    config: Qwen3Config,
    sequences: number,
    context: number,
    readonly dtype: "f16" | "f32",
  ) {
    const { numHiddenLayers, numKeyValueHeads, headDim } = config;
    const shape = [sequences, numKeyValueHeads, context, headDim];
    const layers = Array.from({ length: numHiddenLayers }, (_, i) => ({
      k: Tensor.create(gpu, dtype, shape, undefined, `layers.${i}.k_cache`),
      v: Tensor.create(gpu, dtype, shape, undefined, `layers.${i}.v_cache`),
    }));
    super(layers, sequences, context);
    this.lengthsOnDevice = Tensor.create(
      gpu,
      "u32",
      [sequences],
      undefined,
      "lengths",
    );
    this.flags = Tensor.create(gpu, "u32", [4], undefined, "flags");
    const angles = new Float32Array(context * headDim);
    fillAngles(ropeFrequencies(config), angles);
    this.angles = Tensor.create(gpu, "f32", [context, headDim], angles, "rope");
  }

  /**
   * Allocates the cache and waits to see whether it fits: WebGPU does not report free
   * memory.
   *
   * @throws {MemoryError} if the device has too little memory left.
   */
  static async create(
    ...[gpu, config, sequences, context, dtype]: ConstructorParameters<
      typeof GpuKvCache
    >
  ): Promise<GpuKvCache> {
    const used = gpu.allocated;
    gpu.device.pushErrorScope("out-of-memory");
    let cache: GpuKvCache | undefined, error: GPUError | null;
    try {
      cache = new GpuKvCache(gpu, config, sequences, context, dtype);
    } finally {
      error = await gpu.device.popErrorScope();
    }
    if (!error) return cache;
    cache[Symbol.dispose]();
    const bytes = cacheBytes(config, sequences, context, dtype);
    const size = sizeText({ sequences, context }, bytes);
    throw new MemoryError(
      `Cannot allocate keys and values of ${size}: ${gpu.name} has no memory for ${bytes} bytes besides the ${used} in use, there must be fewer sequences or tokens (${
        errorText(error.message)
      })`,
    );
  }

  /** Selects the pass to record into a plan, which can then run at any lengths. */
  record(pass: CachePass): void {
    this.select(pass);
  }

  /** Sets the lengths and clears the flags. */
  override reset(lengths?: ArrayLike<number>): void {
    super.reset(lengths);
    this.flags.write(0, new Uint32Array(4));
  }

  protected override lengthsChanged(): void {
    this.lengthsOnDevice.write(0, this.lengths);
  }

  [Symbol.dispose](): void {
    for (const { k, v } of this.layers) {
      k[Symbol.dispose]();
      v[Symbol.dispose]();
    }
    this.lengthsOnDevice[Symbol.dispose]();
    this.flags[Symbol.dispose]();
    this.angles[Symbol.dispose]();
  }
}
