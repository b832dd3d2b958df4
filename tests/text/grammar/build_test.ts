/** What grammars take, and how schemas are refused. */
import {
  assert,
  assertEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { start } from "../../../lib/text/grammar/automaton.ts";
import { buildGrammar } from "../../../lib/text/grammar/build.ts";
import { SchemaError } from "../../../lib/text/grammar/error.ts";
import { numberOf } from "../../../lib/text/grammar/numbers.ts";
import { matches, PatternError } from "../../../lib/text/grammar/regex.ts";
import { accepts } from "../../support/grammar.ts";
import { randomTest } from "../../support/random.ts";

/** Asserts which of some texts a schema's grammar takes. */
function check(schema: unknown, takes: string[], refuses: string[]): void {
  const part = buildGrammar(schema), where = JSON.stringify(schema);
  for (const text of takes) {
    assert(accepts(part, text), `${where} refuses ${text}`);
  }
  for (const text of refuses) {
    assert(!accepts(part, text), `${where} takes ${text}`);
  }
}

Deno.test("strings may be escaped in every way, but never hold half of a pair", () => {
  check(
    { type: "string", maxLength: 2 },
    [
      '""',
      '"ab"',
      '"é漢"',
      '"😀😀"',
      '"\\ud83d\\uDE00\\n"',
      '"\\u0041\\/"',
      '"\\"\\\\"',
      '"\x7f"',
    ],
    [
      '"abc"',
      '"\\u0041bc"',
      '"\\ud83d"',
      '"\\ud83d\\n"',
      '"\\ude00"',
      '"\n"',
      '"\\x"',
      '"a',
      "a",
      " ",
    ],
  );
  // An overlong form, a surrogate, and a code point that is too large, as bytes.
  const part = buildGrammar({ type: "string" });
  for (
    const bytes of [
      [0xc0, 0x80],
      [0xed, 0xa0, 0x80],
      [0xf4, 0x90, 0x80, 0x80],
      [0xe0, 0x9f, 0xbf],
    ]
  ) {
    const text = new TextDecoder("latin1").decode(Uint8Array.from(bytes));
    assert(!takesBytes(part, [0x22, ...bytes, 0x22]), text);
  }
  assert(takesBytes(part, [0x22, 0xf4, 0x8f, 0xbf, 0xbf, 0x22]));
});

function takesBytes(
  part: ReturnType<typeof buildGrammar>,
  bytes: number[],
): boolean {
  let threads = start(part);
  for (const byte of bytes) threads = threads.after(byte);
  return threads.complete;
}

Deno.test("a pattern and a length hold for the value, whatever is escaped", () => {
  check({ type: "string", pattern: '^"+$' }, ['"\\"\\""', '"\\u0022"'], [
    '""',
    '"\\\\"',
  ]);
  check(
    { type: "string", pattern: "b", minLength: 3, maxLength: 3 },
    ['"abc"', '"\\u0062xx"', '"xxb"'],
    ['"ab"', '"abcd"', '"xxx"'],
  );
  check({ type: "string", pattern: "^(?=.*\\d)(?!.*x)[a-z\\d]+$" }, [
    '"a1"',
    '"1"',
  ], ['"a"', '"1x"', '""']);
});

Deno.test("a length beside a pattern or a format is exact, however large", () => {
  const url = (length: number) =>
    JSON.stringify("https://a.b/".padEnd(length, "x"));
  check({ type: "string", format: "uri", minLength: 1, maxLength: 2083 }, [
    url(12),
    url(2083),
  ], [url(2084)]);
  const letters = (length: number) => `"${"é".repeat(length)}"`;
  check(
    { type: "string", pattern: "^\\p{L}+$", minLength: 3, maxLength: 500 },
    [letters(3), letters(500)],
    [letters(2), letters(501)],
  );
  // What has begun can always be ended in time.
  check(
    { type: "string", pattern: "^(ab)*$", maxLength: 5 },
    ['""', '"abab"'],
    ['"ababab"'],
  );
  const part = buildGrammar({
    type: "string",
    pattern: "^(ab)*$",
    maxLength: 5,
  });
  let threads = start(part);
  for (const one of '"abab') threads = threads.after(one.charCodeAt(0));
  assert(threads.after("a".charCodeAt(0)).dead && !threads.after(0x22).dead);
});

Deno.test("properties are in the schema's order, then others", () => {
  const schema = {
    type: "object",
    properties: { b: { type: "integer" }, a: { type: "string" }, 'q"\n': true },
    required: ["a"],
    additionalProperties: { type: "boolean" },
  };
  check(
    schema,
    [
      '{"a":""}',
      '{"b":1,"a":""}',
      '{"a":"","q\\"\\n":null}',
      '{"a":"","z":true,"\\u007a":false}',
    ],
    [
      '{"a":"","b":1}',
      "{}",
      '{"b":1}',
      '{"a":"",}',
      '{"a":"","\\u0062":true}',
      '{"z":true,"a":""}',
      '{ "a":""}',
    ],
  );
  check(
    { ...schema, additionalProperties: false, maxProperties: 2 },
    ['{"b":1,"a":""}'],
    ['{"b":1,"a":"","q\\"\\n":null}', '{"a":"","z":true}'],
  );
  check({ properties: { a: {} }, required: ["a"] }, ['{"a":{"x":[]}}'], [
    '{"a":1,"b":2}',
  ]);
  check({ type: "object" }, ["{}", '{"any":{"thing":[1,null]}}'], ["[]"]);
  check(
    {
      propertyNames: { enum: ["x", "y"] },
      additionalProperties: { type: "integer" },
      type: "object",
    },
    ["{}", '{"x":1}', '{"x":1,"y":2}', '{"y":2}'],
    ['{"z":1}', '{"x":1,"x":2}'],
  );
});

Deno.test("a schema that is refused names the keyword and its place", () => {
  const cases: [unknown, keyword: string, path: string][] = [
    [{ properties: { a: { not: { type: "null" } } } }, "not", "#/properties/a"],
    [{ items: { uniqueItems: true } }, "uniqueItems", "#/items"],
    [{ minLenght: 3 }, "minLenght", "#"],
    [{ minlength: 3 }, "minlength", "#"],
    [{ type: "text" }, "type", "#"],
    [{ type: "integer", minimum: "3" }, "minimum", "#"],
    [{ exclusiveMinimum: true, minimum: 1 }, "exclusiveMinimum", "#"],
    [{ multipleOf: 0.01 }, "multipleOf", "#"],
    [{ pattern: "(" }, "pattern", "#"],
    [{ pattern: "a\\b" }, "pattern", "#"],
    [{ pattern: "(a)\\1" }, "pattern", "#"],
    [{ pattern: "a(?=b)" }, "pattern", "#"],
    [{ pattern: "(a{1,99}){1,99}" }, "pattern", "#"],
    [{ format: "regex" }, "format", "#"],
    [{ $ref: "other.json" }, "$ref", "#"],
    [{ $ref: "#/$defs/none" }, "$ref", "#"],
    [{ $ref: "#" }, "$ref", "#"],
    [{ anyOf: [{ $ref: "#" }, { type: "null" }] }, "$ref", "#"],
    [{ anyOf: [] }, "anyOf", "#"],
    [
      { properties: { "a/b": { oneOf: [{ minimum: 1 }, { maximum: 3 }] } } },
      "oneOf",
      "#/properties/a~1b",
    ],
    [
      { type: "object", properties: { a: { $ref: "#" } }, required: ["a"] },
      "",
      "#",
    ],
    [{ type: "integer", minimum: 3, maximum: 2 }, "", "#"],
    [
      {
        type: "array",
        minItems: 1,
        items: { type: "object", minProperties: 2 },
      },
      "minProperties",
      "#/items",
    ],
    [{ type: "object", minProperties: 3, maxProperties: 2 }, "", "#"],
    [{ enum: [1, 2], type: "string" }, "", "#"],
    [{ enum: ["\ud800"] }, "enum", "#"],
    [{ properties: { a: 3 } }, "properties", "#"],
    ["text", "", "#"],
    [{ default: 1n }, "", "#"],
  ];
  for (const [schema, keyword, path] of cases) {
    const error = assertThrows(() => buildGrammar(schema), SchemaError);
    const where = error.message;
    assertEquals([error.keyword, error.path], [keyword, path], where);
    assert(where.startsWith("Cannot use the schema: "), where);
  }
});

Deno.test("keywords that assert nothing pass", () => {
  check(
    {
      $schema: "https://json-schema.org/draft/2020-12/schema",
      $id: "https://example.com/x",
      title: "t",
      description: "d",
      "x-own": 1,
      default: 1,
      examples: [1],
      deprecated: false,
      format: "int32",
      uniqueItems: false,
      type: "integer",
    },
    ["1"],
    ["1.0"],
  );
});

randomTest("numbers are those within the bounds", (random) => {
  for (let i = 0; i < 400; i++) {
    const scale = 10 ** random.int(0, 3);
    const bound = () => Math.round(random.next() * scale * 100) / 100;
    const [min, max] = [bound(), bound()].sort((a, b) => a - b);
    const integer = random.int(0, 1) === 0, aboveMin = random.int(0, 1) === 0;
    const multipleOf = random.int(0, 2) === 0
      ? [random.pick([2, 3, 0.5, 0.25])]
      : [];
    const start = numberOf({
      integer,
      min,
      max,
      aboveMin,
      belowMax: false,
      multipleOf,
    });
    for (let j = 0; j < 30; j++) {
      const value = integer
        ? Math.round(min + random.next() * 2 * (max - min + 1))
        : Math.round((min + random.next() * 2 * (max - min)) * 100) / 100;
      const inside = (aboveMin ? value > min : value >= min) && value <= max &&
        multipleOf.every((one) => value % one === 0);
      const text = String(Object.is(value, -0) ? 0 : value);
      const taken = start !== undefined && accepts(start, text);
      assertEquals(
        taken,
        inside,
        `${text} in ${min} to ${max}, ${integer}, ${aboveMin}, ${multipleOf}`,
      );
    }
  }
});

randomTest("patterns match what JavaScript's engine matches", (random) => {
  const atoms = [
    "a",
    "b",
    ".",
    "[ab]",
    "[^a]",
    "\\d",
    "\\w",
    "\\s",
    "(?:ab|b)",
    "(a|)",
    "é",
    "\\u{1F600}",
    "\\p{Lu}",
    "\\P{L}",
    "[\\d\\-x]",
  ];
  const quantifiers = ["", "", "", "*", "+", "?", "{2}", "{1,3}", "{2,}", "*?"];
  const piece = () => random.pick(atoms) + random.pick(quantifiers);
  const pieces = (most: number) =>
    Array.from({ length: random.int(0, most) }, piece).join("");
  for (let i = 0; i < 300; i++) {
    const look = random.int(0, 3) === 0
      ? `${random.pick(["(?=", "(?!"])}${pieces(2)})`
      : "";
    const pattern = random.pick(["", "^", "^", `^${look}`]) + pieces(3) +
      random.pick(["", "$", "", `|${pieces(2)}`, `(?:$|${piece()})`]);
    let own: boolean;
    const regex = new RegExp(pattern, "u");
    for (let j = 0; j < 12; j++) {
      const text = Array.from(
        { length: random.int(0, 6) },
        () => random.pick([..."aabbÉé1 x-\n😀"]),
      ).join("");
      try {
        own = matches(pattern, text);
      } catch (error) {
        // A lookahead that is not alone at the beginning.
        assert(
          error instanceof PatternError && look !== "",
          `${pattern}: ${error}`,
        );
        continue;
      }
      assertEquals(
        own,
        regex.test(text),
        `/${pattern}/u on ${JSON.stringify(text)}`,
      );
    }
  }
});

Deno.test("groups of a pattern nest only so deep", () => {
  const nested = (depth: number) => "(".repeat(depth) + "a" + ")".repeat(depth);
  assert(matches(nested(100), "a"));
  for (const pattern of [nested(101), nested(100_000), "(".repeat(100_000)]) {
    assertThrows(() => matches(pattern, "a"), PatternError, "must have 100");
  }
  for (const flat of ["[(]", "\\(", "[\\](]", "()"]) {
    matches(flat.repeat(500), "a");
  }
});

Deno.test("branches that stay alike are followed only so far", () => {
  const node = {
    anyOf: ["a", "b", "c"].map((name) => ({
      type: "object",
      properties: { next: { $ref: "#/$defs/node" }, [name]: { type: "null" } },
      required: [name],
    })),
  };
  const part = buildGrammar({ $ref: "#/$defs/node", $defs: { node } });
  assert(accepts(part, '{"next":{"next":{"b":null},"a":null},"c":null}'));
  assert(!accepts(part, '{"next":{"next":{"b":null},"a":null}}'));
  const deep = '{"next":'.repeat(30);
  const error = assertThrows(() => accepts(part, deep), SchemaError);
  assertEquals([error.keyword, error.path], ["anyOf", "#"]);
  assertStringIncludes(error.message, "more than 10000 ways to read the text");
});

Deno.test("choices that are too many are refused before any is read", () => {
  const read: number[] = [];
  const branch = (i: number) => ({
    get const() {
      read.push(i);
      return i;
    },
  });
  const anyOf = Array.from({ length: 1001 }, (_, i) => branch(i));
  const counts = [anyOf, [...anyOf, ...anyOf]].map((anyOf) => {
    read.length = 0;
    const error = assertThrows(() => buildGrammar({ anyOf }), SchemaError);
    assertEquals([error.keyword, error.path], ["anyOf", "#"]);
    return read.length / anyOf.length;
  });
  // Reading them compares each with all others; checking that they are JSON reads each once.
  assert(counts.every((count) => count <= 3), `${counts}`);
});

Deno.test("a branch of a choice is not compared with all others", () => {
  let reads = 0;
  const readsOf = (count: number) => {
    const anyOf = Array.from({ length: count }, (_, i) => ({
      get const() {
        reads++;
        return `name ${i}`;
      },
    }));
    reads = 0;
    const part = buildGrammar({ anyOf });
    assert(accepts(part, `"name ${count - 1}"`));
    assert(!accepts(part, `"name ${count}"`));
    return reads / count;
  };
  const few = readsOf(10), many = readsOf(300);
  assert(many <= few, `${few} reads of each, then ${many}`);
});

Deno.test("values are under a branch and what is beside it", () => {
  const part = buildGrammar({
    enum: [1, 2, 3, "a", "b"],
    anyOf: [{ type: "string" }, { minimum: 2, type: "integer" }],
    allOf: [{ anyOf: [{ const: "a" }, { maximum: 2, type: "number" }] }],
  });
  const valid = ["1", "2", "3", '"a"', '"b"'].filter((one) =>
    accepts(part, one)
  );
  assertEquals(valid, ["2", '"a"']);
});
