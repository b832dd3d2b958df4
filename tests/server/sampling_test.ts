/** Penalties, biases and log probabilities in requests. */
import { assert, assertEquals } from "@std/assert";
import { type Json, serving } from "../support/serving.ts";
import { STORY, TEXT } from "../support/story_request.ts";

const CHAT = {
  messages: [{ role: "user", content: STORY.prompt }],
  temperature: 0,
  max_tokens: 8,
};

Deno.test("penalties and biases change a text as they do in generate", async () => {
  await using server = await serving();
  const { qwen } = server, long = 150;
  const comma = qwen.tokenizer.encode(",", { addSpecialTokens: false })[0];
  for (
    const [request, options] of [
      [{ logit_bias: { [comma]: -100 } }, { logitBias: { [comma]: -100 } }],
      [{ presence_penalty: 2 }, { presencePenalty: 2 }],
      [{ frequency_penalty: 1.5 }, { frequencyPenalty: 1.5 }],
    ]
  ) {
    const { json } = await server.post("/v1/completions", {
      ...STORY,
      ...request,
      max_tokens: long,
    });
    const own = await qwen.generate(STORY.prompt, {
      ...options,
      temperature: 0,
      maxTokens: long,
    });
    const plain = await qwen.generate(STORY.prompt, {
      temperature: 0,
      maxTokens: long,
    });
    assertEquals(json.choices[0].text, own.text);
    assert(own.text !== plain.text, Object.keys(request).join());
  }
  for (
    const [wrong, param] of [
      [{ logit_bias: { a: 1 } }, "logit_bias"],
      [{ logit_bias: { 9999: 1 } }, "logit_bias"],
      [{ logit_bias: { 1: "1" } }, "logit_bias.1"],
      [{ logit_bias: { 1: 101 } }, "logit_bias"],
      [{ presence_penalty: 3 }, "presence_penalty"],
      [{ frequency_penalty: -3 }, "frequency_penalty"],
      [{ logprobs: 21 }, "logprobs"],
      [{ logprobs: 1, echo: true }, "logprobs"],
    ] as const
  ) {
    const { status, json } = await server.post("/v1/completions", {
      ...STORY,
      ...wrong,
    });
    assertEquals([status, json.error.param], [400, param]);
  }
});

Deno.test("log probabilities of a text have the tokens and their places", async () => {
  await using server = await serving();
  const ask = { ...STORY, logprobs: 2 };
  const { json } = await server.post("/v1/completions", ask);
  const [{ text, logprobs }] = json.choices;
  assertEquals([text, logprobs.tokens.join("")], [TEXT, TEXT]);
  const run = server.qwen.generate(STORY.prompt, {
    temperature: 0,
    maxTokens: 8,
    logprobs: 2,
  });
  const own = (await Array.fromAsync(run)).map(({ logprobs }) => logprobs!);
  const near = (a: number, b: number) => assert(Math.abs(a - b) < 1e-3);
  logprobs.token_logprobs.forEach((logprob: number, i: number) => {
    near(logprob, own[i].logprob);
    const top = Object.values<number>(logprobs.top_logprobs[i]);
    assertEquals(top.length, 2);
    near(Math.max(...top), own[i].top[0].logprob);
    const offset = logprobs.text_offset[i], token = logprobs.tokens[i];
    assertEquals(TEXT.slice(offset, offset + token.length), token);
  });
  const events = await server.stream("/v1/completions", {
    ...ask,
    stream: true,
  });
  events.pop();
  const chunks = events.map((data) => JSON.parse(data).choices[0].logprobs)
    .filter(Boolean);
  for (const field of ["tokens", "text_offset"]) {
    assertEquals(chunks.flatMap((chunk) => chunk[field]), logprobs[field]);
  }
});

Deno.test("log probabilities of a chat come whole, in a stream, and in a response", async () => {
  await using server = await serving();
  const ask = { ...CHAT, logprobs: true, top_logprobs: 3 };
  const { json } = await server.post("/v1/chat/completions", ask);
  const { content, refusal } = json.choices[0].logprobs;
  assertEquals(refusal, null);
  assertEquals(content.map(({ token }: Json) => token).join(""), TEXT);
  for (const { token, bytes, logprob, top_logprobs } of content) {
    assertEquals(new TextDecoder().decode(new Uint8Array(bytes)), token);
    assertEquals(top_logprobs.length, 3);
    assertEquals(top_logprobs[0].token, token); // temperature 0
    assertEquals(top_logprobs[0].logprob, logprob);
  }
  const events = await server.stream("/v1/chat/completions", {
    ...ask,
    stream: true,
  });
  events.pop();
  const streamed = events.flatMap((data) =>
    JSON.parse(data).choices[0].logprobs?.content ?? []
  );
  const tokens = (list: Json[]) => list.map(({ token }) => token);
  assertEquals(tokens(streamed), tokens(content));
  const response = await server.post("/v1/responses", {
    input: STORY.prompt,
    temperature: 0,
    max_output_tokens: 8,
    top_logprobs: 3,
    include: ["message.output_text.logprobs"],
  });
  const [part] = response.json.output[0].content;
  assertEquals(tokens(part.logprobs), tokens(content));
  const { json: bare } = await server.post("/v1/chat/completions", {
    ...CHAT,
    logprobs: true,
  });
  assertEquals(bare.choices[0].logprobs.content[0].top_logprobs, []);
  const wrong = await server.post("/v1/chat/completions", {
    ...CHAT,
    top_logprobs: 3,
  });
  assertEquals([wrong.status, wrong.json.error.param], [400, "top_logprobs"]);
});
