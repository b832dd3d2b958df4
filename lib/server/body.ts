/**
 * Reads the bodies of requests, which may be large, slow, or not JSON.
 *
 * @module
 */
import { described, errorText } from "../errors.ts";
import { isObject } from "../json.ts";
import { ApiError, CANNOT } from "./errors.ts";

/** Bounds on a body. */
export interface BodyLimits {
  /** Bytes. */
  most: number;
  /** Milliseconds from the first byte to the last. */
  milliseconds: number;
}

/**
 * Reads the JSON object in a request's body, and counts its bytes.
 *
 * @throws {ApiError} 413 if it is too large, 408 if it takes too long, 400 if it is not
 * UTF-8 or not a JSON object.
 */
export async function readJsonBody(
  request: Request,
  limits: BodyLimits,
): Promise<{ json: Record<string, unknown>; bytes: number }> {
  const bytes = await readBytes(request, limits);
  if (bytes.length === 0) {
    throw wrong("the body is empty, must be a JSON object");
  }
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw wrong("the body is not UTF-8");
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw wrong(`the body is not valid JSON (${errorText(error)})`);
  }
  if (isObject(json)) return { json, bytes: bytes.length };
  throw wrong(`the body is ${described(json)}, must be a JSON object`);
}

function wrong(problem: string): ApiError {
  return new ApiError(400, `${CANNOT}: ${problem}`);
}

async function readBytes(
  request: Request,
  { most, milliseconds }: BodyLimits,
): Promise<Uint8Array> {
  const tooLarge = (bytes: number | string) =>
    new ApiError(
      413,
      `${CANNOT}: the body has ${bytes} bytes, must have at most ${most}`,
      { code: "request_too_large" },
    );
  const declared = request.headers.get("content-length");
  if (declared !== null && Number(declared) > most) throw tooLarge(declared);
  if (request.body === null) return new Uint8Array();
  const reader = request.body.getReader();
  const late = Promise.withResolvers<never>();
  late.promise.catch(() => {}); // the body may be complete
  const timer = setTimeout(() => {
    late.reject(
      new ApiError(
        408,
        `${CANNOT}: the body was not complete after ${
          milliseconds / 1000
        } s, must be faster`,
        { code: "body_timeout" },
      ),
    );
  }, milliseconds);
  const chunks: Uint8Array[] = [];
  let bytes = 0, complete = false;
  try {
    for (;;) {
      const { done, value } = await Promise.race([reader.read(), late.promise]);
      if (done) break;
      chunks.push(value);
      bytes += value.length;
      if (bytes > most) throw tooLarge(`more than ${most}`);
    }
    complete = true;
  } catch (error) {
    if (error instanceof ApiError) throw error;
    throw wrong(`the body broke off after ${bytes} bytes`);
  } finally {
    clearTimeout(timer);
    if (!complete) reader.cancel().catch(() => {});
  }
  if (chunks.length === 1) return chunks[0];
  const all = new Uint8Array(bytes);
  let at = 0;
  for (const chunk of chunks) {
    all.set(chunk, at);
    at += chunk.length;
  }
  return all;
}
