/**
 * The operations that models are written in, called verbs. The same forward pass runs
 * on the GPU and on the CPU, so the CPU path is both the reference and the fallback and
 * cannot drift from the GPU path.
 *
 * Verbs are as coarse as fusion needs: a GPU may run RMSNorm + GEMM for a prompt
 * and one fused GEMV for a decode step under the same name.
 *
 * @module
 */
import type { Matrix } from "../formats/matrix.ts";
import type { KvCache } from "./kv_cache.ts";

/**
 * The verbs of a forward pass. `T` is the device's tensor type. Weights are matrices; a
 * norm's matrix has one row.
 */
export interface Ops<T> {
  /**
   * Looks up row `tokens[i]` of `table`: `[vocab, hidden]`, `[rows]` → f32
   * `[rows, hidden]`.
   */
  embed(table: Matrix<T>, tokens: T): T;

  /**
   * `RMSNorm(x, norm) · wᵀ`: `[rows, k]`, `[k]`, `[n, k]` → `[rows, n]`. If only `reader`
   * reads the result, a device may leave it in a form of its own.
   */
  normMatmul(x: T, norm: Matrix<T>, w: Matrix<T>, reader?: "attend"): T;

  /**
   * Causal grouped-query attention of new tokens over the cache and themselves. Splits
   * `qkv` `[rows, (heads + 2 kvHeads) · headDim]`, norms each head of q and k (RMSNorm
   * over headDim with `qNorm`, `kNorm`), rotates them (RoPE, the half-split form of
   * Qwen3), appends k and v to the cache and attends with scale `1 / sqrt(headDim)` →
   * `[rows, heads · headDim]`. `next` begins with the matrix that multiplies the result, for
   * which a device may prepare it. Those that are read after it may follow: attention leaves
   * the memory idle, so a device may prefetch them into its cache.
   */
  attend(
    qkv: T,
    qNorm: Matrix<T>,
    kNorm: Matrix<T>,
    cache: KvCache<T>,
    layer: number,
    next?: readonly Matrix<T>[],
  ): T;

  /**
   * `residual + x · wᵀ`, computed in place in `residual`: `[rows, k]`, `[n, k]` →
   * `[rows, n]`. `next` holds the norm and the matrix that the result goes through next: a
   * device may prepare it for them.
   */
  matmulAdd(
    x: T,
    w: Matrix<T>,
    residual: T,
    next?: readonly [norm: Matrix<T>, w: Matrix<T>],
  ): T;

  /**
   * `silu(g) · u` where `[g, u] = RMSNorm(x, norm) · gateUpᵀ`; `gateUp` is
   * `[2 n, k]`, the rows of gate_proj first → `[rows, n]`. `next` is the matrix that
   * multiplies the result.
   */
  normSwiglu(
    x: T,
    norm: Matrix<T>,
    gateUp: Matrix<T>,
    next?: Matrix<T>,
  ): T;

  /**
   * Chooses experts by their scores: `[rows, experts]` → `[2 · rows, used]`, for each row
   * of scores a row with the numbers of the highest, the highest first, and a row with
   * their weights, from a softmax over all scores. Of equal scores the first is higher.
   */
  chooseExperts(scores: T): T;

  /**
   * `silu(g) · u` of each row of `RMSNorm(x, norm)` by each of its experts, which
   * {@linkcode chooseExperts} chose: `[rows, k]` → `[rows · used, n]`. `gateUp` is
   * `[2 · experts · n, k]`, gate_proj of all experts first. `next` are the matrices that
   * multiply the result.
   */
  expertsSwiglu(
    x: T,
    norm: Matrix<T>,
    gateUp: Matrix<T>,
    chosen: T,
    next?: Matrix<T>,
  ): T;

  /**
   * Adds the weighted results of each row's experts to `residual`, in place:
   * `[rows · used, k]`, `[experts · n, k]` → `[rows, n]`. `next` is as in
   * {@linkcode matmulAdd}.
   */
  expertsAdd(
    gated: T,
    down: Matrix<T>,
    chosen: T,
    residual: T,
    next?: readonly [norm: Matrix<T>, w: Matrix<T>],
  ): T;

  /**
   * The last row of each sequence of the pass: `[rows, n]` → `[sequences, n]`. `ends` are
   * those rows, u32 `[sequences]`, if rows of padding follow them.
   */
  lastRow(x: T, cache: KvCache<T>, ends?: T): T;

  /** `RMSNorm(x[rows], norm)`: `[any, k]`, u32 `[rows]`, `[k]` → `[rows, k]`. */
  normRows(x: T, rows: T, norm: Matrix<T>): T;
}
