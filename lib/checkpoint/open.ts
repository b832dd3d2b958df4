/**
 * Opens checkpoints: folders, URLs, Hugging Face Hub repositories and synthetic ones.
 * Tensors are read by byte range.
 *
 * @module
 */
import type { Checkpoint, TensorInfo } from "./checkpoint.ts";
import { parseGeneration } from "./generation_config.ts";
import { errorText } from "../errors.ts";
import { type FoundFile, host } from "../host.ts";
import { parseRepositoryId, repositoryFolder } from "./hub.ts";
import { parseJson } from "../json.ts";
import { checkReadTimeout, shownUrl } from "./fetch.ts";
import {
  parseSafetensorsIndex,
  readSafetensorsHeader,
  type SafetensorsEntry,
} from "./safetensors.ts";
import { fetchText, openUrl } from "./http.ts";
import {
  checkRange,
  openFile,
  type OpenOptions,
  type OpenSource,
} from "./sources.ts";
import { parseSynthetic } from "./synthetic.ts";
import { parseConfig } from "../model/families.ts";

/**
 * Opens a checkpoint: its configuration and the headers of its weights.
 *
 * `spec` is one of
 * - `synthetic:qwen3-0.6b?seed=1`: weights computed by a rule, see synthetic.ts
 * - `https://host/folder/`: read with range requests
 * - a directory, as a path or a `file:` URL
 * - `owner/name` or `owner/name@revision`: a repository of the Hugging Face Hub,
 *   from its cache or downloaded into it, see hub.ts
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
 * a file is broken or truncated, or if the model is not supported
 */
export async function openCheckpoint(
  spec: string,
  options: OpenOptions = {},
): Promise<Checkpoint> {
  options.signal?.throwIfAborted();
  checkReadTimeout(`open ${shownUrl(spec)}`, options.readTimeout);
  if (/^synthetic:/i.test(spec)) return parseSynthetic(spec);
  if (/^https?:/i.test(spec)) {
    const folder = webFolder(spec, options);
    return await openFolder(shownUrl(spec), folder, options);
  }
  const directory = await existingDirectory(spec);
  if (directory !== undefined) {
    return await openFolder(spec, localFolder(directory), options);
  }
  const repository = parseRepositoryId(spec);
  if (repository === undefined) {
    if (/^([a-z]:)?[/\\]/i.test(spec)) { // also C:\models and \\server\models
      throw new Error(
        `Cannot open ${JSON.stringify(spec)}: there is no such directory`,
      );
    }
    throw new Error(
      `Cannot open ${
        JSON.stringify(spec)
      }: there is no such directory (looked in ${host.files.currentFolder()}), and it is not a repository id (owner/name), an http(s) URL or synthetic:qwen3-…`,
    );
  }
  const folder = await repositoryFolder(repository, options);
  return await openFolder(spec, localFolder(folder), options);
}

/**
 * The folder with a checkpoint's files, local or remote. Missing files are undefined.
 */
interface Folder {
  location: string;
  /** The full path or URL of a file, for errors. */
  locate(file: string): string;
  open(file: string): Promise<OpenSource | undefined>;
  text(file: string): Promise<string | undefined>;
}

function localFolder(directory: string): Folder {
  const locate = (file: string) => `${directory}/${file}`;
  return {
    location: directory,
    locate,
    open: (file) => openFile(locate(file)),
    text: (file) => host.files.readText(locate(file)),
  };
}

function webFolder(spec: string, options: OpenOptions): Folder {
  const base = URL.parse(spec);
  if (base === null) {
    throw new Error(
      `Cannot open ${JSON.stringify(shownUrl(spec))}: it is not a valid URL`,
    );
  }
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  const urlOf = (file: string) => {
    const url = new URL(base);
    url.pathname += encodeURIComponent(file);
    return url.href; // with the folder's query, which may be a signature
  };
  return {
    location: shownUrl(urlOf("")),
    locate: (file) => shownUrl(urlOf(file)),
    open: (file) => openUrl(urlOf(file), options),
    text: (file) => fetchText(urlOf(file), options),
  };
}

async function existingDirectory(spec: string): Promise<string | undefined> {
  const { files } = host;
  let found: FoundFile | undefined;
  try {
    found = await files.find(/^file:/i.test(spec) ? new URL(spec) : spec);
  } catch (cause) {
    throw new Error(
      `Cannot open ${JSON.stringify(spec.slice(0, 300))}: ${errorText(cause)}`,
      { cause },
    );
  }
  if (found === undefined || found.isDirectory) return found?.path;
  throw new Error(
    `Cannot open ${
      JSON.stringify(spec)
    }: it is a file, must be the folder of a checkpoint`,
  );
}

/** A tensor's header entry, and the file that holds the tensor. */
interface Stored extends SafetensorsEntry {
  source: OpenSource;
}

async function openFolder(
  name: string,
  folder: Folder,
  { signal }: OpenOptions,
): Promise<Checkpoint> {
  const where = folder.locate("config.json");
  const configText = await folder.text("config.json");
  if (configText === undefined) {
    throw new Error(`Cannot open ${name}: there is no ${where}`);
  }
  const configJson = parseJson(configText, where);
  const config = parseConfig(configJson, where);
  const generationWhere = folder.locate("generation_config.json");
  const generationText = await folder.text("generation_config.json");
  // As in transformers, the older place counts only if the newer one is missing.
  const generation = generationText === undefined
    ? parseGeneration(configJson, where)
    : parseGeneration(
      parseJson(generationText, generationWhere),
      generationWhere,
    );

  await using opened = new AsyncDisposableStack();
  const stored = await openWeights(name, folder, opened);
  const tensors = new Map<string, TensorInfo>();
  for (const [name, { format, shape, begin, end }] of stored) {
    tensors.set(name, { name, format, shape, byteLength: end - begin });
  }
  const files = opened.move();
  return {
    name,
    location: folder.location,
    config,
    generation,
    tensors,
    async read(name, begin, into) {
      signal?.throwIfAborted();
      checkRange(name, tensors.get(name)?.byteLength, begin, into.length);
      const tensor = stored.get(name)!;
      await tensor.source.read(tensor.begin + begin, into);
    },
    text: folder.text,
    [Symbol.asyncDispose]: () => files.disposeAsync(),
  };
}

/** Reads the header of `model.safetensors`, or of each shard in its index. */
async function openWeights(
  name: string,
  folder: Folder,
  opened: AsyncDisposableStack,
): Promise<Map<string, Stored>> {
  const openHeader = async (file: string) => {
    const source = await folder.open(file);
    if (source === undefined) return undefined;
    opened.use(source);
    const stored = new Map<string, Stored>();
    for (const [tensor, entry] of await readSafetensorsHeader(source)) {
      stored.set(tensor, { ...entry, source });
    }
    return stored;
  };
  const whole = await openHeader("model.safetensors");
  if (whole !== undefined) return whole;

  const indexWhere = folder.locate("model.safetensors.index.json");
  const indexText = await folder.text("model.safetensors.index.json");
  if (indexText === undefined) {
    throw new Error(
      `Cannot open ${name}: there are no weights (looked for ${
        folder.locate("model.safetensors")
      } and ${indexWhere})`,
    );
  }
  const shardOf = parseSafetensorsIndex(indexText, indexWhere);
  const stored = new Map<string, Stored>();
  const missing: string[] = [];
  for (const shard of new Set(shardOf.values())) {
    const tensors = await openHeader(shard);
    if (tensors === undefined) missing.push(folder.locate(shard));
    for (const [tensor, entry] of tensors ?? []) {
      if (shardOf.get(tensor) !== shard) {
        throw new Error(
          `Cannot open ${name}: ${tensor} is in ${shard}, but ${indexWhere} puts it in ${
            shardOf.get(tensor) ?? "no file"
          }`,
        );
      }
      stored.set(tensor, entry);
    }
  }
  if (missing.length > 0) {
    throw new Error(
      `Cannot open ${name}: shards are missing: ${missing.join(", ")}`,
    );
  }
  const lost = [...shardOf].filter(([tensor]) => !stored.has(tensor));
  if (lost.length > 0) {
    const list = lost.map(([tensor, shard]) => `${tensor} (${shard})`).join(
      ", ",
    );
    throw new Error(
      `Cannot open ${name}: ${indexWhere} names tensors that are not in their files: ${list}`,
    );
  }
  return stored;
}
