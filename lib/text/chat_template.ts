/**
 * Renders conversations in the text format that a chat checkpoint was trained on.
 *
 * @module
 */
import {
  CANNOT,
  hasValue,
  type Message,
  readConversation,
  readTools,
  refusal,
  type Tool,
  type ToolCall,
  type Turn,
} from "./conversation.ts";
import {
  errorText,
  OptionError,
  type OptionKind,
  requireKind,
} from "../errors.ts";
import { exactJson, isObject, parseExactJson } from "../json.ts";
import { givenOptions } from "./options.ts";
import { compileTemplate, TemplateError } from "./jinja/mod.ts";

/** Options of {@linkcode renderChat}. */
export interface ChatOptions {
  /** Appends the header of the assistant's turn. Default: true. */
  addGenerationPrompt?: boolean;
  /** Sets `enable_thinking`, which Qwen3's template reads; if absent, the template decides. */
  thinking?: boolean;
  /** Functions that the assistant may call. */
  tools?: readonly Tool[];
  /** Any other variables of the template (`bos_token`, …). */
  variables?: Record<string, unknown>;
}

const KINDS: Readonly<Record<keyof ChatOptions, OptionKind | undefined>> = {
  addGenerationPrompt: "flag",
  thinking: "flag",
  tools: undefined, // by readTools
  variables: "object",
};

/** Variables that always have a value of their own, and whose. */
export const OWN_VARIABLES: Readonly<Record<string, string>> = {
  messages: "the conversation",
  add_generation_prompt: "true, since a reply follows",
};

/** Variables that transformers always defines. */
const NONE_GIVEN = { tools: null, documents: null };

/** A template, ready to render. */
type Render = (variables: Record<string, unknown>) => string;

/**
 * Renders `messages` with a checkpoint's chat template (Jinja), as transformers'
 * `apply_chat_template` does. Encode the result without adding special tokens, because the
 * template writes them.
 *
 * Whatever the messages hold is either in the result or refused: parts that are not text,
 * unknown fields, and what the template does not print. Ids are not printed if the
 * template does not use them, clients' own records and notes to other providers never
 * are, and Qwen3's template leaves out the reasoning of earlier turns.
 *
 * ```ts
 * import { renderChat } from "../../mod.ts";
 *
 * const template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
 * const text = renderChat(template, [{ role: "user", content: "Hi" }]);
 * console.assert(text === "user: Hi\n");
 * ```
 *
 * @throws {Error} if there are no messages, one has content that cannot be rendered, or the
 * template is broken or rejects them.
 */
export function renderChat(
  template: string,
  messages: readonly Message[],
  options: ChatOptions = {},
): string {
  requireKind(CANNOT, "the template", template, "text");
  const { addGenerationPrompt = true, thinking, variables, ...rest } =
    givenOptions(CANNOT, options, KINDS);
  for (const [name, value] of Object.entries(OWN_VARIABLES)) {
    if (!Object.hasOwn(variables ?? {}, name)) continue;
    throw new OptionError(
      "variables",
      `${CANNOT}: variables has ${name}, which must be left out: it is ${value}`,
    );
  }
  const tools = rest.tools === undefined
    ? undefined
    : readTools(rest.tools, CANNOT);
  const turns = readConversation(messages);
  if (thinking !== undefined && !canFollow(thinking, template)) {
    throw new OptionError(
      "thinking",
      `${CANNOT}: thinking is ${thinking}, but the chat template does not read enable_thinking`,
    );
  }
  const render = compile(template);
  fitArguments(turns, render);
  const renderTurns = (turns: readonly Turn[], tools?: readonly Tool[]) =>
    render({
      ...NONE_GIVEN,
      ...variables,
      messages: turns.map(({ message }) => message),
      add_generation_prompt: addGenerationPrompt,
      // Templates test whether a variable is defined, so do not define it as undefined.
      ...(tools && { tools }),
      ...(thinking !== undefined && { enable_thinking: thinking }),
    });
  const text = renderTurns(turns, tools);
  const lost = findLost(turns, tools, renderTurns) ??
    findUnreadReasoning(turns, template);
  if (lost !== undefined) {
    throw refusal(`${lost}, which the chat template does not print`);
  }
  return text;
}

/** Whether a template reads the option, or its checkpoint behaves as requested anyway. */
function canFollow(thinking: boolean, template: string): boolean {
  return template.includes("enable_thinking") ||
    template.includes("think>") === thinking;
}

function compile(template: string): Render {
  try {
    const compiled = compileTemplate(template);
    return (variables) => {
      try {
        return compiled.render(variables);
      } catch (error) {
        throw templateError(error);
      }
    };
  } catch (error) {
    throw templateError(error);
  }
}

function templateError(error: unknown): Error {
  // A template may raise any text, of any length.
  const reason = errorText(
    error instanceof TemplateError ? error.reason : error,
  );
  return new Error(`Cannot render a chat with its template: ${reason}`, {
    cause: error,
  });
}

/** What `render` returns, or undefined if the template rejects the variables. */
function attempt(render: () => string): string | undefined {
  try {
    return render();
  } catch {
    return undefined;
  }
}

/**
 * What `render` returns for a short text; "" if the template rejects it.
 *
 * @throws {Error} if a bound was exceeded, as it would be with a longer text.
 */
function attemptShort(render: () => string): string {
  try {
    return render();
  } catch (error) {
    const { cause } = error as Error;
    if (cause instanceof TemplateError && cause.exceeds) throw error;
    return "";
  }
}

/**
 * Gives the arguments of calls the form that the template expects: some print a string as
 * it is, some read an object, and Qwen3's does both.
 */
function fitArguments(turns: readonly Turn[], render: Render): void {
  const calls = turns.flatMap(({ index, message }) =>
    (message.tool_calls ?? []).map((call, i) => ({
      called: call.function,
      where: `the arguments of message ${index}'s tool_calls[${i}]`,
    }))
  );
  if (calls.length === 0) return;
  const probe = (args: ToolCall["function"]["arguments"]) =>
    attemptShort(() =>
      render({
        ...NONE_GIVEN,
        messages: [
          { role: "user", content: "q" },
          {
            role: "assistant",
            content: "",
            tool_calls: [{
              type: "function",
              id: "call00000",
              function: { name: "f", arguments: args },
            }],
          },
          { role: "tool", content: "r", tool_call_id: "call00000" },
        ],
        add_generation_prompt: false,
      })
    );
  const takesText = probe('{"key": "value"}').includes('{"key": "value"}');
  const ofObject = probe({ key: "value" });
  // Python writes 'key' for an object that is printed as it is.
  const takesObject = /key(?!')/.test(ofObject) && !ofObject.includes("'key'");
  for (const { called, where } of calls) {
    const { arguments: given } = called;
    if (typeof given === "string" && !takesText && takesObject) {
      called.arguments = parseArguments(given, where);
    } else if (typeof given !== "string" && !takesObject && takesText) {
      called.arguments = exactJson(given);
    }
  }
}

function parseArguments(text: string, where: string): Record<string, unknown> {
  let json: unknown;
  try {
    json = parseExactJson(text);
  } catch {
    // Refused below.
  }
  if (isObject(json) && !(json instanceof Number)) return json;
  throw refusal(
    `${where} are not the JSON of an object, which the chat template needs`,
  );
}

/**
 * Renders the conversation with a mark on everything it holds, and returns what lost its
 * mark; undefined if nothing has.
 */
function findLost(
  turns: readonly Turn[],
  tools: readonly Tool[] | undefined,
  render: (turns: readonly Turn[], tools?: readonly Tool[]) => string,
): string | undefined {
  const marks: string[] = [];
  // Private-use characters, which no text should contain.
  const mark = (what: string) => `\uE0F7${marks.push(what) - 1}\uE0F8`;
  const called = new Set<string>();
  let written = ""; // calls that are part of a text
  const markedTools = tools?.map((tool, i) => ({
    ...tool,
    function: {
      ...tool.function,
      name: tool.function.name + mark(`tools[${i}] is given`),
    },
  }));
  const marked = turns.map(({ index, message }): Turn => {
    const has = (field: string) =>
      mark(`message ${index} (${message.role}) has ${field}`);
    const { content, name, tool_calls: calls } = message;
    const linked = message.role === "tool" && name !== undefined &&
      (called.has(name) || written.includes(`"${name}"`) ||
        written.includes(`<function=${name}>`));
    for (const call of calls ?? []) called.add(call.function.name);
    if (content.includes("<tool_call>")) written += content;
    return {
      index,
      message: {
        ...message,
        content: content === "" ? "" : content + has("content"),
        ...(name !== undefined && !linked && { name: name + has("a name") }),
        ...(calls && {
          tool_calls: calls.map((call, i) => ({
            ...call,
            function: {
              name: call.function.name + has(`tool_calls[${i}]`),
              arguments: markArguments(
                call.function.arguments,
                () => has(`arguments of tool_calls[${i}]`),
              ),
            },
          })),
        }),
      },
    };
  });
  // That a template rejects a mark says nothing about what it prints.
  const text = attempt(() => render(marked, markedTools));
  if (text === undefined) return undefined;
  const printed = new Set(
    Array.from(text.matchAll(MARK), ([, index]) => Number(index)),
  );
  return marks.find((_, index) => !printed.has(index));
}

/** A mark, as it is or escaped in JSON. */
const MARK = /(?:\uE0F7|\\+ue0f7)(\d+)(?:\uE0F8|\\+ue0f8)/g;

function markArguments(
  args: ToolCall["function"]["arguments"],
  mark: () => string,
): ToolCall["function"]["arguments"] {
  if (!hasValue(args)) return args;
  if (typeof args === "string") return args + mark();
  const text = mark();
  if (!(args instanceof Map)) return { ...args, [text]: text };
  const marked = new Map<string, unknown>(args).set(text, text);
  return marked as unknown as Record<string, unknown>;
}

/** Reasoning given to a template without reasoning, such as those of Instruct checkpoints. */
function findUnreadReasoning(
  turns: readonly Turn[],
  template: string,
): string | undefined {
  if (template.includes("reasoning_content")) return undefined;
  const found = turns.find(({ message }) =>
    hasValue(message.reasoning_content)
  );
  return found &&
    `message ${found.index} has reasoning_content`;
}
