/**
 * What the library needs from its runtime apart from JavaScript and WebGPU: environment
 * variables, files and free memory. All Deno-specific code sits behind this interface,
 * so supporting another runtime takes one more file in host/.
 *
 * @module
 */
import { browserHost, isBrowser } from "./host/browser.ts";
import { denoHost } from "./host/deno.ts";

/** The runtime, as the rest of the library sees it. */
export interface Host {
  readonly runtime: Runtime;
  /** Reads an environment variable; undefined if it is unset or empty. */
  env(name: string): string | undefined;
  setEnv(name: string, value: string): void;
  /** Whether a permission has already been granted. Never prompts the user. */
  isGranted(permission: Permission, of?: string | URL): boolean;
  /** Free main memory in bytes; undefined if the runtime does not report it. */
  freeMemory(): number | undefined;
  /** Starts a hash of bytes that arrive in pieces. */
  createHash(algorithm: "sha1" | "sha256"): Promise<StreamingHash>;
  /** @throws {Error} if the runtime has no file system. */
  readonly files: HostFiles;
  /** The URL that relative URLs refer to, in a page; elsewhere such names are paths. */
  readonly base?: string;
  /** The folder for what this library caches, unless the environment says it. */
  readonly cacheFolder?: string;
}

/** A permission that a runtime may withhold. */
export type Permission = "env" | "read" | "write" | "sys" | "import";

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
  hex(): string | Promise<string>;
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
  /** What is in a folder, by name; undefined if it does not exist. */
  list(path: string): Promise<Map<string, ListedEntry> | undefined>;
  /** Removes a folder with all that is in it; does nothing if it does not exist. */
  removeFolder(path: string): Promise<void>;
  /** Bytes that the disk of a folder has left; undefined if that is unknown. */
  freeSpace(path: string): Promise<number | undefined>;
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

/** A file or folder in a folder. */
export interface ListedEntry {
  isDirectory: boolean;
  /** In bytes; of a folder, 0. */
  size: number;
}

/** A file open for reading. */
export interface ReadableFile extends Disposable {
  readonly size: number;
  /**
   * Reads bytes starting at `begin`; returns how many, which is fewer than requested
   * only at the end of the file. Synchronous where possible, because that is as fast as
   * asynchronous reads and two reads cannot interleave; a page can only wait.
   */
  read(begin: number, into: Uint8Array): number | Promise<number>;
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
  "Cannot use files: this runtime has none, models must be synthetic or served with HTTP ranges";

/** For unknown runtimes, where models are read over HTTP(S) or synthetic. */
const bareHost: Host = {
  runtime: { name: "an unknown runtime", version: "", os: "" },
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
export let host: Host = "Deno" in globalThis
  ? denoHost
  : isBrowser
  ? browserHost
  : bareHost;

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
 * The URL of a file of this project, by its path. A bundle has its own files where mod.ts
 * has them: `deno bundle --outdir` lays them out like that.
 *
 * @param module the `import.meta.url` of `own`
 * @param own where that is in the project, unless it was bundled
 * @param path of a file or folder, without the extension of a script
 */
export function projectUrl(module: string, own: string, path: string): URL {
  const { pathname } = new URL(module);
  const isSource = pathname.endsWith(`/${own}.ts`);
  const up = isSource ? "../".repeat(own.split("/").length - 1) : "./";
  const extension = path.endsWith("/") ? "" : isSource ? ".ts" : ".js";
  return new URL(up + path + extension, module);
}

/**
 * Why a worker cannot start without a permission prompt or a printed error; undefined if
 * it can.
 */
export function workerRefusal(url: URL): string | undefined {
  if (typeof Worker === "undefined") {
    return `${host.runtime.name} has no Worker`;
  }
  if (
    (globalThis as { crossOriginIsolated?: boolean }).crossOriginIsolated ===
      false
  ) {
    return "the page is not cross-origin isolated (COOP and COEP headers), so threads share no memory";
  }
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

/** Environment variable that replaces the folder for what this library caches. */
export const CACHE_DIR = "QWEN3_CACHE_DIR";

/**
 * The folder for what this library caches, below the user's cache directory.
 *
 * @throws {Error} if the environment does not say where that is
 */
export function ownCacheFolder(): string {
  const { env, runtime: { os } } = host;
  const given = env(CACHE_DIR) ?? host.cacheFolder;
  if (given) return given;
  const home = homeFolder();
  const below = (path: string) => home && `${home}/${path}`;
  const cache = env("XDG_CACHE_HOME") ??
    (os === "windows"
      ? env("LOCALAPPDATA") ?? below("AppData/Local")
      : below(os === "darwin" ? "Library/Caches" : ".cache"));
  if (cache) return `${cache}/qwen3-webgpu`;
  throw new Error(
    `Cannot find the cache directory: ${
      os === "windows" ? "LOCALAPPDATA" : "HOME"
    } is not set, set it or ${CACHE_DIR}`,
  );
}

/** The first hexadecimal digits of a text's SHA-256, for names of files. */
export async function textHash(text: string, digits = 16): Promise<string> {
  const data = new TextEncoder().encode(text);
  if (crypto.subtle === undefined) {
    throw new Error("the page is not secure, it must be https:// or localhost");
  }
  const digest = await crypto.subtle.digest("SHA-256", data);
  return [...new Uint8Array(digest)]
    .map((byte) => byte.toString(16).padStart(2, "0")).join("").slice(
      0,
      digits,
    );
}
