/**
 * The sizes in a checkpoint's `config.json`, and what families share to read it:
 * checked fields and RoPE. Each family reads its own fields in its file in lib/model.
 *
 * @module
 */
import { jsonText } from "../errors.ts";
import { isObject } from "../json.ts";

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

/** The mixture of experts that takes the place of the MLP. */
export interface Experts {
  /** Experts in a layer. */
  count: number;
  /** Experts that a token goes through. */
  used: number;
  /** Width of an expert. */
  intermediateSize: number;
  /** Whether the weights of the chosen experts are scaled to a sum of 1. */
  normalized: boolean;
  /** Layers that have an MLP of {@linkcode Qwen3Config.intermediateSize} instead. */
  denseLayers: readonly number[];
}

/** The sizes of a model, named as in transformers. */
export interface Qwen3Config {
  /** The model family: `model_type` in config.json. */
  modelType: string;
  /** Rows of the embedding table. */
  vocabSize: number;
  /** Width of the residual stream. */
  hiddenSize: number;
  /** Width of the MLP. */
  intermediateSize: number;
  /** Set if layers have a mixture of experts. */
  experts?: Experts;
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

/** The width of what a layer's MLP computes for a token: of all its experts together. */
export function mlpWidth({ intermediateSize, experts }: Qwen3Config): number {
  return experts ? experts.used * experts.intermediateSize : intermediateSize;
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

/** The least and the greatest value of a field. */
export type Range = readonly [least: number, most: number];

/**
 * Bounds of the fields of a config.json, far from those of published models (in
 * brackets, the largest). Within them, sizes and offsets stay exact.
 */
export const BOUNDS = {
  /** [262,144] */
  vocabSize: 2 ** 24,
  /** [18,432] */
  hiddenSize: 2 ** 17,
  /** [53,248] */
  intermediateSize: 2 ** 20,
  /** [512] */
  experts: 2 ** 12,
  /** [24,576] In all layers together: each has an entry in the weight table. */
  allExperts: 2 ** 17,
  /** [126] */
  numHiddenLayers: 1000,
  /** [128] */
  numAttentionHeads: 2 ** 12,
  /** [512] */
  headDim: 2 ** 12,
  /** [10,485,760] Positions are exact in f32 up to here. */
  positions: 2 ** 24,
  rmsNormEps: [1e-12, 1],
  ropeTheta: [1, 1e12],
  yarnFactor: [1, 2 ** 12],
  yarnAttention: [1e-3, 1e3],
  yarnTurns: [1e-3, 1e6],
} as const;

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
    const is = Array.isArray(json) ? "a list" : jsonText(json);
    throw new Error(`Cannot use ${where}: it holds ${is}, must be an object`);
  }

  refuse(field: string, must: string): never {
    const is = jsonText(this.values[field]);
    throw new Error(
      `Cannot use ${this.where}: ${this.prefix}${field} is ${is}, must be ${must}`,
    );
  }

  has(field: string): boolean {
    return this.values[field] !== undefined && this.values[field] !== null;
  }

  /** A whole number from 1 to `most`. */
  size(
    field: string,
    most: number = Number.MAX_SAFE_INTEGER,
    otherwise?: number,
  ): number {
    const value = this.values[field] ?? otherwise;
    const inRange = Number.isSafeInteger(value) && value as number >= 1 &&
      value as number <= most;
    if (inRange) return value as number;
    const limit = most < Number.MAX_SAFE_INTEGER ? ` up to ${most}` : "";
    this.refuse(field, `a positive whole number${limit}`);
  }

  /** A number from `least` to `most`. */
  within(
    field: string,
    [least, most]: Range,
    otherwise?: number,
  ): number {
    const value = this.values[field] ?? otherwise;
    const inRange = typeof value === "number" && value >= least &&
      value <= most;
    if (inRange) return value as number;
    this.refuse(field, `a number from ${least} to ${most}`);
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
 * @throws {Error} if the type is neither `default` nor `yarn`, or a value is out of
 * range.
 */
export function parseRope(
  fields: ConfigFields,
  maxPositionEmbeddings: number,
): Pick<Qwen3Config, "ropeTheta" | "ropeScaling"> {
  requireWhole(fields);
  const ownTheta = () => fields.within("rope_theta", BOUNDS.ropeTheta, 10000);
  // As in transformers, the older name wins if both are given, an empty one is absent.
  const rope = ["rope_scaling", "rope_parameters"]
    .map((field) => fields.object(field))
    .find((rope) => rope && Object.keys(rope.values).length > 0);
  if (rope === undefined) return { ropeTheta: ownTheta(), ropeScaling: null };
  const ropeTheta = rope.has("rope_theta")
    ? rope.within("rope_theta", BOUNDS.ropeTheta)
    : ownTheta();
  requireWhole(rope);
  const typeField = rope.has("rope_type") || !rope.has("type")
    ? "rope_type"
    : "type";
  // Without a type, a factor would be ignored.
  const type = rope.values[typeField] ??
    (rope.has("factor") ? undefined : "default");
  const perLayer = Object.keys(rope.values).find((key) =>
    key.endsWith("_attention")
  );
  if (perLayer !== undefined) rope.refuse(perLayer, "absent");
  if (type === "default") return { ropeTheta, ropeScaling: null };
  if (type !== "yarn") rope.refuse(typeField, '"default" or "yarn"');
  if (ropeTheta === 1) rope.refuse("rope_theta", "more than 1 for YaRN");
  return {
    ropeTheta,
    ropeScaling: parseYarn(rope, maxPositionEmbeddings),
  };
}

/**
 * Reads RoPE settings from the keys of a GGUF file.
 *
 * @throws {Error} if the type is neither `none` nor `yarn`, or a value is out of range.
 */
export function parseGgufRope(
  fields: ConfigFields,
  maxPositionEmbeddings: number,
): Pick<Qwen3Config, "ropeTheta" | "ropeScaling"> {
  const ropeTheta = fields.within("rope.freq_base", BOUNDS.ropeTheta, 10000);
  const at = "rope.scaling.";
  const factor = fields.number(`${at}factor`) ??
    fields.number("rope.scale_linear");
  const type = fields.values[`${at}type`] ??
    // As in llama.cpp, a factor alone means linear.
    (factor === undefined || factor <= 1 ? "none" : "linear");
  if (type === "none") return { ropeTheta, ropeScaling: null };
  if (type !== "yarn") fields.refuse(`${at}type`, '"none" or "yarn"');
  if (ropeTheta === 1) fields.refuse("rope.freq_base", "more than 1 for YaRN");
  for (const own of ["attn_factor", "yarn_attn_factor", "yarn_ext_factor"]) {
    if ((fields.number(at + own) ?? 1) !== 1) fields.refuse(at + own, "1");
  }
  const length = "original_context_length";
  const renamed = {
    factor,
    original_max_position_embeddings: fields.values[at + length],
    beta_fast: fields.values[`${at}yarn_beta_fast`],
    beta_slow: fields.values[`${at}yarn_beta_slow`],
  };
  const rope = new ConfigFields(renamed, fields.where, fields.prefix + at);
  return { ropeTheta, ropeScaling: parseYarn(rope, maxPositionEmbeddings) };
}

/** @throws {Error} if only a part of each head is rotated. */
function requireWhole(fields: ConfigFields): void {
  const field = "partial_rotary_factor";
  if (fields.has(field) && fields.values[field] !== 1) {
    fields.refuse(field, "1");
  }
}

function parseYarn(
  rope: ConfigFields,
  maxPositionEmbeddings: number,
): YarnScaling {
  const originalMaxPositionEmbeddings = rope.size(
    "original_max_position_embeddings",
    BOUNDS.positions,
    maxPositionEmbeddings,
  );
  const factor = rope.within(
    "factor",
    BOUNDS.yarnFactor,
    maxPositionEmbeddings / originalMaxPositionEmbeddings,
  );
  if (factor * originalMaxPositionEmbeddings > BOUNDS.positions) {
    rope.refuse(
      "factor",
      `at most ${BOUNDS.positions} positions divided by the original ${originalMaxPositionEmbeddings}`,
    );
  }
  const attentionFactor = yarnAttentionFactor(rope, factor);
  const [least, most] = BOUNDS.yarnAttention;
  if (!(attentionFactor >= least && attentionFactor <= most)) {
    rope.refuse(
      "mscale",
      `in a ratio from ${least} to ${most} to mscale_all_dim`,
    );
  }
  return {
    factor,
    originalMaxPositionEmbeddings,
    attentionFactor,
    betaFast: rope.within("beta_fast", BOUNDS.yarnTurns, 32),
    betaSlow: rope.within("beta_slow", BOUNDS.yarnTurns, 1),
    truncate: rope.flag("truncate", true),
  };
}

/**
 * Returns `attention_factor` if given, else the factor from `mscale` and
 * `mscale_all_dim` (DeepSeek's), else the paper's.
 */
function yarnAttentionFactor(rope: ConfigFields, factor: number): number {
  if (rope.has("attention_factor")) {
    return rope.within("attention_factor", BOUNDS.yarnAttention);
  }
  const scaleOf = (mscale: number) =>
    factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1;
  const mscale = (field: string) => rope.within(field, [0, Number.MAX_VALUE]);
  return rope.values.mscale && rope.values.mscale_all_dim
    ? scaleOf(mscale("mscale")) / scaleOf(mscale("mscale_all_dim"))
    : scaleOf(1);
}
