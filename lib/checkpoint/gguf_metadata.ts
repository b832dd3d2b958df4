/**
 * The metadata of a GGUF file that llama.cpp's converter would write for a checkpoint.
 *
 * @module
 */
import type { Checkpoint, StoredTokenizer, TensorInfo } from "./checkpoint.ts";
import type { Qwen3Config } from "./config.ts";
import type { GenerationDefaults } from "./generation_config.ts";
import {
  CONTROL,
  NORMAL,
  UNUSED,
  USER_DEFINED,
  WORDS,
} from "./gguf_tokenizer.ts";
import type { GgufEntry, GgufTensor } from "./gguf_writer.ts";
import { isObject, parseJson } from "../json.ts";
import { familyOf } from "../model/families.ts";
import { listWeights, type WeightSpec } from "../model/family.ts";
import type { Quantization } from "./quantization.ts";

/** The version of the formats of quantised blocks. */
const QUANTIZATION_VERSION = 2;

/**
 * All keys of a file.
 *
 * @throws {Error} if the checkpoint's tokenizer or its experts cannot be described in a
 * GGUF file
 */
export async function ggufEntries(
  checkpoint: Checkpoint,
  { fileType }: Quantization,
): Promise<GgufEntry[]> {
  const { config, generation, name } = checkpoint;
  requireAllExperts(config, name);
  const tokenizer = await tokenizerOf(checkpoint);
  return [
    ["general.architecture", "string", familyOf(config).gguf.architecture],
    ["general.type", "string", "model"],
    ["general.name", "string", displayName(name)],
    ...samplingEntries(generation),
    ...modelEntries(config, tokenizer !== undefined),
    ["general.quantization_version", "u32", QUANTIZATION_VERSION],
    ["general.file_type", "u32", fileType],
    ...tokenizer === undefined
      ? [["tokenizer.ggml.model", "string", "none"] as const]
      : tokenizerEntries(tokenizer, config, name),
  ];
}

/**
 * The tensors of a checkpoint by their names in GGUF files, in the order of the table.
 *
 * @throws {Error} if tensors that share one in the file have different formats
 */
export function ggufTensors(
  { name: checkpoint, config, tensors }: Checkpoint,
): GgufTensor[] {
  const { gguf, weights } = familyOf(config);
  const found = new Map<string, TensorInfo[]>(),
    shapes = new Map<string, number[]>();
  for (const { name } of listWeights(weights(config)).flatMap(tensorsOf)) {
    const own = gguf.tensor(name), info = tensors.get(name)!;
    const within = gguf.within?.(name, config);
    const { shape, format } = info, others = found.get(own);
    if (others === undefined) {
      found.set(own, [info]);
      shapes.set(own, within ? [within.count, ...shape] : shape);
    } else if (others[0].format === format) others.push(info);
    else {
      throw new Error(
        `Cannot write ${checkpoint} to a GGUF file: ${name} is in ${format.name} and ${
          others[0].name
        } in ${others[0].format.name}, must be the same in ${own}`,
      );
    }
  }
  return [...found].map(([name, infos]) => ({
    name,
    shape: shapes.get(name)!,
    infos,
  }));
}

const tensorsOf = ({ tensors }: WeightSpec) => tensors;

/** @throws {Error} if files of the architecture would mean other experts. */
function requireAllExperts({ experts }: Qwen3Config, name: string): void {
  if (!experts) return;
  const { normalized, denseLayers } = experts;
  const problem = normalized
    ? denseLayers.length > 0 &&
      `layers ${denseLayers.join(", ")} have no experts, all must have some`
    : "norm_topk_prob is false, must be true";
  if (problem) {
    throw new Error(`Cannot write ${name} to a GGUF file: ${problem}`);
  }
}

/** The last part of a path, URL or repository, without an ending or a revision. */
function displayName(name: string): string {
  return name.replace(/[?#].*$/, "").replace(/[/\\]+$/, "")
    .replace(/^.*[/\\:]/s, "").replace(/@.*$/, "").replace(/\.gguf$/i, "") ||
    "model";
}

/** The sizes, by the architecture's keys. */
function modelEntries(
  config: Qwen3Config,
  hasTokenizer: boolean,
): GgufEntry[] {
  const at = `${familyOf(config).gguf.architecture}.`;
  const entries: GgufEntry[] = [
    [`${at}block_count`, "u32", config.numHiddenLayers],
    [`${at}context_length`, "u32", config.maxPositionEmbeddings],
    [`${at}embedding_length`, "u32", config.hiddenSize],
    [`${at}feed_forward_length`, "u32", config.intermediateSize],
    [`${at}attention.head_count`, "u32", config.numAttentionHeads],
    [`${at}attention.head_count_kv`, "u32", config.numKeyValueHeads],
    [`${at}rope.freq_base`, "f32", config.ropeTheta],
    [`${at}attention.layer_norm_rms_epsilon`, "f32", config.rmsNormEps],
    [`${at}attention.key_length`, "u32", config.headDim],
    [`${at}attention.value_length`, "u32", config.headDim],
  ];
  const { experts } = config;
  if (experts) {
    entries.push(
      [`${at}expert_count`, "u32", experts.count],
      [`${at}expert_used_count`, "u32", experts.used],
      [`${at}expert_feed_forward_length`, "u32", experts.intermediateSize],
    );
  }
  // Otherwise, it is the number of tokens.
  if (!hasTokenizer) entries.push([`${at}vocab_size`, "u32", config.vocabSize]);
  const { ropeScaling: yarn } = config;
  if (yarn !== null) {
    const scaling = `${at}rope.scaling.`;
    entries.push(
      [`${scaling}type`, "string", "yarn"],
      [`${scaling}factor`, "f32", yarn.factor],
      [
        `${scaling}original_context_length`,
        "u32",
        yarn.originalMaxPositionEmbeddings,
      ],
      [`${scaling}yarn_beta_fast`, "f32", yarn.betaFast],
      [`${scaling}yarn_beta_slow`, "f32", yarn.betaSlow],
    );
  }
  return entries;
}

/** The settings of generation_config.json, if it says to sample. */
function samplingEntries(
  { doSample, temperature, topK, topP, minP, repetitionPenalty }:
    GenerationDefaults,
): GgufEntry[] {
  if (!doSample) return [];
  const settings = [
    ["top_k", "i32", topK],
    ["top_p", "f32", topP],
    ["min_p", "f32", minP],
    ["temp", "f32", temperature],
    ["penalty_repeat", "f32", repetitionPenalty],
  ] as const;
  return settings.flatMap(([name, kind, value]): GgufEntry[] =>
    value === undefined ? [] : [[`general.sampling.${name}`, kind, value]]
  );
}

/** A tokenizer's files, parsed; undefined if there are none. */
async function tokenizerOf(
  { name, text, tokenizer }: Checkpoint,
): Promise<StoredTokenizer | undefined> {
  const stored = tokenizer?.();
  if (stored) return stored;
  const [json, config, template] = await Promise.all(
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
      .map((file) => text(file)),
  );
  if (json === undefined) return undefined;
  const object = (text: string, file: string): Record<string, unknown> => {
    const parsed = parseJson(text, `${file} of ${name}`);
    return isObject(parsed) ? parsed : {};
  };
  const settings = object(config ?? "{}", "tokenizer_config.json");
  return {
    tokenizer: object(json, "tokenizer.json"),
    config: template === undefined
      ? settings
      : { ...settings, chat_template: template },
  };
}

/** Objects in a list that may be none. */
const objects = (list: unknown): Record<string, unknown>[] =>
  Array.isArray(list) ? list.filter(isObject) : [];

/**
 * The tokenizer's keys. As many tokens as the embedding has rows: the others are padding.
 *
 * @throws {Error} if the tokenizer is not Qwen2's, which is all that the keys can say
 */
function tokenizerEntries(
  { tokenizer, config }: StoredTokenizer,
  { vocabSize, bosTokenId, eosTokenIds }: Qwen3Config,
  name: string,
): GgufEntry[] {
  const refuse = (why: string): never => {
    throw new Error(
      `Cannot write the tokenizer of ${name} to a GGUF file: ${why}`,
    );
  };
  const { model } = tokenizer;
  if (
    !isObject(model) || model.type !== "BPE" || !Array.isArray(model.merges)
  ) {
    return refuse("it must be BPE with merges");
  }
  if (!splitsAsQwen2(tokenizer.pre_tokenizer)) {
    return refuse("it splits words by another pattern than Qwen2's");
  }
  const tokens = Array.from({ length: vocabSize }, (_, id) => `[PAD${id}]`);
  const types = new Array<number>(vocabSize).fill(UNUSED);
  const ids = new Map<string, number>();
  const add = (token: string, id: unknown, type: number) => {
    if (typeof id !== "number" || !(id >= 0 && id < vocabSize)) {
      return refuse(
        `token ${
          JSON.stringify(token)
        } has id ${id}, must be below ${vocabSize}, the rows of the embedding`,
      );
    }
    tokens[id] = token;
    types[id] = type;
    ids.set(token, id);
  };
  const vocab = model.vocab instanceof Map
    ? model.vocab as Map<string, number>
    : Object.entries(isObject(model.vocab) ? model.vocab : {});
  for (const [token, id] of vocab) add(token, id, NORMAL);
  for (const { content, id, special } of objects(tokenizer.added_tokens)) {
    add(String(content), id, special ? CONTROL : USER_DEFINED);
  }
  const merges = model.merges.map((merge) =>
    Array.isArray(merge) ? merge.join(" ") : String(merge)
  );
  const at = "tokenizer.ggml.";
  return [
    [`${at}model`, "string", "gpt2"],
    [`${at}pre`, "string", "qwen2"],
    [`${at}tokens`, "strings", tokens],
    [`${at}token_type`, "i32s", types],
    [`${at}merges`, "strings", merges],
    ...idEntries(config, ids, {
      bos: bosTokenId ?? undefined,
      eos: eosTokenIds[0],
    }),
    ...addedEntries(tokenizer, config),
    ...templateEntries(config),
  ];
}

/** Whether words are split by the pattern that `qwen2` stands for. */
function splitsAsQwen2(pre: unknown): boolean {
  if (!isObject(pre)) return false;
  const steps = pre.type === "Sequence" ? objects(pre.pretokenizers) : [pre];
  const splits = steps.filter(({ type }) => type === "Split");
  const [split] = splits;
  return splits.length === 1 && isObject(split.pattern) &&
    split.pattern.Regex === WORDS;
}

/** Ids of special tokens: those that tokenizer_config.json names, else the model's. */
function idEntries(
  config: Record<string, unknown>,
  ids: ReadonlyMap<string, number>,
  of: { bos?: number; eos?: number },
): GgufEntry[] {
  const named = { bos: "bos", eos: "eos", pad: "padding", unk: "unknown" };
  return Object.entries(named).flatMap(([short, long]): GgufEntry[] => {
    const token = config[`${short}_token`];
    const content = isObject(token) ? token.content : token;
    const id = (typeof content === "string" ? ids.get(content) : undefined) ??
      of[short as keyof typeof of];
    return id === undefined
      ? []
      : [[`tokenizer.ggml.${long}_token_id`, "u32", id]];
  });
}

/** Whether the tokenizer puts a token before a text and after it. */
function addedEntries(
  { post_processor: post }: Record<string, unknown>,
  config: Record<string, unknown>,
): GgufEntry[] {
  const steps = !isObject(post)
    ? []
    : post.type === "Sequence"
    ? objects(post.processors)
    : [post];
  const template = steps.find(({ type }) => type === "TemplateProcessing");
  const parts = objects(template?.single);
  const text = parts.findIndex((part) => "Sequence" in part);
  const adds = {
    bos: template ? text > 0 : config.add_bos_token,
    eos: template ? text < parts.length - 1 : config.add_eos_token,
  };
  return Object.entries(adds).flatMap(([which, does]): GgufEntry[] =>
    typeof does === "boolean"
      ? [[`tokenizer.ggml.add_${which}_token`, "bool", does]]
      : []
  );
}

/** The chat template: a text, or "default" in a list. */
function templateEntries(
  { chat_template: templates }: Record<string, unknown>,
): GgufEntry[] {
  const named = objects(templates);
  const chosen = named.length === 1
    ? named[0]
    : named.find((one) => one.name === "default");
  const template = typeof templates === "string" ? templates : chosen?.template;
  return typeof template === "string"
    ? [["tokenizer.chat_template", "string", template]]
    : [];
}
