/**
 * The verbs that a model is written in. The same forward pass runs on the GPU and on
 * the CPU, so the CPU path is both the reference and the fallback and cannot drift
 * from the GPU path.
 *
 * Verbs are as coarse as fusion needs: a GPU may run RMSNorm + GEMM for a prompt
 * and one fused GEMV for a decode step under the same name.
 *
 * @module
 */
import type { Matrix } from "../formats/matrix.ts";
import type { KvCache } from "./kv_cache.ts";

/**
 * What a forward pass is made of. `T` is the device's tensor. Weights are matrices;
 * those of a norm have one row.
 */
export interface Ops<T> {
  /** Row `tokens[i]` of `table`: `[vocab, hidden]`, `[rows]` → f32 `[rows, hidden]`. */
  embed(table: Matrix<T>, tokens: T): T;

  /** `RMSNorm(x, norm) · wᵀ`: `[rows, k]`, `[k]`, `[n, k]` → `[rows, n]`. */
  normMatmul(x: T, norm: Matrix<T>, w: Matrix<T>): T;

  /**
   * Causal grouped-query attention of new tokens over the cache and themselves.
   * Splits `qkv` `[rows, (heads + 2 kvHeads) · headDim]`, norms each head of q
   * and k (RMSNorm over headDim with `qNorm`, `kNorm`), rotates them (RoPE, the
   * half-split form of Qwen3), appends k and v to the cache and attends with
   * scale `1 / sqrt(headDim)` → `[rows, heads · headDim]`. `next` are
   * the matrices read after it: attention leaves the memory idle, so a device may
   * bring them into its cache meanwhile.
   */
  attend(
    qkv: T,
    qNorm: Matrix<T>,
    kNorm: Matrix<T>,
    cache: KvCache<T>,
    layer: number,
    next?: readonly [Matrix<T>, Matrix<T>],
  ): T;

  /** `residual + x · wᵀ`, in the place of `residual`: `[rows, k]`, `[n, k]` → `[rows, n]`. */
  matmulAdd(x: T, w: Matrix<T>, residual: T): T;

  /**
   * `silu(g) · u` where `[g, u] = RMSNorm(x, norm) · gateUpᵀ`; `gateUp` is
   * `[2 n, k]`, the rows of gate_proj first → `[rows, n]`.
   */
  normSwiglu(x: T, norm: Matrix<T>, gateUp: Matrix<T>): T;

  /** The last row of each sequence of the pass: `[rows, n]` → `[sequences, n]`. */
  lastRow(x: T, cache: KvCache<T>): T;
}
