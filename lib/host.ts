/**
 * What the library needs from its runtime apart from JavaScript and WebGPU: environment
 * variables, files and free memory. All Deno-specific code sits behind this interface,
 * so supporting another runtime takes one more file like host_deno.ts.
 *
 * @module
 */
import { denoHost } from "./host_deno.ts";

/** The runtime, as the rest of the library sees it. */
export interface Host {
  readonly runtime: Runtime;
  /** Reads an environment variable; undefined if it is unset or empty. */
  env(name: string): string | undefined;
  setEnv(name: string, value: string): void;
  /** Whether a permission has already been granted. Never prompts the user. */
  isGranted(permission: "env" | "read" | "import", of?: string | URL): boolean;
  /** Free main memory in bytes; undefined if the runtime does not report it. */
  freeMemory(): number | undefined;
  /** Starts a hash of bytes that arrive in pieces. */
  createHash(algorithm: "sha1" | "sha256"): Promise<StreamingHash>;
  /** @throws {Error} if the runtime has no file system. */
  readonly files: HostFiles;
}

/** The runtime's name and version, and the operating system. */
export interface Runtime {
  readonly name: string;
  readonly version: string;
  readonly os: string;
}

/** A hash of the bytes so far. */
export interface StreamingHash {
  update(bytes: Uint8Array): void;
  /** Ends the hash; returns it in hexadecimal. */
  hex(): string;
}

/**
 * File system access. Paths that the library builds use `/`, which every system takes;
 * paths from the user may have `\` on Windows.
 */
export interface HostFiles {
  /** The folder that relative paths are resolved against. */
  currentFolder(): string;
  /** Looks up a path and resolves links; undefined if it does not exist. */
  find(path: string | URL): Promise<FoundFile | undefined>;
  /** Reads a text file; undefined if it does not exist. */
  readText(path: string): Promise<string | undefined>;
  /** Opens a file for reading; undefined if it does not exist. */
  open(path: string): Promise<ReadableFile | undefined>;
  /** Opens a file for appending; creates it if it does not exist. */
  append(path: string): Promise<AppendableFile>;
  /** Writes a whole file atomically and to the disk; creates its folder if needed. */
  writeText(path: string, text: string): Promise<void>;
  /** Creates a temporary file, which is gone when it is disposed or the process ends. */
  openTemporary(prefix: string): Promise<TemporaryFile>;
  makeFolder(path: string): Promise<void>;
  /**
   * Makes `path` a symbolic link to a file. Windows refuses it without the privilege,
   * Deno without unscoped permissions.
   */
  link(target: string, path: string): Promise<void>;
  move(from: string, to: string): Promise<void>;
  copy(from: string, to: string): Promise<void>;
  /** Removes a file; does nothing if it does not exist. */
  remove(path: string): Promise<void>;
  /**
   * Opens a file that one process at a time can lock; disposing it releases the lock.
   */
  openLock(path: string): Promise<FileLock>;
}

/** A file or folder that exists, with links resolved. */
export interface FoundFile {
  path: string;
  isDirectory: boolean;
  /** In bytes. */
  size: number;
}

/** A file open for reading. */
export interface ReadableFile extends Disposable {
  readonly size: number;
  /**
   * Reads bytes starting at `begin`; returns how many, which is fewer than requested
   * only at the end of the file. Synchronous, because that is as fast as asynchronous
   * reads and two reads cannot interleave.
   */
  read(begin: number, into: Uint8Array): number;
}

/** A file open for appending. */
export interface AppendableFile extends Disposable {
  /** Size in bytes, with what was appended; after an error, what the disk took. */
  readonly size: number;
  append(bytes: Uint8Array): Promise<void>;
  /** Truncates the file to zero bytes. */
  clear(): Promise<void>;
  /** Returns when the bytes are on the disk. */
  flush(): Promise<void>;
}

/** A temporary file, open for appending and reading; its size grows. */
export interface TemporaryFile
  extends ReadableFile, Omit<AppendableFile, "flush"> {
  readonly size: number;
}

/** An open lock file, initially unlocked. */
export interface FileLock extends Disposable {
  /** Tries to take the lock; false if another process holds it. */
  tryLock(): Promise<boolean>;
}

const NO_FILES =
  "Cannot use files: this runtime is not Deno, models must be synthetic or served with HTTP ranges";

/** For runtimes other than Deno, where models are read over HTTP(S) or synthetic. */
const bareHost: Host = {
  runtime: { name: "not Deno", version: "", os: "" },
  env: () => undefined,
  setEnv: () => {},
  isGranted: () => false,
  freeMemory: () => undefined,
  createHash() {
    throw new Error(NO_FILES);
  },
  get files(): HostFiles {
    throw new Error(NO_FILES);
  },
};

/** The host of the current runtime. */
export let host: Host = "Deno" in globalThis ? denoHost : bareHost;

/** Replaces the host until disposed, by another runtime or a fake of another system. */
export function useHost(other: Host): Disposable {
  const before = host;
  host = other;
  return {
    [Symbol.dispose]() {
      host = before;
    },
  };
}

/**
 * Why a worker cannot start without a permission prompt or a printed error; undefined if
 * it can.
 */
export function workerRefusal(url: URL): string | undefined {
  if (host.runtime.name !== "Deno") return undefined;
  const isLocal = url.protocol === "file:";
  const granted = isLocal
    ? host.isGranted("read", url)
    : host.isGranted("import", url.host);
  if (granted) return undefined;
  const [kind, flag] = isLocal
    ? ["read", "--allow-read"]
    : ["import", "--allow-import"];
  return `Deno has no ${kind} permission for ${url}, run it with ${flag}`;
}

/**
 * The user's home folder as the system defines it; undefined if the environment does not
 * say.
 */
export function homeFolder(): string | undefined {
  const { env, runtime: { os } } = host;
  return os === "windows" ? env("USERPROFILE") ?? env("HOME") : env("HOME");
}
