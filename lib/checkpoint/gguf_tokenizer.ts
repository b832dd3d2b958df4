/**
 * The tokenizer in a GGUF file's metadata, as Hugging Face's files would describe it.
 *
 * @module
 */
import type { StoredTokenizer } from "./checkpoint.ts";
import { jsonText } from "../errors.ts";
import type { GgufList, GgufValue } from "./gguf.ts";

const AT = "tokenizer.ggml.";

/** Types of tokens. Unused ones only pad the vocabulary. */
export const NORMAL = 1, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5;
const UNKNOWN = 2;

/** Control tokens that end a text although no key names them, as in llama.cpp. */
const ENDS = ["<|im_end|>", "<|endoftext|>"];

/**
 * Tokens that stay in texts although files have them as control tokens: llama.cpp's
 * converter goes by the bars in a name, Qwen's tokenizer.json says `special: false`.
 */
const PLAIN = /^<\|(fim_(prefix|middle|suffix|pad)|repo_name|file_sep)\|>$/;

/** Qwen2's words, which Qwen3 has too. */
export const WORDS =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

type Metadata = ReadonlyMap<string, GgufValue>;

/** Ids of control tokens that end a text. */
export function endTokens(metadata: Metadata): number[] {
  const tokens = metadata.get(`${AT}tokens`);
  const types = metadata.get(`${AT}token_type`);
  if (!isList(tokens) || !isList(types)) return [];
  return ENDS.map((end) => tokens.indexOf(end))
    .filter((id) => id >= 0 && types[id] === CONTROL);
}

function isList(value: unknown): value is GgufList {
  return Array.isArray(value);
}

/**
 * Reads the tokenizer.
 *
 * @param vocabSize rows of the embedding
 * @param where the file, for errors
 * @throws {Error} if it is not Qwen's byte-level BPE, or its parts do not fit together
 */
export function storedTokenizer(
  metadata: Metadata,
  vocabSize: number,
  where: string,
): StoredTokenizer {
  const refuse = (problem: string): never => {
    throw new Error(`Cannot load the tokenizer of ${where}: ${problem}`);
  };
  for (const [key, must] of [["model", "gpt2"], ["pre", "qwen2"]]) {
    const is = metadata.get(AT + key);
    if (is === must) continue;
    refuse(`${AT}${key} is ${jsonText(is)}, must be ${jsonText(must)}`);
  }
  const tokens = listOf(metadata, "tokens", "string", refuse);
  const merges = listOf(metadata, "merges", "string", refuse);
  const types = metadata.has(`${AT}token_type`)
    ? listOf(metadata, "token_type", "number", refuse)
    : tokens.map(() => 1);
  if (types.length !== tokens.length) {
    refuse(
      `${AT}token_type has ${types.length} entries, must have ${tokens.length}, one for each token`,
    );
  }
  if (tokens.length > vocabSize) {
    refuse(
      `${AT}tokens has ${tokens.length} entries, must have at most ${vocabSize}, the rows of the embedding`,
    );
  }
  const vocab = new Map<string, number>(),
    added: Record<string, unknown>[] = [];
  for (let id = 0; id < tokens.length; id++) {
    const token = tokens[id], type = types[id];
    if (type === UNUSED || token === "") continue;
    const other = vocab.get(token);
    if (other !== undefined) {
      refuse(`tokens ${other} and ${id} are both ${jsonText(token)}`);
    }
    vocab.set(token, id);
    if (type !== CONTROL && type !== USER_DEFINED && type !== UNKNOWN) continue;
    const special = type !== USER_DEFINED && !PLAIN.test(token);
    added.push({ id, content: token, special, normalized: false });
  }
  return {
    tokenizer: {
      added_tokens: added,
      // The file cannot say it, but every tokenizer of Qwen's composes characters.
      normalizer: { type: "NFC" },
      pre_tokenizer: {
        type: "Sequence",
        pretokenizers: [
          { type: "Split", pattern: { Regex: WORDS }, behavior: "Isolated" },
          { type: "ByteLevel", add_prefix_space: false, use_regex: false },
        ],
      },
      decoder: { type: "ByteLevel" },
      model: { type: "BPE", vocab, merges },
    },
    config: configOf(metadata, tokens, refuse),
  };
}

/** What `tokenizer_config.json` would hold. */
function configOf(
  metadata: Metadata,
  tokens: readonly string[],
  refuse: (problem: string) => never,
): Record<string, unknown> {
  const config: Record<string, unknown> = {};
  for (const name of ["bos", "eos", "unknown", "padding"]) {
    const key = `${AT}${name}_token_id`, id = metadata.get(key);
    if (id === undefined) continue;
    const token = typeof id === "number" ? tokens[id] : undefined;
    if (token === undefined) {
      refuse(
        `${key} is ${
          jsonText(id)
        }, must be an id of one of ${tokens.length} tokens`,
      );
    }
    const short = { unknown: "unk", padding: "pad" }[name] ?? name;
    config[`${short}_token`] = token;
  }
  for (const name of ["bos", "eos"]) {
    const adds = metadata.get(`${AT}add_${name}_token`);
    if (adds !== undefined) config[`add_${name}_token`] = adds;
  }
  const template = metadata.get("tokenizer.chat_template");
  if (template !== undefined) config.chat_template = template;
  return config;
}

type Elements = { string: string; number: number };

/** A list of strings or numbers. */
function listOf<Kind extends keyof Elements>(
  metadata: Metadata,
  key: string,
  kind: Kind,
  refuse: (problem: string) => never,
): Elements[Kind][] {
  const list = metadata.get(AT + key);
  const isRight = isList(list) && list.every((one) => typeof one === kind);
  if (isRight) return list as unknown as Elements[Kind][];
  const is = list === undefined ? "missing" : "something else";
  return refuse(`${AT}${key} is ${is}, must be a list of ${kind}s`);
}
