/**
 * Runs one chunk of a matmul or of attention on one thread, with the WebAssembly
 * kernels. Jobs are passed between threads as numbers.
 *
 * The first {@link workBytes} of each memory are work space and tensors are stored
 * after it, so that a kernel needs only one memory.
 *
 * @module
 */
import { DOT_ROWS, TILE, type WasmKernels } from "./wasm_kernels.ts";

/** `y = x · wᵀ`, in chunks of rows of w. Everything but the sizes is an address or a byte count. */
export interface MatmulJob {
  dtype: number; // index into STORED
  x: number; // [rows, k], as packed by packRows
  xBytes: number; // from row to row, as all that end in Bytes
  rows: number;
  w: number; // [n, k]
  wBytes: number;
  n: number;
  k: number;
  y: number; // [rows, n]
  yBytes: number;
  chunk: number; // rows of w
}

/** Attention of blocks of rows, in chunks of one block and one key/value head. */
export interface AttentionJob {
  q: number; // [kvHeads, rows, group, headBytes]
  headBytes: number;
  rows: number;
  group: number; // query heads per key/value head
  kvHeads: number;
  headDim: number;
  k: number; // [sequences, kvHeads, context, headDim]
  v: number;
  context: number;
  out: number; // as q
  blocks: number; // [[row, rows, sequence, position of the first row], …], u32
}

const FIELDS = {
  matmul: [
    "dtype",
    "x",
    "xBytes",
    "rows",
    "w",
    "wBytes",
    "n",
    "k",
    "y",
    "yBytes",
    "chunk",
  ],
  attention: [
    "q",
    "headBytes",
    "rows",
    "group",
    "kvHeads",
    "headDim",
    "k",
    "v",
    "context",
    "out",
    "blocks",
  ],
} as const satisfies {
  matmul: (keyof MatmulJob)[];
  attention: (keyof AttentionJob)[];
};

/** Numbers in an encoded job. */
export const JOB_SIZE = 12;

/** A job as unsigned 32-bit numbers. */
export function encodeMatmul(job: MatmulJob): number[] {
  return [0, ...FIELDS.matmul.map((field) => job[field])];
}

/** A job as unsigned 32-bit numbers. */
export function encodeAttention(job: AttentionJob): number[] {
  return [1, ...FIELDS.attention.map((field) => job[field])];
}

const decode = <F extends string>(
  fields: readonly F[],
  job: ArrayLike<number>,
) =>
  Object.fromEntries(fields.map((field, i) => [field, job[i + 1]])) as Record<
    F,
    number
  >;

/** Element types of stored tensors, by their number in jobs. */
export const STORED = ["f32", "f16", "bf16"] as const;
const BYTES = [4, 2, 2];

const MASK_BYTES = 32;
const MASKS_BYTES = 8 * MASK_BYTES; // per order of elements
/** With this many rows of x or more, w is unpacked once for all of them. */
const DIRECT_ROWS = 5;
/** Columns unpacked at a time: TILE rows of them and of x fit the L1 cache. */
const PANEL = 512;
const PANEL_BYTES = 4 * PANEL + 64; // not a multiple of 4 KiB, which would share cache lines
/** Rows of x that stay in the L2 cache while rows of w pass through. */
const ROW_BLOCK = 96;
/** Positions whose values stay in the L2 cache while rows of weights pass through. */
const VALUE_BLOCK = 128;
/** Room for the scores of a chunk of attention; at least one row must fit. */
export const SCORES_BYTES = 1 << 20;
const THREAD_BYTES = TILE * PANEL_BYTES + SCORES_BYTES;

/** Start of a thread's own space; the space after the last thread's is shared. */
export const threadSpace = (thread: number): number =>
  2 * MASKS_BYTES + thread * THREAD_BYTES;
/** Work space that threads share. */
const SHARED_BYTES = 32 << 20;
/** Bytes of work space in a memory. */
export const workBytes = (threads: number): number =>
  threadSpace(threads) + SHARED_BYTES;

/** Place of element `i` of eight for 16-bit weights: even elements come first. */
const EVEN_FIRST = [0, 4, 1, 5, 2, 6, 3, 7];

/** Writes the masks that the kernels use for the last `k % 8` columns. */
export function writeMasks(memory: ArrayBufferLike): void {
  const masks = new Uint32Array(memory, 0, 2 * MASKS_BYTES / 4);
  for (let count = 0; count < 8; count++) {
    for (let i = 0; i < count; i++) {
      masks[count * 8 + i] = 0xffffffff;
      masks[MASKS_BYTES / 4 + count * 8 + EVEN_FIRST[i]] = 0xffffffff;
    }
  }
}

const tailMask = (dtype: number, k: number) =>
  k % 8 && (dtype ? MASKS_BYTES : 0) + k % 8 * MASK_BYTES;

/** Row stride of packed x in bytes: whole groups of eight, and no multiple of 4 KiB. */
export const packedBytes = (k: number): number => 4 * Math.ceil(k / 8) * 8 + 64;

/** Row stride of results in bytes: kernels write up to the end of their last step. */
export const resultBytes = (n: number): number => 16 * Math.ceil(n / 4) + 16;

/** Rows of w in a chunk are a multiple of this: whole steps of the kernels. */
export const CHUNK_ROWS = DOT_ROWS * TILE;

/** Copies rows of x into work space, in the order in which `dtype` is unpacked. */
export function packRows(
  x: Float32Array,
  rows: number,
  k: number,
  dtype: number,
  memory: ArrayBufferLike,
  to: number,
): void {
  const stride = packedBytes(k) / 4;
  const out = new Float32Array(memory, to, rows * stride);
  for (let r = 0; r < rows; r++) {
    const begin = r * stride, end = begin + Math.ceil(k / 8) * 8, from = r * k;
    out.fill(0, end - 8, end);
    if (dtype === 0) {
      out.set(x.subarray(from, from + k), begin);
      continue;
    }
    const whole = k - k % 8;
    for (let i = 0; i < whole; i += 8) {
      const a = from + i, b = begin + i;
      out[b] = x[a];
      out[b + 1] = x[a + 2];
      out[b + 2] = x[a + 4];
      out[b + 3] = x[a + 6];
      out[b + 4] = x[a + 1];
      out[b + 5] = x[a + 3];
      out[b + 6] = x[a + 5];
      out[b + 7] = x[a + 7];
    }
    for (let i = whole; i < k; i++) {
      out[begin + whole + EVEN_FIRST[i - whole]] = x[from + i];
    }
  }
}

/** Runs chunk `index` of a job. */
export function runChunk(
  kernels: WasmKernels,
  memory: WebAssembly.Memory,
  job: Uint32Array,
  index: number,
  thread: number,
): void {
  if (job[0] === 0) {
    const matmul = decode(FIELDS.matmul, job);
    const begin = index * matmul.chunk;
    product(
      kernels,
      matmul,
      begin,
      Math.min(matmul.n - begin, matmul.chunk),
      thread,
    );
  } else {attention(
      kernels,
      memory,
      decode(FIELDS.attention, job),
      index,
      thread,
    );}
}

/** Computes `count` columns of y, starting at `begin`, a multiple of CHUNK_ROWS. */
function product(
  kernels: WasmKernels,
  { dtype, x, xBytes, rows, w, wBytes, k, y, yBytes }: Omit<
    MatmulJob,
    "n" | "chunk"
  >,
  begin: number,
  count: number,
  thread: number,
): void {
  w += begin * wBytes;
  y += begin * 4;
  if (rows < DIRECT_ROWS) {
    const dot = kernels[`dot_${STORED[dtype]}`];
    const mask = tailMask(dtype, k);
    const step = rows === 1 ? count : 4 * DOT_ROWS; // the next row of x finds w in the cache
    for (let j = 0; j < count; j += step) {
      for (let r = 0; r < rows; r++) {
        dot(
          x + r * xBytes,
          w + j * wBytes,
          wBytes,
          Math.min(step, count - j),
          k,
          mask,
          y + r * yBytes + 4 * j,
        );
      }
    }
    return;
  }
  const unpack = kernels[`unpack_${STORED[dtype]}`];
  const panel = threadSpace(thread);
  for (let r = 0; r < rows; r += ROW_BLOCK) {
    for (let i = 0; i < k; i += PANEL) {
      const width = Math.min(PANEL, k - i);
      const mask = tailMask(dtype, width);
      for (let j = 0; j < count; j += TILE) {
        const tile = Math.min(TILE, count - j);
        unpack(
          w + j * wBytes + i * BYTES[dtype],
          wBytes,
          tile,
          width,
          mask,
          panel,
          PANEL_BYTES,
        );
        kernels.tiles(
          x + r * xBytes + 4 * i,
          xBytes,
          Math.min(ROW_BLOCK, rows - r),
          panel,
          PANEL_BYTES,
          Math.ceil(width / 8) * 32,
          y + r * yBytes + 4 * j,
          yBytes,
          i,
        );
      }
    }
  }
}

function attention(
  kernels: WasmKernels,
  memory: WebAssembly.Memory,
  job: AttentionJob,
  index: number,
  thread: number,
): void {
  const { headBytes, group, kvHeads, headDim, context } = job;
  const kvHead = index % kvHeads;
  const block = new Uint32Array(
    memory.buffer,
    job.blocks + 16 * Math.floor(index / kvHeads),
    4,
  );
  const [row, rows, sequence, position] = block;
  const rowBytes = 4 * headDim;
  const heads = (sequence * kvHeads + kvHead) * context * rowBytes;
  const scores = threadSpace(thread) + TILE * PANEL_BYTES;
  const first = (kvHead * job.rows + row) * group * headBytes;
  const seen = position + rows; // by the last row
  const scoreBytes = resultBytes(seen);
  const step = Math.max(Math.floor(SCORES_BYTES / scoreBytes), 1);

  for (let r = 0; r < rows * group; r += step) {
    const count = Math.min(step, rows * group - r);
    product(
      kernels,
      {
        dtype: 0,
        x: job.q + first + r * headBytes,
        xBytes: headBytes,
        rows: count,
        w: job.k + heads,
        wBytes: rowBytes,
        k: headDim,
        y: scores,
        yBytes: scoreBytes,
      },
      0,
      seen,
      thread,
    );
    for (let i = 0; i < count; i++) {
      const visible = position + Math.floor((r + i) / group) + 1;
      kernels.softmax(
        scores + i * scoreBytes,
        visible,
        scoreBytes / 4,
        headDim ** -0.5,
      );
    }
    for (let p = 0; p < seen; p += VALUE_BLOCK) {
      kernels.weightedSum(
        scores + 4 * p,
        scoreBytes,
        count,
        job.v + heads + p * rowBytes,
        rowBytes,
        Math.min(VALUE_BLOCK, seen - p),
        job.out + first + r * headBytes,
        headBytes,
        p,
      );
    }
  }
}
