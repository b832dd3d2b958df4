/** Messages as clients send them, in the form that chat templates read. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  type Message,
  readConversation,
  readTools,
} from "../../lib/text/conversation.ts";

/** Messages as templates read them. */
function read(...messages: unknown[]) {
  return readConversation(messages).map(({ message }) => message);
}

const F = {
  type: "function" as const,
  id: "1",
  function: { name: "f", arguments: '{"a":1}' },
};

Deno.test("content is text or a list of parts", () => {
  const contents: [content: unknown, text: string][] = [
    ["a", "a"],
    [" \n", " \n"],
    ["a\0b", "a\0b"],
    ["", ""],
    [[], ""],
    [[{ type: "text", text: "a" }], "a"],
    [[{ type: "text", text: "a" }, { type: "text", text: " b\n" }], "a\n b\n"],
    [[{ type: "input_text", text: "a" }], "a"],
    [[{ type: "output_text", text: "a", annotations: [] }], "a"],
  ];
  for (const role of ["system", "user", "assistant", "tool"]) {
    for (const [content, text] of contents) {
      assertEquals(read({ role, content }), [{ role, content: text }]);
    }
  }
  // Null and missing content need something else to say.
  for (const content of [null, undefined]) {
    assertEquals(read({ role: "assistant", content, reasoning: "r" }), [
      { role: "assistant", content: "", reasoning_content: "r" },
    ]);
  }
  assertEquals(read({ role: "developer", content: "a" }), [
    { role: "system", content: "a" },
  ]);
});

Deno.test("messages of OpenAI's clients", () => {
  // As the API returns it: what it has no value for is null or empty.
  assertEquals(
    read({
      role: "assistant",
      content: null,
      refusal: null,
      annotations: [],
      audio: null,
      function_call: null,
      reasoning_content: null,
      tool_calls: [{ ...F, index: 0 }],
    }, { role: "tool", tool_call_id: "1", content: "r" }),
    [
      { role: "assistant", content: "", tool_calls: [F] },
      { role: "tool", content: "r", tool_call_id: "1" },
    ],
  );
  assertEquals(
    read({
      role: "assistant",
      content: "a",
      reasoning_content: "t",
      tool_calls: [],
    }),
    [{ role: "assistant", content: "a", reasoning_content: "t" }],
  );
  // An object is passed on as it is, a missing one is empty.
  const args = { b: 1, a: { c: [] } };
  for (
    const [given, passed] of [
      [args, args],
      ['{"a": 1.0}', '{"a": 1.0}'],
      [undefined, {}],
      [null, {}],
      ["", {}],
    ]
  ) {
    const [{ tool_calls: [call] = [] }] = read({
      role: "assistant",
      tool_calls: [{ function: { name: "f", arguments: given } }],
    });
    assertEquals(call, { function: { name: "f", arguments: passed } } as never);
  }
});

Deno.test("messages of Vercel's AI SDK", () => {
  assertEquals(
    read(
      { role: "system", content: "s" },
      { role: "user", content: [{ type: "text", text: "q" }] },
      {
        role: "assistant",
        content: [
          { type: "reasoning", text: "t" },
          { type: "text", text: "a" },
          {
            type: "tool-call",
            toolCallId: "1",
            toolName: "f",
            input: { a: 1 },
          },
          { type: "tool-call", toolCallId: "2", toolName: "g", args: "{}" },
        ],
      },
      {
        role: "tool",
        content: [
          {
            type: "tool-result",
            toolCallId: "1",
            toolName: "f",
            output: { type: "json", value: { t: 3 } },
          },
          {
            type: "tool-result",
            toolCallId: "2",
            toolName: "g",
            result: "r",
            isError: false,
          },
        ],
      },
    ),
    [
      { role: "system", content: "s" },
      { role: "user", content: "q" },
      {
        role: "assistant",
        content: "a",
        reasoning_content: "t",
        tool_calls: [
          {
            type: "function",
            id: "1",
            function: { name: "f", arguments: { a: 1 } },
          },
          {
            type: "function",
            id: "2",
            function: { name: "g", arguments: "{}" },
          },
        ],
      },
      { role: "tool", content: '{"t":3}', tool_call_id: "1", name: "f" },
      { role: "tool", content: "r", tool_call_id: "2", name: "g" },
    ],
  );
  const outputs: [output: unknown, text: string][] = [
    [{ type: "text", value: "r" }, "r"],
    [{ type: "error-text", value: "no" }, "no"],
    [{ type: "json", value: null }, "null"],
    [{ type: "json", value: undefined }, "null"],
    [{ type: "json", value: "r" }, '"r"'],
    [{ type: "error-json", value: [1] }, "[1]"],
    [{ type: "content", value: [{ type: "text", text: "r" }] }, "r"],
    [{ type: "execution-denied" }, "The call was denied."],
    [{ type: "execution-denied", reason: "no" }, "no"],
  ];
  const result = { type: "tool-result", toolCallId: "1", toolName: "f" };
  for (const [output, text] of outputs) {
    const [{ content }] = read({
      role: "tool",
      content: [{ ...result, output }],
    });
    assertEquals(content, text);
  }
  for (
    const [value, text] of [[{ a: 1 }, '{"a":1}'], [null, "null"], [
      undefined,
      "null",
    ], [3, "3"]]
  ) {
    const [{ content }] = read({
      role: "tool",
      content: [{ ...result, result: value }],
    });
    assertEquals(content, text as string);
  }
});

Deno.test("reasoning has two names", () => {
  const expected = [{
    role: "assistant",
    content: "a",
    reasoning_content: "t",
  }];
  for (
    const given of [
      { reasoning: "t" },
      { reasoning: "t", reasoning_content: null },
      { reasoning: null, reasoning_content: "t" },
      { reasoning: "t", reasoning_content: "t" },
    ]
  ) {
    assertEquals(read({ role: "assistant", content: "a", ...given }), expected);
  }
});

Deno.test("what clients keep for themselves is passed over", () => {
  const options = { openai: { itemId: "msg_1" } };
  const cached = { cache_control: { type: "ephemeral" } };
  assertEquals(
    read(
      { role: "system", content: "s", providerOptions: options, ...cached },
      {
        role: "user",
        content: [
          { type: "text", text: "q", providerOptions: options, ...cached },
        ],
      },
      {
        id: "msg_1",
        type: "message",
        status: "completed",
        role: "assistant",
        content: [{ type: "output_text", text: "a", logprobs: [] }],
      },
      {
        role: "assistant",
        content: '{"n": 1}',
        parsed: { n: 1 },
        tool_calls: [{
          ...F,
          function: { ...F.function, parsed_arguments: { a: 1 } },
        }],
      },
      {
        role: "assistant",
        content: [{
          type: "tool-call",
          toolCallId: "1",
          toolName: "f",
          input: {},
          providerExecuted: true,
          providerOptions: options,
        }],
      },
    ),
    [
      { role: "system", content: "s" },
      { role: "user", content: "q" },
      { role: "assistant", content: "a", id: "msg_1", type: "message" },
      { role: "assistant", content: '{"n": 1}', tool_calls: [F] },
      {
        role: "assistant",
        content: "",
        tool_calls: [
          { type: "function", id: "1", function: { name: "f", arguments: {} } },
        ],
      },
    ],
  );
  // Off, as empty.
  assertEquals(read({ role: "user", content: "q", prefix: false }), [
    { role: "user", content: "q" },
  ]);
});

Deno.test("results are put in the order of their calls", () => {
  const call = (id: string) => ({ ...F, id });
  const result = (id?: string) => ({
    role: "tool",
    tool_call_id: id,
    content: `r${id}`,
  });
  const order = (...results: (string | undefined)[]) =>
    read(
      { role: "assistant", tool_calls: [call("a"), call("b"), call("c")] },
      ...results.map(result),
      { role: "user", content: "q" },
    ).slice(1, -1).map(({ content }) => content);
  assertEquals(order("c", "a", "b"), ["ra", "rb", "rc"]);
  assertEquals(order("c", "a"), ["ra", "rc"]);
  // Without ids that say otherwise the order stays.
  assertEquals(order("c", "x", "a"), ["rc", "rx", "ra"]);
  assertEquals(order("c", undefined, "a"), ["rc", "rundefined", "ra"]);
  assertEquals(order("c", "a", "a"), ["rc", "ra", "ra"]);
});

Deno.test("what would be lost is refused with its location", () => {
  const user = (content: unknown) => [{ role: "user", content }];
  const assistant = (message: object) => [{ role: "assistant", ...message }];
  const result = (part: object) => [{
    role: "tool",
    content: [{ type: "tool-result", toolCallId: "1", toolName: "f", ...part }],
  }];
  const loop: Record<string, unknown> = {};
  loop.loop = loop;
  const refused: [messages: unknown, problem: string][] = [
    [[], "it has 0 messages, must have at least one"],
    ["Hi", 'the messages are "Hi", must be a list'],
    [null, "the messages are null"],
    [[...user("a"), 5], "message 1 is 5, must be an object"],
    // deno-lint-ignore no-sparse-arrays
    [[...user("a"), , ...user("b")], "message 1 is undefined"],
    [
      { role: "user", content: "a" },
      "the prompt is a message, must be a list of messages: wrap it in [ ]",
    ],
    [{ content: "a" }, "the messages are an object, must be a list"],
    [
      [{ role: "bot", content: "a" }],
      'message 0 has the role "bot", must be system, developer, user, assistant or tool (did you mean assistant?)',
    ],
    [
      [{ content: "a" }],
      "message 0 has no role, must be system, developer, user, assistant or tool",
    ],
    [[{ role: null, content: "a" }], "message 0 has the role null"],
    [[{ role: "User", content: "a" }], "did you mean user?"],
    [[{ role: "function", name: "f", content: "a" }], "did you mean tool?"],
    [[{ rol: "user", content: "a" }], 'field "rol"'],
    [[{ rol: "user", content: "a" }], "did you mean role?"],
    [[{ role: "user", text: "a" }], "did you mean content?"],
    [[{ role: "user", contents: "a" }], "did you mean content?"],
    [user(null), "message 0 has no content, must have content"],
    [[{ role: "user" }], "message 0 has no content, must have content"],
    [[{ role: "tool", tool_call_id: "1" }], "message 0 has no content"],
    [[{ role: "user", tool_calls: [] }], "message 0 has no content"],
    [[{ role: "system", reasoning: "" }], "message 0 has no content"],
    [
      assistant({ content: null, tool_calls: null }),
      "message 0 has no content, must have content, reasoning_content, reasoning or tool_calls",
    ],
    [user(5), "message 0's content is 5, must be text, null or a list"],
    [user({ text: "a" }), "message 0's content is an object"],
    [user(["a"]), 'message 0\'s content[0] is "a", must be an object with a'],
    [user([null]), "message 0's content[0] is null"],
    [
      user([{ type: "text", text: "a" }, {
        type: "image_url",
        image_url: { url: "data:" },
      }]),
      'message 0\'s content[1] has the type "image_url", must be text, input_text or output_text in a user message',
    ],
    [user([{ type: "image", image: "a" }]), 'the type "image"'],
    [user([{ type: "input_audio" }]), 'the type "input_audio"'],
    [user([{ type: "file", data: "a" }]), 'the type "file"'],
    [user([{ text: "a" }]), "message 0's content[0] has the type undefined"],
    [user([{ type: "text" }]), "message 0's content[0]'s text is undefined"],
    [user([{ type: "text", text: 5 }]), "content[0]'s text is 5"],
    [
      user([{ type: "text", text: "a", annotations: [{ url: "x" }] }]),
      'message 0\'s content[0] has the field "annotations", must have only type, text, id',
    ],
    [
      assistant({ content: [{ type: "image" }] }),
      'the type "image", must be text, input_text, output_text, reasoning or tool-call in an assistant message',
    ],
    [user([{ type: "tool-call" }]), 'the type "tool-call"'],
    [user("aé\ud800"), "message 0's content has half of a surrogate pair at"],
    [user([{ type: "text", text: "\udc00" }]), "content[0]'s text has half"],
    [
      [{ role: "user", content: "a", images: ["x"] }],
      'message 0 has the field "images", must have only role, content, name,',
    ],
    [[{ role: "user", parts: [{ type: "text" }] }], 'the field "parts"'],
    [
      [{ role: "user", content: "a", tool_calls: [F] }],
      "message 0 is a user message with tool_calls, which only assistant mess",
    ],
    [
      [{ role: "tool", content: "a", reasoning_content: "t" }],
      "message 0 is a tool message with reasoning_content",
    ],
    [[{ role: "user", content: "a", name: 5 }], "message 0's name is 5"],
    [assistant({ refusal: "no" }), 'message 0 has the field "refusal"'],
    [
      assistant({ reasoning_content: "t", reasoning: "u" }),
      "message 0 has reasoning_content and reasoning that differ, must have one of them",
    ],
    [
      [{ role: "user", reasoning: "t" }],
      "message 0 is a user message with reasoning, which only assistant",
    ],
    [assistant({ reasoning_content: 5 }), "message 0's reasoning_content is 5"],
    [assistant({ function_call: F.function }), 'the field "function_call"'],
    [assistant({ tool_calls: "f" }), 'message 0\'s tool_calls is "f", must be'],
    [assistant({ tool_calls: [null] }), "message 0's tool_calls[0] is null"],
    [
      assistant({ tool_calls: [{ type: "custom", custom: {} }] }),
      'message 0\'s tool_calls[0] has the type "custom", must be function',
    ],
    [
      assistant({ tool_calls: [{ id: "1" }] }),
      "tool_calls[0].function is undefined, must be an object with name and arg",
    ],
    [
      assistant({ tool_calls: [{ function: { arguments: {} } }] }),
      "message 0's tool_calls[0].function's name is undefined, must be text",
    ],
    [
      assistant({ tool_calls: [{ function: { name: "" } }] }),
      "message 0's tool_calls[0].function's name is empty",
    ],
    [
      assistant({ tool_calls: [{ function: { name: "f", arguments: [1] } }] }),
      "function's arguments are a list of 1, must be an object or its JSON",
    ],
    [
      assistant({
        tool_calls: [{ function: { name: "f", arguments: { a: [1n] } } }],
      }),
      "function's arguments.a[0] is a bigint, must be a JSON value",
    ],
    [
      assistant({
        tool_calls: [{ function: { name: "f", arguments: { a: NaN } } }],
      }),
      "function's arguments.a is NaN, must be a JSON value",
    ],
    [
      assistant({
        tool_calls: [{ function: { name: "f", arguments: { a: new Set() } } }],
      }),
      "function's arguments.a is a Set, must be a JSON value",
    ],
    [
      assistant({
        tool_calls: [{ function: { name: "f", arguments: loop } }],
      }),
      "nests deeper than 200 levels",
    ],
    [
      assistant({ content: [{ type: "tool-result", toolCallId: "1" }] }),
      'the type "tool-result"',
    ],
    [result({ output: "r" }), 'content[0]\'s output is "r", must be an object'],
    [
      result({ output: { type: "image", value: "r" } }),
      "message 0's content[0]'s output has the type \"image\", must be text, json,",
    ],
    [
      result({ output: { type: "content", value: [{ type: "media" }] } }),
      'the type "media"',
    ],
    [result({ output: { type: "text" } }), "output.value is undefined"],
    [
      [{
        role: "tool",
        content: [
          { type: "text", text: "a" },
          {
            type: "tool-result",
            toolCallId: "1",
            toolName: "f",
            result: "r",
          },
        ],
      }],
      "message 0 has text and tool-result parts, must have one kind",
    ],
  ];
  for (const [messages, problem] of refused) {
    const error = assertThrows(
      () => readConversation(messages),
      Error,
      problem,
    );
    assert(error.message.startsWith("Cannot render a chat: "), error.message);
    assert(error.message.length < 400, error.message);
    assert(!error.message.includes("\n"), error.message);
  }
});

Deno.test("tools are functions with names", () => {
  const tool = { type: "function", function: { name: "f", strict: true } };
  assertEquals(readTools([tool], "Cannot try"), [tool] as never);
  assertEquals(readTools([], "Cannot try"), []);
  const refused: [tools: unknown, problem: string][] = [
    [tool, "tools is an object, must be a list"],
    [null, "tools is null"],
    [[tool, {}], "tools[1] must be like"],
    [[{ name: "f" }], "tools[0] must be like"],
    [[{ type: "function", function: { name: "" } }], "tools[0] must be like"],
    [[{ ...tool, type: "web_search" }], "tools[0] must be like"],
    [
      [{ function: { name: "f", parameters: { a: () => 1 } } }],
      "tools[0].function.parameters.a is a function, must be a JSON value",
    ],
  ];
  for (const [tools, problem] of refused) {
    assertThrows(
      () => readTools(tools, "Cannot try"),
      Error,
      `Cannot try: ${problem}`,
    );
  }
});

Deno.test("the type of messages takes what clients send", () => {
  // Checked by the compiler.
  const messages: Message[] = [
    { role: "developer", content: "s" },
    { role: "user", content: [{ type: "text", text: "q" }] },
    { role: "assistant", content: null, tool_calls: [F] },
    { role: "tool", content: "r", tool_call_id: "1" },
    {
      role: "assistant",
      content: [
        { type: "reasoning", text: "t" },
        { type: "tool-call", toolCallId: "1", toolName: "f", input: {} },
      ],
    },
    {
      role: "tool",
      content: [{
        type: "tool-result",
        toolCallId: "1",
        toolName: "f",
        output: { type: "text", value: "r" },
      }],
    },
  ];
  assertEquals(readConversation(messages).length, messages.length);
});
