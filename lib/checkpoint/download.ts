/**
 * Downloads to files that survive what goes wrong: the beginning of a file is kept and
 * resumed, and one process at a time writes it.
 *
 * @module
 */
import { errorText } from "../errors.ts";
import { type AppendableFile, host } from "../host.ts";
import { pause, TemporaryFailure } from "./fetch.ts";
import type { OpenOptions } from "./sources.ts";

/** How often a lock is tried, and how often waiting for it is announced. */
const LOCK_MS = 200;
const LOCK_NOTICE_MS = 30_000;

/** A response whose bytes cannot follow those in a file. */
export class WrongAnswer extends Error {}

/** The file cannot be written: another request would not help. */
export class DiskFailure extends Error {}

/** A file being downloaded. */
export interface Piece {
  output: AppendableFile;
  /** Where `output` is. */
  path: string;
  /** Bytes of the whole file, if they are known. */
  size?: number;
}

/**
 * Appends the rest of a file.
 *
 * @param onBytes called with the number of bytes that were written
 * @throws {WrongAnswer} if there are more bytes than the file has
 * @throws {DiskFailure} if the disk takes no more
 * @throws {TemporaryFailure} if there are fewer
 */
export async function appendRest(
  { output, path, size }: Piece,
  rest: AsyncIterable<Uint8Array>,
  onBytes: (count: number) => void,
): Promise<void> {
  for await (const chunk of rest) {
    if (size !== undefined && output.size + chunk.length > size) {
      throw new WrongAnswer(`is longer than the ${size} bytes that are listed`);
    }
    const before = output.size;
    try {
      await output.append(chunk);
    } catch (cause) { // the disk is full
      const of = size === undefined ? "" : ` of ${size}`;
      throw new DiskFailure(
        `Cannot write ${path}: ${
          errorText(cause)
        }, at byte ${output.size}${of}`,
        { cause },
      );
    } finally {
      onBytes(output.size - before);
    }
  }
  if (size !== undefined && output.size < size) {
    throw new TemporaryFailure("the connection ended");
  }
}

/** Runs a step that writes, whose error may not name what could not be written. */
export async function written<T>(
  path: string,
  step: () => Promise<T>,
): Promise<T> {
  try {
    return await step();
  } catch (cause) {
    throw new DiskFailure(`Cannot write ${path}: ${errorText(cause)}`, {
      cause,
    });
  }
}

/**
 * Takes a lock, so that only one process downloads a file at a time; undefined if the
 * file system has no locks.
 *
 * @param path of the lock; its folder exists
 * @param file what is downloaded, for notices
 */
export async function takeLock(
  path: string,
  file: string,
  options: OpenOptions,
): Promise<Disposable | undefined> {
  const lock = await host.files.openLock(path);
  const since = performance.now();
  let announced = -Infinity;
  try {
    while (!await lock.tryLock()) {
      options.signal?.throwIfAborted();
      const waited = performance.now() - since;
      if (waited - announced >= LOCK_NOTICE_MS) {
        announced = waited;
        options.onNotice?.(
          `Waiting for another download of ${file}, which holds ${path}.`,
        );
      }
      await pause(LOCK_MS, options);
    }
  } catch (error) {
    lock[Symbol.dispose]();
    options.signal?.throwIfAborted();
    options.onNotice?.(
      `${path} cannot be locked (${
        errorText(error)
      }): ${file} is downloaded without a lock.`,
    );
    return undefined;
  }
  return lock;
}
