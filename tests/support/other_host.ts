/** Hosts that stand in for other operating systems: their paths, folders and refusals. */
import { type Host, host, type HostFiles } from "../../lib/host.ts";

/** A host of another system with its own environment and this machine's files. */
export function hostOf(os: string, env: Record<string, string>): Host {
  return {
    ...host,
    runtime: { ...host.runtime, os },
    env: (name) => env[name] || undefined,
  };
}

/**
 * Windows with its files in a folder of this machine: `C:\a` and `C:/a` are `<folder>/C/a`,
 * `\\server\share` is `<folder>/server/share`. Links need a privilege that is not held,
 * and open files cannot be moved or removed.
 */
export function windowsHost(
  folder: string,
  env: Record<string, string>,
): Host {
  const open = new Map<string, number>();
  const real = (path: string) => {
    const slashes = path.replaceAll("\\", "/");
    const [, drive, rest] = /^([A-Za-z]):\/(.*)$/.exec(slashes) ??
      /^\/\/([^/]+)\/(.*)$/.exec(slashes) ?? [];
    if (drive === undefined) throw new Error(`Not a path of Windows: ${path}`);
    return `${folder}/${drive}/${rest}`;
  };
  const back = (path: string) => {
    const [drive, ...rest] = path.slice(folder.length + 1).split("/");
    const root = /^[A-Z]$/.test(drive) ? `${drive}:` : `\\\\${drive}`;
    return [root, ...rest].join("\\");
  };
  const busy = (path: string) => {
    if (open.get(real(path))) {
      throw new Error("The process cannot access the file (os error 32)");
    }
  };
  const tracked = <File extends Disposable>(path: string, file: File): File => {
    const change = (by: number) =>
      open.set(real(path), (open.get(real(path)) ?? 0) + by);
    change(1);
    const close = file[Symbol.dispose].bind(file);
    file[Symbol.dispose] = () => {
      change(-1);
      close();
    };
    return file;
  };
  const { files } = host;
  const windows: HostFiles = {
    ...files,
    currentFolder: () => "C:\\here",
    async find(path) {
      const text = `${path}`;
      const isAbsolute = /^([A-Za-z]:)?[/\\]/.test(text);
      const found = await files.find(
        real(isAbsolute ? text : `C:\\here\\${text}`),
      );
      return found && { ...found, path: back(found.path) };
    },
    readText: (path) => files.readText(real(path)),
    async open(path) {
      const file = await files.open(real(path));
      return file && tracked(path, file);
    },
    append: async (path) => tracked(path, await files.append(real(path))),
    writeText: (path, text) => files.writeText(real(path), text),
    makeFolder: (path) => files.makeFolder(real(path)),
    link: () =>
      Promise.reject(
        new Error(
          "A required privilege is not held by the client (os error 1314)",
        ),
      ),
    // deno-lint-ignore require-await
    async move(from, to) {
      busy(from);
      busy(to);
      return files.move(real(from), real(to));
    },
    copy: (from, to) => files.copy(real(from), real(to)),
    // deno-lint-ignore require-await
    async remove(path) {
      busy(path);
      return files.remove(real(path));
    },
    list: (path) => files.list(real(path)),
    // deno-lint-ignore require-await
    async removeFolder(path) {
      for (const [name, count] of open) {
        if (count > 0 && name.startsWith(`${real(path)}/`)) {
          throw new Error("The directory is not empty (os error 145)");
        }
      }
      return files.removeFolder(real(path));
    },
    freeSpace: (path) => files.freeSpace(real(path)),
    openLock: async (path) => tracked(path, await files.openLock(real(path))),
  };
  return { ...hostOf("windows", env), files: windows };
}
