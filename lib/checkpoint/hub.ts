/**
 * Repositories of the Hugging Face Hub, read from the cache that Python's
 * huggingface_hub also uses, after downloading what is missing
 * (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
 *
 *     models--owner--name/refs/main             the commit main pointed to, as text
 *     models--owner--name/blobs/<etag>          complete files
 *     models--owner--name/snapshots/<commit>/   links to them, by name
 *
 * A blob gets its final name and its link in the snapshot only when it is complete, and
 * weights come last. An interrupted download therefore never looks like a checkpoint,
 * and the next one resumes it.
 *
 * @module
 */
import type * as Hub from "npm:@huggingface/hub@2.17.5";
import { parseConfig } from "../model/families.ts";
import { parseJson } from "../json.ts";
import { parseSafetensorsIndex } from "./safetensors.ts";
import { errorText } from "../errors.ts";
import { type FileLock, host } from "../host.ts";
import { patientFetch, pause } from "./fetch.ts";
import type { OpenOptions } from "./sources.ts";

// A variable, so that Deno installs the package only when a download needs it.
const HUB_PACKAGE = "npm:@huggingface/hub@2.17.5";

const WEIGHTS = "model.safetensors";
const INDEX = "model.safetensors.index.json";

/** Files downloaded along with config.json and the weights. */
const COMPANIONS = [
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "chat_template.jinja",
];

/** A repository at a branch, tag or commit. */
export interface Repository {
  /** `owner/name` */
  name: string;
  revision: string;
}

/** Parses `owner/name` or `owner/name@revision`; undefined if it is neither. */
export function parseRepositoryId(spec: string): Repository | undefined {
  const [, name, revision = "main"] =
    /^([\w-][\w.-]*\/[\w-][\w.-]*)(?:@([\w-][\w./-]*))?$/.exec(spec) ?? [];
  if (name === undefined || revision.includes("..")) return undefined;
  return { name, revision };
}

/**
 * Returns the cache folder with a repository's files, after downloading any that are
 * missing. Environment variables work as in Python's huggingface_hub: `HF_HUB_CACHE`
 * and `HF_HOME` (where the cache is), `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`. A
 * complete cache entry is used without asking the Hub.
 *
 * @throws {Error} if the repository is not in the cache and cannot be downloaded, or
 * the model is not supported or has no safetensors; that is checked before downloading
 * weights
 */
export async function repositoryFolder(
  repository: Repository,
  options: OpenOptions = {},
): Promise<string> {
  const cache = cacheFolder();
  const entry = `${cache}/models--${repository.name.replace("/", "--")}`;
  const cached = await findSnapshot(entry, repository.revision);
  if ("folder" in cached) return cached.folder;

  const lookedFor = `no such directory, not in the cache (${cached.problem})`;
  if (/^(1|on|yes|true)$/i.test(host.env("HF_HUB_OFFLINE") ?? "")) {
    throw new Error(
      `Cannot open ${repository.name}: ${lookedFor}, and HF_HUB_OFFLINE forbids downloading it`,
    );
  }
  const endpoint = (host.env("HF_ENDPOINT") || "https://huggingface.co")
    .replace(/\/+$/, "");
  try {
    return await new Download(repository, cache, entry, endpoint, options)
      .run();
  } catch (cause) {
    options.signal?.throwIfAborted();
    const { statusCode } = cause as { statusCode?: number };
    const denied = statusCode === 401 || statusCode === 403;
    throw new Error(
      `Cannot open ${repository.name}: ${lookedFor}, and ${endpoint} does not provide revision ${repository.revision}: ${
        errorText(cause)
      }${denied ? " (it does not exist, or it needs an HF_TOKEN)" : ""}`,
      { cause },
    );
  }
}

/** The folder that Python's huggingface_hub would use. */
function cacheFolder(): string {
  const { env } = host;
  const home = env("HOME") ?? env("USERPROFILE") ?? ".";
  const xdg = env("XDG_CACHE_HOME") ?? `${home}/.cache`;
  const path = env("HF_HUB_CACHE") ??
    `${env("HF_HOME") ?? `${xdg}/huggingface`}/hub`;
  return path.replace(/^~(?=\/|$)/, home);
}

/** Returns a revision's snapshot if it is complete, else what is missing. */
async function findSnapshot(
  entry: string,
  revision: string,
): Promise<{ folder: string } | { problem: string }> {
  const isCommit = /^[0-9a-f]{40}$/.test(revision);
  const ref = `${entry}/refs/${revision}`;
  const commit = isCommit ? revision : (await host.files.readText(ref))?.trim();
  if (!commit) return { problem: `there is no ${ref}` };

  const folder = `${entry}/snapshots/${commit}`;
  const lacks = (files: string[]) => ({
    problem: `${folder} lacks ${files.join(", ")}`,
  });
  if (!await exists(`${folder}/config.json`)) return lacks(["config.json"]);
  if (await exists(`${folder}/${WEIGHTS}`)) return { folder };
  const index = await host.files.readText(`${folder}/${INDEX}`);
  if (index === undefined) return lacks([`${WEIGHTS} or ${INDEX}`]);
  const missing: string[] = [];
  for (const shard of shardsOf(index, `${folder}/${INDEX}`)) {
    if (!await exists(`${folder}/${shard}`)) missing.push(shard);
  }
  return missing.length > 0 ? lacks(missing) : { folder };
}

function shardsOf(index: string, where: string): string[] {
  return [...new Set(parseSafetensorsIndex(index, where).values())];
}

/** The download of one repository into the cache. */
class Download {
  readonly #fetch: typeof fetch;
  #hub!: typeof Hub;
  #commit = "";
  #done = 0;
  #total = 0;

  constructor(
    readonly repository: Repository,
    readonly cache: string,
    readonly entry: string,
    readonly endpoint: string,
    readonly options: OpenOptions,
  ) {
    this.#fetch = patientFetch(options);
  }

  /** Options for every call to the package. */
  get #access() {
    return {
      hubUrl: this.endpoint,
      accessToken: host.env("HF_TOKEN"),
      fetch: this.#fetch,
    };
  }

  async run(): Promise<string> {
    const { name, revision } = this.repository;
    this.#hub = await import(HUB_PACKAGE);
    const { sha } = await this.#hub.modelInfo({
      ...this.#access,
      name,
      revision,
      additionalFields: ["sha"],
    });
    if (!/^[0-9a-f]{40}$/.test(sha)) {
      throw new Error(
        `its commit is ${JSON.stringify(sha)}, must be 40 hex digits`,
      );
    }
    this.#commit = sha;
    const folder = `${this.entry}/snapshots/${sha}`;
    await host.files.makeFolder(folder);

    const listed = new Map<string, Hub.ListFileEntry>();
    for await (
      const file of this.#hub.listFiles({
        ...this.#access,
        repo: { type: "model", name },
        revision: sha,
      })
    ) {
      if (file.type === "file") listed.set(file.path, file);
    }
    const take = async (paths: string[]) => {
      const files = paths.map((path) => {
        const file = listed.get(path);
        if (file !== undefined) return file;
        throw new Error(
          `there is no ${path} among ${
            [...listed.keys()].join(", ") || "its files"
          }`,
        );
      });
      for (const file of files) this.#total += file.size;
      for (const file of files) await this.#take(file, folder);
    };

    await take(["config.json"]);
    const config = `${folder}/config.json`;
    parseConfig(parseJson(await readBack(config), config), config);
    if (listed.has(WEIGHTS)) {
      await take([...COMPANIONS.filter((path) => listed.has(path)), WEIGHTS]);
    } else if (listed.has(INDEX)) {
      await take([...COMPANIONS.filter((path) => listed.has(path)), INDEX]);
      const index = `${folder}/${INDEX}`;
      await take(shardsOf(await readBack(index), index));
    } else {
      throw new Error(
        `there is no ${WEIGHTS} or ${INDEX} among ${
          [...listed.keys()].join(", ")
        }`,
      );
    }

    if (revision !== sha) {
      const ref = `${this.entry}/refs/${revision}`;
      await host.files.writeText(ref, sha);
    }
    return folder;
  }

  /** Adds one file to the snapshot, downloading it if necessary. */
  async #take(file: Hub.ListFileEntry, folder: string) {
    const link = `${folder}/${file.path}`;
    if (await exists(link)) return this.#advance(file, file.size);
    const etag = file.lfs?.oid ?? file.xetHash ?? file.oid ?? "";
    if (!/^[\w-]+$/.test(etag)) {
      throw new Error(`${file.path} has the etag ${JSON.stringify(etag)}`);
    }
    const blob = `${this.entry}/blobs/${etag}`;
    await host.files.makeFolder(`${this.entry}/blobs`);
    using _lock = await this.#lock(etag);
    if (await exists(blob)) {
      this.#advance(file, file.size);
    } else {
      await this.#fill(`${blob}.incomplete`, file);
      await host.files.move(`${blob}.incomplete`, blob);
    }
    try {
      await host.files.remove(link); // it may be a dangling link
      await host.files.link(`../../blobs/${etag}`, link);
    } catch { // on Windows, without permission to create links
      await host.files.move(blob, link);
    }
  }

  /** Downloads the rest of a file to `path`. */
  async #fill(path: string, file: Hub.ListFileEntry) {
    using output = await host.files.append(path);
    let { size } = output;
    if (size > file.size) {
      await output.clear();
      size = 0;
    }
    this.#advance(file, size);

    for (let tries = 1; size < file.size; tries++) {
      try {
        const remote = await this.#hub.downloadFile({
          ...this.#access,
          repo: { type: "model", name: this.repository.name },
          revision: this.#commit,
          path: file.path,
        });
        if (remote === null) throw new Error("the server does not have it");
        for await (const chunk of remote.slice(size, file.size).stream()) {
          this.options.signal?.throwIfAborted();
          await output.append(chunk);
          size += chunk.length;
          this.#advance(file, chunk.length);
        }
        if (size < file.size) throw new Error("the connection ended");
      } catch (cause) {
        this.options.signal?.throwIfAborted();
        if (tries < 4) {
          await pause(200 * 3 ** (tries - 1), this.options);
          continue;
        }
        // The package throws some errors as strings.
        throw new Error(
          `${file.path} stopped at ${size} of ${file.size} bytes: ${
            errorText(cause)
          }`,
          { cause },
        );
      }
    }
    if (size > file.size) {
      await output.clear();
      throw new Error(
        `${file.path} has ${file.size} bytes, the server sent more (${size})`,
      );
    }
  }

  #advance(file: Hub.ListFileEntry, bytes: number) {
    this.#done += bytes;
    this.options.onProgress?.({
      stage: "download",
      file: file.path,
      done: this.#done,
      total: this.#total,
    });
  }

  /**
   * Takes the lock that Python's huggingface_hub uses for a blob, so that only one
   * process downloads it at a time.
   */
  async #lock(etag: string): Promise<FileLock> {
    const folder = `${this.cache}/.locks/${
      this.entry.slice(this.cache.length + 1)
    }`;
    await host.files.makeFolder(folder);
    const lock = await host.files.openLock(`${folder}/${etag}.lock`);
    try {
      while (!await lock.tryLock()) {
        this.options.signal?.throwIfAborted();
        await pause(200, this.options);
      }
    } catch (error) {
      lock[Symbol.dispose]();
      throw error;
    }
    return lock;
  }
}

async function exists(path: string): Promise<boolean> {
  return await host.files.find(path) !== undefined;
}

/** Reads a file that was just downloaded. */
async function readBack(path: string): Promise<string> {
  const text = await host.files.readText(path);
  if (text !== undefined) return text;
  throw new Error(`${path} is gone: another program must have removed it`);
}
