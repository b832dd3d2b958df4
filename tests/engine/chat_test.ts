/** Conversations: what they keep, what they run, and what they refuse. */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  type Chat,
  type ChatSettings,
  loadQwen3,
  type Message,
  OptionError,
  type Qwen3,
  type Run,
  type Tool,
} from "../../mod.ts";
import { eachDevice } from "../support/gpu.ts";
import { prompted } from "../support/prompted.ts";
import { scriptedCheckpoint } from "../support/scripted_checkpoint.ts";

const GREEDY = { temperature: 0, maxTokens: 8 };
const story = (device: "cpu" | "gpu" = "cpu", context?: number) =>
  loadQwen3(undefined, { device, context });

/** Awaits a reply; checks that only what was not cached ran, and what runs from scratch give. */
async function checked(chat: Chat, run: Run, alone: Qwen3) {
  using counted = prompted();
  const reply = await run;
  const { promptTokens, cachedTokens, tokens } = reply.stats;
  const steps = reply.stats.summary.includes("threads") ? tokens - 1 : 0;
  assertEquals(counted.tokens - steps, promptTokens - cachedTokens);
  // In a conversation that has run nothing yet, and on a model that holds nothing.
  const before = chat.messages.slice(0, -1);
  const last = before.findLastIndex(({ role }) => role === "user");
  const { system, tools } = chat;
  const fresh = alone.chat({
    messages: before.slice(0, last),
    system,
    tools: tools && [...tools],
  });
  const expected = await fresh.send(before.slice(last), {
    ...GREEDY,
    reuse: false,
  });
  assertEquals(expected.stats.cachedTokens, 0);
  assertEquals(reply.text, expected.text);
  return { reply, ran: promptTokens - cachedTokens, cached: cachedTokens };
}

eachDevice("a turn runs only what is new", async (device) => {
  using qwen = await story(device);
  using alone = await story(device);
  const chat = qwen.chat(GREEDY);
  const first = await checked(chat, chat.send("Once upon a time"), alone);
  assertEquals(first.cached, 0);
  assertEquals(chat.turns, 1);
  assertEquals(chat.messages, [
    { role: "user", content: "Once upon a time" },
    { role: "assistant", content: first.reply.text },
  ]);
  // The last token of the reply has not run, and after it comes the new message.
  const second = await checked(chat, chat.send("She had a cat"), alone);
  const fresh = qwen.tokenizer.encode("\n\nShe had a cat", {
    addSpecialTokens: false,
  });
  assertEquals(second.ran, fresh.length + 1);
  assertEquals(chat.tokens, second.reply.stats.promptTokens + 8);
  // An edit runs from what has changed.
  const edited = await checked(chat, chat.edit(-1, "She had a dog"), alone);
  assert(edited.ran <= 2, `${edited.ran}`);
  assertEquals(chat.turns, 2);
  // Taken back, the first turn is there again.
  assertEquals(chat.undo().map(({ content }) => content), [
    "She had a dog",
    edited.reply.text,
  ]);
  const again = await checked(chat, chat.send("She had a dog"), alone);
  assertEquals(again.ran, 1); // the whole prompt is known
  assertEquals(again.reply.text, edited.reply.text);
});

eachDevice("forks share what they have in common", async (device) => {
  using qwen = await story(device);
  using alone = await story(device);
  const chat = qwen.chat({ ...GREEDY, system: "A tale of two animals." });
  await chat.send("Once upon a time");
  await chat.send("They met a bird");
  const fork = chat.fork(), early = chat.fork(1);
  assertEquals([fork.turns, early.turns], [2, 1]);
  const a = await checked(chat, chat.send("It was blue"), alone);
  const b = await checked(fork, fork.send("It was red"), alone);
  // All but the last words of the other.
  assert(b.ran < a.ran + 4 && b.cached > 20, `${b.ran}, ${b.cached}`);
  const c = await checked(early, early.send("Then it rained"), alone);
  assert(c.cached > 10 && c.cached < b.cached, `${c.cached}`);
  assertEquals([chat.turns, fork.turns, early.turns], [3, 3, 2]);
  assert(chat.messages[4].content !== fork.messages[4].content);
  fork.reset();
  assertEquals([fork.turns, fork.tokens, chat.turns], [0, 0, 3]);
  // Two messages at once are one turn.
  const both = ["A cat", "A dog"].map((content) => ({
    role: "user" as const,
    content,
  }));
  await fork.send(both);
  assertEquals([fork.turns, fork.messages.length], [1, 3]);
});

eachDevice("conversations of an engine go on at a time", async (device) => {
  using qwen = await story(device);
  using alone = await story(device);
  using engine = await qwen.engine({ slots: 4, context: 256 });
  const starts = ["Once upon a time", "A dog ran", "It was raining"];
  const chats = starts.map(() => engine.chat(GREEDY));
  const all = async (send: (chat: Chat, i: number) => Run) =>
    await Promise.all(chats.map(async (chat, i) => await send(chat, i)));
  // Long enough to fill pages, which are what is shared.
  const more = "and they went on and on to see what there was. ".repeat(4);
  await all((chat, i) => chat.send(`${starts[i]} ${more}`));
  const second = await all((chat) => chat.send("Then it snowed"));
  for (const [i, chat] of chats.entries()) {
    const fresh = alone.chat(GREEDY);
    await fresh.send(`${starts[i]} ${more}`, { reuse: false });
    const expected = await fresh.send("Then it snowed", { reuse: false });
    assertEquals(second[i].text, expected.text);
    assertEquals(chat.messages, fresh.messages);
    const { cachedTokens, promptTokens } = second[i].stats;
    assert(
      cachedTokens >= 32 && cachedTokens < promptTokens,
      `${cachedTokens} of ${promptTokens}`,
    );
  }
  const fork = chats[0].fork();
  const [a, b] = await Promise.all([
    (async () => await chats[0].send("Left"))(),
    (async () => await fork.send("Right"))(),
  ]);
  assert(a.stats.cachedTokens >= 32 && b.stats.cachedTokens >= 32);
});

Deno.test("tokens that the tokenizer would not write are kept", async () => {
  using qwen = await story();
  const plain = { addSpecialTokens: false };
  const [e] = qwen.tokenizer.encode("e", plain);
  const chat = qwen.chat({ ...GREEDY, logitBias: { [e]: 100 } });
  const first = await chat.send("Once upon a time, s");
  assertEquals(first.tokenIds, Array(8).fill(e));
  assert(qwen.tokenizer.encode("eeeeeeee", plain).length < 8);
  const next = qwen.tokenizer.encode("\n\nShe", plain);
  for (const one of [chat.fork(), chat]) {
    const { stats } = await one.send("She");
    assertEquals(
      stats.promptTokens,
      first.stats.promptTokens + 8 + next.length,
    );
    assert(stats.cachedTokens >= first.stats.promptTokens + 7);
  }
  // Also the first reply's, once the second has gone.
  const short = chat.fork(1);
  chat.undo();
  assertEquals(chat.tokens, first.stats.promptTokens + 8);
  const asks = [
    () => chat.send("He"),
    () => short.send("He"),
    () => chat.edit(-1, "He"),
  ];
  for (const ask of asks) {
    const { stats } = await ask();
    const he = qwen.tokenizer.encode("\n\nHe", plain).length;
    assertEquals(stats.promptTokens, first.stats.promptTokens + 8 + he);
    assert(stats.cachedTokens >= first.stats.promptTokens + 7);
  }
});

Deno.test("a reply may follow a schema", async () => {
  using qwen = await story();
  const chat = qwen.chat({ ...GREEDY, maxTokens: 40 });
  const schema = {
    type: "object",
    properties: { answer: { enum: ["yes", "no"] } },
    required: ["answer"],
    additionalProperties: false,
  };
  const { text } = await chat.send("Was it raining?", { schema });
  assert(["yes", "no"].includes(JSON.parse(text).answer), text);
  assertEquals(chat.messages[1].content, text);
});

Deno.test("a reply is part of the conversation when it has ended", async () => {
  using qwen = await story();
  const chat = qwen.chat(GREEDY);
  const run = chat.send("Once upon a time");
  assertEquals(chat.messages, []);
  for await (const _ of run) {
    if (run.tokenIds.length < 3) continue;
    for (
      const [action, use] of [
        ["send", () => chat.send("Hi")],
        ["undo", () => chat.undo()],
        ["fork", () => chat.fork()],
        ["edit", () => chat.edit(-1, "Hi")],
      ] as const
    ) {
      assertThrows(
        use,
        Error,
        `Cannot ${action}: the last reply has not ended`,
      );
    }
    await assertRejects(
      () => chat.save("/none"),
      Error,
      "Cannot save: the last",
    );
    break;
  }
  assertEquals(chat.messages[1], { role: "assistant", content: run.text });
  assert(run.text !== "" && run.tokenIds.length === 3);
  // Without a token nothing has happened.
  const signal = AbortSignal.abort();
  await chat.send("And", { signal });
  assertEquals(chat.turns, 1);
  const edited = await chat.edit(0, "A dog", { signal });
  assertEquals(edited.finishReason, "aborted");
  assertEquals(chat.messages[0].content, "Once upon a time");
  // A message that waited while the conversation went on.
  const late = chat.send("Late"), other = chat.send("And then");
  await other;
  await assertRejects(
    async () => await late,
    Error,
    "Cannot send: the conversation has changed since",
  );
  // A reset leaves out the reply in progress.
  const left = chat.send("More");
  for await (const _ of left) if (left.tokenIds.length === 2) chat.reset();
  assertEquals([chat.messages, chat.turns], [[], 0]);
  const next = await chat.send("Once upon a time");
  assertEquals(next.text, ", there was a little girl named Lily");
});

Deno.test("a context that is full refuses, or drops the oldest turns", async () => {
  using qwen = await story("cpu", 96);
  const words = "once there was a little dog who ran and ran";
  const chat = qwen.chat({ ...GREEDY, ignoreEos: true });
  let turns = 0;
  const refused = await assertRejects(
    async () => {
      for (;; turns++) await chat.send(words);
    },
    RangeError,
  );
  assertEquals(
    refused.message.replace(/has \d+ tokens/, "has … tokens"),
    'Cannot send: the conversation has … tokens, the context of 96 has room for no reply; undo turns, or choose onFull "drop"',
  );
  assert(turns > 2);
  assertEquals(chat.turns, turns);
  const notices: string[] = [];
  const dropping = qwen.chat({
    ...GREEDY,
    ignoreEos: true,
    system: "A story.",
    onFull: "drop",
    onNotice: (notice) => notices.push(notice),
  });
  for (let i = 0; i < 3 * turns; i++) {
    const { stats } = await dropping.send(`${words} ${i}`);
    assertEquals(stats.tokens, 8);
  }
  assert(notices.length > 1 && notices.length < 2 * turns, `${notices}`);
  assertEquals(
    notices[0],
    "Dropped the 3 oldest turns (6 messages): the context of 96 tokens was full",
  );
  assert(dropping.turns < turns + 1);
  assertEquals(dropping.messages.at(-2)?.content, `${words} ${3 * turns - 1}`);
  // What cannot fit even alone.
  const long = Array(30).fill(words).join(" ");
  await assertRejects(
    async () => await dropping.send(long),
    RangeError,
    "has room for no reply",
  );
  assert(dropping.turns > 1);
});

/** Qwen3's way: thoughts of earlier turns leave the prompt. */
const TEMPLATE = `{%- set ns = namespace(last=0) -%}
{%- for m in messages -%}{%- if m.role == "user" -%}
{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- if tools %}{{ tools | tojson }}{{ "\\n" }}{% endif -%}
{%- for m in messages -%}
{{- "[" + m.role + "]\\n" -}}
{%- if m.role == "assistant" and m.reasoning_content and loop.index0 > ns.last -%}
{{- "<think>\\n" + m.reasoning_content + "\\n</think>\\n\\n" -}}{%- endif -%}
{{- m.content -}}
{%- for call in m.tool_calls or [] -%}
{{- "<tool_call>\\n" + (call.function | tojson) + "\\n</tool_call>" -}}
{%- endfor -%}
{{- "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "[assistant]\\n" -}}{%- endif -%}`;

const TOOLS: Tool[] = [{ type: "function", function: { name: "f" } }];
const CALL = '{"name": "f", "arguments": {"a": 1}}';

async function scripted(reply: string, settings: ChatSettings = {}) {
  const checkpoint = await scriptedCheckpoint({
    reply,
    template: TEMPLATE,
    special: ["<think>", "</think>", "<tool_call>", "</tool_call>"],
  });
  const qwen = await loadQwen3(checkpoint.path, { device: "cpu" });
  const chat = qwen.chat({ ...settings, maxTokens: 200 });
  return {
    qwen,
    chat,
    async [Symbol.asyncDispose]() {
      qwen[Symbol.dispose]();
      await checkpoint[Symbol.asyncDispose]();
    },
  };
}

Deno.test("thoughts leave the prompt with the next message, and the cache follows", async () => {
  await using model = await scripted("<think>\nHm, 1.\n</think>\n\nSo.");
  const { chat, qwen } = model;
  const first = await chat.send("Hi");
  assertEquals([first.reasoning, first.text], ["Hm, 1.", "So."]);
  assertEquals(chat.messages[1], {
    role: "assistant",
    content: "So.",
    reasoning_content: "Hm, 1.",
  });
  const kept = qwen.tokenizer.encode("[user]\nHi<|im_end|>\n[assistant]\n", {
    addSpecialTokens: false,
  });
  const run = chat.send("And?");
  const { stats } = await run;
  assertEquals(stats.cachedTokens, kept.length);
  const prompt = "[user]\nHi<|im_end|>\n[assistant]\nSo.<|im_end|>\n" +
    "[user]\nAnd?<|im_end|>\n[assistant]\n";
  const whole = qwen.tokenizer.encode(prompt, { addSpecialTokens: false });
  assertEquals(stats.promptTokens, whole.length);
});

Deno.test("results of functions continue the turn, thoughts included", async () => {
  const reply = `<think>\nHm.\n</think>\n\n<tool_call>\n${CALL}\n</tool_call>`;
  await using model = await scripted(reply, { tools: TOOLS });
  const { chat } = model;
  const run = await chat.send("Hi");
  assertEquals(run.toolCalls.length, 1);
  assertEquals(run.finishReason, "tool_calls");
  const tokens = chat.tokens;
  const second = await chat.send([{ role: "tool", content: "4" }]);
  assertEquals(chat.turns, 1);
  assertEquals(chat.messages.map(({ role }) => role), [
    "user",
    "assistant",
    "tool",
    "assistant",
  ]);
  // All that the model has seen and written, except for its last token.
  assertEquals(second.stats.cachedTokens, tokens - 1);
  await chat.send([{
    type: "tool-result",
    toolCallId: "1",
    toolName: "f",
    result: 5,
  }]);
  assertEquals(chat.messages[4].role, "tool");
  assertEquals(chat.turns, 1);
  assertEquals(chat.undo().length, 6);
});

Deno.test("a chat says what is wrong", async () => {
  using qwen = await story();
  const chat = qwen.chat(GREEDY);
  const wrong: [run: () => unknown, message: string][] = [
    [() => chat.send(""), "Cannot send: the message is empty"],
    [() => chat.send([]), "Cannot send: the message has no parts"],
    [
      () => chat.send(5 as unknown as string),
      "Cannot send: the message is 5, must be text, a list of parts or a list of messages",
    ],
    [
      () => chat.send(["Hi"] as unknown as Message[]),
      'Cannot send: item 0 is "Hi", must be a part or a message',
    ],
    [
      () => chat.send([{ role: "tool", content: "4" }]),
      "Cannot render a chat: message 0 (tool) has content, which the chat template does not print",
    ],
    [
      () => chat.undo(),
      "Cannot undo: the number of turns is 1, the conversation has 0",
    ],
    [
      () => qwen.chat({ sytem: "s" } as ChatSettings),
      "Cannot chat: the option sytem is unknown, did you mean system?",
    ],
    [
      () => qwen.chat({ onful: "drop" } as ChatSettings),
      "Cannot chat: the option onful is unknown, did you mean onFull?",
    ],
    [
      () => qwen.chat({ maxTokens: 0 }),
      "Cannot chat: maxTokens is 0, must be an integer of at least 1",
    ],
    [
      () => chat.undo(0),
      "Cannot undo: the number of turns is 0, must be at least 1",
    ],
    [
      () => chat.edit(2, "Hi"),
      "Cannot edit: there is no turn 2, the conversation has 0",
    ],
    [
      () => chat.send("Hi", { system: "s" } as ChatSettings),
      "Cannot send: system is given, must be set on the chat: chat.system = …",
    ],
    [
      () => chat.send("Hi", { raw: true } as ChatSettings),
      "Cannot send: raw is given, must be left out",
    ],
    [
      () => qwen.chat({ onFull: "forget" as "drop" }),
      'Cannot chat: onFull is "forget", must be refuse or drop',
    ],
    [
      () => qwen.chat({ raw: true } as ChatSettings),
      "Cannot chat: raw is given, must be left out",
    ],
    [
      () => qwen.chat({ temperature: -1 }),
      "temperature is -1",
    ],
    [
      () => chat.send("Hi", { maxTokens: 0 }),
      "maxTokens is 0, must be an integer of at least 1",
    ],
  ];
  for (const [run, message] of wrong) assertThrows(run, Error, message);
  assertThrows(() => qwen.chat({ onFull: "x" as "drop" }), OptionError);
  assertEquals(chat.messages, []);
  await using plain = await scriptedCheckpoint({ reply: "Hi" });
  using base = await loadQwen3(plain.path, { device: "cpu" });
  assertThrows(
    () => base.chat(),
    Error,
    `Cannot chat: ${plain.path} has no chat template, the option chatTemplate can give one`,
  );
  const given = base.chat({ chatTemplate: "{{ messages[0].content }}\n" });
  assertEquals(given.turns, 0);
});
