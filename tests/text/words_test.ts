import { assertEquals, assertThrows } from "@std/assert";
import { smallJson, tokenizerOf } from "../support/small_tokenizer.ts";
import { readNormalizer, readPreTokenizer } from "../../lib/text/words.ts";
import { Budget } from "../../lib/text/pattern.ts";

type Json = Record<string, unknown>;

const words = (steps: Json[] | Json, text: string) => {
  const json = Array.isArray(steps)
    ? {
      type: "Sequence",
      pretokenizers: [...steps, BYTES],
    }
    : steps;
  return [...readPreTokenizer(json)(text, new Budget(text.length))];
};
const BYTES = { type: "ByteLevel", add_prefix_space: false, use_regex: false };
const split = (pattern: Json, behavior: string, invert = false) => [
  { type: "Split", pattern, behavior, invert },
];

Deno.test("Split cuts as each behavior says, also inverted", () => {
  // As in the documentation of tokenizers' SplitDelimiterBehavior.
  const text = "the-final--countdown";
  const cut = (behavior: string, invert = false) =>
    words(split({ String: "-" }, behavior, invert), text);
  assertEquals(cut("Removed"), ["the", "final", "countdown"]);
  assertEquals(cut("Isolated"), ["the", "-", "final", "-", "-", "countdown"]);
  assertEquals(cut("MergedWithPrevious"), ["the-", "final-", "-", "countdown"]);
  assertEquals(cut("MergedWithNext"), ["the", "-final", "-", "-countdown"]);
  assertEquals(cut("Contiguous"), ["the", "-", "final", "--", "countdown"]);
  assertEquals(cut("Removed", true), ["-", "-", "-"]);
  assertEquals(cut("Isolated", true), cut("Isolated"));
  assertEquals(cut("MergedWithNext", true), [
    ...["the-", "final-", "-", "countdown"],
  ]);
  const regex = words(split({ Regex: "-+" }, "MergedWithPrevious"), text);
  assertEquals(regex, ["the-", "final--", "countdown"]);
  assertEquals(words(split({ String: "" }, "Isolated"), "ab"), ["ab"]);
  assertEquals(words(split({ String: "." }, "Removed"), "a.b+"), ["a", "b+"]);
  assertEquals(words(split({ Regex: "x*" }, "Isolated"), "axxb"), [
    ...["a", "xx", "b"],
  ]);
});

Deno.test("ByteLevel cuts with GPT-2's pattern and puts a space in front", () => {
  const gpt2 = { type: "ByteLevel", add_prefix_space: true };
  assertEquals(words(gpt2, "I've 12  cats"), [
    " I",
    "'ve",
    " 12",
    " ",
    " cats",
  ]);
  assertEquals(words(gpt2, " a"), [" a"]);
  assertEquals(words({ ...gpt2, add_prefix_space: false }, "a b"), ["a", " b"]);
  assertEquals(words({ ...gpt2, use_regex: false }, "a b"), [" a b"]);
  // In a sequence, each part gets its space.
  const digits = [{ type: "Digits", individual_digits: true }];
  const sequence = { type: "Sequence", pretokenizers: [...digits, gpt2] };
  assertEquals(words(sequence, "a12"), [" a", " 1", " 2"]);
});

Deno.test("Digits, Punctuation and WhitespaceSplit cut by kinds of characters", () => {
  const digits = (individual: boolean) => [
    { type: "Digits", individual_digits: individual },
  ];
  assertEquals(words(digits(true), "a12½b"), ["a", "1", "2", "½", "b"]);
  assertEquals(words(digits(false), "a12½b"), ["a", "12½", "b"]);
  assertEquals(words([{ type: "Punctuation" }], "a$,—b"), [
    ...["a", "$", ",", "—", "b"],
  ]);
  assertEquals(
    words([{ type: "Punctuation", behavior: "Contiguous" }], "a?!b"),
    ["a", "?!", "b"],
  );
  assertEquals(words([{ type: "WhitespaceSplit" }], " a\u0085b\ufeff"), [
    ...["a", "b\ufeff"],
  ]);
});

Deno.test("normalizers change the text as in tokenizers", () => {
  const normalize = (json: unknown, text: string) =>
    readNormalizer(json)(text, new Budget(text.length));
  assertEquals(normalize(null, "e\u0301ﬁ"), "e\u0301ﬁ");
  assertEquals(normalize({ type: "NFC" }, "e\u0301ﬁ"), "éﬁ");
  assertEquals(normalize({ type: "NFD" }, "éﬁ"), "e\u0301ﬁ");
  assertEquals(normalize({ type: "NFKC" }, "e\u0301ﬁ"), "éfi");
  assertEquals(normalize({ type: "NFKD" }, "éﬁ"), "e\u0301fi");
  assertEquals(normalize({ type: "Lowercase" }, "ΑΣ İ"), "ασ i\u0307");
  assertEquals(normalize({ type: "StripAccents" }, "e\u0301é"), "eé");
  const strip = { type: "Strip", strip_left: true, strip_right: true };
  assertEquals(normalize(strip, "\u0085 a \u3000"), "a");
  assertEquals(normalize({ ...strip, strip_left: false }, " a "), " a");
  assertEquals(normalize({ ...strip, strip_right: false }, " a "), "a ");
  const prepend = { type: "Prepend", prepend: "_" };
  assertEquals([normalize(prepend, "a"), normalize(prepend, "")], ["_a", ""]);
  const replace = (pattern: Json) => ({
    type: "Replace",
    pattern,
    content: "$&",
  });
  assertEquals(normalize(replace({ String: "." }), "a.b"), "a$&b");
  assertEquals(normalize(replace({ Regex: "[ab]+" }), "abcb"), "$&c$&");
  assertEquals(
    normalize(
      { type: "Sequence", normalizers: [{ type: "NFKC" }, prepend] },
      "ﬁ",
    ),
    "_fi",
  );
});

Deno.test("more combining marks in a row than anybody writes are refused", () => {
  const marks = "\u0301\u0323";
  for (const type of ["NFC", "NFD", "NFKC", "NFKD"]) {
    const normalize = (text: string) =>
      readNormalizer({ type })(text, new Budget(text.length));
    const fine = `e${marks.repeat(500)}`.repeat(3);
    assertEquals(normalize(fine), fine.normalize(type));
    assertThrows(
      () => normalize(`e${marks.repeat(500)}\u0301`),
      Error,
      "Cannot encode a text with 1001 combining marks in a row, must have at most 1000",
    );
  }
});

Deno.test("post-processors put tokens around a text; add_bos_token replaces them", () => {
  const template = {
    type: "TemplateProcessing",
    single: [
      { SpecialToken: { id: "<s>", type_id: 0 } },
      { Sequence: { id: "A", type_id: 0 } },
      { SpecialToken: { id: "</s>", type_id: 0 } },
    ],
    special_tokens: {
      "<s>": { id: "<s>", ids: [300], tokens: ["<s>"] },
      "</s>": { id: "</s>", ids: [301], tokens: ["</s>"] },
    },
  };
  const sequence = {
    type: "Sequence",
    processors: [{ type: "ByteLevel" }, template],
  };
  const added_tokens = [
    { id: 300, content: "<s>", special: true },
    { id: 301, content: "</s>", special: true },
  ];
  const ids = (post_processor: unknown, config: Json = {}, options = {}) =>
    tokenizerOf(smallJson([], { added_tokens, post_processor }), config)
      .encode("a", options);
  const named = { bos_token: "<s>", eos_token: "</s>" };
  assertEquals(ids(null), [97]);
  assertEquals(ids(null, named), [97]);
  assertEquals(ids({ type: "ByteLevel" }), [97]);
  assertEquals(ids(template), [300, 97, 301]);
  assertEquals(ids(sequence), [300, 97, 301]);
  assertEquals(ids(template, {}, { addSpecialTokens: false }), [97]);
  assertEquals(ids(null, { ...named, add_bos_token: true }), [300, 97]);
  assertEquals(ids(null, { ...named, add_eos_token: true }), [97, 301]);
  assertEquals(ids(template, { ...named, add_bos_token: true }), [300, 97]);
  assertEquals(ids(template, { ...named, add_bos_token: false }), [97]);
  assertEquals(
    ids(null, { ...named, add_bos_token: true, add_eos_token: true }),
    [300, 97, 301],
  );
  // Without a bos_token there is nothing to add.
  assertEquals(ids(null, { bos_token: null, add_bos_token: true }), [97]);

  const refused: [post: unknown, config: Json, message: string][] = [
    [
      { type: "Bert" },
      {},
      'post_processor is {"type":"Bert"}, must be ByteLevel',
    ],
    [
      { ...template, single: [] },
      {},
      "post_processor.single has the text 0 times, must be once",
    ],
    [
      { ...template, special_tokens: {} },
      {},
      'post_processor.special_tokens["<s>"].ids is missing, must be a list',
    ],
    [
      {
        ...template,
        special_tokens: { ...template.special_tokens, "<s>": { ids: [5] } },
      },
      {},
      'post_processor.special_tokens["<s>"].ids is [5], must be [300]',
    ],
    [null, { add_bos_token: "yes" }, 'add_bos_token is "yes", must be true'],
  ];
  for (const [post, config, message] of refused) {
    assertThrows(
      () => ids(post, config),
      Error,
      `Cannot load the tokenizer of a-checkpoint: ${message}`,
    );
  }
});

Deno.test("what is not supported is refused by name", () => {
  const refused: [Json, string][] = [
    [
      { pre_tokenizer: null },
      "pre_tokenizer is null, must be an object",
    ],
    [
      { pre_tokenizer: { type: "Metaspace" } },
      'pre_tokenizer.type is "Metaspace", must be ByteLevel, because it is the last step',
    ],
    [
      { pre_tokenizer: { type: "Sequence", pretokenizers: [] } },
      "pre_tokenizer is ",
    ],
    [
      {
        pre_tokenizer: { type: "Sequence", pretokenizers: [BYTES, BYTES] },
      },
      'pre_tokenizer.pretokenizers[0].type is "ByteLevel", must be other than ByteLevel',
    ],
    [
      {
        pre_tokenizer: {
          type: "Sequence",
          pretokenizers: [{ type: "BertPreTokenizer" }, BYTES],
        },
      },
      'pre_tokenizer.pretokenizers[0].type is "BertPreTokenizer", must be Split, Digits',
    ],
    [
      {
        pre_tokenizer: {
          type: "Sequence",
          pretokenizers: [...split({ String: "x" }, "isolated"), BYTES],
        },
      },
      'pre_tokenizer.pretokenizers[0].behavior is "isolated", must be Isolated, Removed',
    ],
    [
      {
        pre_tokenizer: {
          type: "Sequence",
          pretokenizers: [...split({}, "Isolated"), BYTES],
        },
      },
      "pre_tokenizer.pretokenizers[0].pattern is {}, must be",
    ],
    [
      { normalizer: { type: "Precompiled" } },
      'normalizer.type is "Precompiled", must be NFC, NFD',
    ],
    [
      { normalizer: { type: "Sequence", normalizers: [{ type: "Nmt" }] } },
      'normalizer.normalizers[0].type is "Nmt"',
    ],
    [{ decoder: { type: "Metaspace" } }, 'decoder.type is "Metaspace"'],
    [{ decoder: null }, 'decoder.type is missing, must be "ByteLevel"'],
  ];
  for (const [changes, message] of refused) {
    assertThrows(
      () => tokenizerOf(smallJson([], changes)),
      Error,
      `Cannot load the tokenizer of a-checkpoint: ${message}`,
    );
  }
});
