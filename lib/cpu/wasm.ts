/**
 * The CPU kernels in WebAssembly SIMD, on all cores.
 *
 * @module
 */
import type { Dtype } from "../dtype.ts";
import { BYTES, type CpuTensor } from "../dtype.ts";
import type {
  Attention,
  CpuInfo,
  CpuKernels,
  Finish,
  Heads,
} from "./kernels.ts";
import {
  CHUNK_ROWS,
  encodeAttention,
  encodeMatmul,
  packedBytes,
  packRows,
  resultBytes,
  SCORES_BYTES,
  STORED,
  threadSpace,
  workBytes,
  writeMasks,
} from "./jobs.ts";
import { CpuMemory } from "./memory.ts";
import { CpuPool, MAX_CHUNKS } from "./pool.ts";
import { wasmKernels } from "./wasm_kernels.ts";

/** Jobs of fewer multiplications take less time than waking a thread. */
const ALONE = 1 << 18;
/** Bytes of weights, times rows of x, that are worth claiming a chunk for. */
const CHUNK_BYTES = 1 << 17;
/** Rows of x in a job, at most: its work space is then soon used again, in the cache. */
const MATMUL_ROWS = 192;
/** Query heads in a chunk of attention, about. */
const BLOCK_HEADS = 32;

/** A module that this engine accepts. */
export interface WasmChoice {
  kernel: "wasm-relaxed-simd" | "wasm-simd";
  reason: string;
  bytes: Uint8Array<ArrayBuffer>;
}

/** The best module that this engine accepts, or why there is none. */
export function chooseWasm(): WasmChoice | { refusal: string } {
  if (
    typeof WebAssembly === "undefined" ||
    typeof SharedArrayBuffer === "undefined"
  ) {
    return { refusal: "WebAssembly or SharedArrayBuffer is missing" };
  }
  const relaxed = wasmKernels(true);
  if (WebAssembly.validate(relaxed)) {
    const reason = "WebAssembly has relaxed SIMD";
    return { kernel: "wasm-relaxed-simd", reason, bytes: relaxed };
  }
  const simd = wasmKernels(false);
  if (WebAssembly.validate(simd)) {
    const reason = "WebAssembly has SIMD, but not relaxed SIMD";
    return { kernel: "wasm-simd", reason, bytes: simd };
  }
  return { refusal: "WebAssembly has no SIMD" };
}

/** Runs on the caller's thread and workers. */
export class WasmCpuKernels implements CpuKernels {
  readonly #pool: CpuPool;
  readonly #memory: CpuMemory;
  /** Where the work space that threads share begins in each memory, and its size. */
  readonly #space: number;
  readonly #room: number;

  /** `threads` include the caller's. */
  constructor(
    private readonly heads: Heads,
    threads: number,
    private readonly choice: WasmChoice,
  ) {
    const reserved = workBytes(threads);
    this.#pool = new CpuPool(threads, new WebAssembly.Module(choice.bytes));
    this.#memory = new CpuMemory(reserved, (memory) => {
      writeMasks(memory.buffer);
      this.#pool.add(memory);
    });
    this.#space = threadSpace(threads);
    this.#room = reserved - this.#space;
  }

  get info(): CpuInfo {
    const { failure, threads } = this.#pool;
    const { kernel, reason } = this.choice;
    return failure === undefined ? { kernel, reason, threads } : {
      kernel,
      reason: `${reason}; one thread, as workers failed: ${failure}`,
      threads: 1,
    };
  }

  allocate(dtype: Dtype, shape: readonly number[]): CpuTensor {
    return this.#memory.allocate(dtype, shape);
  }

  release(tensor: CpuTensor): void {
    this.#memory.release(tensor);
  }

  matmul(
    x: Float32Array,
    rows: number,
    w: CpuTensor,
    out: Float32Array,
    finish: Finish,
  ): void {
    const [n, k] = w.shape;
    const wBytes = k * BYTES[w.dtype];
    const xBytes = packedBytes(k), yBytes = resultBytes(n);
    const fits = Math.floor(this.#room / (xBytes + yBytes));
    if (fits < 1) {
      throw new Error(
        `Cannot multiply by [${n}, ${k}]: one row takes ${
          xBytes + yBytes
        } bytes ` +
          `of work space, must be at most ${this.#room}`,
      );
    }
    const { memory, address } = this.#memory.find(w);
    const { kernels, memory: { buffer } } = this.#pool.memories[memory];
    const dtype = STORED.findIndex((type) => type === w.dtype);
    const perChunk = Math.max(
      n / (8 * this.#pool.threads),
      n / MAX_CHUNKS,
      CHUNK_BYTES / (wBytes * rows),
    );
    const chunk = CHUNK_ROWS * Math.ceil(perChunk / CHUNK_ROWS);
    const most = Math.min(fits, MATMUL_ROWS);

    for (let done = 0; done < rows; done += most) {
      const count = Math.min(most, rows - done);
      const xAt = this.#space, yAt = xAt + count * xBytes;
      packRows(x.subarray(done * k), count, k, dtype, buffer, xAt);
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
      for (let r = 0; r < count; r++) {
        const row = yAt + r * yBytes, to = (done + r) * width;
        if (finish === "swiglu") kernels.swiglu(row, row + 4 * width, width);
        const y = new Float32Array(buffer, row, width);
        if (finish === "add") {
          for (let j = 0; j < width; j++) out[to + j] += y[j];
        } else out.set(y, to);
      }
    }
  }

  attention({ q, k, v, cache, out }: Attention): void {
    const { heads, kvHeads, headDim } = this.heads;
    const { first, tokens } = cache.pass;
    if (resultBytes(cache.context) > SCORES_BYTES) {
      throw new Error(
        `Cannot attend over ${cache.context} positions: must be less than ${
          SCORES_BYTES / 4
        }`,
      );
    }
    const group = heads / kvHeads;
    const rows = q.length / (heads * headDim);
    const { memory, address } = this.#memory.find(k);
    const { buffer } = this.#pool.memories[memory].memory;
    const headBytes = packedBytes(headDim);
    const perBlock = Math.max(Math.floor(BLOCK_HEADS / group), 1);
    const most = Math.min(
      Math.floor(this.#room / (2 * heads * headBytes + 16)),
      Math.floor(MAX_CHUNKS / kvHeads),
    );

    for (let done = 0; done < rows; done += most) {
      const count = Math.min(most, rows - done);
      const blocks: number[][] = [];
      let scores = 0; // per head
      for (let r = 0, size; r < count; r += size) {
        const sequence = first + Math.floor((done + r) / tokens);
        const token = (done + r) % tokens;
        const position = cache.lengths[sequence] + token;
        size = Math.min(perBlock, tokens - token, count - r);
        blocks.push([r, size, sequence, position]);
        scores += size * (position + size);
      }
      const qAt = this.#space, outAt = qAt + count * heads * headBytes;
      const blocksAt = outAt + count * heads * headBytes;
      new Uint32Array(buffer, blocksAt, 4 * blocks.length).set(blocks.flat());

      /** Each head in work space, `[kvHeads, rows, group]`, and where it is in q and out. */
      const eachHead = (
        at: number,
        body: (head: Float32Array, index: number) => void,
      ) => {
        const all = new Float32Array(buffer, at, count * heads * headBytes / 4);
        for (let r = 0; r < count; r++) {
          for (let h = 0; h < heads; h++) {
            const to = (Math.floor(h / group) * count + r) * group + h % group;
            const head = all.subarray(
              to * headBytes / 4,
              (to + 1) * headBytes / 4,
            );
            body(head, ((done + r) * heads + h) * headDim);
          }
        }
      };
      eachHead(qAt, (head, from) => {
        head.fill(0, headDim);
        head.set(q.subarray(from, from + headDim));
      });
      this.#pool.run(
        memory,
        encodeAttention({
          q: qAt,
          headBytes,
          rows: count,
          group,
          kvHeads,
          headDim,
          k: address,
          v: this.#memory.find(v).address, // in the memory of k: see CpuKernels
          context: cache.context,
          out: outAt,
          blocks: blocksAt,
        }),
        blocks.length * kvHeads,
        2 * scores * heads * headDim < ALONE,
      );
      eachHead(outAt, (head, to) => out.set(head.subarray(0, headDim), to));
    }
  }

  [Symbol.dispose](): void {
    this.#pool[Symbol.dispose]();
  }
}
