/**
 * Allocates tensors in memory that WebAssembly and all threads share without copies.
 *
 * @module
 */
import type { Dtype } from "../dtype.ts";
import { BYTES, elements } from "../dtype.ts";
import { MemoryError } from "../errors.ts";
import type { CpuTensor } from "../formats/tensor.ts";

const PAGE = 65536;
/** The size that 32-bit addresses can reach; beyond it another memory is added. */
const MEMORY_BYTES = PAGE * PAGE;
/** Kernels may read this many bytes past the end of a tensor; they ignore the values. */
const SLACK = 64;

/** Where something is. */
export interface Place {
  memory: number;
  address: number;
}

/** A free range of a memory. */
interface Region extends Place {
  bytes: number;
}

/** Allocates tensors. Memories grow as needed and never shrink. */
export class CpuMemory {
  readonly #memories: WebAssembly.Memory[] = [];
  /** The memory of each buffer; a memory gets a new buffer whenever it grows. */
  readonly #memoryOf = new WeakMap<ArrayBufferLike, number>();
  /** The end of the used part of the last memory. */
  #top = MEMORY_BYTES;
  readonly #free: Region[] = [];

  /**
   * @param reserved bytes at the start of each memory that hold no tensors
   * @param onMemory called with each new memory; they are numbered from 0
   */
  constructor(
    private readonly reserved: number,
    private readonly onMemory: (memory: WebAssembly.Memory) => void,
  ) {}

  /** Bytes of all memories. */
  get byteLength(): number {
    return this.#memories.reduce((n, { buffer }) => n + buffer.byteLength, 0);
  }

  /**
   * Allocates a tensor of zeros within one memory.
   *
   * @throws {MemoryError} if it needs more than 4 GiB, or memory runs out
   */
  allocate(dtype: Dtype, shape: readonly number[]): CpuTensor {
    const size = elements(shape);
    const { memory, address } = this.#reserve(aligned(size * BYTES[dtype]));
    const { buffer } = this.#memories[memory];
    this.#memoryOf.set(buffer, memory);
    const data = dtype === "f32"
      ? new Float32Array(buffer, address, size)
      : dtype === "u32"
      ? new Uint32Array(buffer, address, size)
      : new Uint16Array(buffer, address, size);
    return { dtype, shape, data };
  }

  /** Frees a tensor's bytes for reuse. */
  release(tensor: CpuTensor): void {
    const bytes = aligned(tensor.data.byteLength);
    if (bytes === 0) return;
    const free = this.#free;
    free.push({ ...this.find(tensor), bytes });
    free.sort((a, b) => a.memory - b.memory || a.address - b.address);
    for (let i = free.length - 1; i > 0; i--) {
      const [before, after] = [free[i - 1], free[i]];
      if (
        before.memory === after.memory &&
        before.address + before.bytes === after.address
      ) {
        before.bytes += after.bytes;
        free.splice(i, 1);
      }
    }
  }

  /** The memory and address of an array that was allocated here, or of part of one. */
  placeOf(data: CpuTensor["data"]): Place | undefined {
    const memory = this.#memoryOf.get(data.buffer);
    return memory === undefined
      ? undefined
      : { memory, address: data.byteOffset };
  }

  /** The memory and address of a tensor, or of part of one. */
  find({ data }: CpuTensor): Place {
    const place = this.placeOf(data);
    if (place === undefined) {
      throw new Error(
        "Cannot use a tensor: its data was not allocated here, must come from allocate()",
      );
    }
    return place;
  }

  #reserve(bytes: number): { memory: number; address: number } {
    const region = this.#free
      .filter((region) => region.bytes >= bytes)
      .sort((a, b) => a.bytes - b.bytes)[0];
    if (!region) return this.#extend(bytes);
    const { memory, address } = region;
    new Uint8Array(this.#memories[memory].buffer, address, bytes).fill(0);
    region.address += bytes;
    region.bytes -= bytes;
    if (region.bytes === 0) this.#free.splice(this.#free.indexOf(region), 1);
    return { memory, address };
  }

  /** Takes bytes that were never used and are therefore zeros. */
  #extend(bytes: number): { memory: number; address: number } {
    const most = MEMORY_BYTES - aligned(this.reserved) - SLACK;
    if (bytes > most) {
      throw new MemoryError(
        `Cannot allocate a tensor of ${bytes} bytes: must be at most ${most}`,
      );
    }
    try {
      if (this.#top + bytes + SLACK > MEMORY_BYTES) this.#addMemory();
      const memory = this.#memories.length - 1;
      const { buffer } = this.#memories[memory];
      const missing = this.#top + bytes + SLACK - buffer.byteLength;
      if (missing > 0) this.#memories[memory].grow(Math.ceil(missing / PAGE));
      const address = this.#top;
      this.#top += bytes;
      return { memory, address };
    } catch (cause) {
      throw new MemoryError(
        `Cannot allocate a tensor of ${bytes} bytes: no memory is left`,
        { cause },
      );
    }
  }

  #addMemory(): void {
    const memory = new WebAssembly.Memory({
      initial: Math.ceil(this.reserved / PAGE),
      maximum: MEMORY_BYTES / PAGE,
      shared: true,
    });
    this.#memories.push(memory);
    this.#top = aligned(this.reserved);
    this.onMemory(memory);
  }
}

/** Tensors start at cache lines. */
const aligned = (bytes: number) => 64 * Math.ceil(bytes / 64);
