import { assertEquals, assertThrows } from "@std/assert";
import { smallJson, tokenizerOf } from "../support/small_tokenizer.ts";

type Json = Record<string, unknown>;
const token = (content: string, id: number, flags: Json = {}) => ({
  id,
  content,
  special: false,
  normalized: false,
  ...flags,
});
/** The ids of a text; added tokens have ids from 300, other ids are bytes. */
const idsWith = (added: Json[], changes: Json = {}, config: Json = {}) => {
  const json = smallJson([], { added_tokens: added, ...changes });
  const tokenizer = tokenizerOf(json, config);
  return (text: string) => tokenizer.encode(text);
};
const bytes = (text: string) => [...new TextEncoder().encode(text)];

Deno.test("of overlapping added tokens the leftmost is found, then the longest", () => {
  const ids = idsWith([
    token("<a", 300),
    token("<a><b>", 301),
    token("a><", 302),
    token("<b>", 303),
  ]);
  assertEquals(ids("<a><b>"), [301]);
  assertEquals(ids("<a><c>"), [300, ...bytes("><c>")]);
  assertEquals(ids("xa><b>"), [120, 302, ...bytes("b>")]);
  assertEquals(ids("<<b>"), [60, 303]);
});

Deno.test("a single_word token is found only between other characters", () => {
  const ids = idsWith([token("cat", 300, { single_word: true })]);
  assertEquals(ids("cat"), [300]);
  assertEquals(ids("a cat!"), [...bytes("a "), 300, 33]);
  for (const text of ["cats", "écat", "1cat", "cat_", "cat\u0301", "𝒳cat"]) {
    assertEquals(ids(text), bytes(text), text);
  }
  assertEquals(ids("中 cat中"), bytes("中 cat中"));
  assertEquals(ids("😀cat😀"), [...bytes("😀"), 300, ...bytes("😀")]);
  // One that does not count hides a shorter one, as in Hugging Face's tokenizers.
  const hidden = idsWith([
    token("cat", 300, { single_word: true }),
    token("at", 301),
  ]);
  assertEquals(hidden("scat at"), [...bytes("scat "), 301]);
});

Deno.test("lstrip and rstrip also match white space", () => {
  const ids = idsWith([
    token("<l>", 300, { lstrip: true }),
    token("<r>", 301, { rstrip: true }),
    token("<p>", 302),
  ]);
  assertEquals(ids("a \n\u00a0<l> b"), [97, 300, ...bytes(" b")]);
  assertEquals(ids("a <r> \t\u3000b"), [...bytes("a "), 301, 98]);
  assertEquals(ids("a <p> b"), [...bytes("a "), 302, ...bytes(" b")]);
  assertEquals(ids("<r>  <l>"), [301, 300]);
  assertEquals(ids("<p>  <l>"), [302, 300]);
  assertEquals(ids("\ufeff<l>"), [...bytes("\ufeff"), 300]);
});

Deno.test("normalized tokens are found in the normalized text, others before", () => {
  const normalizer = { type: "Lowercase" };
  const ids = idsWith(
    [
      token("<Raw>", 300),
      token("Day", 301, { normalized: true }),
      token("<x>", 302, { special: true, normalized: undefined }),
      token("YZ", 303, { special: false, normalized: undefined }),
    ],
    { normalizer },
  );
  assertEquals(ids("<Raw> DAY day"), [300, 32, 301, 32, 301]);
  assertEquals(ids("<RAW>"), bytes("<raw>"));
  assertEquals(ids("<X><x>"), [...bytes("<x>"), 302]);
  assertEquals(ids("yzYZ"), [303, 303]);
  const nfc = idsWith(
    [token("e\u0301", 300, { normalized: true })],
    { normalizer: { type: "NFC" } },
  );
  assertEquals(nfc("\u00e9e\u0301"), [300, 300]);
  assertEquals(
    idsWith([token("e\u0301", 300)], { normalizer: { type: "NFC" } })("\u00e9"),
    bytes("\u00e9"),
  );
});

Deno.test("tokenizer_config.json adds tokens and changes flags", () => {
  const added = [token("<a>", 300), token("<b>", 301)];
  const config = {
    added_tokens_decoder: {
      "301": { content: "<b>", special: true, lstrip: true },
      "302": { content: "<c>", special: true },
      "303": { content: "<d>" },
      "97": { content: "a", special: true },
    },
  };
  const tokenizer = tokenizerOf(smallJson([], { added_tokens: added }), config);
  assertEquals(tokenizer.encode("<a> <b><c><d>b"), [300, 301, 302, 303, 98]);
  assertEquals(tokenizer.specialIds, new Set([301, 302, 97]));
  assertEquals(tokenizer.tokenId("<d>"), 303);
  assertEquals(tokenizer.decode([302, 303]), "<c><d>");
  assertEquals(
    tokenizer.decode([302, 303], { skipSpecialTokens: true }),
    "<d>",
  );
});

Deno.test("tokens named in tokenizer_config.json are special, new ones get an id", () => {
  const added = [token("<a>", 300, { lstrip: true }), token("<b>", 301)];
  const config = {
    eos_token: "<a>",
    bos_token: { content: "<s>", lstrip: true },
    pad_token: null,
    additional_special_tokens: ["<b>", "x", { content: "<more>" }],
    extra_special_tokens: { image_token: "<img>" },
  };
  const tokenizer = tokenizerOf(smallJson([], { added_tokens: added }), config);
  assertEquals(
    tokenizer.encode("- <a>- <s><b>xy<more><img>"),
    [45, 300, 45, 302, 301, 120, 121, 303, 304],
  );
  assertEquals(tokenizer.specialIds, new Set([300, 301, 302, 120, 303, 304]));
  assertEquals(
    tokenizerOf(smallJson(), { extra_special_tokens: ["<i>", "<j>"] })
      .encode("<j><i>"),
    [257, 256],
  );
});

Deno.test("split_special_tokens spells special tokens out", () => {
  const added = [token("<a>", 300, { special: true }), token("<b>", 301)];
  const ids = idsWith(added, {}, { split_special_tokens: true });
  assertEquals(ids("<a><b>"), [...bytes("<a>"), 301]);
});

Deno.test("files that disagree, and wrong entries, are refused", () => {
  const refused: [added: unknown, config: Json, message: string][] = [
    [
      [token("<a>", 300), token("<b>", 300)],
      {},
      '"<b>" has id 300 in added_tokens[1], which "<a>" also has',
    ],
    [
      [token("<a>", 300), token("<a>", 301)],
      {},
      '"<a>" has id 301 in added_tokens[1], but 300 before that',
    ],
    [
      [token("a", 300)],
      {},
      '"a" has id 300 in added_tokens[0], but 97 in model.vocab',
    ],
    [
      [token("<a>", 97)],
      {},
      '"<a>" has id 97 in added_tokens[0], which "a" also has',
    ],
    [
      [token("<a>", 300)],
      { added_tokens_decoder: { "301": { content: "<a>" } } },
      '"<a>" has id 301 in added_tokens_decoder["301"], but 300 before that',
    ],
    [
      [token("<a>", 300)],
      { added_tokens_decoder: { "300": { content: "<b>" } } },
      '"<b>" has id 300 in added_tokens_decoder["300"], which "<a>" also has',
    ],
    [{}, {}, "added_tokens is {}, must be a list"],
    [[5], {}, "added_tokens[0] is 5, must be an object"],
    [[{ id: 300 }], {}, "added_tokens[0].content is missing"],
    [[{ content: "<a>" }], {}, "the id of added_tokens[0] is missing"],
    [[token("<a>", -1)], {}, "the id of added_tokens[0] is -1"],
    [
      [token("<a>", 300, { lstrip: "yes" })],
      {},
      'added_tokens[0].lstrip is "yes", must be true or false',
    ],
    [
      [token("x".repeat(1001), 300)],
      {},
      "added_tokens[0].content has 1001 characters, must have at most 1000",
    ],
    [[], { added_tokens_decoder: [] }, "added_tokens_decoder is []"],
    [
      [],
      { added_tokens_decoder: { x: { content: "<a>" } } },
      'the id of added_tokens_decoder["x"] is "x", must be a token id',
    ],
    [[], { bos_token: 5 }, "bos_token is 5, must be a string, an object"],
    [
      [],
      { additional_special_tokens: [7] },
      'additional_special_tokens["0"] is 7',
    ],
    [[], { extra_special_tokens: "<a>" }, 'extra_special_tokens is "<a>"'],
  ];
  for (const [added, config, message] of refused) {
    assertThrows(
      () => tokenizerOf(smallJson([], { added_tokens: added }), config),
      Error,
      `Cannot load the tokenizer of a-checkpoint: ${message}`,
    );
  }
  const same = [
    token("EE", 300, { normalized: true }),
    token("\u00caE", 301, { normalized: true }),
  ];
  const strip = {
    type: "Sequence",
    normalizers: [{ type: "NFD" }, { type: "StripAccents" }],
  };
  assertThrows(
    () => tokenizerOf(smallJson([], { added_tokens: same, normalizer: strip })),
    Error,
    'the normalizer turns "EE" and "ÊE" into the same text',
  );
  const mark = [token("\u0301", 300, { normalized: true })];
  assertThrows(
    () => tokenizerOf(smallJson([], { added_tokens: mark, normalizer: strip })),
    Error,
    "the normalizer leaves nothing of",
  );
  // An empty one is skipped.
  idsWith([token("", 300)]);
});
