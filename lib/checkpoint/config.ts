/**
 * `config.json` of a Qwen3 checkpoint, in both forms that are published, and
 * its `generation_config.json`.
 *
 * @module
 */
import { isObject } from "../json.ts";

/** YaRN (https://arxiv.org/abs/2309.00071) as transformers reads it. */
export interface YarnScaling {
  factor: number;
  originalMaxPositionEmbeddings: number;
  /** Multiplies cos and sin; 0.1·ln(factor)+1 unless the checkpoint says otherwise. */
  attentionFactor: number;
  betaFast: number;
  betaSlow: number;
  truncate: boolean;
}

/** What `generation_config.json` says, where it says it. */
export interface GenerationDefaults {
  doSample?: boolean;
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  eosTokenIds?: number[];
}

/** The sizes of a dense Qwen3, named as in transformers. */
export interface Qwen3Config {
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  numHiddenLayers: number;
  numAttentionHeads: number;
  numKeyValueHeads: number;
  headDim: number;
  maxPositionEmbeddings: number;
  rmsNormEps: number;
  ropeTheta: number;
  ropeScaling: YarnScaling | null;
  tieWordEmbeddings: boolean;
  bosTokenId: number | null;
  /** Every id that ends a text; may be empty. */
  eosTokenIds: number[];
}

/** A JSON object whose fields are read with a check and an error that names them. */
class Fields {
  constructor(
    readonly values: Record<string, unknown>,
    readonly where: string,
    readonly prefix = "",
  ) {}

  refuse(field: string, must: string): never {
    const value = this.values[field];
    const is = value === undefined ? "missing" : JSON.stringify(value);
    throw new Error(
      `Cannot use ${this.where}: ${this.prefix}${field} is ${is}, must be ${must}`,
    );
  }

  has(field: string): boolean {
    return this.values[field] !== undefined && this.values[field] !== null;
  }

  /** A positive whole number. */
  size(field: string, otherwise?: number): number {
    const value = this.values[field] ?? otherwise;
    if (Number.isSafeInteger(value) && value as number > 0) {
      return value as number;
    }
    this.refuse(field, "a positive whole number");
  }

  /** A positive finite number. */
  positive(field: string, otherwise?: number): number {
    const value = this.values[field] ?? otherwise;
    if (Number.isFinite(value) && value as number > 0) return value as number;
    this.refuse(field, "a positive number");
  }

  /** A number, or undefined where absent or null. */
  number(field: string): number | undefined {
    if (!this.has(field)) return undefined;
    const value = this.values[field];
    return typeof value === "number" ? value : this.refuse(field, "a number");
  }

  flag(field: string, otherwise: boolean): boolean {
    const value = this.values[field] ?? otherwise;
    if (typeof value === "boolean") return value;
    this.refuse(field, "true or false");
  }

  /** Token ids: one, several, or none (absent or null). */
  tokenIds(field: string): number[] {
    const ids = [this.values[field] ?? []].flat() as unknown[];
    if (ids.every((id) => Number.isSafeInteger(id) && id as number >= 0)) {
      return ids as number[];
    }
    this.refuse(field, "a token id, a list of them or null");
  }

  /** An object, or undefined where absent or null. */
  object(field: string): Fields | undefined {
    if (!this.has(field)) return undefined;
    const value = this.values[field];
    if (!isObject(value)) this.refuse(field, "an object");
    return new Fields(value, this.where, `${this.prefix}${field}.`);
  }
}

/**
 * Reads a parsed `config.json`. What is absent gets the default of
 * `transformers.Qwen3Config`; RoPE may be given as `rope_theta` and
 * `rope_scaling` or, newer, as `rope_parameters`.
 *
 * ```ts
 * import { parseConfig } from "./config.ts";
 *
 * const config = parseConfig({
 *   model_type: "qwen3",
 *   vocab_size: 151936,
 *   hidden_size: 1024,
 *   intermediate_size: 3072,
 *   num_hidden_layers: 28,
 *   num_attention_heads: 16,
 *   num_key_value_heads: 8,
 *   max_position_embeddings: 40960,
 *   rope_theta: 1e6,
 *   rope_scaling: null,
 *   eos_token_id: [151645, 151643],
 * }, "config.json");
 * console.log(config.headDim); // 128
 * ```
 *
 * @param json what JSON.parse returned
 * @param where the file, for errors
 * @throws {Error} if it is not a dense Qwen3, if a size is missing or not a
 * positive whole number, or if it needs what this project does not compute
 * (attention bias, sliding windows, quantized weights, RoPE other than default and YaRN)
 */
export function parseConfig(json: unknown, where: string): Qwen3Config {
  const fields = fieldsOf(json, where);
  refuseOtherModels(fields);

  const numAttentionHeads = fields.size("num_attention_heads");
  const numKeyValueHeads = fields.values.num_key_value_heads === null
    ? numAttentionHeads
    : fields.size("num_key_value_heads", 32);
  if (numAttentionHeads % numKeyValueHeads !== 0) {
    throw new Error(
      `Cannot use ${where}: num_attention_heads is ${numAttentionHeads}, must be a multiple of num_key_value_heads, ${numKeyValueHeads}`,
    );
  }
  const headDim = fields.size("head_dim", 128);
  if (headDim % 2 !== 0) fields.refuse("head_dim", "even");
  const bosTokenIds = fields.tokenIds("bos_token_id");
  if (bosTokenIds.length > 1) fields.refuse("bos_token_id", "one token id");

  const maxPositionEmbeddings = fields.size("max_position_embeddings");
  return {
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

/**
 * Reads a parsed `generation_config.json`: only what the checkpoint says.
 *
 * @param json what JSON.parse returned
 * @param where the file, for errors
 * @throws {Error} if a field is not of its type
 */
export function parseGeneration(
  json: unknown,
  where: string,
): GenerationDefaults {
  const fields = fieldsOf(json, where);
  const defaults: GenerationDefaults = {
    doSample: fields.has("do_sample")
      ? fields.flag("do_sample", false)
      : undefined,
    temperature: fields.number("temperature"),
    topK: fields.number("top_k"),
    topP: fields.number("top_p"),
    minP: fields.number("min_p"),
    repetitionPenalty: fields.number("repetition_penalty"),
    eosTokenIds: fields.has("eos_token_id")
      ? fields.tokenIds("eos_token_id")
      : undefined,
  };
  return Object.fromEntries(
    Object.entries(defaults).filter(([, value]) => value !== undefined),
  );
}

function fieldsOf(json: unknown, where: string): Fields {
  if (isObject(json)) return new Fields(json, where);
  const is = Array.isArray(json) ? "a list" : JSON.stringify(json);
  throw new Error(`Cannot use ${where}: it holds ${is}, must be an object`);
}

function refuseOtherModels(fields: Fields) {
  const { values } = fields;
  if (values.model_type === "qwen3_moe") {
    fields.refuse(
      "model_type",
      '"qwen3": a mixture of experts (qwen3_moe) is not supported',
    );
  }
  if (values.model_type !== "qwen3") fields.refuse("model_type", '"qwen3"');
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
      "absent: weights are read as bf16, f16 or f32",
    );
  }
}

function parseRope(
  fields: Fields,
  maxPositionEmbeddings: number,
): Pick<Qwen3Config, "ropeTheta" | "ropeScaling"> {
  // As in transformers: where both are given, the older name wins.
  const rope = fields.object("rope_scaling") ??
    fields.object("rope_parameters");
  if (rope === undefined) {
    return {
      ropeTheta: fields.positive("rope_theta", 10000),
      ropeScaling: null,
    };
  }
  const ropeTheta = rope.has("rope_theta")
    ? rope.positive("rope_theta")
    : fields.positive("rope_theta", 10000);
  if ((rope.values.partial_rotary_factor ?? 1) !== 1) {
    rope.refuse("partial_rotary_factor", "1");
  }
  const typeField = rope.has("rope_type") ? "rope_type" : "type";
  const type = rope.values[typeField] ?? "default";
  if (type === "default") return { ropeTheta, ropeScaling: null };
  if (type !== "yarn") rope.refuse(typeField, '"default" or "yarn"');

  const originalMaxPositionEmbeddings = rope.size(
    "original_max_position_embeddings",
    maxPositionEmbeddings,
  );
  const factor = rope.positive(
    "factor",
    maxPositionEmbeddings / originalMaxPositionEmbeddings,
  );
  return {
    ropeTheta,
    ropeScaling: {
      factor,
      originalMaxPositionEmbeddings,
      attentionFactor: yarnAttentionFactor(rope, factor),
      betaFast: rope.positive("beta_fast", 32),
      betaSlow: rope.positive("beta_slow", 1),
      truncate: rope.flag("truncate", true),
    },
  };
}

/** `attention_factor` itself, else by `mscale` (DeepSeek's pair), else the paper's. */
function yarnAttentionFactor(rope: Fields, factor: number): number {
  if (rope.has("attention_factor")) return rope.positive("attention_factor");
  const scaleOf = (mscale: number) =>
    factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1;
  return rope.values.mscale && rope.values.mscale_all_dim
    ? scaleOf(rope.positive("mscale")) /
      scaleOf(rope.positive("mscale_all_dim"))
    : scaleOf(1);
}
