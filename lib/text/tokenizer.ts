/**
 * Converts text to token ids and back, as defined by a checkpoint's `tokenizer.json`.
 *
 * @module
 */
import { errorText, jsonText, requireKind } from "../errors.ts";
import {
  type AddedToken,
  collectAddedTokens,
  createSplitter,
} from "./added_tokens.ts";
import {
  type Bpe,
  createBpe,
  isTokenId,
  tokenBytes,
  TooManyTokens,
  wrong,
} from "./bpe.ts";
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import { isObject, parseJson } from "../json.ts";
import { givenOptions } from "./options.ts";
import { atOnce, type Parts } from "./parts.ts";
import { Budget } from "./pattern.ts";
import { readNormalizer, readPreTokenizer } from "./words.ts";

/** A byte-level BPE tokenizer, which every Qwen3 has. */
export interface Tokenizer {
  /**
   * Encodes `text` as token ids. Added tokens spelled out in it (`<|im_end|>`) become
   * their ids. `addSpecialTokens` (default: true) adds the special tokens that the
   * tokenizer puts around a text; set it to false for text that a chat template wrote.
   *
   * @throws {TypeError} if `text` is not a string.
   * @throws {OptionError} if an option is unknown or has a wrong value.
   * @throws {RangeError} if it has more than `most` tokens, which is detected without
   * encoding all of it.
   */
  encode(
    text: string,
    options?: { addSpecialTokens?: boolean; most?: number },
  ): number[];

  /** Does as {@linkcode encode}, in parts of a few milliseconds if the text is long. */
  encodeInParts(
    text: string,
    options?: { addSpecialTokens?: boolean; most?: number },
  ): Generator<undefined, number[]>;

  /**
   * Decodes `ids` to text. Bytes that are not valid UTF-8 become U+FFFD; ids beyond the
   * vocabulary (padding rows of the embedding) become empty text.
   *
   * @throws {OptionError} if an option is unknown or has a wrong value.
   */
  decode(
    ids: Iterable<number>,
    options?: { skipSpecialTokens?: boolean },
  ): string;

  /** The bytes of a token, possibly only part of a character; empty beyond the vocabulary. */
  bytes(id: number): Uint8Array<ArrayBuffer>;

  /** The id of the vocabulary token with this text (`<think>`), if there is one. */
  tokenId(text: string): number | undefined;

  /** Ids of added tokens marked special, which `skipSpecialTokens` leaves out. */
  specialIds: ReadonlySet<number>;

  /** Ids of all added tokens, special or not, such as `<think>`. */
  addedIds: ReadonlySet<number>;

  /** The chat template (Jinja), if the checkpoint has one. */
  chatTemplate: string | undefined;

  /** `bos_token`, `eos_token` and so on from `tokenizer_config.json`, for chat templates. */
  specialTokens: Readonly<Record<string, string>>;
}

/** Words in a part of the work. */
const WORDS_TOGETHER = 1024;

const ENCODING = { addSpecialTokens: "flag", most: "number" } as const;
const DECODING = { skipSpecialTokens: "flag" } as const;

/** The text of a tokenizer's files; undefined for files that the checkpoint lacks. */
export interface TokenizerFiles {
  /** The text of `tokenizer.json`. */
  tokenizer: string;
  /** The text of `tokenizer_config.json`. */
  config: string | undefined;
  /** The text of `chat_template.jinja`. */
  chatTemplate: string | undefined;
}

/**
 * Reads a checkpoint's tokenizer; undefined if it has none.
 *
 * @throws {Error} if a file is broken, or the tokenizer is not byte-level.
 */
export async function readTokenizer(
  checkpoint: Pick<Checkpoint, "name" | "text" | "tokenizer">,
): Promise<Tokenizer | undefined> {
  const stored = checkpoint.tokenizer?.();
  if (stored) return create(checkpoint.name, stored.tokenizer, stored.config);
  const [tokenizer, config, chatTemplate] = await Promise.all(
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
      .map((file) => checkpoint.text(file)),
  );
  return tokenizer === undefined
    ? undefined
    : createTokenizer(checkpoint.name, { tokenizer, config, chatTemplate });
}

/** Says that a checkpoint has no tokenizer. */
export function withoutTokenizer(name: string): string {
  const isGguf = /\.gguf$|:[\w.-]+$/i.test(name);
  return `${name} has no tokenizer${isGguf ? "" : ".json"}`;
}

/** The error if a tokenizer is needed and the checkpoint has none. */
export function missingTokenizer(name: string): Error {
  return new Error(
    `Cannot encode text: ${
      withoutTokenizer(name)
    }, so a prompt must be token ids, such as 1 2 3`,
  );
}

/**
 * Creates the tokenizer of the checkpoint `name`.
 *
 * @throws {Error} if a file is broken, or the tokenizer is not byte-level.
 */
export function createTokenizer(
  name: string,
  files: TokenizerFiles,
): Tokenizer {
  const json = parseObject(files.tokenizer, `tokenizer.json of ${name}`);
  const config = parseObject(
    files.config ?? "{}",
    `tokenizer_config.json of ${name}`,
  );
  return create(name, json, config, files.chatTemplate);
}

function create(
  name: string,
  json: Json,
  config: Json,
  chatTemplate?: string,
): Tokenizer {
  try {
    return assemble(json, config, chatTemplate);
  } catch (cause) {
    throw new Error(
      `Cannot load the tokenizer of ${name}: ${errorText(cause)}`,
      { cause },
    );
  }
}

/** @throws {Error} if the files cannot be used; the message has no subject. */
function assemble(json: Json, config: Json, jinja?: string): Tokenizer {
  const decoder = isObject(json.decoder) ? json.decoder.type : undefined;
  if (decoder !== "ByteLevel") {
    throw wrong("decoder.type", decoder, '"ByteLevel"');
  }
  const bpe = createBpe(json.model);
  const added = collectAddedTokens(json, config, bpe);
  const addedIds = new Map(added.map((token) => [token.content, token.id]));
  const contents = new Map(added.map((token) => [token.id, token.content]));
  const encode = createEncode(json, config, bpe, added);
  const around = readPostProcessor(json, config, addedIds, bpe);
  const specialIds = new Set(
    added.filter((token) => token.special).map(({ id }) => id),
  );

  function bytes(id: number): Uint8Array<ArrayBuffer> {
    const content = contents.get(id);
    if (content !== undefined) return utf8.encode(content);
    return tokenBytes(bpe.tokens.get(id) ?? "");
  }

  function* encodeInParts(
    text: string,
    options: { addSpecialTokens?: boolean; most?: number } = {},
  ): Parts<number[]> {
    const cannot = "Cannot encode text";
    requireKind(cannot, "the text", text, "text");
    const { addSpecialTokens = true, most } = givenOptions(
      cannot,
      options,
      ENCODING,
    );
    const ids: number[] = addSpecialTokens ? [...around.before] : [];
    yield* encode(text, ids, most);
    if (addSpecialTokens) ids.push(...around.after);
    return ids;
  }

  return {
    specialIds,
    addedIds: new Set(contents.keys()),
    bytes,
    chatTemplate: jinja ?? chatTemplate(config),
    specialTokens: specialTokens(config),
    tokenId: (text) => addedIds.get(text) ?? bpe.ids.get(text),
    encode: (text, options) => atOnce(encodeInParts(text, options)),
    encodeInParts,
    decode(ids, options = {}) {
      const cannot = "Cannot decode tokens";
      requireKind(cannot, "the list of ids", ids, "iterable");
      const { skipSpecialTokens = false } = givenOptions(
        cannot,
        options,
        DECODING,
      );
      const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
      let text = "";
      for (const id of ids) {
        if (skipSpecialTokens && specialIds.has(id)) continue;
        text += decoder.decode(bytes(id), { stream: true });
      }
      return text + decoder.decode();
    },
  };
}

type Json = Record<string, unknown>;

/** Creates a function that appends a text's tokens. */
function createEncode(
  json: Json,
  config: Json,
  bpe: Bpe,
  added: readonly AddedToken[],
): (text: string, into: number[], most?: number) => Parts<void> {
  const normalize = readNormalizer(json.normalizer);
  const cut = readPreTokenizer(json.pre_tokenizer);
  const split = config.split_special_tokens === true;
  const keep = ({ special }: AddedToken) => !(split && special);
  const asIs = createSplitter(
    added.filter((token) => !token.normalized),
    (content) => content,
    keep,
  );
  const normalized = createSplitter(
    added.filter((token) => token.normalized),
    (content) => normalize(content, new Budget(content.length)),
    keep,
  );
  return function* (text, into, most = Infinity) {
    const budget = new Budget(text.length);
    let words = 0;
    const push = ({ id }: AddedToken) => {
      if (into.push(id) > most) throw new TooManyTokens(most);
    };
    for (const part of asIs(text)) {
      if ("token" in part) {
        push(part.token);
        continue;
      }
      for (const inner of normalized(normalize(part.text, budget))) {
        if ("token" in inner) push(inner.token);
        else {
          for (const word of cut(inner.text, budget)) {
            yield* bpe.encode(word, into, most);
            if (++words % WORDS_TOGETHER === 0) yield;
          }
        }
      }
    }
  };
}

/**
 * Reads which tokens a tokenizer puts before and after a text. As in transformers 5,
 * `add_bos_token` and `add_eos_token` in tokenizer_config.json replace the post-processor.
 */
function readPostProcessor(
  json: Json,
  config: Json,
  added: ReadonlyMap<string, number>,
  { ids }: Bpe,
): { before: number[]; after: number[] } {
  const around: { before: number[]; after: number[] } = {
    before: [],
    after: [],
  };
  const { add_bos_token: bos, add_eos_token: eos } = config;
  for (const [name, value] of Object.entries({ bos, eos })) {
    if (value === undefined || value === null) continue;
    if (typeof value !== "boolean") {
      throw wrong(`add_${name}_token`, value, "true or false");
    }
  }
  if (bos !== undefined || eos !== undefined) {
    const { bos_token, eos_token } = specialTokens(config);
    const id = (token?: string) => token ? [added.get(token)!] : [];
    if (bos) around.before = id(bos_token);
    if (eos) around.after = id(eos_token);
    return around;
  }
  const idsOf = (token: string, listed: unknown, where: string) => {
    if (!Array.isArray(listed) || !listed.every(isTokenId)) {
      throw wrong(where, listed, "a list of token ids");
    }
    const known = added.get(token) ?? ids.get(token);
    if (known !== undefined && (listed.length !== 1 || listed[0] !== known)) {
      throw wrong(where, listed, `[${known}], the id of ${jsonText(token)}`);
    }
    return listed as number[];
  };
  readSteps(json.post_processor, "post_processor", around, idsOf);
  return around;
}

type IdsOf = (token: string, listed: unknown, where: string) => number[];

function readSteps(
  step: unknown,
  where: string,
  around: { before: number[]; after: number[] },
  idsOf: IdsOf,
): void {
  if (step === undefined || step === null) return;
  if (!isObject(step)) throw wrong(where, step, "an object or null");
  if (step.type === "ByteLevel") return; // it only moves offsets
  if (step.type === "Sequence" && Array.isArray(step.processors)) {
    for (const [i, one] of step.processors.entries()) {
      readSteps(one, `${where}.processors[${i}]`, around, idsOf);
    }
    return;
  }
  if (step.type !== "TemplateProcessing" || !Array.isArray(step.single)) {
    throw wrong(
      where,
      step,
      "ByteLevel, a Sequence with processors, or a TemplateProcessing with single",
    );
  }
  const before: number[] = [], after: number[] = [];
  let texts = 0;
  for (const piece of step.single) {
    const { SpecialToken: token } = isObject(piece) ? piece : {} as Json;
    if (!isObject(token)) {
      texts++;
      continue;
    }
    const name = String(token.id);
    const listed = isObject(step.special_tokens)
      ? step.special_tokens[name]
      : undefined;
    const own = `${where}.special_tokens[${jsonText(name)}].ids`;
    (texts === 0 ? before : after).push(
      ...idsOf(name, isObject(listed) ? listed.ids : listed, own),
    );
  }
  if (texts !== 1) {
    throw new Error(
      `${where}.single has the text ${texts} times, must be once`,
    );
  }
  around.before.unshift(...before);
  around.after.push(...after);
}

const utf8 = new TextEncoder();

function parseObject(text: string, where: string): Record<string, unknown> {
  const json = parseJson(text, where);
  if (!isObject(json)) {
    throw new Error(`Cannot read ${where}: it is not a JSON object`);
  }
  return json;
}

/** The chat template: a string, or "default" in a list of named templates. */
function chatTemplate({ chat_template: templates }: Json): string | undefined {
  if (templates === undefined || templates === null) return undefined;
  if (typeof templates === "string") return templates;
  const named = Array.isArray(templates) ? templates.filter(isObject) : [];
  const chosen = named.length === 1
    ? named[0]
    : named.find((one) => one.name === "default");
  if (typeof chosen?.template === "string") return chosen.template;
  throw wrong(
    "chat_template",
    Array.isArray(templates) ? named.map((one) => one.name) : templates,
    "a string or a list with one template or one named default",
  );
}

function specialTokens(
  config: Record<string, unknown>,
): Record<string, string> {
  const tokens: Record<string, string> = {};
  for (const [key, value] of Object.entries(config)) {
    if (!/^[a-z]+_token$/.test(key)) continue;
    // Older files store a token as an object with flags.
    const content = isObject(value) ? value.content : value;
    if (typeof content === "string") tokens[key] = content;
  }
  return tokens;
}
