/**
 * Encodes prompts: text, conversations or token ids.
 *
 * @module
 */
import { type Message, ONE_MESSAGE, type Tool } from "./conversation.ts";
import { renderChat } from "./chat_template.ts";
import { described, OptionError } from "../errors.ts";
import { isObject } from "../json.ts";
import type { ReplyFormat } from "./reply.ts";
import { TooManyTokens } from "./bpe.ts";
import { atOnce, type Parts } from "./parts.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** A prompt: text, a conversation, or token ids. */
export type Prompt = string | readonly Message[] | readonly number[];

/** Options that say how a prompt is encoded. */
export interface PromptOptions {
  /** A system message, for instruct checkpoints. */
  system?: string;
  /** Whether an instruct checkpoint may think first; by default its template decides. */
  thinking?: boolean;
  /** Functions that the assistant may call, for instruct checkpoints. */
  tools?: readonly Tool[];
  /** A chat template (Jinja) to use instead of the checkpoint's, which may have none. */
  chatTemplate?: string;
  /** Further variables of the chat template, such as `chat_template_kwargs` of servers. */
  templateVariables?: Record<string, unknown>;
  /** Uses the prompt as is, without the chat template. */
  raw?: boolean;
}

/** The tokens of a prompt. */
export interface EncodedPrompt {
  tokenIds: number[];
  /** What the prompt implies for the reply; undefined if the reply is plain text. */
  reply?: ReplyFormat;
}

/** A prompt that was encoded before it is asked for. */
export class ReadyPrompt implements EncodedPrompt {
  readonly tokenIds: number[];
  readonly reply?: ReplyFormat;

  /** @param from what was encoded */
  constructor(readonly from: Prompt, { tokenIds, reply }: EncodedPrompt) {
    this.tokenIds = tokenIds;
    this.reply = reply;
  }
}

/** Where the tokenizer comes from. */
export interface TokenizerSource {
  /** The checkpoint's name, for errors. */
  name: string;
  /** @throws {Error} if the checkpoint has none. */
  tokenizer(): Tokenizer;
  /** The tokens that the context has room for. */
  context: number;
}

/**
 * Tokens up to which a prompt that is too long is counted; encoding a longer one to the
 * end could take seconds.
 */
const COUNTED = 65_536;

/**
 * Encodes a prompt; an empty one has no tokens.
 *
 * @throws {Error} if the prompt or an option needs a tokenizer or chat template that the
 * checkpoint lacks, or a conversation cannot be rendered.
 */
export function encodePrompt(
  prompt: Prompt | ReadyPrompt,
  options: PromptOptions,
  source: TokenizerSource,
): EncodedPrompt {
  return atOnce(encodePromptInParts(prompt, options, source));
}

/** Does as {@linkcode encodePrompt}, in parts if the prompt is long. */
export function* encodePromptInParts(
  prompt: Prompt | ReadyPrompt,
  options: PromptOptions,
  source: TokenizerSource,
): Parts<EncodedPrompt> {
  const { raw, thinking } = options;
  if (prompt instanceof ReadyPrompt) return prompt;
  if (typeof prompt !== "string") {
    if (!Array.isArray(prompt)) {
      throw new TypeError(
        isObject(prompt) && "role" in prompt
          ? `Cannot generate: ${ONE_MESSAGE}`
          : `Cannot generate: the prompt is ${
            described(prompt)
          }, must be a string, a list of messages or a list of token ids`,
      );
    }
    requireItems(prompt);
    if (prompt.every((item) => typeof item === "number")) {
      refuseChatOptions(options, "and token ids are used as they are");
      return { tokenIds: [...prompt] };
    }
    if (raw) {
      throw new Error(
        "Cannot generate: messages need a chat template, and raw skips it",
      );
    }
  }
  if (prompt === "") return { tokenIds: [] };
  if (typeof prompt === "string" && !prompt.isWellFormed()) {
    throw new Error(
      "Cannot generate: the prompt has half of a surrogate pair, must have whole characters",
    );
  }
  const tokenizer = source.tokenizer();
  const encode = (text: string, addSpecialTokens: boolean) =>
    encodeTextInParts(text, addSpecialTokens, tokenizer, source.context);
  const template = raw
    ? undefined
    : options.chatTemplate ?? tokenizer.chatTemplate;
  if (template === undefined) {
    const why = raw ? "and raw skips it" : `${source.name} has none`;
    if (typeof prompt !== "string") {
      throw new Error(
        `Cannot generate: messages need a chat template, ${why}`,
      );
    }
    // Without a template, nothing makes the model think.
    const asked = !raw && thinking === false ? undefined : thinking;
    refuseChatOptions({ ...options, thinking: asked }, why);
    return { tokenIds: yield* encode(prompt, true) };
  }
  const messages: readonly Message[] = typeof prompt === "string"
    ? [{ role: "user", content: prompt }]
    : prompt as readonly Message[];
  const { text, reply } = renderPrompt(template, messages, options, tokenizer);
  return { tokenIds: yield* encode(text, false), reply };
}

/**
 * The text that a chat template makes of messages, and what it implies for the reply.
 *
 * @throws {Error} if they cannot be rendered.
 */
export function renderPrompt(
  template: string,
  messages: readonly Message[],
  { system, thinking, tools, templateVariables }: PromptOptions,
  { specialTokens }: Pick<Tokenizer, "specialTokens">,
): { text: string; reply: ReplyFormat } {
  const text = renderChat(
    template,
    system === undefined
      ? messages
      : [{ role: "system", content: system }, ...messages],
    {
      thinking,
      tools,
      variables: { ...specialTokens, ...templateVariables },
    },
  );
  return { text, reply: { thinking: /<think>\s*$/.test(text), tools } };
}

/** Refuses lists of neither messages nor token ids. */
function requireItems(prompt: readonly unknown[]): void {
  const ids = typeof prompt[0] === "number";
  const wrong = Array.from(prompt).findIndex((item) =>
    ids ? typeof item !== "number" : !isObject(item)
  );
  if (wrong < 0) return;
  const several = prompt.every((item) => typeof item === "string");
  throw new TypeError(
    `Cannot generate: item ${wrong} of the prompt is ${
      described(prompt[wrong])
    }, must be a ${ids ? "token id, as those before it" : "message"}${
      several ? " (generateBatch takes a list of prompts)" : ""
    }`,
  );
}

/** Encodes a text, but stops early if it is far too long. */
export function* encodeTextInParts(
  text: string,
  addSpecialTokens: boolean,
  tokenizer: Pick<Tokenizer, "encodeInParts">,
  context: number,
): Parts<number[]> {
  const most = Math.max(COUNTED, 2 * context);
  try {
    return yield* tokenizer.encodeInParts(text, { addSpecialTokens, most });
  } catch (error) {
    if (!(error instanceof TooManyTokens)) throw error;
    throw new RangeError(
      `Cannot generate: the prompt has more than ${most} tokens, the context has room for ${context}`,
      { cause: error },
    );
  }
}

/** Refuses options that only a chat template can apply. */
function refuseChatOptions(
  { system, thinking, tools, ...options }: PromptOptions,
  why: string,
): void {
  for (const name of ["chatTemplate", "templateVariables"] as const) {
    if (options[name] === undefined) continue;
    throw new OptionError(name, `Cannot generate: ${name} is given, ${why}`);
  }
  const given = system !== undefined
    ? "a system message needs"
    : tools?.length
    ? "tools need"
    : thinking !== undefined
    ? `thinking ${thinking ? "on" : "off"} needs`
    : undefined;
  if (given === undefined) return;
  throw new Error(`Cannot generate: ${given} a chat template, ${why}`);
}
