/**
 * Downloads a repository of the Hugging Face Hub into the cache. Nothing enters it
 * unchecked: a file is compared with the size and hash that the Hub lists, read back
 * from the disk, before it becomes a blob; weights come last. An interrupted download
 * therefore never looks like a checkpoint, and the next one resumes it.
 *
 * @module
 */
import { errorText, listed } from "../errors.ts";
import { formatNames } from "../formats/mod.ts";
import { type AppendableFile, host } from "../host.ts";
import { parseJson } from "../json.ts";
import { parseConfig } from "../model/families.ts";
import { refuseQuantised } from "../model/tensors.ts";
import {
  chooseGguf,
  GgufChoiceError,
  isGgufOnly,
  partsOf,
} from "./gguf_files.ts";
import { type HubAccess, HubRefusal } from "./hub_access.ts";
import {
  COMPANIONS,
  damage,
  exists,
  INDEX,
  type ListedFile,
  type Listing,
  type Place,
  shardsOf,
  sizesOf,
  verify,
  type Wanted,
  WEIGHTS,
  writeListing,
} from "./hub_cache.ts";
import { HubList } from "./hub_list.ts";
import { parseSafetensorsIndex } from "./safetensors.ts";
import { isSentenceFile } from "./sentence_modules.ts";
import {
  appendRest,
  DiskFailure,
  takeLock,
  written,
  WrongAnswer,
} from "./download.ts";
import { retry } from "./fetch.ts";
import type { LoadProgress, OpenOptions } from "./sources.ts";

/** Files of ModelOpt and AutoGPTQ, which do not always say so in config.json. */
const QUANTISED = ["hf_quant_config.json", "quantize_config.json"];

/** What is wanted of a repository, and where its files go. */
export interface Target extends Wanted {
  /** The folder of the cache, and the repository's folder in it. */
  cache: string;
  entry: string;
}

/** A file being downloaded. */
interface Incoming {
  path: string;
  listed: ListedFile;
  output: AppendableFile;
  /** Where `output` is. */
  piece: string;
  resumedFrom?: number;
}

/** The download of one repository into the cache. */
export class Download {
  #commit = "";
  #listing: Listing = new Map();
  #done = 0;
  #total = 0;

  constructor(
    readonly target: Target,
    readonly access: HubAccess,
    readonly options: OpenOptions,
  ) {}

  /**
   * Completes the snapshot of a commit, by default the one that the revision points to.
   *
   * @throws {GgufChoiceError} if the repository has GGUF files and none or several fit
   */
  async run(commit?: string): Promise<Place> {
    const { entry, revision } = this.target;
    const list = new HubList(this.target.name, this.access, this.options);
    this.#commit = commit ?? await list.commitOf(revision);
    this.#listing = await list.filesOf(this.#commit);
    const folder = `${entry}/snapshots/${this.#commit}`;
    await host.files.makeFolder(folder);
    await host.files.makeFolder(`${entry}/blobs`);
    await written(
      `${entry}/trees`,
      () => writeListing(entry, this.#commit, this.#listing),
    );

    const gguf = this.#chosenGguf();
    if (gguf !== undefined) await this.#takeGguf(gguf, folder);
    else await this.#takeSafetensors(folder);
    if (revision !== this.#commit) {
      const ref = `${entry}/refs/${revision}`;
      await written(ref, () => host.files.writeText(ref, this.#commit));
    }
    return { folder, gguf };
  }

  /** The GGUF file that is wanted; undefined if safetensors are. */
  #chosenGguf(): string | undefined {
    const { pick } = this.target;
    if (pick === undefined && !isGgufOnly([...this.#listing.keys()])) return;
    return chooseGguf(sizesOf(this.#listing), pick).file;
  }

  async #takeGguf(file: string, folder: string) {
    const parts = partsOf(this.target.name, file);
    const missing = parts.filter((part) => !this.#listing.has(part));
    if (missing.length > 0) {
      throw new GgufChoiceError(
        `${missing.length} of ${parts.length} parts are not in the repository: ${
          listed(missing)
        }`,
      );
    }
    await this.#take(parts, folder);
  }

  async #takeSafetensors(folder: string) {
    if (!this.#listing.has("config.json")) throw this.#without("config.json");
    await this.#take(["config.json"], folder);
    const where = `${folder}/config.json`;
    const config = parseConfig(parseJson(await readBack(where), where), where);
    const quantised = QUANTISED.find((path) => this.#listing.has(path));
    if (quantised !== undefined) {
      throw new HubRefusal(
        `it has ${quantised}: its weights are quantised, must be plain ${formatNames()}`,
      );
    }
    const companions = [...this.#listing.keys()].filter((path) =>
      COMPANIONS.includes(path) || isSentenceFile(path)
    );
    if (this.#listing.has(WEIGHTS)) {
      await this.#take([...companions, WEIGHTS], folder);
    } else if (this.#listing.has(INDEX)) {
      await this.#take([...companions, INDEX], folder);
      const path = `${folder}/${INDEX}`;
      const index = parseSafetensorsIndex(await readBack(path), path);
      refuseQuantised(this.target.name, config, index.keys());
      await this.#take(shardsOf(index), folder);
    } else throw this.#without(`${WEIGHTS} or ${INDEX}`);
  }

  /** The error for a repository without a file that every checkpoint has. */
  #without(file: string): HubRefusal {
    const kinds = Map.groupBy(
      [...this.#listing.keys()].sort(),
      (path) => /\.[^./]+$/.exec(path)?.[0].toLowerCase() ?? "other",
    );
    const list = [...kinds].sort(([, a], [, b]) => b.length - a.length)
      .slice(0, 8).map(([kind, [first, ...more]]) =>
        `${first.slice(-80)}${
          more.length === 0 ? "" : ` and ${more.length} more ${kind}`
        }`
      ).join(", ");
    return new HubRefusal(
      `there is no ${file}, must be a repository with config.json and safetensors, or with GGUF files (it has ${
        list || "no files"
      })`,
    );
  }

  /** Adds files to the snapshot. */
  async #take(paths: string[], folder: string) {
    for (const path of paths) {
      if (!this.#listing.has(path)) throw this.#without(path);
    }
    const files = paths.map((path) => ({
      path,
      listed: this.#listing.get(path)!,
    }));
    for (const { listed } of files) this.#total += listed.size;
    for (const { path, listed } of files) await this.#add(path, listed, folder);
  }

  /** Adds one file to the snapshot, downloading it if necessary. */
  async #add(path: string, listed: ListedFile, folder: string) {
    const link = `${folder}/${path}`;
    const there = await host.files.find(link);
    const problem = there &&
      await damage(link, there, listed, this.options.signal);
    if (problem !== undefined) {
      this.#notice(`${link} ${problem}: downloading it again.`);
    } else if (there !== undefined) {
      return this.#advance({ path, listed }, listed.size);
    }
    const hash = listed.sha256 ?? listed.blobId;
    const { cache, entry } = this.target;
    const blob = `${entry}/blobs/${hash}`;
    const locks = `${cache}/.locks/${entry.slice(cache.length + 1)}`;
    await host.files.makeFolder(locks);
    // The lock that Python's huggingface_hub uses for a blob.
    using lock = await takeLock(`${locks}/${hash}.lock`, path, this.options);
    const isNew = !await this.#isIntact(blob, listed);
    if (isNew) {
      // Without a lock, other processes must not resume this one's piece.
      const piece = lock === undefined
        ? `${blob}.${crypto.randomUUID()}.incomplete`
        : `${blob}.incomplete`;
      try {
        await this.#download(piece, path, listed);
      } catch (error) {
        if (lock === undefined) await host.files.remove(piece);
        throw error;
      }
      await host.files.move(piece, blob);
    } else this.#advance({ path, listed }, listed.size);
    await host.files.makeFolder(link.slice(0, link.lastIndexOf("/")));
    await host.files.remove(link); // it may be damaged, or a dangling link
    const up = "../".repeat(path.split("/").length + 1);
    await putInSnapshot(blob, `${up}blobs/${hash}`, link, isNew);
  }

  /** Whether a blob is there with the right content; removes it if it has another. */
  async #isIntact(blob: string, listed: ListedFile): Promise<boolean> {
    if (!await exists(blob)) return false;
    const problem = await verify(blob, listed, this.options.signal);
    if (problem === undefined) return true;
    this.#notice(`${blob} ${problem}: downloading it again.`);
    await host.files.remove(blob);
    return false;
  }

  /**
   * Downloads a file to `piece`, which may have its beginning, and checks it. If it is
   * not what the Hub lists, starts over once.
   *
   * @throws {Error} if it differs again; nothing is left of it then
   */
  async #download(piece: string, path: string, listed: ListedFile) {
    for (let isFirst = true;; isFirst = false) {
      let problem: string | undefined;
      {
        using output = await host.files.append(piece);
        if (output.size > listed.size) await output.clear();
        const resumedFrom = output.size || undefined;
        const file = { path, listed, output, piece, resumedFrom };
        if (resumedFrom !== undefined) {
          this.#notice(
            `Resuming ${path} at byte ${resumedFrom} of ${listed.size}.`,
          );
        }
        this.#advance(file, output.size);
        try {
          await this.#fill(file);
          await written(piece, () => output.flush());
        } catch (error) {
          if (!(error instanceof WrongAnswer)) throw error;
          problem = error.message;
        }
        if (problem !== undefined) {
          this.#advance(file, -output.size);
          await output.clear();
        }
      } // Windows does not remove or rename an open file
      if (problem === undefined) {
        problem = await verify(piece, listed, this.options.signal);
        if (problem === undefined) return;
        this.#done -= listed.size;
      }
      await host.files.remove(piece);
      if (!isFirst) {
        throw new HubRefusal(
          `${path} ${problem}; that was the second attempt, nothing is kept`,
        );
      }
      this.#notice(
        `${path} ${problem}: downloading it again from the start.`,
      );
    }
  }

  /** Appends the rest of a file, resuming when the connection ends early. */
  async #fill(file: Incoming) {
    const { path, listed: { size }, output, piece } = file;
    let received = 0;
    const attempt = async () => {
      if (output.size === size) return; // the connection broke after the last byte
      const rest = await this.#request(file);
      await appendRest({ output, path: piece, size }, rest, (count) => {
        received += count;
        this.#advance(file, count);
      });
    };
    try {
      await retry(path, attempt, this.options, () => received);
    } catch (cause) {
      this.options.signal?.throwIfAborted();
      if (
        cause instanceof HubRefusal || cause instanceof WrongAnswer ||
        cause instanceof DiskFailure
      ) throw cause;
      throw new HubRefusal(
        `${path} stopped at ${output.size} of ${size} bytes: ${
          errorText(cause)
        }`,
        { cause },
      );
    }
  }

  /** Requests a file from where `output` ends; clears it if the server cannot resume. */
  async #request(file: Incoming): Promise<AsyncIterable<Uint8Array>> {
    const { path, listed: { size }, output } = file;
    const begin = output.size;
    const name = path.split("/").map(encodeURIComponent).join("/");
    const { status, headers, body } = await this.access.fetch(
      `${this.access.endpoint}/${this.target.name}/resolve/${this.#commit}/${name}`,
      { headers: begin === 0 ? {} : { Range: `bytes=${begin}-${size - 1}` } },
    );
    const encoding = headers.get("content-encoding") ?? "identity";
    if (!/^(identity)?$/i.test(encoding.trim())) {
      await body?.cancel();
      throw new HubRefusal(
        `${path} was sent in the encoding ${encoding}, must be sent as it is`,
      );
    }
    const wrong = wrongRange(status, headers, begin, size);
    if (wrong !== undefined) {
      await body?.cancel();
      throw new WrongAnswer(wrong);
    }
    if (status === 200 && begin > 0) {
      this.#notice(`The server cannot resume ${path}: it starts over.`);
      await output.clear();
      file.resumedFrom = undefined;
      this.#advance(file, -begin);
    }
    return body ?? new Blob().stream();
  }

  /** Reports `bytes` more of a file. */
  #advance(
    { path, listed, output, resumedFrom }:
      & Omit<Incoming, "output" | "piece">
      & {
        output?: AppendableFile;
      },
    bytes: number,
  ) {
    this.#done += bytes;
    const progress: LoadProgress = {
      stage: "download",
      file: path,
      done: this.#done,
      total: this.#total,
      fileDone: output?.size ?? listed.size,
      fileTotal: listed.size,
      resumedFrom,
    };
    this.options.onProgress?.(progress);
  }

  #notice(notice: string) {
    this.options.onNotice?.(notice);
  }
}

/**
 * Compares the range and the length of a response with what was asked for: a file from
 * byte `begin` to its end. Returns what is wrong.
 */
function wrongRange(
  status: number,
  headers: Headers,
  begin: number,
  size: number,
): string | undefined {
  const length = headers.get("content-length");
  if (status === 206) {
    const range = headers.get("content-range") ?? "";
    const [, from, to, total] = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(range) ??
      [];
    // A server may send less than the whole range.
    const fits = Number(from) === begin && Number(to) < size &&
      (total === "*" || Number(total) === size);
    return fits
      ? undefined
      : `was asked for from byte ${begin} of ${size}, but the server sent ${
        JSON.stringify(range.slice(0, 100))
      }`;
  }
  if (status !== 200) {
    return `was asked for from byte ${begin} of ${size}, but the server answered ${status}`;
  }
  return length === null || Number(length) === size
    ? undefined
    : `has ${length} bytes on the server, must have ${size} as listed`;
}

/** Makes a file of the snapshot from a blob: a link, where the system permits one. */
async function putInSnapshot(
  blob: string,
  target: string,
  path: string,
  isNew: boolean,
) {
  try {
    await host.files.link(target, path);
    if (await exists(path)) return;
    await host.files.remove(path);
  } catch { // Windows needs a privilege for links, Deno unscoped permissions
    await host.files.remove(path);
  }
  // Other snapshots may link to a blob that was there before.
  if (isNew) return await host.files.move(blob, path);
  const piece = `${path}.incomplete`;
  try {
    await host.files.copy(blob, piece);
    await host.files.move(piece, path);
  } catch (error) {
    await host.files.remove(piece);
    throw error;
  }
}

/** Reads a file that was just downloaded. */
async function readBack(path: string): Promise<string> {
  const text = await host.files.readText(path);
  if (text !== undefined) return text;
  throw new Error(`${path} is gone: another program must have removed it`);
}
