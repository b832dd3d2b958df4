/**
 * Parses untrusted JSON.
 *
 * @module
 */
import { errorText, printable } from "./errors.ts";

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

/** The most characters of a value in an error. */
const SHOWN = 100;

/** A parsed value as JSON, for an error: shortened, without control characters. */
export function shownJson(value: unknown): string {
  const text = typeof value === "number"
    ? String(value) // JSON has no Infinity, but 1e999 reads as one
    : printable(JSON.stringify(shallow(value)));
  return text.length <= SHOWN ? text : `${text.slice(0, SHOWN - 1)}…`;
}

/** As much of a value as can be shown. */
function shallow(value: unknown): unknown {
  if (typeof value === "string") return value.slice(0, SHOWN);
  if (Array.isArray(value)) return value.slice(0, SHOWN);
  return value;
}
