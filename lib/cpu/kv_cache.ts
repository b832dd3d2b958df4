/**
 * The KV cache in main memory.
 *
 * @module
 */
import type { CacheDtype } from "../formats/cached.ts";
import type { CpuTensor } from "../formats/tensor.ts";
import { KvCache, type Paging } from "../model/kv_cache.ts";

/** Types of keys and values on the CPU path. */
export type CpuCacheDtype = Exclude<CacheDtype, "f16">;

/**
 * Keys and values of every layer, f32 or as words of q8_0 (lib/formats/cached.ts); dispose
 * it to release the memory.
 */
export class CpuKvCache extends KvCache<CpuTensor> implements Disposable {
  readonly #release: () => void;

  constructor(
    layers: readonly { k: CpuTensor; v: CpuTensor }[],
    sequences: number,
    context: number,
    release: () => void,
    paging?: Paging,
  ) {
    super(layers, sequences, context, paging);
    this.#release = release;
  }

  [Symbol.dispose](): void {
    this.#release();
  }
}
