/**
 * What requests say about a conversation: messages, the chat template, functions.
 *
 * @module
 */
import type { GenerateOptions } from "../generate.ts";
import { described } from "../errors.ts";
import { isObject, requireJsonValue } from "../json.ts";
import {
  type Message,
  readTools as checkTools,
  type Tool,
  type ToolCall,
} from "../text/conversation.ts";
import { OWN_VARIABLES } from "../text/chat_template.ts";
import { TAGS } from "../text/reply.ts";
import {
  ApiError,
  CANNOT,
  refusing,
  required,
  wrongParameter,
} from "./errors.ts";
import type { Fields } from "./fields.ts";
import { newId, type Service } from "./service.ts";
import { type Demand, demandCall, namedTool } from "./structured.ts";

/** Reads the list of messages; the chat template's renderer checks each. */
export function readMessages(fields: Fields): Message[] {
  const messages = fields.list("messages");
  if (messages === undefined) throw required("messages");
  const wrong = messages.findIndex((message) => !isObject(message));
  if (messages.length > 0 && wrong < 0) return messages as unknown as Message[];
  throw wrongParameter(
    "messages",
    wrong < 0
      ? "has 0 messages, must have at least one"
      : `has ${
        described(messages[wrong])
      } as message ${wrong}, must be an object`,
  );
}

/** Reads the template and its variables. */
export function readTemplate(
  fields: Fields,
  { chatTemplate, names: [name] }: Service,
  effort: Effort | undefined = fields.oneOf("reasoning_effort", EFFORTS),
): Pick<GenerateOptions, "chatTemplate" | "thinking" | "templateVariables"> {
  if (chatTemplate === undefined) {
    throw new ApiError(
      400,
      `Cannot chat: ${name} has no chat template; /v1/completions works without, and serve takes one with --chat-template`,
      { param: "messages", code: "no_chat_template" },
    );
  }
  const given = fields.object("chat_template_kwargs");
  const thinking = given?.flag("enable_thinking");
  if (effort === "none" && thinking === true) {
    throw wrongParameter(
      "reasoning_effort",
      "is none with enable_thinking, must be one of them",
    );
  }
  const { enable_thinking: _, ...variables } = given?.json ?? {};
  const words = new Set(chatTemplate.split(/\W+/));
  for (const variable of Object.keys(variables)) {
    const own = Object.hasOwn(OWN_VARIABLES, variable)
      ? OWN_VARIABLES[variable]
      : variable === "tools"
      ? "the parameter tools"
      : undefined;
    if (own === undefined && words.has(variable)) continue;
    throw wrongParameter(
      `chat_template_kwargs.${variable}`,
      own === undefined
        ? "is given, but the chat template does not read it"
        : `is given, must be left out: it is ${own}`,
    );
  }
  refusing(
    "chat_template_kwargs",
    () => requireJsonValue(variables, `${CANNOT}: chat_template_kwargs`),
  );
  return {
    chatTemplate,
    thinking: thinking ?? (effort === "none" ? false : undefined),
    templateVariables: given && variables,
  };
}

/** How much to think; the model decides, except that `none` turns it off. */
export const EFFORTS = [
  "none",
  "minimal",
  "low",
  "medium",
  "high",
  "xhigh",
] as const;
type Effort = typeof EFFORTS[number];

/** The functions that may be called, or how one is demanded. */
type Choice = { tools?: Tool[] } & Partial<Demand>;

/** Reads which functions may be called, or that one must be. */
export function readTools(
  fields: Fields,
  given: readonly unknown[],
): Choice {
  const choice = fields.get("tool_choice");
  const tools = refusing("tools", () => checkTools(given, CANNOT));
  if (choice === "none") return {};
  if (choice === undefined || choice === "auto") {
    return tools.length > 0 ? { tools } : {};
  }
  if (isObject(choice)) return demandCall(tools, [namedTool(choice, tools)]);
  if (choice !== "required") {
    throw fields.wrong("tool_choice", "none, auto, required or a function");
  }
  if (tools.length > 0) return demandCall(tools, tools);
  throw wrongParameter("tool_choice", "is required without tools");
}

/** The tokens that begin a call, if `tool_choice` says that there must be none. */
export function unwantedTokens(fields: Fields, { qwen }: Service): number[] {
  if (fields.get("tool_choice") !== "none" || !qwen.hasTokenizer) return [];
  const id = qwen.tokenizer.tokenId(TAGS.call);
  return id === undefined ? [] : [id];
}

/** A call with an id, and with its arguments as JSON. */
export function callOf({ function: { name, arguments: given } }: ToolCall) {
  const text = typeof given === "string" ? given : JSON.stringify(given);
  return {
    id: newId("call_"),
    type: "function",
    function: { name, arguments: text },
  };
}
