/**
 * Qwen3 (https://arxiv.org/abs/2505.09388), dense: the forward pass.
 *
 * @module
 */
import type { Matrix } from "../formats/matrix.ts";
import type { KvCache } from "./kv_cache.ts";
import type { Ops } from "./ops.ts";

/** Weights as the forward pass reads them; `T` is the device's tensor. */
export interface Weights<T> {
  /** `[vocab, hidden]` */
  embedTokens: Matrix<T>;
  layers: Layer<T>[];
  /** `[hidden]` */
  norm: T;
  /** `[vocab, hidden]`; `embedTokens` itself where the checkpoint ties them. */
  lmHead: Matrix<T>;
}

/** One decoder layer. Projections are stored by output row. */
export interface Layer<T> {
  inputNorm: T;
  /** q_proj, k_proj and v_proj, one below the other. */
  qkvProj: Matrix<T>;
  qNorm: T;
  kNorm: T;
  oProj: Matrix<T>;
  postNorm: T;
  /** gate_proj above up_proj. */
  gateUpProj: Matrix<T>;
  downProj: Matrix<T>;
}

/**
 * Logits `[sequences, vocab]` after the last of `tokens` (`all`: after each,
 * `[tokens, vocab]`). Prefill and decode are the same function: where the tokens
 * stand comes from the cache.
 */
export function forward<T>(
  ops: Ops<T>,
  weights: Weights<T>,
  tokens: T,
  cache: KvCache<T>,
  all = false,
): T {
  let x = ops.embed(weights.embedTokens, tokens); // [tokens, hidden]
  for (const [i, layer] of weights.layers.entries()) {
    const qkv = ops.normMatmul(x, layer.inputNorm, layer.qkvProj);
    const { qNorm, kNorm, gateUpProj, downProj } = layer;
    const next = [gateUpProj, downProj] as const;
    const attended = ops.attend(qkv, qNorm, kNorm, cache, i, next);
    x = ops.matmulAdd(attended, layer.oProj, x);
    const gated = ops.normSwiglu(x, layer.postNorm, gateUpProj);
    x = ops.matmulAdd(gated, downProj, x);
  }
  if (!all) x = ops.lastRow(x, cache);
  return ops.normMatmul(x, weights.norm, weights.lmHead);
}
