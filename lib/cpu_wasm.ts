/**
 * The CPU kernels in WebAssembly SIMD, on all cores.
 *
 * @module
 */
import type { Dtype } from "./ops.ts";
import { BYTES, type CpuTensor, elements } from "./cpu_dtype.ts";
import type {
  Attention,
  CpuInfo,
  CpuKernels,
  Finish,
  Heads,
} from "./cpu_kernels.ts";
import {
  encodeAttention,
  encodeMatmul,
  packedBytes,
  packRows,
  STORED,
  threadSpace,
  workBytes,
  writeMasks,
} from "./cpu_jobs.ts";
import { CpuPool, MAX_CHUNKS } from "./cpu_pool.ts";
import { wasmKernels } from "./cpu_wasm_kernels.ts";

const PAGE = 65536;
/** What 32-bit addresses reach. */
const MEMORY_BYTES = PAGE * PAGE;
/** Kernels may read this far past a tensor (and do not use what they find). */
const SLACK = 64;
/** Products below this many multiplications take less time than waking a thread. */
const ALONE = 1 << 18;
/** Bytes of weights that are worth claiming a chunk for. */
const CHUNK_BYTES = 1 << 17;
/** Rows of queries in a chunk of attention, about. */
const BLOCK_ROWS = 32;

/** Where a tensor is. Memories are numbered as in the pool. */
interface Place {
  memory: number;
  address: number;
  bytes: number;
}

/** The best module that this engine accepts, or why there is none. */
export function chooseWasm(): {
  bytes: Uint8Array<ArrayBuffer>;
  kernel: CpuInfo["kernel"];
  reason: string;
} | { refusal: string } {
  if (
    typeof WebAssembly === "undefined" ||
    typeof SharedArrayBuffer === "undefined"
  ) {
    return { refusal: "no WebAssembly or no SharedArrayBuffer" };
  }
  const relaxed = wasmKernels(true);
  if (WebAssembly.validate(relaxed)) {
    return {
      bytes: relaxed,
      kernel: "wasm-relaxed-simd",
      reason: "the fastest",
    };
  }
  const plain = wasmKernels(false);
  if (WebAssembly.validate(plain)) {
    return {
      bytes: plain,
      kernel: "wasm-simd",
      reason: "WebAssembly has no relaxed SIMD here",
    };
  }
  return { refusal: "WebAssembly has no SIMD here" };
}

/** Runs on the caller's thread and workers. */
export class WasmCpuKernels implements CpuKernels {
  readonly #pool: CpuPool;
  readonly #work: number;
  readonly #places = new WeakMap<ArrayLike<number>, Place>();
  /** First free byte of the last memory. */
  #top = MEMORY_BYTES;
  #free: Place[] = [];

  constructor(
    private readonly heads: Heads,
    threads: number,
    bytes: Uint8Array<ArrayBuffer>,
    private readonly kernel: CpuInfo["kernel"],
    private readonly reason: string,
  ) {
    this.#pool = new CpuPool(threads, new WebAssembly.Module(bytes));
    this.#work = workBytes(threads);
  }

  get info(): CpuInfo {
    const { failure, threads } = this.#pool;
    return failure === undefined
      ? { kernel: this.kernel, reason: this.reason, threads }
      : {
        kernel: this.kernel,
        reason: `${this.reason}; no workers: ${failure}`,
        threads: 1,
      };
  }

  allocate(dtype: Dtype, shape: readonly number[]): CpuTensor {
    const size = elements(shape);
    const place = this.#place(size * BYTES[dtype]);
    const { buffer } = this.#pool.memories[place.memory].memory;
    const data = dtype === "f32"
      ? new Float32Array(buffer, place.address, size)
      : dtype === "u32"
      ? new Uint32Array(buffer, place.address, size)
      : new Uint16Array(buffer, place.address, size);
    this.#places.set(data, place);
    return { dtype, shape, data };
  }

  release({ data }: CpuTensor): void {
    const place = this.#places.get(data);
    if (!place) return;
    this.#places.delete(data);
    this.#free.push(place);
  }

  matmul(
    x: Float32Array,
    rows: number,
    w: CpuTensor,
    out: Float32Array,
    finish: Finish,
  ): void {
    const [n, k] = w.shape;
    const { memory, address } = this.#placeOf(w);
    const { buffer } = this.#pool.memories[memory].memory;
    const { kernels } = this.#pool.memories[memory];
    const dtype = STORED.findIndex((type) => type === w.dtype);
    const wBytes = k * BYTES[w.dtype];
    const xBytes = packedBytes(k), yBytes = 16 * Math.ceil(n / 4);
    const room = this.#work - threadSpace(this.#pool.threads) - SLACK;
    const most = Math.min(rows, Math.floor(room / (xBytes + yBytes)), 192);
    if (most < 1) {
      throw new Error(
        `Cannot multiply by [${n}, ${k}]: one row takes ${
          xBytes + yBytes
        } bytes of work space, must be at most ${room}`,
      );
    }

    const perThread = Math.ceil(n / (this.#pool.threads * 8));
    const chunk = 4 *
      Math.ceil(Math.max(perThread, CHUNK_BYTES / wBytes, n / MAX_CHUNKS) / 4);
    for (let r = 0; r < rows; r += most) {
      const count = Math.min(most, rows - r);
      const xAt = threadSpace(this.#pool.threads), yAt = xAt + count * xBytes;
      packRows(x.subarray(r * k), count, k, dtype, buffer, xAt);
      this.#pool.run(
        memory,
        encodeMatmul({
          dtype,
          x: xAt,
          xBytes,
          rows: count,
          w: address,
          wBytes,
          n,
          k,
          y: yAt,
          yBytes,
          chunk,
        }),
        Math.ceil(n / chunk),
        count * n * k < ALONE,
      );
      const width = finish === "swiglu" ? n / 2 : n;
      for (let i = 0; i < count; i++) {
        const row = yAt + i * yBytes;
        if (finish === "swiglu") kernels.swiglu(row, row + 4 * width, width);
        const y = new Float32Array(buffer, row, width);
        const to = (r + i) * width;
        if (finish === "add") {
          for (let j = 0; j < width; j++) out[to + j] += y[j];
        } else out.set(y, to);
      }
    }
  }

  attention({ q, k, v, cache, out }: Attention): void {
    const { heads, kvHeads, headDim } = this.heads;
    const { first, tokens } = cache.pass;
    const group = heads / kvHeads;
    const width = heads * headDim;
    const [keys, values] = [this.#placeOf(k), this.#placeOf(v)];
    const headBytes = packedBytes(headDim);
    const perBlock = Math.max(Math.floor(BLOCK_ROWS / group), 1);
    const begin = threadSpace(this.#pool.threads);
    const room = this.#work - begin - SLACK;
    const most = Math.floor(room / (2 * heads * headBytes + 16));
    // Values of another memory than the keys cannot be: see #place.
    void values;
  }

  [Symbol.dispose](): void {
    this.#pool[Symbol.dispose]();
  }
}
