/**
 * Entries of the cache that Python's huggingface_hub also uses
 * (https://huggingface.co/docs/huggingface_hub/guides/manage-cache), and whether they
 * are complete.
 *
 *     models--owner--name/refs/main             the commit main pointed to, as text
 *     models--owner--name/trees/<commit>.json   the files of a commit, if someone listed them
 *     models--owner--name/.no_exist/<commit>/   empty files, named like files that do not exist
 *     models--owner--name/blobs/<hash>          complete files
 *     models--owner--name/snapshots/<commit>/   links to them, by name
 *
 * @module
 */
import { errorText } from "../errors.ts";
import {
  chooseGguf,
  type GgufChoice,
  GgufChoiceError,
  isGgufOnly,
  partsOf,
} from "./gguf_files.ts";
import { host, type ReadableFile, type StreamingHash } from "../host.ts";
import { isObject } from "../json.ts";
import { parseSafetensorsIndex, readSafetensorsHeader } from "./safetensors.ts";
import { isSentenceFile } from "./sentence_modules.ts";
import { openFile } from "./sources.ts";

/** The weights in one file, or the index of the files that have them. */
export const WEIGHTS = "model.safetensors";
export const INDEX = "model.safetensors.index.json";

/** Files that a chat needs, if the repository has them. */
export const COMPANIONS = [
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "chat_template.jinja",
];

/** A file of a commit. */
export interface ListedFile {
  /** In bytes. */
  size: number;
  /** Git's SHA-1 of the file or, for a large file, of the pointer to it. */
  blobId: string;
  /** SHA-256 of a large file's content. */
  sha256?: string;
  xetHash?: string;
}

/** The files of a commit by path. */
export type Listing = Map<string, ListedFile>;

const LISTING_VERSION = 1;

/** The most files that one message names. */
const MOST_NAMED = 4;

/** Reads the list of a commit's files; undefined if there is none that can be used. */
async function readListing(
  entry: string,
  commit: string,
): Promise<Listing | undefined> {
  const text = await host.files.readText(`${entry}/trees/${commit}.json`);
  if (text === undefined) return undefined;
  try {
    const { format_version, files } = JSON.parse(text);
    if (format_version !== LISTING_VERSION || !isObject(files)) {
      return undefined;
    }
    return new Map(
      Object.entries(files).map(([path, file]) => {
        const { size, lfs_size = size, blob_id, lfs_sha256 } = file as Record<
          string,
          unknown
        >;
        if (!Number.isSafeInteger(lfs_size)) throw new Error(path);
        return [path, {
          size: lfs_size as number,
          blobId: String(blob_id),
          sha256: lfs_sha256 === undefined ? undefined : String(lfs_sha256),
        }];
      }),
    );
  } catch {
    return undefined; // only a hint: the files are listed again when one is missing
  }
}

/** Saves the list of a commit's files, in huggingface_hub's format. */
export async function writeListing(
  entry: string,
  commit: string,
  listing: Listing,
): Promise<void> {
  const files = Object.fromEntries(
    [...listing].sort(([a], [b]) => a < b ? -1 : 1).map((
      [path, { size, blobId, sha256, xetHash }],
    ) => [path, {
      size,
      blob_id: blobId,
      ...(sha256 && { lfs_sha256: sha256, lfs_size: size }),
      ...(xetHash && { xet_hash: xetHash }),
    }]),
  );
  await host.files.writeText(
    `${entry}/trees/${commit}.json`,
    JSON.stringify({ format_version: LISTING_VERSION, files }, undefined, 1),
  );
}

/** What is wanted of a repository. */
export interface Wanted {
  /** `owner/name` */
  name: string;
  /** A branch, tag or commit. */
  revision: string;
  /** The type or the name of a GGUF file. */
  pick?: string;
}

/** Where the cache has a model. */
export interface Place {
  folder: string;
  /** The GGUF file in it; undefined if it is a folder of safetensors. */
  gguf?: string;
}

/** What the cache holds of a revision. */
export interface Snapshot {
  /** The folder and commit; undefined if the cache does not know the revision. */
  folder?: string;
  commit?: string;
  /** The GGUF file in it, if the model is one. */
  gguf?: string;
  /** What is missing or damaged; empty if the model can be loaded. */
  problems: string[];
  /** Whether config.json and the weights are whole. */
  hasWeights: boolean;
  /** What may be missing, where only the repository can tell. */
  doubt?: string;
}

/** Looks up a revision in the cache. */
export async function findSnapshot(
  entry: string,
  wanted: Wanted,
): Promise<Snapshot> {
  const { revision } = wanted;
  const isCommit = /^[0-9a-f]{40}$/.test(revision);
  const ref = `${entry}/refs/${revision}`;
  const commit = isCommit ? revision : (await host.files.readText(ref))?.trim();
  if (!commit || !/^[0-9a-f]{40}$/.test(commit)) {
    return {
      problems: [
        commit
          ? `${ref} has ${JSON.stringify(commit.slice(0, 60))}, not a commit`
          : `there is no ${ref}`,
      ],
      hasWeights: false,
    };
  }
  const folder = `${entry}/snapshots/${commit}`;
  const listing = await readListing(entry, commit);
  const files = listing === undefined
    ? await filesIn(folder)
    : sizesOf(listing);
  const found = wanted.pick !== undefined || isGgufOnly([...files.keys()])
    ? await findGguf(folder, listing, files, wanted)
    : await findSafetensors(folder, listing, `${entry}/.no_exist/${commit}`);
  return { folder, commit, ...found };
}

/** The bytes of each listed file. */
export function sizesOf(listing: Listing): Map<string, number> {
  return new Map([...listing].map(([path, { size }]) => [path, size]));
}

/** The files of a folder and of the folders in it, with their bytes. */
async function filesIn(folder: string): Promise<Map<string, number>> {
  const files = new Map<string, number>();
  for (const name of (await host.files.list(folder) ?? new Map()).keys()) {
    const found = await host.files.find(`${folder}/${name}`); // follows links
    if (found === undefined) continue;
    if (!found.isDirectory) {
      files.set(name, found.size);
      continue;
    }
    for (const [path, size] of await filesIn(`${folder}/${name}`)) {
      files.set(`${name}/${path}`, size);
    }
  }
  return files;
}

/** Checks files of a snapshot, and collects what is wrong with them. */
class Check {
  readonly missing: string[] = [];
  readonly damaged: string[] = [];

  constructor(
    readonly folder: string,
    readonly listing: Listing | undefined,
  ) {}

  async file(name: string) {
    const path = `${this.folder}/${name}`;
    const found = await host.files.find(path);
    if (found === undefined) this.missing.push(name);
    else {
      const problem = await damage(path, found, this.listing?.get(name));
      if (problem !== undefined) this.damaged.push(`${path} ${problem}`);
    }
  }

  get problems(): string[] {
    const { missing, damaged } = this;
    return [
      ...missing.length > 0 ? [`${this.folder} lacks ${firstOf(missing)}`] : [],
      ...damaged.length > 0 ? [firstOf(damaged)] : [],
    ];
  }
}

type Found = Omit<Snapshot, "folder" | "commit">;

async function findSafetensors(
  folder: string,
  listing: Listing | undefined,
  notThere: string,
): Promise<Found> {
  const check = new Check(folder, listing);
  await check.file("config.json");
  for (const file of await weightFiles(folder, listing)) await check.file(file);
  const hasWeights = check.problems.length === 0;

  const unknown: string[] = [];
  for (const file of COMPANIONS) {
    if (await exists(`${folder}/${file}`) || listing?.has(file)) {
      await check.file(file);
    } else if (
      listing === undefined && !await exists(`${notThere}/${file}`)
    ) unknown.push(file);
  }
  for (const file of listing?.keys() ?? []) {
    if (isSentenceFile(file)) await check.file(file);
  }
  // Most repositories have their chat template in tokenizer_config.json.
  const template = unknown.indexOf("chat_template.jinja");
  if (template >= 0 && await hasTemplate(folder)) unknown.splice(template, 1);
  return {
    problems: check.problems,
    hasWeights,
    doubt: unknown.length === 0
      ? undefined
      : `${folder} lacks ${unknown.join(", ")}, which the repository may have`,
  };
}

async function findGguf(
  folder: string,
  listing: Listing | undefined,
  files: ReadonlyMap<string, number>,
  { name, pick }: Wanted,
): Promise<Found> {
  let choice: GgufChoice;
  try {
    choice = chooseGguf(files, pick);
  } catch (error) {
    if (!(error instanceof GgufChoiceError)) throw error;
    return { problems: [error.message], hasWeights: false };
  }
  const check = new Check(folder, listing);
  for (const part of partsOf(name, choice.file)) await check.file(part);
  return {
    gguf: choice.file,
    problems: check.problems,
    hasWeights: check.problems.length === 0,
    doubt: listing !== undefined || choice.isSure
      ? undefined
      : `${folder} has ${choice.file}, the repository may have others`,
  };
}

/** The first of a list, and how many more there are. */
function firstOf(items: readonly string[]): string {
  const more = items.length - MOST_NAMED;
  const named = items.slice(0, MOST_NAMED).join(", ");
  return more > 0 ? `${named} and ${more} more` : named;
}

/** The files that have the weights, as far as the cache knows. */
async function weightFiles(
  folder: string,
  listing: Listing | undefined,
): Promise<string[]> {
  if (await exists(`${folder}/${WEIGHTS}`)) return [WEIGHTS];
  const index = await host.files.readText(`${folder}/${INDEX}`);
  if (index === undefined) {
    if (listing?.has(WEIGHTS)) return [WEIGHTS];
    return [listing?.has(INDEX) ? INDEX : `${WEIGHTS} or ${INDEX}`];
  }
  try {
    const map = parseSafetensorsIndex(index, `${folder}/${INDEX}`);
    return [INDEX, ...shardsOf(map)];
  } catch {
    return [INDEX]; // damaged() says why
  }
}

/** The shards that an index names. */
export function shardsOf(index: ReadonlyMap<string, string>): string[] {
  return [...new Set(index.values())].sort();
}

async function hasTemplate(folder: string): Promise<boolean> {
  const text = await host.files.readText(`${folder}/tokenizer_config.json`);
  try {
    return JSON.parse(text ?? "{}").chat_template !== undefined;
  } catch {
    return false;
  }
}

/** Files up to this size are hashed on every check, which takes milliseconds. */
export const SMALL_BYTES = 1 << 26;

/**
 * What is wrong with a file of a snapshot. A large one is judged by its listed size or,
 * without a listing, by its own header.
 */
export async function damage(
  path: string,
  { size }: { size: number },
  listed: ListedFile | undefined,
  signal?: AbortSignal,
): Promise<string | undefined> {
  if (listed !== undefined) {
    return size <= SMALL_BYTES
      ? await verify(path, listed, signal)
      : wrongSize(size, listed);
  }
  if (path.endsWith(".safetensors")) {
    await using source = await openFile(path);
    try {
      if (source !== undefined) await readSafetensorsHeader(source);
      return undefined;
    } catch (error) {
      const why = errorText(error).replace(`Cannot read ${path}: `, "");
      return `is damaged: ${why}`;
    }
  }
  if (path.endsWith(".json")) {
    const text = (await host.files.readText(path) ?? "").trim();
    if (!/^\{[^]*\}$/.test(text)) return "is not a whole JSON object";
  }
}

function wrongSize(
  size: number,
  listed: Pick<ListedFile, "size">,
): string | undefined {
  return size === listed.size
    ? undefined
    : `has ${size} bytes, must have ${listed.size}`;
}

/** Bytes that are hashed between checks of the signal. */
const HASH_BYTES = 1 << 24;

/**
 * Compares a file on the disk with its size and hash in the list: SHA-256 for large
 * files (Git LFS and Xet), otherwise the SHA-1 that names a blob in Git. Returns what
 * differs, as "has …, must have …".
 */
export async function verify(
  path: string,
  listed: ListedFile,
  signal?: AbortSignal,
): Promise<string | undefined> {
  using file = await host.files.open(path);
  if (file === undefined) {
    return "is gone: another program must have removed it";
  }
  const size = wrongSize(file.size, listed);
  if (size !== undefined) return size;
  const hash = await host.createHash(listed.sha256 ? "sha256" : "sha1");
  if (!listed.sha256) {
    hash.update(new TextEncoder().encode(`blob ${listed.size}\0`));
  }
  const hex = await hashOf(file, hash, signal);
  const expected = listed.sha256 ?? listed.blobId;
  return hex === expected
    ? undefined
    : `has the ${
      listed.sha256 ? "SHA-256" : "Git SHA-1"
    } ${hex}, must have ${expected}`;
}

/** Hashes a whole file. */
export async function hashOf(
  file: ReadableFile,
  hash: StreamingHash,
  signal?: AbortSignal,
): Promise<string> {
  const bytes = new Uint8Array(Math.min(HASH_BYTES, file.size));
  for (let begin = 0; begin < file.size; begin += bytes.length) {
    const count = await file.read(begin, bytes);
    hash.update(bytes.subarray(0, count));
    if (count < bytes.length) break;
    await new Promise((resolve) => setTimeout(resolve)); // lets an abort arrive
    signal?.throwIfAborted();
  }
  return await hash.hex();
}

export async function exists(path: string): Promise<boolean> {
  return await host.files.find(path) !== undefined;
}
