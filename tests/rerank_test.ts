/** `rerank`: scores against a float64 reference, and what it refuses. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { loadQwen3 } from "../mod.ts";
import { openCheckpoint } from "../lib/checkpoint/open.ts";
import { rerankPrompt } from "../lib/text/embedding.ts";
import { exactState, valuesOf } from "./support/exact_state.ts";
import { eachDevice, gpuTest } from "./support/gpu.ts";
import { Random } from "./support/random.ts";
import {
  RERANK_TEMPLATE,
  type RerankerParts,
  writeReranker,
} from "./support/reranker.ts";
import { tempFolder } from "./support/temp_checkpoint.ts";

const QUERY = "Who has a dog?";
const DOCUMENTS = [
  "Tom has a dog.",
  "It rained {query} all day.",
  "The cat slept.\nThen it ate. ".repeat(5),
];

async function rerankerFile(parts: RerankerParts) {
  return await tempFolder({
    "x.gguf": await writeReranker(new Random(7), parts),
  });
}

/** Compares the scores with those of exact states. */
async function checkScores(
  parts: RerankerParts,
  device: "cpu" | "gpu",
  precision: "f32" | "auto",
  bound: number,
  instruction?: string,
): Promise<void> {
  await using folder = await rerankerFile(parts);
  const path = `${folder.path}/x.gguf`;
  using qwen = await loadQwen3(path, { device, precision });
  await using checkpoint = await openCheckpoint(path);
  const k = qwen.config.hiddenSize;
  const head = parts.classifier
    ? await valuesOf(checkpoint, "classifier")
    : (await valuesOf(checkpoint, "model.embed_tokens.weight"))
      .subarray(2048 * k);
  const scores = await qwen.rerank(QUERY, DOCUMENTS, { instruction });
  assertEquals(scores.map(({ index }) => index), [0, 1, 2]);
  const logits: number[] = [];
  for (const [i, document] of DOCUMENTS.entries()) {
    const task = instruction ??
      "Given a web search query, retrieve relevant passages that answer the query";
    const prompt = RERANK_TEMPLATE.split(/(\{query\}|\{document\})/).map((
      part,
    ) => ({ "{query}": QUERY, "{document}": document })[part] ?? part).join("")
      .replace(/(?<=<Instruct>: ).*/, task);
    const ids = qwen.tokenizer.encode(prompt, { addSpecialTokens: false });
    const state = await exactState(checkpoint, ids);
    let ahead = 0, squares = 0;
    for (let j = 0; j < k; j++) {
      const difference = head[j] - head[k + j];
      ahead += state[j] * difference;
      squares += (state[j] * difference) ** 2;
    }
    logits.push(ahead);
    const { score } = scores[i];
    assert(score > 0 && score < 1);
    const error = Math.abs(Math.log(score / (1 - score)) - ahead);
    const most = bound * Math.sqrt(squares * k);
    assert(error <= most, `document ${i}: off by ${error}, at most ${most}`);
  }
  assert(Math.abs(logits[0] - logits[1]) > 1e-2, `${logits}`);
}

for (
  const [what, parts] of [
    ["a GGUF reranker's rows", { classifier: true, template: RERANK_TEMPLATE }],
    ["the LM head's rows for yes and no", {}],
  ] as const
) {
  Deno.test(
    `scores come from ${what} (cpu)`,
    () => checkScores(parts, "cpu", "auto", 1e-4),
  );
  gpuTest(`scores come from ${what} (gpu)`, async () => {
    await checkScores(parts, "gpu", "f32", 1e-4);
    await checkScores(parts, "gpu", "auto", 3e-3);
  });
  Deno.test(
    `an instruction changes the prompt for ${what}`,
    () => checkScores(parts, "cpu", "auto", 1e-4, "Find pets"),
  );
}

Deno.test("the default prompt is that of the model card", () => {
  assertEquals(
    rerankPrompt("q {document}", "d {query}", undefined),
    RERANK_TEMPLATE.replace("{query}", "q {x}").replace(
      "{document}",
      "d {query}",
    )
      .replace("{x}", "{document}"),
  );
  assertEquals(
    rerankPrompt("q", "d", "t", "{instruction}|{query}|{document}"),
    "t|q|d",
  );
});

eachDevice("rerank gives an empty list for no documents", async (device) => {
  await using folder = await rerankerFile({});
  using qwen = await loadQwen3(folder.path, { device });
  assertEquals(await qwen.rerank("a", []), []);
});

Deno.test("what cannot be ranked is named", async () => {
  await using folder = await rerankerFile({
    classifier: true,
    template: "{query} {document}",
  });
  const path = `${folder.path}/x.gguf`;
  using qwen = await loadQwen3(path, { device: "cpu", context: 40 });
  // deno-lint-ignore no-explicit-any
  const wrong: [any, any, any, string][] = [
    [["a"], ["b"], {}, "the query is a list of 1, must be a string"],
    ["a", "b", {}, 'the list of documents is "b", must be a list'],
    ["a", ["b", 5], {}, "document 1 is 5, must be a string"],
    [
      "",
      ["b"],
      {},
      "the query is empty, it must have at least one character",
    ],
    [
      "a",
      ["b", ""],
      {},
      "document 1 is empty, it must have at least one character",
    ],
    [
      "a",
      ["b"],
      { topK: 3 },
      "the option topK is unknown, must be one of instruction, signal",
    ],
    [
      "a",
      ["b"],
      { instruction: "x" },
      "the file's template has no place for an instruction, must have one",
    ],
    [
      "a",
      ["b", "\udc00"],
      {},
      "document 1 with the query has half of a surrogate pair, must have whole characters",
    ],
  ];
  for (const [query, documents, options, problem] of wrong) {
    const error = await assertRejects(
      () => qwen.rerank(query, documents, options),
      Error,
    );
    assertEquals(error.message, `Cannot rerank: ${problem}`);
  }
  const long = await assertRejects(
    () => qwen.rerank("a", ["b", "a dog ran ".repeat(30)]),
    Error,
  );
  assert(
    /^Cannot rerank: document 1 with the query has \d+ tokens, the context has room for 40$/
      .test(long.message),
    long.message,
  );
  const run = await assertRejects(async () => void await qwen.generate("a"));
  assertEquals(
    (run as Error).message,
    `Cannot generate: ${path} is a reranker (qwen3.pooling_type is 4)`,
  );
});

Deno.test("a template without the query, and a tokenizer without yes, are refused", async () => {
  for (
    const [parts, problem] of [
      [
        { classifier: true, template: "{document}" },
        "the file's template has no {query}, must have one",
      ],
      [
        { silent: true },
        'the tokenizer of PATH has no token "yes", must have one',
      ],
    ] as const
  ) {
    await using folder = await rerankerFile(parts);
    const path = `${folder.path}/x.gguf`;
    using qwen = await loadQwen3(path, { device: "cpu" });
    const error = await assertRejects(() => qwen.rerank("a", ["b"]), Error);
    assertEquals(
      error.message,
      `Cannot rerank: ${problem.replace("PATH", path)}`,
    );
  }
});

Deno.test("rows for yes and no that are too short are refused", async () => {
  const bytes = new Uint8Array(4 * 64);
  await using folder = await tempFolder({
    "x.gguf": await writeReranker(new Random(7), {
      tensors: [{
        name: "cls.output.weight",
        dimensions: [32, 2],
        type: 0,
        bytes,
      }],
    }),
  });
  const path = `${folder.path}/x.gguf`;
  const error = await assertRejects(() => loadQwen3(path), Error);
  assertEquals(
    error.message,
    `Cannot load ${path}: cls.output.weight has shape [2, 32], must be [2, 64] by the file's metadata`,
  );
});

Deno.test("a GGUF file that pools otherwise is refused", async () => {
  const mean = await tempFolder({
    "x.gguf": await writeReranker(new Random(7), {
      entries: [["qwen3.pooling_type", "u32", 1]],
    }),
  });
  await using folder = mean;
  const path = `${folder.path}/x.gguf`;
  const error = await assertRejects(() => loadQwen3(path), Error);
  assertEquals(
    error.message,
    `Cannot use ${path}: qwen3.pooling_type is 1, must be 0 (none), 3 (the last token) or 4 (rank)`,
  );
});

Deno.test("a signal ends ranking", async () => {
  await using folder = await rerankerFile({});
  using qwen = await loadQwen3(folder.path, { device: "cpu" });
  const reason = new Error("enough"), controller = new AbortController();
  const { signal } = controller;
  const many = new Array(200).fill("Tom has a dog.");
  const running = assertRejects(() => qwen.rerank("a", many, { signal }));
  await Promise.resolve();
  controller.abort(reason);
  assertEquals(await running, reason);
  assertEquals((await qwen.rerank("a", ["b"])).length, 1);
});
