/**
 * The official test suite of JSON Schema: what is not valid is never accepted; what is valid
 * is, or the schema is refused, or the case is listed here.
 */
import { assert, assertEquals } from "@std/assert";
import type { Part } from "../../../lib/text/grammar/automaton.ts";
import { buildGrammar } from "../../../lib/text/grammar/build.ts";
import { SchemaError } from "../../../lib/text/grammar/error.ts";
import { accepts } from "../../support/grammar.ts";

interface Group {
  description: string;
  schema: unknown;
  tests: { description: string; data: unknown; valid: boolean }[];
}

const SUITE = new URL("../../fixtures/json-schema/suite.json", import.meta.url);
const { files }: { files: Record<string, Group[]> } = JSON.parse(
  await Deno.readTextFile(SUITE),
);

/** The grammar, or the keyword that is refused. */
function grammarOf(schema: unknown): Part | SchemaError {
  try {
    return buildGrammar(schema);
  } catch (error) {
    if (error instanceof SchemaError) return error;
    throw error;
  }
}

const groups = Object.entries(files).flatMap(([file, groups]) =>
  groups.map((group) => ({ file, ...group, part: grammarOf(group.schema) }))
);

Deno.test("no grammar takes what the official test suite holds for invalid", () => {
  let invalid = 0;
  for (const { file, description, tests, part } of groups) {
    if (part instanceof SchemaError) continue;
    for (const test of tests.filter(({ valid }) => !valid)) {
      const text = JSON.stringify(test.data);
      invalid++;
      assert(
        !accepts(part, text),
        `${file}: ${description}: ${test.description}: ${text}`,
      );
    }
  }
  assertEquals(invalid, INVALID);
});

Deno.test("a grammar takes what the official test suite holds for valid", () => {
  const missed = new Map<string, number>();
  let valid = 0;
  for (const { file, tests, part } of groups) {
    if (part instanceof SchemaError) continue;
    for (const test of tests) {
      if (!test.valid) continue;
      valid++;
      if (accepts(part, JSON.stringify(test.data))) continue;
      const name = file.replace("draft2020-12/", "");
      missed.set(name, (missed.get(name) ?? 0) + 1);
    }
  }
  assertEquals(Object.fromEntries(missed), NARROWER);
  assertEquals(valid, VALID);
});

Deno.test("a schema that is refused is refused for a keyword that is not offered", () => {
  const refused = new Map<string, number>();
  for (const { file, description, part } of groups) {
    if (!(part instanceof SchemaError)) continue;
    const where = `${file}: ${description}: ${part.message}`;
    assert(part.message.includes(part.keyword), where);
    assert(part.path.startsWith("#"), where);
    refused.set(part.keyword, (refused.get(part.keyword) ?? 0) + 1);
  }
  assertEquals(Object.fromEntries(refused), REFUSED);
});

const INVALID = 581, VALID = 702;

/** How many valid texts of each file are not written, and why. */
const NARROWER: Readonly<Record<string, number>> = {
  // Objects with `properties` get others only if the schema says so.
  additionalProperties: 1,
  allOf: 2,
  anyOf: 1,
  not: 1,
  properties: 1,
  // Keys are in the schema's order.
  const: 1,
  // Formats count, though the draft makes them annotations by default.
  format: 10,
  // Without an exponent, and below 2⁵³.
  "optional/bignum": 2,
  "optional/float-overflow": 1,
  // Leap seconds, and fractions of more than nine digits.
  "optional/format/date-time": 3,
  "optional/format/time": 6,
  // More than nine digits.
  "optional/format/duration": 1,
  // Quoted names, and addresses in brackets.
  "optional/format/email": 5,
  // Punycode, labels of more than 48 characters, and -- inside.
  "optional/format/hostname": 17,
  // Other schemes than http and https, and user names.
  "optional/format/uri": 8,
};

/** How many schemas are refused for each keyword; "" where none is valid. */
const REFUSED: Readonly<Record<string, number>> = {
  "": 9,
  $ref: 16,
  contains: 7,
  dependentRequired: 4,
  dependentSchemas: 1,
  format: 9,
  if: 11,
  multipleOf: 3,
  not: 5,
  oneOf: 8,
  unevaluatedProperties: 1,
  uniqueItems: 3,
};
