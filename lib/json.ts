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

/**
 * Checks that a value survives `JSON.stringify`, as a `Map`, a `bigint` or `NaN` does not.
 *
 * @param where what the value is, for the error
 * @throws {Error} if some part of `value` is not a JSON value
 */
export function requireJsonValue(
  value: unknown,
  where: string,
  depth = 0,
): void {
  if (depth > DEPTH) {
    throw new Error(`${where} nests deeper than ${DEPTH} levels`);
  }
  if (Array.isArray(value)) {
    for (const [i, item] of Array.from(value).entries()) {
      requireJsonValue(item, `${where}[${i}]`, depth + 1);
    }
  } else if (isObject(value)) {
    const prototype = Object.getPrototypeOf(value);
    if (prototype !== null && Object.getPrototypeOf(prototype) !== null) {
      throw new Error(
        `${where} is a ${value.constructor?.name}, must be a JSON value`,
      );
    }
    for (const [key, item] of Object.entries(value)) {
      if (item === undefined) continue; // as absent
      requireJsonValue(item, `${where}.${key.slice(0, 40)}`, depth + 1);
    }
  } else if (
    !(value === null || ["string", "boolean"].includes(typeof value) ||
      Number.isFinite(value))
  ) {
    throw new Error(
      `${where} is ${
        typeof value === "number" ? value : `a ${typeof value}`
      }, must be a JSON value`,
    );
  }
}
