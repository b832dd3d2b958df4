/**
 * What happens to a text before byte-pair encoding: the normalizer changes it, and the
 * pre-tokenizer cuts it into words, as in Hugging Face's tokenizers.
 *
 * @module
 */
import { isObject } from "../json.ts";
import { wrong } from "./bpe.ts";
import { type Budget, type Matcher, readPattern } from "./pattern.ts";

/** The budget bounds the work of a tokenizer's regular expressions. */
export type Normalize = (text: string, budget: Budget) => string;
/** The words of a text, in order. */
export type Cut = (text: string, budget: Budget) => Iterable<string>;

type Json = Record<string, unknown>;

function part(json: unknown, where: string): Json & { type: unknown } {
  if (isObject(json)) return { type: undefined, ...json };
  throw wrong(where, json, "an object");
}

/**
 * Reads `normalizer` of a tokenizer.json.
 *
 * @throws {Error} if its type is not supported; the message has no subject.
 */
export function readNormalizer(json: unknown, where = "normalizer"): Normalize {
  if (json === undefined || json === null) return (text) => text;
  const { type, ...fields } = part(json, where);
  switch (type) {
    case "NFC":
    case "NFD":
    case "NFKC":
    case "NFKD":
      return (text) => {
        requireFewMarks(text);
        return text.normalize(type);
      };
    case "Lowercase":
      // One character at a time: a sigma at the end of a word is not special here.
      return (text) => text.replace(/\P{Ll}/gu, (one) => one.toLowerCase());
    case "StripAccents":
      return (text) => text.replace(/\p{M}/gu, "");
    case "Strip": {
      const left = fields.strip_left !== false;
      const right = fields.strip_right !== false;
      return (text) => strip(text, left, right);
    }
    case "Prepend": {
      const { prepend } = fields;
      if (typeof prepend !== "string") {
        throw wrong(`${where}.prepend`, prepend, "a string");
      }
      return (text) => text === "" ? "" : prepend + text;
    }
    case "Replace": {
      const { content } = fields;
      if (typeof content !== "string") {
        throw wrong(`${where}.content`, content, "a string");
      }
      const pattern = readPattern(fields.pattern, `${where}.pattern`);
      return (text, budget) => {
        let result = "", done = 0;
        for (const [begin, end] of pattern(text, budget)) {
          result += text.slice(done, begin) + content;
          done = end;
        }
        return result + text.slice(done);
      };
    }
    case "Sequence": {
      const steps = list(fields.normalizers, `${where}.normalizers`)
        .map((one, i) => readNormalizer(one, `${where}.normalizers[${i}]`));
      return (text, budget) =>
        steps.reduce((text, step) => step(text, budget), text);
    }
  }
  throw wrong(
    `${where}.type`,
    type,
    "NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Strip, Prepend, Replace or Sequence",
  );
}

/** The most combining marks in a row; the Stream-Safe Text Format (UAX #15) has 30. */
const MOST_MARKS = 1000;

/** @throws {Error} if bringing the marks in order would take quadratic time. */
function requireFewMarks(text: string): void {
  for (const { 0: { length } } of text.matchAll(/\p{M}{2,}/gu)) {
    if (length <= MOST_MARKS) continue;
    throw new Error(
      `Cannot encode a text with ${length} combining marks in a row, must have at most ${MOST_MARKS}`,
    );
  }
}

const SPACE = /\p{White_Space}/u;

function strip(text: string, left: boolean, right: boolean): string {
  let begin = 0, end = text.length;
  while (left && begin < end && SPACE.test(text[begin])) begin++;
  while (right && begin < end && SPACE.test(text[end - 1])) end--;
  return text.slice(begin, end);
}

function list(json: unknown, where: string): unknown[] {
  if (Array.isArray(json)) return json;
  throw wrong(where, json, "a list");
}

/** GPT-2's pattern, which `ByteLevel` uses unless `use_regex` is false. */
const GPT2 =
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/**
 * Reads `pre_tokenizer` of a tokenizer.json. The words are text; the model spells them in
 * bytes, as `ByteLevel` requires.
 *
 * @throws {Error} if a type is not supported, or `ByteLevel` is not the last step; the
 * message has no subject.
 */
export function readPreTokenizer(json: unknown): Cut {
  const where = "pre_tokenizer";
  const { type, ...fields } = part(json, where);
  const steps = type === "Sequence"
    ? list(fields.pretokenizers, `${where}.pretokenizers`)
    : [json];
  const last = steps.length - 1;
  const cuts = steps.map((step, i) =>
    readStep(
      step,
      type === "Sequence" ? `${where}.pretokenizers[${i}]` : where,
      i === last,
    )
  );
  if (cuts.length === 0) throw wrong(where, json, "ByteLevel at its end");
  return cuts.reduceRight((rest, cut): Cut =>
    function* (text, budget) {
      for (const word of cut(text, budget)) yield* rest(word, budget);
    }
  );
}

function readStep(json: unknown, where: string, last: boolean): Cut {
  const { type, ...fields } = part(json, where);
  if (last !== (type === "ByteLevel")) {
    throw wrong(
      `${where}.type`,
      type,
      last
        ? "ByteLevel, because it is the last step"
        : "other than ByteLevel, because it is not the last step",
    );
  }
  switch (type) {
    case "ByteLevel": {
      const prefix = fields.add_prefix_space !== false;
      const split: Cut = fields.use_regex === false
        ? (text) => [text]
        : cutAt(readPattern({ Regex: GPT2 }, where), "Isolated", false);
      return (text, budget) =>
        split(prefix && !text.startsWith(" ") ? ` ${text}` : text, budget);
    }
    case "Split": {
      const { behavior, invert = false } = fields;
      if (!isBehavior(behavior)) {
        throw wrong(`${where}.behavior`, behavior, BEHAVIORS.join(", "));
      }
      if (typeof invert !== "boolean") {
        throw wrong(`${where}.invert`, invert, "true or false");
      }
      const pattern = readPattern(fields.pattern, `${where}.pattern`);
      return cutAt(pattern, behavior, invert);
    }
    case "Digits":
      return cutAt(
        readPattern({ Regex: "\\p{N}" }, where),
        fields.individual_digits === true ? "Isolated" : "Contiguous",
        false,
      );
    case "Punctuation": {
      const { behavior = "Isolated" } = fields;
      if (!isBehavior(behavior)) {
        throw wrong(`${where}.behavior`, behavior, BEHAVIORS.join(", "));
      }
      return cutAt(
        readPattern({ Regex: "[\\p{P}$+<=>^`|~]" }, where),
        behavior,
        false,
      );
    }
    case "WhitespaceSplit":
      return cutAt(readPattern({ Regex: "\\s" }, where), "Removed", false);
  }
  throw wrong(
    `${where}.type`,
    type,
    "Split, Digits, Punctuation, WhitespaceSplit or ByteLevel",
  );
}

const BEHAVIORS = [
  "Isolated",
  "Removed",
  "Contiguous",
  "MergedWithPrevious",
  "MergedWithNext",
] as const;
type Behavior = typeof BEHAVIORS[number];

function isBehavior(value: unknown): value is Behavior {
  return BEHAVIORS.some((behavior) => behavior === value);
}

/** A part of a text: a match of a pattern, or text between matches. */
interface Segment {
  begin: number;
  end: number;
  matched: boolean;
}

function* segments(
  text: string,
  matches: Iterable<readonly [number, number]>,
  invert: boolean,
): Generator<Segment> {
  let done = 0;
  for (const [begin, end] of matches) {
    if (done < begin) yield { begin: done, end: begin, matched: invert };
    yield { begin, end, matched: !invert };
    done = end;
  }
  if (done < text.length) {
    yield { begin: done, end: text.length, matched: invert };
  }
}

function cutAt(pattern: Matcher, behavior: Behavior, invert: boolean): Cut {
  return function* (text, budget) {
    const all = segments(text, pattern(text, budget), invert);
    const kept = behavior === "Isolated" || behavior === "Removed"
      ? all
      : merged([...all], behavior);
    for (const { begin, end, matched } of kept) {
      if (begin === end || (matched && behavior === "Removed")) continue;
      yield text.slice(begin, end);
    }
  };
}

/** Joins adjacent matches, or a single one with its neighbor. */
function merged(all: Segment[], behavior: Behavior): Segment[] {
  const backwards = behavior === "MergedWithNext";
  if (backwards) all.reverse();
  const result: Segment[] = [];
  let before = false;
  for (const segment of all) {
    const { begin, end, matched } = segment;
    const last = result.at(-1);
    const joins = behavior === "Contiguous"
      ? matched === before
      : matched && !before;
    if (last && joins) {
      last.begin = Math.min(last.begin, begin);
      last.end = Math.max(last.end, end);
    } else result.push({ ...segment });
    before = matched;
  }
  return backwards ? result.reverse() : result;
}
