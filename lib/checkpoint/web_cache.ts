/**
 * Copies of files from web folders, in a folder below the user's cache directory for each
 * URL:
 *
 *     web/<host>-<hash of the URL>/index.json       what the server said about each file
 *     web/<host>-<hash of the URL>/<hash>-<file>    its content, by version
 *
 * The index is a record of what was there, never trusted: a copy that it does not
 * describe, or that differs from it, is fetched again. It has no secret: of user and
 * query there are only 16 bits of a hash.
 *
 * @module
 */
import { errorText } from "../errors.ts";
import {
  CACHE_DIR,
  host,
  ownCacheFolder,
  type Permission,
  textHash,
} from "../host.ts";
import { isObject } from "../json.ts";
import { shownUrl } from "./fetch.ts";
import type { Version } from "./http_answer.ts";
import { damage, hashOf, SMALL_BYTES } from "./hub_cache.ts";

/** What the folder depends on, and what else it does on Windows. */
const VARIABLES = [CACHE_DIR, "XDG_CACHE_HOME", "HOME"];
const ON_WINDOWS = ["LOCALAPPDATA", "USERPROFILE"];

/** The name of a folder of copies. */
const OWN_FOLDER = /^[a-z0-9.-]+-[0-9a-f]{16}$/i;
/** What may follow the name of a copy: a killed program leaves the first. */
const LEFT = /^(\.[0-9a-f-]{36})?(\.incomplete|\.lock)?$/;
const INDEX = "index.json";
const INDEX_VERSION = 1;
/** The most characters of an index: that of a folder with 1000 files has 200 kB. */
const MOST_INDEX = 1 << 24;
/** How often the lock of an index is tried, and for how long. */
const LOCK_MS = 10, MOST_LOCK_MS = 5_000;

/** What the server said about a file. */
export interface Kept extends Version {
  /** Hash of the version, which begins the copy's name; undefined if there is no file. */
  id?: string;
  /** SHA-256 of a small file. */
  sha256?: string;
  /** Files of one generation were on the server together. */
  generation: number;
  /** A hash of the user and the query that were last sent for it. */
  asked: string;
}

interface Index {
  /** Without user and query. */
  url: string;
  /** The date of the last use. */
  used: string;
  generation: number;
  files: Map<string, Kept>;
}

/** A kept web folder, for people. */
export interface KeptFolder {
  /** Without user and query; undefined if its index cannot be read. */
  url?: string;
  folder: string;
  /** In bytes, with what is left of downloads. */
  bytes: number;
  /** The date of the last use. */
  used?: string;
}

/** The folder of all copies. */
export function webCacheFolder(): string {
  return `${ownCacheFolder()}/web`;
}

/** The copies of one web folder. */
export class WebCache {
  /** Files whose version the server has confirmed since. */
  readonly #confirmed = new Set<string>();
  #changing: Promise<unknown> = Promise.resolve();

  private constructor(
    readonly folder: string,
    readonly url: string,
    readonly asked: string,
  ) {}

  /**
   * Opens the copies of a URL, whether there are any or not.
   *
   * @throws {Error} if this program may not keep copies, with the reason
   */
  static async open(base: URL): Promise<WebCache> {
    const { origin, pathname, host: server, search } = base;
    const { files: _ } = host; // throws where there are none
    const others = host.runtime.os === "windows" ? ON_WINDOWS : [];
    for (const name of [...VARIABLES, ...others]) require("env", name);
    const hash = await textHash(origin + pathname);
    const name = server.replaceAll(/[^a-z0-9.-]+/gi, "-").slice(0, 60);
    const folder = `${webCacheFolder()}/${name}-${hash}`;
    require("read", folder);
    require("write", folder);
    const secrets = [base.username, base.password, search].join("\n");
    // Too short to tell which of a list of passwords it was.
    const asked = await textHash(secrets, 4);
    return new WebCache(folder, shownUrl(origin + pathname), asked);
  }

  /** What is known of a file; undefined if nothing is. */
  async find(file: string): Promise<Kept | undefined> {
    const index = await this.#read(), kept = index?.files.get(file);
    // A date alone does not tell what two queries ask for.
    const isOther = kept?.asked !== this.asked && kept?.etag === undefined;
    return isOther ? undefined : kept;
  }

  /**
   * What is known of a file that may be used without asking the server.
   *
   * @throws {Error} if there is nothing, with the reason
   */
  async findOffline(file: string): Promise<Kept> {
    const index = await this.#read();
    const kept = index?.files.get(file);
    if (index === undefined || index.files.size === 0) {
      throw new Error("no copy is kept");
    }
    if (kept === undefined) throw new Error(`no copy of ${file} is kept`);
    if (kept.asked !== this.asked) {
      throw new Error("the copy is of another query or user");
    }
    if (kept.generation !== index.generation) {
      throw new Error("the copy is of several versions");
    }
    return kept;
  }

  /** Where the copy of a version is. */
  pathOf(file: string, { id }: Pick<Kept, "id">): string {
    return `${this.folder}/${id}-${flat(file)}`;
  }

  /** The copy's path; undefined, and forgotten, if it is gone or damaged. */
  async copyOf(
    file: string,
    kept: Kept,
    onNotice?: (notice: string) => void,
    signal?: AbortSignal,
  ): Promise<string | undefined> {
    const path = this.pathOf(file, kept);
    const found = await host.files.find(path);
    const listed = { size: kept.size!, blobId: "", sha256: kept.sha256 };
    const problem = found && await damage(path, found, listed, signal);
    if (found !== undefined && problem === undefined) return path;
    if (problem !== undefined) {
      onNotice?.(`${path} ${problem}: downloading it again.`);
    }
    await this.forget(file, kept, false);
  }

  /** Notes that the server still has a version. */
  async confirm(file: string): Promise<void> {
    this.#confirmed.add(file);
    const index = await this.#read();
    const kept = index?.files.get(file);
    const isNoted = kept?.generation === index?.generation &&
      kept?.asked === this.asked && index?.used === today();
    if (isNoted) return;
    await this.#change((index) => {
      const { generation, files } = index, kept = files.get(file);
      if (kept) files.set(file, { ...kept, generation, asked: this.asked });
    });
  }

  /** Notes that the server does not have a file. */
  async setAbsent(file: string): Promise<void> {
    const files = (await this.#read())?.files ?? new Map<string, Kept>();
    // Nothing is noted about folders of which there is no file.
    if (![...files.values()].some(({ id }) => id !== undefined)) return;
    const before = files.get(file);
    if (before !== undefined && before.id === undefined) {
      return await this.confirm(file);
    }
    await this.#set(file, {});
  }

  /** The name of a version in the names of its copies. */
  static async idOf({ etag, modified, size }: Version): Promise<string> {
    return await textHash(JSON.stringify([etag, modified, size]), 8);
  }

  /** Keeps a text. */
  async setText(file: string, text: string, version: Version): Promise<void> {
    const id = await WebCache.idOf(version);
    await host.files.writeText(this.pathOf(file, { id }), text);
    await this.setCopy(file, version, id);
  }

  /** Notes that a version's copy is complete. */
  async setCopy(file: string, version: Version, id: string): Promise<void> {
    const path = this.pathOf(file, { id });
    using copy = await host.files.open(path);
    if (copy === undefined) throw new Error(`${path} is gone`);
    const { size } = copy;
    const sha256 = size <= SMALL_BYTES
      ? await hashOf(copy, await host.createHash("sha256"))
      : undefined;
    await this.#set(file, { ...version, id, size, sha256 });
  }

  /**
   * Forgets a version of a file, unless another program has noted another one since.
   *
   * @param isChanged whether the server has another version, so that copies of other files
   * may not fit it; the copy is removed
   */
  async forget(
    file: string,
    { id }: Pick<Kept, "id">,
    isChanged: boolean,
  ): Promise<void> {
    await this.#change((index) => {
      if (index.files.get(file)?.id !== id) return;
      index.files.delete(file);
      if (isChanged) this.#begin(index);
    });
    // A damaged copy is replaced: another program may be doing that now.
    if (isChanged) await this.#remove(`${id}-${flat(file)}`);
  }

  /** Begins a generation, which the confirmed files are part of. */
  #begin(index: Index): void {
    const generation = ++index.generation;
    for (const file of this.#confirmed) {
      const kept = index.files.get(file);
      if (kept) index.files.set(file, { ...kept, generation });
    }
  }

  async #set(
    file: string,
    kept: Omit<Kept, "generation" | "asked">,
  ): Promise<void> {
    await this.#change((index) => {
      const before = index.files.get(file);
      if (before !== undefined && before.id !== kept.id) this.#begin(index);
      const { generation } = index;
      index.files.set(file, { ...kept, generation, asked: this.asked });
    });
    this.#confirmed.add(file);
    await this.#removeCopies(file, kept.id);
  }

  /** Removes the copies of a file, whole or not, but not those of version `id`. */
  async #removeCopies(file: string, id?: string): Promise<void> {
    const copy = flat(file);
    for (const name of (await host.files.list(this.folder))?.keys() ?? []) {
      const [, own, rest = ""] = /^([0-9a-f]{8})-(.*)$/.exec(name) ?? [];
      const isCopy = rest.startsWith(copy) &&
        LEFT.test(rest.slice(copy.length));
      if (!isCopy || own === id) continue;
      await this.#remove(name);
    }
  }

  async #remove(name: string): Promise<void> {
    // Windows does not remove what another program reads: next time.
    await host.files.remove(`${this.folder}/${name}`).catch(() => {});
  }

  async #read(): Promise<Index | undefined> {
    return await readIndex(this.folder);
  }

  /** Changes the index, one program and one call at a time. */
  async #change(change: (index: Index) => void): Promise<void> {
    const before = this.#changing;
    const changing = (async () => {
      await before.catch(() => {});
      await host.files.makeFolder(this.folder);
      using _lock = await lockIndex(`${this.folder}/${INDEX}.lock`);
      const index = await this.#read() ??
        { url: this.url, used: "", generation: 0, files: new Map() };
      change(index);
      const now = { ...index, url: this.url, used: today() };
      await host.files.writeText(`${this.folder}/${INDEX}`, indexText(now));
    })();
    this.#changing = changing;
    await changing;
  }
}

/** A file's name in the names of its copies, which have no folders. */
function flat(file: string): string {
  return file.replaceAll("/", "%2F");
}

/** @throws {Error} if a permission was not given; it does not prompt for one. */
function require(permission: Permission, of: string): void {
  if (host.isGranted(permission, of)) return;
  throw new Error(
    `Deno has no ${permission} permission, run it with --allow-${permission}`,
  );
}

function today(): string {
  return new Date().toISOString().slice(0, 10);
}

/** A lock for the moment that an index is changed; undefined where there is none. */
async function lockIndex(path: string): Promise<Disposable | undefined> {
  const lock = await host.files.openLock(path);
  try {
    for (let waited = 0; !await lock.tryLock(); waited += LOCK_MS) {
      // Without the lock, another program's change may get lost, and is made again.
      if (waited > MOST_LOCK_MS) throw new Error("it is held too long");
      await new Promise((resolve) => setTimeout(resolve, LOCK_MS));
    }
    return lock;
  } catch {
    lock[Symbol.dispose]();
  }
}

function indexText({ files, ...rest }: Index): string {
  const index = {
    version: INDEX_VERSION,
    ...rest,
    files: Object.fromEntries(files),
  };
  return `${JSON.stringify(index, undefined, 1)}\n`;
}

/** Reads an index; undefined if there is none that can be used. */
async function readIndex(folder: string): Promise<Index | undefined> {
  try {
    const path = `${folder}/${INDEX}`;
    const found = await host.files.find(path);
    if (found === undefined || found.size > MOST_INDEX) return undefined;
    return parseIndex(await host.files.readText(path) ?? "");
  } catch {
    return undefined; // damaged: what it described is fetched again
  }
}

/** @throws {Error} if it is not an index; entries that are damaged are left out. */
function parseIndex(text: string): Index {
  const json = JSON.parse(text);
  const { version, url, used, generation, files } = json;
  if (
    version !== INDEX_VERSION || typeof url !== "string" ||
    typeof used !== "string" || !/^\d{4}-\d\d-\d\d$/.test(used) ||
    !Number.isSafeInteger(generation) || !isObject(files)
  ) throw new Error("damaged");
  const entries = Object.entries(files).filter((
    entry,
  ): entry is [string, Kept] => /^[^\\]+$/.test(entry[0]) && isKept(entry[1]));
  return {
    url: shownUrl(url),
    used,
    generation,
    files: new Map(entries),
  };
}

function isKept(value: unknown): value is Kept {
  if (!isObject(value)) return false;
  const { id, size, etag, modified, sha256, generation, asked } = value;
  const isHeader = (text: unknown) =>
    text === undefined ||
    typeof text === "string" && /^[\x20-\x7e]+$/.test(text);
  if (!Number.isSafeInteger(generation) || typeof asked !== "string") {
    return false;
  }
  if (id === undefined) return true;
  return typeof id === "string" && /^[0-9a-f]{8}$/.test(id) &&
    Number.isSafeInteger(size) && (size as number) >= 0 &&
    isHeader(etag) && isHeader(modified) && (etag ?? modified) !== undefined &&
    ((size as number) > SMALL_BYTES || typeof sha256 === "string");
}

/** The bytes of all files below a folder; links are not followed. */
export async function folderBytes(folder: string): Promise<number> {
  let bytes = 0;
  for (const [name, entry] of await host.files.list(folder) ?? []) {
    bytes += entry.isDirectory
      ? await folderBytes(`${folder}/${name}`)
      : entry.size;
  }
  return bytes;
}

/** The kept web folders, the largest first. */
export async function listWebCache(): Promise<KeptFolder[]> {
  const all = webCacheFolder(), kept: KeptFolder[] = [];
  for (const [name, { isDirectory }] of await host.files.list(all) ?? []) {
    // Another program may have a folder "web" there.
    if (!isDirectory || !OWN_FOLDER.test(name)) continue;
    const folder = `${all}/${name}`;
    const bytes = await folderBytes(folder);
    const index = await readIndex(folder);
    kept.push({ url: index?.url, folder, bytes, used: index?.used });
  }
  return kept.sort((a, b) => b.bytes - a.bytes);
}

/**
 * Removes a kept web folder.
 *
 * @throws {Error} if it cannot be removed
 */
export async function removeKept({ folder }: KeptFolder): Promise<void> {
  try {
    await host.files.removeFolder(folder);
  } catch (cause) {
    throw new Error(`Cannot remove ${folder}: ${errorText(cause)}`, { cause });
  }
}
