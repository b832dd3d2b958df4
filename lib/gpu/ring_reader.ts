/**
 * Reads the ring of tokens that a decode loop fills, without holding the device up.
 *
 * @module
 */
import type { Gpu } from "../webgpu/device.ts";
import type { Tensor } from "../webgpu/tensor.ts";

/** In place of tokens: the cache could not hold a value. */
export const OVERFLOW: readonly number[] = [];

/** Told how long the host waited and read, by whoever measures it. */
export interface ReadWatcher {
  did(what: "wait" | "readback", began: number): void;
}

/** Copies of a ring `[steps, sequences]` and of the cache's flags, on their way to the host. */
export class RingReader implements Disposable {
  /** Buffers that nobody uses. */
  #free: GPUBuffer[] = [];
  #filled: GPUBuffer[] = [];
  #disposed = false;
  /** May be read at once: mapped before, because Deno 2.9.6 panics at a first mapping. */
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

  /** Maps `buffers` buffers once, so that they can be read at once from then on. */
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

  /** Ends `encoder` with a copy of the ring, and of `flags`, as they are then. */
  copy(encoder: GPUCommandEncoder, flags: Tensor): GPUCommandBuffer {
    const staging = this.#free.pop() ?? this.#buffer();
    const end = 4 * this.#words;
    encoder.copyBufferToBuffer(this.ring.buffer, 0, staging, 0, end);
    encoder.copyBufferToBuffer(flags.buffer, 0, staging, end, 16);
    this.#filled.push(staging);
    return encoder.finish();
  }

  /** Forgets copies that were not read. */
  drop(): void {
    this.#free.push(...this.#filled.splice(0));
  }

  /**
   * Tokens of steps `from … to` of the oldest copy, one of each sequence for a step,
   * or {@linkcode OVERFLOW}. The call itself waits for all submitted work; what it
   * returns may take another 10 ms where `gpu.readsAtOnce` is false.
   */
  async read(
    from: number,
    to: number,
    watcher?: ReadWatcher,
  ): Promise<readonly number[]> {
    const { gpu } = this;
    const staging = this.#filled.shift()!;
    const began = performance.now();
    const settled = staging.mapAsync(GPUMapMode.READ);
    const there = this.#mapped.has(staging) ? rangeOf(staging) : undefined;
    if (there) {
      watcher?.did("wait", began);
      const ids = this.#tokens(there, from, to, watcher);
      staging.unmap();
      // The promise only ends Deno's sleep.
      settled.then(
        () => this.#disposed ? staging.destroy() : this.#free.push(staging),
        () => staging.destroy(),
      );
      return ids;
    }
    const mapping = await gpu.map(staging, settled);
    watcher?.did("wait", began);
    const ids = this.#tokens(mapping, from, to, watcher);
    this.#release(staging);
    return ids;
  }

  /** Lets events in while the device works, so that timers fire and buffers come back. */
  async rest(): Promise<void> {
    if (!this.gpu.readsAtOnce) return;
    await turns(4);
    // Some promises of a busy event loop are left out for long.
    if (this.#free.length < FEW) await pause();
  }

  #tokens(
    mapping: ArrayBuffer,
    from: number,
    to: number,
    watcher?: ReadWatcher,
  ): readonly number[] {
    const began = performance.now();
    const words = new Uint32Array(mapping);
    const [steps, sequences] = this.ring.shape;
    const ids: number[] = [];
    for (let step = from; step < to; step++) {
      const at = step % steps * sequences;
      ids.push(...words.subarray(at, at + sequences));
    }
    const overflow = words[this.#words] !== 0;
    watcher?.did("readback", began);
    return overflow ? OVERFLOW : ids;
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    this.drop();
    for (const buffer of this.#free.splice(0)) buffer.destroy();
  }
}

/** The bytes of a buffer that is mapped; a lost device maps none. */
function rangeOf(buffer: GPUBuffer): ArrayBuffer | undefined {
  try {
    return buffer.getMappedRange();
  } catch {
    return undefined;
  }
}

/** With fewer buffers left, all are waited for. */
const FEW = 4;

/** Rests for one or two milliseconds: whatever is due happens. */
function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}

/** Takes turns of the event loop, each in microseconds: much of what is due happens. */
async function turns(count: number): Promise<void> {
  const { port1, port2 } = new MessageChannel();
  for (let i = 0; i < count; i++) {
    await new Promise((resolve) => {
      port1.onmessage = resolve;
      port2.postMessage(null);
    });
  }
  port1.close();
  port2.close();
}
