/**
 * Damaged requests: each is answered or refused in OpenAI's form, none takes a slot for good.
 * `deno task test --inputs 10000 tests/server/fuzz_test.ts` tries more than 500.
 */
import { assert, assertEquals } from "@std/assert";
import { loadQwen3, Server } from "../../mod.ts";
import { damage, damageText, type Tree, write } from "../fuzz/json.ts";
import { type Random, randomTest } from "../support/random.ts";
import { eventsOf, type Json, until } from "../support/serving.ts";

const INPUTS = Number(Deno.env.get("QWEN3_TEST_INPUTS") ?? 500);
/** Requests at once; more than there are slots. */
const TOGETHER = 4;
/** What a client may be told; 500 is a fault. */
const STATUSES = [200, 400, 404, 408, 413, 429, 499, 504];
const MOST = 2000;

const CALL = {
  type: "function",
  id: "call_1",
  function: { name: "f", arguments: '{"n":1}' },
};
const SAMPLING = {
  temperature: 0.7,
  top_p: 0.9,
  top_k: 20,
  min_p: 0.1,
  repetition_penalty: 1.1,
  seed: 7,
  stop: ["x", "y"],
  stream: false,
  model: "m",
  user: "me",
};
/** Requests that are right, or nearly, by path. */
const BODIES: Record<string, Json> = {
  "/v1/completions": {
    ...SAMPLING,
    prompt: ["Once upon", [5, 6, 7]],
    max_tokens: 3,
    n: 2,
    ignore_eos: true,
    return_token_ids: true,
    stream_options: null,
    presence_penalty: 0.5,
    logit_bias: { 5: -100 },
    logprobs: 2,
  },
  "/v1/chat/completions": {
    ...SAMPLING,
    messages: [
      { role: "system", content: "A tale." },
      { role: "user", content: [{ type: "text", text: "Once" }] },
      { role: "assistant", content: "upon", tool_calls: null },
      { role: "user", content: "a time" },
    ],
    max_completion_tokens: 3,
    logprobs: true,
    top_logprobs: 2,
    tools: [{
      type: "function",
      function: {
        name: "f",
        parameters: { properties: { n: { type: "integer" } } },
      },
    }],
    tool_choice: "required",
    response_format: {
      type: "json_schema",
      json_schema: {
        name: "x",
        schema: {
          type: "object",
          properties: {
            a: { type: "integer", minimum: 1, maximum: 9 },
            b: { anyOf: [{ enum: ["x", "y"] }, { $ref: "#/$defs/c" }] },
          },
          required: ["a"],
          $defs: { c: { type: "string", pattern: "^[a-z]+$", maxLength: 4 } },
        },
      },
    },
    chat_template_kwargs: {},
    reasoning_effort: "low",
    parallel_tool_calls: false,
  },
  "/v1/responses": {
    model: "m",
    instructions: "A tale.",
    input: [
      { role: "user", content: [{ type: "input_text", text: "Once" }] },
      {
        type: "message",
        role: "assistant",
        content: [{ type: "output_text", text: "upon", annotations: [] }],
      },
      { type: "message", role: "user", content: "a time" },
    ],
    max_output_tokens: 3,
    tools: [],
    text: { format: { type: "text" } },
    reasoning: { effort: "low", summary: "auto" },
    include: [],
    store: true,
  },
  "/v1/embeddings": {
    input: ["A dog.", "It rained."],
    dimensions: 8,
    encoding_format: "float",
  },
  "/tokenize": { prompt: "Once", messages: [{ role: "user", content: "Hi" }] },
};
/** A template with a place for functions, which the story model's own has not. */
const CHAT_TEMPLATE =
  "{{ tools | tojson if tools else '' }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endfor %}";
const NAMES = [
  ...Object.values(BODIES).flatMap((body) => Object.keys(body)),
  ...["n", "stream", "messages", "prompt", "input", "tool_calls", "logprobs"],
];

/** A damaged request. */
function damaged(random: Random): { path: string; body: Uint8Array } {
  const path = random.pick(Object.keys(BODIES));
  const tree: Tree = structuredClone(BODIES[path]);
  const fields = tree as Record<string, Tree>;
  if (random.int(0, 2) === 0) {
    fields.stream = true;
    fields.stream_options = { include_usage: true };
  }
  // What demands JSON is left out of most.
  for (const name of ["stop", "tool_choice", "response_format", "logprobs"]) {
    if (random.int(0, 1) === 0) delete fields[name];
  }
  if (random.int(0, 9) === 0 && "messages" in fields) {
    fields.messages = [
      { role: "user", content: "Hi" },
      { role: "assistant", content: null, tool_calls: [CALL] },
      { role: "tool", tool_call_id: "call_1", content: "1" },
    ];
  }
  for (let n = random.int(0, 3); n > 0; n--) damage(tree, random, NAMES);
  let text = write(tree);
  if (random.int(0, 9) === 0) text = damageText(text, random);
  const body = new TextEncoder().encode(text);
  if (random.int(0, 9) === 0 && body.length > 0) {
    body[random.int(0, body.length - 1)] = random.int(0, 255);
  }
  return { path, body };
}

/** Checks an answer, or leaves in the middle of it; returns its status. */
async function check(server: Server, random: Random): Promise<number> {
  const { path, body } = damaged(random);
  const what = `${path} ${new TextDecoder().decode(body).slice(0, 2000)}`;
  const client = new AbortController();
  const leaves = random.int(0, 5) === 0;
  if (leaves) setTimeout(() => client.abort(), random.int(0, 20));
  const response = await server.fetch(
    new Request(`http://localhost${path}`, {
      method: "POST",
      body: body as Uint8Array<ArrayBuffer>,
      signal: client.signal,
    }),
  );
  const { status } = response;
  const isStream = response.headers.get("content-type")?.includes("event-");
  if (isStream && leaves) {
    await response.body!.cancel();
    return status;
  }
  let text: string;
  try {
    text = await response.text();
  } catch (error) {
    assert(leaves && client.signal.aborted, `${error} for ${what}`);
    return status;
  }
  assert(STATUSES.includes(status), `${status} for ${what}: ${text}`);
  if (isStream) {
    const last = eventsOf(text).at(-1) ?? text;
    assert(/^\[DONE\]$|"error"|response\.(com|incom)/.test(last), last);
    return status;
  }
  const json = JSON.parse(text);
  if (status === 200) return status;
  const { message, type, param, code } = json.error;
  assertEquals(Object.keys(json.error).length, 4);
  assert(/^Cannot /.test(message), `${message} for ${what}`);
  assert(message.length < MOST && !message.includes("\n"), message);
  assertEquals(typeof type, "string");
  for (const one of [param, code]) {
    assert(one === null || typeof one === "string", `${one}`);
  }
  return status;
}

randomTest(
  `${INPUTS} damaged requests take no slot for good`,
  async (random) => {
    using qwen = await loadQwen3(undefined, {
      device: "cpu",
      threads: 1,
      context: 96,
    });
    const errors: string[] = [], statuses: number[] = [];
    const server = new Server({
      queue: 60,
      seconds: 20,
      bodyBytes: 1 << 16,
      onError: (line) => errors.push(line),
    });
    using engine = await qwen.engine({ slots: 2 });
    const names = ["m"], chatTemplate = CHAT_TEMPLATE;
    server.serve({ qwen, engine, names, chatTemplate });
    const metrics = async () =>
      await (await server.fetch(new Request("http://localhost/metrics")))
        .text();
    for (let done = 0; done < INPUTS; done += TOGETHER) {
      const some = await Promise.all(
        Array.from({ length: TOGETHER }, () => check(server, random)),
      );
      statuses.push(...some);
    }
    for (const status of [200, 400]) { // 15 and 70 in a hundred
      const count = statuses.filter((one) => one === status).length;
      assert(count > INPUTS / 20, `${count} have status ${status}`);
    }
    await until(async () =>
      /^qwen3_running 0$/m.test(await metrics()) &&
      /^qwen3_waiting 0$/m.test(await metrics())
    );
    assertEquals(errors, []);
    const response = await server.fetch(
      new Request("http://localhost/v1/completions", {
        method: "POST",
        body: JSON.stringify({
          prompt: "Once upon a time",
          temperature: 0,
          max_tokens: 8,
        }),
      }),
    );
    const { choices: [{ text }] } = await response.json();
    assertEquals(text, ", there was a little girl named Lily");
  },
);
