/**
 * Programs' own clients, unchanged: npm's `openai`, and `ai` with its provider for compatible
 * servers. The story model writes text; Qwen3's tokenizer and template with weights that write
 * a given reply do the rest.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import OpenAI from "npm:openai@7.59.0";
import { zodResponsesFunction } from "npm:openai@7.59.0/helpers/zod";
import {
  embed,
  generateText,
  isStepCount,
  streamText,
  tool,
} from "npm:ai@7.0.173";
import { createOpenAICompatible } from "npm:@ai-sdk/openai-compatible@3.0.92";
import { z } from "npm:zod@4.6.7";
import type { ReadyPrompt } from "../../lib/text/prompt.ts";
import {
  loadQwen3,
  type Message,
  type Prompt,
  Server,
  type Submitting,
} from "../../mod.ts";
import { qwen3Script } from "../support/qwen3_script.ts";
import { listening, serving, until } from "../support/serving.ts";

const MODEL = "test-model";
const TEXT = ", there was a little girl named Lily";
const STORY = { model: MODEL, temperature: 0, max_tokens: 8 };
const USER = [{ role: "user" as const, content: "Once upon a time" }];

const ASKS =
  '<think>They ask about rain.</think>I look it up:<tool_call>{"name":"get_weather","arguments":{"city":"Oslo"}}</tool_call>';
const ANSWERS = "<think>So it is</think>It rains in Oslo.";
const QUESTION = [{ role: "user" as const, content: "Does it rain in Oslo?" }];

const clientOf = (url: string, apiKey = "none") =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const providerOf = (url: string) =>
  createOpenAICompatible({
    name: "test",
    baseURL: `${url}/v1`,
    includeUsage: true,
  });

/** Serves a Qwen3 that asks for a tool, and answers once it has the result. */
async function agent() {
  const checkpoints = [await qwen3Script(ASKS), await qwen3Script(ANSWERS)];
  const [asks, answers] = await Promise.all(
    checkpoints.map(({ path }) => loadQwen3(path, { device: "cpu" })),
  );
  const prompts: string[] = [];
  const engine: Submitting & { stats: { slots: number } } = {
    stats: { slots: 1 },
    submit(ready, options) {
      const prompt = ready as Prompt;
      const { from } = ready as unknown as ReadyPrompt;
      prompts.push(JSON.stringify(from));
      const [last] = (from as Message[]).slice(-1);
      const isResult = typeof last === "object" && last.role === "tool";
      return (isResult ? answers : asks).generate(prompt, options);
    },
  };
  const server = new Server();
  server.serve({ qwen: asks, engine, names: [MODEL] });
  const http = listening(server);
  return {
    url: http.url,
    /** Every prompt so far, as JSON. */
    prompts,
    async [Symbol.asyncDispose]() {
      await http[Symbol.asyncDispose]();
      asks[Symbol.dispose]();
      answers[Symbol.dispose]();
      for (const one of checkpoints) await one[Symbol.asyncDispose]();
    },
  };
}

Deno.test("openai: models, text, chats and vectors of the story model", async () => {
  await using server = await serving();
  const client = clientOf(server.url);
  const models = await client.models.list();
  assertEquals(models.data.map(({ id }) => id), [MODEL]);
  assertEquals((await client.models.retrieve(MODEL)).id, MODEL);
  const text = await client.completions.create({
    ...STORY,
    prompt: USER[0].content,
  });
  assertEquals(text.choices[0].text, TEXT);
  const chat = await client.chat.completions.create({
    ...STORY,
    messages: USER,
  });
  assertEquals(chat.choices[0].message.content, TEXT);
  assertEquals(chat.usage?.total_tokens, 13);
  const { data } = await client.embeddings.create({
    model: MODEL,
    input: ["A dog.", "It rained."],
  });
  const own = await server.qwen.embed(["A dog.", "It rained."]);
  assertEquals(data.map(({ embedding }) => embedding), own.map((v) => [...v]));
  const stream = await client.chat.completions.create({
    ...STORY,
    messages: USER,
    stream: true,
    stream_options: { include_usage: true },
  });
  let streamed = "", tokens = 0;
  for await (const { choices, usage } of stream) {
    streamed += choices[0]?.delta.content ?? "";
    tokens += usage?.completion_tokens ?? 0;
  }
  assertEquals([streamed, tokens], [TEXT, 8]);
});

Deno.test("openai: a stream is collected, left, and ended by its own signal", async () => {
  await using server = await serving();
  const client = clientOf(server.url);
  const runner = client.chat.completions.stream({ ...STORY, messages: USER });
  assertEquals(await runner.finalContent(), TEXT);
  const long = await client.chat.completions.create({
    model: MODEL,
    messages: USER,
    max_tokens: 900,
    stream: true,
  });
  for await (const _ of long) break;
  const response = await client.responses.create({
    model: MODEL,
    input: "Once upon a time",
    temperature: 0,
    max_output_tokens: 8,
  });
  assertEquals(response.output_text, TEXT);
  assertEquals(response.status, "incomplete");
  assertEquals(response.incomplete_details?.reason, "max_output_tokens");
});

Deno.test("openai: errors have their classes and codes", async () => {
  await using server = await serving({ options: { apiKey: "sesame" } });
  const client = clientOf(server.url, "sesame");
  const ask = (more: object, by = client) =>
    by.chat.completions.create({ ...STORY, messages: USER, ...more });
  const wrong = await assertRejects(
    () => ask({ temperature: -1 }),
    OpenAI.BadRequestError,
  );
  assertEquals([wrong.param, wrong.type], [
    "temperature",
    "invalid_request_error",
  ]);
  assert(wrong.requestID?.startsWith("req_"), wrong.requestID ?? "");
  const lost = await assertRejects(
    () => ask({ model: "gpt-4o" }),
    OpenAI.NotFoundError,
  );
  assertEquals(lost.code, "model_not_found");
  await assertRejects(
    () => ask({}, clientOf(server.url, "wrong")),
    OpenAI.AuthenticationError,
  );
});

Deno.test("openai: a stream that fails throws, and a full server is asked again", async () => {
  await using hasty = await serving({ options: { seconds: 0.1 } });
  const stream = await clientOf(hasty.url).completions.create({
    model: MODEL,
    prompt: "Once",
    max_tokens: 900,
    stream: true,
    ...{ ignore_eos: true },
  });
  await assertRejects(
    async () => {
      for await (const _ of stream);
    },
    OpenAI.APIError,
    "not complete after 0.1 s",
  );
  await using full = await serving({ slots: 1, options: { queue: 0 } });
  const patient = new OpenAI({
    baseURL: `${full.url}/v1`,
    apiKey: "none",
    maxRetries: 9,
  });
  const long = await fetch(`${full.url}/v1/completions`, {
    method: "POST",
    body: JSON.stringify({
      prompt: "Once",
      max_tokens: 900,
      ignore_eos: true,
      stream: true,
    }),
  });
  const asked = patient.completions.create({
    ...STORY,
    prompt: USER[0].content,
  });
  await until(async () =>
    /path="\/v1\/completions",status="429"/.test(
      (await full.get("/metrics")).json,
    )
  );
  await long.body?.cancel();
  assertEquals((await asked).choices[0].text, TEXT);
});

Deno.test("clients of a model with tools", async (t) => {
  await using server = await agent();
  for (const [name, step] of Object.entries(AGENT_STEPS)) {
    await t.step(name, async () => {
      server.prompts.length = 0;
      await step(server);
    });
  }
});

type Agent = Awaited<ReturnType<typeof agent>>;
const AGENT_STEPS: Record<string, (server: Agent) => Promise<void>> = {};

AGENT_STEPS["openai: runTools calls the function and gets the answer"] = async (
  server,
) => {
  for (const stream of [false, true]) {
    const client = clientOf(server.url), cities: string[] = [];
    const tools = [{
      type: "function" as const,
      function: {
        name: "get_weather",
        description: "The weather in a city",
        parameters: {
          type: "object",
          properties: { city: { type: "string" } },
        },
        parse: JSON.parse,
        function({ city }: { city: string }) {
          cities.push(city);
          return { rain: true };
        },
      },
    }];
    const runner = stream
      ? client.chat.completions.runTools({
        model: MODEL,
        messages: QUESTION,
        tools,
        stream: true,
      })
      : client.chat.completions.runTools({
        model: MODEL,
        messages: QUESTION,
        tools,
      });
    assertEquals(await runner.finalContent(), "It rains in Oslo.");
    assertEquals(cities, ["Oslo"]);
    const [, asked] = runner.messages;
    assertEquals(asked.content, "I look it up:");
    assert("tool_calls" in asked && asked.tool_calls);
  }
};

AGENT_STEPS["openai: deltas of a reply with reasoning and a call"] = async (
  server,
) => {
  const client = clientOf(server.url);
  const request = {
    model: MODEL,
    messages: QUESTION,
    tools: [{
      type: "function" as const,
      function: { name: "get_weather", parameters: { type: "object" } },
    }],
  };
  const { choices: [whole] } = await client.chat.completions.create(request);
  const message = whole.message as { reasoning_content?: string };
  assertEquals(message.reasoning_content, "They ask about rain.");
  assertEquals(whole.message.content, "I look it up:");
  assertEquals(whole.finish_reason, "tool_calls");
  let reasoning = "", content = "", text = "", ids = 0, name = "";
  const stream = await client.chat.completions.create({
    ...request,
    stream: true,
  });
  let finish: string | null = null;
  for await (const { choices: [{ delta, finish_reason }] } of stream) {
    content += delta.content ?? "";
    reasoning += (delta as { reasoning_content?: string }).reasoning_content ??
      "";
    for (const call of delta.tool_calls ?? []) {
      assertEquals(call.index, 0);
      if (call.id) ids++;
      name += call.function?.name ?? "";
      text += call.function?.arguments ?? "";
    }
    finish = finish_reason;
  }
  assertEquals([reasoning, content, name, text, ids, finish], [
    "They ask about rain.",
    "I look it up:",
    "get_weather",
    '{"city":"Oslo"}',
    1,
    "tool_calls",
  ]);
};

AGENT_STEPS[
  "openai: responses have items, also in a stream and in the next request"
] = async (server) => {
  const client = clientOf(server.url);
  const tools = [zodResponsesFunction({
    name: "get_weather",
    parameters: z.object({ city: z.string() }),
  })];
  const request = { model: MODEL, tools, store: false };
  const input: OpenAI.Responses.ResponseInput = [...QUESTION];
  const first = await client.responses.parse({ ...request, input });
  assertEquals(
    first.output.map(({ type }) => type),
    ["reasoning", "message", "function_call"],
  );
  assertEquals([first.status, first.output_text], [
    "completed",
    "I look it up:",
  ]);
  const call = first.output[2];
  assert(call.type === "function_call");
  assertEquals(call.parsed_arguments, { city: "Oslo" });
  input.push(...first.output as OpenAI.Responses.ResponseInput);
  input.push({
    type: "function_call_output",
    call_id: call.call_id,
    output: "It rains.",
  });
  const events: string[] = [];
  const stream = client.responses.stream({ ...request, input });
  for await (const { type } of stream) events.push(type);
  const last = await stream.finalResponse();
  assertEquals(last.output_text, "It rains in Oslo.");
  const { output_tokens = 0, output_tokens_details } = last.usage ?? {};
  const thought = output_tokens_details?.reasoning_tokens ?? 0;
  assert(thought > 0 && thought < output_tokens, `${thought} of them`);
  const [turn] = JSON.parse(server.prompts[1]).slice(1);
  assertEquals(turn.reasoning_content, "They ask about rain.");
  assertEquals(turn.tool_calls[0].id, call.call_id);
  assertEquals(events.filter((type) => !type.endsWith(".delta")), [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.reasoning_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
  ]);
};

Deno.test("ai: text, a stream with usage, and vectors of the story model", async () => {
  await using server = await serving();
  const provider = providerOf(server.url), model = provider(MODEL);
  const options = { model, messages: USER, temperature: 0, maxOutputTokens: 8 };
  const whole = await generateText(options);
  assertEquals([whole.text, whole.finishReason], [TEXT, "length"]);
  assertEquals(whole.usage.outputTokens, 8);
  const stream = streamText(options);
  const pieces = await Array.fromAsync(stream.textStream);
  assertEquals(pieces.join(""), TEXT);
  assert(pieces.length > 4);
  assertEquals((await stream.usage).totalTokens, 13);
  const { embedding } = await embed({
    model: provider.embeddingModel(MODEL),
    value: "A dog.",
  });
  const [own] = await server.qwen.embed(["A dog."]);
  assertEquals(embedding.map(Math.fround), [...own]);
});

AGENT_STEPS["ai: a tool is called between two steps, whole and streamed"] =
  async (server) => {
    const cities: string[] = [];
    const options = {
      model: providerOf(server.url)(MODEL),
      messages: QUESTION,
      tools: {
        get_weather: tool({
          description: "The weather in a city",
          inputSchema: z.object({ city: z.string() }),
          execute({ city }) {
            cities.push(city);
            return { rain: true };
          },
        }),
      },
      stopWhen: isStepCount(5),
    };
    const whole = await generateText(options);
    assertEquals(whole.text, "It rains in Oslo.");
    assertEquals(whole.steps.length, 2);
    assertEquals(whole.steps[0].reasoningText, "They ask about rain.");
    const stream = streamText(options);
    await stream.consumeStream();
    assertEquals(await stream.text, "It rains in Oslo.");
    assertEquals((await stream.steps)[0].reasoningText, "They ask about rain.");
    assertEquals(cities, ["Oslo", "Oslo"]);
  };
