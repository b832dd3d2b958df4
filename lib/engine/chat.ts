/**
 * Conversations with a model: the messages are kept, and a turn runs only the tokens that
 * are new.
 *
 * @module
 */
import { described, OptionError, wrongOption } from "../errors.ts";
import {
  checkGenerating,
  type GenerateOptions,
  type Run,
} from "../generate.ts";
import { isObject } from "../json.ts";
import { resolveSampling } from "../model/sampling.ts";
import type { ContentPart, Message, Tool } from "../text/conversation.ts";
import {
  type EncodedPrompt,
  encodeTextInParts,
  renderPrompt,
} from "../text/prompt.ts";
import { atOnce } from "../text/parts.ts";
import type { Tokenizer } from "../text/tokenizer.ts";
import {
  type LoadChatOptions,
  readChat,
  type SaveChatOptions,
  type SavedChat,
  type SavingModel,
  writeChat,
} from "./chat_file.ts";

/** What is sent: text, its parts, or messages such as the results of function calls. */
export type ChatContent = string | readonly ContentPart[] | readonly Message[];

/** Options of a chat; those of `generate` apply to every reply. */
export interface ChatSettings extends Omit<GenerateOptions, "raw" | "signal"> {
  /** Messages to begin with. */
  messages?: readonly Message[];
  /**
   * What to do when the context has no room for a reply: `refuse` the message, the default,
   * or `drop` the oldest turns. Turns are dropped whole, once less than an eighth of the
   * context is left (or `maxTokens`, if that is less) and until half of it is, so that this
   * happens rarely: what follows has to run again.
   */
  onFull?: "refuse" | "drop";
  /** Called with what was dropped. */
  onNotice?: (notice: string) => void;
}

/** The kinds of a chat's own options. */
const OWN = {
  messages: "list",
  onFull: "text",
  onNotice: "function",
} as const;

/** Options of one reply, which replace those of the chat. */
export type SendOptions = Omit<
  GenerateOptions,
  "raw" | "system" | "tools" | "chatTemplate"
>;

/** What a chat needs from its model. */
export interface ChatModel extends SavingModel {
  readonly tokenizer: Pick<
    Tokenizer,
    "encodeInParts" | "decode" | "specialTokens"
  >;
  /** Starts a run; `begin` is called when it starts, and disposed when it has ended. */
  run(
    prompt: EncodedPrompt,
    options: GenerateOptions,
    begin: () => Disposable,
  ): Run;
}

/** Text and the tokens that the model has seen for it. */
interface Script {
  readonly text: string;
  readonly tokenIds: readonly number[];
  /** How many messages it has. */
  readonly messages: number;
  /** Where earlier replies ended in it, the shortest first. */
  readonly ends: readonly End[];
}

/** The end of a reply: counts of characters, tokens and messages. */
interface End {
  readonly text: number;
  readonly tokens: number;
  readonly messages: number;
}

const NOTHING: Script = { text: "", tokenIds: [], messages: 0, ends: [] };

/** What a script says up to one of its ends. */
function upTo({ text, tokenIds, ends }: Script, at: number): Script {
  const end = ends[at];
  return {
    text: text.slice(0, end.text),
    tokenIds: tokenIds.slice(0, end.tokens),
    messages: end.messages,
    ends: ends.slice(0, at),
  };
}

/** What a message becomes: the conversation with it, ready to run. */
interface Prepared {
  readonly messages: readonly Message[];
  readonly prompt: EncodedPrompt;
  readonly text: string;
  /** The part of it that the model has already seen. */
  readonly known: Script;
  readonly notice?: string;
}

/**
 * A conversation, made by {@linkcode Qwen3.chat}.
 *
 * A turn is a message of the user and all that follows up to the next one: replies, and the
 * results of functions that they call. Turns are counted from 0; negative numbers count from
 * the end, so -1 is the last.
 *
 * A reply continues from the keys and values that the model still has, as far as the prompt
 * begins with the same tokens; `stats.cachedTokens` of the run tells how many they were.
 * Whatever changes the conversation needs nothing else: after an edit or in a fork, what is
 * the same is reused. Other runs of the model may replace them; then the whole conversation
 * runs again.
 *
 * ```ts
 * import { loadQwen3 } from "../../mod.ts";
 *
 * using qwen = await loadQwen3(); // the story model; or "Qwen/Qwen3-0.6B"
 * const chat = qwen.chat({ maxTokens: 16 });
 * console.log((await chat.send("Once upon a time")).text);
 * const run = chat.send("She had a cat");
 * for await (const { text } of run) console.log(text);
 * console.log(run.stats.cachedTokens, chat.messages.length);
 * ```
 */
export class Chat {
  /** The system message; a change applies from the next reply. */
  system: string | undefined;
  /** Functions that the assistant may call; a change applies from the next reply. */
  tools: readonly Tool[] | undefined;
  readonly #model: ChatModel;
  readonly #template: string;
  readonly #settings: ChatSettings;
  #messages: readonly Message[];
  #script = NOTHING;
  #running = false;
  /** Changes with the messages. */
  #version = 0;

  /** @ignore Made by {@linkcode Qwen3.chat}. */
  constructor(model: ChatModel, template: string, settings: ChatSettings) {
    const cannot = "Cannot chat";
    const given = checkGenerating(settings, cannot, OWN);
    resolveSampling(settings);
    for (const name of ["raw", "signal"] as const) {
      if (given[name] === undefined) continue;
      const where = name === "raw" ? "left out" : "an option of send";
      throw new OptionError(
        name,
        `${cannot}: ${name} is given, must be ${where}`,
      );
    }
    const { messages, system, tools, onFull } = settings;
    if (!["refuse", "drop"].includes(onFull ?? "refuse")) {
      throw wrongOption(cannot, "onFull", onFull, "refuse or drop");
    }
    this.#model = model;
    this.#template = template;
    this.#settings = settings;
    this.#messages = [...messages ?? []];
    this.system = system;
    this.tools = tools;
  }

  /** The messages so far, without the system message that is {@linkcode system}. */
  get messages(): Message[] {
    return [...this.#messages];
  }

  /** The number of turns. */
  get turns(): number {
    return turnStarts(this.#messages).length;
  }

  /** Tokens of the conversation, as of the last reply; the context has room for `context`. */
  get tokens(): number {
    return this.#said().tokenIds.length;
  }

  /** The most tokens of a conversation. */
  get context(): number {
    return this.#model.context;
  }

  /**
   * Sends a message; the reply is awaited or iterated over, as `generate`'s is. The message
   * and the reply become part of the conversation when the run has ended, also if it was
   * aborted or left early; not if there was no token.
   *
   * Results of functions are messages, `[{ role: "tool", content: "4" }]`, or parts of the
   * type `tool-result`.
   *
   * @throws {OptionError} if an option is unknown or has a wrong value.
   * @throws {Error} if the message is empty or cannot be rendered, or the last reply has not
   * ended.
   * @throws {RangeError} if the context has no room for a reply.
   */
  send(content: ChatContent, options: SendOptions = {}): Run {
    return this.#turn("send", this.#messages, content, options);
  }

  /**
   * Replaces the message of a turn, which ends the conversation there, and sends it.
   *
   * @throws {RangeError} if there is no such turn.
   * @throws {Error} for the same reasons as {@linkcode send}.
   */
  edit(turn: number, content: ChatContent, options: SendOptions = {}): Run {
    this.#requireIdle("edit");
    const before = this.#messages.slice(0, this.#startOf("edit", turn));
    return this.#turn("edit", before, content, options);
  }

  /**
   * Takes the last turns back.
   *
   * @returns their messages
   * @throws {RangeError} if there are fewer turns.
   * @throws {Error} if the last reply has not ended.
   */
  undo(turns = 1): Message[] {
    this.#requireIdle("undo");
    if (!Number.isInteger(turns) || turns < 1) {
      throw new RangeError(
        `Cannot undo: the number of turns is ${
          described(turns)
        }, must be at least 1`,
      );
    }
    if (turns > this.turns) {
      throw new RangeError(
        `Cannot undo: the number of turns is ${turns}, the conversation has ${this.turns}`,
      );
    }
    const start = this.#startOf("undo", -turns);
    const undone = this.#messages.slice(start);
    this.#change(this.#messages.slice(0, start));
    return undone;
  }

  /** Begins again, with these messages. A reply that has not ended is left out. */
  reset(messages: readonly Message[] = []): void {
    this.#change([...messages]);
    this.#running = false;
    this.#script = NOTHING;
  }

  /**
   * A chat that continues on its own after the same messages, or after the first `turns`
   * turns.
   *
   * @throws {RangeError} if there are fewer turns.
   * @throws {Error} if the last reply has not ended.
   */
  fork(turns: number = this.turns): Chat {
    this.#requireIdle("fork");
    const end = turns === this.turns ? undefined : this.#startOf("fork", turns);
    const fork = new Chat(this.#model, this.#template, {
      ...this.#settings,
      system: this.system,
      tools: this.tools,
      messages: this.#messages.slice(0, end),
    });
    fork.#script = this.#script;
    return fork;
  }

  /**
   * Writes the conversation to a file or a stream: the messages, the system message, the
   * tools and the tokens, and, unless `cache` is false, the keys and values, with which
   * {@linkcode load} need not run them again. They take `2 · layers · kvHeads · headDim`
   * values a token: 112 KiB in f16 for Qwen3-0.6B. Other work of the model waits until the
   * stream has taken them. What was taken back is left out.
   *
   * @returns the bytes written, and for how many tokens there are keys and values
   * @throws {Error} if the last reply has not ended, or the file cannot be written.
   */
  async save(
    to: string | WritableStream<Uint8Array>,
    options: SaveChatOptions = {},
  ): Promise<{ bytes: number; cachedTokens: number }> {
    this.#requireIdle("save");
    const { system, tools } = this, { text, tokenIds } = this.#said();
    const saved: SavedChat = {
      messages: this.#messages,
      system,
      tools,
      text,
      tokenIds,
    };
    return await writeChat(to, saved, this.#model, options);
  }

  /**
   * Replaces the conversation by one that {@linkcode save} wrote. Settings of the chat stay,
   * except for the system message and the tools. What comes from a stream is kept in memory
   * until it is complete, so that the model waits for no stream.
   *
   * @returns for how many tokens there were keys and values
   * @throws {Error} if the file is damaged or of another model, or its keys and values are of
   * another type than this model's cache; the conversation then stays as it was.
   */
  async load(
    from: string | ReadableStream<Uint8Array>,
    options: LoadChatOptions = {},
  ): Promise<{ cachedTokens: number }> {
    this.#requireIdle("load");
    const { chat, cachedTokens } = await readChat(from, this.#model, options);
    this.#requireIdle("load");
    this.#change(chat.messages);
    this.system = chat.system;
    this.tools = chat.tools;
    this.#script = {
      text: chat.text,
      tokenIds: chat.tokenIds,
      messages: chat.messages.length,
      ends: [],
    };
    return { cachedTokens };
  }

  #change(messages: readonly Message[]): void {
    this.#messages = messages;
    this.#version++;
  }

  #requireIdle(action: string): void {
    if (!this.#running) return;
    throw new Error(
      `Cannot ${action}: the last reply has not ended, must be read to its end, left or aborted`,
    );
  }

  /** The index of the first message of a turn. */
  #startOf(action: string, turn: number): number {
    const starts = turnStarts(this.#messages), { length } = starts;
    const start = Number.isInteger(turn) ? starts.at(turn) : undefined;
    if (start !== undefined) return start;
    throw new RangeError(
      `Cannot ${action}: there is no turn ${
        described(turn)
      }, the conversation has ${length}`,
    );
  }

  #turn(
    action: string,
    before: readonly Message[],
    content: ChatContent,
    given: SendOptions,
  ): Run {
    this.#requireIdle(action);
    requireSendOptions(action, given);
    const { messages: _, onFull: _full, onNotice, ...settings } =
      this.#settings;
    const { system, tools } = this;
    // What is undefined or null, as in JSON, is not given.
    const present = Object.entries(given).filter(([, value]) =>
      value !== undefined && value !== null
    );
    const options: GenerateOptions = {
      ...settings,
      ...Object.fromEntries(present),
      system,
      tools: tools && [...tools],
    };
    const sent = readContent(action, content);
    const prepared = this.#prepare(action, before, sent, options);
    const version = this.#version;
    const run: Run = this.#model.run(
      prepared.prompt,
      { ...options, reuse: options.reuse ?? true },
      () => {
        if (this.#version !== version || this.#running) {
          throw new Error(
            `Cannot ${action}: the conversation has changed since, must be sent again`,
          );
        }
        if (prepared.notice !== undefined) onNotice?.(prepared.notice);
        return this.#begin(prepared, () => run);
      },
    );
    return run;
  }

  /** Begins a reply; once disposed, it is part of the conversation. */
  #begin(
    { messages, prompt, text, known }: Prepared,
    run: () => Run,
  ): Disposable {
    this.#running = true;
    const version = ++this.#version;
    return {
      [Symbol.dispose]: () => {
        if (this.#version !== version) return; // after a reset
        this.#running = false;
        const { tokenIds } = run();
        if (tokenIds.length === 0) return;
        const all = [...messages, messageOf(run())];
        this.#change(all);
        this.#script = {
          text: text + this.#model.tokenizer.decode(tokenIds),
          tokenIds: [...prompt.tokenIds, ...tokenIds],
          messages: all.length,
          ends: [...known.ends, {
            text: known.text.length,
            tokens: known.tokenIds.length,
            messages: known.messages,
          }],
        };
      },
    };
  }

  /** Renders the conversation with what is sent; drops turns if it is too long. */
  #prepare(
    action: string,
    before: readonly Message[],
    sent: readonly Message[],
    options: GenerateOptions,
  ): Prepared {
    const { context } = this.#model;
    const most = options.maxTokens ?? context;
    const drops = this.#settings.onFull === "drop";
    let kept = before, dropped = 0, prepared: Prepared;
    for (let room = Math.min(most, context / 8);;) {
      const messages = [...kept, ...sent];
      prepared = { messages, ...this.#encoded(messages, options) };
      const left = context - prepared.prompt.tokenIds.length;
      if (left >= (drops ? room : 1)) break;
      const shorter = drops ? withoutOldest(kept, sent) : undefined;
      if (shorter) {
        kept = shorter;
        dropped++;
        room = context / 2;
      } else if (left >= 1) break;
      else {
        throw new RangeError(
          `Cannot ${action}: the conversation has ${
            context - left
          } tokens, the context of ${context} has room for no reply${
            drops ? "" : '; undo turns, or choose onFull "drop"'
          }`,
        );
      }
    }
    if (dropped === 0) return prepared;
    const count = before.length - kept.length;
    const turns = dropped === 1
      ? "the oldest turn"
      : `the ${dropped} oldest turns`;
    return {
      ...prepared,
      notice:
        `Dropped ${turns} (${count} messages): the context of ${context} tokens was full`,
    };
  }

  #encoded(
    messages: readonly Message[],
    options: GenerateOptions,
  ): Pick<Prepared, "prompt" | "text" | "known"> {
    const { tokenizer, context } = this.#model;
    // Reasoning that the template has no place for was never in a prompt.
    const readsThoughts = this.#template.includes("reasoning_content");
    const { text, reply } = renderPrompt(
      this.#template,
      readsThoughts ? messages : messages.map(withoutReasoning),
      options,
      tokenizer,
    );
    const known = this.#known(text);
    const rest = text.slice(known.text.length);
    const tokenIds = [
      ...known.tokenIds,
      ...rest === ""
        ? []
        : atOnce(encodeTextInParts(rest, false, tokenizer, context)),
    ];
    return { prompt: { tokenIds, reply }, text, known };
  }

  /** What the model has seen of the messages that there are, without any taken back. */
  #said(): Script {
    const script = this.#script, { length } = this.#messages;
    if (script.messages <= length) return script;
    const at = script.ends.findLastIndex(({ messages }) => messages <= length);
    return at < 0 ? NOTHING : upTo(script, at);
  }

  /**
   * The tokens that the model has seen, if the text continues what they say: a model may
   * write text in other tokens than the tokenizer would. The last one may be the end of
   * text, which a template need not print. If the text goes another way, as after an edit, it
   * continues an earlier reply.
   */
  #known(text: string): Script {
    const { text: seen, tokenIds, messages, ends } = this.#script;
    if (tokenIds.length === 0) return NOTHING;
    if (text.startsWith(seen)) return this.#script;
    const last = this.#model.tokenizer.decode(tokenIds.slice(-1));
    const shorter = seen.slice(0, seen.length - last.length);
    if (seen.endsWith(last) && text.startsWith(shorter)) {
      return { text: shorter, tokenIds: tokenIds.slice(0, -1), messages, ends };
    }
    const at = ends.findLastIndex((end) =>
      text.startsWith(seen.slice(0, end.text))
    );
    return at < 0 ? NOTHING : upTo(this.#script, at);
  }
}

/** Where the turns of a conversation begin: at a user's message after other messages. */
function turnStarts(messages: readonly Message[]): number[] {
  return [...messages.keys()].filter((i) =>
    messages[i].role === "user" && messages[i - 1]?.role !== "user"
  );
}

const isSystem = ({ role }: Message) =>
  role === "system" || role === "developer";

/** The messages without their first turn; undefined if it is the one that is sent. */
function withoutOldest(
  messages: readonly Message[],
  sent: readonly Message[],
): Message[] | undefined {
  const all = [...messages, ...sent], starts = turnStarts(all);
  const next = starts[1];
  if (next === undefined || next > messages.length) return undefined;
  const head = messages.slice(0, starts[0]).filter(isSystem);
  return [...head, ...messages.slice(next)];
}

function withoutReasoning(message: Message): Message {
  if (message.role !== "assistant") return message;
  const { reasoning: _, reasoning_content: _content, ...rest } = message;
  return rest;
}

/** A reply as a message. */
function messageOf({ text, reasoning, toolCalls }: Run): Message {
  return {
    role: "assistant",
    content: text,
    ...(reasoning !== "" && { reasoning_content: reasoning }),
    ...(toolCalls.length > 0 && { tool_calls: [...toolCalls] }),
  };
}

const MUST = "text, a list of parts or a list of messages";

/** What is sent, as messages. */
function readContent(action: string, content: ChatContent): Message[] {
  if (typeof content === "string") {
    if (content.trim() === "") {
      throw new Error(`Cannot ${action}: the message is empty`);
    }
    return [{ role: "user", content }];
  }
  if (!Array.isArray(content)) {
    throw new TypeError(
      `Cannot ${action}: the message is ${described(content)}, must be ${MUST}`,
    );
  }
  const items: readonly (Message | ContentPart)[] = content;
  if (items.length === 0) {
    throw new Error(`Cannot ${action}: the message has no parts`);
  }
  const wrong = items.findIndex((item) => !isObject(item));
  if (wrong >= 0) {
    throw new TypeError(
      `Cannot ${action}: item ${wrong} is ${
        described(items[wrong])
      }, must be a part or a message`,
    );
  }
  if (items.every((item): item is Message => "role" in item)) return [...items];
  const parts = items as readonly ContentPart[];
  const results = parts.some(({ type }) => type === "tool-result");
  return [{ role: results ? "tool" : "user", content: [...parts] }];
}

/** Refuses options that belong to the chat. */
function requireSendOptions(action: string, options: SendOptions): void {
  const given: Record<string, unknown> = { ...options };
  for (const name of ["system", "tools", "chatTemplate", "raw"]) {
    if ((given[name] ?? null) === null) continue;
    const where = name === "raw"
      ? "must be left out"
      : name === "chatTemplate"
      ? "must be an option of the chat"
      : `must be set on the chat: chat.${name} = …`;
    throw new OptionError(name, `Cannot ${action}: ${name} is given, ${where}`);
  }
}
