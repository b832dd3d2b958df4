/**
 * The time-consuming parts of a forward pass, which {@link CpuOps} runs in plain
 * TypeScript or in WebAssembly.
 *
 * @module
 */
import type { Dtype } from "../dtype.ts";
import type { MatrixPart } from "../formats/matrix.ts";
import type { KvCache } from "../model/kv_cache.ts";
import type { CpuTensor } from "../formats/tensor.ts";

/** Which implementation runs, and why. */
export interface CpuInfo {
  kernel: "wasm-relaxed-simd" | "wasm-simd" | "plain";
  /** Why this implementation, rather than a faster one. */
  reason: string;
  /** Threads that share the work, including the caller's. */
  threads: number;
}

/** How the rows of a matmul are finished. */
export type Finish =
  /** `out = y` */
  | "store"
  /** `out = out + y` */
  | "add"
  /** `out = silu(g) · u`, where a row of y is `[g, u]`; for parts with a twin */
  | "swiglu";

/** Where the results for one part of a matrix go. */
export interface Output {
  data: Float32Array;
  /** Row stride in elements. */
  stride: number;
  /** The column of the part's first result. */
  column: number;
}

/** RMSNorm (https://arxiv.org/abs/1910.07467). */
export interface Norm {
  /** One factor per element. */
  weight: Float32Array;
  eps: number;
}

/** Rows `[rows, k]`. */
export interface Rows {
  data: Float32Array;
  rows: number;
  k: number;
  /** They are normed before they are used. */
  norm?: Norm;
}

/** The queries, keys and values of one pass, and the cache that they are put in. */
export interface Attention {
  /** `[rows, (heads + 2 kvHeads) · headDim]`: queries, keys and values. */
  qkv: Float32Array;
  /** Of each head of queries and of keys, before they are rotated. */
  qNorm: Norm;
  kNorm: Norm;
  /** The cosines of a position, then its sines: one of each for two elements of a head. */
  angles: (position: number) => Float32Array;
  /**
   * Keys and values `[sequences, kvHeads, context, headDim]` in f32, or words of q8_0
   * (lib/formats/cached.ts), with room for those of this pass: two halves of one allocated
   * tensor.
   */
  k: CpuTensor;
  v: CpuTensor;
  /** The sequences and positions of the rows. */
  cache: KvCache<CpuTensor>;
  /** `[rows, heads · headDim]` */
  out: Float32Array;
}

/** The shape of attention. */
export interface Heads {
  heads: number;
  kvHeads: number;
  headDim: number;
}

/**
 * Multiplications per slice of work and thread: a runner may let the event loop turn
 * between two slices. Not measured: an estimated 5 to 50 ms, depending on
 * how often a weight is used.
 */
export const SLICE = 1 << 26;

/** Work that is done in slices, one per iteration. */
export type Work = Generator<void, void>;

/** The slow parts of a pass. */
export interface CpuKernels extends Disposable {
  readonly info: CpuInfo;
  /** Bytes of all tensors and of the work space. */
  readonly memoryBytes: number;
  /** Allocates a tensor of zeros where the kernels can read it. */
  allocate(dtype: Dtype, shape: readonly number[]): CpuTensor;
  /** Makes the memory of a tensor available to {@link allocate} again. */
  release(tensor: CpuTensor): void;
  /**
   * Moves the planes of a part of a matrix into one memory if they are in several, as
   * {@link matmul} needs them; before any view of them is made.
   */
  together(planes: readonly CpuTensor[]): void;
  /**
   * Puts the rows of a part of a matrix in the order that is read fastest, in place; returns
   * the part as it then is. `apart` has the numbers of rows of slices that are multiplied
   * separately, as an expert is.
   */
  interleave(
    part: MatrixPart<CpuTensor>,
    k: number,
    apart: readonly number[],
  ): Generator<void, MatrixPart<CpuTensor>>;
  /**
   * Computes `y = x · wᵀ` for one part of w, `[rows, k]`, `[n, k]` → `[rows, n]`, and
   * finishes it into `out`.
   */
  matmul(
    x: Rows,
    w: MatrixPart<CpuTensor>,
    out: Output,
    finish: Finish,
  ): Work;
  /** Norms rows into `out`, `[rows, k]`. */
  norm(x: Rows & { norm: Norm }, out: Float32Array): void;
  /**
   * Norms and rotates queries and keys, puts keys and values into the cache, and attends:
   * causal, grouped-query, with scale `1 / sqrt(headDim)`.
   */
  attention(pass: Attention): Work;
}
