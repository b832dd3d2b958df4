/** Whatever a grammar lets pass is valid, as Ajv sees it, and every text can be ended. */
import { assert } from "@std/assert";
import Ajv from "npm:ajv@8.20.0/dist/2020.js";
import formats from "npm:ajv-formats@3.0.1";
import { buildGrammar } from "../../../lib/text/grammar/build.ts";
import { SchemaError } from "../../../lib/text/grammar/error.ts";
import type { Part } from "../../../lib/text/grammar/automaton.ts";
import { accepts, randomText } from "../../support/grammar.ts";
import { randomSchema, randomValue } from "../../support/json_schemas.ts";
import { type Random, randomTest } from "../../support/random.ts";

const ajv = new Ajv.default({ strict: false, logger: false });
formats.default(ajv);

/** The grammar of a schema; undefined if it is refused. */
function grammarOf(schema: unknown): Part | undefined {
  try {
    return buildGrammar(schema);
  } catch (error) {
    if (error instanceof SchemaError) return undefined;
    throw error;
  }
}

/** Writes texts by a schema's grammar, all of which must be valid. */
function check(
  schema: object | boolean,
  part: Part,
  random: Random,
  texts: number,
): void {
  const validate = ajv.compile(schema);
  for (let i = 0; i < texts; i++) {
    const text = randomText(part, random, random.int(0, 120));
    const value = JSON.parse(text);
    assert(
      validate(value),
      `${JSON.stringify(schema)} takes ${text}: ${
        ajv.errorsText(validate.errors)
      }`,
    );
    assert(!/[\uD800-\uDFFF]/u.test(JSON.stringify(value)), text);
    assert(
      !/\s/.test(text.replaceAll(/"(?:[^"\\]|\\.)*"/g, "")),
      `white space in ${text}`,
    );
  }
}

const person = {
  type: "object",
  properties: {
    name: { type: "string", minLength: 1, maxLength: 20 },
    age: { type: "integer", minimum: 0, exclusiveMaximum: 150 },
    email: { type: "string", format: "email" },
    born: { type: ["string", "null"], format: "date" },
    height: { type: "number", exclusiveMinimum: 0, maximum: 2.72 },
  },
  required: ["name", "age"],
  additionalProperties: false,
};

const tree = {
  $ref: "#/$defs/node",
  $defs: {
    node: {
      type: "object",
      properties: {
        value: { type: "integer" },
        children: {
          type: "array",
          items: { $ref: "#/$defs/node" },
          maxItems: 3,
        },
        next: { anyOf: [{ type: "null" }, { $ref: "#/$defs/node" }] },
      },
      required: ["value", "next"],
      additionalProperties: false,
    },
  },
};

const shapes = {
  type: "array",
  minItems: 1,
  items: {
    oneOf: [
      {
        type: "object",
        properties: {
          kind: { const: "circle" },
          r: { type: "number", minimum: 0 },
        },
        required: ["kind", "r"],
      },
      {
        type: "object",
        properties: {
          kind: { enum: ["square", "box"] },
          side: { type: "integer", multipleOf: 5 },
        },
        required: ["kind", "side"],
      },
      { type: "null" },
    ],
  },
};

randomTest("texts of known schemas are valid", (random) => {
  const known = [
    person,
    tree,
    shapes,
    true,
    { type: "object" },
    {
      type: "object",
      additionalProperties: { type: "string", pattern: "^[a-z]{2}$" },
      minProperties: 1,
      maxProperties: 3,
    },
    {
      type: "object",
      properties: { a: true },
      patternProperties: { "^x": { type: "integer" }, "y$": { minimum: 5 } },
      additionalProperties: { type: "null" },
    },
    { type: "string", pattern: '^"[^"]*"$', maxLength: 12 },
    { type: "string", minLength: 300 },
    { allOf: [{ minimum: 3 }, { maximum: 5.5 }, { type: "number" }] },
    { type: "integer", minimum: 1e20 },
    { type: "number", exclusiveMinimum: 1e20, exclusiveMaximum: 1e21 },
    { type: "number", minimum: 0.1, maximum: 0.10000000000001 },
    { type: "integer", minimum: -7, maximum: 7, multipleOf: 3 },
    {
      prefixItems: [{ type: "integer" }, { type: "string" }],
      items: false,
      type: "array",
    },
    { type: "array", items: { $ref: "#" } },
  ];
  for (const schema of known) {
    const part = grammarOf(schema);
    assert(part, `refused: ${JSON.stringify(schema)}`);
    check(schema, part, random, 60);
  }
});

randomTest("texts of schemas at random are valid", (random) => {
  let built = 0;
  for (let i = 0; i < 1000; i++) {
    const schema = randomSchema(random, 3);
    const part = grammarOf(schema);
    if (!part) continue;
    built++;
    check(schema, part, random, 3);
  }
  assert(built > 300, `only ${built} schemas were not refused`);
});

randomTest("a grammar refuses what is not valid", (random) => {
  let refused = 0;
  for (let i = 0; i < 600; i++) {
    const schema = randomSchema(random, 2), part = grammarOf(schema);
    if (!part) continue;
    const validate = ajv.compile(schema);
    for (let j = 0; j < 10; j++) {
      const value = randomValue(random, 3), text = JSON.stringify(value);
      if (validate(JSON.parse(text))) continue;
      refused++;
      assert(!accepts(part, text), `${JSON.stringify(schema)} takes ${text}`);
    }
  }
  assert(refused > 1000, `only ${refused} values were not valid`);
});
