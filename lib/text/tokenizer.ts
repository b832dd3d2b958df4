/**
 * Converts text to token ids and back, as defined by a checkpoint's `tokenizer.json`.
 *
 * @module
 */
import { errorText } from "../errors.ts";
import { Tokenizer as Encoder } from "npm:@huggingface/tokenizers@0.2.0";
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import { isObject, parseJson } from "../json.ts";

/** A byte-level BPE tokenizer, which every Qwen3 has. */
export interface Tokenizer {
  /**
   * Encodes `text` as token ids. Added tokens spelled out in it (`<|im_end|>`) become
   * their ids. `addSpecialTokens` (default: true) adds the special tokens that the
   * tokenizer puts around a text; set it to false for text that a chat template wrote.
   */
  encode(text: string, options?: { addSpecialTokens?: boolean }): number[];

  /**
   * Decodes `ids` to text. Bytes that are not valid UTF-8 become U+FFFD; ids beyond the
   * vocabulary (padding rows of the embedding) become empty text.
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

  /** The chat template (Jinja), if the checkpoint has one. */
  chatTemplate: string | undefined;

  /** `bos_token`, `eos_token` and so on from `tokenizer_config.json`, for chat templates. */
  specialTokens: Readonly<Record<string, string>>;
}

/** The text of a tokenizer's files; undefined for files that the checkpoint lacks. */
export interface TokenizerFiles {
  /** The text of `tokenizer.json`. */
  tokenizer: string | undefined;
  /** The text of `tokenizer_config.json`. */
  config: string | undefined;
  /** The text of `chat_template.jinja`. */
  chatTemplate: string | undefined;
}

/**
 * Reads a tokenizer's files without parsing them, because parsing is slow and not every
 * caller needs it.
 */
export async function readTokenizerFiles(
  checkpoint: Pick<Checkpoint, "text">,
): Promise<TokenizerFiles> {
  const [tokenizer, config, chatTemplate] = await Promise.all(
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
      .map((file) => checkpoint.text(file)),
  );
  return { tokenizer, config, chatTemplate };
}

/**
 * Creates the tokenizer of the checkpoint `name`.
 *
 * @throws {Error} if there is no tokenizer.json, a file is broken, or the
 * tokenizer is not byte-level.
 */
export function createTokenizer(
  name: string,
  files: TokenizerFiles,
): Tokenizer {
  if (files.tokenizer === undefined) {
    throw new Error(
      `Cannot encode text: ${name} has no tokenizer.json, so a prompt must be token ids, such as 1 2 3`,
    );
  }
  const json = parseObject(files.tokenizer, `tokenizer.json of ${name}`);
  const config = parseObject(
    files.config ?? "{}",
    `tokenizer_config.json of ${name}`,
  );
  const decoder = isObject(json.decoder) ? json.decoder.type : undefined;
  if (decoder !== "ByteLevel") {
    throw new Error(
      `Cannot load the tokenizer of ${name}: its decoder is ${decoder}, must be ByteLevel`,
    );
  }

  const encoder = createEncoder(name, json, config);
  const added = encoder.get_added_tokens_decoder();
  const specialIds = new Set(
    [...added.values()].filter((token) => token.special).map(({ id }) => id),
  );

  function bytes(id: number): Uint8Array<ArrayBuffer> {
    const token = added.get(id);
    if (token) return utf8.encode(token.content);
    return tokenBytes(encoder.id_to_token(id) ?? "");
  }

  return {
    specialIds,
    bytes,
    chatTemplate: files.chatTemplate ?? chatTemplate(name, config),
    specialTokens: specialTokens(config),
    tokenId: (text) => encoder.token_to_id(text),
    encode: (text, { addSpecialTokens = true } = {}) =>
      encoder.encode(text, { add_special_tokens: addSpecialTokens }).ids,
    decode(ids, { skipSpecialTokens = false } = {}) {
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

const utf8 = new TextEncoder();

/**
 * The byte that each character of a byte-level vocabulary stands for (GPT-2,
 * https://github.com/openai/gpt-2/blob/master/src/encoder.py). A byte is written as
 * itself if it is printable in Latin-1, else as the next free character from U+0100.
 */
const BYTE_OF_CHARACTER: ReadonlyMap<string, number> = (() => {
  const map = new Map<string, number>();
  let free = 0x100;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte > 0x20 && byte < 0x7f) ||
      (byte > 0xa0 && byte !== 0xad);
    map.set(String.fromCharCode(printable ? byte : free++), byte);
  }
  return map;
})();

/**
 * The bytes of a token. A token with any other character stands for its own text, as in
 * Hugging Face's decoder.
 */
function tokenBytes(token: string): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = BYTE_OF_CHARACTER.get(token[i]);
    if (byte === undefined) return utf8.encode(token);
    bytes[i] = byte;
  }
  return bytes;
}

function createEncoder(name: string, json: object, config: object): Encoder {
  try {
    return new Encoder(json, config);
  } catch (cause) {
    const why = errorText(cause);
    throw new Error(`Cannot load the tokenizer of ${name}: ${why}`, { cause });
  }
}

function parseObject(text: string, where: string): Record<string, unknown> {
  const json = parseJson(text, where);
  if (!isObject(json)) {
    throw new Error(`Cannot read ${where}: it is not a JSON object`);
  }
  return json;
}

/** The chat template: a string, or "default" in a list of named templates. */
function chatTemplate(
  name: string,
  { chat_template: templates }: Record<string, unknown>,
): string | undefined {
  if (templates === undefined || templates === null) return undefined;
  if (typeof templates === "string") return templates;
  const named = Array.isArray(templates) ? templates.filter(isObject) : [];
  const chosen = named.length === 1
    ? named[0]
    : named.find((one) => one.name === "default");
  if (typeof chosen?.template !== "string") {
    throw new Error(
      `Cannot choose a chat template for ${name}: it has [${
        named.map((one) => one.name).join(", ")
      }], must have one template or one named default`,
    );
  }
  return chosen.template;
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
