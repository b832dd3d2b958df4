/**
 * A checkpoint in a web folder. Its files are copied to the cache once and compared
 * with the server's, one request for each, whenever they are opened; weights are copied
 * when the first tensor is read, after their headers have been checked by range. Where
 * nothing can be kept, weights are read by range.
 *
 * @module
 */
import { errorText } from "../errors.ts";
import { host } from "../host.ts";
import { appendRest, DiskFailure, takeLock, written } from "./download.ts";
import { shownUrl, Unreachable } from "./fetch.ts";
import {
  askForText,
  type Probe,
  probe,
  reading,
  restOf,
  sourceOf,
} from "./http.ts";
import type { Version } from "./http_answer.ts";
import {
  bytesText,
  openFile,
  type OpenOptions,
  type OpenSource,
  readTextFile,
} from "./sources.ts";
import { type Kept, WebCache } from "./web_cache.ts";
import type { Folder } from "./weight_files.ts";

/** Bytes that a download leaves free on the disk. */
const SPARE_BYTES = 64e6;

/** Weights that are read by range until there is a copy. */
class WebSource implements OpenSource {
  #source: OpenSource;

  constructor(readonly name: string, source: OpenSource) {
    this.#source = source;
  }

  get size(): number {
    return this.#source.size;
  }

  /** Reads from a copy from now on. */
  use(copy: OpenSource): void {
    this.#source = copy;
  }

  async read(begin: number, into: Uint8Array): Promise<void> {
    await this.#source.read(begin, into);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#source[Symbol.asyncDispose]();
  }
}

/** Weights that are to be copied. */
interface Pending {
  file: string;
  version: Version;
  source: WebSource;
}

/** A web folder. */
export class WebFolder implements Folder {
  readonly location: string;
  #cache?: WebCache;
  #pending: Pending[] = [];
  /** Why the server cannot be reached. */
  #offline?: string;
  /** What was said already. */
  readonly #said = new Set<string>();
  /** Bytes that were downloaded, and those of all that are downloaded now. */
  #done = 0;
  #total = 0;

  private constructor(
    readonly base: URL,
    readonly options: OpenOptions,
  ) {
    this.location = this.locate("");
  }

  /** @param base whose path ends with a slash */
  static async open(base: URL, options: OpenOptions): Promise<WebFolder> {
    const folder = new WebFolder(base, options);
    try {
      folder.#cache = await WebCache.open(base);
    } catch (error) {
      folder.#whyNot = errorText(error);
    }
    return folder;
  }

  /** Why nothing is kept. */
  #whyNot?: string;

  locate(file: string): string {
    return shownUrl(this.#urlOf(file));
  }

  has(): Promise<boolean> {
    return Promise.resolve(false);
  }

  async text(file: string): Promise<string | undefined> {
    const kept = await this.#find(file);
    if (this.#offline !== undefined) return await this.#textOffline(file);
    try {
      const url = this.#urlOf(file);
      const answer = await askForText(url, this.options, kept?.kept);
      if (answer === undefined) {
        await this.#remark((cache) => cache.setAbsent(file));
        return undefined;
      }
      if (answer.text === undefined) {
        await this.#remark((cache) => cache.confirm(file));
        return await this.#textOf(file, kept!.path!);
      }
      const { text, version } = answer;
      if (this.#mayKeep(answer)) {
        await this.#noting((cache) => cache.setText(file, text, version));
      } else if (kept) {
        await this.#noting((cache) => cache.forget(file, kept.kept, true));
      }
      return text;
    } catch (error) {
      await this.#goOffline(file, error);
      return await this.#textOffline(file);
    }
  }

  async open(file: string): Promise<OpenSource | undefined> {
    const kept = await this.#find(file);
    if (this.#offline !== undefined) return await this.#openOffline(file);
    let answer: Probe | undefined;
    try {
      answer = await probe(this.#urlOf(file), this.options, kept?.kept);
    } catch (error) {
      await this.#goOffline(file, error);
      return await this.#openOffline(file);
    }
    if (answer === undefined) {
      await this.#remark((cache) => cache.setAbsent(file));
      return undefined;
    }
    if ("isKnown" in answer) {
      await this.#remark((cache) => cache.confirm(file));
      return await this.#openCopy(file, kept!.path!);
    }
    if (kept) {
      await this.#noting((cache) => cache.forget(file, kept.kept, true));
    }
    const { version } = answer;
    const mayKeep = this.#mayKeep(answer);
    if ("why" in answer && mayKeep) {
      const copy = await this.#copy(file, version, answer.whole);
      if (copy !== undefined) {
        this.#sayWhere();
        return copy;
      }
      answer = { ...answer, whole: undefined };
    }
    const source = await sourceOf(
      this.#urlOf(file),
      answer,
      this.options,
      (why) => this.#sayCopied(why),
    );
    if (source === undefined || !mayKeep) return source;
    const web = new WebSource(this.locate(file), source);
    this.#pending.push({ file, version, source: web });
    return web;
  }

  /** Copies the weights that were opened. Called before the first tensor is read. */
  async keep(): Promise<void> {
    const pending = this.#pending;
    this.#sayWhyNot();
    if (pending.length === 0) return;
    this.#total = this.#done;
    for (const { version } of pending) this.#total += version.size ?? 0;
    if (await this.#lacksRoom(this.#total - this.#done)) return;
    while (pending.length > 0) {
      const { file, version, source } = pending[0];
      const copy = await this.#copy(file, version);
      if (copy === undefined) return;
      source.use(copy);
      pending.shift();
    }
    this.#sayWhere();
  }

  #urlOf(file: string): string {
    const url = new URL(this.base);
    url.pathname += file.split("/").map(encodeURIComponent).join("/");
    return url.href; // with the folder's query, which may be a signature
  }

  #say(what: string): void {
    if (this.#said.has(what)) return;
    this.#said.add(what);
    this.options.onNotice?.(`${this.location}: ${what}`);
  }

  #sayWhyNot(): void {
    if (this.#whyNot === undefined) return;
    this.#say(`nothing is kept for the next run: ${this.#whyNot}.`);
  }

  #sayCopied(why: string): void {
    this.#say(
      `the server does not send byte ranges (${why}), so weights are copied to temporary files.`,
    );
  }

  #sayWhere(): void {
    if (this.#done === 0) return; // another program has downloaded it
    const bytes = bytesText(this.#total);
    this.#say(
      host.base === undefined
        ? `kept in ${
          this.#cache!.folder
        } for the next run (${bytes}; deno task cache clears it).`
        : `kept by the browser for the next time (${bytes}; deleting the site's data clears it).`,
    );
  }

  /** What is kept of a file, and where a copy of it is. */
  async #find(
    file: string,
  ): Promise<{ kept: Kept; path?: string } | undefined> {
    const cache = this.#cache;
    if (cache === undefined) return undefined;
    const { onNotice, signal } = this.options;
    try {
      const kept = await cache.find(file);
      if (kept?.id === undefined) return undefined;
      const path = await cache.copyOf(file, kept, onNotice, signal);
      return path === undefined ? undefined : { kept, path };
    } catch (error) {
      this.#keepNothing(error);
    }
  }

  /** Changes what is kept. If that fails, nothing is kept any more. */
  async #noting(change: (cache: WebCache) => Promise<void>): Promise<void> {
    try {
      if (this.#cache !== undefined) await change(this.#cache);
    } catch (error) {
      this.#keepNothing(error);
    }
  }

  /** Notes what helps offline. Copies stay good without it, if they cannot be changed. */
  async #remark(note: (cache: WebCache) => Promise<void>): Promise<void> {
    if (this.#cache !== undefined) await note(this.#cache).catch(() => {});
  }

  #keepNothing(error: unknown): void {
    this.options.signal?.throwIfAborted();
    this.#cache = undefined;
    this.#whyNot ??= errorText(error);
  }

  /** Whether what a server sent may be kept. */
  #mayKeep(
    { version, headers }: { version: Version; headers: Headers },
  ): boolean {
    if (this.#cache === undefined) return false;
    const control = headers.get("cache-control") ?? "";
    if (/(^|,)\s*no-store\b/i.test(control)) {
      this.#whyNot ??= "the server sends Cache-Control: no-store";
    } else if (headers.get("vary")?.includes("*")) {
      this.#whyNot ??= "the server sends Vary: *";
    } else if ((version.etag ?? version.modified) === undefined) {
      this.#whyNot ??= "the server sends neither ETag nor Last-Modified";
    } else return true;
    return false;
  }

  /** Uses what is kept from now on, if the server cannot be reached; or throws. */
  async #goOffline(file: string, error: unknown): Promise<void> {
    this.options.signal?.throwIfAborted();
    const cache = this.#cache;
    if (!(error instanceof Unreachable) || cache === undefined) throw error;
    try {
      await cache.findOffline(file);
    } catch {
      throw error;
    }
    const why = error.message.replace(`Cannot read ${this.locate(file)}: `, "");
    this.#offline = why;
    this.#say(`${why}, so the copy in ${cache.folder} is used.`);
  }

  /** The path of a copy; undefined if the server had no such file. */
  async #pathOffline(file: string): Promise<string | undefined> {
    let why = "its copy is damaged";
    try {
      const cache = this.#cache!;
      const kept = await cache.findOffline(file);
      if (kept.id === undefined) return undefined;
      const path = await cache.copyOf(file, kept);
      if (path !== undefined) return path;
    } catch (error) {
      why = errorText(error);
    }
    throw new Error(
      `Cannot read ${this.locate(file)}: ${this.#offline}, and ${why}`,
    );
  }

  async #textOffline(file: string): Promise<string | undefined> {
    const path = await this.#pathOffline(file);
    return path === undefined ? undefined : await this.#textOf(file, path);
  }

  async #openOffline(file: string): Promise<OpenSource | undefined> {
    const path = await this.#pathOffline(file);
    return path === undefined ? undefined : await this.#openCopy(file, path);
  }

  async #openCopy(file: string, path: string): Promise<OpenSource> {
    return await openFile(path, this.locate(file)) ?? removed(path);
  }

  async #textOf(file: string, path: string): Promise<string> {
    return await readTextFile(path, this.locate(file)) ?? removed(path);
  }

  async #lacksRoom(bytes: number): Promise<boolean> {
    const cache = this.#cache;
    if (cache === undefined) return true;
    if (!host.isGranted("sys", "statfs")) return false;
    const free = await host.files.freeSpace(cache.folder) ?? Infinity;
    if (bytes + SPARE_BYTES <= free) return false;
    this.#whyNot ??= `${cache.folder} has ${bytesText(free)} free, ${
      bytesText(bytes + SPARE_BYTES)
    } are needed`;
    this.#sayWhyNot();
    return true;
  }

  /**
   * Copies a version to the cache and opens the copy; undefined, with a notice, if it cannot
   * be written.
   *
   * @param whole an answer with the whole file, if there is one already
   */
  async #copy(
    file: string,
    version: Version,
    whole?: Response,
  ): Promise<OpenSource | undefined> {
    const cache = this.#cache!;
    const id = await WebCache.idOf(version);
    const path = cache.pathOf(file, { id });
    try {
      await host.files.makeFolder(cache.folder);
      using lock = await takeLock(`${path}.lock`, file, this.options);
      const found = await cache.find(file);
      if (found?.id === id && await cache.copyOf(file, found)) {
        await whole?.body?.cancel(); // another program was faster
      } else {
        const piece = lock === undefined
          ? `${path}.${crypto.randomUUID()}.incomplete`
          : `${path}.incomplete`;
        try {
          const size = await this.#download(file, version, piece, whole);
          const found = await host.files.find(piece);
          if (found?.size !== size) {
            throw new Error(
              `Cannot keep ${path}: another program has removed it`,
            );
          }
        } catch (error) {
          const isLost = lock === undefined || error instanceof DiskFailure;
          if (isLost) await host.files.remove(piece).catch(() => {});
          throw error;
        }
        await written(path, () => host.files.move(piece, path));
        await cache.setCopy(file, version, id);
      }
    } catch (error) {
      this.options.signal?.throwIfAborted();
      await whole?.body?.cancel().catch(() => {});
      const isServers = errorText(error)
        .startsWith(`Cannot read ${this.locate(file)}: `);
      if (isServers) throw error;
      this.#keepNothing(error);
      this.#sayWhyNot();
      return undefined;
    }
    return await this.#openCopy(file, path);
  }

  /**
   * Downloads a version to `piece`, which may have its beginning; returns how many bytes
   * it has.
   */
  async #download(
    file: string,
    version: Version,
    piece: string,
    whole?: Response,
  ): Promise<number> {
    const { size } = version;
    const name = this.locate(file), before = this.#done;
    using output = await host.files.append(piece);
    if (size !== undefined && output.size > size) await output.clear();
    let resumedFrom = output.size || undefined;
    const report = () => {
      this.#done = before + output.size;
      this.#total = Math.max(this.#total, this.#done);
      this.options.onProgress?.({
        stage: "download",
        file: name,
        done: this.#done,
        total: this.#total,
        fileDone: output.size,
        fileTotal: size,
        resumedFrom,
      });
    };
    let received = 0, failure: DiskFailure | undefined;
    await reading(this.#urlOf(file), this.options, async () => {
      if (size !== undefined && output.size === size) return;
      const { begin, rest } = await restOf(
        this.#urlOf(file),
        version,
        output.size,
        this.options,
        whole,
      );
      whole = undefined;
      if (begin === 0 && output.size > 0) {
        await output.clear();
        resumedFrom = undefined;
        received = 0;
      } else if (resumedFrom !== undefined && received === 0) {
        this.options.onNotice?.(
          `Resuming ${file} at byte ${begin} of ${size}.`,
        );
      }
      try {
        await appendRest({ output, path: piece, size }, rest, (count) => {
          received += count;
          report();
        });
      } catch (error) {
        if (!(error instanceof DiskFailure)) throw error;
        failure = error; // not the server's
      }
    }, () => received);
    if (failure !== undefined) throw failure;
    await written(piece, () => output.flush());
    return output.size;
  }
}

function removed(path: string): never {
  throw new Error(`Cannot read ${path}: another program has removed it`);
}
