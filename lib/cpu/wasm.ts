/**
 * The CPU kernels in WebAssembly SIMD, on all cores.
 *
 * @module
 */
import type { Dtype } from "../dtype.ts";
import { CPU_PASS_ROWS } from "../dispatch/pass_rows.ts";
import { errorText } from "../errors.ts";
import { f32 } from "../formats/f32.ts";
import type { Format, SimdBlocks, SimdReader } from "../formats/format.ts";
import { type MatrixPart, rowsHeld } from "../formats/matrix.ts";
import { host } from "../host.ts";
import { attend } from "./attend.ts";
import {
  type Attention,
  type CpuInfo,
  type CpuKernels,
  type Finish,
  type Heads,
  type Norm,
  type Output,
  type Rows,
  SLICE,
  type Work,
} from "./kernels.ts";
import {
  CHUNK_ROWS,
  encodeJob,
  isDirect,
  orderOf,
  packedBytes,
  PANEL_CHUNK_ROWS,
  resultBytes,
  SCORES_BYTES,
  threadSpace,
  workBytes,
  writeMasks,
} from "./jobs.ts";
import { CpuMemory } from "./memory.ts";
import { normRows } from "./norm.ts";
import { ALONE, CpuPool, MAX_CHUNKS } from "./pool.ts";
import { bytesOf, type CpuTensor } from "../formats/tensor.ts";
import {
  bitsOfFloat,
  FINISHES,
  finishRow,
  floatsOf,
  packRow,
} from "./row_jobs.ts";
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
 * The smallest worthwhile chunk: bytes of weights times rows of x. Not measured: by
 * estimate, reading 32 KiB takes 3 µs, longer than taking a chunk.
 */
const CHUNK_BYTES = 1 << 15;
/** Chunks of a thread: several, because threads begin at different times. */
const CHUNKS_EACH = 8;
/**
 * The most rows of x in a job: those of a pass, so that weights are unpacked as rarely as may
 * be. With 192, a prompt of 256 took up to 4 % longer.
 */
const MATMUL_ROWS = CPU_PASS_ROWS;
/**
 * Rows of weights unpacked at a time for formats that the kernels cannot read. Not
 * measured: 1 MiB in f32 for rows of 1,024 elements, enough work for all threads.
 */
const UNPACKED_ROWS = 256;
/** Bytes in a slice of the work of {@link CpuKernels.interleave}: a millisecond. */
const INTERLEAVED_BYTES = 1 << 22;

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
    x: Rows,
    w: MatrixPart<CpuTensor>,
    out: Output,
    finish: Finish,
  ): Work {
    const { rows, k } = x, layout = this.#layout(w.format, k);
    if (!layout) return yield* this.#unpacked(x, w, out, finish);
    const { format, blocks, rowBytes, wBytes, xBytes } = layout;
    const own = SIMD_FORMATS[format], { wide } = this.choice;
    const n = rowsHeld(w), yBytes = resultBytes(n);
    const taken = weightBytes(x);
    const begin = this.#space + taken, room = this.#room - taken;
    const fits = Math.floor(room / (xBytes + yBytes));
    if (fits < 1) {
      throw new Error(
        `Cannot multiply by [${n}, ${k}]: one row takes ${
          xBytes + yBytes
        } bytes of work space, must be at most ${room}`,
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
    const { kernels } = this.#pool.memories[memory];
    const most = Math.min(fits, MATMUL_ROWS);

    for (let done = 0; done < rows; done += most) {
      const count = Math.min(most, rows - done);
      const xAt = begin, yAt = xAt + count * xBytes;
      const direct = isDirect(own, count, wide), transposed = wide && !direct;
      const data = done > 0 ? x.data.subarray(done * k) : x.data;
      const some = { data, rows: count, k, norm: x.norm };
      this.#pack(memory, some, orderOf(own, transposed), xAt, xBytes);
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
        const job = {
          ...{ format, x: xAt, xBytes, rows: count, w: at, w1, w2, w3 },
          ...{ n: some, k, y: yAt + 4 * begin, yBytes, chunk },
        };
        this.#pool.run(
          memory,
          encodeJob({ kind: "matmul", job }),
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

  /** Copies rows into a memory, `toBytes` apart, and norms them. */
  #pack(
    memory: number,
    { data, rows, k, norm }: Rows,
    order: SimdReader["order"],
    to: number,
    toBytes: number,
  ): void {
    const bound = this.#pool.memories[memory], weight = norm ? this.#space : 0;
    if (norm) floatsOf(bound, weight + 4 * k).set(norm.weight, weight / 4);
    const from = this.#memory.placeOf(data), eps = norm?.eps ?? 0;
    if (from) {
      const job = {
        memory: from.memory,
        x: from.address,
        k,
        rows,
        to,
        toBytes,
        evenFirst: order === "straight" ? 0 : 1,
        weight,
        eps: bitsOfFloat(eps),
        chunk: rows,
      };
      return this.#pool.runRows(memory, { kind: "pack", job }, k);
    }
    const packing = { k, toBytes, order, weight, eps, angles: 0 };
    for (let r = 0; r < rows; r++) {
      packRow(bound, data, r * k, to + r * toBytes, packing);
    }
  }

  /** Copies or adds rows of results from work space to `out`. */
  #finish(
    memory: number,
    y: { address: number; bytes: number; first: number; rows: number },
    width: number,
    { data, stride, column }: Output,
    finish: Finish,
  ): void {
    const first = y.first * stride + column;
    const into = this.#memory.placeOf(data);
    if (into) {
      const job = {
        y: y.address,
        yBytes: y.bytes,
        rows: y.rows,
        width,
        memory: into.memory,
        to: into.address + 4 * first,
        toBytes: 4 * stride,
        finish: FINISHES.indexOf(finish),
        chunk: y.rows,
      };
      return this.#pool.runRows(memory, { kind: "finish", job }, width);
    }
    const bound = this.#pool.memories[memory];
    for (let r = 0; r < y.rows; r++) {
      const at = first + r * stride;
      finishRow(bound, y.address + r * y.bytes, width, data, at, finish);
    }
  }

  /** Multiplies by a format that the kernels cannot read: unpacks blocks of rows to f32. */
  *#unpacked(
    x: Rows,
    w: MatrixPart<CpuTensor>,
    out: Output,
    finish: Finish,
  ): Work {
    const { k } = x;
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
        yield* this.matmul(x, part, to, finish);
      }
    } finally {
      this.release(space);
    }
  }

  norm(x: Rows & { norm: Norm }, out: Float32Array): void {
    const into = this.#memory.placeOf(out);
    if (!into || weightBytes(x) > this.#room) return normRows(x, out);
    this.#pack(into.memory, x, "straight", into.address, 4 * x.k);
  }

  attention(pass: Attention): Work {
    const space = { begin: this.#space, bytes: this.#room };
    return attend(this.#pool, this.#memory, space, this.heads, pass);
  }

  [Symbol.dispose](): void {
    this.#pool[Symbol.dispose]();
  }
}

/** Bytes of the weights by which rows are normed, in whole cache lines. */
const weightBytes = ({ k, norm }: Rows): number =>
  norm ? 64 * Math.ceil(k / 16) : 0;
