/**
 * What files are read through, and local files.
 *
 * @module
 */
import { host, type ReadableFile } from "../host.ts";
import type { FetchOptions } from "./fetch.ts";
import type { ByteSource } from "./safetensors.ts";

/** Progress of downloading or loading, in bytes. */
export interface LoadProgress {
  /** `download` into the cache, or `weights` onto the device. */
  stage: "download" | "weights";
  /** The file or tensor being read. */
  file?: string;
  /** Bytes read so far, over all files. */
  done: number;
  /** Bytes of all files. */
  total: number;
  /** Bytes of the file that have arrived; set while files are downloaded. */
  fileDone?: number;
  /** Bytes of the file; undefined if the server does not say. */
  fileTotal?: number;
  /** Bytes of the file that an earlier download had left; set if it is resumed. */
  resumedFrom?: number;
}

/** Options for opening a checkpoint. */
export interface OpenOptions extends FetchOptions {
  onProgress?: (progress: LoadProgress) => void;
  /** Aborts opening, downloading and later reads. */
  signal?: AbortSignal;
  /** How matrices are quantised as they are read: a name such as `q4_k_m`. */
  quantize?: string;
}

/** A source that keeps a file open until it is disposed. */
export interface OpenSource extends ByteSource, AsyncDisposable {}

/**
 * Opens a local file; undefined if it does not exist.
 *
 * @param name of the file in errors
 */
export async function openFile(
  path: string,
  name: string = path,
): Promise<OpenSource | undefined> {
  const file = await host.files.open(path);
  return file && fileSource(file, name);
}

/**
 * Reads through an open file, which is closed when the source is disposed.
 *
 * @param shown what is read, for errors
 */
export function fileSource(
  file: ReadableFile,
  name: string,
  shown: string = name,
): OpenSource {
  return {
    name,
    size: file.size,
    async read(begin, into) {
      const count = await file.read(begin, into);
      if (count === into.length) return;
      throw new Error(
        `Cannot read ${shown}: it ends at byte ${begin + count}, must have ${
          begin + into.length
        }`,
      );
    },
    [Symbol.asyncDispose]: () => Promise.resolve(file[Symbol.dispose]()),
  };
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

/** The most bytes that a text file may have. Large tokenizers have 35 MB. */
export const MOST_TEXT = 2 ** 28;

/** The error for a text file that is too large. */
export function tooLong(where: string, size: number, most: number): Error {
  return new Error(
    `Cannot read ${where}: it has ${size} bytes, at most ${most} are allowed`,
  );
}

/**
 * Reads a text file whose size is bounded; undefined if it does not exist.
 *
 * @param name of the file in errors
 */
export async function readTextFile(
  path: string,
  name: string = path,
): Promise<string | undefined> {
  await using source = await openFile(path, name);
  if (source === undefined) return undefined;
  if (source.size > MOST_TEXT) throw tooLong(name, source.size, MOST_TEXT);
  const bytes = new Uint8Array(source.size);
  await source.read(0, bytes);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new Error(`Cannot read ${name}: it is not valid UTF-8`, { cause });
  }
}

const UNITS = ["B", "kB", "MB", "GB", "TB"];

/** Bytes in the unit that suits them: `1.23 GB`, `45.6 MB`, `789 kB`. */
export function bytesText(bytes: number): string {
  const { number, unit } = scaledBytes(bytes, bytes);
  return `${number} ${unit}`;
}

/** Bytes in the unit that suits `total`, with three digits of that. */
export function scaledBytes(
  bytes: number,
  total: number,
): { number: string; unit: string } {
  let unit = 0;
  for (; total >= 999.5 && unit < UNITS.length - 1; unit++) {
    [bytes, total] = [bytes / 1000, total / 1000];
  }
  const digits = unit === 0 ? 0 : total < 9.995 ? 2 : total < 99.95 ? 1 : 0;
  return { number: bytes.toFixed(digits), unit: UNITS[unit] };
}
