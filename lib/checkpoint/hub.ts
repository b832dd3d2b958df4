/**
 * Repositories of the Hugging Face Hub, read from the cache that Python's
 * huggingface_hub also uses, after downloading what is missing.
 *
 * @module
 */
import { errorText } from "../errors.ts";
import { cacheFolder, hubAccess, offlineBy } from "./hub_access.ts";
import { GgufChoiceError } from "./gguf_files.ts";
import { findSnapshot, type Place, type Wanted } from "./hub_cache.ts";
import { Unreachable } from "./fetch.ts";
import { Download } from "./hub_download.ts";
import type { OpenOptions } from "./sources.ts";

/** A repository at a branch, tag or commit, and perhaps one of its GGUF files. */
export type Repository = Wanted;

/**
 * Parses `owner/name`, `owner/name@revision` and, for a GGUF file by its type or name,
 * `owner/name:Q4_K_M`, with `hf.co/` or `huggingface.co/` in front or without; undefined
 * if it is none of them.
 */
export function parseRepositoryId(spec: string): Repository | undefined {
  const [, name, revision = "main", pick] =
    /^(?:(?:www\.)?(?:huggingface\.co|hf\.co)\/(?=[^/]+\/))?([\w-][\w.-]*\/[\w-][\w.-]*)(?:@([\w-][\w./-]*))?(?::([^:@\\]+))?$/i
      .exec(spec) ?? [];
  if (name === undefined || revision.includes("..")) return undefined;
  // What Ollama writes where nothing is chosen.
  if (pick === undefined || pick === "latest") return { name, revision };
  return { name, revision, pick };
}

/** Where the cache has a repository, if it has it. */
function entryOf(name: string): string {
  return `${cacheFolder()}/models--${name.replace("/", "--")}`;
}

/**
 * Returns where the cache has a repository's model, after downloading what is missing or
 * damaged: safetensors with their companions or, if one is named or there are no
 * safetensors, one GGUF file with its parts. A complete cache entry is used without
 * asking the Hub.
 *
 * Environment variables work as in Python's huggingface_hub: `HF_HUB_CACHE`,
 * `HUGGINGFACE_HUB_CACHE`, `HF_HOME` and `XDG_CACHE_HOME` (where the cache is);
 * `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, `HF_TOKEN_PATH` and
 * `HF_HUB_DISABLE_IMPLICIT_TOKEN`; `HF_ENDPOINT`; `HF_HUB_OFFLINE` and
 * `TRANSFORMERS_OFFLINE`.
 *
 * @throws {Error} if the repository is not in the cache and cannot be downloaded, or
 * the model is not supported, has neither safetensors nor GGUF files, or several of the
 * latter are possible; that is checked before downloading weights
 */
export async function findRepository(
  repository: Repository,
  options: OpenOptions = {},
): Promise<Place> {
  const { name, revision } = repository;
  const cache = cacheFolder(), entry = entryOf(name);
  const { folder, commit, gguf, problems, hasWeights, doubt } = await inCache(
    name,
    () => findSnapshot(entry, repository),
  );
  const place = folder !== undefined && problems.length === 0
    ? { folder, gguf }
    : undefined;
  if (place !== undefined && doubt === undefined) return place;

  const incomplete = folder !== undefined;
  const offline = offlineBy();
  if (offline !== undefined) {
    if (place !== undefined) {
      options.onNotice?.(`${doubt}: ${offline} forbids asking.`);
      return place;
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
    if (cause instanceof GgufChoiceError) {
      throw new Error(`Cannot open ${name}: ${cause.message}`, { cause });
    }
    if (place !== undefined) {
      options.onNotice?.(`${doubt}: ${errorText(cause)}.`);
      return place;
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
