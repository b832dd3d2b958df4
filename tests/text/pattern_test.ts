import { assert, assertEquals, assertThrows } from "@std/assert";
import { SplitPreTokenizer } from "npm:@huggingface/tokenizers@0.2.0";
import { Budget, readPattern } from "../../lib/text/pattern.ts";
import { randomTest } from "../support/random.ts";
import { slowTest } from "../support/quick.ts";

const matches = (regex: string, text: string) => [
  ...readPattern({ Regex: regex }, "pattern")(text, new Budget(text.length)),
];

/** JavaScript's own matches of a pattern, as the library writes it. */
function expected(regex: string, text: string): [number, number][] {
  const { pattern } = new SplitPreTokenizer({
    type: "Split",
    behavior: "Isolated",
    pattern: { Regex: regex },
  }) as unknown as { pattern: RegExp };
  return [...text.matchAll(pattern)]
    .map(({ 0: { length }, index }) => [index, index + length]);
}

const QWEN3 =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
/** The counting matcher runs all but the first. */
const PATTERNS = [
  QWEN3,
  `${QWEN3}|(?!)`,
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lo}\\p{M}]+(?i:'s|'t)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s+(?!\\S)|\\s+",
  "(a|b)*?c|\\b\\w+\\b|^\\s+|\\s+$",
  "(?:a*)*b|(a|ab)(c|bcd)?|.{2,4}?",
  "(?<=a)b+|(?<!\\p{L}{2})\\d{1,2}|(?<=(?:ab|a)+)c",
  "(?:(a?)b?)+|[[:alpha:]&&[^a]]+|\\h",
  "(?:|a)+b?|x*",
  "(?=(?:ab)+)a|(?!a).?",
  "a{2,}?b|(?:ab){2}|[^ab]{2,3}",
];
const PIECES = [
  ..."aabbccd1 \n\r\té中😀٣'.,_-\u3000\u0085\u0301\ufeffEX",
  ...["'s", "'LL", "abab", "  ", "İ", "ſ"],
];

randomTest(
  "every pattern matches what JavaScript's own engine does",
  (random) => {
    for (const regex of PATTERNS) {
      for (let trial = 0; trial < 150; trial++) {
        const text = Array.from(
          { length: random.int(0, 12) },
          () => PIECES[random.int(0, PIECES.length - 1)],
        ).join("");
        assertEquals(
          matches(regex, text),
          expected(regex, text),
          `${regex} on ${JSON.stringify(text)}`,
        );
      }
    }
  },
);

slowTest("a pattern that backtracks too much is refused with its steps", () => {
  for (
    const [regex, text] of [
      ["(a+)+$", "a".repeat(60) + "b"],
      ["(a|a)*c", "a".repeat(100)],
      ["(.*)*x", "y".repeat(2000)],
      ["(?:\\w+\\s?)+!", "word ".repeat(50)],
      [".*x|.", "y".repeat(100_000)],
      ["(?<=c(a|a)*)b", "a".repeat(60) + "b"],
      ["(?=(a+)+c)a", "a".repeat(60)],
      ["(?:a|b|ab)*c", "ab".repeat(1_000_000)],
    ]
  ) {
    const error = assertThrows(() => matches(regex, text), Error);
    const start =
      `Cannot encode a text of ${text.length} characters: the tokenizer's pattern ${
        JSON.stringify(regex)
      } backtracks too much, it takes more than `;
    assertEquals(error.message.slice(0, start.length), start);
  }
});

Deno.test("a text has one budget for all its words", () => {
  const pattern = readPattern({ Regex: "(a|a)*c" }, "pattern");
  const budget = new Budget(100);
  assertThrows(() => {
    for (let i = 0; i < 1000; i++) [...pattern("a".repeat(13), budget)];
  }, Error);
});

Deno.test("long words do not overflow a stack", () => {
  for (const text of ["中".repeat(6_000_000), "😀".repeat(4_000_000)]) {
    assertEquals(matches(QWEN3, text), [[0, text.length]]);
  }
  assertEquals(matches("(?:a|b)+", "ab".repeat(300_000)), [[0, 600_000]]);
});

Deno.test("patterns that cannot be run are refused", () => {
  const refused: [json: unknown, message: string][] = [
    [{ Regex: "(a" }, 'pattern is "(a", which cannot be run: '],
    [{ Regex: "(a)\\1" }, "\\1 is not supported"],
    [{ Regex: "(?:a{1000}){1000}" }, "it needs more than 20000 instructions"],
    [{ Regex: "a".repeat(5001) }, "pattern has 5001 characters, must have at"],
    [{ Regex: 5 }, 'pattern is {"Regex":5}, must be'],
    ["x", 'pattern is "x", must be { "String": … } or { "Regex": … }'],
  ];
  for (const [json, message] of refused) {
    const error = assertThrows(() => readPattern(json, "pattern"), Error);
    assert(error.message.includes(message), error.message);
    assert(error.message.length < 1000);
  }
  // Deeply nested, but not too long to be read.
  const deep = `${"(?:".repeat(1200)}a${")".repeat(1200)}`;
  assertEquals(matches(deep, "ba"), [[1, 2]]);
});
