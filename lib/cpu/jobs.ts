/**
 * What one thread does for one chunk of a matmul or of attention, in WebAssembly; for what
 * comes before and after see row_jobs.ts. Jobs are passed between threads as numbers.
 *
 * Each memory begins with {@link workBytes} of work space, followed by stored tensors, so
 * that a kernel never needs a second memory. x and results are copied from and to others.
 *
 * @module
 */
import { bf16 } from "../formats/bf16.ts";
import { f32 } from "../formats/f32.ts";
import type { Format, SimdReader } from "../formats/format.ts";
import { isPanels, PANEL_ROWS, PANELS_ROWS } from "./panels.ts";
import { DOT_ROWS } from "./simd_code.ts";
import { isBlocks } from "./wasm_blocks.ts";
import {
  type Planes,
  SIMD_FORMATS,
  type SimdFormat,
  TILE,
  type WasmKernels,
} from "./wasm_kernels.ts";
import {
  type BoundMemory,
  copyFloats,
  finish,
  type FinishJob,
  floatOfBits,
  floatsOf,
  type KeysJob,
  normInPlace,
  pack,
  type PackJob,
  putKeys,
} from "./row_jobs.ts";
import { panelsName } from "./wasm_panels.ts";
import {
  columnBytes,
  WIDE_COLUMNS,
  wideOf,
  type WideTiles,
} from "./wasm_wide.ts";

/**
 * `y = x · wᵀ`, split into chunks of rows of w. Fields are addresses, strides in bytes and
 * sizes.
 */
export interface MatmulJob {
  format: number; // index into SIMD_FORMATS
  x: number; // [rows, k], as packed by packRows
  xBytes: number; // row stride, like yBytes
  rows: number;
  w: number; // [n, k]: its planes
  w1: number;
  w2: number;
  w3: number;
  n: number;
  k: number;
  y: number; // [rows, n]
  yBytes: number;
  chunk: number; // rows of w
}

/** Attention of blocks of rows, split into chunks of one block and one key/value head. */
export interface AttentionJob {
  memory: number; // of the queries as they come
  heads: number; // [rows, kvHeads · group, headDim]
  headsBytes: number; // row stride
  weight: number; // of their norm
  eps: number; // the bits of an f32
  angles: number; // [rows, headDim]
  q: number; // room for [kvHeads, rows, group, headBytes]
  headBytes: number;
  rows: number;
  group: number; // query heads per key/value head
  kvHeads: number;
  headDim: number;
  k: number; // [pages, kvHeads, page, headDim]
  kScales: number; // 0 if k is f32; in q8_0, k and v are quants
  v: number;
  vScales: number;
  page: number; // positions
  out: number; // room for results, laid out like q
  outMemory: number; // of the results
  to: number; // [rows, kvHeads · group, headDim]
  blocks: number; // [[row, rows, address of its pages, position of the first row], …], u32
}

/** All jobs by kind. */
interface Jobs {
  matmul: MatmulJob;
  attention: AttentionJob;
  pack: PackJob;
  finish: FinishJob;
  keys: KeysJob;
}

/** Their fields, in the order in which they are passed. */
const FIELDS = {
  matmul: [
    ...["format", "x", "xBytes", "rows", "w", "w1", "w2", "w3", "n", "k", "y"],
    ...["yBytes", "chunk"],
  ],
  attention: [
    ...["memory", "heads", "headsBytes", "weight", "eps", "angles", "q"],
    ...["headBytes", "rows", "group", "kvHeads", "headDim", "k", "kScales"],
    ...["v", "vScales", "page", "out", "outMemory", "to", "blocks"],
  ],
  pack: [
    ...["memory", "x", "k", "rows", "to", "toBytes", "evenFirst", "weight"],
    ...["eps", "chunk"],
  ],
  finish: [
    ...["y", "yBytes", "rows", "width", "memory", "to", "toBytes", "finish"],
    "chunk",
  ],
  keys: [
    ...["memory", "heads", "headsBytes", "rows", "kvHeads", "headDim"],
    ...["weight", "eps", "angles", "cells", "page", "k", "v", "chunk"],
  ],
} as { readonly [K in keyof Jobs]: readonly (keyof Jobs[K])[] };
const KINDS = Object.keys(FIELDS) as (keyof Jobs)[];

/** Length of an encoded job. */
export const JOB_SIZE = 1 +
  Math.max(...Object.values(FIELDS).map(({ length }) => length));

/** A job as a thread works on it. */
export type Job = {
  [K in keyof Jobs]: {
    kind: K;
    job: Jobs[K];
    /** What reads w, once a chunk has needed it. */
    reader?: MatrixReader;
  };
}[keyof Jobs];

/** A job on rows. */
export type RowJob = Job & { kind: "pack" | "finish" | "keys" };

/** A job as unsigned 32-bit numbers. */
export function encodeJob({ kind, job }: Job): number[] {
  const fields = job as unknown as Record<string, number>;
  const numbers = [KINDS.indexOf(kind)];
  for (const field of FIELDS[kind]) numbers.push(fields[field]);
  return numbers;
}

/** The job that {@link encodeJob} encoded. */
export function decodeJob(numbers: ArrayLike<number>): Job {
  const kind = KINDS[numbers[0]], fields = FIELDS[kind];
  const job: Record<string, number> = {};
  for (let i = 0; i < fields.length; i++) job[fields[i]] = numbers[i + 1] >>> 0;
  return { kind, job } as unknown as Job;
}

/** The format of keys and values. */
const CACHED = SIMD_FORMATS.findIndex((format) => format === f32);

const MASK_BYTES = 32;
const MASKS_BYTES = 8 * MASK_BYTES; // per order of elements
/**
 * With at least this many rows of x, w is unpacked once for all of them; with fewer, while
 * it is multiplied. That is faster for 8 rows of q8_0 and q4_k, slower for 12 of q8_0;
 * faster for 16 rows of f16, slower for 32.
 */
const DIRECT_ROWS = { f16: 16, blocks: 12, wide: 12 };

/** Whether an element is unpacked by one instruction, and transposed as it is stored. */
const isPlain = (format: SimdFormat): boolean =>
  format === bf16 || format === f32;

/**
 * Whether w is unpacked while it is multiplied by `rows` rows of x, with kernels for
 * vectors of 256 bits if `wide`. Without them that is always faster for bf16 and f32.
 */
export const isDirect = (
  format: SimdFormat,
  rows: number,
  wide: boolean,
): boolean =>
  !wide && isPlain(format) ||
  rows < DIRECT_ROWS[wide ? "wide" : isBlocks(format) ? "blocks" : "f16"];

/** Bytes of w for several rows of x. Not measured: they fit an L1 cache of 32 KiB. */
const WARM_BYTES = 1 << 15;
/**
 * Columns unpacked at a time: TILE rows of w and of x fit in the L1 cache. Not measured:
 * six rows of 2 KiB take 12 KiB of 32.
 */
const PANEL = 512;
const PANEL_BYTES = 4 * PANEL + 64; // rows a multiple of 4 KiB apart would share cache lines
/**
 * Rows of x that stay in the L2 cache while rows of w stream past: of PANEL columns, they
 * take 256 KiB. w is unpacked for each block again: with 96, a prompt of 128 takes 9 to
 * 19 % longer by k-quants.
 */
const ROW_BLOCK = 128;
/**
 * Positions whose values stay in the L2 cache while attention weights stream past. Not
 * measured: 128 rows of 128 values take 64 KiB.
 */
const VALUE_BLOCK = 128;
/** Room for the scores of one chunk of attention: at least one row. */
export const SCORES_BYTES = 1 << 20;
/**
 * Room for cached heads that are unpacked to f32. Not measured: 256 heads of 128 values,
 * which stay in the L2 cache.
 */
const HEADS_BYTES = 1 << 17;
/** Room for unpacked rows, then for their transposed columns. */
const PANELS_BYTES = WIDE_COLUMNS * PANEL_BYTES + PANEL * columnBytes("f32");
const THREAD_BYTES = PANELS_BYTES + SCORES_BYTES + HEADS_BYTES;

/** Where a thread's own space begins; shared space follows that of the last thread. */
export const threadSpace = (thread: number): number =>
  2 * MASKS_BYTES + thread * THREAD_BYTES;
/** A thread's room for scores, and for other floats when there are none. */
export const scratchOf = (thread: number): number =>
  threadSpace(thread) + PANELS_BYTES;
/** Work space shared by all threads. */
const SHARED_BYTES = 32 << 20;
/** Total work space at the start of a memory. */
export const workBytes = (threads: number): number =>
  threadSpace(threads) + SHARED_BYTES;

/** Where element `i` of eight goes when the even ones come first. */
const EVEN_FIRST = [0, 4, 1, 5, 2, 6, 3, 7];

/** Writes the masks that the kernels apply to the last `k % 8` columns. */
export function writeMasks(memory: ArrayBufferLike): void {
  const masks = new Uint32Array(memory, 0, 2 * MASKS_BYTES / 4);
  for (let count = 0; count < 8; count++) {
    for (let i = 0; i < count; i++) {
      masks[count * 8 + i] = 0xffffffff;
      masks[MASKS_BYTES / 4 + count * 8 + EVEN_FIRST[i]] = 0xffffffff;
    }
  }
}

const tailMask = (count: number, order: SimdReader["order"]) =>
  count && (order === "straight" ? 0 : MASKS_BYTES) + count * MASK_BYTES;

/** Row stride of packed x in bytes: whole groups of eight, and not a multiple of 4 KiB. */
export const packedBytes = (k: number): number => 4 * Math.ceil(k / 8) * 8 + 64;

/** Row stride of results in bytes, with room for a whole step of the kernels at the end. */
export const resultBytes = (n: number): number =>
  16 * Math.ceil((n + WIDE_COLUMNS - 1) / 4) + 16;

/** The most results in a row of `bytes`, a multiple of 16. */
export const mostResults = (bytes: number): number =>
  (bytes - 16) / 4 - (WIDE_COLUMNS - 1);

/** Chunks are multiples of this many rows of w, so that kernels take whole steps. */
export const CHUNK_ROWS = DOT_ROWS * TILE;
/**
 * Chunks of rows in panels are multiples of this: panels are read two at a time, or three to be
 * unpacked.
 */
export const PANEL_CHUNK_ROWS = PANELS_ROWS * TILE;
/** Rows of panels that are unpacked at a time. */
const UNPACKED_PANELS = PANEL_ROWS * TILE;

/** Runs chunk `index` of a job on a memory. */
export function runChunk(
  memories: readonly BoundMemory[],
  memory: number,
  all: Job,
  index: number,
  thread: number,
): void {
  const bound = memories[memory], { kernels } = bound;
  switch (all.kind) {
    case "attention":
      return attention(memories, bound, all.job, index, thread);
    case "pack":
      return pack(memories, bound, all.job, index);
    case "finish":
      return finish(memories, bound, all.job, index);
    case "keys":
      return putKeys(memories, bound, all.job, index, scratchOf(thread));
    case "matmul": {
      const { job } = all, begin = index * job.chunk;
      const count = Math.min(job.n - begin, job.chunk);
      const w = all.reader ??= readerOf(kernels, job, thread);
      multiply(kernels, job, w, begin, count, thread);
    }
  }
}

/**
 * Rows of w that are still in the cache when the next rows of x need them, of `rowBytes`
 * each. Short ones are more, because the kernels read rows that are far apart.
 */
const warmRows = (rowBytes: number): number =>
  4 * DOT_ROWS *
  Math.max(1, Math.floor(WARM_BYTES / rowBytes / (4 * DOT_ROWS)));

/** Computes `count` columns of y, starting at `begin`, where a chunk does. */
function multiply(
  kernels: WasmKernels,
  job: Omit<MatmulJob, "n" | "chunk">,
  w: MatrixReader,
  begin: number,
  count: number,
  thread: number,
): void {
  const { x, xBytes, rows, k, yBytes } = job, y = job.y + begin * 4;
  const { wide } = w, isWide = wideOf(kernels) !== undefined;
  if (isDirect(SIMD_FORMATS[job.format], rows, isWide)) {
    const height = w.dotPair ? 2 : 1;
    const step = rows <= height ? count : warmRows(w.rowBytes);
    for (let j = 0; j < count; j += step) {
      const n = Math.min(step, count - j);
      for (let r = 0; r < rows; r += height) {
        const from = x + r * xBytes, to = y + r * yBytes + 4 * j;
        if (r + height > rows || !w.dotPair) w.dot(from, begin + j, n, to);
        else w.dotPair(from, xBytes, begin + j, n, to, yBytes);
      }
    }
    return;
  }
  const panel = threadSpace(thread);
  const step = wide
    ? WIDE_COLUMNS
    : isPanels(SIMD_FORMATS[job.format])
    ? UNPACKED_PANELS
    : TILE;
  for (let r = 0; r < rows; r += ROW_BLOCK) {
    const from = x + r * xBytes, some = Math.min(ROW_BLOCK, rows - r);
    for (let i = 0; i < k; i += PANEL) {
      const width = Math.min(PANEL, k - i), padded = 8 * Math.ceil(width / 8);
      for (let j = 0; j < count; j += step) {
        const n = Math.min(step, count - j), to = y + r * yBytes + 4 * j;
        const xs = [from + 4 * i, xBytes, some] as const;
        if (wide) {
          const columns = wide.transpose(begin + j, n, i, width, panel);
          wide.tiles(...xs, columns, padded, to, yBytes, i);
        } else {
          w.unpack(begin + j, n, i, width, panel);
          for (let t = 0; t < n; t += TILE) {
            const rows = panel + t * PANEL_BYTES, at = to + 4 * t;
            kernels.tiles(...xs, rows, PANEL_BYTES, 4 * padded, at, yBytes, i);
          }
        }
      }
    }
  }
}

/** The kernels' names for each format, and bytes of planes' rows by their width. */
const READERS = SIMD_FORMATS.map((format) => {
  const name = isPanels(format) ? panelsName(format) : format.name;
  return {
    dot: `dot_${name}`,
    dotPair: `dotPair_${name}`,
    unpack: `unpack_${name}`,
    dotBlocks: `dotBlocks_${name}`,
    unpackBlocks: `unpackBlocks_${name}`,
    rowBytes: new Map<number, Planes>(),
  } as const;
});

/** Bytes of `k` elements in each plane of a format. */
function planeBytes(format: number, k: number): Planes {
  const { rowBytes } = READERS[format];
  let bytes = rowBytes.get(k);
  if (!bytes) {
    const [p0, p1 = 0, p2 = 0, p3 = 0] = SIMD_FORMATS[format].planes(k)
      .map(({ rowBytes }) => rowBytes);
    rowBytes.set(k, bytes = [p0, p1, p2, p3]);
  }
  return bytes;
}

/** How cached heads of a sequence are read as f32. */
interface HeadReader {
  /** The most heads at a time; the first of them is a multiple. */
  most: number;
  /** Where heads of positions `p` to `p + n` are. */
  heads(at: number, scales: number, p: number, n: number): number;
}

/** Heads in q8_0 are unpacked to `space`. */
function headReader(
  kernels: WasmKernels,
  { headDim, kScales, page }: AttentionJob,
  rowOf: (position: number) => number,
  space: number,
): HeadReader {
  const rowBytes = 4 * headDim, scalesBytes = 4 * Math.ceil(headDim / 64);
  if (kScales === 0) {
    return { most: page, heads: (at, _, p) => at + rowOf(p) * rowBytes };
  }
  // Whole chunks, so that no block of keys overwrites scores of the one before.
  const chunks = Math.floor(HEADS_BYTES / rowBytes / CHUNK_ROWS);
  return {
    most: Math.min(page, CHUNK_ROWS * Math.max(1, chunks)),
    heads(at, scales, p, n) {
      const row = rowOf(p);
      kernels.unpackHeads(
        at + row * headDim,
        scales + row * scalesBytes,
        scalesBytes,
        n,
        headDim,
        space,
      );
      return space;
    },
  };
}

/** The kernels that read a matrix. */
interface MatrixReader {
  /** Bytes of a row of w. */
  readonly rowBytes: number;
  /** `y[j] = x · w[row + j]` for `n` rows of w. */
  dot(x: number, row: number, n: number, y: number): void;
  /** `dot` for two rows of x, `xBytes` apart; absent if one by one they take as long. */
  dotPair?(
    x: number,
    xBytes: number,
    row: number,
    n: number,
    y: number,
    yBytes: number,
  ): void;
  /** Unpacks `width` columns of `n` rows, from column `column` on, to a panel. */
  unpack(
    row: number,
    n: number,
    column: number,
    width: number,
    panel: number,
  ): void;
  /** How it is read for vectors of 256 bits, if the module has kernels for them. */
  readonly wide?: {
    /** As `unpack`, but transposes what it unpacks; returns where that is. */
    transpose(...unpack: Parameters<MatrixReader["unpack"]>): number;
    tiles: WideTiles;
  };
}

/** The order of x for a format, and for its transposed columns. */
export const orderOf = (
  format: SimdFormat,
  transposed: boolean,
): SimdReader["order"] =>
  "factors" in format.simd || transposed && isPlain(format)
    ? "straight"
    : format.simd.order;

/** How a matrix is read for vectors of 256 bits, if the module has kernels for them. */
function wideReader(
  kernels: WasmKernels,
  { format, w, k }: Pick<MatmulJob, "format" | "w" | "k">,
  unpack: MatrixReader["unpack"],
): MatrixReader["wide"] {
  const wide = wideOf(kernels);
  if (!wide) return undefined;
  const own = SIMD_FORMATS[format];
  if (!isPlain(own)) {
    return {
      transpose(row, n, column, width, panel) {
        unpack(row, n, column, width, panel);
        const columns = panel + WIDE_COLUMNS * PANEL_BYTES;
        const padded = 8 * Math.ceil(width / 8);
        wide.transpose_f32(panel, PANEL_BYTES, n, padded, 0, columns);
        return columns;
      },
      tiles: wide.wideTiles_f32,
    };
  }
  const [transpose, tiles, bytes] = own === bf16
    ? [wide.transpose_bf16, wide.wideTiles_bf16, 2]
    : [wide.transpose_f32, wide.wideTiles_f32, 4];
  const [rowBytes] = planeBytes(format, k);
  return {
    transpose(row, n, column, width, panel) {
      const from = w + row * rowBytes + column * bytes;
      const mask = tailMask(width % 8, "straight");
      transpose(from, rowBytes, n, width, mask, panel);
      return panel;
    },
    tiles,
  };
}

function readerOf(
  kernels: WasmKernels,
  { format, w, w1, w2, w3, k }: Omit<MatmulJob, "n" | "chunk">,
  thread: number,
): MatrixReader {
  const own = SIMD_FORMATS[format], names = READERS[format];
  const [p0, p1, p2, p3] = planeBytes(format, k);
  if (!isBlocks(own)) {
    const { simd } = own as Format & { simd: SimdReader };
    const { bytes, order } = simd, rowBytes = p0;
    const dot = kernels[names.dot], mask = tailMask(k % 8, order);
    const pair = kernels[names.dotPair], unpackRows = kernels[names.unpack];
    const unpack: MatrixReader["unpack"] = (row, n, column, width, panel) =>
      unpackRows(
        w + row * rowBytes + column / 8 * bytes,
        rowBytes,
        n,
        width,
        tailMask(width % 8, order),
        panel,
        PANEL_BYTES,
      );
    return {
      rowBytes,
      dot: (x, row, n, y) =>
        dot(x, w + row * rowBytes, rowBytes, n, k, mask, y, 0, 0),
      dotPair: (x, xBytes, row, n, y, yBytes) =>
        pair(x, w + row * rowBytes, rowBytes, n, k, mask, y, xBytes, yBytes),
      unpack,
      wide: wideReader(kernels, { format, w, k }, unpack),
    };
  }
  const dot = kernels[names.dotBlocks];
  const unpackRows = kernels[names.unpackBlocks];
  const mask = (k: number) => tailMask(k / own.simd.group % 4, "straight");
  const scratch = scratchOf(thread), tail = mask(k);
  const apart = isPanels(own) ? PANEL_ROWS : 1; // neighboring bytes of a row
  const unpack: MatrixReader["unpack"] = (row, n, column, width, panel) => {
    const [c0, c1, c2, c3] = planeBytes(format, column)
      .map((bytes) => bytes * apart);
    unpackRows(
      w + row * p0 + c0,
      w1 + row * p1 + c1,
      w2 + row * p2 + c2,
      w3 + row * p3 + c3,
      ...[n, k, width, mask(width), panel, PANEL_BYTES, scratch] as const,
    );
  };
  return {
    rowBytes: p0 + p1 + p2 + p3,
    dot: (x, row, n, y) =>
      dot(
        w + row * p0,
        w1 + row * p1,
        w2 + row * p2,
        w3 + row * p3,
        ...[x, n, k, tail, y, scratch] as const,
      ),
    unpack,
    wide: wideReader(kernels, { format, w, k }, unpack),
  };
}

/** Returns where a kv head's key or value of a position is, in rows of the cache. */
function rowFinder(
  memory: WebAssembly.Memory,
  { kvHeads, page }: AttentionJob,
  kvHead: number,
  pagesAt: number,
): (position: number) => number {
  const pages = new Uint32Array(memory.buffer, pagesAt);
  return (position) =>
    (pages[Math.floor(position / page)] * kvHeads + kvHead) * page +
    position % page;
}

function attention(
  memories: readonly BoundMemory[],
  bound: BoundMemory,
  job: AttentionJob,
  index: number,
  thread: number,
): void {
  const { kernels, memory } = bound;
  const { headBytes, group, kvHeads, headDim } = job;
  const kvHead = index % kvHeads;
  const block = new Uint32Array(
    memory.buffer,
    job.blocks + 16 * Math.floor(index / kvHeads),
    4,
  );
  const [row, rows, pagesAt, position] = block;
  const rowBytes = 4 * headDim;
  const scores = scratchOf(thread);
  const first = (kvHead * job.rows + row) * group * headBytes;
  const seen = position + rows; // keys that the last row attends to
  const scoreBytes = resultBytes(seen);
  const step = Math.max(Math.floor(SCORES_BYTES / scoreBytes), 1);

  takeQueries(memories, bound, job, { kvHead, row, rows, first });
  const rowOf = rowFinder(memory, job, kvHead, pagesAt);
  const read = headReader(kernels, job, rowOf, scores + SCORES_BYTES);
  const keyBlock = Math.min(read.most, seen);
  const valueBlock = Math.min(read.most, VALUE_BLOCK);

  for (let r = 0; r < rows * group; r += step) {
    const count = Math.min(step, rows * group - r);
    for (let p = 0; p < seen; p += keyBlock) {
      const n = Math.min(keyBlock, seen - p);
      const keys = {
        format: CACHED,
        x: job.q + first + r * headBytes,
        xBytes: headBytes,
        rows: count,
        w: read.heads(job.k, job.kScales, p, n),
        ...{ w1: 0, w2: 0, w3: 0 },
        k: headDim,
        y: scores + 4 * p,
        yBytes: scoreBytes,
      };
      const w = readerOf(kernels, keys, thread);
      multiply(kernels, keys, w, 0, n, thread);
    }
    for (let i = 0; i < count; i++) {
      const visible = position + Math.floor((r + i) / group) + 1;
      kernels.softmax(
        scores + i * scoreBytes,
        visible,
        scoreBytes / 4,
        headDim ** -0.5,
      );
    }
    for (let p = 0; p < seen; p += valueBlock) {
      const n = Math.min(valueBlock, seen - p);
      kernels.weightedSum(
        scores + 4 * p,
        scoreBytes,
        count,
        read.heads(job.v, job.vScales, p, n),
        rowBytes,
        n,
        job.out + first + r * headBytes,
        headBytes,
        p,
      );
    }
  }
  putResults(memories, bound, job, { kvHead, row, rows, first });
}

/** Some rows of a key/value head's queries, and where they begin in work space. */
interface QueryRows {
  kvHead: number;
  row: number;
  rows: number;
  first: number;
}

/** Copies queries into work space, norms and rotates them. */
function takeQueries(
  memories: readonly BoundMemory[],
  bound: BoundMemory,
  job: AttentionJob,
  { kvHead, row, rows, first }: QueryRows,
): void {
  const { headBytes, group, headDim, weight } = job, bytes = 4 * headDim;
  const eps = floatOfBits(job.eps), padding = headBytes / 4 - headDim;
  const all = job.heads + (row + rows) * job.headsBytes;
  const from = floatsOf(memories[job.memory], all);
  const into = floatsOf(bound, job.q + first + rows * group * headBytes);
  for (let r = row, at = job.q + first; r < row + rows; r++) {
    const heads = job.heads + r * job.headsBytes + kvHead * group * bytes;
    const norm = { weight, eps, angles: job.angles + r * bytes };
    for (let g = 0; g < group; g++, at += headBytes) {
      copyFloats(from, heads / 4 + g * headDim, headDim, into, at / 4);
      into.fill(0, at / 4 + headDim, at / 4 + headDim + padding);
      normInPlace(bound, at, 1, headDim, norm);
    }
  }
}

/** Copies results from work space to where they belong. */
function putResults(
  memories: readonly BoundMemory[],
  bound: BoundMemory,
  job: AttentionJob,
  { kvHead, row, rows, first }: QueryRows,
): void {
  const { headBytes, group, kvHeads, headDim } = job, bytes = 4 * headDim;
  const all = job.to + (row + rows) * kvHeads * group * bytes;
  const into = floatsOf(memories[job.outMemory], all);
  const from = floatsOf(bound, job.out + first + rows * group * headBytes);
  for (let r = row, at = job.out + first; r < row + rows; r++) {
    const to = job.to + (r * kvHeads + kvHead) * group * bytes;
    for (let g = 0; g < group; g++, at += headBytes) {
      copyFloats(from, at / 4, headDim, into, to / 4 + g * headDim);
    }
  }
}
