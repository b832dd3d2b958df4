/**
 * Repositories of the Hugging Face Hub, read from the cache that Python's
 * huggingface_hub also uses, after downloading what is missing.
 *
 * @module
 */
import { errorText } from "../errors.ts";
import { cacheFolder, hubAccess, offlineBy } from "./hub_access.ts";
import { exists, findSnapshot } from "./hub_cache.ts";
import { Unreachable } from "./fetch.ts";
import { Download } from "./hub_download.ts";
import type { OpenOptions } from "./sources.ts";

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

/** Where the cache has a repository, if it has it. */
function entryOf(name: string): string {
  return `${cacheFolder()}/models--${name.replace("/", "--")}`;
}

/** Whether the cache has something of a repository. */
export async function isCached({ name }: Repository): Promise<boolean> {
  return await exists(entryOf(name));
}

/**
 * Returns the cache folder with a repository's files, after downloading any that are
 * missing or damaged. A complete cache entry is used without asking the Hub.
 *
 * Environment variables work as in Python's huggingface_hub: `HF_HUB_CACHE`,
 * `HUGGINGFACE_HUB_CACHE`, `HF_HOME` and `XDG_CACHE_HOME` (where the cache is);
 * `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, `HF_TOKEN_PATH` and
 * `HF_HUB_DISABLE_IMPLICIT_TOKEN`; `HF_ENDPOINT`; `HF_HUB_OFFLINE` and
 * `TRANSFORMERS_OFFLINE`.
 *
 * @throws {Error} if the repository is not in the cache and cannot be downloaded, or
 * the model is not supported or has no safetensors; that is checked before downloading
 * weights
 */
export async function repositoryFolder(
  repository: Repository,
  options: OpenOptions = {},
): Promise<string> {
  const { name, revision } = repository;
  const cache = cacheFolder(), entry = entryOf(name);
  const { folder, commit, problems, hasWeights, unknown } = await inCache(
    name,
    () => findSnapshot(entry, revision),
  );
  const usable = folder !== undefined && problems.length === 0;
  if (usable && unknown.length === 0) return folder;

  const mayLack = `${folder} lacks ${
    unknown.join(", ")
  }, which the repository may have`;
  const incomplete = folder !== undefined;
  const offline = offlineBy();
  if (offline !== undefined) {
    if (usable) {
      options.onNotice?.(`${mayLack}: ${offline} forbids asking.`);
      return folder;
    }
    throw new Error(
      `Cannot open ${name}: it is not ${
        incomplete ? "complete " : ""
      }in the cache (${
        problems.join("; ")
      }), and ${offline} forbids downloading it`,
    );
  }
  let endpoint: string | undefined;
  try {
    const access = await hubAccess(name, options);
    endpoint = access.endpoint;
    return await new Download({ ...repository, cache, entry }, access, options)
      .run(hasWeights ? commit : undefined);
  } catch (cause) {
    options.signal?.throwIfAborted();
    if (usable) {
      options.onNotice?.(`${mayLack}: ${errorText(cause)}.`);
      return folder;
    }
    if (endpoint === undefined) throw cause; // its token or its URL
    const what = [
      ...incomplete
        ? [`it is not complete in the cache (${problems.join("; ")}), and it`]
        : ["it"],
      ...revision === "main" ? [] : [`at ${revision}`],
    ].join(" ");
    const instead = cause instanceof Unreachable && cause.noConnection
      ? "; without a network, pass a folder or a repository in the cache"
      : "";
    throw new Error(
      `Cannot open ${name}: ${what} cannot be downloaded from ${endpoint}: ${
        errorText(cause)
      }${instead}`,
      { cause },
    );
  }
}

/** Looks into the cache; errors name the repository that could not be opened. */
async function inCache<Found>(
  name: string,
  look: () => Promise<Found>,
): Promise<Found> {
  try {
    return await look();
  } catch (cause) {
    throw new Error(
      `Cannot open ${name}: its entry in the cache cannot be read: ${
        errorText(cause)
      }`,
      { cause },
    );
  }
}
