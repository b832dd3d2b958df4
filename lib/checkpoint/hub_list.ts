/**
 * What the Hugging Face Hub says about a repository: its commit and that commit's files.
 *
 * @module
 */
import type * as Hub from "npm:@huggingface/hub@2.17.5";
import { errorText } from "../errors.ts";
import { retry } from "./fetch.ts";
import { type HubAccess, HubRefusal } from "./hub_access.ts";
import type { ListedFile, Listing } from "./hub_cache.ts";
import type { OpenOptions } from "./sources.ts";

// A variable, so that Deno installs the package only when a download needs it.
const HUB_PACKAGE = "npm:@huggingface/hub@2.17.5";

/** The most that is read of the responses about one repository. */
const MOST_PAGES = 1000;
const MOST_BYTES = 64 << 20;

/** Asks about a repository. */
export class HubList {
  #pages = 0;
  #bytes = 0;

  constructor(
    readonly name: string,
    readonly access: HubAccess,
    readonly options: OpenOptions,
  ) {}

  /** Returns the commit that a branch or tag points to. */
  async commitOf(revision: string): Promise<string> {
    const { sha } = await this.#ask((hub, hubUrl, fetch) =>
      hub.modelInfo({
        hubUrl,
        fetch,
        name: this.name,
        revision,
        additionalFields: ["sha"],
      })
    );
    if (/^[0-9a-f]{40}$/.test(sha)) return sha;
    throw new HubRefusal(
      `its commit is ${JSON.stringify(sha)}, must be 40 hex digits`,
    );
  }

  /** Returns the files of a commit. */
  async filesOf(commit: string): Promise<Listing> {
    return await this.#ask(async (hub, hubUrl, fetch) => {
      const listing: Listing = new Map();
      const files = hub.listFiles({
        hubUrl,
        fetch,
        repo: { type: "model", name: this.name },
        revision: commit,
        recursive: true, // as huggingface_hub expects it in the cache
      });
      for await (const file of files) {
        if (file.type === "file") listing.set(file.path, checkListed(file));
      }
      return listing;
    });
  }

  /** Asks through the package, whose errors for malformed responses say little. */
  async #ask<Answer>(
    question: (
      hub: typeof Hub,
      hubUrl: string,
      fetch: typeof globalThis.fetch,
    ) => Promise<Answer>,
  ): Promise<Answer> {
    const hub: typeof Hub = await import(HUB_PACKAGE);
    try {
      return await question(
        hub,
        this.access.endpoint,
        (...request) => this.#fetch(...request),
      );
    } catch (cause) {
      if (!(cause instanceof SyntaxError || cause instanceof TypeError)) {
        throw cause;
      }
      throw new HubRefusal(
        `the answer about its files is not what the Hub sends (${
          errorText(cause)
        })`,
        { cause },
      );
    }
  }

  /** Fetches a whole response, again if it breaks off. */
  async #fetch(...request: Parameters<typeof fetch>): Promise<Response> {
    if (++this.#pages > MOST_PAGES) {
      throw new HubRefusal(`its list of files has over ${MOST_PAGES} pages`);
    }
    const attempt = async () => {
      const { status, headers, body } = await this.access.fetch(...request);
      const parts: Uint8Array<ArrayBuffer>[] = [];
      for await (const part of body ?? []) {
        if ((this.#bytes += part.length) > MOST_BYTES) {
          throw new HubRefusal(
            `its list of files has over ${MOST_BYTES} bytes`,
          );
        }
        parts.push(part);
      }
      return new Response(new Blob(parts), { status, headers });
    };
    return await retry(this.access.endpoint, attempt, this.options);
  }
}

/** Checks what the Hub says about a file. */
function checkListed(
  { path, size, oid, lfs, xetHash }: Hub.ListFileEntry,
): ListedFile {
  const isHash = (text: unknown, digits: number): text is string =>
    typeof text === "string" && text.length === digits &&
    /^[0-9a-f]+$/.test(text);
  const bytes = lfs?.size ?? size;
  if (
    typeof path !== "string" || !Number.isSafeInteger(bytes) || bytes < 0 ||
    !isHash(oid, 40) || lfs && !isHash(lfs.oid, 64)
  ) {
    throw new HubRefusal(
      `its list of files has ${
        JSON.stringify({ path, size, oid, lfs }).slice(0, 300)
      }, must have a path, a size, a SHA-1 and, for large files, a SHA-256`,
    );
  }
  return {
    size: bytes,
    blobId: oid,
    sha256: lfs?.oid,
    xetHash: isHash(xetHash, 64) ? xetHash : undefined,
  };
}
