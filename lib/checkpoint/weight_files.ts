/**
 * Opens the safetensors files of a checkpoint and finds the model's tensors in them.
 *
 * @module
 */
import type { Purpose, TensorInfo } from "./checkpoint.ts";
import type { Qwen3Config } from "./config.ts";
import { listed, quoted } from "../errors.ts";
import { storedRowBytes } from "../formats/format.ts";
import { selectTensors, type TensorSelection } from "../model/tensors.ts";
import { refusePage } from "./file_kind.ts";
import {
  parseSafetensorsIndex,
  READABLE,
  readSafetensorsHeader,
  type SafetensorsEntry,
} from "./safetensors.ts";
import type { OpenSource } from "./sources.ts";

/** The folder with a checkpoint's files, local or remote. Missing files are undefined. */
export interface Folder {
  location: string;
  /** The full path or URL of a file, for errors. */
  locate(file: string): string;
  open(file: string): Promise<OpenSource | undefined>;
  text(file: string): Promise<string | undefined>;
  /** Copies the weights that were opened, before their tensors are read. */
  keep?(): Promise<void>;
  /** Whether a file is known to be there; false if only a request could tell. */
  has(file: string): Promise<boolean>;
}

/** A tensor's header entry. */
export type Stored = SafetensorsEntry<OpenSource>;

/** A model's tensors by the names that its family uses. */
export interface OpenedWeights {
  /** The configuration, corrected by what the files show. */
  config: Qwen3Config;
  tensors: Map<string, TensorInfo>;
  stored: Map<string, Stored>;
  /** What a user should know about the files. */
  notices: string[];
  /** Set if there is no LM head. */
  only?: Purpose;
}

const WHOLE = "model.safetensors";
const INDEX = "model.safetensors.index.json";
/** Other ways to store weights, recognised by their files. */
const OTHERS = [
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
  "consolidated.safetensors",
  "adapter_model.safetensors",
  "tf_model.h5",
  "flax_model.msgpack",
];
/** Rows that are compared to decide whether an LM head is the embedding. */
const COMPARED_ROWS = 8;

/**
 * Opens the weights of a folder and checks them against its configuration. Only headers
 * and a few rows are read.
 *
 * @param opened takes the files that have to be closed
 * @throws {Error} if files are missing or broken, or do not hold the model's tensors in
 * readable types
 */
export async function openWeights(
  name: string,
  config: Qwen3Config,
  folder: Folder,
  opened: AsyncDisposableStack,
): Promise<OpenedWeights> {
  const files = await openFiles(name, folder, opened);
  const { found, promised } = files, notices: string[] = [];
  let selection = selectTensors(name, config, found, promised);
  const { tied, headless } = selection;
  // What is computed with the head is never asked for, see `only`.
  if (headless) config = { ...config, tieWordEmbeddings: true };
  if (tied) {
    const [embedding, head] = [tied.embedding, tied.head].map((own) =>
      found.get(own)!
    );
    if (!READABLE.has(head.dtype)) selection.unused.push(head.name);
    else if (READABLE.has(embedding.dtype) && await differ(embedding, head)) {
      notices.push(
        `config.json has tie_word_embeddings true, but ${head.name} differs from ${embedding.name}: both are used`,
      );
      config = { ...config, tieWordEmbeddings: false };
      selection = selectTensors(name, config, found, promised);
    }
  }
  notices.push(...noticesOf(files, selection));
  const tensors = new Map<string, TensorInfo>();
  const stored = new Map<string, Stored>();
  for (const [tensor, own] of selection.names) {
    const entry = found.get(own)!;
    stored.set(tensor, entry);
    tensors.set(tensor, infoOf(name, tensor, entry));
  }
  const only = headless ? WITHOUT_HEAD : undefined;
  return { config, tensors, stored, notices, only };
}

const WITHOUT_HEAD: Purpose = {
  is: "an embedding model",
  why:
    "there is no lm_head.weight, and config.json has tie_word_embeddings false",
};

/** Says what is unused, and where the index is wrong. */
function noticesOf(
  { found, where, shardOf, fileOf }: Found,
  { names, unused, lost }: TensorSelection,
): string[] {
  const tensors = (count: number) =>
    count === 1 ? "a tensor" : `${count} tensors`;
  const notices: string[] = [];
  if (unused.length > 0) {
    notices.push(
      `the weights have ${
        tensors(unused.length)
      } that the model does not use: ${listed(unused)}`,
    );
  }
  if (lost.length > 0) {
    notices.push(
      `${where} has ${tensors(lost.length)} that no file has: ${listed(lost)}`,
    );
  }
  const moved = [...names.values()].filter((own) =>
    shardOf && shardOf.get(own) !== fileOf.get(found.get(own)!.source)
  );
  if (moved.length > 0) {
    notices.push(
      `${where} is wrong about the location of ${tensors(moved.length)}: ${
        listed(moved)
      }`,
    );
  }
  return notices;
}

/** Describes a tensor that is needed. */
function infoOf(
  checkpoint: string,
  name: string,
  { name: own, dtype, shape, begin, end, source }: Stored,
): TensorInfo {
  const format = READABLE.get(dtype);
  if (format) return { name, format, shape, byteLength: end - begin };
  const quantised = /^(F8_|F6_|F4|[IU](4|8|16|32)$)/.test(dtype)
    ? ", a quantised form"
    : "";
  throw new Error(
    `Cannot load ${checkpoint}: ${own} in ${source.name} has dtype ${dtype}${quantised}, must be one of ${
      [...READABLE.keys()].join(", ")
    }`,
  );
}

/** Whether some rows of two tables of one shape differ. */
async function differ(a: Stored, b: Stored): Promise<boolean> {
  const [rows, k] = a.shape;
  const some = Array.from(
    { length: COMPARED_ROWS },
    (_, i) => Math.floor(i * (rows - 1) / (COMPARED_ROWS - 1)),
  );
  const differences = await Promise.all([...new Set(some)].map(async (row) => {
    const [x, y] = await Promise.all([a, b].map((one) => rowOf(one, row, k)));
    return x.some((value, i) => value !== y[i] && !Object.is(value, y[i]));
  }));
  return differences.some(Boolean);
}

/** Reads one row as f32. */
async function rowOf(
  { dtype, begin, source }: Stored,
  row: number,
  k: number,
): Promise<Float32Array> {
  const format = READABLE.get(dtype)!;
  const bytes = new Uint8Array(storedRowBytes(format, k));
  await source.read(begin + row * bytes.length, bytes);
  const values = new Float32Array(k);
  format.unpack([bytes], 0, k, values);
  return values;
}

/** What the headers of a checkpoint's files hold. */
interface Found {
  found: Map<string, Stored>;
  /** The index, and files by tensors as it has them; absent for a single file. */
  where?: string;
  shardOf?: ReadonlyMap<string, string>;
  /** Files by tensors that the index wrongly puts there. */
  promised: ReadonlyMap<string, string>;
  /** Names of the open files. */
  fileOf: ReadonlyMap<OpenSource, string>;
}

/** Reads the header of `model.safetensors`, or of each shard in the index. */
async function openFiles(
  name: string,
  folder: Folder,
  opened: AsyncDisposableStack,
): Promise<Found> {
  const fileOf = new Map<OpenSource, string>();
  const openHeader = async (file: string) => {
    const source = await folder.open(file);
    if (source === undefined) return undefined;
    opened.use(source);
    fileOf.set(source, file);
    return await readSafetensorsHeader(source);
  };
  const whole = await openHeader(WHOLE);
  if (whole !== undefined) {
    return { found: whole, promised: new Map(), fileOf };
  }
  const where = folder.locate(INDEX), text = await folder.text(INDEX);
  if (text === undefined) throw await withoutWeights(name, folder);
  refusePage(text, where);
  const shardOf = parseSafetensorsIndex(text, where);
  const headers: Map<string, Stored>[] = [];
  const missing: string[] = [];
  for (const shard of new Set(shardOf.values())) {
    const header = await openHeader(shard);
    if (header === undefined) missing.push(folder.locate(shard));
    else headers.push(header);
  }
  if (missing.length > 0) {
    throw new Error(
      `Cannot open ${name}: shards are missing: ${listed(missing)}`,
    );
  }
  const found = merge(name, where, shardOf, headers, fileOf);
  const promised = new Map(
    [...shardOf].filter(([tensor]) => !found.has(tensor)),
  );
  return { found, where, shardOf, promised, fileOf };
}

/**
 * Merges the tensors of shards. As in transformers, the index says which files there
 * are; where it is wrong about a tensor, the files win.
 */
function merge(
  name: string,
  where: string,
  shardOf: ReadonlyMap<string, string>,
  headers: readonly ReadonlyMap<string, Stored>[],
  fileOf: ReadonlyMap<OpenSource, string>,
): Map<string, Stored> {
  const found = new Map<string, Stored>();
  for (const header of headers) {
    for (const [tensor, entry] of header) {
      const one = found.get(tensor);
      if (one !== undefined) {
        const [other, shard] = [one, entry].map(({ source }) =>
          fileOf.get(source)
        );
        const named = shardOf.get(tensor);
        if (named === other) continue;
        if (named !== shard) {
          throw new Error(
            `Cannot open ${name}: ${
              quoted(tensor)
            } is in ${other} and in ${shard}, ${where} must put it in one of them`,
          );
        }
      }
      found.set(tensor, entry);
    }
  }
  return found;
}

/** Says what was looked for and, where the folder can be searched, what is there. */
async function withoutWeights(name: string, folder: Folder): Promise<Error> {
  const others: string[] = [];
  for (const file of OTHERS) if (await folder.has(file)) others.push(file);
  const instead = others.length > 0
    ? `; ${others.join(", ")} must be converted to safetensors`
    : "";
  return new Error(
    `Cannot open ${name}: there are no weights (looked for ${
      folder.locate(WHOLE)
    } and ${folder.locate(INDEX)}${instead})`,
  );
}
