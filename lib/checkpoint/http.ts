/**
 * Files of a web folder. Weights are read with range requests (RFC 9110, 14), each of
 * which is compared with the first answer, so that a file that changes is noticed.
 *
 * @module
 */
import { errorText } from "../errors.ts";
import { host } from "../host.ts";
import {
  fetchOnce,
  retry,
  shownUrl,
  TemporaryFailure,
  Unreachable,
} from "./fetch.ts";
import { isGguf, pageKind, weightsKind } from "./file_kind.ts";
import {
  contentRange,
  described,
  difference,
  encodingOf,
  isKnown,
  lengthOf,
  resumeCondition,
  statusOf,
  type Version,
  versionOf,
} from "./http_answer.ts";
import {
  fileSource,
  MOST_TEXT,
  type OpenOptions,
  type OpenSource,
} from "./sources.ts";

/** Bytes that a short response must have to be worth another request. */
const SHORT_ANSWER = 1 << 16;

/** What a server says if a file that it had is gone. */
const LOST = "the server no longer has it (404)";

/** A server's answer to a request for a text file. */
export interface TextAnswer {
  /** The text; undefined if it is that of the known version. */
  text?: string;
  version: Version;
  headers: Headers;
}

/**
 * Asks for a text file, but not for a version that is known already; undefined if the
 * server does not have it (404, 410).
 *
 * @throws {Unreachable} if the server cannot be reached
 */
export async function askForText(
  url: string,
  options: OpenOptions,
  known: Version = {},
): Promise<TextAnswer | undefined> {
  return await reading(url, options, async () => {
    const same = await sameDate(url, known, options);
    if (same !== undefined) return same;
    const response = await get(url, conditions(known), options);
    if (response === undefined) return undefined;
    const { headers } = response, version = versionOf(response);
    if (isKnown(response, known, version)) {
      await response.body?.cancel();
      return { version, headers };
    }
    let text = "", bytes = 0;
    const decoder = decoderOf(response);
    for await (const chunk of content(response)) {
      bytes += chunk.length;
      if (bytes > MOST_TEXT) {
        throw new Error(
          `it has over ${MOST_TEXT} bytes, at most ${MOST_TEXT} are allowed`,
        );
      }
      text += decoder(chunk);
    }
    text += decoder();
    refuseKind(pageKind(text.slice(0, 1000)));
    return { text, version, headers };
  });
}

/**
 * What a file is read through after an answer: ranges or, if the server does not send
 * them, a temporary copy, which is gone when the source is disposed or the process ends.
 * Undefined if its version is known.
 *
 * @param onCopy called with what the server does instead of sending ranges
 */
export async function sourceOf(
  url: string,
  answer: Probe,
  options: OpenOptions,
  onCopy: (why: string) => void = () => {},
): Promise<OpenSource | undefined> {
  if ("file" in answer) return answer.file;
  if ("isKnown" in answer) return undefined;
  const { whole, why } = answer;
  return await copyToFile(url, whole, options, () => onCopy(why));
}

/** A server's answer to a request for the first byte of a file. */
export type Probe =
  & { version: Version; headers: Headers }
  & (
    /** It sends ranges. */
    | { file: OpenSource }
    /** It does not, but what `why` says; `whole` is an answer with the whole file. */
    | { why: string; whole?: Response }
    /** It has the known version. */
    | { isKnown: true }
  );

/**
 * Asks for the first byte of a file, and finds out whether the server sends ranges;
 * undefined if it does not have the file.
 *
 * @param known a version about which nothing is asked but whether it is still that
 * @throws {Unreachable} if the server cannot be reached
 */
export async function probe(
  url: string,
  options: OpenOptions,
  known: Version = {},
): Promise<Probe | undefined> {
  return await reading(url, options, async () => {
    const same = await sameDate(url, known, options);
    if (same !== undefined) return { ...same, isKnown: true };
    const range = { Range: "bytes=0-0" };
    const response = await get(
      url,
      { ...range, ...conditions(known) },
      options,
    );
    if (response === undefined) return undefined;
    const { status, headers } = response;
    const { range: sent, size } = contentRange(response);
    const version = versionOf(response, size);
    const said = { version, headers };
    if (isKnown(response, known, version)) {
      await response.body?.cancel();
      return { ...said, isKnown: true };
    }
    if (status === 200) {
      const why = "it answered with the whole file";
      return { ...said, why, whole: response };
    }
    await response.body?.cancel();
    const encoding = encodingOf(response);
    const empty = status === 416 && size === 0;
    if (status === 206 && encoding !== undefined) {
      return { ...said, why: `it sent Content-Encoding ${encoding}` };
    }
    if (!empty && (status !== 206 || sent !== "0-0" || size === undefined)) {
      return {
        ...said,
        why: `to bytes 0-0 it answered ${described(response)}`,
      };
    }
    const file = new RangedFile(url, version, options);
    return {
      ...said,
      file: {
        name: shownUrl(url),
        size: size!,
        read: (begin, into) => file.read(begin, into),
        [Symbol.asyncDispose]: () => Promise.resolve(),
      },
    };
  });
}

/** Headers that ask for a file unless it still has a known version. */
function conditions({ etag }: Version): Record<string, string> {
  return etag === undefined ? {} : { "If-None-Match": etag };
}

/**
 * What the server says about a version that is known by its date only, if it still has
 * that. To If-Modified-Since, some servers answer 304 for any file with an older date,
 * such as that of another model, so dates are compared here.
 */
async function sameDate(
  url: string,
  known: Version,
  options: OpenOptions,
): Promise<{ version: Version; headers: Headers } | undefined> {
  if (known.modified === undefined || known.etag !== undefined) {
    return undefined;
  }
  try {
    const response = await get(url, {}, options, "HEAD");
    if (response === undefined) return undefined;
    const { headers } = response, version = versionOf(response);
    return isKnown(response, known, version) ? { version, headers } : undefined;
  } catch (error) {
    const isAway = error instanceof TemporaryFailure &&
      (error.noConnection || error.silent);
    if (isAway) throw error;
    return undefined; // it may not know HEAD: GET shows what is wrong
  }
}

/**
 * The rest of a file, from byte `begin`; the whole file, with `begin` 0, if it cannot be
 * resumed there.
 *
 * @param version that the file must have
 * @param whole an answer with the whole file, if there is one already
 */
export async function restOf(
  url: string,
  version: Version,
  from: number,
  options: OpenOptions,
  whole?: Response,
): Promise<{ begin: number; rest: AsyncIterable<Uint8Array> }> {
  // What was sent compressed is not resumed.
  const condition = version.size && resumeCondition(version);
  const begin = condition ? from : 0;
  const headers: Record<string, string> = begin === 0
    ? {}
    : { Range: `bytes=${begin}-`, "If-Range": `${condition}` };
  const response = whole ?? await get(url, headers, options);
  if (response === undefined) throw new Error(LOST);
  const { range, size } = contentRange(response);
  const changed = difference(version, versionOf(response, size));
  const isRest = response.status === 206 &&
    encodingOf(response) === undefined &&
    range.startsWith(`${begin}-`);
  if (changed === undefined && (isRest || response.status === 200)) {
    const rest = content(response);
    return isRest
      ? { begin, rest }
      : { begin: 0, rest: checked(rest, encodingOf(response)) };
  }
  await response.body?.cancel();
  throw new Error(
    changed === undefined
      ? `asked for bytes ${begin}-, the server sent ${described(response)}`
      : `it changed while it was read: ${changed}`,
  );
}

/** A file that is read by range, as long as it does not change. */
class RangedFile {
  /** Makes the server send a changed file whole instead of a range of it. */
  #condition?: string;

  constructor(
    readonly url: string,
    readonly version: Version,
    readonly options: OpenOptions,
  ) {
    this.#condition = resumeCondition(version) ?? version.modified;
  }

  async read(begin: number, into: Uint8Array): Promise<void> {
    let done = 0;
    await reading(this.url, this.options, async () => {
      while (done < into.length) {
        const before = done;
        for await (
          const chunk of this.#range(begin + done, begin + into.length - 1)
        ) {
          into.set(chunk, done);
          done += chunk.length;
        }
        if (done < into.length && done - before < SHORT_ANSWER) {
          throw new TemporaryFailure(
            `asked for ${into.length - before} bytes, the server sent ${
              done - before
            }`,
          );
        }
      }
    }, () => done);
  }

  /** The bytes from `begin` to `end`, inclusive, or as many of them as the server sends. */
  async *#range(begin: number, end: number): AsyncIterable<Uint8Array> {
    const asked = `${begin}-${end}`;
    const response = await get(this.url, {
      Range: `bytes=${asked}`,
      ...(this.#condition && { "If-Range": this.#condition }),
    }, this.options);
    if (response === undefined) throw new Error(LOST);
    const { status } = response;
    const { range, size } = contentRange(response);
    const changed = difference(this.version, versionOf(response, size));
    const [, from, to] = /^(\d+)-(\d+)$/.exec(range) ?? [];
    const fits = status === 206 && Number(from) === begin &&
      Number(to) >= begin && Number(to) <= end &&
      encodingOf(response) === undefined;
    if (changed !== undefined || !fits) await response.body?.cancel();
    if (changed !== undefined) {
      throw new Error(`it changed while it was read: ${changed}`);
    }
    if (!fits) {
      const answer = `asked for bytes ${asked}, the server sent ${
        described(response)
      }`;
      if (status !== 200) throw new Error(answer);
      // It may consider the condition unmet; every response is compared anyway.
      this.#condition = undefined;
      throw new TemporaryFailure(answer);
    }
    const length = Number(to) - begin + 1;
    let sent = 0;
    for await (const chunk of content(response)) {
      sent += chunk.length;
      if (sent > length) {
        throw new Error(
          `asked for bytes ${asked}, the server sent more than these ${length}`,
        );
      }
      yield chunk;
    }
  }
}

/**
 * Copies a file to a temporary one.
 *
 * @param whole a response with the whole file, if there is one already
 * @param onBegin called when the file begins to arrive
 */
async function copyToFile(
  url: string,
  whole: Response | undefined,
  options: OpenOptions,
  onBegin: () => void,
): Promise<OpenSource> {
  const name = shownUrl(url), { signal } = options;
  const file = await reading(url, options, async () => {
    return await host.files.openTemporary("checkpoint-").catch(unwritable);
  });
  try {
    await reading(url, options, async () => {
      await file.clear();
      const response = whole ?? await get(url, {}, options);
      whole = undefined;
      if (response === undefined) throw new Error(LOST);
      const encoding = encodingOf(response);
      const fileTotal = encoding ? undefined : lengthOf(response);
      for await (const chunk of content(response)) {
        if (file.size === 0) {
          checkBegin(chunk, encoding);
          onBegin();
        }
        await file.append(chunk).catch(unwritable);
        options.onProgress?.({
          stage: "download",
          file: name,
          done: file.size,
          total: Math.max(fileTotal ?? 0, file.size),
          fileDone: file.size,
          fileTotal,
        });
      }
    });
  } catch (error) {
    file[Symbol.dispose]();
    signal?.throwIfAborted();
    throw error;
  }
  return fileSource(file, name, `the copy of ${name}`);
}

function unwritable(cause: unknown): never {
  throw new Error(
    `its temporary copy cannot be written: ${errorText(cause)}`,
  );
}

/** A file of weights, which is refused if it cannot be one by its first bytes. */
async function* checked(
  chunks: AsyncIterable<Uint8Array>,
  encoding: string | undefined,
): AsyncIterable<Uint8Array> {
  let isFirst = true;
  for await (const chunk of chunks) {
    if (isFirst) checkBegin(chunk, encoding);
    isFirst = false;
    yield chunk;
  }
}

/** @throws {Error} if a copy cannot be a file of weights, by its first bytes. */
function checkBegin(chunk: Uint8Array, encoding: string | undefined): void {
  if (!isGguf(chunk)) refuseKind(weightsKind(chunk));
  if (encoding !== undefined && !/^(x-)?gzip$/.test(encoding)) {
    throw compressed(encoding);
  }
}

/** Retries `attempt` while that may help; its errors become errors about the URL. */
export async function reading<T>(
  url: string,
  options: OpenOptions,
  attempt: () => Promise<T>,
  progress?: () => number,
): Promise<T> {
  const where = shownUrl(url);
  try {
    return await retry(where, attempt, options, progress);
  } catch (error) {
    options.signal?.throwIfAborted();
    const message = `Cannot read ${where}: ${errorText(error)}`;
    if (!(error instanceof Unreachable)) throw new Error(message);
    throw new Unreachable(message, error.noConnection);
  }
}

/**
 * A response with content: 200, or 206 or 416 if a range was requested, or 304 if there
 * was a condition. Undefined for 404 and 410.
 */
async function get(
  url: string,
  conditional: Record<string, string>,
  options: OpenOptions,
  method: "GET" | "HEAD" = "GET",
): Promise<Response | undefined> {
  const headers = allowed(url, conditional);
  const response = await fetchOnce(url, {
    method,
    cache: "no-store", // the versions that are kept are kept elsewhere
    // Compression would change sizes and ranges.
    headers: { ...headers, "Accept-Encoding": "identity" },
  }, options);
  const { status } = response;
  const ranged = "Range" in headers && (status === 206 || status === 416);
  const unchanged = status === 304 && "If-None-Match" in headers;
  if (status === 200 || ranged || unchanged) return response;
  await response.body?.cancel();
  if (status === 404 || status === 410) return undefined;
  throw new Error(`the server returned ${statusOf(response)}`);
}

/**
 * The headers that a page may send to a URL. Of other origins only a range, for which no
 * server has to be asked first (https://fetch.spec.whatwg.org/#cors-safelisted-request-header);
 * without conditions it sends what is there, and answers are compared anyway.
 */
function allowed(
  url: string,
  headers: Record<string, string>,
): Record<string, string> {
  const { base } = host;
  const isOther = base !== undefined &&
    new URL(url).origin !== new URL(base).origin;
  if (!isOther) return headers;
  return "Range" in headers ? { Range: headers.Range } : {};
}

/**
 * The content of a response, decompressed if necessary. It is complete when this ends
 * without an error, if the server gave its length.
 *
 * @throws {TemporaryFailure} if there is less
 */
async function* content(response: Response): AsyncIterable<Uint8Array> {
  if (response.body === null) return;
  const reader = response.body.getReader();
  const encoding = encodingOf(response), length = lengthOf(response);
  const first = await reader.read();
  // Some runtimes decompress on their own, and leave the headers as they were.
  const isPacked = /^(x-)?gzip$/.test(encoding ?? "") &&
    first.value?.[0] === 0x1f;
  const sent = async function* () {
    let received = 0;
    try {
      for (let next = first; !next.done; next = await reader.read()) {
        received += next.value.length;
        yield next.value as Uint8Array<ArrayBuffer>;
      }
    } finally {
      await reader.cancel().catch(() => {});
    }
    const comparable = encoding === undefined || isPacked;
    if (length !== undefined && comparable && received < length) {
      throw new TemporaryFailure(
        `the connection ended after ${received} of ${length} bytes`,
      );
    }
  };
  yield* isPacked
    ? ReadableStream.from(sent()).pipeThrough(new DecompressionStream("gzip"))
    : sent();
}

/** Decodes the text of a response, chunk by chunk, and its end without a chunk. */
function decoderOf(response: Response): (chunk?: Uint8Array) => string {
  const encoding = encodingOf(response);
  const decoder = new TextDecoder("utf-8", { fatal: true });
  return (chunk) => {
    try {
      return decoder.decode(chunk, { stream: chunk !== undefined });
    } catch {
      throw encoding
        ? compressed(encoding)
        : new Error("it is not valid UTF-8");
    }
  };
}

/** @throws {Error} if this is recognisably not the file. */
function refuseKind(kind: string | undefined): void {
  if (kind !== undefined) {
    throw new Error(`it is ${kind}, must be the file itself`);
  }
}

function compressed(encoding: string): Error {
  return new Error(
    `the server sent it with Content-Encoding ${encoding}, must send it unencoded`,
  );
}
