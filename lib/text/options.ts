/**
 * Options as callers give them, who may be JavaScript or used to other libraries.
 *
 * @module
 */
import {
  listed,
  OptionError,
  type OptionKind,
  requireKind,
  testKind,
  wrongOption,
} from "../errors.ts";
import { nearest } from "./messages.ts";

/** What other libraries call an option, without underscores and in lower case. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  maxnewtokens: "maxTokens",
  maxcompletiontokens: "maxTokens",
  maxoutputtokens: "maxTokens",
  maxlength: "maxTokens",
  npredict: "maxTokens",
  numpredict: "maxTokens",
  nctx: "context",
  numctx: "context",
  contextlength: "context",
  contextsize: "context",
  maxmodellen: "context",
  maxseqlen: "context",
  stopstrings: "stop",
  stopsequences: "stop",
  enablethinking: "thinking",
  think: "thinking",
  repeatpenalty: "repetitionPenalty",
  systemprompt: "system",
  instructions: "system",
  functions: "tools",
  abortsignal: "signal",
  ignoreeostoken: "ignoreEos",
  dtype: "precision",
  torchdtype: "precision",
  backend: "device",
  numthreads: "threads",
  nthreads: "threads",
};

/** What is done otherwise here, and how. */
const OTHERWISE: Readonly<Record<string, string>> = {
  stream: "iterate over the run to stream its text",
};

/**
 * What a caller may have meant by an unknown name; undefined if no known one is close.
 *
 * @param renamed names of other libraries (lower case, without underscores) and ours
 */
export function meant(
  name: string,
  known: readonly string[],
  renamed: Readonly<Record<string, string>> = ELSEWHERE,
): string | undefined {
  const plain = name.replaceAll(/[_-]/g, "").toLowerCase();
  const other = Object.hasOwn(renamed, plain) ? renamed[plain] : undefined;
  return other !== undefined && known.includes(other)
    ? other
    : nearest(plain, known);
}

/**
 * Checks options and returns those that are given: a known one that is undefined, or null
 * as in JSON, is absent.
 *
 * @param cannot the beginning of the error, such as `Cannot generate`
 * @param kinds every option that there is; undefined for one that is checked elsewhere
 * @throws {TypeError} if `options` is not an object
 * @throws {OptionError} if an option is unknown or of another kind
 */
export function givenOptions<T extends object>(
  cannot: string,
  options: T,
  kinds: Readonly<Record<keyof T & string, OptionKind | undefined>>,
): T {
  requireKind(cannot, "the options argument", options, "object");
  const known = Object.keys(kinds), given: Record<string, unknown> = {};
  for (const name of [...known, ...Object.keys(options)]) {
    const value = options[name as keyof T];
    if (value === undefined) continue;
    if (!known.includes(name)) throw unknownOption(cannot, name, known);
    if (value === null) continue;
    const kind = kinds[name as keyof T & string];
    const must = kind && testKind(value, kind);
    if (must) throw wrongOption(cannot, name, value, must);
    given[name] = value;
  }
  return given as T;
}

function unknownOption(
  cannot: string,
  name: string,
  known: readonly string[],
): OptionError {
  const close = meant(name, known);
  const hint = Object.hasOwn(OTHERWISE, name)
    ? OTHERWISE[name]
    : close
    ? `did you mean ${close}?`
    : `must be one of ${listed(known, known.length)}`;
  return new OptionError(
    name,
    `${cannot}: the option ${listed([name])} is unknown, ${hint}`,
  );
}
