/**
 * Conversations as clients send them (in the forms of OpenAI, Vercel's AI SDK and Hugging Face),
 * and the one form that chat templates read.
 *
 * @module
 */
import { meant } from "./options.ts";
import { described, OptionError, wrongOption } from "../errors.ts";
import { exactJson, isObject, requireJsonValue } from "../json.ts";

/** A function call that the assistant made. */
export interface ToolCall {
  /** Only functions can be called. */
  type?: "function";
  /** Matches the call to the message with its result. */
  id?: string;
  /** The function and its arguments. */
  function: {
    /** The name of the function. */
    name: string;
    /** An object, or its JSON. */
    arguments: Record<string, unknown> | string;
  };
}

/** Text in a list of parts; lists of parts are joined by line breaks. */
export interface TextPart {
  /** `input_text` and `output_text` are what OpenAI's Responses API calls text. */
  type: "text" | "input_text" | "output_text";
  /** The text. */
  text: string;
}

/** The assistant's reasoning, as Vercel's AI SDK has it. */
export interface ReasoningPart {
  /** What the part is. */
  type: "reasoning";
  /** The reasoning. */
  text: string;
}

/** A function call, as Vercel's AI SDK has it. */
export interface ToolCallPart {
  /** What the part is. */
  type: "tool-call";
  /** Matches the call to its result. */
  toolCallId: string;
  /** The name of the function. */
  toolName: string;
  /** The arguments: an object, or its JSON. */
  input?: unknown;
  /** The name of `input` in older versions. */
  args?: unknown;
}

/** The result of a function call, as Vercel's AI SDK has it. */
export interface ToolResultPart {
  /** What the part is. */
  type: "tool-result";
  /** Matches the result to its call. */
  toolCallId: string;
  /** The name of the function. */
  toolName: string;
  /** The result: `{ type: "text", value: "…" }`, or `json`, `error-text` or `error-json`. */
  output?: { type: string; value?: unknown };
  /** The name of `output` in older versions: text or a JSON value. */
  result?: unknown;
}

/** A part of a message. */
export type ContentPart =
  | TextPart
  | ReasoningPart
  | ToolCallPart
  | ToolResultPart;

/**
 * One turn of a conversation, as OpenAI's and Vercel's clients send it and as the result
 * of a run has it.
 */
export interface Message {
  /**
   * The speaker; `tool` messages carry the result of a call, and `developer` is another
   * name for `system`.
   */
  role: "system" | "developer" | "user" | "assistant" | "tool";
  /** The text of the turn, or its parts. */
  content?: string | null | readonly ContentPart[];
  /**
   * The assistant's reasoning before `content`. Qwen3 also accepts it in `<think>` tags
   * in `content`.
   */
  reasoning_content?: string | null;
  /** What some clients and servers call `reasoning_content`. */
  reasoning?: string | null;
  /** Functions that the assistant called in this turn. */
  tool_calls?: readonly ToolCall[] | null;
  /** In a `tool` message, the id of the call. */
  tool_call_id?: string;
  /** The name of the speaker or function; refused if the chat template does not print it. */
  name?: string;
}

/** A function that the assistant may call; `parameters` is a JSON Schema. */
export interface Tool {
  /** Only functions can be called. */
  type: "function";
  /** The description of the function that the assistant sees. */
  function: {
    /** The name it is called by. */
    name: string;
    /** What the function does, in words for the assistant. */
    description?: string;
    /** A JSON Schema of its arguments. */
    parameters?: Record<string, unknown>;
    /**
     * Whether the arguments of a call must be valid under `parameters`. Calls of all the
     * functions are then compact JSON, and the run waits for every token, as with a
     * `schema`. Refused where the chat template has calls written as XML. Default: false.
     */
    strict?: boolean | null;
  };
}

/** Whether the arguments of one of some functions must be valid under its schema. */
export function anyStrict(tools: readonly Tool[] = []): boolean {
  return tools.some(({ function: { strict } }) => strict === true);
}

/** A message in the form that chat templates read, and the index of its {@linkcode Message}. */
export interface Turn {
  index: number;
  message: {
    role: string;
    content: string;
    reasoning_content?: string;
    tool_calls?: ToolCall[];
    tool_call_id?: string;
    name?: string;
    [metadata: string]: unknown;
  };
}

/** What is wrong with one message where several belong. */
export const ONE_MESSAGE =
  "the prompt is a message, must be a list of messages: wrap it in [ ]";

/** What others call the roles and fields of a message. */
const OTHER_NAMES: Readonly<Record<string, string>> = {
  human: "user",
  ai: "assistant",
  bot: "assistant",
  model: "assistant",
  function: "tool",
  from: "role",
  text: "content",
  message: "content",
  value: "content",
  parts: "content",
  thinking: "reasoning_content",
  functioncall: "tool_calls",
};

const ROLES = ["system", "developer", "user", "assistant", "tool"];
/** Fields that carry no content: they link calls to results. */
const METADATA = ["id", "type", "tool_call_id"];
const REASONING = ["reasoning_content", "reasoning"];
const ASSISTANT_FIELDS = [...REASONING, "tool_calls"];
/** Fields of which an assistant's message must have one. */
const CONTENTS = ["content", ...ASSISTANT_FIELDS];
const FIELDS = ["role", "content", "name", ...ASSISTANT_FIELDS];
/** Fields that clients keep for themselves or send to providers, not to the model. */
const IGNORED = [
  "status",
  "providerOptions",
  "providerMetadata",
  "experimental_providerMetadata",
  "providerExecuted",
  "cache_control",
  // Content and arguments again, parsed.
  "parsed",
  "parsed_arguments",
];

/**
 * Brings messages into the form that chat templates read. Results of several calls are put
 * in the order of the calls, because templates may leave out the ids.
 *
 * @throws {Error} if there are no messages, or one has content that would be lost.
 */
export function readConversation(messages: unknown): Turn[] {
  if (!Array.isArray(messages)) {
    throw refusal(
      isObject(messages) && "role" in messages
        ? ONE_MESSAGE
        : `the messages are ${described(messages)}, must be a list`,
    );
  }
  if (messages.length === 0) {
    throw refusal("it has 0 messages, must have at least one");
  }
  return orderResults(
    // Array.from also visits holes.
    Array.from(messages, (message, index) => readMessage(message, index))
      .flat(),
  );
}

/**
 * Checks a list of tools.
 *
 * @throws {OptionError} if it is not a list of functions with names.
 * @throws {Error} if one has a value that JSON has not.
 */
export function readTools(tools: unknown, cannot: string): Tool[] {
  if (!Array.isArray(tools)) {
    throw wrongOption(cannot, "tools", tools, "a list");
  }
  return Array.from(tools, (tool, i) => {
    const where = `tools[${i}]`;
    const named = isObject(tool) && isObject(tool.function) &&
      typeof tool.function.name === "string" && tool.function.name !== "";
    if (!named || (tool.type !== undefined && tool.type !== "function")) {
      throw new OptionError(
        "tools",
        `${cannot}: ${where} must be like {"type": "function", "function": {"name": "f", "parameters": {}}}`,
      );
    }
    requireJsonValue(tool, `${cannot}: ${where}`);
    return tool as unknown as Tool;
  });
}

function readMessage(message: unknown, index: number): Turn[] {
  const where = `message ${index}`;
  if (!isObject(message)) {
    throw refusal(`${where} is ${described(message)}, must be an object`);
  }
  requireKnown(message, where, [...FIELDS, ...METADATA]);
  const { role } = message;
  if (typeof role !== "string" || !ROLES.includes(role)) {
    throw refusal(
      `${where} has ${
        role === undefined ? "no role" : `the role ${described(role)}`
      }, must be ${orList(ROLES)}${didYouMean(role, ROLES)}`,
    );
  }
  for (const field of ASSISTANT_FIELDS) {
    if (role !== "assistant" && hasValue(message[field])) {
      throw refusal(
        `${where} is a ${role} message with ${field}, which only assistant messages may have`,
      );
    }
  }
  const contents = role === "assistant" ? CONTENTS : ["content"];
  if (contents.every((field) => (message[field] ?? null) === null)) {
    throw refusal(
      `${where} has no content, must have ${orList(contents)}`,
    );
  }
  const parts = readContent(message.content, role, where);
  const metadata = Object.fromEntries(
    METADATA.filter((field) => hasValue(message[field]))
      .map((field) => [field, message[field]]),
  );
  if (hasValue(message.name)) {
    metadata.name = requireText(message.name, `${where}'s name`);
  }
  if (parts.results.length > 0) {
    if (parts.texts.length > 0) {
      throw refusal(
        `${where} has text and tool-result parts, must have one kind`,
      );
    }
    return parts.results.map((result) => ({
      index,
      message: { role: "tool", ...metadata, ...result },
    }));
  }
  const calls = [
    ...readCalls(message.tool_calls, `${where}'s tool_calls`),
    ...parts.calls,
  ];
  const reasoning = [...readReasoning(message, where), ...parts.reasoning];
  return [{
    index,
    message: {
      ...metadata,
      role: role === "developer" ? "system" : role,
      content: parts.texts.join("\n"),
      // Templates test whether a field is defined, so do not define it as undefined.
      ...(reasoning.length > 0 && { reasoning_content: reasoning.join("\n") }),
      ...(calls.length > 0 && { tool_calls: calls }),
    },
  }];
}

/** The reasoning of a message, which has two names; servers in transition send both. */
function readReasoning(
  message: Record<string, unknown>,
  where: string,
): string[] {
  const texts = REASONING
    .filter((name) => message[name] !== undefined && message[name] !== null)
    .map((name) => requireText(message[name], `${where}'s ${name}`));
  const distinct = [...new Set(texts)];
  if (distinct.length < 2) return distinct;
  throw refusal(
    `${where} has ${
      REASONING.join(" and ")
    } that differ, must have one of them`,
  );
}

/** What the content of a message holds. */
interface Parts {
  texts: string[];
  reasoning: string[];
  calls: ToolCall[];
  results: { content: string; tool_call_id: string; name: string }[];
}

function readContent(content: unknown, role: string, where: string): Parts {
  const parts: Parts = { texts: [], reasoning: [], calls: [], results: [] };
  if (content === undefined || content === null) return parts;
  if (typeof content === "string") {
    parts.texts.push(requireText(content, `${where}'s content`));
  } else if (Array.isArray(content)) {
    for (const [i, part] of Array.from(content).entries()) {
      readPart(part, role, `${where}'s content[${i}]`, parts);
    }
  } else {
    throw refusal(
      `${where}'s content is ${
        described(content)
      }, must be text, null or a list of parts`,
    );
  }
  return parts;
}

/** The types of parts that each role may have. */
const TEXT_PARTS = ["text", "input_text", "output_text"];
const PARTS_OF: Record<string, readonly string[]> = {
  assistant: [...TEXT_PARTS, "reasoning", "tool-call"],
  tool: [...TEXT_PARTS, "tool-result"],
};

function readPart(part: unknown, role: string, where: string, to: Parts) {
  if (!isObject(part)) {
    throw refusal(
      `${where} is ${described(part)}, must be an object with a type`,
    );
  }
  const { type } = part, known = PARTS_OF[role] ?? TEXT_PARTS;
  if (typeof type !== "string" || !known.includes(type)) {
    throw refusal(
      `${where} has the type ${described(type)}, must be ${orList(known)} in ${
        role === "assistant" ? "an" : "a"
      } ${role} message`,
    );
  }
  if (type === "tool-call") {
    requireKnown(part, where, [
      "type",
      "toolCallId",
      "toolName",
      "input",
      "args",
    ]);
    const { toolCallId: id, toolName: name, input, args } = part;
    to.calls.push({
      type: "function",
      ...(hasValue(id) && { id: requireText(id, `${where}'s toolCallId`) }),
      function: readFunction({ name, arguments: input ?? args }, where),
    });
  } else if (type === "tool-result") {
    to.results.push(readResult(part, where));
  } else {
    requireKnown(part, where, ["type", "text", "id"]);
    const text = requireText(part.text, `${where}'s text`);
    (type === "reasoning" ? to.reasoning : to.texts).push(text);
  }
}

function readResult(part: Record<string, unknown>, where: string) {
  requireKnown(part, where, [
    "type",
    "toolCallId",
    "toolName",
    "output",
    "result",
    "isError",
  ]);
  return {
    tool_call_id: requireText(part.toolCallId, `${where}'s toolCallId`),
    name: requireText(part.toolName, `${where}'s toolName`),
    content: part.output === undefined
      ? resultText(part.result, `${where}'s result`)
      : readOutput(part.output, `${where}'s output`),
  };
}

function readOutput(output: unknown, where: string): string {
  const type = isObject(output) ? output.type : undefined;
  if (!isObject(output)) {
    throw refusal(
      `${where} is ${described(output)}, must be an object with a type`,
    );
  }
  requireKnown(output, where, ["type", "value", "reason"]);
  if (type === "text" || type === "error-text") {
    return requireText(output.value, `${where}.value`);
  }
  if (type === "json" || type === "error-json") {
    return readJson(output.value, `${where}.value`);
  }
  if (type === "execution-denied") {
    return hasValue(output.reason)
      ? requireText(output.reason, `${where}.reason`)
      : "The call was denied.";
  }
  if (type === "content") {
    return readContent(output.value, "", where).texts.join("\n");
  }
  throw refusal(
    `${where} has the type ${
      described(type)
    }, must be text, json, error-text, error-json, content or execution-denied`,
  );
}

function resultText(result: unknown, where: string): string {
  return typeof result === "string"
    ? requireText(result, where)
    : readJson(result, where);
}

function readJson(value: unknown, where: string): string {
  // Of a function that returns nothing.
  if (value === undefined) return "null";
  requireJsonValue(value, `${CANNOT}: ${where}`);
  return exactJson(value);
}

function readCalls(calls: unknown, where: string): ToolCall[] {
  if (!hasValue(calls)) return [];
  if (!Array.isArray(calls)) {
    throw refusal(`${where} is ${described(calls)}, must be a list`);
  }
  return Array.from(calls, (call, i) => {
    const which = `${where}[${i}]`;
    if (!isObject(call)) {
      throw refusal(`${which} is ${described(call)}, must be an object`);
    }
    if (hasValue(call.type) && call.type !== "function") {
      throw refusal(
        `${which} has the type ${described(call.type)}, must be function`,
      );
    }
    requireKnown(call, which, ["type", "id", "index", "function"]);
    return {
      ...(hasValue(call.type) && { type: "function" }),
      ...(hasValue(call.id) && { id: call.id as string }),
      function: readFunction(call.function, `${which}.function`),
    };
  });
}

/** A function's name and its arguments; none are `{}`. */
function readFunction(called: unknown, where: string): ToolCall["function"] {
  if (!isObject(called)) {
    throw refusal(
      `${where} is ${
        described(called)
      }, must be an object with name and arguments`,
    );
  }
  requireKnown(called, where, ["name", "arguments"]);
  const name = requireText(called.name, `${where}'s name`);
  if (name === "") throw refusal(`${where}'s name is empty`);
  const given = called.arguments;
  if (typeof given === "string") {
    const text = requireText(given, `${where}'s arguments`);
    return { name, arguments: text.trim() === "" ? {} : text };
  }
  if (given === undefined || given === null) return { name, arguments: {} };
  if (!isObject(given)) {
    throw refusal(
      `${where}'s arguments are ${
        described(given)
      }, must be an object or its JSON`,
    );
  }
  requireJsonValue(given, `${CANNOT}: ${where}'s arguments`);
  return { name, arguments: given };
}

/** Puts the results that follow calls with ids in the order of the calls. */
function orderResults(turns: Turn[]): Turn[] {
  for (let at = 0; at < turns.length; at++) {
    const ids = turns[at].message.tool_calls?.map(({ id }) => id) ?? [];
    let end = at + 1;
    while (turns[end]?.message.role === "tool") end++;
    const results = turns.slice(at + 1, end);
    const places = results.map(({ message }) =>
      ids.indexOf(message.tool_call_id)
    );
    const distinct = new Set(ids).size === ids.length &&
      new Set(places).size === places.length && !ids.includes(undefined);
    if (!distinct || places.includes(-1)) continue;
    results.sort((a, b) =>
      ids.indexOf(a.message.tool_call_id) - ids.indexOf(b.message.tool_call_id)
    );
    turns.splice(at + 1, results.length, ...results);
  }
  return turns;
}

/** How errors of rendering a chat begin. */
export const CANNOT = "Cannot render a chat";

/** An error of rendering a chat. */
export function refusal(problem: string): Error {
  return new Error(`${CANNOT}: ${problem}`);
}

/** Refuses fields that would be lost; what is empty or off has no content. */
function requireKnown(
  object: Record<string, unknown>,
  where: string,
  known: readonly string[],
): void {
  const unknown = Object.keys(object)
    .find((key) =>
      !known.includes(key) && !IGNORED.includes(key) &&
      hasValue(object[key]) && object[key] !== false
    );
  if (unknown === undefined) return;
  throw refusal(
    `${where} has the field ${described(unknown)}, must have only ${
      known.join(", ")
    }${didYouMean(unknown, known)}`,
  );
}

/** The question that ends an error about an unknown name; empty if none is close. */
function didYouMean(name: unknown, known: readonly string[]): string {
  const close = typeof name === "string"
    ? meant(name, known, OTHER_NAMES)
    : undefined;
  return close === undefined ? "" : ` (did you mean ${close}?)`;
}

function requireText(text: unknown, where: string): string {
  if (typeof text !== "string") {
    throw refusal(`${where} is ${described(text)}, must be text`);
  }
  if (!text.isWellFormed()) {
    const lone = [...text].findIndex((character) => !character.isWellFormed());
    throw refusal(
      `${where} has half of a surrogate pair at character ${lone}, must have whole characters`,
    );
  }
  return text;
}

/** Whether a field has content. */
export function hasValue(value: unknown): boolean {
  if (value === undefined || value === null || value === "") return false;
  if (value instanceof Map) return value.size > 0;
  return typeof value !== "object" || Object.keys(value).length > 0;
}

function orList(words: readonly string[]): string {
  return words.length < 2
    ? words.join()
    : `${words.slice(0, -1).join(", ")} or ${words.at(-1)}`;
}
