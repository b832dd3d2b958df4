/** Replies that must be JSON, and calls that must be made. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import OpenAI from "npm:openai@7.59.0";
import {
  zodFunction,
  zodResponseFormat,
  zodTextFormat,
} from "npm:openai@7.59.0/helpers/zod";
import { generateText, Output } from "npm:ai@7.0.173";
import { createOpenAICompatible } from "npm:@ai-sdk/openai-compatible@3.0.92";
import { z } from "npm:zod@4.6.7";
import { qwen3Script } from "../support/qwen3_script.ts";
import { type Json, serving } from "../support/serving.ts";

const MODEL = "test-model";
const USER = [{ role: "user" as const, content: "Once upon a time" }];
const CHAT = { messages: USER, temperature: 0, max_tokens: 200 };
/** What ends strings, lists and objects, so that replies are short. */
const PERSON = z.object({
  name: z.string().max(12),
  age: z.number().int().min(0).max(99),
  kind: z.enum(["dog", "cat"]),
});
const TOOLS = [
  {
    type: "function",
    function: {
      name: "get_weather",
      parameters: {
        type: "object",
        properties: { city: { $ref: "#/$defs/city" } },
        required: ["city"],
        additionalProperties: false,
        $defs: { city: { enum: ["Oslo", "Rome"] } },
      },
    },
  },
  { type: "function", function: { name: "get_time" } },
];
/** The story model's template has no place for functions. */
const CHAT_TEMPLATE =
  "{{ tools | tojson if tools else '' }}{% for m in messages %}{{ m.content }}{% endfor %}";

Deno.test("openai: a reply is parsed under a zod schema", async () => {
  await using server = await serving();
  const client = new OpenAI({
    baseURL: `${server.url}/v1`,
    apiKey: "none",
    maxRetries: 0,
  });
  const request = {
    model: MODEL,
    ...CHAT,
    response_format: zodResponseFormat(PERSON, "person"),
  };
  const { choices: [{ message }] } = await client.chat.completions.parse(
    request,
  );
  PERSON.parse(message.parsed);
  const stream = client.chat.completions.stream(request);
  const last = await stream.finalChatCompletion();
  assertEquals(last.choices[0].message.parsed, message.parsed);
  const response = await client.responses.parse({
    model: MODEL,
    input: USER,
    temperature: 0,
    text: { format: zodTextFormat(PERSON, "person") },
  });
  assertEquals(response.output_parsed, message.parsed);
  await assertRejects(
    () => client.chat.completions.create({ ...request, stop: "x" }),
    OpenAI.BadRequestError,
    "stop",
  );
});

Deno.test("openai: Qwen3 thinks first, and its JSON is only JSON", async () => {
  const reply = '{"name":"Rex","age":7}';
  await using checkpoint = await qwen3Script(`<think>A dog.</think>${reply}`);
  await using server = await serving({ model: checkpoint.path });
  const client = new OpenAI({
    baseURL: `${server.url}/v1`,
    apiKey: "none",
    maxRetries: 0,
  });
  const schema = z.object({ name: z.string(), age: z.number().int() });
  const request = {
    model: MODEL,
    messages: USER,
    max_tokens: 60,
    response_format: zodResponseFormat(schema, "pet"),
  };
  const { choices: [{ message }] } = await client.chat.completions.parse(
    request,
  );
  assertEquals(message.content, reply);
  assertEquals(message.parsed, { name: "Rex", age: 7 });
  const { reasoning_content } = message as { reasoning_content?: string };
  assertEquals(reasoning_content, "A dog.");
  const stream = client.chat.completions.stream(request);
  assertEquals(await stream.finalContent(), reply);
});

Deno.test("ai: an object is generated under a zod schema", async () => {
  await using server = await serving();
  const provider = createOpenAICompatible({
    name: "test",
    baseURL: `${server.url}/v1`,
    supportsStructuredOutputs: true,
  });
  const { output } = await generateText({
    model: provider(MODEL),
    messages: USER,
    temperature: 0,
    maxOutputTokens: 200,
    output: Output.object({ schema: PERSON }),
  });
  PERSON.parse(output);
});

Deno.test("json_object is any object, and a reply that is cut off says so", async () => {
  await using server = await serving();
  const { json } = await server.post("/v1/chat/completions", {
    ...CHAT,
    max_tokens: 3,
    response_format: { type: "json_object" },
  });
  const [{ message, finish_reason }] = json.choices;
  assert(message.content.startsWith("{"), message.content);
  assertEquals(finish_reason, "length");
});

Deno.test("a schema that cannot be followed is refused, with its keyword", async () => {
  await using server = await serving();
  const chat = (schema: Json) =>
    server.post("/v1/chat/completions", {
      ...CHAT,
      response_format: {
        type: "json_schema",
        json_schema: { name: "x", schema },
      },
    });
  const refused = await chat({ type: "array", uniqueItems: true });
  assertEquals(refused.status, 400);
  const { param, message } = refused.json.error;
  assertEquals(param, "response_format.json_schema.schema");
  assert(message.includes("uniqueItems at #"), message);
  assertEquals((await chat({ type: "nothing" })).status, 400);
  assertEquals((await chat(1)).status, 400);
  const cases: [path: string, body: Json, param: string][] = [
    ["chat/completions", { response_format: {} }, "response_format.type"],
    [
      "chat/completions",
      { response_format: { type: "xml" } },
      "response_format.type",
    ],
    [
      "chat/completions",
      { response_format: { type: "json_schema" } },
      "response_format.json_schema",
    ],
    [
      "responses",
      { text: { format: { type: "json_schema", name: "x" } } },
      "text.format.schema",
    ],
    [
      "responses",
      {
        text: {
          format: { type: "json_schema", schema: { not: { type: "null" } } },
        },
      },
      "text.format.schema",
    ],
  ];
  for (const [path, body, param] of cases) {
    const prompt = path === "responses" ? { input: USER } : { messages: USER };
    const answer = await server.post(`/v1/${path}`, { ...prompt, ...body });
    assertEquals([answer.status, answer.json.error.param], [400, param]);
  }
});

Deno.test("a schema that turns out to be too much is the request's fault", async () => {
  await using server = await serving();
  const [open] = server.qwen.tokenizer.encode("[", { addSpecialTokens: false });
  const items = { $ref: "#/$defs/list" };
  const list = {
    anyOf: [1, 2, 3].map((maxItems) => ({ type: "array", items, maxItems })),
  };
  const body = {
    ...CHAT,
    logit_bias: { [open]: 100 },
    response_format: {
      type: "json_schema",
      json_schema: { name: "deep", schema: { ...items, $defs: { list } } },
    },
  };
  const path = "/v1/chat/completions";
  const { status, json } = await server.post(path, body);
  const { message, type, param } = json.error;
  assertEquals([status, type, param], [
    400,
    "invalid_request_error",
    "response_format",
  ]);
  assert(message.includes("anyOf at # leaves more than 10000 ways"), message);
  const events = await server.stream(path, { ...body, stream: true });
  assertEquals(JSON.parse(events.at(-1)!), json);
  assertEquals(await server.metric("running"), 0);
});

Deno.test("a function is called if it must be, whole and in a stream", async () => {
  await using server = await serving({ chatTemplate: CHAT_TEMPLATE });
  const named = (name: string) => ({ type: "function", function: { name } });
  for (
    const [choice, names] of [
      ["required", ["get_weather", "get_time"]],
      [named("get_weather"), ["get_weather"]],
      [named("get_time"), ["get_time"]],
    ] as const
  ) {
    const ask = { ...CHAT, tools: TOOLS, tool_choice: choice };
    const { json } = await server.post("/v1/chat/completions", ask);
    const [{ message, finish_reason }] = json.choices;
    assertEquals([message.content, finish_reason], [null, "tool_calls"]);
    const [{ function: called, id }] = message.tool_calls;
    assert(names.includes(called.name as never), called.name);
    assert(id.startsWith("call_"));
    const args = JSON.parse(called.arguments);
    if (called.name === "get_time") assertEquals(args, {});
    else assert(["Oslo", "Rome"].includes(args.city), called.arguments);
    const events = await server.stream("/v1/chat/completions", {
      ...ask,
      stream: true,
    });
    events.pop();
    const chunks = events.map((data) => JSON.parse(data).choices[0]);
    const calls = chunks.flatMap(({ delta }) => delta.tool_calls ?? []);
    assertEquals(calls[0].function.name, called.name);
    assertEquals(calls[1].function.arguments, called.arguments);
    assert(chunks.every(({ delta }) => !delta.content));
    assertEquals(chunks.at(-1).finish_reason, "tool_calls");
  }
  const { json } = await server.post("/v1/responses", {
    input: USER,
    temperature: 0,
    tools: TOOLS.map(({ type, function: rest }) => ({ type, ...rest })),
    tool_choice: { type: "function", name: "get_weather" },
  });
  assertEquals(json.output.map(({ type }: Json) => type), ["function_call"]);
  const cut = await server.post("/v1/chat/completions", {
    ...CHAT,
    tools: TOOLS,
    tool_choice: "required",
    max_tokens: 2,
  });
  const [{ message, finish_reason }] = cut.json.choices;
  assertEquals([message.content, message.tool_calls, finish_reason], [
    "",
    undefined,
    "length",
  ]);
});

Deno.test("a choice of functions that cannot be is refused", async () => {
  await using server = await serving({ chatTemplate: CHAT_TEMPLATE });
  const unsure = {
    type: "function",
    function: { name: "f", parameters: { not: { type: "null" } } },
  };
  for (
    const [more, param] of [
      [{ tool_choice: "required" }, "tool_choice"],
      [
        { tool_choice: { type: "function", function: { name: "f" } } },
        "tool_choice",
      ],
      [{ tools: TOOLS, tool_choice: {} }, "tool_choice"],
      [{ tools: TOOLS, tool_choice: "maybe" }, "tool_choice"],
      [{ tools: [unsure], tool_choice: "required" }, "tools"],
    ] as const
  ) {
    const body = { ...CHAT, ...more };
    const { status, json } = await server.post("/v1/chat/completions", body);
    assertEquals([status, json.error.param], [400, param]);
  }
});

/** A function as openai's zod helpers send it, strict. */
const WEATHER = zodFunction({
  name: "get_weather",
  parameters: z.object({
    city: z.enum(["Oslo", "Rome"]),
    days: z.number().int().min(1).max(9),
  }),
});
const CALLS =
  '<think>Rain?</think>Well:<tool_call>{"name":"get_weather","arguments":{"city":"Paris","days":30}}';

Deno.test("a strict function is called with what its schema allows, if the model calls it", async () => {
  await using checkpoint = await qwen3Script(CALLS);
  await using server = await serving({ model: checkpoint.path });
  const client = new OpenAI({
    baseURL: `${server.url}/v1`,
    apiKey: "none",
    maxRetries: 0,
  });
  const request = {
    model: MODEL,
    messages: USER,
    max_tokens: 90,
    parallel_tool_calls: false,
    tools: [WEATHER],
  };
  const callIn = (message: { tool_calls?: readonly Json[] }): Json =>
    message.tool_calls![0].function;
  const { choices: [{ message }] } = await client.chat.completions.parse(
    request,
  );
  assertEquals(message.content, "Well:");
  const called = callIn(message), args = called.parsed_arguments;
  assertEquals([called.name, args.city.length], ["get_weather", 4]);
  assert(args.days >= 1 && args.days <= 9, called.arguments);
  const stream = client.chat.completions.stream(request);
  const last = await stream.finalChatCompletion();
  assertEquals(callIn(last.choices[0].message).arguments, called.arguments);
});

Deno.test("no function is called where none may be", async () => {
  await using checkpoint = await qwen3Script(`${CALLS}</tool_call>`);
  await using server = await serving({ model: checkpoint.path });
  const most = 40, temperature = 0;
  for (const choice of ["auto", "none"]) {
    const called = choice === "auto";
    const { json } = await server.post("/v1/chat/completions", {
      messages: USER,
      tools: TOOLS,
      tool_choice: choice,
      temperature,
      max_tokens: most,
      logit_bias: { 1: -1 },
    });
    const [{ message, finish_reason }] = json.choices;
    assertEquals("tool_calls" in message, called);
    assertEquals(finish_reason === "tool_calls", called);
    const { json: response } = await server.post("/v1/responses", {
      input: USER,
      tools: TOOLS.map(({ type, function: given }) => ({ type, ...given })),
      tool_choice: choice,
      temperature,
      max_output_tokens: most,
    });
    const types = response.output.map(({ type }: Json) => type);
    assertEquals(types.includes("function_call"), called);
  }
});

Deno.test("a strict function is refused where its arguments cannot be guaranteed", async () => {
  const tool = (parameters: Json) => ({
    type: "function",
    function: { name: "f", strict: true, parameters },
  });
  await using server = await serving({ chatTemplate: CHAT_TEMPLATE });
  const xml = `${CHAT_TEMPLATE}{# <function=NAME> #}`;
  await using coder = await serving({ chatTemplate: xml });
  for (
    const [one, parameters, problem] of [
      [server, { not: { type: "null" } }, 'strict function "f": not at #'],
      [coder, { type: "object" }, "calls written as XML"],
    ] as const
  ) {
    for (const path of ["chat/completions", "responses"]) {
      const { type, function: called } = tool(parameters);
      const ask = path === "responses"
        ? { input: USER, tools: [{ type, ...called }] }
        : { messages: USER, tools: [tool(parameters)] };
      const { status, json } = await one.post(`/v1/${path}`, ask);
      assertEquals([status, json.error.param], [400, "tools"]);
      assert(json.error.message.includes(problem), json.error.message);
    }
  }
});
