/**
 * The parameters that completions of text and of chats share.
 *
 * @module
 */
import type { GenerateOptions } from "../generate.ts";
import { described } from "../errors.ts";
import { ApiError, wrongParameter } from "./errors.ts";
import type { Fields } from "./fields.ts";
import type { Asked } from "./generation.ts";
import type { Service } from "./service.ts";
import type { Prompt } from "../text/prompt.ts";

/** Parameters for OpenAI's own service, which change nothing about a text. */
export const FOR_OPENAI = [
  "user",
  "metadata",
  "store",
  "service_tier",
  "prompt_cache_key",
  "prompt_cache_retention",
  "safety_identifier",
];

/** The most texts for one prompt. */
const MOST_TEXTS = 32;
/** The most alternatives to a token. */
export const MOST_LOGPROBS = 20;
/** The most stop strings. */
const MOST_STOPS = 16;

/** @throws {ApiError} 404 if the request is for another model; none is the one that there is. */
export function checkModel(fields: Fields, { names }: Service): void {
  const model = fields.text("model");
  if (model === undefined || names.includes(model)) return;
  throw unknownModel(model, names);
}

/** The error for a model that is not served. */
export function unknownModel(
  model: string,
  names: readonly string[],
): ApiError {
  return new ApiError(
    404,
    `Cannot find the model ${described(model)}, must be ${names.join(" or ")}`,
    { param: "model", code: "model_not_found" },
  );
}

/**
 * Reads how tokens are sampled, and when a text ends.
 *
 * @param unwanted tokens that should not come, whatever `logit_bias` says
 */
export function readSampling(
  fields: Fields,
  unwanted: readonly number[] = [],
): GenerateOptions {
  const options: GenerateOptions = {
    temperature: fields.number("temperature"),
    topP: fields.number("top_p"),
    topK: readTopK(fields),
    minP: fields.number("min_p"),
    repetitionPenalty: fields.number("repetition_penalty"),
    presencePenalty: fields.number("presence_penalty"),
    frequencyPenalty: fields.number("frequency_penalty"),
    logitBias: readBias(fields, unwanted),
    seed: readSeed(fields),
    stop: readStop(fields),
    ignoreEos: fields.flag("ignore_eos"),
  };
  return options;
}

/** Elsewhere −1 stands for all tokens, here 0 does. */
function readTopK(fields: Fields): number | undefined {
  const topK = fields.whole("top_k", -1);
  return topK === -1 ? 0 : topK;
}

/** The least bias: such a token hardly ever comes. */
const LEAST_BIAS = -100;

/** Biases by token id, a number as text. */
function readBias(
  fields: Fields,
  unwanted: readonly number[],
): Record<number, number> {
  const biases = fields.object("logit_bias");
  const given = Object.keys(biases?.json ?? {}).map((id) => {
    if (/^\d{1,9}$/.test(id)) return [id, biases!.number(id)];
    throw fields.wrong("logit_bias", 'biases by token id, as {"42": -100}');
  }).filter(([, bias]) => bias !== undefined);
  return {
    ...Object.fromEntries(given),
    ...Object.fromEntries(unwanted.map((id) => [id, LEAST_BIAS])),
  };
}

/** Seeds may have 64 bits; here they have 32, the lowest. */
function readSeed(fields: Fields): number | undefined {
  const seed = fields.get("seed");
  if (seed === undefined) return undefined;
  if (typeof seed !== "number" || !Number.isInteger(seed)) {
    throw fields.wrong("seed", "an integer");
  }
  return Number(BigInt.asUintN(32, BigInt(seed)));
}

function readStop(fields: Fields): string | string[] | undefined {
  const stop = fields.get("stop");
  if (stop === undefined || typeof stop === "string") return stop;
  const fits = Array.isArray(stop) && stop.length <= MOST_STOPS &&
    stop.every((one) => typeof one === "string");
  if (fits) return stop;
  throw fields.wrong("stop", `a string or a list of at most ${MOST_STOPS}`);
}

/** Reads the most tokens of a text, which has several names. */
export function readMaxTokens(
  fields: Fields,
  names: readonly string[],
): number | undefined {
  const given = names.filter((name) => fields.whole(name, 1) !== undefined);
  if (given.length > 1) {
    throw wrongParameter(given[1], `and ${given[0]} are given, must be one`);
  }
  return given.length === 0 ? undefined : fields.whole(given[0], 1);
}

/** How a reply is sent. */
export interface Delivery {
  stream: boolean;
  /** A last event has the counts of tokens. */
  usage: boolean;
  /** Texts come with their token ids. */
  tokenIds: boolean;
}

/** Reads how a reply is sent. */
export function readDelivery(fields: Fields): Delivery {
  const stream = fields.flag("stream") ?? false;
  const options = fields.object("stream_options");
  const usage = options?.flag("include_usage") ?? false;
  options?.ignore(["include_obfuscation"]);
  options?.end();
  if (options !== undefined && !stream) {
    throw wrongParameter(
      "stream_options",
      "is given without stream, must be left out",
    );
  }
  const tokenIds = fields.flag("return_token_ids") ?? false;
  return { stream, usage, tokenIds };
}

/**
 * The texts for some prompts, `n` for each, with seeds of their own.
 *
 * @param ask what is asked for with a prompt
 * @throws {ApiError} 400 if there will never be places for so many texts.
 */
export function readTexts<P extends Prompt>(
  fields: Fields,
  { queue }: Service,
  prompts: readonly P[],
  ask: (prompt: P) => Omit<Asked, "prompt">,
): { asked: Asked[]; n: number } {
  const n = fields.whole("n", 1, MOST_TEXTS) ?? 1;
  queue.requirePlaces(n * prompts.length); // a body has room for millions
  const texts = prompts.flatMap((prompt): Asked[] =>
    Array(n).fill({ prompt, ...ask(prompt) })
  );
  const asked = texts.map((one, i) => {
    const { seed } = one.options;
    if (seed === undefined || i === 0) return one;
    return { ...one, options: { ...one.options, seed: (seed + i) % 2 ** 32 } };
  });
  return { asked, n };
}

/** Token ids of a prompt; undefined if the value is no list of them. */
export function asTokenIds(value: unknown): number[] | undefined {
  return Array.isArray(value) && value.length > 0 &&
      value.every((id) => typeof id === "number")
    ? value
    : undefined;
}
