/** `embed`: vectors of texts, together and alone, and what it refuses. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { loadQwen3, OptionError, type Qwen3 } from "../mod.ts";
import { openCheckpoint } from "../lib/checkpoint/open.ts";
import { assertAllClose } from "./support/assert_all_close.ts";
import { exactState } from "./support/exact_state.ts";
import { relativeError } from "./support/golden.ts";
import { eachDevice, gpuTest } from "./support/gpu.ts";
import { randomTest } from "./support/random.ts";
import {
  copyCheckpoint,
  safetensorsOf,
  tensorsOf,
  withLargeValues,
} from "./support/temp_checkpoint.ts";

const FIXTURES = new URL("fixtures/", import.meta.url).href;
const TINY = `${FIXTURES}tiny-untied-f32/`;
const CLOSE = { absolute: 2e-5, relative: 2e-5 };

const length = (vector: Float32Array) =>
  Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));

/** Ids below the vocabulary of the tiny fixtures. */
const idsOf = (random: { int(low: number, high: number): number }, n: number) =>
  Array.from({ length: n }, () => random.int(0, 499));

for (const device of ["cpu", "gpu"] as const) {
  const test = device === "cpu"
    ? randomTest
    : (name: string, body: Parameters<typeof randomTest>[1]) =>
      gpuTest(name, (_, trial) => body(trial.random));
  test(`texts of any lengths get the exact states together (${device})`, async (random) => {
    // Two are longer than a pass of the CPU.
    const lengths = [1, 2, 3, 4, 5, 257, 31, 300, 16, 1, 17, 33, 64, 2];
    const texts = lengths.map((n) => idsOf(random, n));
    const options = { device, precision: "f32", context: 300 } as const;
    using qwen = await loadQwen3(TINY, options);
    await using checkpoint = await openCheckpoint(TINY);
    const together = await qwen.embed(texts, { normalize: false });
    assertEquals(together.length, texts.length);
    for (const i of [0, 4, 6, 7, 9, 13]) {
      const exact = await exactState(checkpoint, texts[i]);
      assertAllClose(together[i], exact, CLOSE, `${lengths[i]} tokens`);
    }
    for (const [i, text] of texts.entries()) {
      const [alone] = await qwen.embed(text, { normalize: false });
      assertAllClose(alone, together[i], CLOSE, `${lengths[i]} tokens alone`);
    }
  });
}

Deno.test("vectors have length 1, and are cut before that", async () => {
  using qwen = await loadQwen3(TINY, { device: "cpu" });
  const [plain] = await qwen.embed([3, 4, 5], { normalize: false });
  assertEquals(plain.length, qwen.config.hiddenSize);
  assert(Math.abs(length(plain) - 1) > 0.1);
  const [unit] = await qwen.embed([3, 4, 5]);
  assert(Math.abs(length(unit) - 1) < 1e-6);
  assertAllClose(unit, plain.map((value) => value / length(plain)), CLOSE);
  const cut = plain.slice(0, 20);
  const [few] = await qwen.embed([3, 4, 5], { dimensions: 20 });
  assert(Math.abs(length(few) - 1) < 1e-6);
  assertAllClose(few, cut.map((value) => value / length(cut)), CLOSE);
  const raw = { dimensions: 20, normalize: false };
  assertEquals((await qwen.embed([3, 4, 5], raw))[0], cut);
});

Deno.test("the end token follows strings, never ids, and an instruction precedes", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const { tokenizer } = qwen, end = tokenizer.tokenId("<|endoftext|>")!;
  const encode = (text: string) => [...tokenizer.encode(text), end];
  const [one, two, task] = await Promise.all([
    encode("A dog ran."),
    encode("It rained."),
    encode("Instruct: Find pets\nQuery:A dog ran."),
  ]);
  const [a, b, c, bare] = await qwen.embed([one, two, task, one.slice(0, -1)]);
  // Passes of other sizes sum in another order.
  const assertSame = (actual: Float32Array[], expected: Float32Array[]) => {
    assertEquals(actual.length, expected.length);
    actual.forEach((vector, i) => assertAllClose(vector, expected[i], CLOSE));
  };
  assertSame(await qwen.embed(["A dog ran.", "It rained."]), [a, b]);
  assertSame(await qwen.embed("A dog ran."), [a]);
  assertSame(await qwen.embed(["A dog ran.", two]), [a, b]);
  const instruction = "Find pets";
  assertSame(await qwen.embed("A dog ran.", { instruction }), [c]);
  assert(relativeError(bare, a) > 0.01 && relativeError(c, a) > 0.01);
});

Deno.test("a tokenizer that adds the end token adds the only one", async () => {
  const folder = new URL("../models/stories-3m/", import.meta.url);
  const json = JSON.parse(
    await Deno.readTextFile(new URL("tokenizer_config.json", folder)),
  );
  await using copy = await copyCheckpoint(folder, {
    "tokenizer_config.json": JSON.stringify({ ...json, add_eos_token: true }),
  });
  using qwen = await loadQwen3(copy.path, { device: "cpu" });
  const ids = qwen.tokenizer.encode("A dog ran.");
  assertEquals(ids.at(-1), 0);
  assertEquals(await qwen.embed("A dog ran."), await qwen.embed(ids));
});

Deno.test("no texts give no vectors", async () => {
  using qwen = await loadQwen3(TINY, { device: "cpu" });
  assertEquals(await qwen.embed([]), []);
});

Deno.test("what cannot be embedded is named, with its place", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu", context: 32 });
  const many = "a dog ".repeat(20);
  const { length } = qwen.tokenizer.encode(many);
  // deno-lint-ignore no-explicit-any
  const wrong: [any, any, string][] = [
    [["a", ""], {}, "text 1 is empty, it must have at least one character"],
    [[[1], []], {}, "text 1 is empty, it must have at least one token"],
    [
      [[5], [1, 2048]],
      {},
      "token 1 of text 1 is 2048, ids must be integers from 0 to 2047",
    ],
    [
      [[5], [1.5]],
      {},
      "token 0 of text 1 is 1.5, ids must be integers from 0 to 2047",
    ],
    [
      ["a", many],
      {},
      `text 1 has ${length + 1} tokens, the context has room for 32`,
    ],
    [
      ["a", "a dog ".repeat(70000)],
      {},
      "text 1 has more than 65536 tokens, the context has room for 32",
    ],
    [
      "\ud800",
      {},
      "text 0 has half of a surrogate pair, must have whole characters",
    ],
    [
      ["a", [5]],
      { instruction: "x" },
      "text 1 is token ids, an instruction needs text",
    ],
    [
      ["a", { text: "b" }],
      {},
      "text 1 is an object, must be a string or a list of token ids",
    ],
    [[1, "a"], {}, "text 0 is 1, must be a string or a list of token ids"],
    [new Set(["a"]), {}, "the list of texts is a Set, must be a list"],
    [
      "a",
      { dimensions: 0 },
      "dimensions is 0, must be an integer from 1 to 192",
    ],
    [
      "a",
      { dimensions: 193 },
      "dimensions is 193, must be an integer from 1 to 192",
    ],
    ["a", { normalize: "yes" }, 'normalize is "yes", must be true or false'],
    [
      "a",
      { normalise: true },
      "the option normalise is unknown, did you mean normalize?",
    ],
  ];
  for (const [texts, options, problem] of wrong) {
    const error = await assertRejects(() => qwen.embed(texts, options), Error);
    assertEquals(error.message, `Cannot embed: ${problem}`);
    const isOption = error instanceof OptionError;
    assertEquals(isOption, texts === "a", problem);
  }
  // It is still of use.
  assertEquals((await qwen.embed("a")).length, 1);
});

eachDevice(
  "a signal ends the work, and the model is of use",
  async (device) => {
    using qwen = await loadQwen3(TINY, { device });
    const [expected] = await qwen.embed([1, 2, 3]);
    const reason = new Error("enough");
    const before = AbortSignal.abort(reason);
    const texts = Array.from({ length: 300 }, () => [1, 2, 3, 4, 5]);
    assertEquals(
      await assertRejects(() => qwen.embed(texts, { signal: before })),
      reason,
    );
    const controller = new AbortController(), { signal } = controller;
    const running = qwen.embed(texts, { signal });
    const ended = assertRejects(() => running);
    await Promise.resolve();
    controller.abort(reason);
    assertEquals(await ended, reason);
    assertEquals(await qwen.embed([1, 2, 3]), [expected]);
  },
);

Deno.test("embedding takes turns with other work", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const run = qwen.generate("A dog", { maxTokens: 20 });
  const pieces = run[Symbol.asyncIterator]();
  await pieces.next();
  const [vector] = await qwen.embed("A dog");
  assertEquals(vector.length, 192);
  const busy = qwen.generate("A dog", { maxTokens: 20 }).then(() => {});
  assertEquals(await qwen.embed("A dog"), [vector]);
  while (!(await pieces.next()).done);
  assert(["stop", "length"].includes(run.finishReason!));
  await busy;
  qwen[Symbol.dispose]();
  await assertRejects(
    () => qwen.embed("A dog"),
    Error,
    "Cannot embed: the model was disposed",
  );
});

gpuTest(
  "values that an f16 cache cannot hold are embedded all the same",
  async () => {
    await using large = await withLargeValues(`${FIXTURES}tiny-tied-bf16/`);
    const texts = [[1, 2, 3], [4, 5], Array.from({ length: 40 }, (_, i) => i)];
    const vectors = async (device: "cpu" | "gpu") => {
      using qwen = await loadQwen3(large.path, { device });
      const made = await qwen.embed(texts);
      const widened = qwen.device.choices.filter(({ reason }) =>
        /largest f16/.test(reason)
      );
      return { made, widened, again: await qwen.embed(texts) };
    };
    const expected = await vectors("cpu"), actual = await vectors("gpu");
    assertEquals([expected.widened.length, actual.widened.length], [0, 1]);
    assertEquals(actual.again, actual.made);
    for (const [i, vector] of actual.made.entries()) {
      const error = relativeError(vector, expected.made[i]);
      assert(error < 3e-3, `text ${i}: ${error}`);
    }
  },
);

gpuTest("debug checks every operation of an embedding", async () => {
  const options = { device: "gpu", debug: true } as const;
  using debugged = await loadQwen3(TINY, options);
  using plain = await loadQwen3(TINY, { device: "cpu" });
  const texts = [[1, 2, 3], [400], [5, 6]];
  const expected = await plain.embed(texts);
  for (const [i, vector] of (await debugged.embed(texts)).entries()) {
    assert(relativeError(vector, expected[i]) < 3e-3);
  }
});

/** A copy without a head and with the names of a model that has none. */
async function withoutHead(renamed = true) {
  const folder = new URL(TINY);
  const file = await Deno.readFile(new URL("model.safetensors", folder));
  const tensors = tensorsOf(file);
  tensors.delete("lm_head.weight");
  const own = new Map(
    [...tensors].map(([name, tensor]) => [
      renamed ? name.replace(/^model\./, "") : name,
      tensor,
    ]),
  );
  return await copyCheckpoint(folder, {
    "model.safetensors": safetensorsOf(own),
  });
}

async function refusesText(qwen: Qwen3, problem: string): Promise<void> {
  for (
    const [action, run] of [
      ["generate", async () => void await qwen.generate([1])],
      ["compute logits", async () => void await qwen.logits([1])],
    ] as const
  ) {
    const error = await assertRejects(run, Error);
    assertEquals(error.message, `Cannot ${action}: ${problem}`);
  }
}

Deno.test("a model without a head embeds, and says that it cannot generate", async () => {
  await using copy = await withoutHead();
  using qwen = await loadQwen3(copy.path, { device: "cpu" });
  using whole = await loadQwen3(TINY, { device: "cpu" });
  assertEquals(await qwen.embed([1, 2, 3]), await whole.embed([1, 2, 3]));
  const is =
    `${copy.path} is an embedding model (there is no lm_head.weight, and config.json has tie_word_embeddings false)`;
  await refusesText(qwen, is);
  const error = await assertRejects(() => qwen.rerank("a", ["b"]), Error);
  assertEquals(error.message, `Cannot rerank: ${is}`);
  await using broken = await withoutHead(false);
  await assertRejects(
    () => loadQwen3(broken.path, { device: "cpu" }),
    Error,
    "it lacks lm_head.weight and config.json has tie_word_embeddings false: without a head there are no logits",
  );
});

Deno.test("an embedding model's GGUF file says that it cannot generate", async () => {
  const file = new URL(
    "fixtures/gguf/files/embedding-Q8_0.gguf",
    import.meta.url,
  );
  using qwen = await loadQwen3(file.pathname, { device: "cpu" });
  await refusesText(
    qwen,
    `${file.pathname} is an embedding model (qwen3.pooling_type is 3)`,
  );
});

const MODULES = ["Transformer", "Pooling", "Normalize"].map((kind, idx) => ({
  idx,
  name: `${idx}`,
  path: idx ? `${idx}_${kind}` : "",
  type: `sentence_transformers.models.${kind}`,
}));

/** A copy with the files of Sentence Transformers. */
async function sentenceModel(pooling: unknown, modules: unknown = MODULES) {
  const copy = await copyCheckpoint(TINY, {
    "modules.json": JSON.stringify(modules),
  });
  await Deno.mkdir(`${copy.path}/1_Pooling`);
  await Deno.writeTextFile(
    `${copy.path}/1_Pooling/config.json`,
    JSON.stringify(pooling),
  );
  return copy;
}

Deno.test("the files of Sentence Transformers mark an embedding model", async () => {
  const flags = { pooling_mode_mean_tokens: false, include_prompt: true };
  for (
    const pooling of [
      { ...flags, pooling_mode_lasttoken: true },
      { pooling_mode: "lasttoken" },
    ]
  ) {
    await using copy = await sentenceModel(pooling);
    using qwen = await loadQwen3(copy.path, { device: "cpu" });
    await refusesText(
      qwen,
      `${copy.path} is an embedding model (modules.json has a pooling module)`,
    );
  }
  await using ranks = await sentenceModel({}, [MODULES[0], {
    ...MODULES[1],
    type: "sentence_transformers.cross_encoder.models.LogitScore",
  }]);
  using qwen = await loadQwen3(ranks.path, { device: "cpu" });
  assertEquals((await qwen.logits([1])).length, 500);
});

Deno.test("vectors that are made in another way are refused", async () => {
  const dense = { ...MODULES[2], type: "sentence_transformers.models.Dense" };
  for (
    const [pooling, modules, problem] of [
      [
        { pooling_mode_mean_tokens: true, pooling_mode_lasttoken: false },
        MODULES,
        '1_Pooling/config.json: the pooling is ["mean_tokens"], must be "lasttoken"',
      ],
      [
        { pooling_mode: "cls" },
        MODULES,
        '1_Pooling/config.json: the pooling is ["cls"], must be "lasttoken"',
      ],
      [
        {},
        MODULES,
        '1_Pooling/config.json: the pooling is [], must be "lasttoken"',
      ],
      [
        { pooling_mode: "lasttoken" },
        [...MODULES, dense],
        "modules.json: it has a module Dense, must have Transformer, Pooling, Normalize only",
      ],
    ] as const
  ) {
    await using copy = await sentenceModel(pooling, modules);
    const error = await assertRejects(
      () => loadQwen3(copy.path, { device: "cpu" }),
      Error,
    );
    assertEquals(error.message, `Cannot use ${copy.path}/${problem}`);
  }
});
