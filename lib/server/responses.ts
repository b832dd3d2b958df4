/**
 * `/v1/responses`: replies to conversations, as lists of items. The server keeps none of them,
 * so a request has the whole conversation.
 *
 * @module
 */
import type { GenerateOptions, Piece } from "../generate.ts";
import { isObject, requireJsonValue } from "../json.ts";
import {
  EFFORTS,
  readTemplate,
  readTools,
  unwantedTokens,
} from "./conversation.ts";
import { CANNOT, errorBody, refusing, unsupported } from "./errors.ts";
import { Fields } from "./fields.ts";
import { Generation } from "./generation.ts";
import { chatLogprobs } from "./logprobs.ts";
import {
  checkModel,
  FOR_OPENAI,
  MOST_LOGPROBS,
  readMaxTokens,
  readSampling,
} from "./parameters.ts";
import { readInput } from "./response_input.ts";
import { Items, type Output, type Scorer } from "./response_items.ts";
import { type Call, newId, seconds } from "./service.ts";
import { EventStream } from "./sse.ts";
import { GONE, UNDECIDED_MS } from "./streamed.ts";
import { readFormat } from "./structured.ts";
import { responseUsageOf } from "./usage.ts";
import { answerWhole } from "./whole.ts";

/** Answers a request. */
export async function respond(call: Call): Promise<Response> {
  const { service, signal } = call;
  const fields = new Fields(call.body);
  checkModel(fields, service);
  const reasoning = fields.object("reasoning");
  const effort = reasoning?.oneOf("effort", EFFORTS);
  reasoning?.ignore(["summary", "generate_summary"]); // the reasoning is there, whole
  reasoning?.end();
  const logprobs = readLogprobs(fields);
  const template = readTemplate(fields, service, effort);
  const tools = (fields.list("tools") ?? []).map(toolOf);
  const { demanded, ...choice } = readTools(fields, tools);
  const options: GenerateOptions = {
    ...readSampling(fields, unwantedTokens(fields, service)),
    logprobs,
    ...template,
    maxTokens: readMaxTokens(fields, ["max_output_tokens"]),
    ...readText(fields),
    ...choice,
    templateVariables: {
      ...template.templateVariables,
      ...choice.templateVariables,
    },
  };
  requireShallow(call.body);
  const messages = readInput(fields);
  const oneCall = fields.flag("parallel_tool_calls") === false;
  const stream = fields.flag("stream") ?? false;
  refuseOthers(fields, stream);
  const generation = await Generation.begin(
    service,
    [{ prompt: messages, options, demanded }],
    { param: "input", signal, oneCall },
  );
  const reply = new Reply(call, generation);
  const scorer = (piece: Piece) =>
    logprobs === undefined ? [] : chatLogprobs([piece], service.qwen);
  if (stream) return await streamEvents(call, generation, reply, scorer);
  const items = new Items(() => {}, scorer);
  return await answerWhole(call, generation, async () => {
    await collect(generation, items);
    return reply.ended(items.output);
  });
}

/** Fields that a reply repeats as they are. */
const REPEATED = ["metadata", "reasoning", "text", "tool_choice"];

/** @throws {ApiError} 400 if the reply would nest deeper than JSON can be written. */
function requireShallow(body: Record<string, unknown>): void {
  for (const name of REPEATED) {
    const value = body[name] ?? null;
    refusing(name, () => requireJsonValue(value, `${CANNOT}: ${name}`));
  }
}

/** Reads how many alternatives to each token are asked for; undefined without any scores. */
function readLogprobs(fields: Fields): number | undefined {
  const include = fields.list("include") ?? [];
  const top = fields.whole("top_logprobs", 0, MOST_LOGPROBS);
  const other = include.find((one) => !INCLUDED.includes(one));
  if (other !== undefined) {
    throw fields.wrong("include", `of ${INCLUDED.join(", ")}`);
  }
  return include.includes(LOGPROBS) || top ? top ?? 0 : undefined;
}

const LOGPROBS = "message.output_text.logprobs";
/** What replies have more than by default; reasoning is never encrypted. */
const INCLUDED: readonly unknown[] = [LOGPROBS, "reasoning.encrypted_content"];

/** Sorts a text into items. */
async function collect(generation: Generation, items: Items): Promise<void> {
  const [run] = generation.runs;
  for await (const step of generation) {
    if ("piece" in step) items.add(step.piece, run.toolCalls);
    else items.end(step.finish === "length");
  }
}

async function streamEvents(
  { service }: Call,
  generation: Generation,
  reply: Reply,
  scorer: Scorer,
): Promise<Response> {
  await generation.begun(UNDECIDED_MS);
  const stream = new EventStream(() => generation.abort(GONE), service.writeMs);
  let sequence = 0;
  const emit = (type: string, fields: object) => {
    const event = { type, sequence_number: sequence++, ...fields };
    stream.send(JSON.stringify(event), type);
  };
  const send = async () => {
    const begun = reply.begun();
    emit("response.created", { response: begun });
    emit("response.in_progress", { response: begun });
    const items = new Items(emit, scorer);
    await collect(generation, items);
    const response = reply.ended(items.output);
    emit(`response.${response.status}`, { response });
  };
  send().catch((error) => {
    generation.abort(error);
    const { message, param, code } = errorBody(error).error;
    emit("error", { message, param, code });
  }).finally(() => stream.close());
  return stream.response;
}

/** The object that describes a reply. */
class Reply {
  readonly #id = newId("resp_");
  readonly #created = seconds();

  constructor(readonly call: Call, readonly generation: Generation) {}

  begun() {
    return this.#describe("in_progress", [], null);
  }

  ended(output: readonly Output[]) {
    const { finishes: [finish], counts } = this.generation;
    const usage = responseUsageOf(counts);
    const status = finish === "length" ? "incomplete" : "completed";
    return this.#describe(status, output, usage);
  }

  #describe(status: string, output: readonly Output[], usage: object | null) {
    const { body, service } = this.call;
    const { sampling } = this.generation.runs[0].stats;
    return {
      id: this.#id,
      object: "response",
      created_at: this.#created,
      status,
      error: null,
      incomplete_details: status === "incomplete"
        ? { reason: "max_output_tokens" }
        : null,
      instructions: body.instructions ?? null,
      max_output_tokens: body.max_output_tokens ?? null,
      metadata: body.metadata ?? {},
      model: service.names[0],
      output,
      parallel_tool_calls: body.parallel_tool_calls ?? true,
      previous_response_id: null,
      reasoning: body.reasoning ?? { effort: null, summary: null },
      store: false,
      temperature: sampling.temperature,
      text: body.text ?? { format: { type: "text" } },
      tool_choice: body.tool_choice ?? "auto",
      tools: body.tools ?? [],
      top_p: sampling.topP,
      truncation: "disabled",
      usage,
    };
  }
}

/** A function in the form of chats, which has everything but the type one level down. */
function toolOf(tool: unknown, i: number): unknown {
  if (!isObject(tool)) return tool;
  const { type, ...rest } = tool;
  if (type !== "function") {
    throw unsupported(`tools[${i}].type`, "must be function");
  }
  return { type, function: rest };
}

/** Reads the format of the text. */
function readText(fields: Fields): Pick<GenerateOptions, "schema"> {
  const text = fields.object("text");
  text?.refuse({ verbosity: ["medium"] });
  const format = readFormat(text?.object("format"), false);
  text?.end();
  return format;
}

/** Refuses parameters that have no effect here. */
function refuseOthers(fields: Fields, stream: boolean): void {
  fields.refuse({
    previous_response_id: [],
    conversation: [],
    background: [false],
    truncation: ["disabled"],
    max_tool_calls: [],
    prompt: [],
  }, {
    previous_response_id: "which keeps no replies: send them in input",
    conversation: "which keeps none: send it in input",
  });
  if (stream) fields.ignore(["stream_options"]);
  fields.ignore(FOR_OPENAI);
  fields.end();
}
