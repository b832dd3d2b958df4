/**
 * The stored types of a synthetic checkpoint's tensors: one for all, or one of llama.cpp's
 * mixtures.
 *
 * @module
 */
import type { Qwen3Config } from "./config.ts";
import { f32 } from "../formats/f32.ts";
import type { Format } from "../formats/format.ts";
import { q4_k, q5_k, q6_k } from "../formats/k_quants.ts";
import { FORMATS } from "../formats/mod.ts";
import type { WeightSpec } from "../model/family.ts";

/** Mixtures: the type of most matrices. Those that need it more are in Q6_K. */
const MIXTURES = new Map([["q4_k_m", q4_k], ["q5_k_m", q5_k]]);

/** The values of `dtype`. */
export const SYNTHETIC_DTYPES: readonly string[] = [
  ...FORMATS.map(({ name }) => name),
  ...MIXTURES.keys(),
];

/**
 * Returns the type of one tensor. As in GGUF files, norms and routers stay in f32 where
 * matrices are quantized. The mixtures have the LM head in Q6_K (the embedding table if it serves as
 * one) and, in some layers, v_proj and down_proj:
 * https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp.
 *
 * @param dtype one of {@linkcode SYNTHETIC_DTYPES}
 * @param kind of the weight that the tensor is part of
 */
export function syntheticFormat(
  dtype: string,
  name: string,
  kind: WeightSpec["kind"],
  config: Qwen3Config,
): Format {
  const base = MIXTURES.get(dtype);
  const format = base ?? FORMATS.find(({ name }) => name === dtype)!;
  const exact = kind === "norm" || kind === "router";
  if (exact) return format.elements > 1 ? f32 : format;
  if (!base) return format;
  if (kind === "embedding") {
    const head = config.tieWordEmbeddings || name === "lm_head.weight";
    return head ? q6_k : base;
  }
  const [, layer] = /\.(\d+)\..*\b(?:v|down)_proj\b/.exec(name) ?? [];
  return layer && needsMore(+layer, config.numHiddenLayers) ? q6_k : base;
}

/** Whether v_proj and down_proj of a layer get more bits: at both ends and every third. */
function needsMore(layer: number, layers: number): boolean {
  const eighth = Math.floor(layers / 8);
  return layer < eighth || layer >= Math.floor(7 * layers / 8) ||
    (layer - eighth) % 3 === 2;
}
