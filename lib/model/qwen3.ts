/**
 * Dense Qwen3 (https://arxiv.org/abs/2505.09388): forward pass, weights and
 * configuration.
 *
 * @module
 */
import {
  type ConfigFields,
  parseRope,
  type Qwen3Config,
} from "../checkpoint/config.ts";
import { formatNames } from "../formats/mod.ts";
import type { Matrix } from "../formats/matrix.ts";
import {
  type Family,
  specsAt,
  type Weights,
  type WeightSpec,
} from "./family.ts";
import type { KvCache } from "./kv_cache.ts";
import type { Ops } from "./ops.ts";

/** Dense Qwen3, 0.6B to 32B. */
export const qwen3: Family = {
  modelType: "qwen3",
  name: "Qwen3",
  parseConfig,
  weights,
  forward,
};

function* forward<T>(
  ops: Ops<T>,
  weights: Weights<Matrix<T>>,
  tokens: T,
  cache: KvCache<T>,
  all = false,
): Generator<T, T, T> {
  let x = yield ops.embed(weights.embedTokens, tokens); // [tokens, hidden]
  for (const [i, layer] of weights.layers.entries()) {
    const qkv = yield ops.normMatmul(x, layer.inputNorm, layer.qkvProj);
    const { qNorm, kNorm, gateUpProj, downProj } = layer;
    const next = [gateUpProj, downProj] as const;
    const attended = yield ops.attend(qkv, qNorm, kNorm, cache, i, next);
    x = yield ops.matmulAdd(attended, layer.oProj, x);
    const gated = yield ops.normSwiglu(x, layer.postNorm, gateUpProj);
    x = yield ops.matmulAdd(gated, downProj, x);
  }
  if (!all) x = yield ops.lastRow(x, cache);
  return ops.normMatmul(x, weights.norm, weights.lmHead);
}

function weights(config: Qwen3Config): Weights<WeightSpec> {
  const { hiddenSize: hidden, intermediateSize: inner, headDim } = config;
  const q = config.numAttentionHeads * headDim;
  const kv = config.numKeyValueHeads * headDim;
  const table = [config.vocabSize, hidden];
  const model = specsAt("", "model.");
  const embedTokens = model("embedding", "embed_tokens", {
    embed_tokens: table,
  });
  const layers = Array.from({ length: config.numHiddenLayers }, (_, i) => {
    const layer = specsAt(`layers.${i}.`, `model.layers.${i}.`);
    // f16 attention needs to know how large q and k can get.
    const measured = { measured: true };
    return {
      inputNorm: layer("norm", "input_norm", { input_layernorm: [hidden] }),
      qkvProj: layer("projection", "qkv_proj", {
        "self_attn.q_proj": [q, hidden],
        "self_attn.k_proj": [kv, hidden],
        "self_attn.v_proj": [kv, hidden],
      }),
      qNorm: layer(
        "norm",
        "q_norm",
        { "self_attn.q_norm": [headDim] },
        measured,
      ),
      kNorm: layer(
        "norm",
        "k_norm",
        { "self_attn.k_norm": [headDim] },
        measured,
      ),
      oProj: layer("projection", "o_proj", { "self_attn.o_proj": [hidden, q] }),
      postNorm: layer("norm", "post_norm", {
        post_attention_layernorm: [hidden],
      }),
      gateUpProj: layer("projection", "gate_up_proj", {
        "mlp.gate_proj": [inner, hidden],
        "mlp.up_proj": [inner, hidden],
      }, { split: "pairs" }),
      downProj: layer("projection", "down_proj", {
        "mlp.down_proj": [hidden, inner],
      }),
    };
  });
  return {
    embedTokens,
    layers,
    norm: model("norm", "norm", { norm: [hidden] }),
    lmHead: config.tieWordEmbeddings
      ? embedTokens
      : specsAt("", "")("embedding", "lm_head", { lm_head: table }),
  };
}

/** Absent fields get the same defaults as in `transformers.Qwen3Config`. */
function parseConfig(fields: ConfigFields): Qwen3Config {
  refuseUnsupported(fields);
  const numAttentionHeads = fields.size("num_attention_heads");
  const numKeyValueHeads = fields.values.num_key_value_heads === null
    ? numAttentionHeads
    : fields.size("num_key_value_heads", 32);
  if (numAttentionHeads % numKeyValueHeads !== 0) {
    fields.refuse(
      "num_attention_heads",
      `a multiple of num_key_value_heads, ${numKeyValueHeads}`,
    );
  }
  const headDim = fields.size("head_dim", 128);
  if (headDim % 2 !== 0) fields.refuse("head_dim", "even");
  const bosTokenIds = fields.tokenIds("bos_token_id");
  if (bosTokenIds.length > 1) fields.refuse("bos_token_id", "one token id");

  const maxPositionEmbeddings = fields.size("max_position_embeddings");
  return {
    modelType: qwen3.modelType,
    vocabSize: fields.size("vocab_size"),
    hiddenSize: fields.size("hidden_size"),
    intermediateSize: fields.size("intermediate_size"),
    numHiddenLayers: fields.size("num_hidden_layers"),
    numAttentionHeads,
    numKeyValueHeads,
    headDim,
    maxPositionEmbeddings,
    rmsNormEps: fields.positive("rms_norm_eps", 1e-6),
    ...parseRope(fields, maxPositionEmbeddings),
    tieWordEmbeddings: fields.flag("tie_word_embeddings", false),
    bosTokenId: bosTokenIds[0] ?? null,
    eosTokenIds: fields.tokenIds("eos_token_id"),
  };
}

function refuseUnsupported(fields: ConfigFields) {
  const { values } = fields;
  if (fields.flag("attention_bias", false)) {
    fields.refuse("attention_bias", "false");
  }
  if ((values.hidden_act ?? "silu") !== "silu") {
    fields.refuse("hidden_act", '"silu"');
  }
  if (fields.flag("use_sliding_window", false)) {
    fields.refuse("use_sliding_window", "false");
  }
  if (
    fields.has("layer_types") &&
    !(Array.isArray(values.layer_types) &&
      values.layer_types.every((type) => type === "full_attention"))
  ) {
    fields.refuse("layer_types", 'a list of "full_attention"');
  }
  if (fields.has("quantization_config")) {
    fields.refuse(
      "quantization_config",
      `absent: weights are read as ${formatNames()}`,
    );
  }
}
