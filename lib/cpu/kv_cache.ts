/**
 * The KV cache in main memory.
 *
 * @module
 */
import type { Qwen3Config } from "../checkpoint/config.ts";
import {
  cachedRanges,
  type CacheDtype,
  quantizedHeads,
} from "../formats/cached.ts";
import { bytesOf, type CpuTensor, f32 } from "../formats/tensor.ts";
import {
  type CacheSize,
  type KeptCache,
  KvCache,
  type Paging,
} from "../model/kv_cache.ts";

/** Types of keys and values on the CPU path. */
export type CpuCacheDtype = Exclude<CacheDtype, "f16">;

/**
 * Keys and values of every layer, f32 or as words of q8_0 (lib/formats/cached.ts); dispose
 * it to release the memory.
 */
export class CpuKvCache extends KvCache<CpuTensor>
  implements KeptCache, Disposable {
  readonly dtype: CacheDtype;
  readonly #config: Qwen3Config;
  readonly #release: () => void;

  constructor(
    layers: readonly { k: CpuTensor; v: CpuTensor }[],
    { sequences, context, dtype }: CacheSize,
    config: Qwen3Config,
    release: () => void,
    paging?: Paging,
  ) {
    super(layers, sequences, context, paging);
    this.dtype = dtype;
    this.#config = config;
    this.#release = release;
  }

  async *save(tokens: number): AsyncGenerator<Uint8Array<ArrayBuffer>, void> {
    for (const parts of this.#parts(tokens)) {
      const all = new Uint8Array(sizeOf(parts));
      let to = 0;
      for (const part of parts) {
        all.set(part, to);
        to += part.length;
      }
      yield all;
    }
  }

  async restore(
    tokenIds: readonly number[],
    next: (bytes: number) => Promise<Uint8Array<ArrayBuffer>>,
  ): Promise<void> {
    this.reset();
    for (const parts of this.#parts(tokenIds.length)) {
      const all = await next(sizeOf(parts));
      let from = 0;
      for (const part of parts) {
        part.set(all.subarray(from, from += part.length));
      }
    }
    this.hold(tokenIds);
  }

  /** Keys of each layer, then its values, in parts. */
  #parts(tokens: number): Uint8Array[][] {
    const { numKeyValueHeads: kvHeads, headDim } = this.#config;
    const size = { kvHeads, headDim, context: this.context };
    const ranges = cachedRanges(this.dtype, size, tokens);
    return this.layers.flatMap(({ k, v }) =>
      [k, v].map((tensor) => {
        const all = bytesOf(tensor);
        return ranges.map(({ at, bytes }) => all.subarray(at, at + bytes));
      })
    );
  }

  [Symbol.dispose](): void {
    this.#release();
  }
}

const sizeOf = (parts: readonly Uint8Array[]) =>
  parts.reduce((sum, { length }) => sum + length, 0);

/** Returns a function that stores a head of cached keys or values. */
export function writerOf(
  cached: CpuTensor,
  headDim: number,
): (row: number, head: Float32Array) => void {
  if (cached.dtype === "f32") {
    const all = f32(cached);
    return (row, head) => all.set(head, row * headDim);
  }
  const heads = quantizedHeads(cached, headDim);
  return (row, head) => heads.put(row, head, 0);
}
