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
  const plain = Array.isArray(value) || prototype === null ||
    Object.getPrototypeOf(prototype) === null;
  if (!plain) return { path: "", other: `a ${prototype.constructor?.name}` };
  for (const [key, item] of Object.entries(value)) {
    if (item === undefined && !Array.isArray(value)) continue; // as absent
    const found = findOther(item, depth + 1);
    if (!found) continue;
    const step = Array.isArray(value) ? `[${key}]` : `.${key.slice(0, 40)}`;
    const path = found.other === undefined ? "" : step + found.path;
    return { path, other: found.other };
  }
}
