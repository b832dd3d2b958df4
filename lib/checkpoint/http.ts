/**
 * Files of an HTTP folder. Weights are read with range requests (RFC 9110, 14), each of
 * which is compared with the first answer, so that a file that changes is noticed.
 *
 * @module
 */
import { errorText } from "../errors.ts";
import { host } from "../host.ts";
import { fetchOnce, retry, shownUrl, TemporaryFailure } from "./fetch.ts";
import { pageKind, weightsKind } from "./file_kind.ts";
import { MOST_TEXT, type OpenOptions, type OpenSource } from "./sources.ts";

/** Bytes that a short response must have to be worth another request. */
const SHORT_ANSWER = 1 << 16;

const LOST = "the server no longer has it (404)";

/** Fetches a text file; undefined if the server does not have it (404, 410). */
export async function fetchText(
  url: string,
  options: OpenOptions,
): Promise<string | undefined> {
  return await reading(url, options, async () => {
    const response = await get(url, {}, options);
    if (response === undefined) return undefined;
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
    return text;
  });
}

/**
 * Opens a file over HTTP; undefined if the server does not have it. The file is read
 * with range requests. If the server does not support them, the file is first copied to
 * a temporary file, which is gone when the source is disposed or the process ends.
 *
 * @param onCopy called with what the server does instead of sending ranges
 */
export async function openUrl(
  url: string,
  options: OpenOptions,
  onCopy: (why: string) => void = () => {},
): Promise<OpenSource | undefined> {
  const first = await reading(url, options, () => probe(url, options));
  if (first === undefined || "read" in first) return first;
  return await copyToFile(url, first.whole, options, () => onCopy(first.why));
}

/** How a server responds to reads of one file. */
interface Version {
  size?: number;
  etag?: string;
  modified?: string;
}

/** Asks for the first byte, and finds out whether the server sends ranges. */
async function probe(
  url: string,
  options: OpenOptions,
): Promise<OpenSource | { why: string; whole?: Response } | undefined> {
  const response = await get(url, { Range: "bytes=0-0" }, options);
  if (response === undefined) return undefined;
  const { status } = response;
  const whole = { why: "it answered with the whole file", whole: response };
  if (status === 200) return whole;
  await response.body?.cancel();
  const { range, size } = contentRange(response);
  const encoding = encodingOf(response);
  const empty = status === 416 && size === 0;
  if (status === 206 && encoding !== undefined) {
    return { why: `it sent Content-Encoding ${encoding}` };
  }
  if (!empty && (status !== 206 || range !== "0-0" || size === undefined)) {
    return { why: `to bytes 0-0 it answered ${described(response)}` };
  }
  const file = new RangedFile(url, versionOf(response, size), options);
  return {
    name: shownUrl(url),
    size: size!,
    read: (begin, into) => file.read(begin, into),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
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
    const { etag, modified } = version;
    // A weak tag never matches here (RFC 9110, 13.1.5).
    this.#condition = etag?.startsWith("W/") ? modified : etag ?? modified;
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
  return {
    name,
    size: file.size,
    // deno-lint-ignore require-await
    async read(begin, into) {
      const count = file.read(begin, into);
      if (count === into.length) return;
      throw new Error(
        `Cannot read the copy of ${name}: it ends at byte ${
          begin + count
        }, must have ${begin + into.length}`,
      );
    },
    // deno-lint-ignore require-await
    [Symbol.asyncDispose]: async () => file[Symbol.dispose](),
  };
}

function unwritable(cause: unknown): never {
  throw new Error(
    `its temporary copy cannot be written: ${errorText(cause)}`,
  );
}

/** @throws {Error} if a copy cannot be a file of weights, by its first bytes. */
function checkBegin(chunk: Uint8Array, encoding: string | undefined): void {
  refuseKind(weightsKind(chunk));
  if (encoding !== undefined && !/^(x-)?gzip$/.test(encoding)) {
    throw compressed(encoding);
  }
}

/** Retries `attempt` while that may help; its errors become errors about the URL. */
async function reading<T>(
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
    throw new Error(`Cannot read ${where}: ${errorText(error)}`);
  }
}

/**
 * A response with content: 200, or 206 or 416 if a range was requested. Undefined for 404
 * and 410.
 */
async function get(
  url: string,
  headers: Record<string, string>,
  options: OpenOptions,
): Promise<Response | undefined> {
  const response = await fetchOnce(url, {
    // Compression would change sizes and ranges.
    headers: { ...headers, "Accept-Encoding": "identity" },
  }, options);
  const { status } = response;
  const ranged = "Range" in headers && (status === 206 || status === 416);
  if (status === 200 || ranged) return response;
  await response.body?.cancel();
  if (status === 404 || status === 410) return undefined;
  throw new Error(`the server returned ${statusOf(response)}`);
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

/** The size and range in Content-Range, as `0-9`; empty if it has another form. */
function contentRange({ headers }: Response): { range: string; size?: number } {
  const text = headers.get("content-range") ?? "";
  const [, range, size] =
    /^bytes (\d+-\d+|\*)\/(?:(\d+)|\*)$/i.exec(text.trim()) ??
      [];
  return { range: range ?? "", size: size ? Number(size) : undefined };
}

function versionOf(response: Response, size?: number): Version {
  const { status, headers } = response;
  const whole = status === 200 && encodingOf(response) === undefined;
  return {
    size: size ?? (whole ? lengthOf(response) : undefined),
    etag: headers.get("etag") ?? undefined,
    modified: headers.get("last-modified") ?? undefined,
  };
}

/** What distinguishes two versions of a file, as far as both say. */
function difference(before: Version, now: Version): string | undefined {
  const differs = <T>(a: T | undefined, b: T | undefined) =>
    a !== undefined && b !== undefined && a !== b;
  const strong = (tag?: string) => tag?.replace(/^W\//, "");
  const changes: string[] = [];
  if (differs(before.size, now.size)) {
    changes.push(`its size was ${before.size} bytes and is ${now.size}`);
  }
  if (differs(strong(before.etag), strong(now.etag))) {
    changes.push(`its ETag was ${before.etag} and is ${now.etag}`);
  }
  // With tags, times add nothing: copies of a file may have other times.
  const tagged = before.etag !== undefined && now.etag !== undefined;
  if (!tagged && differs(before.modified, now.modified)) {
    changes.push(
      `its Last-Modified was ${before.modified} and is ${now.modified}`,
    );
  }
  return changes.length > 0 ? changes.join(", ") : undefined;
}

/** A response in a few words, for errors. */
function described(response: Response): string {
  const { status, headers } = response;
  if (status === 200) return "the whole file";
  if (status !== 206) return statusOf(response);
  const encoding = encodingOf(response);
  const range = headers.get("content-range") ?? headers.get("content-type") ??
    "206 without Content-Range";
  return encoding === undefined
    ? range
    : `${range} with Content-Encoding ${encoding}`;
}

function statusOf({ status, statusText }: Response): string {
  return `${status} ${statusText}`.trim();
}

function encodingOf({ headers }: Response): string | undefined {
  const encoding = headers.get("content-encoding")?.trim().toLowerCase();
  return encoding === "" || encoding === "identity" ? undefined : encoding;
}

function lengthOf({ headers }: Response): number | undefined {
  const length = headers.get("content-length");
  return length === null ? undefined : Number(length);
}
