/**
 * The sizes in a checkpoint's `config.json`, and what families share to read it:
 * checked fields and RoPE. Each family reads its own fields in its file in lib/model.
 *
 * @module
 */
import { isObject, shownJson } from "../json.ts";

/** Settings of YaRN (https://arxiv.org/abs/2309.00071), as transformers reads them. */
export interface YarnScaling {
  /** How many times longer contexts may be than in training. */
  factor: number;
  /** The context length in training, in tokens. */
  originalMaxPositionEmbeddings: number;
  /** Multiplies cos and sin; by default 0.1·ln(factor)+1. */
  attentionFactor: number;
  /**
   * Dimensions that make more turns than this over the trained context are not
   * interpolated.
   */
  betaFast: number;
  /** Dimensions that make fewer turns than this are fully interpolated. */
  betaSlow: number;
  /** Whether the bounds of the ramp between them are rounded to whole dimensions. */
  truncate: boolean;
}

/** The sizes of a dense model, named as in transformers. */
export interface Qwen3Config {
  /** The model family: `model_type` in config.json. */
  modelType: string;
  /** Rows of the embedding table. */
  vocabSize: number;
  /** Width of the residual stream. */
  hiddenSize: number;
  /** Width of the MLP. */
  intermediateSize: number;
  /** The number of decoder layers. */
  numHiddenLayers: number;
  /** The number of query heads. */
  numAttentionHeads: number;
  /** The number of key/value heads; each serves an equal share of the query heads. */
  numKeyValueHeads: number;
  /** Width of a head. */
  headDim: number;
  /** The longest context without YaRN, in tokens; see {@linkcode contextLimit}. */
  maxPositionEmbeddings: number;
  /** Epsilon, added to the mean square in RMSNorm. */
  rmsNormEps: number;
  /** Base of the RoPE frequencies. */
  ropeTheta: number;
  /** YaRN settings; null if the checkpoint does not use YaRN. */
  ropeScaling: YarnScaling | null;
  /** Whether the LM head is the embedding table. */
  tieWordEmbeddings: boolean;
  /** The beginning-of-text token id, if there is one. */
  bosTokenId: number | null;
  /** All end-of-text token ids; may be empty. */
  eosTokenIds: number[];
}

/** The longest context that a configuration allows, and the fields that say so. */
export interface ContextLimit {
  tokens: number;
  why: string;
}

/**
 * Returns the longest context: `max_position_embeddings`, or what YaRN reaches if that
 * is longer. Qwen3's model cards add YaRN without raising `max_position_embeddings`.
 *
 * ```ts
 * import { contextLimit } from "./config.ts";
 *
 * const { tokens } = contextLimit({ maxPositionEmbeddings: 40960, ropeScaling: null });
 * console.log(tokens); // 40960
 * ```
 */
export function contextLimit(
  { maxPositionEmbeddings, ropeScaling }: Pick<
    Qwen3Config,
    "maxPositionEmbeddings" | "ropeScaling"
  >,
): ContextLimit {
  const own = "max_position_embeddings";
  if (ropeScaling) {
    const { factor, originalMaxPositionEmbeddings: trained } = ropeScaling;
    // Digits beyond the 12th are the rounding error of a factor such as 1.15.
    const tokens = Math.floor(Number((factor * trained).toPrecision(12)));
    if (tokens > maxPositionEmbeddings) {
      const why =
        `YaRN's factor ${factor} times the trained ${trained}; ${own} is ${maxPositionEmbeddings}`;
      return { tokens, why };
    }
  }
  return { tokens: maxPositionEmbeddings, why: own };
}

/**
 * A JSON object whose fields are checked as they are read; errors name the file and the
 * field.
 */
export class ConfigFields {
  constructor(
    readonly values: Record<string, unknown>,
    readonly where: string,
    readonly prefix = "",
  ) {}

  /**
   * @param json what JSON.parse returned
   * @param where the file, for errors
   */
  static of(json: unknown, where: string): ConfigFields {
    if (isObject(json)) return new ConfigFields(json, where);
    const is = Array.isArray(json) ? "a list" : shownJson(json);
    throw new Error(`Cannot use ${where}: it holds ${is}, must be an object`);
  }

  refuse(field: string, must: string): never {
    const value = this.values[field];
    const is = value === undefined ? "missing" : shownJson(value);
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

  /** A number; undefined if absent or null. */
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

  /** Token ids: one, several, or none if absent or null. */
  tokenIds(field: string): number[] {
    const ids = [this.values[field] ?? []].flat() as unknown[];
    if (ids.every((id) => Number.isSafeInteger(id) && id as number >= 0)) {
      return ids as number[];
    }
    this.refuse(field, "a token id, a list of them or null");
  }

  /** An object; undefined if absent or null. */
  object(field: string): ConfigFields | undefined {
    if (!this.has(field)) return undefined;
    const value = this.values[field];
    if (!isObject(value)) this.refuse(field, "an object");
    return new ConfigFields(value, this.where, `${this.prefix}${field}.`);
  }
}

/**
 * Reads RoPE settings, from `rope_theta` and `rope_scaling` or from the newer
 * `rope_parameters`.
 *
 * @throws {Error} if the type is neither `default` nor `yarn`.
 */
export function parseRope(
  fields: ConfigFields,
  maxPositionEmbeddings: number,
): Pick<Qwen3Config, "ropeTheta" | "ropeScaling"> {
  // As in transformers, the older name wins if both are given.
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

/**
 * Returns `attention_factor` if given, else the factor from `mscale` and
 * `mscale_all_dim` (DeepSeek's), else the paper's.
 */
function yarnAttentionFactor(rope: ConfigFields, factor: number): number {
  if (rope.has("attention_factor")) return rope.positive("attention_factor");
  const scaleOf = (mscale: number) =>
    factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1;
  return rope.values.mscale && rope.values.mscale_all_dim
    ? scaleOf(rope.positive("mscale")) /
      scaleOf(rope.positive("mscale_all_dim"))
    : scaleOf(1);
}
