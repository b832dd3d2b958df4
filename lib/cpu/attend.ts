/**
 * Attention on all cores: which threads do what, and where it lies in work space. For what
 * a thread does see jobs.ts and row_jobs.ts.
 *
 * @module
 */
import { elements } from "../dtype.ts";
import { type CpuTensor, f32 } from "../formats/tensor.ts";
import type { KvCache } from "../model/kv_cache.ts";
import {
  encodeJob,
  mostResults,
  packedBytes,
  SCORES_BYTES,
  scratchOf,
} from "./jobs.ts";
import { type Attention, type Heads, SLICE, type Work } from "./kernels.ts";
import { writerOf } from "./kv_cache.ts";
import type { CpuMemory, Place } from "./memory.ts";
import { ALONE, type CpuPool, MAX_CHUNKS } from "./pool.ts";
import {
  bitsOfFloat,
  type BoundMemory,
  floatsOf,
  type KeysJob,
  normKeys,
} from "./row_jobs.ts";

/**
 * Approximate number of query heads in a chunk of attention. Not measured: they share
 * keys and values that are read once, and a prompt still makes chunks for all threads.
 */
const BLOCK_HEADS = 32;

/** {@linkcode CpuKernels.attention} in work space, `bytes` from `begin` of each memory. */
export function* attend(
  pool: CpuPool,
  memories: CpuMemory,
  space: { begin: number; bytes: number },
  shape: Heads,
  { qkv, qNorm, kNorm, angles, k, v, cache, out }: Attention,
): Work {
  const { heads, kvHeads, headDim } = shape, bytes = 4 * headDim;
  const longest = mostResults(SCORES_BYTES);
  if (cache.context > longest) {
    throw new Error(
      `Cannot attend over ${cache.context} positions: must be at most ${longest}`,
    );
  }
  const width = heads + 2 * kvHeads, rows = qkv.length / (width * headDim);
  const { memory, ...cached } = cachedIn(memories, k, v, headDim);
  const bound = pool.memories[memory], { buffer } = bound.memory;
  const headBytes = packedBytes(headDim), group = heads / kvHeads;
  const weights = space.begin;
  const room = space.bytes - 2 * bytes - cache.table.byteLength;
  const floats = floatsOf(bound, space.begin + space.bytes);
  floats.set(qNorm.weight, weights / 4);
  floats.set(kNorm.weight, weights / 4 + headDim);
  const most = Math.min(
    Math.floor(room / (2 * heads * headBytes + bytes + 20)),
    Math.floor(MAX_CHUNKS / kvHeads),
    sliceQueries(pool.threads, shape, cache),
  );
  using from = shared(memories, qkv);
  using to = shared(memories, out, true);

  for (let done = 0; done < rows; done += most) {
    const count = Math.min(most, rows - done);
    const anglesAt = weights + 2 * bytes, cellsAt = anglesAt + count * bytes;
    const qAt = cellsAt + 4 * count, outAt = qAt + count * heads * headBytes;
    const first = from.address + done * width * bytes;
    const cells = new Uint32Array(buffer, cellsAt, count);
    placeRows(cache, done, count, kvHeads, (r, cell, position) => {
      floats.set(angles(position), anglesAt / 4 + r * headDim);
      cells[r] = cell;
    });
    const common = {
      ...{ memory: from.memory, headsBytes: width * bytes, rows: count },
      ...{ kvHeads, headDim, angles: anglesAt, page: cache.page },
    };
    const keys = {
      ...{ ...common, ...cached, heads: first + heads * bytes },
      ...{ weight: weights + bytes, eps: bitsOfFloat(kNorm.eps) },
      ...{ cells: cellsAt, chunk: count },
    };
    if (k.dtype === "f32") {
      const size = 2 * kvHeads * headDim;
      pool.runRows(memory, { kind: "keys", job: keys }, size);
    } else {
      putQuantized(pool.memories, bound, keys, { k, v });
    }
    const { blocks, scores } = blocksOf(cache, done, count, group);
    const tableAt = outAt + count * heads * headBytes;
    const job = {
      ...{ ...common, ...cached, heads: first, weight: weights, group },
      ...{ eps: bitsOfFloat(qNorm.eps), q: qAt, headBytes, out: outAt },
      ...{ outMemory: to.memory, to: to.address + done * heads * bytes },
      blocks: writeBlocks(buffer, tableAt, cache, blocks),
    };
    pool.run(
      memory,
      encodeJob({ kind: "attention", job }),
      blocks.length * kvHeads,
      2 * scores * heads * headDim < ALONE,
    );
    yield;
  }
}

/** Where cached keys and values are; scales are at 0 if there are none. */
function cachedIn(
  memories: CpuMemory,
  k: CpuTensor,
  v: CpuTensor,
  headDim: number,
) {
  const { memory, address: kAt } = memories.find(k);
  const vAt = memories.find(v).address; // in the memory of k: see CpuKernels
  const quants = elements(k.shape.slice(0, -1)) * headDim;
  const [kScales, vScales] = k.dtype === "u32"
    ? [kAt + quants, vAt + quants]
    : [0, 0];
  return { memory, k: kAt, kScales, v: vAt, vScales };
}

/** An array where threads can use it: a copy, if it was not allocated for them. */
function shared(
  memories: CpuMemory,
  data: Float32Array,
  isResult = false,
): Place & Disposable {
  const place = memories.placeOf(data);
  if (place) return { ...place, [Symbol.dispose]() {} };
  const copy = memories.allocate("f32", [data.length]);
  if (!isResult) f32(copy).set(data);
  return {
    ...memories.find(copy),
    [Symbol.dispose]() {
      if (isResult) data.set(f32(copy));
      memories.release(copy);
    },
  };
}

/** Rows of queries in a slice of work. */
function sliceQueries(
  threads: number,
  { heads, headDim }: Heads,
  { lengths, pass: { first, sequences, tokens } }: KvCache<CpuTensor>,
): number {
  const longest = Math.max(...lengths.subarray(first, first + sequences));
  const work = 2 * heads * headDim * (longest + tokens);
  return Math.max(1, Math.floor(threads * SLICE / work));
}

/** Visits `count` rows of a pass with their row of the cache, of the first head. */
function placeRows(
  cache: KvCache<CpuTensor>,
  begin: number,
  count: number,
  kvHeads: number,
  visit: (row: number, cell: number, position: number) => void,
): void {
  const { first, tokens } = cache.pass;
  for (let r = 0; r < count; r++) {
    const sequence = first + Math.floor((begin + r) / tokens);
    const position = cache.lengths[sequence] + (begin + r) % tokens;
    visit(r, cache.rowOf(sequence, 0, kvHeads, position), position);
  }
}

/** Puts keys and values into a cache in q8_0, on this thread: its errors say which. */
function putQuantized(
  memories: readonly BoundMemory[],
  bound: BoundMemory,
  job: KeysJob,
  { k, v }: { k: CpuTensor; v: CpuTensor },
): void {
  const { rows, kvHeads, headDim, page } = job, width = kvHeads * headDim;
  const putKey = writerOf(k, headDim), putValue = writerOf(v, headDim);
  const scratch = scratchOf(0), keys = scratch / 4;
  const cells = new Uint32Array(bound.memory.buffer, job.cells, rows);
  for (let r = 0; r < rows; r++) {
    normKeys(memories, bound, job, r, scratch);
    const values = (job.heads + r * job.headsBytes) / 4 + width;
    const from = floatsOf(memories[job.memory], 4 * (values + width));
    const floats = floatsOf(bound, scratch + 4 * width);
    for (let h = 0; h < kvHeads; h++) {
      const to = cells[r] + h * page, [a, b] = [h * headDim, (h + 1) * headDim];
      putKey(to, floats.subarray(keys + a, keys + b));
      putValue(to, from.subarray(values + a, values + b));
    }
  }
}

/** Rows that are attended together, as a job has them, and the scores of a head. */
function blocksOf(
  cache: KvCache<CpuTensor>,
  begin: number,
  count: number,
  group: number,
): { blocks: number[][]; scores: number } {
  const { first, tokens } = cache.pass, blocks: number[][] = [];
  const perBlock = Math.max(Math.floor(BLOCK_HEADS / group), 1);
  let scores = 0;
  for (let r = 0, size; r < count; r += size) {
    const sequence = first + Math.floor((begin + r) / tokens);
    const token = (begin + r) % tokens;
    const position = cache.lengths[sequence] + token;
    size = Math.min(perBlock, tokens - token, count - r);
    blocks.push([r, size, sequence, position]);
    scores += size * (position + size);
  }
  return { blocks, scores };
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
