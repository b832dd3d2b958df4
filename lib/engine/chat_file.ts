/**
 * Conversations in files.
 *
 * A file has, in this order:
 *
 * - `QWENCHAT`, 8 bytes;
 * - the version of the format and the size of the header in bytes, each a u32;
 * - the header, JSON in UTF-8: {@linkcode Header};
 * - keys and values of the first tokens, if the header says so: for each layer the keys, then
 *   the values, `[kvHeads, tokens, headDim]` as lib/formats/cached.ts stores heads;
 * - the SHA-256 of everything before.
 *
 * Numbers are little-endian.
 *
 * @module
 */
import type { Qwen3Config } from "../checkpoint/config.ts";
import { errorText, quoted } from "../errors.ts";
import type { CacheDtype } from "../formats/cached.ts";
import { host, type ReadableFile, type StreamingHash } from "../host.ts";
import { exactJson, isObject, parseExactJson } from "../json.ts";
import { cacheBytes, type KeptCache } from "../model/kv_cache.ts";
import {
  type Message,
  readConversation,
  readTools,
  type Tool,
} from "../text/conversation.ts";
import { givenOptions } from "../text/options.ts";

/** Options of {@linkcode Chat.save}. */
export interface SaveChatOptions {
  /** Whether keys and values are written, as far as the model still has them. Default: true. */
  cache?: boolean;
}

/** Options of {@linkcode Chat.load}. */
export interface LoadChatOptions {
  /** Whether keys and values are used; if not, the conversation runs again. Default: true. */
  cache?: boolean;
}

/** A conversation as it is saved. */
export interface SavedChat {
  readonly messages: readonly Message[];
  readonly system?: string;
  readonly tools?: readonly Tool[];
  /** The text that the model has seen, and its tokens. */
  readonly text: string;
  readonly tokenIds: readonly number[];
}

/** What saving and loading need from a model. */
export interface SavingModel {
  readonly name: string;
  readonly context: number;
  readonly config: Qwen3Config;
  /** A value that other weights, or other sizes, do not have. */
  fingerprint(): Promise<string>;
  /** Does something with the cache while nothing else uses the model. */
  withCache<R>(
    action: string,
    work: (cache: KeptCache | undefined) => Promise<R>,
  ): Promise<R>;
}

/** The header of a file. */
interface Header extends SavedChat {
  readonly model: { readonly name: string; readonly fingerprint: string };
  /** The type of keys and values, and for how many tokens there are any. */
  readonly cache?: { readonly dtype: CacheDtype; readonly tokens: number };
}

const MAGIC = "QWENCHAT", VERSION = 1;
const HASH_BYTES = 32;
const OPTIONS = { cache: "flag" } as const;

/** Keys and values are of another type than the model's cache. */
export class OtherCacheError extends Error {
  constructor(readonly saved: CacheDtype, readonly own: CacheDtype) {
    super(
      `its keys and values are ${saved}, this model's are ${own}; without them ({ cache: false }) the conversation runs again`,
    );
  }
}

type Bytes = Uint8Array<ArrayBuffer>;

/** Where bytes go; `close` keeps what was written, `abort` does not. */
interface Sink {
  write(bytes: Bytes): Promise<void>;
  close(): Promise<void>;
  abort(error: unknown): Promise<void>;
}

/** Where bytes come from; `read` throws if there are fewer. */
interface Source {
  read(bytes: number): Promise<Bytes>;
  /** Whether all bytes were read. */
  ended(): Promise<boolean>;
  close(): Promise<void>;
}

/** Writes a conversation; says how many bytes, and for how many tokens keys and values. */
export async function writeChat(
  to: string | WritableStream<Uint8Array>,
  chat: SavedChat,
  model: SavingModel,
  options: SaveChatOptions,
): Promise<{ bytes: number; cachedTokens: number }> {
  const file = typeof to === "string" ? ` to ${quoted(to)}` : "";
  const cannot = `Cannot save the chat${file}`;
  const { cache: wanted = true } = givenOptions(cannot, options, OPTIONS);
  const fingerprint = await model.fingerprint();
  return await model.withCache("save the chat", async (kept) => {
    const { tokenIds } = chat;
    // One more than there are: a prompt's last token is not reused, these may all be.
    const tokens = wanted && kept ? kept.heldOf([...tokenIds, -1]) : 0;
    const header: Header = {
      ...chat,
      model: { name: model.name, fingerprint },
      ...(kept && tokens > 0 && { cache: { dtype: kept.dtype, tokens } }),
    };
    let bytes = 0, sink: Sink | undefined;
    try {
      sink = typeof to === "string" ? await fileSink(to) : streamSink(to);
      const hash = await host.createHash("sha256");
      const write = async (part: Bytes) => {
        hash.update(part);
        bytes += part.length;
        await sink!.write(part);
      };
      const json = new TextEncoder().encode(exactJson(header));
      const start = new Uint8Array(MAGIC.length + 8);
      start.set(new TextEncoder().encode(MAGIC));
      const view = new DataView(start.buffer);
      view.setUint32(MAGIC.length, VERSION, true);
      view.setUint32(MAGIC.length + 4, json.length, true);
      await write(start);
      await write(json);
      if (header.cache) {
        for await (const part of kept!.save(tokens)) await write(part);
      }
      await sink.write(await digest(hash));
      await sink.close();
      return { bytes: bytes + HASH_BYTES, cachedTokens: tokens };
    } catch (error) {
      await sink?.abort(error).catch(() => {});
      throw new Error(`${cannot}: ${errorText(error)}`, { cause: error });
    }
  });
}

/** Reads a conversation, and puts its keys and values into the model's cache. */
export async function readChat(
  from: string | ReadableStream<Uint8Array>,
  model: SavingModel,
  options: LoadChatOptions,
): Promise<{ chat: SavedChat; cachedTokens: number }> {
  const isFile = typeof from === "string";
  const cannot = `Cannot load the chat${isFile ? ` in ${quoted(from)}` : ""}`;
  const { cache: wanted = true } = givenOptions(cannot, options, OPTIONS);
  const fingerprint = await model.fingerprint();
  let source: Source | undefined;
  try {
    source = isFile ? await fileSource(from) : streamSource(from);
    const hash = await host.createHash("sha256");
    const next = async (bytes: number) => {
      const part = await source!.read(bytes);
      hash.update(part);
      return part;
    };
    const header = await readHeader(next);
    requireModel(header, model, fingerprint);
    const { cache, model: _, ...chat } = header;
    const sizes = cache ? partsOf(cache, model.config) : [];
    // Whoever writes to a stream may wait for the model, so nothing waits for a stream while
    // the model waits for this.
    const parts: Bytes[] = [];
    if (!isFile) {
      for (const bytes of sizes) parts.push(await next(bytes));
      await requireEnd(source, hash);
    }
    const cachedTokens = await model.withCache("load a chat", async (kept) => {
      const take = isFile ? next : () => Promise.resolve(parts.shift()!);
      const tokens = cache && wanted && kept ? cache.tokens : 0;
      try {
        if (tokens > 0) {
          requireType(cache!.dtype, kept!.dtype);
          await kept!.restore(chat.tokenIds.slice(0, tokens), take);
        } else for (const bytes of sizes) await take(bytes); // for the checksum
        if (isFile) await requireEnd(source!, hash);
      } catch (error) {
        if (tokens > 0) kept!.reset();
        throw error;
      }
      return tokens;
    });
    return { chat, cachedTokens };
  } catch (error) {
    const why = errorText(error).replace(/^Cannot render a chat: /, "");
    throw new Error(`${cannot}: ${why}`, { cause: error });
  } finally {
    await source?.close();
  }
}

/** The bytes of each layer's keys, and of its values. */
function partsOf(
  { dtype, tokens }: NonNullable<Header["cache"]>,
  config: Qwen3Config,
): number[] {
  const parts = 2 * config.numHiddenLayers;
  const bytes = cacheBytes(config, 1, tokens, dtype) / parts;
  return new Array(parts).fill(bytes);
}

function requireType(saved: CacheDtype, own: CacheDtype): void {
  if (saved !== own) throw new OtherCacheError(saved, own);
}

/** @throws {Error} if the checksum is not that of what was read, or more follows. */
async function requireEnd(source: Source, hash: StreamingHash): Promise<void> {
  const sum = await digest(hash), stored = await source.read(HASH_BYTES);
  if (sum.some((byte, i) => byte !== stored[i])) {
    throw new Error("it is damaged, its checksum is another");
  }
  if (!await source.ended()) {
    throw new Error("it is damaged, there are bytes after its end");
  }
}

async function readHeader(
  next: (bytes: number) => Promise<Bytes>,
): Promise<Header> {
  const start = await next(MAGIC.length + 8);
  const magic = new TextDecoder().decode(start.subarray(0, MAGIC.length));
  if (magic !== MAGIC) throw new Error("it is not a saved chat");
  const view = new DataView(start.buffer, start.byteOffset);
  const version = view.getUint32(MAGIC.length, true);
  if (version !== VERSION) {
    throw new Error(
      `it has version ${version} of the format, must be ${VERSION}`,
    );
  }
  const text = await next(view.getUint32(MAGIC.length + 4, true));
  let json: unknown;
  try {
    json = parseExactJson(new TextDecoder().decode(text));
  } catch {
    throw new Error("it is damaged, its header is not JSON");
  }
  const levels = levelsOf(json);
  if (levels > MOST_LEVELS) {
    throw new Error(
      `it is damaged, its header has ${levels} levels, must have ${MOST_LEVELS} at most`,
    );
  }
  return checkHeader(json);
}

/** Levels of a header: what checks and renders it calls itself for each. */
const MOST_LEVELS = 500;

/** How many arrays and objects are in each other, at most. */
function levelsOf(json: unknown): number {
  const holders = (values: readonly unknown[]) =>
    values.filter((value) => typeof value === "object" && value !== null);
  let levels = 0, values = holders([json]);
  for (; values.length > 0; levels++) {
    values = holders(values.flatMap((value) => Object.values(value!)));
  }
  return levels;
}

const isCount = (value: unknown): value is number =>
  Number.isSafeInteger(value) && (value as number) >= 0;

/** @throws {Error} if a header is not one that was written. */
function checkHeader(json: unknown): Header {
  const wrong = (what: string) => new Error(`it is damaged, ${what} is wrong`);
  if (!isObject(json)) throw wrong("its header");
  const { model, messages, system, tools, text, tokenIds, cache } = json;
  if (
    !isObject(model) || typeof model.name !== "string" ||
    typeof model.fingerprint !== "string"
  ) throw wrong("its model");
  if (!Array.isArray(messages)) throw wrong("the list of messages");
  if (messages.length > 0) readConversation(messages);
  if (system !== undefined && typeof system !== "string") {
    throw wrong("the system message");
  }
  if (tools !== undefined) readTools(tools, "its tools");
  if (typeof text !== "string") throw wrong("the text");
  if (!Array.isArray(tokenIds) || !tokenIds.every(isCount)) {
    throw wrong("the list of tokens");
  }
  if (cache !== undefined) {
    const right = isObject(cache) && isCount(cache.tokens) &&
      cache.tokens > 0 && cache.tokens <= tokenIds.length &&
      ["f32", "f16", "q8_0"].includes(String(cache.dtype));
    if (!right) throw wrong("the number of keys and values");
  }
  return json as unknown as Header;
}

/** @throws {Error} if a conversation is of another model, or too long for this one. */
function requireModel(
  { model: { name, fingerprint }, tokenIds, cache }: Header,
  model: SavingModel,
  expected: string,
): void {
  if (fingerprint !== expected) {
    throw new Error(
      name === model.name
        ? `its model, ${quoted(name)}, had other weights`
        : `its model is ${quoted(name)}, this one is ${quoted(model.name)}`,
    );
  }
  const { vocabSize } = model.config;
  if (tokenIds.some((id) => id >= vocabSize)) {
    throw new Error("it is damaged, the list of tokens is wrong");
  }
  if (cache && cache.tokens >= model.context) {
    throw new Error(
      `it has ${cache.tokens} tokens, the context of ${model.context} has room for no reply`,
    );
  }
}

async function digest(hash: StreamingHash): Promise<Bytes> {
  return Uint8Array.from(
    (await hash.hex()).match(/../g)!,
    (byte) => parseInt(byte, 16),
  );
}

/** A file that gets its name once it is complete. */
async function fileSink(path: string): Promise<Sink> {
  const unfinished = `${path}.${crypto.randomUUID()}`;
  const file = await host.files.append(unfinished);
  return {
    write: (bytes) => file.append(bytes),
    async close() {
      await file.flush();
      file[Symbol.dispose]();
      await host.files.move(unfinished, path);
    },
    async abort() {
      try {
        file[Symbol.dispose]();
      } catch { /* closed before */ }
      await host.files.remove(unfinished);
    },
  };
}

function streamSink(stream: WritableStream<Uint8Array>): Sink {
  const writer = stream.getWriter();
  return {
    write: (bytes) => writer.write(bytes),
    close: () => writer.close(),
    abort: (error) => writer.abort(error),
  };
}

const EARLY = "it is damaged, it ends too early";

async function fileSource(path: string): Promise<Source> {
  let file: ReadableFile | undefined;
  try {
    file = await host.files.open(path);
  } catch (error) {
    // The caller's message names the file.
    throw new Error(errorText(error).replace(`Cannot read ${path}: `, ""));
  }
  if (file === undefined) throw new Error("there is no such file");
  let at = 0;
  return {
    async read(bytes) {
      if (at + bytes > file.size) throw new Error(EARLY);
      const part = new Uint8Array(bytes);
      if (await file.read(at, part) < bytes) throw new Error(EARLY);
      at += bytes;
      return part;
    },
    ended: () => Promise.resolve(at === file.size),
    // deno-lint-ignore require-await
    async close() {
      file[Symbol.dispose]();
    },
  };
}

function streamSource(stream: ReadableStream<Uint8Array>): Source {
  const reader = stream.getReader();
  let chunks: Uint8Array[] = [], there = 0;
  const more = async () => {
    const { value } = await reader.read();
    if (value) {
      chunks.push(value);
      there += value.length;
    }
    return value !== undefined;
  };
  return {
    async read(bytes) {
      while (there < bytes) if (!await more()) throw new Error(EARLY);
      const part = new Uint8Array(bytes);
      let at = 0;
      while (at < bytes) {
        const [first, ...rest] = chunks, take = first.subarray(0, bytes - at);
        part.set(take, at);
        at += take.length;
        chunks = take.length < first.length
          ? [first.subarray(take.length), ...rest]
          : rest;
      }
      there -= bytes;
      return part;
    },
    ended: async () => there === 0 && !await more(),
    close: () => reader.cancel(),
  };
}
