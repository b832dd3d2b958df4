/**
 * Parses untrusted JSON.
 *
 * @module
 */
import { errorText } from "./errors.ts";

/** Whether a parsed JSON value is an object (not null and not an array). */
export function isObject(json: unknown): json is Record<string, unknown> {
  return typeof json === "object" && json !== null && !Array.isArray(json);
}

/**
 * Parses JSON; errors take one line and name the file.
 *
 * @param where a path or URL, for the error
 * @throws {Error} if `text` is not JSON
 */
export function parseJson(text: string, where: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    // V8 quotes the text around the error, including line breaks.
    const why = errorText(cause);
    throw new Error(`Cannot read ${where}: it is not valid JSON (${why})`, {
      cause,
    });
  }
}

/** How deep a JSON value may nest. */
const DEPTH = 200;

/** Digits of an integer key, which JavaScript moves to the front of an object. */
const INTEGER_KEY = /"(\d+)"(?=\s*:)/;

/**
 * Parses JSON without loss: integers beyond 2⁵³ become bigints, whole numbers that are
 * written like 1.0 or 1e5 Number objects, and objects with keys like "1", whose order
 * JavaScript changes, Maps.
 *
 * @throws {SyntaxError} if `text` is not JSON
 */
export function parseExactJson(text: string): unknown {
  const exact: Reviver = (_key, value, { source }) => {
    if (!Number.isInteger(value) || source === undefined) return value;
    if (!/^-?\d+$/.test(source)) return Object(value);
    return Number.isSafeInteger(value) ? value : BigInt(source);
  };
  const parse = JSON.parse as (text: string, reviver?: Reviver) => unknown;
  if (!INTEGER_KEY.test(text)) return parse(text, exact);
  JSON.parse(text); // what is marked below must be JSON
  // A mark in front of every key keeps the order, whatever the key is.
  const marked = text.replaceAll(
    /"((?:[^"\\]|\\.)*)"(\s*:)?/g,
    (whole, key, colon) => colon ? `"_${key}"${colon}` : whole,
  );
  return unmarked(parse(marked, exact));
}

/** TypeScript does not know of the context yet. */
type Reviver = (
  key: string,
  value: unknown,
  context: { source?: string },
) => unknown;

function unmarked(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(unmarked);
  if (!isObject(value) || value instanceof Number) return value;
  const entries = Object.entries(value)
    .map(([key, item]): [string, unknown] => [key.slice(1), unmarked(item)]);
  return entries.some(([key]) => /^\d+$/.test(key))
    ? new Map(entries)
    : Object.fromEntries(entries);
}

/** Writes JSON; keys of Maps are in their order. */
export function exactJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(exactJson).join(",")}]`;
  if (typeof value === "bigint") return `${value}`;
  if (!isObject(value) || value instanceof Number) {
    return JSON.stringify(value) ?? "null";
  }
  const entries = value instanceof Map ? [...value] : Object.entries(value);
  const fields = entries.filter(([, item]) => item !== undefined)
    .map(([key, item]) => `${JSON.stringify(key)}:${exactJson(item)}`);
  return `{${fields.join(",")}}`;
}

/**
 * Checks that a value is of JSON's types, as a `Date`, a `bigint` or `NaN` is not. An object
 * may be a Map, which keeps the order of keys like "1".
 *
 * @param where what the value is, for the error
 * @throws {Error} if some part of `value` is not a JSON value
 */
export function requireJsonValue(value: unknown, where: string): void {
  const found = findOther(value, 0);
  if (!found) return;
  const { path, other } = found;
  throw new Error(
    other === undefined
      ? `${where} nests deeper than ${DEPTH} levels`
      : `${where}${path} is ${other}, must be a JSON value`,
  );
}

/**
 * A part that is not a JSON value: where and what it is, or undefined for the latter if it
 * lies too deep.
 */
function findOther(
  value: unknown,
  depth: number,
): { path: string; other: string | undefined } | undefined {
  if (depth > DEPTH) return { path: "", other: undefined };
  if (typeof value !== "object" || value === null) {
    const fine = value === null || Number.isFinite(value) ||
      ["string", "boolean"].includes(typeof value);
    const other = ["number", "undefined"].includes(typeof value)
      ? `${value}`
      : `a ${typeof value}`;
    return fine ? undefined : { path: "", other };
  }
  const prototype = Object.getPrototypeOf(value);
  const map = value instanceof Map &&
    [...value.keys()].every((key) => typeof key === "string");
  const plain = map || Array.isArray(value) || prototype === null ||
    Object.getPrototypeOf(prototype) === null;
  if (!plain) return { path: "", other: `a ${prototype.constructor?.name}` };
  for (const [key, item] of map ? value : Object.entries(value)) {
    if (item === undefined && !Array.isArray(value)) continue; // as absent
    const found = findOther(item, depth + 1);
    if (!found) continue;
    const step = Array.isArray(value) ? `[${key}]` : `.${key.slice(0, 40)}`;
    const path = found.other === undefined ? "" : step + found.path;
    return { path, other: found.other };
  }
}
