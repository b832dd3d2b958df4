/** Completions of texts and of chats with the story model, over HTTP. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { eventsOf, type Json, serving, until } from "../support/serving.ts";
import { LONG, STORY, TEXT } from "../support/story_request.ts";

const MESSAGES = [{ role: "user", content: "Once upon a time" }];
const CHAT = { messages: MESSAGES, temperature: 0, max_tokens: 8 };

Deno.test("a text is continued as generate continues it", async () => {
  await using server = await serving();
  const { status, headers, json } = await server.post("/v1/completions", STORY);
  assertEquals(status, 200);
  assertMatch(headers.get("x-request-id")!, /^req_\w+$/);
  const { id, created, ...rest } = json;
  assertMatch(id, /^cmpl-\w{32}$/);
  assert(Math.abs(created - Date.now() / 1000) < 3600);
  assertEquals(rest, {
    object: "text_completion",
    model: "test-model",
    choices: [{
      index: 0,
      text: TEXT,
      logprobs: null,
      finish_reason: "length",
    }],
    usage: {
      prompt_tokens: 5,
      completion_tokens: 8,
      total_tokens: 13,
      prompt_tokens_details: { cached_tokens: 0 },
      completion_tokens_details: { reasoning_tokens: 0 },
    },
  });
  const own = await server.qwen.generate(STORY.prompt, {
    temperature: 0,
    maxTokens: 8,
  });
  assertEquals(own.text, TEXT);
});

Deno.test("prompts are texts, token ids or lists of them, and have n texts each", async () => {
  await using server = await serving();
  const ids = server.qwen.tokenizer.encode(STORY.prompt);
  const texts = async (more: object) => {
    const { json } = await server.post("/v1/completions", {
      ...STORY,
      ...more,
    });
    assertEquals(
      json.choices.map(({ index }: Json) => index),
      [...json.choices.keys()],
    );
    return {
      texts: json.choices.map(({ text }: Json) => text),
      prompt: json.usage?.prompt_tokens,
    };
  };
  const { json: dog } = await server.post("/v1/completions", {
    ...STORY,
    prompt: "A dog",
  });
  const other = dog.choices[0].text;
  assertEquals(await texts({ prompt: ids }), { texts: [TEXT], prompt: 5 });
  const both = { texts: [TEXT, other], prompt: 5 + dog.usage.prompt_tokens };
  const dogIds = server.qwen.tokenizer.encode("A dog");
  assertEquals(await texts({ prompt: [STORY.prompt, "A dog"] }), both);
  assertEquals(await texts({ prompt: [ids, dogIds] }), both);
  assertEquals(await texts({ prompt: [ids, "A dog"], n: 2 }), {
    texts: [TEXT, TEXT, other, other],
    prompt: both.prompt,
  });
  assertEquals((await texts({ echo: true })).texts, [STORY.prompt + TEXT]);
  assertEquals((await texts({ prompt: ids, echo: true })).texts, [
    "<|endoftext|>" + STORY.prompt + TEXT,
  ]);
});

Deno.test("a seed repeats texts, and each of n has its own", async () => {
  await using server = await serving();
  const ask = async (more: object) => {
    const body = { ...STORY, temperature: 1, max_tokens: 12, ...more };
    const { json } = await server.post("/v1/completions", body);
    return json.choices.map(({ text }: Json) => text);
  };
  const three = await ask({ n: 3, seed: 7 });
  assertEquals(await ask({ n: 3, seed: 7 }), three);
  assertEquals(new Set(three).size, 3);
  assertEquals(await ask({ seed: 8 }), [three[1]]);
  assertEquals(await ask({ seed: 8 - 2 ** 32 }), [three[1]]);
  assertEquals(await ask({ seed: 0 }), await ask({ seed: -(2 ** 40) }));
  // Without a seed it is random; two texts would be the same once in 370 times.
  const long = { n: 4, max_tokens: 60, ignore_eos: true };
  assert((await ask(long)).join() !== (await ask(long)).join());
});

Deno.test("a text ends at its stop string, at its end token, and at max_tokens", async () => {
  await using server = await serving();
  const ask = async (more: object) => {
    const { json } = await server.post("/v1/completions", {
      ...STORY,
      ...more,
    });
    const [{ text, finish_reason }] = json.choices;
    return { text, finish_reason, tokens: json.usage.completion_tokens };
  };
  const stopped = { text: ", there was a ", finish_reason: "stop", tokens: 5 };
  assertEquals(await ask({ stop: "little" }), stopped);
  assertEquals(await ask({ stop: ["xyz", "little"] }), stopped);
  const short = await ask({ max_tokens: null });
  assertEquals([short.tokens, short.finish_reason], [16, "length"]);
  const whole = await ask({ max_tokens: 1000 });
  assertEquals(whole.finish_reason, "stop");
  assert(whole.tokens < 1000);
  const on = await ask({ max_tokens: whole.tokens + 3, ignore_eos: true });
  assertEquals([on.tokens, on.finish_reason], [whole.tokens + 3, "length"]);
});

Deno.test("a stream has the text in pieces, then usage if asked, then [DONE]", async () => {
  await using server = await serving();
  const body = { ...STORY, stream: true, n: 2 };
  const plain = await server.stream("/v1/completions", body);
  assertEquals(plain.pop(), "[DONE]");
  const chunks: Json[] = plain.map((data) => JSON.parse(data));
  assertEquals(new Set(chunks.map(({ id }) => id)).size, 1);
  assert(chunks.every((chunk) => !("usage" in chunk)));
  for (const index of [0, 1]) {
    const own = chunks.map(({ choices: [choice] }) => choice)
      .filter((choice) => choice.index === index);
    assertEquals(own.map(({ text }) => text).join(""), TEXT);
    assert(own.length > 4, `${own.length} chunks`);
    const ends = own.map(({ finish_reason }) => finish_reason);
    assertEquals(ends.pop(), "length");
    assert(ends.every((end) => end === null));
  }
  const counted = await server.stream("/v1/completions", {
    ...body,
    stream_options: { include_usage: true },
  });
  counted.pop();
  const all: Json[] = counted.map((data) => JSON.parse(data));
  const { choices, usage } = all.pop();
  assertEquals(choices, []);
  assertEquals([usage.prompt_tokens, usage.completion_tokens], [5, 16]);
  assert(all.every((chunk) => chunk.usage === null));
});

Deno.test("the story model continues a chat with a template of its own", async () => {
  await using server = await serving();
  const { json } = await server.post("/v1/chat/completions", CHAT);
  assertMatch(json.id, /^chatcmpl-/);
  assertEquals(json.object, "chat.completion");
  assertEquals(json.choices, [{
    index: 0,
    message: { role: "assistant", content: TEXT, refusal: null },
    logprobs: null,
    finish_reason: "length",
  }]);
  const { max_tokens, ...rest } = CHAT;
  const renamed = { ...rest, max_completion_tokens: max_tokens };
  const other = await server.post("/v1/chat/completions", renamed);
  assertEquals(other.json.choices, json.choices);
  const data = await server.stream("/v1/chat/completions", {
    ...CHAT,
    stream: true,
  });
  assertEquals(data.pop(), "[DONE]");
  const choices = data.map((one) => JSON.parse(one).choices[0]);
  assertEquals(choices[0].delta, { role: "assistant", content: "" });
  assertEquals(
    choices.map(({ delta }) => delta.content ?? "").join(""),
    TEXT,
  );
  assertEquals(choices.at(-1).delta, {});
  assertEquals(choices.at(-1).finish_reason, "length");
});

Deno.test("token ids come along if asked", async () => {
  await using server = await serving();
  const prompt = server.qwen.tokenizer.encode(STORY.prompt);
  const own = await server.qwen.generate(STORY.prompt, {
    temperature: 0,
    maxTokens: 8,
  });
  const ask = { return_token_ids: true };
  const text = await server.post("/v1/completions", { ...STORY, ...ask });
  assertEquals(text.json.choices[0].prompt_token_ids, prompt);
  assertEquals(text.json.choices[0].token_ids, own.tokenIds);
  const chat = await server.post("/v1/chat/completions", { ...CHAT, ...ask });
  assertEquals(chat.json.prompt_token_ids, prompt);
  assertEquals(chat.json.choices[0].token_ids, own.tokenIds);
  for (
    const [path, body] of [["completions", STORY], ["chat/completions", CHAT]]
  ) {
    const data = await server.stream(`/v1/${path}`, {
      ...body as object,
      ...ask,
      stream: true,
    });
    data.pop();
    const chunks = data.map((one) => JSON.parse(one));
    const ids = chunks.flatMap(({ choices: [choice] }) => choice.token_ids);
    assertEquals(ids, own.tokenIds);
    const prompts = chunks.map((chunk) =>
      chunk.prompt_token_ids ?? chunk.choices[0].prompt_token_ids
    );
    assertEquals(prompts.filter(Boolean), [prompt]); // in the first only
    assertEquals(prompts[0], prompt);
  }
});

Deno.test("a chat template can be given", async () => {
  const chatTemplate =
    "{{ shout | default('') }}{% for m in messages %}{{ m.content }}{% endfor %}";
  await using server = await serving({ chatTemplate });
  const count = async (more: object) => {
    const body = { ...CHAT, max_tokens: 1, ...more };
    const { status, json } = await server.post("/v1/chat/completions", body);
    return json.usage?.prompt_tokens ?? [status, json.error.param];
  };
  assertEquals(await count({}), 4); // without <|endoftext|>
  const kwargs = { chat_template_kwargs: { shout: "Hey! " } };
  assert(await count(kwargs) > 4);
  for (const name of ["whisper", "shou"]) {
    assertEquals(await count({ chat_template_kwargs: { [name]: 1 } }), [
      400,
      `chat_template_kwargs.${name}`,
    ]);
  }
  const { json } = await server.post("/tokenize", {
    messages: MESSAGES,
    ...kwargs,
  });
  assertEquals(json.count, await count(kwargs));
});

Deno.test("without a chat template, text is completed and a chat is refused", async () => {
  const model = new URL("../fixtures/tiny-tied-bf16/", import.meta.url).href;
  await using server = await serving({ model });
  const text = await server.post("/v1/completions", {
    prompt: [1, 2, 3],
    max_tokens: 4,
    return_token_ids: true,
  });
  assertEquals(text.status, 200);
  assertEquals(text.json.choices[0].token_ids.length, 4);
  // Nor is there a text to repeat, or to stop at.
  for (const [param, value] of [["echo", true], ["stop", "a"]] as const) {
    const { status, json } = await server.post("/v1/completions", {
      prompt: [1, 2, 3],
      max_tokens: 4,
      [param]: value,
    });
    assertEquals([status, json.error.param], [400, param]);
  }
  const chat = await server.post("/v1/chat/completions", CHAT);
  assertEquals([chat.status, chat.json.error], [400, {
    message:
      "Cannot chat: test-model has no chat template; /v1/completions works without, and serve takes one with --chat-template",
    type: "invalid_request_error",
    param: "messages",
    code: "no_chat_template",
  }]);
});

Deno.test("vectors of texts and of token ids come as numbers or base64", async () => {
  await using server = await serving();
  // A batch rounds differently.
  const [vector] = await server.qwen.embed(["A dog."]);
  const both = await server.qwen.embed(["A dog.", "It rained."]);
  const ask = async (body: object) =>
    (await server.post("/v1/embeddings", body)).json;
  const one = await ask({ input: "A dog." });
  assertEquals(one.data[0].embedding.map(Math.fround), [...vector]);
  const tokens = server.qwen.tokenizer.encode("A dog.").length + 1; // the end
  assertEquals(one.usage, { prompt_tokens: tokens, total_tokens: tokens });
  const two = await ask({
    input: ["A dog.", "It rained."],
    encoding_format: "base64",
  });
  const decoded = two.data.map(({ embedding }: Json) =>
    new Float32Array(Uint8Array.fromBase64(embedding).buffer)
  );
  assertEquals(decoded, both);
  const short = await ask({ input: "A dog.", dimensions: 16 });
  assertEquals(short.data[0].embedding.length, 16);
});

Deno.test("a client that goes away frees its slot", async () => {
  await using server = await serving();
  const ways = [[true, 0], [false, 0], [true, 20_000], [
    false,
    20_000,
  ]] as const;
  for (const [stream, more] of ways) {
    const gone = new AbortController();
    const asked = fetch(`${server.url}/v1/completions`, {
      method: "POST",
      // Of a large body, Deno notices later that its sender has gone.
      body: JSON.stringify({ ...LONG, stream }) + " ".repeat(more),
      signal: gone.signal,
    });
    if (stream) {
      const reader = (await asked).body!.getReader();
      await reader.read();
      assertEquals(await server.metric("running"), 1);
      gone.abort();
      await reader.closed.catch(() => {});
    } else {
      await until(async () => await server.metric("running") === 1);
      gone.abort();
      await asked.then((response) => response.text()).catch(() => {});
    }
    const before = await server.metric("tokens_total");
    await until(async () => await server.metric("running") === 0);
    const { status } = await server.post("/v1/completions", STORY);
    assertEquals(status, 200);
    assert(await server.metric("tokens_total") < before + 900);
  }
});

Deno.test("a reader that leaves a stream frees its slot without HTTP too", async () => {
  await using server = await serving();
  const response = await server.server.fetch(
    new Request("http://localhost/v1/completions", {
      method: "POST",
      body: JSON.stringify({ ...LONG, stream: true }),
    }),
  );
  const reader = response.body!.getReader();
  await reader.read();
  await reader.cancel();
  await until(async () => await server.metric("running") === 0);
  assert(await server.metric("tokens_total") < 900);
});

Deno.test("texts wait for their turn, and too many get status 429", async () => {
  await using server = await serving({ options: { queue: 2 }, slots: 1 });
  const ask = () =>
    server.post("/v1/completions", {
      ...STORY,
      max_tokens: 200,
      ignore_eos: true,
    });
  const asked = Array.from({ length: 8 }, ask);
  const answers = await Promise.all(asked);
  const fine = answers.filter(({ status }) => status === 200);
  const refused = answers.filter(({ status }) => status === 429);
  assert(fine.length >= 3, `${fine.length} were answered`);
  assertEquals(fine.length + refused.length, 8);
  assert(refused.length > 0);
  for (const { headers, json } of refused) {
    assert(Number(headers.get("retry-after")) >= 1);
    assertEquals(json.error.code, "rate_limit_exceeded");
  }
  assertEquals(new Set(fine.map(({ json }) => json.choices[0].text)).size, 1);
  assertEquals(await server.metric("waiting"), 0);
});

Deno.test("a request that finds no place is refused before its prompt is encoded", async () => {
  await using server = await serving({ options: { queue: 0 }, slots: 1 });
  const { tokenizer } = server.qwen, { encodeInParts } = tokenizer;
  let encoded = 0;
  tokenizer.encodeInParts = (...given) => {
    encoded++;
    return encodeInParts.apply(tokenizer, given);
  };
  const long = await fetch(server.url + "/v1/completions", {
    method: "POST",
    body: JSON.stringify({ ...LONG, stream: true }),
  });
  assertEquals(encoded, 1);
  const { status } = await server.post("/v1/completions", STORY);
  assertEquals([status, encoded], [429, 1]);
  await long.body?.cancel();
});

Deno.test("a request that takes too long is ended", async () => {
  await using server = await serving({ options: { seconds: 0.05 } });
  const { status, json } = await server.post("/v1/completions", LONG);
  assertEquals([status, json.error.code], [504, "timeout"]);
  const events = await server.stream("/v1/completions", {
    ...LONG,
    stream: true,
  });
  const last = JSON.parse(events.at(-1) ?? "{}");
  assertEquals(last.error?.code, "timeout");
  // Texts that take a second or more.
  const input = Array(200).fill("Once upon a time ".repeat(50));
  const vectors = await server.post("/v1/embeddings", { input });
  assertEquals([vectors.status, vectors.json.error?.code], [504, "timeout"]);
  await until(async () => await server.metric("running") === 0);
});

Deno.test("a server that stops lets texts in progress end", async () => {
  await using server = await serving({ slots: 1 });
  const response = await fetch(`${server.url}/v1/completions`, {
    method: "POST",
    body: JSON.stringify({ ...LONG, stream: true }),
  });
  const waiting = server.post("/v1/completions", STORY);
  await until(async () => await server.metric("waiting") === 1);
  server.server.stop();
  const events = eventsOf(await response.text());
  assertEquals(events.at(-1), "[DONE]");
  assertEquals(JSON.parse(events.at(-2)!).choices[0].finish_reason, "length");
  const refused = await waiting;
  assertEquals([refused.status, refused.json.error.code], [503, "stopping"]);
  assertEquals((await server.post("/v1/completions", STORY)).status, 503);
  assertEquals((await server.get("/health")).json, { status: "stopping" });
});
