/** Replies with a JSON schema are valid, on every device and with every way of sampling. */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import Ajv from "npm:ajv@8.20.0/dist/2020.js";
import formats from "npm:ajv-formats@3.0.1";
import { type GenerateOptions, loadQwen3, SchemaError } from "../mod.ts";
import { eachDevice } from "./support/gpu.ts";
import { scriptedCheckpoint } from "./support/scripted_checkpoint.ts";

const ajv = new Ajv.default({ strict: false });
formats.default(ajv);

const PROMPT = "Once upon a time";

/** Schemas whose texts are short, whatever is sampled. */
const SCHEMAS: object[] = [
  {
    type: "object",
    properties: {
      name: { type: "string", minLength: 1, maxLength: 12 },
      age: { type: "integer", minimum: 0, exclusiveMaximum: 150 },
      height: { type: ["number", "null"], exclusiveMinimum: 0, maximum: 2.72 },
      tags: {
        type: "array",
        items: { type: "string", pattern: "^[a-z]+$", maxLength: 6 },
        maxItems: 3,
      },
    },
    required: ["name", "age", "height"],
    additionalProperties: false,
  },
  {
    oneOf: [
      {
        type: "object",
        properties: {
          kind: { const: "date" },
          on: { type: "string", format: "date" },
        },
        required: ["kind", "on"],
      },
      { type: "array", items: { type: "boolean" }, minItems: 2, maxItems: 4 },
      { enum: ["a\n", 7.5, { x: [null] }] },
    ],
  },
  {
    $ref: "#/$defs/list",
    $defs: {
      list: {
        type: "object",
        properties: {
          value: { type: "integer", multipleOf: 7, minimum: 1, maximum: 99 },
          next: {
            anyOf: [{ type: "null" }, { type: "string", maxLength: 3 }],
          },
        },
        required: ["value", "next"],
      },
    },
  },
];

const WAYS: GenerateOptions[] = [
  { temperature: 0 },
  { temperature: 1, topK: 20, topP: 0.95 },
  { temperature: 2, topK: 0, repetitionPenalty: 1.3 },
  { temperature: 50, topK: 0 },
];

eachDevice(
  "a reply with a schema is valid, however it is sampled",
  async (device) => {
    using qwen = await loadQwen3(undefined, { device });
    for (const schema of SCHEMAS) {
      const validate = ajv.compile(schema);
      for (const [i, way] of WAYS.entries()) {
        const options = { ...way, seed: 5 + i, schema };
        const reply = await qwen.generate(PROMPT, options);
        const { text, finishReason, tokenIds } = reply;
        const where = `${JSON.stringify(way)}: ${text}`;
        assertEquals(finishReason, "stop", where);
        assert(
          validate(JSON.parse(text)),
          `${where}: ${ajv.errorsText(validate.errors)}`,
        );
        assertEquals(tokenIds.at(-1), 0, where);
        assertEquals(tokenIds.indexOf(0), tokenIds.length - 1, where);
      }
    }
  },
);

eachDevice(
  "texts of a batch follow the schema on their own",
  async (device) => {
    using qwen = await loadQwen3(undefined, { device });
    const [schema] = SCHEMAS, validate = ajv.compile(schema);
    const prompts = [PROMPT, "A dog", "The sun"];
    const { sequences } = await qwen.generateBatch(prompts, {
      schema,
      seed: 4,
      temperature: 2,
      topK: 0,
    });
    const texts = sequences.map(({ text, finishReason }) => {
      assertEquals(finishReason, "stop");
      assert(validate(JSON.parse(text)), text);
      return text;
    });
    assertEquals(new Set(texts).size, 3, "the texts differ");
  },
);

Deno.test("schema true is any object, and a reply that is cut off says so", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const [quote, close, comma] = [...'"},'].map((one) =>
    qwen.tokenizer.tokenId(one)!
  );
  // What ends strings and objects becomes likely.
  const logitBias = { [quote]: 16, [close]: 16, [comma]: 8 };
  const options = { schema: true, temperature: 2, topK: 0, logitBias } as const;
  const cut = await qwen.generate(PROMPT, {
    ...options,
    seed: 1,
    maxTokens: 1,
  });
  assertEquals(cut.finishReason, "length");
  assert(cut.text.startsWith("{"), cut.text);
  let ended = 0;
  for (let seed = 0; seed < 12; seed++) {
    const reply = await qwen.generate(PROMPT, {
      ...options,
      seed,
      maxTokens: 150,
    });
    if (reply.finishReason !== "stop") continue;
    const value = JSON.parse(reply.text);
    assert(
      typeof value === "object" && value !== null && !Array.isArray(value),
    );
    ended++;
  }
  assert(ended > 2, `only ${ended} have ended`);
});

Deno.test("reasoning comes first, if the template knows it and it is on", async () => {
  await using checkpoint = await scriptedCheckpoint({
    reply: "<think>\nHm <tool_call>{.\n</think>\n\nSure: yes.",
    special: ["<think>", "</think>"],
    template:
      "{% if enable_thinking %}{% endif %}{{ messages[0].content }}\n{# <think> #}",
  });
  using qwen = await loadQwen3(checkpoint.path, { device: "cpu" });
  const schema = { enum: ["<think>yes"] };
  const run = (options: GenerateOptions) =>
    qwen.generate("Is it?", { schema, ...options });
  const thought = await run({});
  assertEquals(thought.reasoning, "Hm <tool_call>{.");
  assertEquals(thought.text, '"<think>yes"');
  assertEquals(thought.finishReason, "stop");
  const direct = await run({ thinking: false });
  assertEquals([direct.reasoning, direct.text], ["", '"<think>yes"']);
  // Reasoning cannot be cut off by the end of the reply, only by the limit.
  const short = await run({ maxTokens: 3 });
  assertEquals([short.text, short.finishReason], ["", "length"]);
});

Deno.test("a schema that is refused, and options that it excludes, are errors", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const generate = (options: GenerateOptions) => () => {
    qwen.generate(PROMPT, options);
  };
  const error = assertThrows(
    generate({ schema: { items: { not: { type: "null" } } } }),
    SchemaError,
  );
  assertEquals([error.option, error.keyword, error.path], [
    "schema",
    "not",
    "#/items",
  ]);
  const wrong = "text" as unknown as object;
  assertThrows(
    generate({ schema: wrong }),
    Error,
    'schema is "text", must be a JSON schema, or true',
  );
  const schema = true;
  assertThrows(
    generate({ schema, stop: "x" }),
    Error,
    "must be left out with a schema",
  );
  assertThrows(
    generate({ schema, ignoreEos: true }),
    Error,
    "ignoreEos is true, must be left out with a schema",
  );
  const mask = { fill: () => false, accept: () => {} };
  assertThrows(
    generate({ schema, mask }),
    Error,
    "mask is an object, must be left out with a schema",
  );
  await assertRejects(async () => {
    for await (const _ of qwen.generate(PROMPT, { schema: { $ref: "#" } }));
  }, SchemaError);
});
