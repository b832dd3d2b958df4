/**
 * Opens GGUF files: one, or the parts of a split one. Configuration, tokenizer and
 * generation defaults come from the metadata.
 *
 * @module
 */
import {
  type Checkpoint,
  CLASSIFIER,
  type Purpose,
  type TensorInfo,
} from "./checkpoint.ts";
import { ConfigFields, type Qwen3Config } from "./config.ts";
import { jsonText, listed, quoted } from "../errors.ts";
import { storedRowBytes } from "../formats/format.ts";
import { FORMATS } from "../formats/mod.ts";
import { familyOfGguf } from "../model/families.ts";
import { type Family, listWeights, stackedShape } from "../model/family.ts";
import {
  type GenerationDefaults,
  parseGeneration,
} from "./generation_config.ts";
import { type GgufHeader, type GgufValue, readGgufHeader } from "./gguf.ts";
import { partsOf } from "./gguf_files.ts";
import { endTokens, storedTokenizer } from "./gguf_tokenizer.ts";
import { checkRange, type OpenOptions, type OpenSource } from "./sources.ts";
import type { Folder, Stored } from "./weight_files.ts";

/** A reranker's rows for yes and no. */
export const YES_NO = "cls.output.weight";
/** Tensors beside a weight that change it. */
const CHANGES = /\.(bias|scale|input_scale)$/;

type Metadata = ReadonlyMap<string, GgufValue>;

/**
 * Opens a GGUF file of a folder.
 *
 * @param name of the checkpoint, for errors
 * @throws {Error} if there is no such file, it or another part of it is broken, or it
 * holds no supported model in readable types
 */
export async function openGguf(
  name: string,
  folder: Folder,
  file: string,
  { signal }: OpenOptions,
): Promise<Checkpoint> {
  await using opened = new AsyncDisposableStack();
  const { metadata, tensors: found } = await openParts(
    name,
    folder,
    file,
    opened,
  );
  const where = folder.locate(file);
  const family = familyOfGguf(metadata.get("general.architecture"), where);
  const config = configOf(family, metadata, found, where);
  const { stored, tensors, unused } = select(name, family, config, found);
  const { generation, notices } = generationOf(metadata, config, where);
  const files = opened.move();
  let kept: Promise<void> | undefined;
  const hasTokenizer = (metadata.get("tokenizer.ggml.model") ?? "none") !==
    "none";
  return {
    name,
    location: where,
    config,
    generation,
    tensors,
    notices: [...notices, unusedNotice(unused) ?? []].flat(),
    async read(name, begin, into) {
      signal?.throwIfAborted();
      checkRange(name, tensors.get(name)?.byteLength, begin, into.length);
      const tensor = stored.get(name)!;
      await (kept ??= folder.keep?.());
      await tensor.source.read(tensor.begin + begin, into);
    },
    text: () => Promise.resolve(undefined),
    tokenizer: hasTokenizer
      ? () => storedTokenizer(metadata, config.vocabSize, where)
      : undefined,
    only: purposeOf(family, metadata, where),
    rerankTemplate: rerankTemplate(metadata),
    [Symbol.asyncDispose]: () => files.disposeAsync(),
  };
}

function unusedNotice(unused: readonly string[]): string | undefined {
  if (unused.length === 0) return undefined;
  const tensors = unused.length === 1 ? "a tensor" : `${unused.length} tensors`;
  return `the weights have ${tensors} that the model does not use: ${
    listed(unused)
  }`;
}

/** Opens a file with the other parts of it, if there are any. */
async function openParts(
  name: string,
  folder: Folder,
  file: string,
  opened: AsyncDisposableStack,
): Promise<GgufHeader<OpenSource>> {
  const parts = partsOf(name, file);
  const sources: OpenSource[] = [], missing: string[] = [];
  for (const part of parts) {
    const source = await folder.open(part);
    if (source === undefined) missing.push(folder.locate(part));
    else sources.push(opened.use(source));
  }
  if (missing.length > 0) {
    throw new Error(
      parts.length === 1
        ? `Cannot open ${name}: there is no ${
          missing[0] === name ? "such file" : missing[0]
        }`
        : `Cannot open ${name}: ${missing.length} of ${parts.length} parts are missing: ${
          listed(missing)
        }`,
    );
  }
  const headers: GgufHeader<OpenSource>[] = [];
  for (const [i, source] of sources.entries()) {
    const header = await readGgufHeader(source);
    checkPart(source.name, header.metadata, i, parts.length);
    headers.push(header);
  }
  return merged(name, headers);
}

/** @throws {Error} if a file is not the part that its name says. */
function checkPart(
  where: string,
  metadata: Metadata,
  index: number,
  count: number,
): void {
  const parts = metadata.get("split.count") ?? 1;
  const own = metadata.get("split.no") ?? 0;
  // Some files are numbered as one part of one, without saying so inside.
  if (parts === count && own === index || count === 1 && parts === 0) return;
  const says = parts === 1
    ? "a whole file"
    : `part ${Number(own) + 1} of ${parts}`;
  throw new Error(
    `Cannot read ${where}: it says that it is ${says}, must be ${
      count === 1
        ? "a whole file, by its name"
        : `part ${index + 1} of ${count}`
    }`,
  );
}

/** The metadata of the first part, and the tensors of all. */
function merged(
  name: string,
  headers: readonly GgufHeader<OpenSource>[],
): GgufHeader<OpenSource> {
  const [{ metadata }] = headers;
  const tensors = new Map<string, Stored>();
  for (const header of headers) {
    for (const [tensor, entry] of header.tensors) {
      const one = tensors.get(tensor);
      if (one !== undefined) {
        throw new Error(
          `Cannot open ${name}: ${
            quoted(tensor)
          } is in ${one.source.name} and in ${entry.source.name}`,
        );
      }
      tensors.set(tensor, entry);
    }
  }
  const promised = metadata.get("split.tensors.count") ?? tensors.size;
  if (headers.length > 1 && promised !== tensors.size) {
    throw new Error(
      `Cannot open ${name}: its parts have ${tensors.size} tensors, split.tensors.count is ${promised}`,
    );
  }
  return { metadata, tensors };
}

/** The configuration of the model in a file. */
function configOf(
  family: Family,
  metadata: Metadata,
  found: ReadonlyMap<string, Stored>,
  where: string,
): Qwen3Config {
  const { architecture, embedding, head, parseConfig } = family.gguf;
  const table = found.get(embedding);
  if (table === undefined) {
    throw new Error(
      `Cannot load ${where}: it lacks ${embedding}${
        found.size > 0 ? `, it has ${listed([...found.keys()])}` : ""
      }`,
    );
  }
  const prefix = `${architecture}.`;
  const fields: Record<string, unknown> = {};
  for (const [key, value] of metadata) {
    if (key.startsWith(prefix)) fields[key.slice(prefix.length)] = value;
  }
  const tokens = new ConfigFields(
    Object.fromEntries(metadata),
    where,
  );
  const at = "tokenizer.ggml.";
  return parseConfig(new ConfigFields(fields, where, prefix), {
    vocabSize: table.shape[0],
    tieWordEmbeddings: !found.has(head),
    bosTokenId: tokens.tokenIds(`${at}bos_token_id`)[0] ?? null,
    eosTokenIds: [
      ...new Set([
        ...tokens.tokenIds(`${at}eos_token_id`),
        ...tokens.tokenIds(`${at}eot_token_id`),
        ...endTokens(metadata),
      ]),
    ],
  });
}

/**
 * What Qwen publishes for its chat models, in their generation_config.json and model
 * cards: with reasoning and without (https://huggingface.co/Qwen/Qwen3-8B#best-practices).
 */
const PUBLISHED = {
  thinking: { temp: 0.6, top_k: 20, top_p: 0.95 },
  plain: { temp: 0.7, top_k: 20, top_p: 0.8 },
};

/** Which models the values of `pooling_type` stand for; 0 is none. */
export const POOLING: Readonly<Record<number, string>> = {
  3: "an embedding model",
  4: "a reranker",
};

/**
 * What the model is for, if not for generating text.
 *
 * @throws {Error} if it pools its states in another way than by taking the last
 */
function purposeOf(
  { gguf: { architecture } }: Family,
  metadata: Metadata,
  where: string,
): Purpose | undefined {
  const key = `${architecture}.pooling_type`;
  const type = metadata.get(key) ?? 0;
  if (type === 0) return undefined;
  const is = typeof type === "number" ? POOLING[type] : undefined;
  if (is !== undefined) return { is, why: `${key} is ${type}` };
  throw new Error(
    `Cannot use ${where}: ${key} is ${
      jsonText(type)
    }, must be 0 (none), 3 (the last token) or 4 (rank)`,
  );
}

function rerankTemplate(metadata: Metadata): string | undefined {
  const template = metadata.get("tokenizer.chat_template.rerank");
  return typeof template === "string" ? template : undefined;
}

/**
 * The sampling settings that newer files have; llama.cpp's names. For a chat model's file
 * without any, the published ones: the model repeats itself under greedy decoding.
 */
function generationOf(
  metadata: Metadata,
  { eosTokenIds }: Qwen3Config,
  where: string,
): { generation: GenerationDefaults; notices: string[] } {
  const own = Object.fromEntries(
    ["temp", "top_k", "top_p", "min_p", "penalty_repeat"].flatMap((key) =>
      metadata.has(`general.sampling.${key}`)
        ? [[key, metadata.get(`general.sampling.${key}`)]]
        : []
    ),
  );
  const hasOwn = Object.keys(own).length > 0;
  const published = hasOwn ? undefined : publishedSampling(metadata);
  const { temp, top_k, top_p, min_p, penalty_repeat }: Record<string, unknown> =
    published ?? own;
  const generation = parseGeneration({
    temperature: temp,
    top_k,
    top_p,
    min_p,
    repetition_penalty: penalty_repeat,
    do_sample: hasOwn || published ? temp !== 0 : undefined,
    eos_token_id: eosTokenIds.length > 0 ? eosTokenIds : undefined,
  }, `general.sampling of ${where}`);
  const notices = published === undefined ? [] : [
    `the file has no sampling settings, using Qwen's published ones: temperature ${temp}, top-k ${top_k}, top-p ${top_p}`,
  ];
  return { generation, notices };
}

/** The settings for a file by its chat template; undefined if it is no chat model's. */
function publishedSampling(metadata: Metadata) {
  const at = "tokenizer.", tokens = metadata.get(`${at}ggml.tokens`);
  const template = metadata.get(`${at}chat_template`);
  const end = metadata.get(`${at}ggml.eos_token_id`);
  // Base models have a template too, but end texts differently.
  const isChat = typeof template === "string" && Array.isArray(tokens) &&
    tokens[Number(end)] === "<|im_end|>";
  if (!isChat) return undefined;
  return template.includes("<think>") ? PUBLISHED.thinking : PUBLISHED.plain;
}

/** Finds the tensors of the weight table; all are checked before one is read. */
function select(
  name: string,
  family: Family,
  config: Qwen3Config,
  found: ReadonlyMap<string, Stored>,
) {
  const { gguf } = family;
  const stored = new Map<string, Stored>(), used = new Set<string>();
  const missing = new Set<string>();
  for (const spec of listWeights(family.weights(config))) {
    const whole = gguf.stacked(spec);
    const stack = whole === undefined ? undefined : found.get(whole);
    const [all] = stackedShape(spec);
    let row = 0;
    for (const { name: tensor, shape } of spec.tensors) {
      const own = gguf.tensor(tensor), part = gguf.within?.(tensor, config);
      const entry = stack ?? found.get(own);
      if (entry === undefined) {
        missing.add(own);
        continue;
      }
      const must = stack
        ? [all, ...shape.slice(1)]
        : part
        ? [part.count, ...shape]
        : shape;
      checkShape(name, entry, must);
      used.add(entry.name);
      const [rows] = shape, bytes = entry.end - entry.begin;
      const [first, of] = stack
        ? [row, all]
        : part
        ? [part.index * rows, part.count * rows]
        : [0, rows];
      const begin = entry.begin + bytes * first / of;
      const end = begin + bytes * rows / of;
      stored.set(tensor, { ...entry, shape: [...shape], begin, end });
      row += rows;
    }
  }
  const classifier = found.get(YES_NO);
  if (classifier !== undefined) {
    checkShape(name, classifier, [2, config.hiddenSize]);
    used.add(YES_NO);
    stored.set(CLASSIFIER, classifier);
  }
  if (missing.size > 0) {
    const layers = `${family.name} with ${config.numHiddenLayers} layers`;
    throw new Error(
      `Cannot load ${name}: it lacks ${
        listed([...missing])
      }, it must have the tensors of a ${layers}`,
    );
  }
  const unused = [...found.keys()].filter((own) => !used.has(own));
  refuseChanges(name, unused, used);
  const tensors = new Map(
    [...stored].map(([tensor, entry]) =>
      [tensor, infoOf(name, tensor, entry)] as const
    ),
  );
  return { stored, tensors, unused };
}

function checkShape(
  name: string,
  { name: own, shape }: Stored,
  must: readonly number[],
): void {
  if (shape.join() === must.join()) return;
  throw new Error(
    `Cannot load ${name}: ${own} has shape [${shape.join(", ")}], must be [${
      must.join(", ")
    }] by the file's metadata`,
  );
}

/** Refuses biases and scales, without which the weights beside them are wrong. */
function refuseChanges(
  name: string,
  unused: readonly string[],
  used: ReadonlySet<string>,
): void {
  const wrong = unused.find((own) =>
    own === "rope_freqs.weight" ||
    CHANGES.test(own) && used.has(own.replace(CHANGES, ".weight"))
  );
  if (wrong === undefined) return;
  throw new Error(
    `Cannot load ${name}: it has ${quoted(wrong)}, which is not supported`,
  );
}

/** Describes a tensor that is needed. */
function infoOf(
  checkpoint: string,
  name: string,
  { name: own, dtype, shape, begin, end }: Stored,
): TensorInfo {
  const format = FORMATS.find((format) => format.name === dtype.toLowerCase());
  if (format === undefined) {
    throw new Error(
      `Cannot load ${checkpoint}: ${own} has type ${dtype}, must be such as Q4_K or IQ4_XS`,
    );
  }
  const rows = shape.length > 1 ? shape[0] : 1;
  if (rows * storedRowBytes(format, shape.at(-1)!) !== end - begin) {
    throw new Error(
      `Cannot load ${checkpoint}: ${own} has ${end - begin} bytes, ${
        jsonText(dtype)
      } of shape [${shape.join(", ")}] needs other`,
    );
  }
  return { name, format, shape, byteLength: end - begin };
}
