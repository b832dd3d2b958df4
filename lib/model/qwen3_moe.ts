/**
 * Qwen3 with a mixture of experts (https://arxiv.org/abs/2505.09388): weights and
 * configuration. In most layers, a router selects a few of many small MLPs, the experts,
 * for each token.
 *
 * @module
 */
import {
  BOUNDS,
  type ConfigFields,
  type Experts,
  type Qwen3Config,
} from "../checkpoint/config.ts";
import {
  type Family,
  type GgufFacts,
  type Layer,
  specsAt,
  type Weights,
  type WeightSpec,
} from "./family.ts";
import * as dense from "./qwen3.ts";

/** Qwen3 with a mixture of experts, such as 30B-A3B and 235B-A22B. */
export const qwen3Moe: Family = {
  modelType: "qwen3_moe",
  name: "Qwen3-MoE",
  parseConfig,
  weights,
  forward: dense.forward,
  gguf: {
    ...dense.qwen3.gguf,
    architecture: "qwen3moe",
    parseConfig: parseGgufConfig,
    tensor: (name) =>
      dense.ggufName(
        name.replace(EXPERT, ".ffn_$2_exps.")
          .replace(/\.mlp\.gate\./, ".ffn_gate_inp."),
      ),
    within(name, { experts }) {
      const [, index] = EXPERT.exec(name) ?? [];
      return index === undefined
        ? undefined
        : { index: Number(index), count: experts!.count };
    },
  },
};

/** What distinguishes the names of an expert's tensors. */
const EXPERT = /\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\./;

/** The table of a dense model, with experts in place of MLPs. */
function weights(config: Qwen3Config): Weights<WeightSpec> {
  const table = dense.weights(config), experts = config.experts!;
  const layers = table.layers.map((layer, i): Layer<WeightSpec> =>
    experts.denseLayers.includes(i)
      ? layer
      : withExperts(layer, i, config.hiddenSize, experts)
  );
  return { ...table, layers };
}

function withExperts(
  layer: Layer<WeightSpec>,
  i: number,
  hidden: number,
  { count, intermediateSize: inner }: Experts,
): Layer<WeightSpec> {
  const spec = specsAt(`layers.${i}.`, `model.layers.${i}.mlp.`);
  const each = (name: string, shape: readonly number[]) =>
    Array.from(
      { length: count },
      (_, e) => [`experts.${e}.${name}`, shape] as const,
    );
  const { gateUpProj: _gateUp, downProj: _down, ...others } = layer;
  return {
    ...others,
    router: spec("router", "router", { gate: [count, hidden] }),
    gateUpProj: spec(
      "projection",
      "gate_up_proj",
      Object.fromEntries([
        ...each("gate_proj", [inner, hidden]),
        ...each("up_proj", [inner, hidden]),
      ]),
      { split: "pairs", together: inner },
    ),
    downProj: spec(
      "projection",
      "down_proj",
      Object.fromEntries(each("down_proj", [hidden, inner])),
      { together: hidden },
    ),
  };
}

/** Absent fields get the same defaults as in `transformers.Qwen3MoeConfig`. */
function parseConfig(fields: ConfigFields): Qwen3Config {
  const config = dense.parseConfig(fields);
  // Newer versions of transformers write this name, and prefer it to the other.
  const renamed = "num_local_experts";
  const count = fields.has(renamed) ? renamed : "num_experts";
  return {
    ...config,
    modelType: qwen3Moe.modelType,
    experts: {
      ...expertsOf(fields, config, count, "num_experts_per_tok", [128, 8]),
      intermediateSize: fields.size(
        "moe_intermediate_size",
        BOUNDS.intermediateSize,
        768,
      ),
      normalized: fields.flag("norm_topk_prob", false),
      denseLayers: denseLayersOf(fields, config.numHiddenLayers),
    },
  };
}

function parseGgufConfig(fields: ConfigFields, facts: GgufFacts): Qwen3Config {
  const config = dense.parseGgufConfig(fields, facts);
  const names = ["expert_count", "expert_used_count"] as const;
  const experts = expertsOf(fields, config, ...names);
  return {
    ...config,
    modelType: qwen3Moe.modelType,
    experts: {
      ...experts,
      intermediateSize: fields.size(
        "expert_feed_forward_length",
        BOUNDS.intermediateSize,
        Math.floor(config.intermediateSize / experts.used),
      ),
      normalized: true,
      denseLayers: [],
    },
  };
}

function expertsOf(
  fields: ConfigFields,
  { numHiddenLayers }: Qwen3Config,
  count: string,
  used: string,
  otherwise: readonly number[] = [],
): Pick<Experts, "count" | "used"> {
  const most = Math.floor(BOUNDS.allExperts / numHiddenLayers);
  const all = fields.size(count, Math.min(BOUNDS.experts, most), otherwise[0]);
  return { count: all, used: fields.size(used, all, otherwise[1]) };
}

/** Layers that are dense as `mlp_only_layers` and `decoder_sparse_step` say. */
function denseLayersOf(fields: ConfigFields, layers: number): number[] {
  const field = "mlp_only_layers", listed = fields.values[field] ?? [];
  const valid = Array.isArray(listed) &&
    listed.every((layer) => Number.isSafeInteger(layer) && layer >= 0);
  if (!valid) fields.refuse(field, "a list of layers");
  const step = fields.size("decoder_sparse_step", BOUNDS.numHiddenLayers, 1);
  return Array.from({ length: layers }, (_, i) => i)
    .filter((i) => listed.includes(i) || (i + 1) % step !== 0);
}
