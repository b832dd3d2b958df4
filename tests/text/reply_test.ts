/** Replies separated into text, reasoning and calls, however they are divided. */
import { assert, assertEquals } from "@std/assert";
import { type ReplyFormat, ReplyStream } from "../../lib/text/reply.ts";
import type { ToolCall } from "../../lib/text/conversation.ts";
import { randomTest, uniform } from "../support/random.ts";

interface Outcome {
  text: string;
  reasoning: string;
  /** The text of each call, as the model wrote it. */
  tools: string[];
  calls: [name: string, args: ToolCall["function"]["arguments"]][];
}

/** Separates a reply that comes in `pieces`. */
function separate(
  pieces: string[],
  format?: ReplyFormat,
  how?: Parameters<ReplyStream["end"]>[0],
): Outcome {
  const stream = new ReplyStream(format);
  const outcome: Outcome = { text: "", reasoning: "", tools: [], calls: [] };
  const all = pieces.flatMap((piece) => stream.push(piece));
  for (const { kind, text } of [...all, ...stream.end(how)]) {
    assert(text !== "");
    if (kind === "tool") outcome.tools.push(text);
    else outcome[kind] += text;
  }
  outcome.calls = stream.toolCalls.map(({ type, function: called }) => {
    assertEquals(type, "function");
    return [called.name, called.arguments];
  });
  return outcome;
}

const F = '{"name": "f", "arguments": {"a": 1}}';
const G = '{"name": "g", "arguments": {}}';
const CALL_F = `<tool_call>\n${F}\n</tool_call>`;
const CALL_G = `<tool_call>\n${G}\n</tool_call>`;

interface Case extends Partial<Outcome> {
  reply: string;
  format?: ReplyFormat;
}

const THINKING = { thinking: true };

const CASES: Case[] = [
  { reply: "" },
  { reply: "Hello!\n", text: "Hello!\n" },
  { reply: "\n\n  Hello", text: "\n\n  Hello" },
  { reply: " \n", text: " \n" },
  { reply: "a < b <tool> </think", text: "a < b <tool> </think" },
  // Reasoning.
  {
    reply: "<think>\nHm.\n</think>\n\nHello!",
    reasoning: "Hm.",
    text: "Hello!",
  },
  {
    reply: "\n<think>\n\n  1.\n\n  2.  \n\n</think>\n\n    x += 1\n",
    reasoning: "  1.\n\n  2.  ",
    text: "    x += 1\n",
  },
  { reply: "<think>\n\n</think>\n\nHello!", text: "Hello!" },
  { reply: "<think></think>Hello!", text: "Hello!" },
  { reply: "<think>Hm.", reasoning: "Hm." },
  { reply: "<think>a</think>", reasoning: "a" },
  { reply: "<think>a</think>\n\n", reasoning: "a" },
  {
    reply: "<think>a</think>\n<think>\nb\n</think>c",
    reasoning: "a\nb",
    text: "c",
  },
  {
    reply: "<think>a<think>b</think>c</think>d",
    reasoning: "a<think>b",
    text: "c</think>d",
  },
  { reply: "Use <think>.</think>", text: "Use <think>.</think>" },
  { reply: "Hi</think>there", text: "Hi</think>there" },
  { reply: "</think>\n\nHi", text: "</think>\n\nHi" },
  {
    reply: `<think>${CALL_F}</think>no`,
    reasoning: CALL_F,
    text: "no",
  },
  { reply: `<think>${CALL_F}`, reasoning: CALL_F },
  // The prompt ends with <think>.
  {
    reply: "Hm.\n</think>\n\nHello!",
    format: THINKING,
    reasoning: "Hm.",
    text: "Hello!",
  },
  {
    reply: "\n<think>\nHm.\n</think>\n\nHello!",
    format: THINKING,
    reasoning: "Hm.",
    text: "Hello!",
  },
  { reply: "</think>Hello!", format: THINKING, text: "Hello!" },
  { reply: "Hm. <", format: THINKING, reasoning: "Hm. <" },
  {
    reply: `a\n</think>\n\n${CALL_F}`,
    format: THINKING,
    reasoning: "a",
    tools: [F],
    calls: [["f", { a: 1 }]],
  },
  // Calls.
  { reply: CALL_F, tools: [F], calls: [["f", { a: 1 }]] },
  {
    reply: `Let me look. \n\n${CALL_F}\n${CALL_G}\n`,
    text: "Let me look.",
    tools: [F, G],
    calls: [["f", { a: 1 }], ["g", {}]],
  },
  {
    reply: `\n\n${CALL_F}${CALL_G}`,
    tools: [F, G],
    calls: [["f", { a: 1 }], ["g", {}]],
  },
  {
    reply: `<think>\nHm.\n</think>\n\nOne\n${CALL_F}\n\n  two\n${CALL_G}three`,
    reasoning: "Hm.",
    text: "One\n  two\nthree",
    tools: [F, G],
    calls: [["f", { a: 1 }], ["g", {}]],
  },
  {
    reply: `${CALL_F}<think>b</think>c`,
    reasoning: "b",
    text: "c",
    tools: [F],
    calls: [["f", { a: 1 }]],
  },
  // A call that ends with the reply.
  {
    reply: `a\n<tool_call>\n${F}\n`,
    text: "a",
    tools: [F],
    calls: [["f", { a: 1 }]],
  },
  // An end inside a string.
  {
    reply:
      '<tool_call>{"name": "f", "arguments": {"a": "\\"</tool_call>"}}</tool_call>b',
    text: "b",
    tools: ['{"name": "f", "arguments": {"a": "\\"</tool_call>"}}'],
    calls: [["f", { a: '"</tool_call>' }]],
  },
  // Not calls.
  { reply: "Use <tool_call> here.", text: "Use <tool_call> here." },
  { reply: "<tool_call>", text: "<tool_call>" },
  { reply: "\n <tool_call>\n<func", text: "\n <tool_call>\n<func" },
  {
    reply: "a <tool_call>\nf(1)\n</tool_call>",
    text: "a <tool_call>\nf(1)\n</tool_call>",
  },
  { reply: "<tool_call>{1}</tool_call>b", text: "<tool_call>{1}</tool_call>b" },
  {
    reply: "<think>a</think>\n\n<tool_call>[]</tool_call>\nb",
    reasoning: "a",
    text: "<tool_call>[]</tool_call>\nb",
  },
  {
    reply: 'a <tool_call>{"name": "f", "argum',
    text: 'a <tool_call>{"name": "f", "argum',
  },
  {
    reply: '<tool_call>{"arguments": {"name": "x"}}</tool_call>',
    text: '<tool_call>{"arguments": {"name": "x"}}</tool_call>',
  },
  {
    reply: '<tool_call>{"name": ""}</tool_call>',
    text: '<tool_call>{"name": ""}</tool_call>',
  },
  // A call that lacks its end before the next.
  {
    reply: `<tool_call>\n${F}\n${CALL_G}`,
    tools: [F, G],
    calls: [["f", { a: 1 }], ["g", {}]],
  },
  {
    reply: `<tool_call>{oh ${CALL_G}`,
    text: "<tool_call>{oh",
    tools: [G],
    calls: [["g", {}]],
  },
  // A string without an end: the first end of a call counts.
  {
    reply:
      `<tool_call>{"name": "f", "arguments": {"a": "1}}</tool_call> b\n${CALL_G}c`,
    text: " b\nc",
    tools: ['{"name": "f", "arguments": {"a": "1}}', G],
    calls: [["f", '{"a": "1}'], ["g", {}]],
  },
];

/** Qwen3-Coder without the tag that opens a call. */
const TOOLS = {
  tools: ["f", "fg"].map((name) => ({
    type: "function" as const,
    function: { name },
  })),
};
const XML =
  "<function=fg>\n<parameter=a>\n</function>\n</parameter>\n</function>";

CASES.push(
  ...["", "\n</tool_call>"].map((end) => ({
    reply: `Look:\n${XML}${end}\nb`,
    format: TOOLS,
    text: "Look:\nb",
    tools: [XML],
    calls: [["fg", { a: "</function>" }]] as Outcome["calls"],
  })),
  {
    reply: `${XML}\n${XML}</tool_call></tool_call>`,
    format: TOOLS,
    text: "</tool_call>",
    tools: [XML, XML],
    calls: [["fg", { a: "</function>" }], ["fg", { a: "</function>" }]],
  },
  // Of no tool that was given.
  { reply: XML, text: XML },
  {
    reply: "<function=g></function>",
    format: TOOLS,
    text: "<function=g></function>",
  },
  { reply: "a <function=f", format: TOOLS, text: "a <function=f" },
  { reply: "a <function=f> b", format: TOOLS, text: "a <function=f> b" },
);

function expected({ text = "", reasoning = "", tools = [], calls = [] }: Case) {
  return { text, reasoning, tools, calls };
}

Deno.test("a reply is separated into text, reasoning and calls", () => {
  for (const one of CASES) {
    const { reply, format } = one;
    assertEquals(separate([reply], format), expected(one), reply);
    assertEquals(separate([...reply], format), expected(one), reply);
  }
});

randomTest("any division of a reply gives the same", (random) => {
  const words = [
    ...'a \n<{"',
    "\n\n",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    '{"name": "f", "arguments": {',
    "}}",
    CALL_G,
    "<function=f>",
    "</function>",
    "<tool_call>\n<function=f>\n<parameter=a>\n",
    "\n</parameter>\n</function>\n</tool_call>",
  ];
  const next = uniform(random);
  const below = (n: number) => Math.floor(next() * n);
  let calls = 0, thoughts = 0;
  for (let trial = 0; trial < 4000; trial++) {
    const reply = Array.from(
      { length: below(12) },
      () => words[below(words.length)],
    ).join("");
    const pieces: string[] = [];
    for (let at = 0; at < reply.length;) {
      const length = 1 + below(below(2) ? 3 : 30);
      pieces.push(reply.slice(at, at += length));
    }
    const format = [undefined, THINKING, TOOLS][below(3)];
    const how = (["whole", "stopped", "cut", "cut"] as const)[below(4)];
    const whole = separate([reply], format, how);
    const context = JSON.stringify({ pieces, format, how });
    assertEquals(separate(pieces, format, how), whole, context);
    assert(!/^\n|\n$/.test(whole.reasoning), context);
    // What a reply that ends later begins with, up to blanks before what follows.
    if (how === "cut") {
      const { text, reasoning } = separate([reply], format);
      assert(text.startsWith(whole.text.trimEnd()), context);
      assert(reasoning.startsWith(whole.reasoning), context);
    }
    calls += whole.calls.length;
    if (whole.reasoning) thoughts++;
  }
  assert(calls > 300 && thoughts > 300, `${calls} calls, ${thoughts} thoughts`);
});

Deno.test("a reply that is cut off shows no part of a tag or call", () => {
  const reply = `<think>\nHm.\n</think>\n\nOne\n${CALL_F}\ntwo`;
  const whole = separate([reply]);
  for (let end = 0; end <= reply.length; end++) {
    const { text, reasoning, calls, tools } = separate(
      [...reply.slice(0, end)],
      undefined,
      "cut",
    );
    assert(whole.reasoning.startsWith(reasoning), reasoning);
    assert(whole.text.startsWith(text.trimEnd()), text);
    const called = end >= reply.length - "\ntwo".length;
    assertEquals([calls.length, tools.length], called ? [1, 1] : [0, 0]);
  }
});

Deno.test("a call that a stop string ends is a call if it is complete, else left out", () => {
  const cases: [reply: string, expected: Partial<Outcome>][] = [
    [`One\n<tool_call>\n${F}`, {
      text: "One",
      tools: [F],
      calls: [["f", { a: 1 }]],
    }],
    ['One\n<tool_call>\n{"name": "f", ', { text: "One" }],
    ["One\n<tool_call>\n<function=f>\n<parameter=a>", { text: "One" }],
    [
      `<tool_call>\n${F}\n<tool_call>\n{"name": "g"`,
      { tools: [F], calls: [["f", { a: 1 }]] },
    ],
    ["One\n<tool_", { text: "One\n<tool_" }],
    ["One\n<tool_call>", { text: "One\n<tool_call>" }],
    ["<think>\nHm.\n</thi", { reasoning: "Hm.\n</thi" }],
  ];
  for (const [reply, expected] of cases) {
    assertEquals(separate([reply], undefined, "stopped"), {
      text: "",
      reasoning: "",
      tools: [],
      calls: [],
      ...expected,
    }, reply);
  }
});

Deno.test("text is released as soon as it cannot be part of a tag", () => {
  const stream = new ReplyStream();
  const pushed = [
    "<",
    "thi",
    "nk>\n",
    "Hm",
    ".\n",
    "</",
    "think>",
    "\n\n",
    "Hi ",
    "<b>",
    " <tool",
    "_call>",
    "\n{",
    '"name": "f"}',
    "</tool_call",
    ">",
    "\n",
    "x",
  ]
    .map((piece) => [piece, stream.kind, stream.push(piece)] as const);
  const shown = pushed.filter(([, , pieces]) => pieces.length > 0)
    .map(([piece, , pieces]) => [piece, ...pieces]);
  assertEquals(shown, [
    ["Hm", { kind: "reasoning", text: "Hm" }],
    [".\n", { kind: "reasoning", text: "." }],
    ["Hi ", { kind: "text", text: "Hi" }],
    ["<b>", { kind: "text", text: " <b>" }],
    [">", { kind: "tool", text: '{"name": "f"}' }],
    ["x", { kind: "text", text: " x" }],
  ]);
});

Deno.test("tags inside JSON are text; reasoning and calls may come before it", () => {
  const json =
    '{"a":"<tool_call>\\n{<function=f> <think>x</think>","b":"</tool_call>"}';
  const format = { json: true, tools: TOOLS.tools };
  for (const lead of ["", "<think>\nHm.\n</think>\n\n"]) {
    const reply = new ReplyStream(format);
    const pieces = [...lead + json].flatMap((one) => reply.push(one));
    pieces.push(...reply.end());
    const text = pieces.filter(({ kind }) => kind === "text");
    assertEquals(text.map(({ text }) => text).join(""), json);
    assertEquals(reply.toolCalls, []);
  }
  const reply = new ReplyStream(format);
  reply.push(CALL_F);
  reply.end();
  assertEquals(reply.toolCalls.length, 1);
});
