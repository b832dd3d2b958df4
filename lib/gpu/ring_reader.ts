/**
 * Reads the ring of tokens that a decode loop fills, without stalling the device.
 *
 * @module
 */
import { turns } from "../dispatch/rests.ts";
import type { Gpu } from "../webgpu/device.ts";
import type { Tensor } from "../webgpu/tensor.ts";

/** Returned instead of tokens if the cache's flags say that something did not fit. */
export const OVERFLOW: readonly number[] = [];

/** Observes how long the host spends waiting and reading. */
export interface ReadWatcher {
  did(what: "wait" | "readback", began: number): void;
}

/** Copies a ring `[steps, sequences]` and the cache's flags to the host. */
export class RingReader implements Disposable {
  /** Buffers that are not in use. */
  #free: GPUBuffer[] = [];
  #filled: GPUBuffer[] = [];
  #disposed = false;
  /**
   * Buffers that have been mapped before: Deno 2.9.6 panics if a buffer's first mapping is
   * read early.
   */
  readonly #mapped = new WeakSet<GPUBuffer>();

  constructor(readonly gpu: Gpu, readonly ring: Tensor) {}

  get #words(): number {
    return this.ring.shape[0] * this.ring.shape[1];
  }

  #buffer(): GPUBuffer {
    return this.gpu.device.createBuffer({
      size: 4 * (this.#words + 4),
      usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ,
    });
  }

  /**
   * Creates `buffers` buffers and maps them once, so that they can be read early from
   * then on.
   */
  async prepare(buffers: number): Promise<void> {
    if (!this.gpu.readsAtOnce) return;
    const made = Array.from({ length: buffers }, () => this.#buffer());
    await Promise.all(made.map((buffer) => this.gpu.map(buffer)));
    for (const buffer of made) this.#release(buffer);
  }

  #release(buffer: GPUBuffer): void {
    buffer.unmap();
    if (this.gpu.readsAtOnce) this.#mapped.add(buffer);
    this.#free.push(buffer);
  }

  /** Finishes `encoder` with a copy of the ring and of `flags`. */
  copy(encoder: GPUCommandEncoder, flags: Tensor): GPUCommandBuffer {
    const staging = this.#free.pop() ?? this.#buffer();
    const end = 4 * this.#words;
    encoder.copyBufferToBuffer(this.ring.buffer, 0, staging, 0, end);
    encoder.copyBufferToBuffer(flags.buffer, 0, staging, end, 16);
    this.#filled.push(staging);
    return encoder.finish();
  }

  /** Discards copies that were not read. */
  drop(): void {
    this.#free.push(...this.#filled.splice(0));
  }

  /**
   * Reads the tokens of steps `from … to` from the oldest copy, one per sequence and
   * step, or {@linkcode OVERFLOW}. The call itself waits for all submitted work; its
   * promise may take another 10 ms where `gpu.readsAtOnce` is false.
   */
  async read(
    from: number,
    to: number,
    watcher?: ReadWatcher,
  ): Promise<readonly number[]> {
    const ids = await this.#read((words) => {
      const [steps, sequences] = this.ring.shape, ids: number[] = [];
      for (let step = from; step < to; step++) {
        const at = step % steps * sequences;
        ids.push(...words.subarray(at, at + sequences));
      }
      return ids;
    }, watcher);
    return ids ?? OVERFLOW;
  }

  /**
   * Like {@linkcode read}, of sequences at steps of their own: `steps` tokens of sequence
   * `s` from step `begins[s]` on, of the first ones. If each has several words in the ring,
   * so does the result. undefined if the cache's flags say that something did not fit.
   */
  async readEach(
    begins: readonly number[],
    steps: number,
    words = 1,
  ): Promise<number[][] | undefined> {
    const [ring, width] = this.ring.shape;
    return await this.#read((all) =>
      begins.map((begin, s) => {
        const ids: number[] = [];
        for (let step = begin; step < begin + steps; step++) {
          const at = step % ring * width + s * words;
          for (let i = at; i < at + words; i++) ids.push(all[i]);
        }
        return ids;
      })
    );
  }

  async #read<T>(
    pick: (words: Uint32Array) => T,
    watcher?: ReadWatcher,
  ): Promise<T | undefined> {
    const { gpu } = this;
    const staging = this.#filled.shift()!;
    const began = performance.now();
    const settled = staging.mapAsync(GPUMapMode.READ);
    const there = this.#mapped.has(staging) ? rangeOf(staging) : undefined;
    if (there) {
      watcher?.did("wait", began);
      const picked = this.#pick(there, pick, watcher);
      staging.unmap();
      // The tokens are read; the promise only marks the end of Deno's 10 ms sleep.
      settled.then(
        () => this.#disposed ? staging.destroy() : this.#free.push(staging),
        () => staging.destroy(),
      );
      return picked;
    }
    const mapping = await gpu.map(staging, settled);
    watcher?.did("wait", began);
    const picked = this.#pick(mapping, pick, watcher);
    this.#release(staging);
    return picked;
  }

  /**
   * Yields to the event loop while the device works, so that timers fire and buffers
   * are returned.
   */
  async rest(): Promise<void> {
    if (!this.gpu.readsAtOnce) return;
    await turns(4);
    // A busy event loop may leave some promises pending for a long time.
    if (this.#free.length < FEW) await pause();
  }

  #pick<T>(
    mapping: ArrayBuffer,
    pick: (words: Uint32Array) => T,
    watcher?: ReadWatcher,
  ): T | undefined {
    const began = performance.now();
    const words = new Uint32Array(mapping);
    const picked = words[this.#words] === 0 ? pick(words) : undefined;
    watcher?.did("readback", began);
    return picked;
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    this.drop();
    for (const buffer of this.#free.splice(0)) buffer.destroy();
  }
}

/** The bytes of a mapped buffer; undefined if the device was lost. */
function rangeOf(buffer: GPUBuffer): ArrayBuffer | undefined {
  try {
    return buffer.getMappedRange();
  } catch {
    return undefined;
  }
}

/**
 * With fewer free buffers than this, {@linkcode RingReader.rest} yields for longer
 * (bench/log.md, "Yielding to the event loop"). The number was not measured: it is an
 * eighth of the buffers.
 */
const FEW = 4;

/** Yields for one or two milliseconds, which runs all pending callbacks. */
function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}
