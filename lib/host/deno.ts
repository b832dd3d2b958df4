/**
 * The host for Deno: the only file of the library that uses the `Deno` namespace.
 * host.ts selects it and type-checks it against the `Host` interface.
 *
 * @module
 */

/** The `Host` implementation for Deno. */
export const denoHost = {
  get runtime(): { name: string; version: string; os: string } {
    return { name: "Deno", version: Deno.version.deno, os: Deno.build.os };
  },
  env: (name: string): string | undefined => Deno.env.get(name) || undefined,
  setEnv: (name: string, value: string): void => Deno.env.set(name, value),
  isGranted(
    name: "env" | "read" | "write" | "sys" | "import",
    of?: string | URL,
  ): boolean {
    const text = of?.toString();
    const descriptor = name === "env"
      ? { name, variable: text }
      : name === "read" || name === "write"
      ? { name, path: of }
      : name === "sys"
      ? { name, kind: text }
      : { name, host: text };
    return Deno.permissions.querySync(descriptor as Deno.PermissionDescriptor)
      .state === "granted";
  },
  freeMemory: (): number => Deno.systemMemoryInfo().available,
  async createHash(algorithm: "sha1" | "sha256") {
    // Imported here, because other runtimes load this file too.
    const { createHash } = await import("node:crypto");
    const hash = createHash(algorithm);
    return {
      update(bytes: Uint8Array): void {
        hash.update(bytes);
      },
      hex: (): string => hash.digest("hex"),
    };
  },
  files: {
    currentFolder: (): string => Deno.cwd(),
    find: (path: string | URL) =>
      unlessAbsent(async () => {
        const real = await Deno.realPath(path);
        const { isDirectory, size } = await Deno.stat(real);
        return { path: real, isDirectory, size };
      }),
    readText: (path: string): Promise<string | undefined> =>
      unlessAbsent(() => Deno.readTextFile(path)),
    open: (path: string) => unlessAbsent(() => openToRead(path)),
    append: openToAppend,
    async writeText(path: string, text: string): Promise<void> {
      const end = Deno.build.os === "windows"
        ? Math.max(path.lastIndexOf("/"), path.lastIndexOf("\\"))
        : path.lastIndexOf("/");
      if (end > 0) await Deno.mkdir(path.slice(0, end), { recursive: true });
      const unfinished = `${path}.${crypto.randomUUID()}`;
      try {
        {
          using file = await openToAppend(unfinished);
          await file.append(new TextEncoder().encode(text));
          await file.flush();
        }
        await Deno.rename(unfinished, path);
      } catch (error) {
        await unlessAbsent(() => Deno.remove(unfinished));
        throw error;
      }
    },
    openTemporary,
    makeFolder: (path: string): Promise<void> =>
      Deno.mkdir(path, { recursive: true }),
    link(target: string, path: string): Promise<void> {
      // Windows does not follow a link whose target has slashes.
      const native = Deno.build.os === "windows"
        ? target.replaceAll("/", "\\")
        : target;
      return Deno.symlink(native, path, { type: "file" });
    },
    move: (from: string, to: string): Promise<void> => Deno.rename(from, to),
    copy: (from: string, to: string): Promise<void> => Deno.copyFile(from, to),
    async remove(path: string): Promise<void> {
      await unlessAbsent(() => Deno.remove(path));
    },
    list: (path: string) =>
      unlessAbsent(async () => {
        const entries = new Map<
          string,
          { isDirectory: boolean; size: number }
        >();
        for await (const { name, isDirectory } of Deno.readDir(path)) {
          const size = isDirectory ? 0 : await sizeOf(`${path}/${name}`);
          if (size !== undefined) entries.set(name, { isDirectory, size });
        }
        return entries;
      }),
    async removeFolder(path: string): Promise<void> {
      await unlessAbsent(() => Deno.remove(path, { recursive: true }));
    },
    async freeSpace(path: string): Promise<number | undefined> {
      try {
        // Imported here, because other runtimes load this file too.
        const { statfs } = await import("node:fs/promises");
        const { bavail, bsize } = await statfs(path);
        return bavail * bsize;
      } catch { // no such call on this system
        return undefined;
      }
    },
    openLock,
  },
};

/**
 * Returns the result of `body`, or undefined if it fails because a file does not exist.
 */
async function unlessAbsent<T>(
  body: () => Promise<T>,
): Promise<T | undefined> {
  try {
    return await body();
  } catch (error) {
    const absent = error instanceof Deno.errors.NotFound ||
      error instanceof Deno.errors.NotADirectory;
    if (absent) return undefined;
    throw error;
  }
}

/** The size of a file, not of what it links to; undefined if it is gone. */
async function sizeOf(path: string): Promise<number | undefined> {
  return await unlessAbsent(async () => (await Deno.lstat(path)).size);
}

async function openToRead(path: string) {
  // Opening a pipe would wait for its other end; a folder opens and cannot be read.
  if (!(await Deno.stat(path)).isFile) {
    throw new Error(`Cannot read ${path}: it is not a regular file`);
  }
  const file = await Deno.open(path);
  const { size } = await file.stat();
  return {
    size,
    read: (begin: number, into: Uint8Array) => readAt(file, begin, into),
    [Symbol.dispose]: () => file[Symbol.dispose](),
  };
}

/** Fills `into` from byte `begin`; returns how many bytes there were. */
function readAt(file: Deno.FsFile, begin: number, into: Uint8Array): number {
  file.seekSync(begin, Deno.SeekMode.Start);
  let done = 0;
  while (done < into.length) {
    const count = file.readSync(into.subarray(done));
    if (count === null) break;
    done += count;
  }
  return done;
}

async function openToAppend(path: string) {
  const file = await Deno.open(path, { write: true, create: true });
  let { size } = await file.stat();
  await file.seek(size, Deno.SeekMode.Start);
  return {
    get size(): number {
      return size;
    },
    async append(bytes: Uint8Array): Promise<void> {
      for (let done = 0; done < bytes.length;) {
        const count = await file.write(bytes.subarray(done));
        done += count;
        size += count;
      }
    },
    async clear(): Promise<void> {
      await file.truncate(0);
      await file.seek(0, Deno.SeekMode.Start);
      size = 0;
    },
    flush: (): Promise<void> => file.sync(),
    [Symbol.dispose]: () => file[Symbol.dispose](),
  };
}

// deno-lint-ignore require-await
async function openTemporary(prefix: string) {
  // Synchronous, so that no signal arrives between creating the file and removing it.
  const path = Deno.makeTempFileSync({ prefix });
  const file = Deno.openSync(path, { read: true, write: true });
  const remove = removeOpen(path);
  let size = 0;
  return {
    get size(): number {
      return size;
    },
    async append(bytes: Uint8Array): Promise<void> {
      file.seekSync(size, Deno.SeekMode.Start);
      for (let done = 0; done < bytes.length;) {
        done += await file.write(bytes.subarray(done));
      }
      size += bytes.length;
    },
    async clear(): Promise<void> {
      await file.truncate(0);
      size = 0;
    },
    read: (begin: number, into: Uint8Array) => readAt(file, begin, into),
    [Symbol.dispose](): void {
      file[Symbol.dispose]();
      remove();
    },
  };
}

/**
 * Removes a file that is open, which keeps its content until it is closed; even a killed
 * process leaves nothing. Where the system refuses that, the file is removed by the
 * returned function or at the end of the process.
 */
function removeOpen(path: string): () => void {
  try {
    Deno.removeSync(path);
    return () => {};
  } catch {
    const remove = () => {
      removeEventListener("unload", remove);
      try {
        Deno.removeSync(path);
      } catch { /* somebody cleans up the folder too */ }
    };
    addEventListener("unload", remove);
    return remove;
  }
}

async function openLock(path: string) {
  const file = await Deno.open(path, { write: true, create: true });
  return {
    tryLock: (): Promise<boolean> => file.tryLock(true),
    [Symbol.dispose]: () => file[Symbol.dispose](),
  };
}
