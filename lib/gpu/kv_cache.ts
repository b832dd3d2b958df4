/**
 * The KV cache on the GPU, with the lengths, RoPE angles and flags that kernels need.
 *
 * @module
 */
import {
  FLAG_WORDS,
  LEFT_OVERFLOWS,
  lengthRows,
  NOT_PAGED,
  stateWords,
} from "../../kernels/heads.ts";
import {
  type ByteRange,
  cachedRanges,
  type CacheDtype,
  storedAs,
} from "../formats/cached.ts";
import { errorText, MemoryError } from "../errors.ts";
import {
  cacheBytes,
  type CachePass,
  type CacheSize,
  type KeptCache,
  KvCache,
  type Paging,
  sizeText,
  smallerCache,
} from "../model/kv_cache.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import { literalsOf } from "../dispatch/literals.ts";
import type { Gpu } from "../webgpu/device.ts";
import { fillAngles, ropeFrequencies } from "../model/rope.ts";
import { Tensor } from "../webgpu/tensor.ts";

/** Memory of a cache that holds one layer at a time, so each text must fit one pass. */
export interface SharedLayers {
  /** Of at least `sequences · kvHeads · context · headDim` elements, in the cache's type. */
  k: Tensor;
  v: Tensor;
  /** u32, at least the flags. */
  state: Tensor;
}

/** Options of {@linkcode GpuKvCache}. */
export interface GpuCacheOptions {
  shared?: SharedLayers;
  paging?: Paging;
  /** What errors say there is no memory for, if not all of it. */
  asked?: Pick<CacheSize, "sequences" | "context">;
}

/**
 * Keys and values of every layer on the device; in q8_0, as words (lib/formats/cached.ts).
 * Once all submitted work is done,
 * `lengths` matches the device's copy, except while a decode loop runs.
 */
export class GpuKvCache extends KvCache<Tensor>
  implements KeptCache, Disposable {
  /** u32: flags and what decode attention keeps between workgroups (kernels/heads.ts). */
  readonly state: Tensor;
  /**
   * The flags in `state`, u32 `[4]`: `[0]` is set if a value did not fit the cache's type, or
   * what a matmul left for the next kernel did not fit f16 or fixed point; then `[2]` is set, too.
   */
  readonly flags: Tensor;
  /** u32: lengths, and cosines and sines of every position (kernels/heads.ts). */
  readonly positions: Tensor;
  /** The lengths in `positions`, u32 `[sequences]`: sampling advances them. */
  readonly lengthsOnDevice: Tensor;
  /** The lengths, followed by the table of pages if there is one, u32. */
  readonly placesOnDevice: Tensor;
  /** Constants of the kernels that read the cache. */
  readonly constants: Record<keyof typeof NOT_PAGED, number>;
  readonly #config: Qwen3Config;
  readonly #isShared: boolean;

  constructor(
    gpu: Gpu,
    config: Qwen3Config,
    sequences: number,
    context: number,
    readonly dtype: CacheDtype,
    { shared, paging }: GpuCacheOptions = {},
  ) {
    const { numHiddenLayers, numKeyValueHeads, headDim } = config;
    const { numAttentionHeads } = config;
    const { dtype: stored, width } = storedAs(dtype, headDim);
    const shape = [
      paging?.pages ?? sequences,
      numKeyValueHeads,
      paging?.page ?? context,
      width,
    ];
    const create = (label: string) =>
      Tensor.create(gpu, stored, shape, undefined, label);
    const view = ({ buffer, label }: Tensor) =>
      new Tensor(gpu, stored, shape, buffer, label);
    const layers = Array.from(
      { length: numHiddenLayers },
      (_, i) =>
        shared ? { k: view(shared.k), v: view(shared.v) } : {
          k: create(`layers.${i}.k_cache`),
          v: create(`layers.${i}.v_cache`),
        },
    );
    super(layers, sequences, context, paging);
    const table = paging ? this.pagesEach : 0;
    this.constants = paging
      ? { LOG_PAGE: Math.log2(paging.page), SLOTS: sequences, TABLE: table }
      : NOT_PAGED;
    this.#config = config;
    this.#isShared = shared !== undefined;
    this.state = shared?.state ?? Tensor.create(
      gpu,
      "u32",
      [stateWords(sequences, numAttentionHeads)],
      undefined,
      "attention state",
    );
    this.flags = this.state.rows(FLAG_WORDS);
    const begin = lengthRows(sequences, headDim, table), rows = begin + context;
    const angles = new Float32Array(rows * headDim);
    fillAngles(ropeFrequencies(config), angles.subarray(begin * headDim));
    this.positions = Tensor.create(
      gpu,
      "u32",
      [rows, headDim],
      angles,
      "lengths and angles",
    );
    const { buffer } = this.positions;
    this.lengthsOnDevice = new Tensor(
      gpu,
      "u32",
      [sequences],
      buffer,
      "lengths",
    );
    const places = [sequences * (1 + table)];
    this.placesOnDevice = new Tensor(gpu, "u32", places, buffer, "places");
  }

  /** Which sizes of a pass of `tokens` tokens are literals; see {@linkcode literalsOf}. */
  literals(tokens: number): ((name: string) => boolean) | undefined {
    const { sequences, constants, state: { gpu } } = this;
    const paged = constants !== NOT_PAGED;
    return literalsOf({ tokens, sequences, paged }, gpu);
  }

  /**
   * Allocates the cache and waits to see whether it fits: WebGPU does not report free
   * memory.
   *
   * @throws {MemoryError} if the device has too little memory left.
   */
  static async create(
    ...[gpu, config, sequences, context, dtype, options = {}]:
      ConstructorParameters<typeof GpuKvCache>
  ): Promise<GpuKvCache> {
    const used = gpu.allocated;
    gpu.device.pushErrorScope("out-of-memory");
    let cache: GpuKvCache | undefined, error: GPUError | null;
    try {
      cache = new GpuKvCache(
        gpu,
        config,
        sequences,
        context,
        dtype,
        options,
      );
    } finally {
      error = await gpu.device.popErrorScope();
    }
    if (!error) return cache;
    cache[Symbol.dispose]();
    const { paging, asked } = options;
    const held = asked ??
      (paging
        ? { sequences: 1, context: paging.pages * paging.page }
        : { sequences, context });
    const bytes = cacheBytes(config, held.sequences, held.context, dtype);
    const size = sizeText(held, bytes);
    throw new MemoryError(
      `Cannot allocate keys and values of ${size}: ${gpu.name} has no memory for ${bytes} bytes besides the ${used} in use, there must be fewer sequences or tokens${
        smallerCache(config, held.sequences, held.context, dtype)
      } (${errorText(error.message)})`,
    );
  }

  /** Selects the pass to record into a plan, which can then run at any lengths. */
  record(pass: CachePass): void {
    this.select(pass);
  }

  async *save(tokens: number): AsyncGenerator<Uint8Array<ArrayBuffer>, void> {
    const ranges = this.#ranges(tokens);
    const size = ranges.reduce((sum, { bytes }) => sum + bytes, 0);
    for (const tensor of this.layers.flatMap(({ k, v }) => [k, v])) {
      const { gpu, buffer } = tensor;
      gpu.requireLive(`read ${tensor.label}`, tensor);
      const staging = gpu.device.createBuffer({
        size,
        usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ,
      });
      try {
        const encoder = gpu.device.createCommandEncoder();
        let to = 0;
        for (const { at, bytes } of ranges) {
          encoder.copyBufferToBuffer(buffer, at, staging, to, bytes);
          to += bytes;
        }
        gpu.device.queue.submit([encoder.finish()]);
        const copy = new Uint8Array(await gpu.map(staging)).slice();
        staging.unmap();
        yield copy;
      } finally {
        staging.destroy();
      }
    }
  }

  async restore(
    tokenIds: readonly number[],
    next: (bytes: number) => Promise<Uint8Array<ArrayBuffer>>,
  ): Promise<void> {
    this.reset();
    const ranges = this.#ranges(tokenIds.length);
    const size = ranges.reduce((sum, { bytes }) => sum + bytes, 0);
    for (const tensor of this.layers.flatMap(({ k, v }) => [k, v])) {
      const all = await next(size);
      let from = 0;
      for (const { at, bytes } of ranges) {
        tensor.write(at, all.subarray(from, from + bytes));
        from += bytes;
      }
    }
    this.hold(tokenIds);
  }

  #ranges(tokens: number): ByteRange[] {
    const { numKeyValueHeads: kvHeads, headDim } = this.#config;
    const size = { kvHeads, headDim, context: this.context };
    return cachedRanges(this.dtype, size, tokens);
  }

  /** Sets the lengths and clears the flags. */
  override reset(lengths?: ArrayLike<number>): void {
    super.reset(lengths);
    this.flags.write(0, new Uint32Array(FLAG_WORDS));
  }

  protected override lengthsChanged(): void {
    this.lengthsOnDevice.write(0, this.lengths);
  }

  [Symbol.dispose](): void {
    this.positions[Symbol.dispose]();
    if (this.#isShared) return;
    for (const { k, v } of this.layers) {
      k[Symbol.dispose]();
      v[Symbol.dispose]();
    }
    this.state[Symbol.dispose]();
  }
}

/** What did not fit that a matmul left for the next kernel: sums in fixed point, or rows in f16. */
export type LeftOverflow = keyof typeof LEFT_OVERFLOWS;

/** Which of these flags of caches say did not fit, if any; clears those. */
export async function leftOverflowed(
  flags: readonly (Tensor | undefined)[],
): Promise<LeftOverflow | undefined> {
  for (const one of flags) {
    const what = (await one?.read())?.[2];
    if (!what) continue;
    one!.write(0, new Uint32Array(FLAG_WORDS));
    return what === LEFT_OVERFLOWS.halves ? "halves" : "sums";
  }
}
