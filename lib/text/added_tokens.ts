/**
 * Added tokens: tokens that appear literally in a text, such as `<|im_end|>`. They come
 * from tokenizer.json and tokenizer_config.json, as in transformers.
 *
 * @module
 */
import { jsonText } from "../errors.ts";
import { isObject } from "../json.ts";
import { type Bpe, isTokenId, wrong } from "./bpe.ts";

/** The most UTF-16 units of an added token, because matching time grows with them. */
const MOST_UNITS = 1000;

/** A token that is found in a text before the text is cut into words. */
export interface AddedToken {
  id: number;
  content: string;
  /** Matches only if not next to a letter, digit or `_`. */
  singleWord: boolean;
  /** Also matches the white space on its left. */
  lstrip: boolean;
  /** Also matches the white space on its right. */
  rstrip: boolean;
  /** Matches in the normalized text. */
  normalized: boolean;
  special: boolean;
}

/** The special tokens that have a name in tokenizer_config.json. */
const NAMED = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"]
  .map((name) => `${name}_token`);

type Json = Record<string, unknown>;

/**
 * Collects the added tokens of both files. The flags in tokenizer_config.json win, and
 * the tokens that it names as special are special. Named tokens without an id get the
 * next free one.
 *
 * @throws {Error} if the files disagree on an id; the message has no subject.
 */
export function collectAddedTokens(
  json: Json,
  config: Json,
  { ids, tokens }: Pick<Bpe, "ids" | "tokens">,
): AddedToken[] {
  const added = new Map<string, AddedToken>();
  const contents = new Map<number, string>();
  const put = (token: AddedToken, where: string) => {
    const { id, content } = token;
    const known = added.get(content)?.id ?? ids.get(content);
    if (known !== undefined && known !== id) {
      throw new Error(
        `${jsonText(content)} has id ${id} in ${where}, but ${known} ${
          added.has(content) ? "before that" : "in model.vocab"
        }`,
      );
    }
    const other = contents.get(id) ?? tokens.get(id);
    if (other !== undefined && other !== content) {
      throw new Error(
        `${jsonText(content)} has id ${id} in ${where}, which ${
          jsonText(other)
        } also has`,
      );
    }
    added.set(content, token);
    contents.set(id, content);
  };

  const list = json.added_tokens ?? [];
  if (!Array.isArray(list)) throw wrong("added_tokens", list, "a list");
  for (const [at, entry] of list.entries()) {
    const where = `added_tokens[${at}]`;
    const token = readToken(entry, where, isObject(entry) ? entry.id : entry);
    if (token) put(token, where);
  }
  const decoder = config.added_tokens_decoder ?? {};
  if (!isObject(decoder)) {
    throw wrong("added_tokens_decoder", decoder, "an object");
  }
  for (const [key, entry] of Object.entries(decoder)) {
    const where = `added_tokens_decoder[${jsonText(key)}]`;
    const id = /^\d+$/.test(key) ? Number(key) : key;
    const token = readToken(entry, where, id);
    if (token) put(token, where);
  }
  let next: number | undefined;
  for (const { content, token } of specialTokens(config)) {
    const known = added.get(content);
    const id = known?.id ?? ids.get(content) ??
      (next = next === undefined ? idAfter(tokens, contents) : next + 1);
    const plain = readToken({ ...token, content, special: true }, content, id)!;
    put(known ? { ...known, special: true } : plain, content);
  }
  return [...added.values()];
}

/** The id after all others. */
function idAfter(...known: ReadonlyMap<number, string>[]): number {
  let next = 0;
  for (const map of known) {
    for (const id of map.keys()) next = Math.max(next, id + 1);
  }
  return next;
}

function readToken(
  entry: unknown,
  where: string,
  id: unknown,
): AddedToken | undefined {
  if (!isObject(entry)) throw wrong(where, entry, "an object");
  const { content } = entry;
  if (typeof content !== "string" || !content.isWellFormed()) {
    throw wrong(`${where}.content`, content, "a string");
  }
  if (!isTokenId(id)) throw wrong(`the id of ${where}`, id, "a token id");
  if (content === "") return undefined;
  if (content.length > MOST_UNITS) {
    throw new Error(
      `${where}.content has ${content.length} characters, must have at most ${MOST_UNITS}`,
    );
  }
  const flag = (name: string, otherwise: boolean) => {
    const value = entry[name] ?? otherwise;
    if (typeof value === "boolean") return value;
    throw wrong(`${where}.${name}`, value, "true or false");
  };
  const special = flag("special", false);
  return {
    id,
    content,
    singleWord: flag("single_word", false),
    lstrip: flag("lstrip", false),
    rstrip: flag("rstrip", false),
    normalized: flag("normalized", !special),
    special,
  };
}

/** The tokens that tokenizer_config.json names as special. */
function specialTokens(config: Json): { content: string; token: Json }[] {
  const { additional_special_tokens: additional, extra_special_tokens: extra } =
    config;
  const values: [where: string, value: unknown][] = NAMED
    .map((name) => [name, config[name]]);
  for (
    const [where, list] of [
      ["additional_special_tokens", additional],
      ["extra_special_tokens", extra],
    ] as const
  ) {
    if (list === undefined || list === null) continue;
    if (typeof list !== "object") throw wrong(where, list, "a list");
    for (const [key, value] of Object.entries(list)) {
      values.push([`${where}[${jsonText(key)}]`, value]);
    }
  }
  return values.flatMap(([where, value]) => {
    if (value === undefined || value === null || value === "") return [];
    const token = isObject(value) ? value : { content: value };
    if (typeof token.content === "string") {
      // Such a token is not normalized by default.
      return [{
        content: token.content,
        token: { normalized: false, ...token },
      }];
    }
    throw wrong(where, value, "a string, an object with content, or null");
  });
}

const WORD = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;
const SPACE = /\p{White_Space}/u;

interface Node {
  /** By UTF-16 unit. */
  next: Map<number, Node>;
  token?: AddedToken;
}

/** Part of a text: a token, or text between tokens. */
export type Part = { token: AddedToken } | { text: string };

/**
 * Creates a function that cuts a text at added tokens: of those that begin first, the
 * longest. A token that must be a single word but is not hides others
 * that it overlaps, as in Hugging Face's tokenizers.
 *
 * @param spelling how a token is spelled in the text
 * @param keep whether a token that was found counts
 * @throws {Error} if two tokens have the same spelling, or one has none.
 */
export function createSplitter(
  tokens: readonly AddedToken[],
  spelling: (content: string) => string,
  keep: (token: AddedToken) => boolean,
): (text: string) => Iterable<Part> {
  const root: Node = { next: new Map() };
  for (const token of tokens) {
    const spelled = spelling(token.content);
    if (spelled === "") {
      throw new Error(
        `the normalizer leaves nothing of ${jsonText(token.content)}`,
      );
    }
    let node = root;
    for (let i = 0; i < spelled.length; i++) {
      const unit = spelled.charCodeAt(i);
      let child = node.next.get(unit);
      if (!child) node.next.set(unit, child = { next: new Map() });
      node = child;
    }
    if (node.token) {
      throw new Error(
        `the normalizer turns ${jsonText(node.token.content)} and ${
          jsonText(token.content)
        } into the same text`,
      );
    }
    node.token = token;
  }

  /** The longest token at `at`, and where it ends. */
  function longest(text: string, at: number) {
    let found: { token: AddedToken; end: number } | undefined;
    let node = root.next.get(text.charCodeAt(at));
    for (let end = at + 1; node; end++) {
      if (node.token) found = { token: node.token, end };
      node = end < text.length
        ? node.next.get(text.charCodeAt(end))
        : undefined;
    }
    return found;
  }

  // Nearly all characters begin none.
  const begins = new Uint8Array(0x10000);
  for (const unit of root.next.keys()) begins[unit] = 1;

  return function* (text) {
    let done = 0;
    for (let at = 0; at < text.length;) {
      const found = begins[text.charCodeAt(at)] === 1
        ? longest(text, at)
        : undefined;
      if (!found) {
        at++;
        continue;
      }
      const { token } = found;
      let begin = at, end = found.end;
      at = end;
      if (!keep(token)) continue;
      if (token.singleWord && !standsAlone(text, begin, end)) continue;
      if (token.lstrip) {
        while (begin > done && SPACE.test(text[begin - 1])) begin--;
      }
      if (token.rstrip) {
        while (end < text.length && SPACE.test(text[end])) end++;
      }
      if (done < begin) yield { text: text.slice(done, begin) };
      yield { token };
      done = end;
    }
    if (done < text.length) yield { text: text.slice(done) };
  };
}

function standsAlone(text: string, begin: number, end: number): boolean {
  const before = [...text.slice(Math.max(0, begin - 2), begin)].at(-1) ?? "";
  const after = text.slice(end, end + 2).match(/^./su)?.[0] ?? "";
  return !WORD.test(before) && !WORD.test(after);
}
