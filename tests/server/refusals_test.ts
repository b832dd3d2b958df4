/** What a server refuses, and how it says so. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { Server } from "../../mod.ts";
import { type Json, listening, serving, until } from "../support/serving.ts";
import { LONG } from "../support/story_request.ts";

const STORY = { prompt: "Once upon a time", temperature: 0, max_tokens: 4 };
const MESSAGES = [{ role: "user", content: "Hi" }];
/** JSON that can be read, but not written again. */
const DEEP = "[".repeat(100_000) + "]".repeat(100_000);
const TOOL = { type: "function", function: { name: "f" } };

/** What is wrong with a body, by path: what it is, its parameter, and some of the message. */
const WRONG: Record<
  string,
  [body: Json, param: string | null, message: string][]
> = {
  "/v1/completions": [
    ["", null, "the body is empty"],
    ["{", null, "the body is not valid JSON"],
    ["[1]", null, "the body is a list of 1, must be a JSON object"],
    ["null", null, "the body is null, must be a JSON object"],
    [new Uint8Array([0x7b, 0xff, 0x7d]), null, "the body is not UTF-8"],
    [{}, "prompt", "prompt is missing"],
    [{ prompt: 1 }, "prompt", "prompt is 1, must be a string, a list of"],
    [{ prompt: [] }, "prompt", "prompt is a list of 0, must be"],
    [{ prompt: [[]] }, "prompt", "prompt is a list of 1, must be"],
    [{ prompt: [1, "a"] }, "prompt", "prompt is a list of 2, must be"],
    [{ prompt: "" }, "prompt", "the prompt is empty"],
    [{ prompt: "\ud800" }, "prompt", "half of a surrogate pair"],
    [{ prompt: [-1] }, "prompt", "ids must be integers from 0 to 2047"],
    [{ prompt: [0.5] }, "prompt", "ids must be integers from 0 to 2047"],
    [{ prompt: [1e99] }, "prompt", "ids must be integers from 0 to 2047"],
    [{ prompt: "a", max_tokens: 0 }, "max_tokens", "an integer of at least 1"],
    [{ prompt: "a", max_tokens: "9" }, "max_tokens", 'is "9", must be'],
    [{ prompt: "a", temperature: "hot" }, "temperature", "must be a number"],
    [{ prompt: "a", temperature: -1 }, "temperature", "is -1, must be"],
    [{ prompt: "a", top_p: 2 }, "top_p", "top_p is 2, must be"],
    [
      { prompt: "a", repetition_penalty: 1e-300 },
      "repetition_penalty",
      "repetition_penalty is 1e-300, must be from 0.001 to 1000",
    ],
    [{ prompt: "a", top_k: 0.5 }, "top_k", "must be an integer"],
    [{ prompt: "a", seed: 1.5 }, "seed", "seed is 1.5, must be an integer"],
    [{ prompt: "a", stop: [1] }, "stop", "must be a string or a list"],
    [{ prompt: "a", stop: "" }, "stop", "stop"],
    [{ prompt: "a", n: 0 }, "n", "n is 0, must be an integer from 1 to 32"],
    [{ prompt: "a", stream: 1 }, "stream", "stream is 1, must be true or"],
    [
      { prompt: "a", stream_options: {} },
      "stream_options",
      "given without stream",
    ],
    [
      { prompt: "a", stream: true, stream_options: { include_usage: 1 } },
      "stream_options.include_usage",
      "must be true or false",
    ],
    [
      { prompt: "a", stream: true, stream_options: { includeUsage: true } },
      "stream_options.includeUsage",
      "did you mean stream_options.include_usage?",
    ],
    [{ prompt: "a", stopp: "x" }, "stopp", "did you mean stop?"],
    [{ prompt: "a", best_of: 2 }, "best_of", "not supported"],
    [{ prompt: "a", suffix: "x" }, "suffix", "not supported"],
    [{ ...STORY, n: 32, prompt: ["a", "b", "c"] }, null, "asks for 96 texts"],
  ],
  "/v1/chat/completions": [
    [{}, "messages", "messages is missing"],
    [{ messages: "Hi" }, "messages", 'messages is "Hi", must be a list'],
    [{ messages: [] }, "messages", "messages has 0 messages"],
    [
      { messages: [1] },
      "messages",
      "messages has 1 as message 0, must be an object",
    ],
    [
      { messages: [{ role: "usr", content: "Hi" }] },
      "messages",
      "did you mean user?",
    ],
    [
      {
        messages: [{
          role: "user",
          content: [{ type: "image_url", image_url: { url: "x" } }],
        }],
      },
      "messages",
      'content[0] has the type "image_url", must be text',
    ],
    [
      { messages: MESSAGES, max_tokens: 1, max_completion_tokens: 1 },
      "max_completion_tokens",
      "must be one",
    ],
    [{ messages: MESSAGES, tools: [{}] }, "tools", "tools[0] must be like"],
    [{ messages: MESSAGES, tools: [TOOL] }, "messages", "does not print"],
    [
      { messages: MESSAGES, tool_choice: "maybe" },
      "tool_choice",
      "must be none, auto",
    ],
    [
      { messages: MESSAGES, functions: [TOOL] },
      "functions",
      "not supported by this server, use tools",
    ],
    [
      { messages: MESSAGES, chat_template_kwargs: { enable_thinking: true } },
      "enable_thinking",
      "enable_thinking is true, but the chat template does not read",
    ],
    [
      { messages: MESSAGES, chat_template_kwargs: { messages: [] } },
      "chat_template_kwargs.messages",
      "is given, must be left out: it is the conversation",
    ],
    [
      { messages: MESSAGES, chat_template_kwargs: { tools: [TOOL] } },
      "chat_template_kwargs.tools",
      "is given, must be left out: it is the parameter tools",
    ],
    [
      {
        messages: MESSAGES,
        chat_template_kwargs: { add_generation_prompt: false },
      },
      "chat_template_kwargs.add_generation_prompt",
      "is given, must be left out: it is true, since a reply follows",
    ],
    [
      { messages: MESSAGES, reasoning_effort: "huge" },
      "reasoning_effort",
      "must be one of none, minimal",
    ],
  ],
  "/v1/responses": [
    [{}, "input", "input is missing"],
    [{ input: 1 }, "input", "must be a string or a list of items"],
    [{ input: [1] }, "input[0]", "input[0] is 1, must be an object"],
    [{ input: [{ content: "Hi" }] }, "input[0].role", "is missing"],
    [
      { input: [{ type: "item_reference", id: "1" }] },
      "input[0].type",
      "must be message, reasoning",
    ],
    [
      { input: [{ type: "function_call", call_id: "1", name: "f" }] },
      "input[0].arguments",
      "is missing",
    ],
    [{ input: [{ type: "reasoning" }] }, "input[0].content", "has no text"],
    [{ input: [] }, "input", "0 messages"],
    [
      { input: "Hi", previous_response_id: "resp_1" },
      "previous_response_id",
      "keeps no replies: send them in input",
    ],
    [
      { input: "Hi", tools: [{ type: "web_search" }] },
      "tools[0].type",
      "must be function",
    ],
    [{ input: "Hi", max_tokens: 3 }, "max_tokens", "is unknown"],
    [
      `{"input": "Hi", "max_output_tokens": 1, "metadata": ${DEEP}}`,
      "metadata",
      "metadata nests deeper than 200 levels",
    ],
    [
      `{"input": "Hi", "max_output_tokens": 1, "reasoning": {"summary": ${DEEP}}}`,
      "reasoning",
      "reasoning nests deeper than 200 levels",
    ],
    [{ input: "Hi", text: { formt: 1 } }, "text.formt", "text.format?"],
  ],
  "/v1/embeddings": [
    [{}, "input", "input is missing"],
    [{ input: [] }, "input", "must be a string, token ids"],
    [{ input: "" }, "input", "text 0 is empty"],
    [{ input: ["a", "\udc00"] }, "input", "text 1 has half of a surrogate"],
    [{ input: [5000] }, "input", "ids must be integers from 0 to 2047"],
    [{ input: "a", dimensions: 500 }, "dimensions", "from 1 to 192"],
    [{ input: "a", encoding_format: "hex" }, "encoding_format", "float, base"],
  ],
  "/tokenize": [[{}, "prompt", "prompt is missing"]],
};

Deno.test("wrong requests get OpenAI's errors, which name the parameter", async () => {
  await using server = await serving();
  for (const [path, cases] of Object.entries(WRONG)) {
    for (const [body, param, message] of cases) {
      const where = `${path} ${JSON.stringify(body).slice(0, 200)}`;
      const { status, json } = await server.post(path, body);
      assertEquals(status, 400, where);
      assertEquals(Object.keys(json), ["error"]);
      const { error } = json;
      assertStringIncludes(error.message, message, where);
      assert(error.message.startsWith("Cannot "), error.message);
      assert(!error.message.includes("\n"));
      assertEquals(error.type, "invalid_request_error");
      assertEquals(error.param, param, where);
      assert(error.code === null || typeof error.code === "string");
    }
  }
  assertEquals(await server.metric("running"), 0);
  assertEquals(await server.metric("waiting"), 0);
  const { status } = await server.post("/v1/completions", STORY);
  assertEquals(status, 200);
});

Deno.test("null is as good as absent, and what is meant for OpenAI is accepted", async () => {
  await using server = await serving();
  const { status } = await server.post("/v1/chat/completions", {
    messages: MESSAGES,
    model: "test-model",
    max_tokens: 4,
    stop: null,
    seed: null,
    tools: null,
    nonsense: null,
    user: "me",
    metadata: { a: "b" },
    store: false,
    service_tier: "auto",
    presence_penalty: 0,
    frequency_penalty: 0,
    logit_bias: {},
    logprobs: false,
    response_format: { type: "text" },
    tool_choice: "auto",
    parallel_tool_calls: true,
    reasoning_effort: "low",
  });
  assertEquals(status, 200);
});

Deno.test("a prompt that is too long is refused with a code that agents know", async () => {
  await using server = await serving();
  const long = "Once upon a time ".repeat(400);
  for (
    const [path, body] of [
      ["completions", { prompt: long }],
      ["completions", { prompt: Array.from({ length: 1024 }, () => 5) }],
      ["chat/completions", { messages: [{ role: "user", content: long }] }],
      ["embeddings", { input: long }],
    ]
  ) {
    const { status, json } = await server.post(`/v1/${path}`, body);
    assertEquals([status, json.error.code], [400, "context_length_exceeded"]);
  }
});

Deno.test("far too many texts are counted before they are made", async () => {
  await using server = await serving();
  const { status, json } = await server.post("/v1/completions", {
    prompt: Array(1_000_000).fill("a"),
    n: 32,
    seed: 1,
  });
  assertEquals([status, json.error.code], [400, "too_many_texts"]);
  assertStringIncludes(json.error.message, "asks for 32000000 texts");
});

Deno.test("another model is not found", async () => {
  await using server = await serving({ names: ["a/b", "gpt"] });
  const { status, json } = await server.post("/v1/completions", {
    ...STORY,
    model: "c",
  });
  assertEquals([status, json.error], [404, {
    message: 'Cannot find the model "c", must be a/b or gpt',
    type: "invalid_request_error",
    param: "model",
    code: "model_not_found",
  }]);
  for (const model of ["a/b", "gpt"]) {
    const answer = await server.post("/v1/completions", { ...STORY, model });
    assertEquals([answer.status, answer.json.model], [200, "a/b"]);
  }
  const list = await server.get("/v1/models");
  assertEquals(list.json.data.map(({ id }: Json) => id), ["a/b", "gpt"]);
  assertEquals(list.json.data[0].max_model_len, server.qwen.context);
  assertEquals((await server.get("/v1/models/a/b")).json, list.json.data[0]);
  assertEquals((await server.get("/v1/models/a%2Fb")).status, 200);
  assertEquals((await server.get("/v1/models/c")).status, 404);
});

Deno.test("unknown paths and methods are refused", async () => {
  await using server = await serving();
  const lost = await server.post("/v1/chat", {});
  assertEquals([lost.status, lost.json.error.code], [404, "unknown_url"]);
  assertEquals((await server.get("/toString")).status, 404);
  const { status, headers } = await server.get("/v1/completions");
  assertEquals([status, headers.get("allow")], [405, "POST"]);
  assertEquals((await server.post("/v1/models", {})).status, 405);
});

Deno.test("until there is a model, the server says that it loads", async () => {
  const server = new Server();
  await using loading = listening(server);
  const health = await loading.get("/health");
  assertEquals([health.status, health.json], [503, { status: "loading" }]);
  const { status, headers, json } = await loading.post(
    "/v1/completions",
    STORY,
  );
  assertEquals([status, json.error.code], [503, "loading"]);
  assertEquals(headers.get("retry-after"), "2");
  await using ready = await serving();
  assertEquals((await ready.get("/health")).json, { status: "ok" });
});

Deno.test("a key must be sent if there is one, except for /health", async () => {
  await using server = await serving({ options: { apiKey: "sesame" } });
  const ask = async (authorization?: string) => {
    const headers: HeadersInit = authorization === undefined
      ? {}
      : { authorization };
    const { status, json } = await server.get("/v1/models", headers);
    return [status, json.error?.code];
  };
  assertEquals(await ask("Bearer sesame"), [200, undefined]);
  assertEquals(await ask("bearer sesame"), [200, undefined]);
  for (
    const wrong of [
      undefined,
      "",
      "sesame",
      "Bearer",
      "Bearer sesam",
      "Bearer sesame2",
      "Basic sesame",
    ]
  ) {
    assertEquals(await ask(wrong), [401, "invalid_api_key"]);
  }
  // The hash of this key ends as the right one's does.
  const hash = async (key: string) =>
    new Uint8Array(
      await crypto.subtle.digest("SHA-256", new TextEncoder().encode(key)),
    );
  const right = await hash("sesame");
  let close = 0;
  while ((await hash(`${close}`))[31] !== right[31]) close++;
  assertEquals(await ask(`Bearer ${close}`), [401, "invalid_api_key"]);
  assertEquals((await server.get("/health")).status, 200);
  assertEquals((await server.get("/metrics")).status, 401);
});

Deno.test("pages of other origins may not ask, unless they are allowed", async () => {
  const from = async (
    server: { url: string },
    origin: string,
    method = "GET",
  ) => {
    const response = await fetch(`${server.url}/v1/models`, {
      method,
      headers: { origin },
    });
    await response.body?.cancel();
    return [
      response.status,
      response.headers.get("access-control-allow-origin"),
    ];
  };
  await using own = await serving();
  assertEquals(await from(own, "http://evil.example"), [403, null]);
  assertEquals(await from(own, "null"), [403, null]);
  assertEquals(await from(own, own.url), [200, null]);
  await using some = await serving({ options: { cors: ["http://a.example"] } });
  const fine = "http://a.example";
  assertEquals(await from(some, fine), [200, fine]);
  assertEquals(await from(some, fine, "OPTIONS"), [204, fine]);
  assertEquals(await from(some, "http://b.example"), [403, null]);
  await using all = await serving({ options: { cors: ["*"] } });
  assertEquals(await from(all, "http://b.example"), [200, "http://b.example"]);
});

Deno.test("another host name that leads to the server is refused if names are given", async () => {
  const server = new Server({ hosts: ["localhost", "127.0.0.1"] });
  const ask = async (host: string) =>
    (await server.fetch(new Request(`http://${host}/health`))).status;
  assertEquals(await ask("localhost:8000"), 503);
  assertEquals(await ask("127.0.0.1"), 503);
  assertEquals(await ask("evil.example"), 403);
});

Deno.test("a body that is too large or too slow is refused", async () => {
  await using server = await serving({
    options: { bodyBytes: 1000, idleSeconds: 0.2 },
  });
  const large = await server.post("/v1/completions", {
    ...STORY,
    prompt: "a".repeat(1000),
  });
  assertEquals([large.status, large.json.error.code], [
    413,
    "request_too_large",
  ]);
  const chunk = new TextEncoder().encode(" ".repeat(300));
  const chunked = await server.post(
    "/v1/completions",
    ReadableStream.from([chunk, chunk, chunk, chunk]),
  );
  assertEquals(chunked.status, 413);
  using socket = await rawRequest(server.url, '{"prompt": "Once', 500);
  const bytes = new Uint8Array(10_000);
  const count = await socket.read(bytes);
  const answer = new TextDecoder().decode(bytes.subarray(0, count!));
  assertStringIncludes(answer, "HTTP/1.1 408 ");
  assertStringIncludes(answer, '"code":"body_timeout"');
});

Deno.test("a Host header that is no host is refused", async () => {
  await using server = await serving();
  const { hostname, port } = new URL(server.url);
  for (const host of ["a b", "localhost:99999", "[::"]) {
    using socket = await Deno.connect({ hostname, port: Number(port) });
    const head = `GET /v1/models HTTP/1.1\r\nHost: ${host}\r\n\r\n`;
    await socket.write(new TextEncoder().encode(head));
    const bytes = new Uint8Array(10_000);
    const count = await socket.read(bytes);
    const answer = new TextDecoder().decode(bytes.subarray(0, count!));
    assertStringIncludes(answer, "HTTP/1.1 400 ");
    assertStringIncludes(answer, "the Host header is wrong");
  }
});

/** Sends a request with a body that has fewer bytes than it says. */
async function rawRequest(url: string, body: string, length = body.length) {
  const { hostname, port } = new URL(url);
  const socket = await Deno.connect({ hostname, port: Number(port) });
  await socket.write(
    new TextEncoder().encode(
      `POST /v1/completions HTTP/1.1\r\nHost: ${hostname}\r\nContent-Length: ${length}\r\n\r\n${body}`,
    ),
  );
  return socket;
}

Deno.test("a client that reads nothing does not keep others from their turn", async () => {
  await using server = await serving({ slots: 1 });
  const body = { ...LONG, stream: true };
  using _socket = await rawRequest(server.url, JSON.stringify(body));
  await until(async () => await server.metric("running") === 1);
  const { status } = await server.post("/v1/completions", STORY);
  assertEquals(status, 200);
});
