/**
 * Opens checkpoints: folders, URLs, Hugging Face Hub repositories and synthetic ones.
 * Tensors are read by byte range.
 *
 * @module
 */
import { errorText, listed } from "../errors.ts";
import type { Checkpoint } from "./checkpoint.ts";
import type { Qwen3Config } from "./config.ts";
import { refusePage } from "./file_kind.ts";
import {
  type GenerationDefaults,
  ignoredNotice,
  parseGeneration,
} from "./generation_config.ts";
import { type FoundFile, host } from "../host.ts";
import { chooseGguf, GgufChoiceError, isGgufOnly } from "./gguf_files.ts";
import { openGguf } from "./gguf_model.ts";
import { decoded, fileHint, nameHint, urlHint } from "./hints.ts";
import { findRepository, parseRepositoryId, type Repository } from "./hub.ts";
import type { Place } from "./hub_cache.ts";
import { parseJson } from "../json.ts";
import {
  notOneOf,
  quantizationNamed,
  quantizedFormats,
} from "./quantization.ts";
import { quantized } from "./quantized.ts";
import { checkReadTimeout, shownUrl, Unreachable } from "./fetch.ts";
import {
  checkRange,
  MOST_TEXT,
  openFile,
  type OpenOptions,
  readTextFile,
  tooLong,
} from "./sources.ts";
import { readPurpose } from "./sentence_modules.ts";
import { parseSynthetic } from "./synthetic.ts";
import { WebFolder } from "./web_folder.ts";
import { type Folder, openWeights } from "./weight_files.ts";
import { parseConfig } from "../model/families.ts";

/**
 * Opens a checkpoint: its configuration and the headers of its weights.
 *
 * `spec` is one of
 * - `synthetic:qwen3-0.6b?seed=1`: weights computed by a rule, see synthetic.ts
 * - `https://host/folder/`: copied to the cache, see web_folder.ts
 * - a directory, as a path or a `file:` URL
 * - a `.gguf` file, as a path or a URL, or a directory with one and no safetensors;
 *   `directory:Q4_K_M` or `directory:FILE.gguf` if it has several
 * - `owner/name` or `owner/name@revision`: a repository of the Hugging Face Hub,
 *   from its cache or downloaded into it, see hub.ts; of GGUF files, one:
 *   `owner/name:Q4_K_M`, `owner/name@revision:FILE.gguf`
 *
 * ```ts
 * import { openCheckpoint } from "./open.ts";
 *
 * await using checkpoint = await openCheckpoint("synthetic:qwen3-0.6b?layers=1");
 * const bytes = new Uint8Array(2048);
 * await checkpoint.read("model.norm.weight", 0, bytes);
 * ```
 *
 * @throws {Error} if there is no such checkpoint (the message says where it looked), if
 * a file is broken or truncated, if the model is not supported, or is quantised and has
 * to be once more
 */
export async function openCheckpoint(
  spec: string,
  options: OpenOptions = {},
): Promise<Checkpoint> {
  const { quantize } = options;
  if (quantize === undefined) return await openStored(spec, options);
  const way = quantizationNamed(quantize);
  if (way === undefined) {
    throw cannotOpen(spec, `quantize is ${notOneOf(quantize)}`);
  }
  await using opened = new AsyncDisposableStack();
  const checkpoint = opened.use(await openStored(spec, options));
  const formats = quantizedFormats(checkpoint, way);
  opened.move();
  return quantized(checkpoint, formats, options.onNotice ?? undefined);
}

/** Opens a checkpoint as it is stored. */
async function openStored(
  spec: string,
  options: OpenOptions,
): Promise<Checkpoint> {
  options.signal?.throwIfAborted();
  checkReadTimeout(`Cannot open ${shownUrl(spec)}`, options.readTimeout);
  if (host.base !== undefined) spec = urlInPage(spec, host.base);
  if (/^synthetic:/i.test(spec)) return parseSynthetic(spec);
  if (/^https?:/i.test(spec)) {
    const gguf = ggufUrl(spec);
    if (gguf !== undefined) {
      const { base, file } = gguf;
      const folder = await webFolder(base, options);
      return await openGguf(shownUrl(spec), folder, file, options);
    }
    const folder = await webFolder(spec, options);
    return await openFolder(shownUrl(spec), folder, options);
  }
  const found = await existing(spec);
  if (found !== undefined) {
    if (!found.isDirectory) {
      const [, directory, file] = /^(.*[/\\])?([^/\\]+)$/.exec(found.path)!;
      const folder = localFolder((directory ?? "./").slice(0, -1));
      return await openGguf(spec, folder, file, options);
    }
    return await openDirectory(spec, found.path, options);
  }
  const [, directory, pick] = /^(.+):([^:\\]+)$/.exec(spec) ?? [];
  if (pick !== undefined) {
    const found = await find(directory);
    if (found?.isDirectory) {
      return await openDirectory(spec, found.path, options, pick);
    }
    if (found) throw cannotOpen(spec, `it is a file, leave :${pick} out`);
  }
  return await openRepository(spec, options);
}

/**
 * The URL of what a page calls a model: a URL, also one relative to the page's, or a
 * repository of the Hub, whose files are those of a web folder.
 */
function urlInPage(spec: string, base: string): string {
  if (/^(synthetic|https?):/i.test(spec)) return spec;
  if (/^\.{0,2}\//.test(spec)) return new URL(spec, base).href;
  const repository = nameHint(spec) ? undefined : parseRepositoryId(spec);
  if (repository === undefined) {
    throw cannotOpen(
      spec,
      "a page opens URLs, paths such as ./model/ and repositories owner/name",
    );
  }
  const { name, revision, pick = "" } = repository;
  if (pick !== "" && !/\.gguf$/i.test(pick)) {
    throw cannotOpen(
      spec,
      `a page needs the whole name, such as :${pick}.gguf`,
    );
  }
  return `https://huggingface.co/${name}/resolve/${revision}/${pick}`;
}

/** Opens a directory: its safetensors, or its only or chosen GGUF file. */
async function openDirectory(
  spec: string,
  path: string,
  options: OpenOptions,
  pick?: string,
): Promise<Checkpoint> {
  const folder = localFolder(path);
  const names = [...(await host.files.list(path) ?? new Map()).keys()];
  if (pick === undefined && !isGgufOnly(names)) {
    return await openFolder(spec, folder, options);
  }
  const files = new Map<string, number>();
  for (const name of names) {
    const found = await host.files.find(folder.locate(name)); // follows links
    if (found?.isDirectory === false) files.set(name, found.size);
  }
  let file: string;
  try {
    file = chooseGguf(files, pick).file;
  } catch (cause) {
    if (!(cause instanceof GgufChoiceError)) throw cause;
    throw cannotOpen(spec, cause.message);
  }
  return await openGguf(spec, folder, file, options);
}

async function openRepository(
  spec: string,
  options: OpenOptions,
): Promise<Checkpoint> {
  const repository = repositoryOf(spec);
  let place: Place;
  try {
    place = await findRepository(repository, options);
  } catch (cause) {
    options.signal?.throwIfAborted();
    const hint = await pathHint(repository.name);
    if (hint === undefined) throw cause;
    const why = isOffline(cause)
      ? ", and no repository can be downloaded: there is no connection"
      : "; " + errorText(cause)
        .replace(`Cannot open ${repository.name}: it `, "the repository ");
    throw cannotOpen(spec, hint + why, cause);
  }
  const folder = localFolder(place.folder);
  return place.gguf === undefined
    ? await openFolder(spec, folder, options)
    : await openGguf(spec, folder, place.gguf, options);
}

function isOffline(error: unknown): boolean {
  return error instanceof Error && error.cause instanceof Unreachable &&
    error.cause.noConnection;
}

/** The error for a name that cannot be opened. */
function cannotOpen(spec: string, why: string, cause?: unknown): Error {
  const shown = JSON.stringify(shownUrl(spec).slice(0, 300));
  return new Error(`Cannot open ${shown}: ${why}`, { cause });
}

/**
 * The repository that a name stands for if there is no such folder.
 *
 * @throws {Error} if it can only be a folder's, or is another program's
 */
function repositoryOf(spec: string): Repository {
  const hint = nameHint(spec);
  if (hint !== undefined) throw cannotOpen(spec, hint);
  const repository = parseRepositoryId(spec);
  if (repository === undefined) {
    // Also C:\models, \\server\models and file:///models.
    if (/^([a-z]:|file:)?[/\\]/i.test(spec)) {
      throw cannotOpen(spec, "there is no such directory");
    }
    throw cannotOpen(
      spec,
      `there is no such directory (looked in ${host.files.currentFolder()}); a repository is owner/name`,
    );
  }
  return repository;
}

/** Says that a repository's name may be a mistyped path; undefined if it is none. */
async function pathHint(name: string): Promise<string | undefined> {
  const [owner, inside] = name.split("/");
  return (await host.files.find(owner))?.isDirectory
    ? `the directory ${owner} has no ${inside}`
    : undefined;
}

function localFolder(directory: string): Folder {
  const locate = (file: string) => `${directory}/${file}`;
  return {
    location: directory,
    locate,
    open: (file) => openFile(locate(file)),
    text: (file) => readTextFile(locate(file)),
    has: async (file) => await host.files.find(locate(file)) !== undefined,
  };
}

async function webFolder(spec: string, options: OpenOptions): Promise<Folder> {
  const base = URL.parse(spec);
  if (base === null) throw cannotOpen(spec, "it is not a valid URL");
  const hint = urlHint(base);
  if (hint !== undefined) throw cannotOpen(spec, hint);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return await WebFolder.open(base, options);
}

/** The folder and the name of a GGUF file on the web; undefined for other URLs. */
function ggufUrl(spec: string): { base: string; file: string } | undefined {
  const url = URL.parse(spec);
  const [, folder, name] = /^(.*\/)([^/]+\.gguf)$/i.exec(url?.pathname ?? "") ??
    [];
  if (url === null || name === undefined || urlHint(url)) return undefined;
  url.pathname = folder;
  return { base: url.href, file: decoded(name) };
}

/** What a path or `file:` URL leads to: a directory or a GGUF file. */
async function existing(spec: string): Promise<FoundFile | undefined> {
  const found = await find(spec);
  if (found === undefined || found.isDirectory) return found;
  // A link keeps its name: the Hub's cache has links to files without names.
  const path = /^file:/i.test(spec) ? found.path : spec;
  if (/\.gguf$/i.test(path)) return { ...found, path };
  throw cannotOpen(spec, fileHint(spec));
}

async function find(spec: string): Promise<FoundFile | undefined> {
  const { files } = host; // throws where there are none
  try {
    return await files.find(/^file:/i.test(spec) ? new URL(spec) : spec);
  } catch (cause) {
    throw cannotOpen(spec, errorText(cause), cause);
  }
}

/** The most characters of config.json and of generation_config.json: 1 MiB. */
const MOST_CONFIG = 2 ** 20;

/** A text file of a folder; undefined if there is none. */
async function textOf(
  folder: Folder,
  file: string,
  most = MOST_TEXT,
): Promise<string | undefined> {
  const text = await folder.text(file);
  if (text === undefined) return undefined;
  if (text.length > most) throw tooLong(folder.locate(file), text.length, most);
  refusePage(text, folder.locate(file));
  return text;
}

/** A parsed configuration file; undefined if there is none. */
async function jsonOf(folder: Folder, file: string): Promise<unknown> {
  const text = await textOf(folder, file, MOST_CONFIG);
  return text === undefined ? undefined : parseJson(text, folder.locate(file));
}

async function openFolder(
  name: string,
  folder: Folder,
  { signal }: OpenOptions,
): Promise<Checkpoint> {
  const where = folder.locate("config.json");
  const json = await jsonOf(folder, "config.json");
  if (json === undefined) throw await withoutConfig(name, folder);
  const config = parseConfig(json, where);
  const generationJson = await jsonOf(folder, "generation_config.json");
  // As in transformers, the older place counts only if the newer one is missing.
  const generation = generationJson === undefined
    ? parseGeneration(json, where)
    : parseGeneration(generationJson, folder.locate("generation_config.json"));

  const purpose = await readPurpose(
    (file) => jsonOf(folder, file),
    (file) => folder.locate(file),
  );
  await using opened = new AsyncDisposableStack();
  const weights = await openWeights(name, config, folder, opened);
  const { stored, tensors, notices } = weights;
  const files = opened.move();
  let kept: Promise<void> | undefined;
  return {
    name,
    location: folder.location,
    config: weights.config,
    generation,
    tensors,
    notices: [
      ...notices,
      ignoredNotice(generation, folder.location) ?? [],
      deadEnds(config, generation) ?? [],
    ].flat(),
    async read(name, begin, into) {
      signal?.throwIfAborted();
      checkRange(name, tensors.get(name)?.byteLength, begin, into.length);
      const tensor = stored.get(name)!;
      await (kept ??= folder.keep?.());
      await tensor.source.read(tensor.begin + begin, into);
    },
    text: (file) => textOf(folder, file),
    only: weights.only ?? purpose,
    [Symbol.asyncDispose]: () => files.disposeAsync(),
  };
}

async function withoutConfig(name: string, folder: Folder): Promise<Error> {
  const adapter = await folder.has("adapter_config.json")
    ? " but adapter_config.json: a LoRA adapter has to be merged into its model"
    : "";
  const where = folder.locate("config.json");
  // Nobody can list it.
  const gguf = /^https?:/i.test(where) ? "; of a GGUF file pass the URL" : "";
  return new Error(
    `Cannot open ${name}: there is no ${where}${adapter}${gguf}`,
  );
}

/** Says which end-of-text tokens the model cannot produce. */
function deadEnds(
  { vocabSize, eosTokenIds }: Qwen3Config,
  generation: GenerationDefaults,
): string | undefined {
  const ids = generation.eosTokenIds ?? eosTokenIds;
  const beyond = ids.filter((id) => id >= vocabSize);
  if (beyond.length === 0) return undefined;
  return `eos_token_id has ${
    listed(beyond.map(String))
  }, which can never end a text: vocab_size is ${vocabSize}`;
}
