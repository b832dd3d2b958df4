/**
 * `/v1/completions`: continues texts or token ids as they are.
 *
 * @module
 */
import { Fields } from "./fields.ts";
import { Generation } from "./generation.ts";
import { required, unsupported } from "./errors.ts";
import { TextLogprobs } from "./logprobs.ts";
import {
  asTokenIds,
  checkModel,
  FOR_OPENAI,
  MOST_LOGPROBS,
  readDelivery,
  readMaxTokens,
  readSampling,
  readTexts,
} from "./parameters.ts";
import { type Call, newId, seconds, type Service } from "./service.ts";
import type { Prompt } from "../text/prompt.ts";
import { streamed } from "./streamed.ts";
import { usageOf } from "./usage.ts";
import { answerWhole } from "./whole.ts";

/** Tokens of a text if the request does not say, as OpenAI's API has it. */
const MAX_TOKENS = 16;

/** Answers a request. */
export async function complete(call: Call): Promise<Response> {
  const { service, signal } = call;
  const fields = new Fields(call.body);
  checkModel(fields, service);
  const sampling = readSampling(fields);
  const maxTokens = readMaxTokens(fields, ["max_tokens"]) ?? MAX_TOKENS;
  const delivery = readDelivery(fields);
  const echo = fields.flag("echo") ?? false;
  const logprobs = fields.whole("logprobs", 0, MOST_LOGPROBS);
  const prompts = readPrompts(fields);
  const { asked, n } = readTexts(fields, service, prompts, (prompt) => ({
    // Token ids have no template to skip.
    options: {
      ...sampling,
      logprobs,
      maxTokens,
      raw: typeof prompt === "string",
    },
  }));
  fields.refuse({ suffix: [""], best_of: [n] });
  if (logprobs !== undefined && echo) {
    throw unsupported("logprobs", "with echo");
  }
  if (echo && !service.qwen.hasTokenizer) {
    throw unsupported("echo", "whose model has no tokenizer");
  }
  fields.ignore(FOR_OPENAI);
  fields.end();
  const generation = await Generation.begin(service, asked, {
    param: "prompt",
    signal,
    n,
  });
  const head = {
    id: newId("cmpl-"),
    object: "text_completion",
    created: seconds(),
    model: service.names[0],
  };
  const before = (index: number) =>
    echo ? textOf(asked[index].prompt, service) : "";
  const scores = asked.map(() => new TextLogprobs(service.qwen));
  const ids = (index: number) =>
    delivery.tokenIds ? { prompt_token_ids: generation.prompts[index] } : {};
  if (delivery.stream) {
    return await streamed(call, generation, {
      head,
      delivery,
      open: (index) =>
        echo || delivery.tokenIds
          ? { text: before(index), ...ids(index) }
          : undefined,
      write: (_, { text }) => (text === "" ? [] : [{ text }]),
      empty: { text: "" },
      logprobs: logprobs === undefined
        ? undefined
        : (index, pieces) => scores[index].of(pieces),
    });
  }
  return await answerWhole(call, generation, async () => {
    const pieces = await generation.finished();
    return {
      ...head,
      choices: generation.runs.map(({ text, tokenIds }, index) => ({
        index,
        text: before(index) + text,
        logprobs: logprobs === undefined
          ? null
          : scores[index].of(pieces[index]),
        finish_reason: generation.finishes[index],
        ...ids(index),
        ...(delivery.tokenIds && { token_ids: tokenIds }),
      })),
      usage: usageOf(generation.counts),
    };
  });
}

/** Reads the prompts: a text, token ids, or a list of either. */
function readPrompts(fields: Fields): Prompt[] {
  const prompt = fields.get("prompt");
  if (prompt === undefined) throw required("prompt");
  if (typeof prompt === "string") return [prompt];
  const ids = asTokenIds(prompt);
  if (ids) return [ids];
  const list = Array.isArray(prompt)
    ? prompt.map((one) => typeof one === "string" ? one : asTokenIds(one))
    : [];
  if (list.length > 0 && list.every((one) => one !== undefined)) return list;
  throw fields.wrong(
    "prompt",
    "a string, a list of token ids, or a list of either",
  );
}

function textOf(prompt: Prompt, { qwen }: Service): string {
  if (typeof prompt === "string") return prompt;
  return qwen.tokenizer.decode(prompt as readonly number[]);
}
