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
