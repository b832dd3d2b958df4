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
  /** See {@linkcode floatsOf}. */
  floats?: Float32Array;
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

/**
 * All floats of a memory, at least up to the byte `end`. A view is kept: making one takes as
 * long as copying a head.
 */
export function floatsOf(bound: BoundMemory, end: number): Float32Array {
  const { memory, floats } = bound;
  if (floats && end <= floats.byteLength) return floats;
  // Another thread may have made the memory larger, which this one learns of later.
  if (end > memory.buffer.byteLength) memory.grow(0);
  return bound.floats = new Float32Array(memory.buffer);
}

/** Copies `count` floats. */
export function copyFloats(
  from: Float32Array,
  begin: number,
  count: number,
  into: Float32Array,
  to: number,
): void {
  if (from === into) into.copyWithin(to, begin, begin + count);
  else into.set(from.subarray(begin, begin + count), to);
}

/** How rows are normed and rotated: addresses are 0 for what is left out. */
export interface Norming {
  weight: number;
  eps: number;
  /** The cosines of a position, then its sines. */
  angles: number;
}

/** RMSNorm of rows in place, and their rotation. */
export function normInPlace(
  bound: BoundMemory,
  at: number,
  count: number,
  size: number,
  { weight, eps, angles }: Norming,
): void {
  if (size % NORM_STEP === 0) {
    bound.kernels.normRows(at, count, size, weight, eps, angles);
    return;
  }
  // Other widths are those of no published model.
  const all = floatsOf(bound, at + 4 * count * size);
  const view = (address: number) =>
    all.subarray(address / 4, address / 4 + size);
  for (let i = 0; i < count; i++) {
    const row = at / 4 + i * size;
    normalize(all, row, view(weight), eps, all, row);
    if (angles) rotate(all, row, view(angles));
  }
}

/** How a row is packed. */
export interface Packing extends Norming {
  k: number;
  /** Row stride in bytes. */
  toBytes: number;
  order: SimdReader["order"];
}

/**
 * Copies the row of x at `begin` to the address `to`, with zeros up to a multiple of eight
 * where there is room, and norms it.
 */
export function packRow(
  bound: BoundMemory,
  x: Float32Array,
  begin: number,
  to: number,
  packing: Packing,
): void {
  const { k, toBytes, order, weight } = packing, eights = Math.ceil(k / 8);
  const size = Math.min(8 * eights, toBytes / 4), at = to / 4;
  const out = floatsOf(bound, to + 4 * size);
  copyFloats(x, begin, k, out, at);
  if (size > k) out.fill(0, at + k, at + size);
  if (weight) normInPlace(bound, to, 1, k, packing);
  if (order === "even first") bound.kernels.evenFirst(to, eights);
}

/** Puts `width` results at the address `y` into `out`, from `begin` on. */
export function finishRow(
  bound: BoundMemory,
  y: number,
  width: number,
  out: Float32Array,
  begin: number,
  finish: Finish,
): void {
  if (finish === "swiglu") bound.kernels.swiglu(y, y + 4 * width, width);
  const from = floatsOf(bound, y + 4 * width), at = y / 4;
  if (finish === "add") {
    for (let j = 0; j < width; j++) out[begin + j] += from[at + j];
  } else copyFloats(from, at, width, out, begin);
}

/** Runs chunk `index` of a {@linkcode PackJob}. */
export function pack(
  memories: readonly BoundMemory[],
  bound: BoundMemory,
  job: PackJob,
  index: number,
): void {
  const { x, k, to, toBytes, weight } = job;
  const end = Math.min(job.rows, (index + 1) * job.chunk);
  const from = floatsOf(memories[job.memory], x + 4 * k * end);
  const order = job.evenFirst ? "even first" : "straight";
  const eps = floatOfBits(job.eps);
  const packing: Packing = { k, toBytes, order, weight, eps, angles: 0 };
  for (let r = index * job.chunk; r < end; r++) {
    packRow(bound, from, x / 4 + r * k, to + r * toBytes, packing);
  }
}

/** Runs chunk `index` of a {@linkcode FinishJob}. */
export function finish(
  memories: readonly BoundMemory[],
  bound: BoundMemory,
  job: FinishJob,
  index: number,
): void {
  const { to, toBytes, width } = job, how = FINISHES[job.finish];
  const end = Math.min(job.rows, (index + 1) * job.chunk);
  const out = floatsOf(memories[job.memory], to + end * toBytes);
  for (let r = index * job.chunk; r < end; r++) {
    const begin = (to + r * toBytes) / 4;
    finishRow(bound, job.y + r * job.yBytes, width, out, begin, how);
  }
}

/** Copies the keys of row `r` to `scratch`, and norms and rotates them there. */
export function normKeys(
  memories: readonly BoundMemory[],
  bound: BoundMemory,
  job: KeysJob,
  r: number,
  scratch: number,
): void {
  const { kvHeads, headDim, weight } = job, width = kvHeads * headDim;
  const heads = job.heads + r * job.headsBytes;
  const from = floatsOf(memories[job.memory], heads + 8 * width);
  const into = floatsOf(bound, scratch + 4 * width);
  copyFloats(from, heads / 4, width, into, scratch / 4);
  const angles = job.angles + 4 * r * headDim, eps = floatOfBits(job.eps);
  normInPlace(bound, scratch, kvHeads, headDim, { weight, eps, angles });
}

/** Runs chunk `index` of a {@linkcode KeysJob}. */
export function putKeys(
  memories: readonly BoundMemory[],
  bound: BoundMemory,
  job: KeysJob,
  index: number,
  scratch: number,
): void {
  const { kvHeads, headDim, page, k, v } = job, width = kvHeads * headDim;
  const cells = new Uint32Array(bound.memory.buffer, job.cells, job.rows);
  const end = Math.min(job.rows, (index + 1) * job.chunk);
  for (let r = index * job.chunk; r < end; r++) {
    normKeys(memories, bound, job, r, scratch);
    const values = (job.heads + r * job.headsBytes) / 4 + width;
    const from = floatsOf(memories[job.memory], 4 * (values + width));
    for (let h = 0; h < kvHeads; h++) {
      const at = (cells[r] + h * page) * headDim;
      const into = floatsOf(bound, Math.max(k, v) + 4 * (at + headDim));
      copyFloats(into, scratch / 4 + h * headDim, headDim, into, k / 4 + at);
      copyFloats(from, values + h * headDim, headDim, into, v / 4 + at);
    }
  }
}
