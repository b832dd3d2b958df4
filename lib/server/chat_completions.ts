/**
 * `/v1/chat/completions`: replies to conversations.
 *
 * @module
 */
import type { GenerateOptions, Piece, Run } from "../generate.ts";
import { described } from "../errors.ts";
import { isObject, requireJsonValue } from "../json.ts";
import type { Message, Tool, ToolCall } from "../text/conversation.ts";
import { readTools } from "../text/conversation.ts";
import { encodePrompt } from "../text/prompt.ts";
import {
  ApiError,
  CANNOT,
  refusing,
  unsupported,
  wrongParameter,
} from "./errors.ts";
import { Fields } from "./fields.ts";
import { Generation } from "./generation.ts";
import {
  checkModel,
  FOR_OPENAI,
  readDelivery,
  readMaxTokens,
  readSampling,
  readTexts,
  required,
} from "./parameters.ts";
import {
  type Call,
  newId,
  seconds,
  type Service,
  sourceOf,
} from "./service.ts";
import { type ChoiceFields, streamed } from "./streamed.ts";
import { usageOf } from "./usage.ts";

/** Answers a request. */
export async function chat(call: Call): Promise<Response> {
  const { service, signal } = call;
  const fields = new Fields(call.body);
  checkModel(fields, service);
  const options: GenerateOptions = {
    ...readSampling(fields),
    maxTokens: readMaxTokens(fields, ["max_tokens", "max_completion_tokens"]),
    ...readTemplate(fields, service),
    ...readToolChoice(fields),
  };
  const delivery = readDelivery(fields);
  const messages = readMessages(fields);
  const { asked, n } = readTexts(fields, [{
    prompt: messages,
    options,
  }]);
  const oneCall = fields.flag("parallel_tool_calls") === false;
  refuseOthers(fields);
  const generation = new Generation(service, asked, {
    param: "messages",
    signal,
    n,
    oneCall,
  });
  const head = {
    id: newId("chatcmpl-"),
    object: `chat.completion${delivery.stream ? ".chunk" : ""}`,
    created: seconds(),
    model: service.names[0],
  };
  const ids = delivery.tokenIds && {
    prompt_token_ids: encodePrompt(
      asked[0].prompt,
      options,
      sourceOf(service),
    ).tokenIds,
  };
  if (delivery.stream) {
    const deltas = generation.runs.map((run) => new Deltas(run));
    return await streamed(call, generation, {
      head: { ...head, ...ids },
      delivery,
      open: () => ({ delta: { role: "assistant", content: "" } }),
      write: (index, piece) => deltas[index].of(piece),
      empty: { delta: {} },
    });
  }
  await generation.finished();
  return Response.json({
    ...head,
    choices: generation.runs.map((run, index) => ({
      index,
      message: messageOf(run),
      logprobs: null,
      finish_reason: generation.finishes[index],
      ...(delivery.tokenIds && { token_ids: run.tokenIds }),
    })),
    usage: usageOf(generation.counts),
    ...ids,
  });
}

/** The reply as a message, which may be sent back in the next request. */
function messageOf({ text, reasoning, toolCalls }: Run) {
  return {
    role: "assistant",
    content: text === "" && toolCalls.length > 0 ? null : text,
    refusal: null,
    ...(reasoning !== "" && { reasoning_content: reasoning }),
    ...(toolCalls.length > 0 && { tool_calls: toolCalls.map(callOf) }),
  };
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

/** The chunks of a reply. */
class Deltas {
  #calls = 0;

  constructor(readonly run: Run) {}

  of({ kind, text }: Piece): ChoiceFields[] {
    if (kind === "tool") return this.#newCalls();
    if (text === "") return [];
    return [{
      delta: kind === "text" ? { content: text } : { reasoning_content: text },
    }];
  }

  /** Calls come whole; each is sent as clients expect it, the arguments after the name. */
  #newCalls(): ChoiceFields[] {
    const chunks: ChoiceFields[] = [];
    for (; this.#calls < this.run.toolCalls.length; this.#calls++) {
      const index = this.#calls;
      const { id, type, function: { name, arguments: text } } = callOf(
        this.run.toolCalls[index],
      );
      const begun = { name, arguments: "" };
      chunks.push(
        { delta: { tool_calls: [{ index, id, type, function: begun }] } },
        { delta: { tool_calls: [{ index, function: { arguments: text } }] } },
      );
    }
    return chunks;
  }
}

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
  const effort = fields.oneOf("reasoning_effort", EFFORTS);
  if (effort === "none" && thinking === true) {
    throw wrongParameter(
      "reasoning_effort",
      "is none with enable_thinking, must be one of them",
    );
  }
  const { enable_thinking: _, ...variables } = given?.json ?? {};
  for (const variable of Object.keys(variables)) {
    if (chatTemplate.includes(variable)) continue;
    throw wrongParameter(
      `chat_template_kwargs.${variable}`,
      "is given, but the chat template does not read it",
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
const EFFORTS = ["none", "minimal", "low", "medium", "high", "xhigh"] as const;

/** Reads the functions, and which of them are to be called. */
function readToolChoice(fields: Fields): { tools?: Tool[] } {
  const given = fields.list("tools");
  const choice = fields.get("tool_choice");
  const tools = given && given.length > 0
    ? refusing("tools", () => readTools(given, CANNOT))
    : undefined;
  if (choice === undefined || choice === "auto") return { tools };
  if (choice === "none") return {};
  if (choice === "required" || typeof choice === "object") {
    throw unsupported("tool_choice", "except for auto and none");
  }
  throw fields.wrong("tool_choice", "none, auto, required or a function");
}

/** Refuses parameters that have no effect here. */
function refuseOthers(fields: Fields): void {
  fields.refuse({
    logprobs: [false],
    top_logprobs: [0],
    response_format: [{ type: "text" }],
    functions: [[]],
    function_call: ["none", "auto"],
    modalities: [["text"]],
    verbosity: ["medium"],
    audio: [],
    prediction: [],
    web_search_options: [],
  }, { functions: "use tools", function_call: "use tool_choice" });
  fields.ignore(FOR_OPENAI);
  fields.end();
}
