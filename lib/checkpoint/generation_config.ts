/**
 * The generation defaults in a checkpoint's `generation_config.json`, and which of
 * its settings are ignored. Checkpoints without that file may have them in config.json.
 *
 * @module
 */
import { ConfigFields } from "./config.ts";
import { jsonText } from "../errors.ts";

/** A setting that would change the text in transformers but is not supported. */
export interface IgnoredSetting {
  /** The field's name in the file. */
  field: string;
  /** The field's value as JSON, shortened. */
  value: string;
}

/** The settings in `generation_config.json`; absent ones are undefined. */
export interface GenerationDefaults {
  doSample?: boolean;
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  eosTokenIds?: number[];
  /** The maximum number of tokens to generate. */
  maxNewTokens?: number;
  /** The maximum length of prompt and text; `maxNewTokens` wins. */
  maxLength?: number;
  /** Strings that end the text. */
  stopStrings?: string[];
  /** Settings that are not supported, if there are any. */
  ignored?: IgnoredSetting[];
}

/** The sampling options that a file can set. */
type SamplingField =
  | "temperature"
  | "topK"
  | "topP"
  | "minP"
  | "repetitionPenalty";

/** The range of each sampling option, as a condition and in words. */
export const SAMPLING_RANGES: Readonly<
  Record<SamplingField, [inRange: (value: number) => boolean, range: string]>
> = {
  temperature: [(t) => t >= 0, "a number of at least 0"],
  topK: [(k) => k >= 0 && Number.isInteger(k), "an integer of at least 0"],
  topP: [(p) => p > 0 && p <= 1, "above 0 and at most 1"],
  minP: [(p) => p >= 0 && p <= 1, "from 0 to 1"],
  // Beyond, logits would leave the range of f32, and several would be its end.
  repetitionPenalty: [(p) => p >= 1e-3 && p <= 1e3, "from 0.001 to 1000"],
};

/**
 * Fields that change the text in transformers' greedy search or sampling, or select
 * another method, and are not supported; with a test for values that change nothing.
 * The file may also hold fields of beam search, caches, outputs and other tokens'
 * ids: without the fields below they change nothing.
 */
const IGNORED: Readonly<Record<string, (value: unknown) => boolean>> = {
  min_length: (n) => n === 0,
  min_new_tokens: (n) => n === 0,
  max_time: () => false,
  num_beams: (n) => n === 1,
  num_beam_groups: (n) => n === 1,
  num_return_sequences: (n) => n === 1,
  diversity_penalty: (x) => x === 0,
  constraints: isEmpty,
  force_words_ids: isEmpty,
  penalty_alpha: (x) => x === 0,
  dola_layers: () => false,
  prompt_lookup_num_tokens: () => false,
  assistant_early_exit: () => false,
  use_mtp: (on) => on === false,
  top_h: () => false,
  typical_p: (p) => typeof p === "number" && p >= 1,
  epsilon_cutoff: outsideUnit,
  eta_cutoff: outsideUnit,
  encoder_repetition_penalty: (x) => x === 1,
  no_repeat_ngram_size: (n) => n === 0,
  encoder_no_repeat_ngram_size: (n) => n === 0,
  bad_words_ids: isEmpty,
  forced_bos_token_id: () => false,
  forced_eos_token_id: () => false,
  forced_decoder_ids: isEmpty,
  remove_invalid_values: (on) => on === false,
  exponential_decay_length_penalty: () => false,
  suppress_tokens: isEmpty,
  begin_suppress_tokens: isEmpty,
  sequence_bias: isEmpty,
  token_healing: (on) => on === false,
  guidance_scale: (x) => x === 1,
  watermarking_config: () => false,
};

function isEmpty(value: unknown): boolean {
  return typeof value === "object" && value !== null &&
    Object.keys(value).length === 0;
}

/** Cutoffs apply strictly between 0 and 1. */
function outsideUnit(value: unknown): boolean {
  return typeof value === "number" && (value <= 0 || value >= 1);
}

/**
 * Reads a parsed `generation_config.json`, or the same fields of a config.json; absent
 * ones stay undefined.
 *
 * @param json what JSON.parse returned
 * @param where the file, for errors
 * @throws {Error} if a field has the wrong type or is out of range
 */
export function parseGeneration(
  json: unknown,
  where: string,
): GenerationDefaults {
  const fields = ConfigFields.of(json, where);
  const sampling = (name: string, key: SamplingField) => {
    const value = fields.number(name);
    const [inRange, range] = SAMPLING_RANGES[key];
    if (value === undefined || (Number.isFinite(value) && inRange(value))) {
      return value;
    }
    return fields.refuse(name, range);
  };
  const size = (name: string) =>
    fields.has(name) ? fields.size(name) : undefined;
  const ignored = Object.entries(IGNORED)
    .filter(([name, neutral]) =>
      fields.has(name) && !neutral(fields.values[name])
    )
    .map(([field]) => ({ field, value: jsonText(fields.values[field]) }));

  const defaults: GenerationDefaults = {
    doSample: fields.has("do_sample")
      ? fields.flag("do_sample", false)
      : undefined,
    temperature: sampling("temperature", "temperature"),
    topK: sampling("top_k", "topK"),
    topP: sampling("top_p", "topP"),
    minP: sampling("min_p", "minP"),
    repetitionPenalty: sampling("repetition_penalty", "repetitionPenalty"),
    eosTokenIds: fields.has("eos_token_id")
      ? fields.tokenIds("eos_token_id")
      : undefined,
    maxNewTokens: size("max_new_tokens"),
    maxLength: size("max_length"),
    stopStrings: stopStrings(fields),
    ignored: ignored.length > 0 ? ignored : undefined,
  };
  if (defaults.doSample && defaults.temperature === 0) {
    fields.refuse("temperature", "above 0, because do_sample is true");
  }
  return Object.fromEntries(
    Object.entries(defaults).filter(([, value]) => value !== undefined),
  );
}

function stopStrings(fields: ConfigFields): string[] | undefined {
  if (!fields.has("stop_strings")) return undefined;
  const texts = [fields.values.stop_strings].flat();
  const usable = (text: unknown): text is string =>
    typeof text === "string" && text !== "" && text.isWellFormed();
  if (texts.every(usable)) return texts;
  return fields.refuse(
    "stop_strings",
    "a string or a list of strings, none of them empty",
  );
}

/** One line that names the settings of `location` that are ignored; undefined if none are. */
export function ignoredNotice(
  { ignored }: GenerationDefaults,
  location: string,
): string | undefined {
  if (ignored === undefined) return undefined;
  const list = ignored.map(({ field, value }) => `${field} (${value})`);
  return `Ignoring unsupported generation settings of ${location}: ${
    list.join(", ")
  }`;
}

/**
 * How many tokens the checkpoint allows after a prompt of `promptTokens`; undefined if
 * it says nothing. As in transformers, `max_new_tokens` wins over `max_length`.
 *
 * @throws {RangeError} if the prompt alone reaches `max_length`.
 */
export function newTokenLimit(
  { maxNewTokens, maxLength }: GenerationDefaults,
  promptTokens: number,
  which: string,
): number | undefined {
  if (maxNewTokens !== undefined || maxLength === undefined) {
    return maxNewTokens;
  }
  if (promptTokens < maxLength) return maxLength - promptTokens;
  throw new RangeError(
    `Cannot generate: ${which} has ${promptTokens} tokens, must have fewer than max_length of the checkpoint, ${maxLength}, unless maxTokens is set`,
  );
}
