/**
 * What one thread does for some rows before and after the kernels of a job: copies them into
 * work space, norms them, and puts results where they belong. With many threads, a prompt
 * would spend half of its time on that if one of them did it alone.
 *
 * @module
 */
import type { SimdReader } from "../formats/format.ts";
import type { Finish } from "./kernels.ts";
import { normalize, rotate } from "./norm.ts";
import type { WasmKernels } from "./wasm_kernels.ts";
import { NORM_STEP } from "./wasm_norm.ts";

/** A memory that threads work on, and the kernels bound to it. */
export interface BoundMemory {
  memory: WebAssembly.Memory;
  kernels: WasmKernels;
}

/** Rows of x are copied from their memory, and normed if there is a weight. */
export interface PackJob {
  memory: number; // of x
  x: number; // [rows, k]
  k: number;
  rows: number;
  to: number;
  toBytes: number; // row stride
  evenFirst: number; // 1 or 0
  weight: number; // 0 if there is none
  eps: number; // the bits of an f32
  chunk: number; // rows
}

/** Results are put into another memory, or added to what is there. */
export interface FinishJob {
  y: number; // [rows, width], or with swiglu [rows, 2 · width]
  yBytes: number; // row stride
  rows: number;
  width: number;
  memory: number; // of the results
  to: number;
  toBytes: number; // row stride
  finish: number; // index into FINISHES
  chunk: number; // rows
}

/** Keys are normed and rotated, then cached with their values, in f32. */
export interface KeysJob {
  memory: number; // of k and v as they come
  heads: number; // [rows, 2 · kvHeads, headDim]
  headsBytes: number; // row stride
  rows: number;
  kvHeads: number;
  headDim: number;
  weight: number;
  eps: number; // the bits of an f32
  angles: number; // [rows, headDim]
  cells: number; // [rows], u32: rows of the cache, of the first head
  page: number; // from one head to the next in the cache, in rows
  k: number;
  v: number;
  chunk: number; // rows
}

/** The ways to finish, in the order of their numbers. */
export const FINISHES: readonly Finish[] = ["store", "add", "swiglu"];

const word = new DataView(new ArrayBuffer(4));

/** A number as a job passes it. */
export function bitsOfFloat(value: number): number {
  word.setFloat32(0, value);
  return word.getUint32(0);
}

/** The number that {@linkcode bitsOfFloat} was given, in f32. */
export function floatOfBits(bits: number): number {
  word.setUint32(0, bits);
  return word.getFloat32(0);
}

/** A view of `count` floats. */
export function floatsAt(
  { memory }: Pick<BoundMemory, "memory">,
  address: number,
  count: number,
): Float32Array {
  // Another thread may have made the memory larger, which this one learns of later.
  if (address + 4 * count > memory.buffer.byteLength) memory.grow(0);
  return new Float32Array(memory.buffer, address, count);
}

/** RMSNorm of rows in place, and their rotation unless `angles` is 0. */
export function normInPlace(
  bound: BoundMemory,
  at: number,
  count: number,
  size: number,
  { weight, eps, angles }: { weight: number; eps: number; angles: number },
): void {
  if (size % NORM_STEP === 0) {
    bound.kernels.normRows(at, count, size, weight, eps, angles);
    return;
  }
  // Other widths are those of no published model.
  const rows = floatsAt(bound, at, count * size);
  const weights = floatsAt(bound, weight, size);
  for (let i = 0; i < rows.length; i += size) {
    normalize(rows, i, weights, eps, rows, i);
    if (angles) rotate(rows, i, floatsAt(bound, angles, size));
  }
}

/** How a row is packed. */
export interface Packing {
  k: number;
  /** Row stride in bytes. */
  toBytes: number;
  order: SimdReader["order"];
  /** 0 if the row is not normed. */
  weight: number;
  eps: number;
}

/**
 * Copies a row of x to `to`, with zeros up to a multiple of eight where there is room, and
 * norms it.
 */
export function packRow(
  bound: BoundMemory,
  x: Float32Array,
  to: number,
  { k, toBytes, order, weight, eps }: Packing,
): void {
  const eights = Math.ceil(k / 8);
  const out = floatsAt(bound, to, Math.min(8 * eights, toBytes / 4));
  out.fill(0, k);
  out.set(x);
  if (weight) normInPlace(bound, to, 1, k, { weight, eps, angles: 0 });
  if (order === "even first") bound.kernels.evenFirst(to, eights);
}

/** Puts a row of results at `y` into `out`. */
export function finishRow(
  bound: BoundMemory,
  y: number,
  out: Float32Array,
  finish: Finish,
): void {
  const width = out.length;
  if (finish === "swiglu") bound.kernels.swiglu(y, y + 4 * width, width);
  const values = floatsAt(bound, y, width);
  if (finish === "add") {
    for (let j = 0; j < width; j++) out[j] += values[j];
  } else out.set(values);
}

/** Where the keys of a row come from and go to, except for the cache. */
export interface KeyRow {
  kvHeads: number;
  headDim: number;
  /** Addresses. */
  weight: number;
  angles: number;
  eps: number;
  /** Room for the keys of a row. */
  scratch: number;
}

/** Norms and rotates the keys of a row, and puts each head, and its value. */
export function putRow(
  bound: BoundMemory,
  heads: Float32Array,
  { kvHeads, headDim, scratch, ...norm }: KeyRow,
  put: (head: number, key: Float32Array, value: Float32Array) => void,
): void {
  const width = kvHeads * headDim, keys = floatsAt(bound, scratch, width);
  keys.set(heads.subarray(0, width));
  normInPlace(bound, scratch, kvHeads, headDim, norm);
  for (let h = 0; h < width; h += headDim) {
    const value = heads.subarray(width + h, width + h + headDim);
    put(h / headDim, keys.subarray(h, h + headDim), value);
  }
}

/** The rows of chunk `index`. */
function* rowsOf(
  { rows, chunk }: { rows: number; chunk: number },
  index: number,
): Generator<number, void> {
  const end = Math.min(rows, (index + 1) * chunk);
  for (let r = index * chunk; r < end; r++) yield r;
}

/** Runs chunk `index` of a {@linkcode PackJob}. */
export function pack(
  memories: readonly BoundMemory[],
  bound: BoundMemory,
  job: PackJob,
  index: number,
): void {
  const { x, k, to, toBytes, weight } = job, from = memories[job.memory];
  const order = job.evenFirst ? "even first" : "straight";
  const packing = { k, toBytes, order, weight, eps: floatOfBits(job.eps) };
  for (const r of rowsOf(job, index)) {
    const row = floatsAt(from, x + 4 * r * k, k);
    packRow(bound, row, to + r * toBytes, packing as Packing);
  }
}

/** Runs chunk `index` of a {@linkcode FinishJob}. */
export function finish(
  memories: readonly BoundMemory[],
  bound: BoundMemory,
  job: FinishJob,
  index: number,
): void {
  const into = memories[job.memory], { width } = job;
  for (const r of rowsOf(job, index)) {
    const out = floatsAt(into, job.to + r * job.toBytes, width);
    finishRow(bound, job.y + r * job.yBytes, out, FINISHES[job.finish]);
  }
}

/** Runs chunk `index` of a {@linkcode KeysJob}. */
export function putKeys(
  memories: readonly BoundMemory[],
  bound: BoundMemory,
  job: KeysJob,
  index: number,
  scratch: number,
): void {
  const { kvHeads, headDim, weight, page, k, v } = job, bytes = 4 * headDim;
  const from = memories[job.memory], eps = floatOfBits(job.eps);
  const cells = new Uint32Array(bound.memory.buffer, job.cells, job.rows);
  for (const r of rowsOf(job, index)) {
    const heads = job.heads + r * job.headsBytes;
    const angles = job.angles + r * bytes;
    const row = { kvHeads, headDim, weight, angles, eps, scratch };
    const values = floatsAt(from, heads, 2 * kvHeads * headDim);
    putRow(bound, values, row, (head, key, value) => {
      const at = (cells[r] + head * page) * bytes;
      floatsAt(bound, k + at, headDim).set(key);
      floatsAt(bound, v + at, headDim).set(value);
    });
  }
}
