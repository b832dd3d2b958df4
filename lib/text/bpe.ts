/**
 * Byte-level byte-pair encoding: the bytes of a piece of text are merged, the best ranked
 * pair first, as in Hugging Face's tokenizers.
 *
 * @module
 */
import TinyQueue from "npm:tinyqueue@3.0.0";
import { jsonText } from "../errors.ts";
import { isObject } from "../json.ts";
import { atOnce, type Parts } from "./parts.ts";

/** Token ids, and ranks of merges, are below this. */
const MOST_TOKENS = 2 ** 26;
/** A piece of text has fewer bytes than this. */
const MOST_BYTES = 2 ** 24;
/** The number of pieces whose tokens are remembered, and the longest such piece. */
const CACHED_PIECES = 10_000, CACHED_LENGTH = 256;

/** Merges in a part of the work, and tokens of which there is nothing but a copy. */
const MERGES_TOGETHER = 4096, TOKENS_TOGETHER = 65_536;
/** The rest of work that is done. */
const NOTHING_LEFT: readonly undefined[] = [];

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

const CHARACTER_OF_BYTE = [...BYTE_OF_CHARACTER]
  .sort(([, a], [, b]) => a - b)
  .map(([character]) => character);

/** By UTF-16 code, since all bytes of a vocabulary are looked up here; -1 for none. */
const BYTE_OF_CODE = new Int16Array(0x200).fill(-1);
for (const [character, byte] of BYTE_OF_CHARACTER) {
  BYTE_OF_CODE[character.charCodeAt(0)] = byte;
}

/**
 * The bytes of a token. A token with any other character stands for its own text, as in
 * Hugging Face's decoder.
 */
export function tokenBytes(token: string): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = BYTE_OF_CODE[token.charCodeAt(i)] ?? -1;
    if (byte < 0) return utf8.encode(token);
    bytes[i] = byte;
  }
  return bytes;
}

/** A text has more tokens than allowed. */
export class TooManyTokens extends RangeError {
  /** Always `TooManyTokens`. */
  override name = "TooManyTokens";

  constructor(readonly most: number) {
    super(`Cannot encode a text: it has more than ${most} tokens`);
  }
}

/** A vocabulary with its merges. */
export interface Bpe {
  /** The id of each token. */
  ids: ReadonlyMap<string, number>;
  /** The token of each id. */
  tokens: ReadonlyMap<number, string>;
  /**
   * Appends the tokens of a piece of text to `into`: at once if it is short, else in the parts
   * that it returns.
   *
   * @throws {TooManyTokens} if it then has more than `most`; a long piece is not encoded
   * to find that out.
   */
  encode(piece: string, into: number[], most?: number): Iterable<undefined>;
}

/**
 * Reads `model` of a tokenizer.json.
 *
 * @throws {Error} if it is not a byte-level BPE model, or its parts do not fit together;
 * the message has no subject.
 */
export function createBpe(model: unknown): Bpe {
  if (!isObject(model)) throw wrong("model", model, "an object");
  if (model.type !== "BPE") throw wrong("model.type", model.type, '"BPE"');
  for (const field of ["continuing_subword_prefix", "end_of_word_suffix"]) {
    if (model[field]) {
      throw wrong(`model.${field}`, model[field], "empty or null");
    }
  }
  if (model.dropout) throw wrong("model.dropout", model.dropout, "null");
  const { ids, tokens } = readVocabulary(model.vocab);
  const merges = readMerges(model.merges, ids);
  const unknown = readUnknown(model, ids);
  const idOfByte = Int32Array.from(
    CHARACTER_OF_BYTE,
    (character) => ids.get(character) ?? -1,
  );
  requireBytes(idOfByte, unknown);

  function symbols(piece: string): Int32Array {
    const bytes = utf8.encode(piece);
    if (bytes.length >= MOST_BYTES) {
      throw new RangeError(
        `Cannot encode a text: ${bytes.length} bytes of it have no boundary between words, must be fewer than ${MOST_BYTES}`,
      );
    }
    const into = new Int32Array(bytes.length);
    let length = 0;
    let fused = false;
    for (const byte of bytes) {
      const id = idOfByte[byte];
      if (id >= 0) into[length++] = id;
      else if (!fused) into[length++] = unknown.id;
      fused = id < 0 && unknown.fuse;
    }
    return into.subarray(0, length);
  }

  function append(found: Int32Array, into: number[], most: number): void {
    if (found.length > most - into.length) throw new TooManyTokens(most);
    for (const id of found) into.push(id);
  }

  function* inParts(piece: string, into: number[], most: number): Parts<void> {
    const found = yield* mergeAll(symbols(piece), merges);
    if (found.length > most - into.length) throw new TooManyTokens(most);
    for (let at = 0; at < found.length; at += TOKENS_TOGETHER) {
      append(found.subarray(at, at + TOKENS_TOGETHER), into, most);
      yield;
    }
  }

  const whole = model.ignore_merges === true;
  const cache = new Map<string, Int32Array>();
  let longest = 1;
  for (const token of ids.keys()) longest = Math.max(longest, token.length);
  return {
    ids,
    tokens,
    encode(piece, into, most = Infinity) {
      let found = cache.get(piece);
      if (found === undefined) {
        const id = whole ? ids.get(asToken(piece)) : undefined;
        if (id === undefined) {
          // A token merges at most as many bytes as its text has.
          const tooLong = piece.length > (most - into.length) * longest;
          if (tooLong && !unknown.fuse) throw new TooManyTokens(most);
          if (piece.length > CACHED_LENGTH) return inParts(piece, into, most);
          found = atOnce(mergeAll(symbols(piece), merges));
        } else found = Int32Array.of(id);
        if (piece.length <= CACHED_LENGTH) {
          if (cache.size >= CACHED_PIECES) cache.clear();
          cache.set(piece, found);
        }
      }
      append(found, into, most);
      return NOTHING_LEFT;
    },
  };
}

/** A text as a byte-level vocabulary spells it. */
function asToken(text: string): string {
  let token = "";
  for (const byte of utf8.encode(text)) token += CHARACTER_OF_BYTE[byte];
  return token;
}

function readVocabulary(vocab: unknown) {
  if (!isObject(vocab)) {
    throw wrong("model.vocab", vocab, "an object of tokens and their ids");
  }
  const entries: Iterable<[string, unknown]> = vocab instanceof Map
    ? vocab
    : Object.entries(vocab);
  const ids = new Map<string, number>();
  const tokens = new Map<number, string>();
  for (const [token, id] of entries) {
    if (!isTokenId(id) || tokens.has(id)) {
      const where = `the id of ${jsonText(token)} in model.vocab`;
      if (!isTokenId(id)) {
        throw wrong(where, id, `an integer from 0 to ${MOST_TOKENS - 1}`);
      }
      throw new Error(
        `${where} is ${id}, which ${jsonText(tokens.get(id)!)} also has`,
      );
    }
    ids.set(token, id);
    tokens.set(id, token);
  }
  return { ids, tokens };
}

/** Merges: what a pair of ids becomes. The pair's key is `left * 2²⁶ + right`. */
interface Merges {
  rankOf: ReadonlyMap<number, number>;
  /** The token that each rank makes. */
  made: Int32Array;
}

function readMerges(merges: unknown, ids: ReadonlyMap<string, number>): Merges {
  if (!Array.isArray(merges)) {
    throw wrong("model.merges", merges, "a list of pairs of tokens");
  }
  const rankOf = new Map<number, number>();
  const made = new Int32Array(merges.length);
  const idOf = (token: string, at: number) => {
    const id = ids.get(token);
    if (id !== undefined) return id;
    throw new Error(
      `merge ${at} needs ${jsonText(token)}, which model.vocab does not have`,
    );
  };
  for (let at = 0; at < merges.length; at++) {
    const merge: unknown = merges[at];
    // A list made from a merges.txt may begin with its first line.
    if (typeof merge === "string" && merge.startsWith("#version")) continue;
    const [left, right, ...more] = typeof merge === "string"
      ? merge.split(" ")
      : Array.isArray(merge)
      ? merge
      : [];
    if (
      typeof left !== "string" || typeof right !== "string" || more.length > 0
    ) {
      throw wrong(`merge ${at}`, merge, "two tokens");
    }
    // As in Hugging Face's tokenizers, the last of equal merges counts.
    rankOf.set(idOf(left, at) * MOST_TOKENS + idOf(right, at), at);
    made[at] = idOf(left + right, at);
  }
  return { rankOf, made };
}

/** The token for bytes that the vocabulary lacks; its id is -1 if there is none. */
function readUnknown(
  model: Record<string, unknown>,
  ids: ReadonlyMap<string, number>,
): { id: number; fuse: boolean } {
  const token = model.unk_token ?? undefined;
  if (token === undefined) return { id: -1, fuse: false };
  const id = typeof token === "string" ? ids.get(token) : undefined;
  if (id === undefined) {
    throw wrong("model.unk_token", token, "a token of model.vocab or null");
  }
  return { id, fuse: model.fuse_unk === true };
}

/** Refuses a vocabulary that lacks a byte, since text with that byte would lose it. */
function requireBytes(idOfByte: Int32Array, unknown: { id: number }): void {
  if (unknown.id >= 0) return;
  // UTF-8 does not use C0, C1 and F5 to FF.
  const missing = [...idOfByte.keys()].filter((byte) =>
    idOfByte[byte] < 0 && byte !== 0xc0 && byte !== 0xc1 && byte < 0xf5
  );
  if (missing.length === 0) return;
  const list = missing.slice(0, 8).map((byte) =>
    `${jsonText(CHARACTER_OF_BYTE[byte])} for byte 0x${
      byte.toString(16).padStart(2, "0")
    }`
  );
  throw new Error(
    `model.vocab lacks ${missing.length} of 243 bytes of UTF-8 (${
      list.join(", ")
    }${
      missing.length > 8 ? ", …" : ""
    }) and model.unk_token is null, so text would be dropped`,
  );
}

/**
 * Merges `ids` in place until no pair of neighbors has a rank: always the pair with the
 * lowest rank, of equal ones the leftmost. Takes n·log(n) time.
 */
function* mergeAll(
  ids: Int32Array,
  { rankOf, made }: Merges,
): Parts<Int32Array> {
  const length = ids.length;
  if (length < 2) return ids;
  const next = new Int32Array(length), previous = new Int32Array(length);
  for (let at = 0; at < length; at++) {
    next[at] = at + 1;
    previous[at] = at - 1;
  }
  /** A pair in the queue: rank and place in one number. */
  const entry = (left: number, right: number) => {
    const rank = rankOf.get(ids[left] * MOST_TOKENS + ids[right]);
    return rank === undefined ? -1 : rank * MOST_BYTES + left;
  };
  const queue = new TinyQueue<number>([], (a, b) => a - b);
  const push = (pair: number) => pair >= 0 && queue.push(pair);
  for (let at = 0; at + 1 < length; at++) {
    push(entry(at, at + 1));
    if (at % MERGES_TOGETHER === MERGES_TOGETHER - 1) yield;
  }

  const GONE = -1;
  let count = 0;
  for (let top = queue.pop(); top !== undefined; top = queue.pop()) {
    if (++count % MERGES_TOGETHER === 0) yield;
    const rank = Math.floor(top / MOST_BYTES), at = top % MOST_BYTES;
    const right = next[at];
    if (ids[at] === GONE || right >= length) continue;
    // The pair may have changed since it was queued.
    const now = rankOf.get(ids[at] * MOST_TOKENS + ids[right]);
    if (now === undefined || made[now] !== made[rank]) continue;
    ids[at] = made[rank];
    ids[right] = GONE;
    const after = next[at] = next[right];
    if (after < length) {
      previous[after] = at;
      push(entry(at, after));
    }
    if (previous[at] >= 0) push(entry(previous[at], at));
  }
  let left = 0;
  for (let at = 0; at < length; at = next[at]) {
    ids[left++] = ids[at];
    if (left % TOKENS_TOGETHER === 0) yield;
  }
  return ids.slice(0, left);
}

/** Whether `id` can be a token's id. */
export function isTokenId(id: unknown): id is number {
  return Number.isInteger(id) && id as number >= 0 &&
    id as number < MOST_TOKENS;
}

/** The error for a field of a tokenizer's file. */
export function wrong(field: string, value: unknown, must: string): Error {
  return new Error(`${field} is ${jsonText(value)}, must be ${must}`);
}
