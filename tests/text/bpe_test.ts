import { assert, assertEquals, assertThrows } from "@std/assert";
import { createBpe } from "../../lib/text/bpe.ts";
import { randomTest } from "../support/random.ts";
import {
  BYTES,
  smallJson,
  tokenizerOf,
  tokensOf,
} from "../support/small_tokenizer.ts";

type Model = Record<string, unknown> & { vocab: Record<string, number> };
const modelOf = (merges: string[], changes: Record<string, unknown> = {}) =>
  smallJson(merges, {}, changes).model as Model;
const encode = (model: unknown, text: string) => {
  const ids: number[] = [];
  for (const _ of createBpe(model).encode(text, ids));
  return ids;
};

Deno.test("the best ranked pair is merged first, of equal ones the leftmost", () => {
  const model = modelOf(["a b", "b c", "ab c", "a a"]);
  const { ab, bc, abc, aa } = model.vocab;
  assertEquals(encode(model, "abc"), [abc]);
  assertEquals(encode(model, "bca"), [bc, 97]);
  assertEquals(encode(model, "aaa"), [aa, 97]);
  assertEquals(encode(model, "aab"), [97, ab]);
  // Another order: b c wins over a b, and then nothing makes abc.
  const other = modelOf(["b c", "a b", "ab c"]);
  assertEquals(encode(other, "abc"), [97, other.vocab.bc]);
  assertEquals(encode(model, ""), []);
});

Deno.test("merges are strings or pairs, and the last of equal ones counts", () => {
  const { vocab } = modelOf(["a b", "b c"]);
  const pairs = (merges: unknown) => ({ type: "BPE", vocab, merges });
  assertEquals(encode(pairs([["a", "b"], ["b", "c"]]), "abc"), [vocab.ab, 99]);
  assertEquals(encode(pairs(["a b", "b c", "a b"]), "abc"), [97, vocab.bc]);
  assertEquals(encode(pairs(["#version: 0.2", "a b"]), "ab"), [vocab.ab]);
});

Deno.test("ignore_merges takes a whole word from the vocabulary", () => {
  const { vocab } = modelOf(["a b"]), { ab } = vocab;
  const model = modelOf(["a b"], {
    vocab: { ...vocab, abé: 900, "abÃ©": 901 },
  });
  assertEquals(encode(model, "abé"), [ab, 0xc3, 0xa9]);
  assertEquals(encode({ ...model, ignore_merges: true }, "abé"), [901]);
  assertEquals(encode({ ...model, ignore_merges: true }, "abéa"), [
    ...[ab, 0xc3, 0xa9, 97],
  ]);
});

/** Byte-pair encoding as its definition says, in quadratic time. */
function byDefinition(text: string, merges: string[][]): string[] {
  const word = [...new TextEncoder().encode(text)].map((byte) => BYTES[byte]);
  while (true) {
    let best = merges.length, at = -1;
    for (let i = 0; i + 1 < word.length; i++) {
      const rank = merges.findIndex(([a, b]) =>
        a === word[i] && b === word[i + 1]
      );
      if (rank >= 0 && rank < best) [best, at] = [rank, i];
    }
    if (at < 0) return word;
    word.splice(at, 2, word[at] + word[at + 1]);
  }
}

randomTest("random merges give what the definition gives", (random) => {
  for (let trial = 0; trial < 200; trial++) {
    const tokens = ["a", "b", "c", "Ã", "©"];
    const merges: string[][] = [];
    for (let i = random.int(0, 12); i >= 0; i--) {
      const pair = [0, 1].map(() => tokens[random.int(0, tokens.length - 1)]);
      const known = merges.some(([a, b]) => a === pair[0] && b === pair[1]);
      if (known || pair.join("").length > 6) continue;
      merges.push(pair);
      if (!tokens.includes(pair.join(""))) tokens.push(pair.join(""));
    }
    const bpe = createBpe(modelOf(merges.map((pair) => pair.join(" "))));
    for (let i = 0; i < 10; i++) {
      const text = Array.from(
        { length: random.int(0, 20) },
        () => "abcé"[random.int(0, 3)],
      ).join("");
      const ids: number[] = [];
      for (const _ of bpe.encode(text, ids));
      assertEquals(
        ids.map((id) => bpe.tokens.get(id)),
        byDefinition(text, merges),
        `${text} with ${JSON.stringify(merges)}`,
      );
    }
  }
});

Deno.test("a megabyte without a boundary takes no quadratic time", () => {
  const bpe = createBpe(modelOf(["a a", "aa aa", "aaaa aaaa"]));
  const ids: number[] = [];
  let parts = 0;
  for (const _ of bpe.encode("a".repeat(1_000_001), ids)) parts++;
  assert(parts > 100, `${parts} parts`);
  assertEquals([ids.length, ids.at(-1)], [125_001, 97]);
});

Deno.test("bytes that the vocabulary lacks become unk_token, fused or not", () => {
  const { vocab } = modelOf([]);
  delete vocab[BYTES[0xff]]; // not in UTF-8
  createBpe({ type: "BPE", vocab, merges: [] });
  delete vocab.a;
  vocab["<unk>"] = 999;
  const model = { type: "BPE", vocab, merges: [], unk_token: "<unk>" };
  assertEquals(encode(model, "baab"), [98, 999, 999, 98]);
  assertEquals(encode({ ...model, fuse_unk: true }, "baaba"), [
    ...[98, 999, 98, 999],
  ]);
});

Deno.test("a model that cannot be right is refused", () => {
  const good = modelOf(["a b"]);
  const { vocab } = good;
  const { a: _a, [BYTES[0xe2]]: _e2, ...gaps } = vocab;
  const { ab: _ab, ...unmerged } = vocab;
  const refused: [model: unknown, message: string][] = [
    [undefined, "model is missing, must be an object"],
    [[], "model is [], must be an object"],
    [{ ...good, type: "Unigram" }, 'model.type is "Unigram", must be "BPE"'],
    [{ ...good, type: undefined }, 'model.type is missing, must be "BPE"'],
    [
      { ...good, vocab: [["a", 0]] },
      'model.vocab is [["a",0]], must be an object of tokens and their ids',
    ],
    [
      { ...good, vocab: { ...vocab, x: 1.5 } },
      'the id of "x" in model.vocab is 1.5, must be an integer from 0 to 67108863',
    ],
    [
      { ...good, vocab: { ...vocab, a: "97" } },
      'the id of "a" in model.vocab is "97"',
    ],
    [
      { ...good, vocab: { ...vocab, xyz: 97 } },
      'the id of "xyz" in model.vocab is 97, which "a" also has',
    ],
    [
      { ...good, vocab: gaps, merges: [] },
      'model.vocab lacks 2 of 243 bytes of UTF-8 ("a" for byte 0x61, "â" for byte 0xe2) and model.unk_token is null, so text would be dropped',
    ],
    [
      { ...good, vocab: {}, merges: [] },
      "model.vocab lacks 243 of 243 bytes of UTF-8",
    ],
    [
      { ...good, merges: undefined },
      "model.merges is missing, must be a list of pairs of tokens",
    ],
    [{ ...good, merges: ["a b c"] }, 'merge 0 is "a b c", must be two tokens'],
    [{ ...good, merges: [["a"]] }, 'merge 0 is ["a"], must be two tokens'],
    [{ ...good, merges: ["a b", 7] }, "merge 1 is 7, must be two tokens"],
    [
      { ...good, merges: ["a zz"] },
      'merge 0 needs "zz", which model.vocab does not have',
    ],
    [
      { ...good, vocab: unmerged },
      'merge 0 needs "ab", which model.vocab does not have',
    ],
    [{ ...good, dropout: 0.1 }, "model.dropout is 0.1, must be null"],
    [
      { ...good, continuing_subword_prefix: "##" },
      'model.continuing_subword_prefix is "##", must be empty or null',
    ],
    [
      { ...good, unk_token: "<unk>" },
      'model.unk_token is "<unk>", must be a token of model.vocab or null',
    ],
  ];
  for (const [model, message] of refused) {
    assertThrows(
      () => tokenizerOf({ ...smallJson(), model }),
      Error,
      `Cannot load the tokenizer of a-checkpoint: ${message}`,
    );
  }
  // Gaps between ids are none between bytes.
  const sparse = { ...vocab, ab: 70_000 };
  assertEquals(encode({ ...good, vocab: sparse }, "ab"), [70_000]);
  assertEquals(tokensOf(tokenizerOf({ ...smallJson(), model: good }), "abé"), [
    ...["ab", "\ufffd", "\ufffd"],
  ]);
});
