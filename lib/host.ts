/**
 * What the product needs from its runtime apart from JavaScript and WebGPU:
 * environment, files and free memory. Everything that is Deno's own goes through here,
 * so that another runtime needs one more file like host_deno.ts.
 *
 * @module
 */
import { denoHost } from "./host_deno.ts";

/** The runtime, as the rest of the product sees it. */
export interface Host {
  readonly runtime: Runtime;
  /** An environment variable; undefined where it is unset or empty. */
  env(name: string): string | undefined;
  setEnv(name: string, value: string): void;
  /** Whether a permission is granted already; does not ask the user. */
  isGranted(permission: "env" | "read" | "import", of?: string | URL): boolean;
  /** Bytes of main memory that are free; undefined where the runtime does not report it. */
  freeMemory(): number | undefined;
  /** @throws {Error} if the runtime has no files. */
  readonly files: HostFiles;
}

/** The runtime's name and version, and the operating system. */
export interface Runtime {
  readonly name: string;
  readonly version: string;
  readonly os: string;
}

/** The file system. Paths use `/`. */
export interface HostFiles {
  /** The folder that relative paths start from. */
  currentFolder(): string;
  /** What is at a path, with links resolved; undefined where there is nothing. */
  find(
    path: string | URL,
  ): Promise<{ path: string; isDirectory: boolean } | undefined>;
  /** The text of a file; undefined where there is none. */
  readText(path: string): Promise<string | undefined>;
  /** Opens a file to read from it; undefined where there is none. */
  open(path: string): Promise<ReadableFile | undefined>;
  /** Opens a file to append to it, and creates it where there is none. */
  append(path: string): Promise<AppendableFile>;
  /** Writes a whole file at once, and the folders that it needs. */
  writeText(path: string, text: string): Promise<void>;
  /** Creates an empty file that nothing else uses; returns its path. */
  createTemporary(prefix: string): Promise<string>;
  makeFolder(path: string): Promise<void>;
  /** Makes `path` a symbolic link to a file. */
  link(target: string, path: string): Promise<void>;
  move(from: string, to: string): Promise<void>;
  /** Removes a file; does nothing where there is none. */
  remove(path: string): Promise<void>;
  /** A file that one process at a time can lock; the lock ends with its disposal. */
  openLock(path: string): Promise<FileLock>;
}

/** A file open for reading. */
export interface ReadableFile extends Disposable {
  readonly size: number;
  /**
   * Reads bytes from `begin` on; returns how many, fewer than asked for at the end.
   * Synchronous: as fast as asynchronous reads, and two reads cannot interleave.
   */
  read(begin: number, into: Uint8Array): number;
}

/** A file open at its end. */
export interface AppendableFile extends Disposable {
  /** Its size when it was opened. */
  readonly size: number;
  append(bytes: Uint8Array): Promise<void>;
  /** Drops what the file has so far. */
  clear(): Promise<void>;
}

/** A lock file, not locked yet. */
export interface FileLock extends Disposable {
  /** Locks it; false while another process has the lock. */
  tryLock(): Promise<boolean>;
}

/** For a runtime that is not Deno: models come by http(s), or are synthetic. */
const bareHost: Host = {
  runtime: { name: "not Deno", version: "", os: "" },
  env: () => undefined,
  setEnv: () => {},
  isGranted: () => false,
  freeMemory: () => undefined,
  get files(): HostFiles {
    throw new Error(
      "Cannot use files: this runtime is not Deno, models must be synthetic:qwen3-… or from a server with ranges",
    );
  },
};

/** The runtime that this module was loaded into. */
export const host: Host = "Deno" in globalThis ? denoHost : bareHost;
