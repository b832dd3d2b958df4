/** Calls of strict functions: whatever a reply is read as was written under the grammar. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { OptionError } from "../../../lib/errors.ts";
import type { Tool } from "../../../lib/text/conversation.ts";
import {
  callGrammarOf,
  type CallMask,
} from "../../../lib/text/grammar/calls.ts";
import { SchemaGrammar } from "../../../lib/text/grammar/mask.ts";
import { hiddenIds, ReplyStream } from "../../../lib/text/reply.ts";
import { TextStream } from "../../../lib/text/text_stream.ts";
import type { Tokenizer } from "../../../lib/text/tokenizer.ts";
import { type Random, randomTest } from "../../support/random.ts";
import {
  BYTES,
  smallJson,
  tokenizerOf,
} from "../../support/small_tokenizer.ts";

const CITIES = ["Oslo", "a</tool_call>b", "<tool_call>{"];
const TOOLS: Tool[] = [
  {
    type: "function",
    function: {
      name: "f",
      strict: true,
      parameters: {
        type: "object",
        properties: {
          city: { enum: CITIES },
          days: { type: "integer", minimum: 0, maximum: 9 },
        },
        required: ["city"],
        additionalProperties: false,
      },
    },
  },
  { type: "function", function: { name: "g" } },
];
/** Tokens that begin, end or hold tags, besides all bytes. */
const PIECES = [
  ...["<tool_", "<tool", "_call>", "call>{", ">x", "<th", "ink>", "</th", "k>"],
  ...["<tool_call>x", "</tool_call", "<function=f>", "<function=", "f>", "/t"],
  ...['{"name": "f", "arguments": ', '{"name":"g","arguments":', '{"city":'],
  ...["}}", "}}\n", '"Oslo"', "\u3000", "\u3000<think>", '":', '{"', "n<think"],
  ...['[{"name":"f","arguments":1}]', "ool_call>\n", "\n<think>", "<think>a"],
];
const ADDED = ["<end>", "<tool_call>", "</tool_call>", "<think>", "</think>"];

/** A tokenizer with such pieces; its tags are spelled out unless there are added tokens. */
function tokenizerWith(added: readonly string[]): Tokenizer {
  const spelled = (text: string) =>
    Array.from(new TextEncoder().encode(text), (byte) => BYTES[byte]).join("");
  const vocab = Object.fromEntries(
    [...BYTES, ...PIECES.map(spelled)].map((token, id) => [token, id]),
  );
  const begin = Object.keys(vocab).length;
  return tokenizerOf(smallJson([], {
    added_tokens: added.map((content, i) => ({
      ...{ id: begin + i, content, special: i === 0 },
      ...{ single_word: false, lstrip: false, rstrip: false },
      normalized: false,
    })),
  }, { vocab }));
}

const VOCAB = BYTES.length + PIECES.length + ADDED.length;
const plain = tokenizerWith(ADDED.slice(0, 1)), tagged = tokenizerWith(ADDED);

/** The tokens that may come next; all if any may. */
function allowed(mask: CallMask): number[] {
  const bits = new Uint32Array(Math.ceil(VOCAB / 32));
  const all = Array.from({ length: VOCAB }, (_, id) => id);
  if (!mask.fill(bits)) return all;
  return all.filter((id) => bits[id >>> 5] >>> (id & 31) & 1);
}

/** Writes tokens at random; returns the calls that the reply is read as. */
function write(tokenizer: Tokenizer, random: Random, thinking: boolean) {
  const mask = callGrammarOf(TOOLS).mask(
    tokenizer,
    VOCAB,
    thinking ? "reasoning" : "text",
  );
  const specialIds = hiddenIds(tokenizer);
  const bytes = (id: number) => tokenizer.bytes(id);
  const stream = new TextStream({ bytes, specialIds });
  const reply = new ReplyStream({ thinking, tools: TOOLS });
  let text = "";
  for (let step = 0; step < 300; step++) {
    const free = allowed(mask);
    const pieces = free.filter((id) => id >= BYTES.length);
    const marks = free.filter((id) => '"}]>'.includes(String.fromCharCode(id)));
    const choices = [pieces, marks, free].filter(({ length }) => length > 0);
    const id = random.pick(
      random.int(0, 9) > 0 ? choices[0] : random.pick(choices),
    );
    mask.accept(id);
    const part = stream.push(id).text;
    text += part;
    reply.push(part);
  }
  reply.push(stream.flush());
  reply.end(random.pick(["stopped", "cut"]));
  return { calls: reply.toolCalls, text };
}

randomTest("every call that a reply is read as is valid", (random) => {
  for (const tokenizer of [plain, tagged]) {
    const counts: Record<string, number> = { f: 0, g: 0 };
    // A function may be called rarely.
    const isRare = () => counts.f <= 5 || counts.g <= 5;
    for (let i = 0; i < 150 || i < 3000 && isRare(); i++) {
      const { calls, text } = write(tokenizer, random, i % 3 === 0);
      for (const { function: { name, arguments: given } } of calls) {
        const shown = `${JSON.stringify(given)} of ${JSON.stringify(text)}`;
        counts[name]++;
        assert(typeof given === "object" && !Array.isArray(given), shown);
        if (name !== "f") continue;
        const { city, days = 0, ...more } = given;
        assert(CITIES.includes(city as string), shown);
        assert(Number.isInteger(days) && +days! >= 0 && +days! <= 9, shown);
        assertEquals(more, {}, shown);
      }
    }
    assertEquals(Object.keys(counts), ["f", "g"]);
    assert(!isRare(), JSON.stringify(counts));
  }
});

/** The mask after a text, written in whole tags and otherwise in bytes. */
function after(text: string, begins: "text" | "reasoning" = "text"): CallMask {
  const mask = callGrammarOf(TOOLS).mask(tagged, VOCAB, begins);
  for (let at = 0; at < text.length;) {
    const tag = ADDED.find((one) => text.startsWith(one, at));
    mask.accept(tag ? tagged.tokenId(tag)! : text.charCodeAt(at));
    at += tag?.length ?? 1;
  }
  return mask;
}

const ids = (texts: readonly string[]) =>
  texts.map((text) => {
    const piece = PIECES.indexOf(text);
    return piece < 0 ? text.charCodeAt(0) : BYTES.length + piece;
  }).sort((a, b) => a - b);

Deno.test("text and reasoning are free, but no call begins without the grammar", () => {
  const refusedAfter = (text: string, begins?: "reasoning") => {
    const free = new Set(allowed(after(text, begins)));
    return PIECES.filter((piece) => !free.has(ids([piece])[0]));
  };
  const always = ["<tool_call>x", "<function=f>"];
  assertEquals(refusedAfter("Hello <b>"), always);
  assertEquals(refusedAfter("Hello <tool_"), ["call>{", ...always]);
  assertEquals(refusedAfter("Hello <function="), [...always, "f>"]);
  assertEquals(refusedAfter("Hello <tool_call", "reasoning"), []);
  const thought = "<think><tool_call>1</think>";
  assertEquals(refusedAfter(`${thought}<t`), [...always, "ool_call>\n"]);
  assertEquals(refusedAfter("x<think><tool_"), ["call>{", ...always]);
});

Deno.test("a call is JSON of a known function, and its arguments are those of a strict one", () => {
  assertEquals(
    allowed(after("Sure.<tool_call>")),
    ids(["{", "\n", '{"', PIECES[15], PIECES[16]]),
  );
  assertEquals(allowed(after('<tool_call>{"name":"')), ids(["f", "g"]));
  const begun = '<tool_call>\n{"name": "f", "arguments": {"city":';
  assertEquals(allowed(after(begun)), ids(['"', '"Oslo"']));
  const whole = `${begun}"Oslo"}}`;
  const end = tagged.tokenId("</tool_call>")!;
  assertEquals(allowed(after(whole)), [
    ...ids(["\n", "<", "</tool_call"]),
    end,
  ]);
  // Not those that hold a tag and more, nor `<think>` after what may be blank.
  assertEquals(allowed(after(`${whole}\n</tool_call>`)).length, VOCAB - 3);
  assertEquals(allowed(after(`${begun}"a`)), ids(["<", "</tool_call"]));
  const anything = '<tool_call>{"name":"g","arguments":{"x":"';
  assert(!allowed(after(anything)).includes(end));
  assertThrows(() => after(`${begun}1`), Error, "token 49 was not allowed");
});

Deno.test("a reply under a schema may call strict functions instead", () => {
  const mask = new SchemaGrammar({ const: 12 })
    .mask(tagged, VOCAB, [tagged.tokenId("<end>")!], { tools: TOOLS });
  mask.accept(tagged.tokenId("<tool_call>")!);
  for (const char of '{"name":"f","arguments":{"city":') {
    mask.accept(char.charCodeAt(0));
  }
  const bits = new Uint32Array(Math.ceil(VOCAB / 32));
  assert(mask.fill(bits));
  const next = Array.from({ length: VOCAB }, (_, id) => id)
    .filter((id) => bits[id >>> 5] >>> (id & 31) & 1);
  assertEquals(next, ids(['"', '"Oslo"']));
});

Deno.test("a strict schema that cannot be guaranteed is refused, with the function's name", () => {
  const parameters = { type: "array", uniqueItems: true };
  const tool = (strict: boolean): Tool => ({
    type: "function",
    function: { name: "unsure", strict, parameters },
  });
  callGrammarOf([tool(false)]);
  assertThrows(
    () => callGrammarOf([tool(true)]),
    OptionError,
    'Cannot use the schema of the strict function "unsure": uniqueItems at #',
  );
});
