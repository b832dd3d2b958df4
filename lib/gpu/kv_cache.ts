/**
 * The KV cache on the GPU, with the lengths that the kernels read beside it.
 *
 * @module
 */
import { MemoryError } from "../errors.ts";
import type { KvCache } from "../model/kv_cache.ts";
import { cacheBytes, sizeText } from "../model/kv_cache.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import type { Gpu } from "../webgpu/device.ts";
import { fillAngles, ropeFrequencies } from "../model/rope.ts";
import { Tensor } from "../webgpu/tensor.ts";

/** Keys and values of every layer on the device. */
export class GpuKvCache implements KvCache<Tensor>, Disposable {
  readonly layers: readonly { k: Tensor; v: Tensor }[];
  /** Known to the host: what `lengthsOnDevice` holds once all submitted work is done. */
  readonly lengths: Uint32Array<ArrayBuffer>;
  /** u32 `[sequences]`; kernels read it, sampling advances it. */
  readonly lengthsOnDevice: Tensor;
  /** u32 `[4]`: `[0]` is set when a value did not fit the cache's type. */
  readonly flags: Tensor;
  /** f32 `[context, headDim]`: cos, then sin, of every position. */
  readonly angles: Tensor;
  pass: { first: number; tokens: number } = { first: 0, tokens: 1 };

  constructor(
    gpu: Gpu,
    config: Qwen3Config,
    readonly sequences: number,
    readonly context: number,
    readonly dtype: "f16" | "f32",
  ) {
    const { numHiddenLayers, numKeyValueHeads, headDim } = config;
    const shape = [sequences, numKeyValueHeads, context, headDim];
    this.layers = Array.from({ length: numHiddenLayers }, (_, i) => ({
      k: Tensor.create(gpu, dtype, shape, undefined, `layers.${i}.k_cache`),
      v: Tensor.create(gpu, dtype, shape, undefined, `layers.${i}.v_cache`),
    }));
    this.lengths = new Uint32Array(sequences);
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
   * The same, but out of memory is met here: WebGPU does not tell how much there is.
   *
   * @throws {MemoryError} if there is none left for it.
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
      `Cannot allocate keys and values of ${size}: ${gpu.name} has no memory for ${bytes} bytes beside the ${used} in use, there must be fewer sequences or tokens (${
        error.message.replaceAll(/\s+/g, " ").trim()
      })`,
    );
  }

  /** Sets the lengths, on host and device, and clears the flags. */
  reset(lengths: ArrayLike<number>): void {
    this.lengths.set(Array.from(lengths));
    this.lengthsOnDevice.write(0, this.lengths);
    this.flags.write(0, new Uint32Array(4));
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
