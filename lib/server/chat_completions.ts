/**
 * `/v1/chat/completions`: replies to conversations.
 *
 * @module
 */
import type { GenerateOptions, Piece } from "../generate.ts";
import {
  callOf,
  readMessages,
  readTemplate,
  readTools,
  unwantedTokens,
} from "./conversation.ts";
import { wrongParameter } from "./errors.ts";
import { Fields } from "./fields.ts";
import { Generation } from "./generation.ts";
import { chatLogprobs } from "./logprobs.ts";
import {
  checkModel,
  FOR_OPENAI,
  MOST_LOGPROBS,
  readDelivery,
  readMaxTokens,
  readSampling,
  readTexts,
} from "./parameters.ts";
import { type Call, newId, seconds } from "./service.ts";
import { type ChoiceFields, streamed } from "./streamed.ts";
import { readFormat, type Reading } from "./structured.ts";
import { usageOf } from "./usage.ts";
import { answerWhole } from "./whole.ts";

/** Answers a request. */
export async function chat(call: Call): Promise<Response> {
  const { service, signal } = call;
  const fields = new Fields(call.body);
  checkModel(fields, service);
  const logprobs = readLogprobs(fields);
  const template = readTemplate(fields, service);
  const { demanded, ...choice } = readTools(fields, fields.list("tools") ?? []);
  const options: GenerateOptions = {
    ...readSampling(fields, unwantedTokens(fields, service)),
    logprobs,
    maxTokens: readMaxTokens(fields, ["max_tokens", "max_completion_tokens"]),
    ...template,
    ...readFormat(fields.object("response_format"), true),
    ...choice,
    templateVariables: {
      ...template.templateVariables,
      ...choice.templateVariables,
    },
  };
  const delivery = readDelivery(fields);
  const messages = readMessages(fields);
  const { asked, n } = readTexts(fields, service, [messages], () => ({
    options,
    demanded,
  }));
  const oneCall = fields.flag("parallel_tool_calls") === false;
  refuseOthers(fields);
  const manner = { param: "messages", signal, n, oneCall };
  const generation = await Generation.begin(service, asked, manner);
  const head = {
    id: newId("chatcmpl-"),
    object: `chat.completion${delivery.stream ? ".chunk" : ""}`,
    created: seconds(),
    model: service.names[0],
  };
  const ids = delivery.tokenIds &&
    { prompt_token_ids: generation.prompts[0] };
  if (delivery.stream) {
    const deltas = generation.runs.map((run) => new Deltas(run));
    return await streamed(call, generation, {
      head,
      first: ids || undefined,
      delivery,
      open: () => ({ delta: { role: "assistant", content: "" } }),
      write: (index, piece) => deltas[index].of(piece),
      empty: { delta: {} },
      logprobs: logprobs === undefined ? undefined : (_, pieces) => ({
        content: chatLogprobs(pieces, service.qwen),
        refusal: null,
      }),
    });
  }
  return await answerWhole(call, generation, async () => {
    const pieces = await generation.finished();
    return {
      ...head,
      choices: generation.runs.map((run, index) => ({
        index,
        message: messageOf(run),
        logprobs: logprobs === undefined ? null : {
          content: chatLogprobs(pieces[index], service.qwen),
          refusal: null,
        },
        finish_reason: generation.finishes[index],
        ...(delivery.tokenIds && { token_ids: run.tokenIds }),
      })),
      usage: usageOf(generation.counts),
      ...ids,
    };
  });
}

/** Reads how many alternatives to each token are asked for; undefined without any scores. */
function readLogprobs(fields: Fields): number | undefined {
  const asked = fields.flag("logprobs") ?? false;
  const top = fields.whole("top_logprobs", 0, MOST_LOGPROBS);
  if (top !== undefined && top > 0 && !asked) {
    throw wrongParameter("top_logprobs", "is given without logprobs: true");
  }
  return asked ? top ?? 0 : undefined;
}

/** The reply as a message, which may be sent back in the next request. */
function messageOf({ text, reasoning, toolCalls }: Reading) {
  return {
    role: "assistant",
    content: text === "" && toolCalls.length > 0 ? null : text,
    refusal: null,
    ...(reasoning !== "" && { reasoning_content: reasoning }),
    ...(toolCalls.length > 0 && { tool_calls: toolCalls.map(callOf) }),
  };
}

/** The chunks of a reply. */
class Deltas {
  #calls = 0;

  constructor(readonly run: Reading) {}

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

/** Refuses parameters that have no effect here. */
function refuseOthers(fields: Fields): void {
  fields.refuse({
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
