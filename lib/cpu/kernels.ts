/**
 * What plain TypeScript and WebAssembly each implement for {@link CpuOps}: the
 * parts of a forward pass that take the time.
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
  /** Why this one and no faster one. */
  reason: string;
  /** Threads that share the work, the caller's included. */
  threads: number;
}

/** What happens to the rows of a matmul. */
export type Finish =
  /** `out = y` */
  | "store"
  /** `out = out + y` */
  | "add"
  /** `out = silu(g) · u`, where a row of y is `[g, u]`; for parts with a twin */
  | "swiglu";

/** Where a part of a matrix puts its results. */
export interface Output {
  data: Float32Array;
  /** Elements from row to row. */
  stride: number;
  /** Where the part's first result goes in a row. */
  column: number;
}

/** The queries of one pass and what they look at. */
export interface Attention {
  /** `[rows, heads · headDim]`, normed and rotated. */
  q: Float32Array;
  /**
   * Keys and values `[sequences, kvHeads, context, headDim]` f32, those of this
   * pass included: two parts of one allocated tensor.
   */
  k: CpuTensor;
  v: CpuTensor;
  /** Which sequences and positions the rows are. */
  cache: KvCache<CpuTensor>;
  /** `[rows, heads · headDim]` */
  out: Float32Array;
}

/** The heads that attention runs over. */
export interface Heads {
  heads: number;
  kvHeads: number;
  headDim: number;
}

/** The slow parts of a pass. Synchronous: results are there on return. */
export interface CpuKernels extends Disposable {
  readonly info: CpuInfo;
  /** A tensor of zeros in memory that the kernels can read. */
  allocate(dtype: Dtype, shape: readonly number[]): CpuTensor;
  /** Lets a later {@link allocate} use the memory of a tensor. */
  release(tensor: CpuTensor): void;
  /** `y = x · wᵀ` for one part of w, `[rows, k]`, `[n, k]` → `[rows, n]`, finished into `out`. */
  matmul(
    x: Float32Array,
    rows: number,
    w: MatrixPart<CpuTensor>,
    k: number,
    out: Output,
    finish: Finish,
  ): void;
  /** Causal grouped-query attention with scale `1 / sqrt(headDim)`. */
  attention(pass: Attention): void;
}
