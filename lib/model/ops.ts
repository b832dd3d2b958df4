/**
 * The verbs that a model may use. One forward pass runs on whichever
 * implementation it is given, so the CPU path is both the reference and the
 * fallback and cannot drift from the GPU path.
 *
 * Verbs are as coarse as fusion needs: a GPU may run RMSNorm + GEMM for a prompt
 * and one fused GEMV for a decode step under the same name.
 *
 * @module
 */
import type { KvCache } from "./kv_cache.ts";

/** What a forward pass is made of. `T` is the implementation's tensor. */
export interface Ops<T> {
  /** Row `tokens[i]` of `table`: `[vocab, hidden]`, `[rows]` → f32 `[rows, hidden]`. */
  embed(table: T, tokens: T): T;

  /** `RMSNorm(x, norm) · wᵀ`: `[rows, k]`, `[k]`, `[n, k]` → `[rows, n]`. */
  normMatmul(x: T, norm: T, w: T): T;

  /**
   * Causal grouped-query attention of new tokens over the cache and themselves.
   * Splits `qkv` `[rows, (heads + 2 kvHeads) · headDim]`, norms each head of q
   * and k (RMSNorm over headDim with `qNorm`, `kNorm`), rotates them (RoPE, the
   * half-split form of Qwen3), appends k and v to the cache and attends with
   * scale `1 / sqrt(headDim)` → `[rows, heads · headDim]`. `next` are
   * matrices that are wanted soon: attention leaves the memory idle, so a device
   * may bring them nearer.
   */
  attend(
    qkv: T,
    qNorm: T,
    kNorm: T,
    cache: KvCache<T>,
    layer: number,
    next?: readonly [T, T],
  ): T;

  /** `residual + x · wᵀ`, in the place of `residual`: `[rows, k]`, `[n, k]` → `[rows, n]`. */
  matmulAdd(x: T, w: T, residual: T): T;

  /**
   * `silu(g) · u` where `[g, u] = RMSNorm(x, norm) · gateUpᵀ`; `gateUp` is
   * `[2 n, k]`, the rows of gate_proj first → `[rows, n]`.
   */
  normSwiglu(x: T, norm: T, gateUp: T): T;

  /** The last row of each sequence of the pass: `[rows, n]` → `[sequences, n]`. */
  lastRow(x: T, cache: KvCache<T>): T;
}
