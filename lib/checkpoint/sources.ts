/**
 * Reads byte ranges of files, local or over HTTP.
 *
 * @module
 */
import { errorText } from "../errors.ts";
import { host } from "../host.ts";
import { type FetchOptions, patientFetch, pause } from "./fetch.ts";
import type { ByteSource } from "./safetensors.ts";

/** Progress of downloading or loading, in bytes. */
export interface LoadProgress {
  /** `download` into the cache, or `weights` onto the device. */
  stage: "download" | "weights";
  /** The file or tensor being read. */
  file?: string;
  /** Bytes read so far, of everything. */
  done: number;
  /** Bytes of everything. */
  total: number;
  /** Bytes of the file that are there; set while files are downloaded. */
  fileDone?: number;
  /** Bytes of the file; undefined if the server does not say. */
  fileTotal?: number;
  /** Bytes of the file that an earlier download had left. */
  resumedFrom?: number;
}

/** Options for opening a checkpoint. */
export interface OpenOptions extends FetchOptions {
  onProgress?: (progress: LoadProgress) => void;
  /** Aborts opening, downloading and later reads. */
  signal?: AbortSignal;
}

/** A source that keeps a file open until it is disposed. */
export interface OpenSource extends ByteSource, AsyncDisposable {}

/** Maximum attempts to read a range. */
const TRIES = 4;

/** Opens a local file; undefined if it does not exist. */
export async function openFile(path: string): Promise<OpenSource | undefined> {
  const file = await host.files.open(path);
  if (file === undefined) return undefined;
  return {
    name: path,
    size: file.size,
    // deno-lint-ignore require-await
    async read(begin, into) {
      const count = file.read(begin, into);
      if (count === into.length) return;
      throw new Error(
        `Cannot read ${path}: it ends at byte ${begin + count}, must have ${
          begin + into.length
        }`,
      );
    },
    [Symbol.asyncDispose]: () => Promise.resolve(file[Symbol.dispose]()),
  };
}

/** Fetches a text file; undefined if the server does not have it (404, 410). */
export async function fetchText(
  url: string,
  options: OpenOptions,
): Promise<string | undefined> {
  const response = await request(url, {}, options);
  return response === undefined ? undefined : await response.text();
}

/**
 * Opens a file over HTTP; undefined if the server does not have it. The file is read
 * with range requests. If the server does not support them, the file is first
 * downloaded to a temporary file, which is removed when the source is disposed.
 */
export async function openUrl(
  url: string,
  options: OpenOptions,
): Promise<OpenSource | undefined> {
  const response = await request(url, { Range: "bytes=0-0" }, options);
  if (response === undefined) return undefined;
  if (response.status !== 206) return await copyToFile(url, response, options);
  await response.body?.cancel();
  const contentRange = response.headers.get("content-range");
  const size = Number(/\/(\d+)$/.exec(contentRange ?? "")?.[1]);
  if (Number.isNaN(size)) {
    throw new Error(
      `Cannot open ${url}: its content-range is ${contentRange}, must end with the size of the file`,
    );
  }
  return {
    name: url,
    size,
    read: (begin, into) => fetchRange(url, begin, into, options),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

async function fetchRange(
  url: string,
  begin: number,
  into: Uint8Array,
  options: OpenOptions,
) {
  let done = 0;
  for (let tries = 1; done < into.length; tries++) {
    const range = `${begin + done}-${begin + into.length - 1}`;
    const response = await request(url, { Range: `bytes=${range}` }, options);
    const answered = response?.headers.get("content-range");
    if (!answered?.startsWith(`bytes ${range}/`)) {
      await response?.body?.cancel();
      throw new Error(
        `Cannot read ${url}: asked for bytes ${range}, the server sent ${
          answered ?? "another file"
        }`,
      );
    }
    try {
      for await (const chunk of response!.body!) {
        into.set(chunk, done);
        done += chunk.length;
      }
      if (done < into.length) throw new Error("the connection ended");
    } catch (cause) { // the connection dropped: resume from there
      options.signal?.throwIfAborted();
      if (tries === TRIES) throw unreachable(url, cause);
      await pause(200 * 3 ** (tries - 1), options);
    }
  }
}

/** A successful response; undefined for 404 and 410. */
async function request(
  url: string,
  headers: Record<string, string>,
  options: OpenOptions,
): Promise<Response | undefined> {
  let response: Response;
  try {
    response = await patientFetch(options)(url, {
      // Compression would change sizes and ranges.
      headers: { ...headers, "Accept-Encoding": "identity" },
    });
  } catch (cause) {
    options.signal?.throwIfAborted();
    throw unreachable(url, cause);
  }
  if (response.ok) return response;
  await response.body?.cancel();
  if (response.status === 404 || response.status === 410) return undefined;
  throw new Error(
    `Cannot read ${url}: the server returned ${response.status} ${response.statusText}`,
  );
}

async function copyToFile(
  url: string,
  response: Response,
  { onProgress, signal }: OpenOptions,
): Promise<OpenSource> {
  const total = Number(response.headers.get("content-length") ?? 0);
  const path = await host.files.createTemporary("checkpoint-");
  try {
    using file = await host.files.append(path);
    let done = 0;
    for await (const chunk of response.body ?? []) {
      await file.append(chunk);
      done += chunk.length;
      onProgress?.({
        stage: "download",
        file: url,
        done,
        total: Math.max(total, done),
      });
    }
  } catch (cause) {
    await host.files.remove(path);
    signal?.throwIfAborted();
    throw unreachable(url, cause);
  }
  const copy = (await openFile(path))!;
  return {
    name: url,
    size: copy.size,
    read: copy.read,
    async [Symbol.asyncDispose]() {
      await copy[Symbol.asyncDispose]();
      await host.files.remove(path);
    },
  };
}

function unreachable(url: string, cause: unknown): Error {
  return new Error(`Cannot read ${url}: ${errorText(cause)}`, { cause });
}

/** @throws {RangeError} if a tensor of `byteLength` bytes does not have the requested range. */
export function checkRange(
  name: string,
  byteLength: number | undefined,
  begin: number,
  count: number,
) {
  if (byteLength !== undefined && begin >= 0 && begin + count <= byteLength) {
    return;
  }
  throw new RangeError(
    `Cannot read bytes ${begin} to ${begin + count} of tensor ${name}: ` +
      (byteLength === undefined
        ? "there is no such tensor"
        : `it has ${byteLength} bytes`),
  );
}
