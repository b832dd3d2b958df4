/** Calls that models write, well formed or not. */
import { assertEquals } from "@std/assert";
import type { Tool, ToolCall } from "../../lib/text/conversation.ts";
import { readBlock, readBroken } from "../../lib/text/tool_calls.ts";

type Args = ToolCall["function"]["arguments"];

/** The name and arguments of each call, or why there are none. */
function read(body: string, tools: readonly Tool[] = []) {
  const block = readBlock(body, tools);
  const calls = block === "broken" ? readBroken(body, tools) : block;
  return typeof calls === "string"
    ? calls
    : calls?.map(({ function: called }) => [called.name, called.arguments]);
}

Deno.test("calls in JSON, with arguments in every form", () => {
  const cases: [body: string, ...calls: [name: string, args: Args][]][] = [
    ['\n{"name": "f", "arguments": {"a": [1, null]}}\n', ["f", {
      a: [1, null],
    }]],
    ['{"arguments": {"name": "x"}, "name": "f"}', ["f", { name: "x" }]],
    ['{"name": "f"}', ["f", {}]],
    ['{"name": "f", "arguments": null}', ["f", {}]],
    ['{"name": "f", "parameters": {"a": 1}}', ["f", { a: 1 }]],
    ['{"name": "f", "arguments": "{\\"a\\": 1}"}', ["f", { a: 1 }]],
    ['{"name": "f", "arguments": "a"}', ["f", "a"]],
    ['{"name": "f", "arguments": "[1]"}', ["f", "[1]"]],
    ['{"name": "f", "arguments": [1]}', ["f", "[1]"]],
    ['{"name": "f", "arguments": 0}', ["f", "0"]],
    [
      '{"type": "function", "function": {"name": "f", "arguments": {}}}',
      ["f", {}],
    ],
    ['[{"name": "f"}, {"name": "g", "arguments": {"a": 1}}]', ["f", {}], [
      "g",
      { a: 1 },
    ]],
    ['{"name": "f", "arguments": {"__proto__": 1}}', [
      "f",
      JSON.parse('{"__proto__": 1}'),
    ]],
    // Not JSON, but the name can be read.
    ['{"name": "f", "arguments": {"a": oops}}', ["f", '{"a": oops}']],
    ['{"name": "f", "arguments": {"a": 1}', ["f", { a: 1 }]],
    ['{"name": "f", "arguments": {"a": 1}}}', ["f", { a: 1 }]],
    ["{'name': 'f', 'arguments': {'a': 1}}", ["f", "{'a': 1}"]],
    ['{"name": "f", {"a": 1}}', ["f", { a: 1 }]],
    ['{"name": "f", "arguments": }', ["f", ""]],
  ];
  for (const [body, ...calls] of cases) assertEquals(read(body), calls, body);
  for (
    const body of [
      ...["{}", "[]", "{1}", '{"name": 1}', '{"name": ""}', '["f"]', "[{}]"],
      '[{"name": "f"}, {}]',
      '{"arguments": {"name": "f"} oops}',
    ]
  ) assertEquals(read(body), undefined, body);
  assertEquals(read('{"name": "f", "arguments": {"a": "'), "open");
  assertEquals(read('{"name": "f", "arguments": {"a": "\\"'), "open");
});

const WEATHER: Tool = {
  type: "function",
  function: {
    name: "f",
    parameters: {
      type: "object",
      $defs: { count: { type: "integer" } },
      properties: {
        text: { type: "string" },
        number: { type: "number" },
        integer: { type: "integer" },
        flag: { type: "boolean" },
        list: { type: "array", items: { type: "string" } },
        object: { type: "object" },
        nothing: { type: "null" },
        maybe: { type: ["string", "null"] },
        either: { anyOf: [{ type: "integer" }, { type: "string" }] },
        choice: { enum: ["1", 2] },
        count: { $ref: "#/$defs/count" },
        any: {},
      },
    },
  },
};

function xml(...parameters: [name: string, value: string][]): string {
  return `\n<function=f>\n${
    parameters.map(([name, value]) =>
      `<parameter=${name}>\n${value}\n</parameter>\n`
    ).join("")
  }</function>\n`;
}

Deno.test("calls in Qwen3-Coder's XML, with the types that the schema declares", () => {
  const values: [parameter: string, value: string, expected: unknown][] = [
    ["text", "5", "5"],
    ["text", "null", "null"],
    ["text", "\n  a\n\n", "\n  a\n\n"],
    ["text", "", ""],
    ["number", "1.5", 1.5],
    ["number", " 2 ", 2],
    ["number", "two", "two"],
    ["integer", "-3", -3],
    ["integer", "3.0", 3],
    ["integer", "3.5", "3.5"],
    ["flag", "true", true],
    ["flag", "False", false],
    ["flag", "yes", "yes"],
    ["list", '["a", 1]', ["a", 1]],
    ["list", "{}", "{}"],
    ["object", '{"a": {"b": null}}', { a: { b: null } }],
    ["object", "{'a': 1}", "{'a': 1}"],
    ["nothing", "null", null],
    ["nothing", "None", null],
    ["integer", "null", null],
    ["any", "null", "null"],
    ["maybe", "null", null],
    ["maybe", "none", "none"],
    ["maybe", "5", "5"],
    ["either", "5", 5],
    ["either", "five", "five"],
    ["choice", "1", "1"],
    ["choice", "2", 2],
    ["choice", "3", "3"],
    ["count", "7", 7],
    ["any", "7", "7"],
    ["unknown", "7", "7"],
    ["toString", "7", "7"],
  ];
  for (const [parameter, value, expected] of values) {
    const body = xml([parameter, value]);
    const context = `${parameter}: ${value}`;
    assertEquals(
      read(body, [WEATHER]),
      [["f", { [parameter]: expected }]],
      context,
    );
    assertEquals(read(body), [["f", { [parameter]: value }]], context);
  }
  assertEquals(read(xml()), [["f", {}]]);
  assertEquals(read("<function=f></function>"), [["f", {}]]);
  assertEquals(
    read("<function=f><parameter=text>a</parameter></function>", [WEATHER]),
    [["f", { text: "a" }]],
  );
  assertEquals(read(xml(["text", "a"], ["count", "1"]), [WEATHER]), [
    ["f", { text: "a", count: 1 }],
  ]);
  // Several calls in one block.
  assertEquals(read(xml(["text", "1"]) + xml() + xml(["a", "</function>"])), [
    ["f", { text: "1" }],
    ["f", {}],
    ["f", { a: "</function>" }],
  ]);
});

Deno.test("a parameter may hold the tags of calls", () => {
  for (
    const value of [
      "</parameter>",
      "<parameter=x>",
      "</function>\n</tool_call>",
      '<tool_call>{"name": "g"}</tool_call>',
      "a </parameter> b",
    ]
  ) {
    assertEquals(read(xml(["text", value])), [["f", { text: value }]], value);
  }
  assertEquals(read("<function=f>\n<parameter=text>\na "), "open");
});

Deno.test("XML without closing tags is read as far as possible", () => {
  const cases: [body: string, args: Args][] = [
    ["<function=f>\n<parameter=a>\n1\n</parameter>\n", { a: "1" }],
    ["<function=f>\n<parameter=a>\n1\n<parameter=b>\n2\n</function>", {
      a: "1",
      b: "2",
    }],
    ["<function=f>", {}],
    ['<function=f>\n{"a": 1}\n</function>', '{"a": 1}'],
  ];
  for (const [body, args] of cases) {
    assertEquals(
      readBroken(body, []),
      [{ type: "function", function: { name: "f", arguments: args } }],
      body,
    );
    assertEquals(Array.isArray(readBlock(body, [])), false, body);
  }
  assertEquals(readBroken("<function=", []), undefined);
  assertEquals(readBroken("<function=\n>", []), undefined);
});
