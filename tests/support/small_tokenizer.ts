/** Small byte-level tokenizers: every byte, some merges, and what a test changes. */
import { createTokenizer, type Tokenizer } from "../../lib/text/tokenizer.ts";

type Json = Record<string, unknown>;

/** The characters that stand for the bytes 0 to 255 in a vocabulary. */
export const BYTES: readonly string[] = (() => {
  let free = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const itself = (byte > 0x20 && byte < 0x7f) ||
      (byte > 0xa0 && byte !== 0xad);
    return String.fromCharCode(itself ? byte : free++);
  });
})();

/** A tokenizer.json: a byte's id is the byte, and merges make ids from 256 up. */
export function smallJson(
  merges: readonly string[] = [],
  changes: Json = {},
  model: Json = {},
): Json {
  const vocab = Object.fromEntries(BYTES.map((byte, id) => [byte, id]));
  for (const merge of merges) {
    const token = merge.replace(" ", "");
    vocab[token] ??= Object.keys(vocab).length;
  }
  return {
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: {
      type: "ByteLevel",
      add_prefix_space: false,
      use_regex: false,
    },
    post_processor: null,
    decoder: { type: "ByteLevel" },
    ...changes,
    model: { type: "BPE", vocab, merges, ...model },
  };
}

/** The tokenizer of a tokenizer.json and a tokenizer_config.json. */
export function tokenizerOf(json: Json, config: Json = {}): Tokenizer {
  return createTokenizer("a-checkpoint", {
    tokenizer: JSON.stringify(json),
    config: JSON.stringify(config),
    chatTemplate: undefined,
  });
}

/** The texts of the tokens that a text is encoded as. */
export function tokensOf(tokenizer: Tokenizer, text: string): string[] {
  return tokenizer.encode(text).map((id) => tokenizer.decode([id]));
}
