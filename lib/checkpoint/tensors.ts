/**
 * Names and shapes of the tensors in a checkpoint.
 *
 * @module
 */
import type { Qwen3Config } from "./config.ts";

/** The tensors of a Qwen3 checkpoint and their shapes, as transformers names them. */
export function tensorShapes(config: Qwen3Config): Map<string, number[]> {
  const { hiddenSize, intermediateSize, headDim } = config;
  const queries = config.numAttentionHeads * headDim;
  const keys = config.numKeyValueHeads * headDim;
  const shapes = new Map([
    ["model.embed_tokens.weight", [config.vocabSize, hiddenSize]],
  ]);
  for (let layer = 0; layer < config.numHiddenLayers; layer++) {
    const at = `model.layers.${layer}.`;
    shapes.set(`${at}self_attn.q_proj.weight`, [queries, hiddenSize]);
    shapes.set(`${at}self_attn.k_proj.weight`, [keys, hiddenSize]);
    shapes.set(`${at}self_attn.v_proj.weight`, [keys, hiddenSize]);
    shapes.set(`${at}self_attn.o_proj.weight`, [hiddenSize, queries]);
    shapes.set(`${at}self_attn.q_norm.weight`, [headDim]);
    shapes.set(`${at}self_attn.k_norm.weight`, [headDim]);
    shapes.set(`${at}mlp.gate_proj.weight`, [intermediateSize, hiddenSize]);
    shapes.set(`${at}mlp.up_proj.weight`, [intermediateSize, hiddenSize]);
    shapes.set(`${at}mlp.down_proj.weight`, [hiddenSize, intermediateSize]);
    shapes.set(`${at}input_layernorm.weight`, [hiddenSize]);
    shapes.set(`${at}post_attention_layernorm.weight`, [hiddenSize]);
  }
  shapes.set("model.norm.weight", [hiddenSize]);
  if (!config.tieWordEmbeddings) {
    shapes.set("lm_head.weight", [config.vocabSize, hiddenSize]);
  }
  return shapes;
}
