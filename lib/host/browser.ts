/**
 * The host for web pages and their workers. Its only files are those of the page's own,
 * private file system (OPFS), where the cache is; their paths begin with `opfs:/`.
 * host.ts selects it and type-checks it against the `Host` interface.
 *
 * Sources: the File System Standard (https://fs.spec.whatwg.org/) and the Web Locks API
 * (https://w3c.github.io/web-locks/).
 *
 * @module
 */

/** A file of OPFS. */
interface FileHandle {
  readonly kind: "file";
  getFile(): Promise<File>;
  /** Not in the standard, but all engines have it in OPFS. */
  move(folder: FolderHandle, name: string): Promise<void>;
}

/** A folder of OPFS. */
interface FolderHandle {
  readonly kind: "directory";
  getFileHandle(name: string, options?: Creation): Promise<FileHandle>;
  getDirectoryHandle(name: string, options?: Creation): Promise<FolderHandle>;
  removeEntry(name: string, options?: { recursive: boolean }): Promise<void>;
  entries(): AsyncIterable<[string, FileHandle | FolderHandle]>;
}

interface Creation {
  create: boolean;
}

/** What Deno's types of `navigator` lack. */
interface PageNavigator {
  storage?: {
    getDirectory?(): Promise<FolderHandle>;
    estimate(): Promise<{ quota?: number; usage?: number }>;
  };
  locks?: {
    request(
      name: string,
      options: { ifAvailable: true },
      whileHeld: (lock: unknown) => Promise<void> | undefined,
    ): Promise<void>;
  };
}

const page = globalThis.navigator as unknown as PageNavigator | undefined;

/** Whether this is a web page or a worker of one. */
export const isBrowser: boolean = !("Deno" in globalThis) &&
  ("document" in globalThis || "WorkerGlobalScope" in globalThis);

const ROOT = "opfs:/";

/** The `Host` implementation for browsers. */
export const browserHost = {
  runtime: { name: "a browser", version: "", os: "" },
  env: (): undefined => undefined,
  setEnv(): void {},
  isGranted: (): boolean => true,
  freeMemory: (): undefined => undefined,
  get base(): string {
    // A worker made of a blob has no other URL that anything can be relative to.
    return globalThis.location.href.replace(/^blob:/, "");
  },
  cacheFolder: `${ROOT}qwen3-webgpu`,
  // deno-lint-ignore require-await
  async createHash(algorithm: "sha1" | "sha256") {
    // Only small files are hashed here, and browsers hash nothing piece by piece.
    let parts: Uint8Array<ArrayBuffer>[] = [];
    return {
      update(bytes: Uint8Array): void {
        parts.push(bytes.slice());
      },
      async hex(): Promise<string> {
        const data = await new Blob(parts).arrayBuffer();
        parts = [];
        const name = algorithm === "sha1" ? "SHA-1" : "SHA-256";
        const hash = new Uint8Array(await crypto.subtle.digest(name, data));
        return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0"))
          .join("");
      },
    };
  },
  files: {
    currentFolder: (): string => ROOT,
    find: (path: string | URL) =>
      unlessAbsent(async () => {
        const found = await entryAt(`${path}`);
        const isDirectory = found.kind === "directory";
        const size = isDirectory ? 0 : (await found.getFile()).size;
        return { path: `${path}`, isDirectory, size };
      }),
    readText: (path: string): Promise<string | undefined> =>
      unlessAbsent(async () => (await (await fileAt(path)).getFile()).text()),
    open: (path: string) =>
      unlessAbsent(async () => readable(await (await fileAt(path)).getFile())),
    append: openToAppend,
    async writeText(path: string, text: string): Promise<void> {
      await folderAt(split(path).slice(0, -1), true);
      const unfinished = `${path}.${crypto.randomUUID()}`;
      try {
        {
          using file = await openToAppend(unfinished);
          await file.append(new TextEncoder().encode(text));
          await file.flush();
        }
        await move(unfinished, path);
      } catch (error) {
        await remove(unfinished);
        throw error;
      }
    },
    openTemporary,
    async makeFolder(path: string): Promise<void> {
      await folderAt(split(path), true);
    },
    link: (): Promise<void> => Promise.reject(new Error("OPFS has no links")),
    move,
    async copy(from: string, to: string): Promise<void> {
      const file = await (await fileAt(from)).getFile();
      using output = await openToAppend(to);
      await output.clear();
      for await (const chunk of file.stream()) await output.append(chunk);
      await output.flush();
    },
    remove: (path: string): Promise<void> => remove(path),
    list: (path: string) =>
      unlessAbsent(async () => {
        const folder = await folderAt(split(path), false);
        const entries = new Map<
          string,
          { isDirectory: boolean; size: number }
        >();
        for await (const [name, entry] of folder.entries()) {
          const isDirectory = entry.kind === "directory";
          // Another page may have removed it since.
          const size = isDirectory
            ? 0
            : await unlessAbsent(async () => (await entry.getFile()).size);
          if (size !== undefined) entries.set(name, { isDirectory, size });
        }
        return entries;
      }),
    removeFolder: (path: string): Promise<void> => remove(path, true),
    async freeSpace(): Promise<number | undefined> {
      const { quota, usage } = await page!.storage!.estimate();
      return quota === undefined ? undefined : quota - (usage ?? 0);
    },
    openLock,
  },
};

/** The names on the way to a file or folder. */
function split(path: string): string[] {
  if (!path.startsWith(ROOT)) {
    throw new Error(
      `Cannot use ${path}: a web page has no files of this machine, models come from an http(s) URL`,
    );
  }
  return path.slice(ROOT.length).split("/").filter((name) => name !== "");
}

async function folderAt(
  names: readonly string[],
  create: boolean,
): Promise<FolderHandle> {
  await closing;
  if (page?.storage?.getDirectory === undefined) {
    throw new Error(
      (globalThis as { isSecureContext?: boolean }).isSecureContext
        ? "this browser has no private file system (OPFS)"
        : "the page is not secure, OPFS needs https:// or localhost",
    );
  }
  let folder = await page.storage.getDirectory();
  for (const name of names) {
    folder = await folder.getDirectoryHandle(name, { create });
  }
  return folder;
}

async function fileAt(path: string): Promise<FileHandle> {
  const names = split(path), name = names.pop()!;
  return await (await folderAt(names, false)).getFileHandle(name);
}

async function entryAt(path: string): Promise<FileHandle | FolderHandle> {
  try {
    return await fileAt(path);
  } catch (error) {
    if (
      !(error instanceof DOMException) || error.name !== "TypeMismatchError"
    ) {
      throw error;
    }
    return await folderAt(split(path), false);
  }
}

/** The result of `body`, or undefined if it fails because a file does not exist. */
async function unlessAbsent<T>(
  body: () => Promise<T>,
): Promise<T | undefined> {
  try {
    return await body();
  } catch (error) {
    const absent = error instanceof DOMException &&
      /^(NotFound|TypeMismatch)Error$/.test(error.name);
    if (absent) return undefined;
    throw error;
  }
}

async function remove(path: string, recursive = false): Promise<void> {
  await unlessAbsent(async () => {
    const names = split(path), name = names.pop()!;
    await (await folderAt(names, false)).removeEntry(name, { recursive });
  });
}

async function move(from: string, to: string): Promise<void> {
  const names = split(to), name = names.pop()!;
  const folder = await folderAt(names, false);
  await (await fileAt(from)).move(folder, name);
}

/** Reads a file through a snapshot, which fails if it has changed since. */
function readable(file: Blob) {
  return {
    size: file.size,
    read: (begin: number, into: Uint8Array) => readBlob(file, begin, into),
    [Symbol.dispose](): void {},
  };
}

async function readBlob(
  blob: Blob,
  begin: number,
  into: Uint8Array,
): Promise<number> {
  const part = blob.slice(begin, begin + into.length);
  const bytes = new Uint8Array(await part.arrayBuffer());
  into.set(bytes);
  return bytes.length;
}

/** What a writer is asked, one thing at a time. */
interface Request {
  open?: string[];
  append?: Uint8Array;
  clear?: true;
  flush?: true;
  close?: true;
}

/** What it answers. */
interface Answer {
  size: number;
  error?: string;
}

/** The closing of files that were disposed. */
let closing: Promise<unknown> = Promise.resolve();

/** The page's worker that writes; it has a port for each open file. */
let writer: Promise<Worker> | undefined;

/** Starts a worker whose script is the text of {@linkcode write}. */
function startWriter(): Promise<Worker> {
  const script = new Blob([`(${write})()`], { type: "text/javascript" });
  const url = URL.createObjectURL(script);
  return new Promise<Worker>((resolve, reject) => {
    const worker = new Worker(url);
    worker.onmessage = () => resolve(worker);
    worker.onerror = (event) => {
      event.preventDefault();
      // A page's security policy may forbid such workers.
      reject(new Error(event.message || "a worker made of a blob fails"));
    };
  }).finally(() => URL.revokeObjectURL(url));
}

/**
 * Opens a file for appending. Only a worker can write a file of OPFS in place, so that a
 * page that is closed in the middle of a download keeps what it has.
 */
async function openToAppend(path: string) {
  const names = split(path);
  await folderAt(names.slice(0, -1), false);
  const worker = await (writer ??= startWriter());
  const { port1: port, port2 } = new MessageChannel();
  worker.postMessage(0, [port2]);
  let size = 0;
  const ask = (request: Request) =>
    new Promise<void>((resolve, reject) => {
      port.onmessage = ({ data }: MessageEvent<Answer>) => {
        size = data.size;
        if (data.error === undefined) resolve();
        else reject(new Error(data.error));
      };
      port.postMessage(request);
    });
  const close = () => {
    const closed = ask({ close: true }).finally(() => port.close());
    closing = Promise.all([closing, closed]);
  };
  try {
    await ask({ open: names });
  } catch (error) {
    close();
    throw error;
  }
  return {
    get size(): number {
      return size;
    },
    append: (bytes: Uint8Array): Promise<void> => ask({ append: bytes }),
    clear: (): Promise<void> => ask({ clear: true }),
    flush: (): Promise<void> => ask({ flush: true }),
    [Symbol.dispose]: close,
  };
}

/** A file that is open in a worker. */
interface AccessHandle {
  getSize(): number;
  write(bytes: Uint8Array, options: { at: number }): number;
  truncate(size: number): void;
  flush(): void;
  close(): void;
}

/** The part of a worker's scope that is used here. */
interface WorkerScope {
  onmessage: (event: MessageEvent) => void;
  postMessage(ready: 0): void;
}

/** What the worker runs: nothing from outside this function exists there. */
function write(): void {
  const scope = globalThis as unknown as WorkerScope;
  scope.onmessage = ({ ports: [port] }) => {
    let file: AccessHandle | undefined;
    port.onmessage = async ({ data }: MessageEvent<Request>) => {
      let error: string | undefined;
      try {
        if (data.open !== undefined) {
          // deno-lint-ignore no-explicit-any
          let folder = await (navigator as any).storage.getDirectory();
          for (const name of data.open.slice(0, -1)) {
            folder = await folder.getDirectoryHandle(name);
          }
          const name = data.open.at(-1), create = true;
          const handle = await folder.getFileHandle(name, { create });
          file = await handle.createSyncAccessHandle();
        }
        const bytes = data.append ?? new Uint8Array();
        for (let done = 0; done < bytes.length;) {
          const at = file!.getSize();
          file!.write(bytes.subarray(done), { at });
          // Where the quota ends, Chromium returns an error's code as a count of bytes.
          const count = file!.getSize() - at;
          if (count <= 0) throw new DOMException("", "QuotaExceededError");
          done += count;
        }
        if (data.clear) file!.truncate(0);
        if (data.flush) file!.flush();
      } catch (cause) {
        const { name, message } = cause as Error;
        error = name === "QuotaExceededError"
          ? "the browser's storage for this site is full (QuotaExceededError)"
          : name === "NoModificationAllowedError"
          ? "another page or worker writes it"
          : message;
      }
      const size = data.close ? 0 : file?.getSize() ?? 0;
      if (data.close) file?.close();
      port.postMessage({ size, error });
    };
  };
  scope.postMessage(0);
}

/** Bytes of a temporary file that are kept in this thread. */
const PART_BYTES = 1 << 24;

/** A temporary file: a blob, which a browser moves to the disk when it is large. */
// deno-lint-ignore require-await
async function openTemporary() {
  let blob = new Blob(), parts: Uint8Array<ArrayBuffer>[] = [], size = 0;
  const whole = () => {
    blob = new Blob([blob, ...parts]);
    parts = [];
    return blob;
  };
  return {
    get size(): number {
      return size;
    },
    // deno-lint-ignore require-await
    async append(bytes: Uint8Array): Promise<void> {
      parts.push(bytes.slice());
      size += bytes.length;
      if (size - blob.size >= PART_BYTES) whole();
    },
    // deno-lint-ignore require-await
    async clear(): Promise<void> {
      blob = new Blob();
      parts = [];
      size = 0;
    },
    read: (begin: number, into: Uint8Array) => readBlob(whole(), begin, into),
    [Symbol.dispose](): void {
      blob = new Blob();
      parts = [];
    },
  };
}

// deno-lint-ignore require-await
async function openLock(path: string) {
  let release: (() => void) | undefined;
  return {
    tryLock: (): Promise<boolean> =>
      new Promise((resolve, reject) => {
        if (page?.locks === undefined) throw new Error("there are no locks");
        const asked = page.locks.request(
          `qwen3-webgpu ${path}`,
          { ifAvailable: true },
          (lock) => {
            resolve(lock !== null);
            if (lock === null) return undefined;
            return new Promise((done) => release = done);
          },
        );
        asked.catch(reject);
      }),
    [Symbol.dispose](): void {
      release?.();
    },
  };
}
