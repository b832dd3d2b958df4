/**
 * Dense Qwen3 (https://arxiv.org/abs/2505.09388): forward pass, weights and
 * configuration.
 *
 * @module
 */
import {
  BOUNDS,
  type ConfigFields,
  parseGgufRope,
  parseRope,
  type Qwen3Config,
} from "../checkpoint/config.ts";
import { jsonText, quoted } from "../errors.ts";
import { isObject } from "../json.ts";
import { formatNames } from "../formats/mod.ts";
import type { Matrix } from "../formats/matrix.ts";
import {
  type Family,
  type GgufFacts,
  specsAt,
  type Wanted,
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
  gguf: {
    architecture: "qwen3",
    embedding: "token_embd.weight",
    head: "output.weight",
    parseConfig: parseGgufConfig,
    tensor: ggufName,
    stacked: ({ label }) => {
      const [, layer] = /^layers\.(\d+)\.qkv_proj$/.exec(label) ?? [];
      return layer && `blk.${layer}.attn_qkv.weight`;
    },
  },
};

/** The name of a tensor in GGUF files. */
export function ggufName(name: string): string {
  return name.split(".").map((part) => GGUF_NAMES[part] ?? part)
    .filter((part) => part !== "").join(".");
}

/** Parts of the names of tensors in GGUF files, by those in safetensors files. */
const GGUF_NAMES: Readonly<Record<string, string>> = {
  model: "",
  layers: "blk",
  self_attn: "",
  mlp: "",
  embed_tokens: "token_embd",
  norm: "output_norm",
  lm_head: "output",
  input_layernorm: "attn_norm",
  q_proj: "attn_q",
  k_proj: "attn_k",
  v_proj: "attn_v",
  q_norm: "attn_q_norm",
  k_norm: "attn_k_norm",
  o_proj: "attn_output",
  post_attention_layernorm: "ffn_norm",
  gate_proj: "ffn_gate",
  up_proj: "ffn_up",
  down_proj: "ffn_down",
};

/** The forward pass of both families: a layer has an MLP, or a router and experts. */
export function* forward<T>(
  ops: Ops<T>,
  weights: Weights<Matrix<T>>,
  tokens: T,
  cache: KvCache<T>,
  { all = false, ends, states = false }: Wanted<T> = {},
): Generator<T, T, T> {
  let x = yield ops.embed(weights.embedTokens, tokens); // [tokens, hidden]
  const picks = cache.pass.tokens > 1 && !all; // some of the last layer's rows
  for (const [i, layer] of weights.layers.entries()) {
    const { inputNorm, qkvProj, qNorm, kNorm, oProj } = layer;
    const { postNorm, router, gateUpProj, downProj } = layer;
    const qkv = yield ops.normMatmul(x, inputNorm, qkvProj, "attend");
    // Which experts are read next is not known yet.
    const next = router ? [oProj] : [oProj, gateUpProj, downProj];
    const attended = yield ops.attend(qkv, qNorm, kNorm, cache, i, next);
    const mlp = [postNorm, gateUpProj] as const;
    x = yield ops.matmulAdd(attended, oProj, x, mlp);
    const following = weights.layers[i + 1];
    const after = following
      ? [following.inputNorm, following.qkvProj] as const
      : picks
      ? undefined
      : [weights.norm, weights.lmHead] as const;
    if (router === undefined) {
      const gated = yield ops.normSwiglu(x, postNorm, gateUpProj, downProj);
      x = yield ops.matmulAdd(gated, downProj, x, after);
    } else {
      const scores = yield ops.normMatmul(x, postNorm, router);
      const chosen = yield ops.chooseExperts(scores);
      const [w, next] = [gateUpProj, downProj];
      const gated = yield ops.expertsSwiglu(x, postNorm, w, chosen, next);
      x = yield ops.expertsAdd(gated, downProj, chosen, x, after);
    }
  }
  if (states && ends) return ops.normRows(x, ends, weights.norm);
  if (!all) x = yield ops.lastRow(x, cache, ends);
  return ops.normMatmul(x, weights.norm, weights.lmHead);
}

/** The weight table of the dense models. */
export function weights(config: Qwen3Config): Weights<WeightSpec> {
  const { hiddenSize: hidden, intermediateSize: inner, headDim } = config;
  const q = config.numAttentionHeads * headDim;
  const kv = config.numKeyValueHeads * headDim;
  const table = [config.vocabSize, hidden];
  const model = specsAt("", "model.");
  // Tensor cores need to know how large the LM head's weights are.
  const head = { measured: true, exact: true };
  const embedTokens = model("embedding", "embed_tokens", {
    embed_tokens: table,
  }, config.tieWordEmbeddings ? head : {});
  const layers = Array.from({ length: config.numHiddenLayers }, (_, i) => {
    const layer = specsAt(`layers.${i}.`, `model.layers.${i}.`);
    // f16 attention needs to know how large q and k can get.
    const measured = { measured: true };
    // Attention magnifies errors in q and k, and these two are the smaller matrices: they
    // made most of the error of f16 ("f16: attention's projections in f32").
    const exact = { exact: true };
    return {
      inputNorm: layer("norm", "input_norm", { input_layernorm: [hidden] }),
      qkvProj: layer("projection", "qkv_proj", {
        "self_attn.q_proj": [q, hidden],
        "self_attn.k_proj": [kv, hidden],
        "self_attn.v_proj": [kv, hidden],
      }, exact),
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
      oProj: layer("projection", "o_proj", {
        "self_attn.o_proj": [hidden, q],
      }, exact),
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
      : specsAt("", "")("embedding", "lm_head", { lm_head: table }, head),
  };
}

/** Absent fields get the same defaults as in `transformers.Qwen3Config`. */
export function parseConfig(fields: ConfigFields): Qwen3Config {
  refuseUnsupported(fields);
  const heads = "num_attention_heads", kvHeads = "num_key_value_heads";
  const mostHeads = BOUNDS.numAttentionHeads;
  const numAttentionHeads = fields.size(heads, mostHeads);
  const numKeyValueHeads = fields.values[kvHeads] === null
    ? numAttentionHeads
    : fields.size(kvHeads, mostHeads, 32);
  if (numAttentionHeads % numKeyValueHeads !== 0) {
    fields.refuse(heads, `a multiple of ${kvHeads}, ${numKeyValueHeads}`);
  }
  const headDim = fields.size("head_dim", BOUNDS.headDim, 128);
  if (headDim % 2 !== 0) fields.refuse("head_dim", "even");
  const numHiddenLayers = fields.size(
    "num_hidden_layers",
    BOUNDS.numHiddenLayers,
  );
  refuseWindows(fields, numHiddenLayers);
  const bosTokenIds = fields.tokenIds("bos_token_id");
  if (bosTokenIds.length > 1) fields.refuse("bos_token_id", "one token id");
  const positions = "max_position_embeddings";
  const maxPositionEmbeddings = fields.size(positions, BOUNDS.positions);
  return {
    modelType: qwen3.modelType,
    vocabSize: fields.size("vocab_size", BOUNDS.vocabSize),
    hiddenSize: fields.size("hidden_size", BOUNDS.hiddenSize),
    intermediateSize: fields.size(
      "intermediate_size",
      BOUNDS.intermediateSize,
    ),
    numHiddenLayers,
    numAttentionHeads,
    numKeyValueHeads,
    headDim,
    maxPositionEmbeddings,
    rmsNormEps: fields.within("rms_norm_eps", BOUNDS.rmsNormEps, 1e-6),
    ...parseRope(fields, maxPositionEmbeddings),
    tieWordEmbeddings: fields.flag("tie_word_embeddings", false),
    bosTokenId: bosTokenIds[0] ?? null,
    eosTokenIds: fields.tokenIds("eos_token_id"),
  };
}

/** Absent keys get the same defaults as in llama.cpp. */
export function parseGgufConfig(
  fields: ConfigFields,
  facts: GgufFacts,
): Qwen3Config {
  const heads = "attention.head_count", kvHeads = "attention.head_count_kv";
  const most = BOUNDS.numAttentionHeads;
  const numAttentionHeads = fields.size(heads, most);
  const numKeyValueHeads = fields.size(kvHeads, most, numAttentionHeads);
  if (numAttentionHeads % numKeyValueHeads !== 0) {
    fields.refuse(heads, `a multiple of ${kvHeads}, ${numKeyValueHeads}`);
  }
  const hiddenSize = fields.size("embedding_length", BOUNDS.hiddenSize);
  const [key, value] = ["attention.key_length", "attention.value_length"];
  const equal = Math.floor(hiddenSize / numAttentionHeads);
  const headDim = fields.size(key, BOUNDS.headDim, equal);
  if (headDim % 2 !== 0) fields.refuse(key, "even");
  for (const same of [value, "rope.dimension_count"]) {
    if (fields.size(same, BOUNDS.headDim, headDim) !== headDim) {
      fields.refuse(same, `${key}, ${headDim}`);
    }
  }
  if (!fields.flag("attention.causal", true)) {
    fields.refuse("attention.causal", "true");
  }
  const maxPositionEmbeddings = fields.size("context_length", BOUNDS.positions);
  return {
    modelType: qwen3.modelType,
    hiddenSize,
    intermediateSize: fields.size(
      "feed_forward_length",
      BOUNDS.intermediateSize,
    ),
    numHiddenLayers: fields.size("block_count", BOUNDS.numHiddenLayers),
    numAttentionHeads,
    numKeyValueHeads,
    headDim,
    maxPositionEmbeddings,
    rmsNormEps: fields.within(
      "attention.layer_norm_rms_epsilon",
      BOUNDS.rmsNormEps,
    ),
    ...parseGgufRope(fields, maxPositionEmbeddings),
    ...facts,
  };
}

/** Refuses settings that would change the result and are not implemented. */
function refuseUnsupported(fields: ConfigFields) {
  refuseQuantised(fields);
  for (const bias of ["attention_bias", "mlp_bias"]) {
    if (fields.flag(bias, false)) fields.refuse(bias, "false");
  }
  if (!fields.flag("is_causal", true)) fields.refuse("is_causal", "true");
  const act = fields.values.hidden_act ?? "silu";
  if (act !== "silu" && act !== "swish") fields.refuse("hidden_act", '"silu"');
}

/** Refuses layers that attend to a window. */
function refuseWindows(fields: ConfigFields, layers: number) {
  const types = fields.values.layer_types;
  if (fields.has("layer_types")) {
    const full = Array.isArray(types) &&
      types.every((type) => type === "full_attention");
    if (!full) fields.refuse("layer_types", 'a list of "full_attention"');
    if (types.length !== layers) {
      throw new Error(
        `Cannot use ${fields.where}: layer_types has ${types.length} entries, must have num_hidden_layers, ${layers}`,
      );
    }
  } else if (
    // Layers from max_window_layers on have the window; transformers' defaults.
    fields.flag("use_sliding_window", false) &&
    fields.values.sliding_window !== null &&
    (fields.number("max_window_layers") ?? 28) < layers
  ) {
    fields.refuse("use_sliding_window", "false");
  }
}

/** Fields that describe quantised weights; MLX uses the second. */
const QUANTISED = ["quantization_config", "quantization", "compression_config"];

/** Refuses quantised checkpoints by name, before they are downloaded. */
function refuseQuantised(fields: ConfigFields) {
  const field = QUANTISED.find((field) => fields.has(field));
  if (field === undefined) return;
  const value = fields.values[field];
  const settings = isObject(value) ? value : {};
  const { quant_method, quant_algo } = settings; // the second is ModelOpt's
  const method = quant_method ?? quant_algo;
  const form = typeof method === "string"
    ? quoted(method, 40).replace(/^(fp\d|[a-z]{2,3}q|mxfp4)$/, upper)
    : "group_size" in settings
    ? "MLX"
    : "an unnamed method";
  throw new Error(
    `Cannot use ${fields.where}: its weights are quantised with ${form} (${field} is ${
      jsonText(value)
    }), must be plain ${formatNames()}`,
  );
}

const upper = (text: string) => text.toUpperCase();
