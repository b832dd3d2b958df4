/**
 * The CPU kernels in WebAssembly SIMD, on all cores.
 *
 * @module
 */
import { type Dtype, elements } from "../dtype.ts";
import { errorText } from "../errors.ts";
import { f32 } from "../formats/f32.ts";
import type { Format, SimdBlocks } from "../formats/format.ts";
import { type MatrixPart, rowsHeld } from "../formats/matrix.ts";
import { host } from "../host.ts";
import {
  type Attention,
  type CpuInfo,
  type CpuKernels,
  type Finish,
  type Heads,
  type NormedRows,
  type Output,
  SLICE,
  type Work,
} from "./kernels.ts";
import {
  CHUNK_ROWS,
  encodeAttention,
  encodeMatmul,
  isDirect,
  mostResults,
  orderOf,
  packedBytes,
  packRows,
  PANEL_CHUNK_ROWS,
  resultBytes,
  SCORES_BYTES,
  threadSpace,
  workBytes,
  writeMasks,
} from "./jobs.ts";
import { normRows } from "./norm.ts";
import { NORM_STEP } from "./wasm_norm.ts";
import { CpuMemory } from "./memory.ts";
import { CpuPool, MAX_CHUNKS } from "./pool.ts";
import type { KvCache } from "../model/kv_cache.ts";
import { bytesOf, type CpuTensor } from "../formats/tensor.ts";
import { dotScratch } from "./wasm_blocks.ts";
import {
  MOST_OUTLYING,
  roundedBytes,
  roundRowName,
  roundWordsName,
} from "./wasm_round.ts";
import {
  interleave,
  isPanels,
  PANEL_ROWS,
  PANELS_ROWS,
  panelUnits,
} from "./panels.ts";
import {
  panelsOf,
  SIMD_FORMATS,
  unsignedBytes,
  wasmKernels,
} from "./wasm_kernels.ts";
import { WIDE_COLUMNS } from "./wasm_wide.ts";

/**
 * Jobs with fewer multiplications run on one thread. Not measured: by estimate, they take
 * about 10 µs, and waking a thread takes longer.
 */
const ALONE = 1 << 18;
/**
 * The smallest worthwhile chunk: bytes of weights times rows of x. Not measured: by
 * estimate, reading 32 KiB takes 3 µs, longer than taking a chunk.
 */
const CHUNK_BYTES = 1 << 15;
/** Chunks of a thread: several, because threads begin at different times. */
const CHUNKS_EACH = 8;
/**
 * The most rows of x in a job, so that its work space stays in the cache. Not measured:
 * one and a half ROW_BLOCK of jobs.ts.
 */
const MATMUL_ROWS = 192;
/**
 * Rows of weights unpacked at a time for formats that the kernels cannot read. Not
 * measured: 1 MiB in f32 for rows of 1,024 elements, enough work for all threads.
 */
const UNPACKED_ROWS = 256;
/**
 * Approximate number of query heads in a chunk of attention. Not measured: they share
 * keys and values that are read once, and a prompt still makes chunks for all threads.
 */
const BLOCK_HEADS = 32;

/** Bytes in a slice of the work of {@link CpuKernels.interleave}: a millisecond. */
const INTERLEAVED_BYTES = 1 << 22;

/** Elements that are normed at once. Not measured: they fit an L2 cache. */
const NORM_ELEMENTS = 1 << 15;

/** Below the largest element of any group, in mean sizes. */
const NEVER = -1;

/** A WebAssembly module that this engine accepts. */
export interface WasmChoice {
  kernel: "wasm-relaxed-simd" | "wasm-simd";
  reason: string;
  module: WebAssembly.Module;
  /** Whether it has kernels for vectors of 256 bits. */
  wide: boolean;
}

/** What this engine accepts, which does not change. */
let chosen: WasmChoice | { refusal: string } | undefined;

/**
 * The best module that this engine accepts, or why there is none. Models share it:
 * it takes tens of milliseconds to assemble, and engines optimise it as it runs.
 */
export const chooseWasm = (): WasmChoice | { refusal: string } =>
  chosen ??= findWasm();

/** What makes V8 join pairs of vectors; see wasm_wide.ts. */
export const WIDE_FLAG = "--experimental-wasm-revectorize";
const V8_FLAGS = "DENO_V8_FLAGS";

/** Whether V8 was asked for vectors of 256 bits, as far as it can be known. */
function wantsWide(): { wide: boolean; reason: string } {
  if (host.runtime.name === "Deno" && !host.isGranted("env", V8_FLAGS)) {
    return { wide: false, reason: `; no permission to see ${V8_FLAGS}` };
  }
  const flags = host.env(V8_FLAGS)?.replaceAll("_", "-").split(",") ?? [];
  const off = WIDE_FLAG.replace("--", "--no-");
  return flags.lastIndexOf(WIDE_FLAG) > flags.lastIndexOf(off)
    ? { wide: true, reason: `, in vectors of 256 bits (${V8_FLAGS})` }
    : { wide: false, reason: "" };
}

function findWasm(): WasmChoice | { refusal: string } {
  try {
    // A page that is not cross-origin isolated has such memory, but no SharedArrayBuffer.
    new WebAssembly.Memory({ initial: 0, maximum: 0, shared: true });
  } catch (error) {
    return { refusal: `WebAssembly has no shared memory: ${errorText(error)}` };
  }
  const { wide, reason: vectors } = wantsWide();
  const relaxed = wasmKernels(true, unsignedBytes() ? 8 : 7, wide);
  if (WebAssembly.validate(relaxed)) {
    const reason = `WebAssembly has relaxed SIMD${vectors}`;
    const module = new WebAssembly.Module(relaxed);
    return { kernel: "wasm-relaxed-simd", reason, module, wide };
  }
  const simd = wasmKernels(false);
  if (WebAssembly.validate(simd)) {
    const reason = "WebAssembly has SIMD, but not relaxed SIMD";
    const module = new WebAssembly.Module(simd);
    return { kernel: "wasm-simd", reason, module, wide: false };
  }
  return { refusal: "WebAssembly has no SIMD" };
}

/** What a matmul needs to know of a format and a row width. */
interface Layout {
  /** Index into SIMD_FORMATS. */
  format: number;
  /** Of a format of blocks. */
  blocks: SimdBlocks | undefined;
  /** Bytes of a row in each plane of w, in all of them, and in x. */
  rowBytes: readonly number[];
  wBytes: number;
  xBytes: number;
}

function layoutOf(format: number, k: number): Layout {
  const own = SIMD_FORMATS[format], { simd } = own;
  const blocks = "factors" in simd ? simd : undefined;
  const rowBytes = own.planes(k).map(({ rowBytes }) => rowBytes);
  return {
    format,
    blocks,
    rowBytes,
    wBytes: rowBytes.reduce((sum, bytes) => sum + bytes),
    xBytes: packedBytes(k) + (blocks ? roundedBytes(blocks, k) : 0),
  };
}

/** Chunks of a matmul are multiples of this many rows of w. */
const stepOf = (
  format: Format,
  { direct, wide }: { direct: boolean; wide: boolean },
): number => {
  if (!direct && wide) return WIDE_COLUMNS;
  if (!isPanels(format)) return CHUNK_ROWS;
  return direct ? PANELS_ROWS : PANEL_CHUNK_ROWS;
};

/** Runs on the caller's thread and on workers. */
export class WasmCpuKernels implements CpuKernels {
  readonly #pool: CpuPool;
  readonly #memory: CpuMemory;
  /** Start and size of the shared work space in each memory. */
  readonly #space: number;
  readonly #room: number;
  /** Of formats and row widths that were multiplied by. */
  readonly #layouts = new Map<Format, Map<number, Layout>>();
  /** Names of formats in use that have no SIMD reader. */
  readonly #withoutReader = new Set<string>();
  /** Why some rows are not in panels. */
  readonly #outOfPanels = new Set<string>();

  /**
   * `threads` includes the caller's. With `integers`, few rows of x are rounded to
   * multiply quants as integers.
   */
  constructor(
    private readonly heads: Heads,
    threads: number,
    private readonly choice: WasmChoice,
    private readonly integers: boolean,
  ) {
    const reserved = workBytes(threads);
    this.#pool = new CpuPool(threads, choice.module);
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
    const reasons = [reason];
    for (const name of this.#withoutReader) {
      reasons.push(`${name} has no SIMD reader: its rows are unpacked first`);
    }
    reasons.push(...this.#outOfPanels);
    if (failure !== undefined) {
      reasons.push(`one thread, because workers failed: ${failure}`);
    }
    return {
      kernel,
      reason: reasons.join("; "),
      threads: failure === undefined ? threads : 1,
    };
  }

  get memoryBytes(): number {
    return this.#memory.byteLength;
  }

  allocate(dtype: Dtype, shape: readonly number[]): CpuTensor {
    return this.#memory.allocate(dtype, shape);
  }

  release(tensor: CpuTensor): void {
    this.#memory.release(tensor);
  }

  *matmul(
    x: Float32Array,
    rows: number,
    w: MatrixPart<CpuTensor>,
    k: number,
    out: Output,
    finish: Finish,
  ): Work {
    const layout = this.#layout(w.format, k);
    if (!layout) return yield* this.#unpacked(x, rows, w, k, out, finish);
    const { format, blocks, rowBytes, wBytes, xBytes } = layout;
    const own = SIMD_FORMATS[format], { wide } = this.choice;
    const n = rowsHeld(w), yBytes = resultBytes(n);
    const fits = Math.floor(this.#room / (xBytes + yBytes));
    if (fits < 1) {
      throw new Error(
        `Cannot multiply by [${n}, ${k}]: one row takes ${
          xBytes + yBytes
        } bytes of work space, must be at most ${this.#room}`,
      );
    }
    if (blocks && !isPanels(own) && dotScratch(blocks, k) > SCORES_BYTES) {
      throw new Error(
        `Cannot multiply by [${n}, ${k}]: factors of a row take ${
          dotScratch(blocks, k)
        } bytes of work space, must be at most ${SCORES_BYTES}`,
      );
    }
    const { memory, addresses } = this.#find(w.planes);
    const bound = this.#pool.memories[memory], { kernels } = bound;
    const most = Math.min(fits, MATMUL_ROWS);

    for (let done = 0; done < rows; done += most) {
      const count = Math.min(most, rows - done);
      const xAt = this.#space, yAt = xAt + count * xBytes;
      const direct = isDirect(own, count, wide), transposed = wide && !direct;
      const order = orderOf(own, transposed);
      packRows(x.subarray(done * k), count, k, order, bound, xAt, xBytes);
      if (blocks && direct) {
        const nameOf = isPanels(own) ? roundWordsName : roundRowName;
        const round = kernels[nameOf(blocks)];
        for (let r = 0; r < count; r++) {
          round(xAt + r * xBytes, k, this.integers ? MOST_OUTLYING : NEVER);
        }
      }
      const step = stepOf(own, { direct, wide });
      const slice = this.#sliceRows(count * k, step);
      for (let begin = 0; begin < n; begin += slice) {
        if (begin > 0) yield;
        const some = Math.min(slice, n - begin);
        const chunk = this.#chunkRows(some, wBytes * count, step);
        const [at, w1 = 0, w2 = 0, w3 = 0] = addresses.map((address, p) =>
          address + begin * rowBytes[p]
        );
        this.#pool.run(
          memory,
          encodeMatmul({
            format,
            x: xAt,
            xBytes,
            rows: count,
            ...{ w: at, w1, w2, w3 },
            n: some,
            k,
            y: yAt + 4 * begin,
            yBytes,
            chunk,
          }),
          Math.ceil(some / chunk),
          count * some * k < ALONE,
        );
      }
      const y = { address: yAt, bytes: yBytes, first: done, rows: count };
      this.#finish(memory, y, finish === "swiglu" ? w.rows : n, out, finish);
      yield;
    }
  }

  /** How to multiply by rows of `k` elements; undefined if the kernels cannot read them. */
  #layout(format: Format, k: number): Layout | undefined {
    let widths = this.#layouts.get(format);
    if (!widths) this.#layouts.set(format, widths = new Map());
    let layout = widths.get(k);
    if (!layout) {
      const index = SIMD_FORMATS.findIndex((one) => one === format);
      if (index < 0) return undefined;
      widths.set(k, layout = layoutOf(index, k));
    }
    return layout;
  }

  together(planes: readonly CpuTensor[]): void {
    const [memory, ...others] = planes.map((plane) =>
      this.#memory.find(plane).memory
    );
    if (others.every((other) => other === memory)) return;
    const words = planes.map(({ data }) => 16 * Math.ceil(data.length / 16));
    const sum = words.reduce((a, b) => a + b);
    const all = this.allocate("u32", [sum]).data as Uint32Array<ArrayBuffer>;
    let begin = 0;
    for (const [i, plane] of planes.entries()) {
      const data = all.subarray(begin, begin + plane.data.length);
      data.set(plane.data);
      this.release(plane);
      plane.data = data;
      begin += words[i];
    }
  }

  *interleave(
    part: MatrixPart<CpuTensor>,
    k: number,
    apart: readonly number[],
  ): Generator<void, MatrixPart<CpuTensor>> {
    const format = panelsOf(part.format), rows = rowsHeld(part);
    if (!format) return part;
    const odd = [rows, ...apart].find((n) => n % PANELS_ROWS !== 0);
    if (odd !== undefined) {
      this.#outOfPanels.add(
        `${format.name} is not interleaved where it has ${odd} rows, no multiple of ${PANELS_ROWS}`,
      );
      return part;
    }
    const { memory, addresses } = this.#find(part.planes);
    const { kernels, memory: { buffer } } = this.#pool.memories[memory];
    const bytes = new Uint8Array(buffer), space = this.#space;
    const units = panelUnits(format.simd);
    let done = 0; // bytes since the last slice
    for (const [p, { rowBytes }] of format.planes(k).entries()) {
      const size = PANEL_ROWS * rowBytes, unit = units[p];
      for (let panel = 0; panel < rows / PANEL_ROWS; panel++) {
        const at = addresses[p] + panel * size;
        if (unit === 2 && rowBytes % 16 === 0) {
          kernels.interleave(at, rowBytes, space);
        } else {
          const [from, to] = [at, space].map((begin) =>
            bytes.subarray(begin, begin + size)
          );
          interleave(from, to, rowBytes, unit);
        }
        bytes.copyWithin(at, space, space + size);
        if ((done += size) < INTERLEAVED_BYTES) continue;
        yield;
        done = 0;
      }
    }
    return { ...part, format };
  }

  /** Where the planes of a matrix are. */
  #find(planes: readonly CpuTensor[]): { memory: number; addresses: number[] } {
    const found = planes.map((plane) => this.#memory.find(plane));
    const [{ memory }] = found;
    if (found.some((plane) => plane.memory !== memory)) {
      throw new Error(
        `Cannot multiply: planes are in memories ${
          found.map(({ memory }) => memory).join(", ")
        }, must be in one (see together)`,
      );
    }
    return { memory, addresses: found.map(({ address }) => address) };
  }

  /** Rows of weights in a slice of work, whole steps, if each takes `work` multiplications. */
  #sliceRows(work: number, step: number): number {
    const { threads } = this.#pool;
    const rows = Math.floor(SLICE / work / step) * step;
    return threads * Math.max(step, rows);
  }

  /**
   * Rows of weights in a chunk, whole steps, if each takes `bytes` (of weights, times rows
   * of x). Every thread gets as many chunks.
   */
  #chunkRows(n: number, bytes: number, step: number): number {
    const { threads } = this.#pool, share = n / threads;
    const each = Math.floor(share * bytes / CHUNK_BYTES);
    const rows = share / Math.max(1, Math.min(each, CHUNKS_EACH));
    const least = Math.max(n / MAX_CHUNKS, CHUNK_BYTES / bytes);
    return step * Math.ceil(Math.max(rows, least) / step);
  }

  /** Copies or adds rows of results from work space to `out`. */
  #finish(
    memory: number,
    y: { address: number; bytes: number; first: number; rows: number },
    width: number,
    { data, stride, column }: Output,
    finish: Finish,
  ): void {
    const { kernels, memory: { buffer } } = this.#pool.memories[memory];
    for (let r = 0; r < y.rows; r++) {
      const row = y.address + r * y.bytes;
      const to = (y.first + r) * stride + column;
      if (finish === "swiglu") kernels.swiglu(row, row + 4 * width, width);
      const values = new Float32Array(buffer, row, width);
      if (finish === "add") {
        for (let j = 0; j < width; j++) data[to + j] += values[j];
      } else data.set(values, to);
    }
  }

  /** Multiplies by a format that the kernels cannot read: unpacks blocks of rows to f32. */
  *#unpacked(
    x: Float32Array,
    rows: number,
    w: MatrixPart<CpuTensor>,
    k: number,
    out: Output,
    finish: Finish,
  ): Work {
    const swiglu = finish === "swiglu", n = swiglu ? w.rows : rowsHeld(w);
    const planes = w.planes.map(bytesOf), step = Math.min(n, UNPACKED_ROWS);
    this.#withoutReader.add(w.format.name);
    const space = this.allocate("f32", [swiglu ? 2 * step : step, k]);
    const values = space.data as Float32Array;
    const unpack = (from: number, to: number, count: number) => {
      for (let j = 0; j < count; j++) {
        const into = values.subarray((to + j) * k, (to + j + 1) * k);
        w.format.unpack(planes, from + j, k, into);
      }
    };
    try {
      for (let begin = 0; begin < n; begin += step) {
        const count = Math.min(step, n - begin);
        unpack(begin, 0, count);
        if (swiglu) unpack(w.rows + begin, count, count);
        const twin = swiglu ? n + begin : undefined;
        const part = { begin, rows: count, twin, format: f32, planes: [space] };
        const to = { ...out, column: out.column + begin };
        yield* this.matmul(x, rows, part, k, to, finish);
      }
    } finally {
      this.release(space);
    }
  }

  norm(rows: NormedRows): void {
    const { x, from, count, weight, eps, out, to, angles } = rows;
    const size = weight.length, [bound] = this.#pool.memories;
    // Other widths are those of no published model; without weights, there is no memory.
    if (size % NORM_STEP || !bound) return normRows(rows);
    const weightAt = this.#space / 4, anglesAt = weightAt + size;
    const begin = anglesAt + (angles?.length ?? 0);
    const work = new Float32Array(
      bound.memory.buffer,
      0,
      begin + Math.max(NORM_ELEMENTS, size),
    );
    work.set(weight, weightAt);
    if (angles) work.set(angles, anglesAt);
    const most = Math.max(1, Math.floor(NORM_ELEMENTS / size));
    for (let done = 0; done < count; done += most) {
      const some = Math.min(most, count - done), at = done * size;
      const first = from + at, end = begin + some * size;
      work.set(x.subarray(first, first + some * size), begin);
      bound.kernels.normRows(
        4 * begin,
        some,
        size,
        4 * weightAt,
        eps,
        angles ? 4 * anglesAt : 0,
      );
      out.set(work.subarray(begin, end), to + at);
    }
  }

  *attention({ q, k, v, cache, out }: Attention): Work {
    const { heads, kvHeads, headDim } = this.heads;
    const { first, tokens } = cache.pass;
    const longest = mostResults(SCORES_BYTES);
    if (cache.context > longest) {
      throw new Error(
        `Cannot attend over ${cache.context} positions: must be at most ${longest}`,
      );
    }
    const group = heads / kvHeads, rows = q.length / (heads * headDim);
    const { memory, ...cached } = this.#cached(k, v);
    const { buffer } = this.#pool.memories[memory].memory;
    const headBytes = packedBytes(headDim);
    const perBlock = Math.max(Math.floor(BLOCK_HEADS / group), 1);
    const room = this.#room - cache.table.byteLength;
    const most = Math.min(
      Math.floor(room / (2 * heads * headBytes + 16)),
      Math.floor(MAX_CHUNKS / kvHeads),
      this.#sliceQueries(cache),
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
      const tableAt = outAt + count * heads * headBytes;
      const blocksAt = writeBlocks(buffer, tableAt, cache, blocks);

      // Visits each head in work space, `[kvHeads, rows, group]`, with its index in q or out.
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
          ...cached,
          page: cache.page,
          out: outAt,
          blocks: blocksAt,
        }),
        blocks.length * kvHeads,
        2 * scores * heads * headDim < ALONE,
      );
      eachHead(outAt, (head, to) => out.set(head.subarray(0, headDim), to));
      yield;
    }
  }

  /** Where cached keys and values are; scales are at 0 if there are none. */
  #cached(k: CpuTensor, v: CpuTensor) {
    const { memory, address: kAt } = this.#memory.find(k);
    const vAt = this.#memory.find(v).address; // in the memory of k: see CpuKernels
    const quants = elements(k.shape.slice(0, -1)) * this.heads.headDim;
    const [kScales, vScales] = k.dtype === "u32"
      ? [kAt + quants, vAt + quants]
      : [0, 0];
    return { memory, k: kAt, kScales, v: vAt, vScales };
  }

  /** Rows of queries in a slice of work. */
  #sliceQueries(
    { lengths, pass: { first, sequences, tokens } }: KvCache<CpuTensor>,
  ): number {
    const { heads, headDim } = this.heads;
    const longest = Math.max(...lengths.subarray(first, first + sequences));
    const work = 2 * heads * headDim * (longest + tokens);
    return Math.max(1, Math.floor(this.#pool.threads * SLICE / work));
  }

  [Symbol.dispose](): void {
    this.#pool[Symbol.dispose]();
  }
}

/**
 * Writes the pages of all sequences, then blocks of rows, which name a sequence, with the
 * address of its pages in place of that. Returns where the blocks begin.
 */
function writeBlocks(
  buffer: ArrayBufferLike,
  at: number,
  { table, pagesEach }: KvCache<CpuTensor>,
  blocks: readonly (readonly number[])[],
): number {
  new Uint32Array(buffer, at, table.length).set(table);
  const begin = at + table.byteLength;
  const words = blocks.flatMap(([row, rows, sequence, position]) => [
    row,
    rows,
    at + 4 * sequence * pagesEach,
    position,
  ]);
  new Uint32Array(buffer, begin, words.length).set(words);
  return begin;
}
