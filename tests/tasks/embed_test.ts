/** `deno task embed` as a process, with stdin, stdout, stderr and an exit code. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { SEARCH_TASK } from "../../lib/text/embedding.ts";
import { loadQwen3 } from "../../mod.ts";
import { Random } from "../support/random.ts";
import { RERANK_TEMPLATE, writeReranker } from "../support/reranker.ts";
import { type Outcome, RUN } from "../support/run_task.ts";
import { tempFolder } from "../support/temp_checkpoint.ts";

const TEXTS = ["A dog ran home.", "It rained.", "A cat slept."];
const CPU = ["--device", "cpu"];
/** The default model's folder, which no notice is about. */
const STORY = ["--model", "models/stories-3m"];

async function embed(args: string[], stdin?: string): Promise<Outcome> {
  const child = new Deno.Command(Deno.execPath(), {
    args: [...RUN, "tasks/embed.ts", ...args, ...CPU],
    cwd: new URL("../../", import.meta.url),
    env: { NO_COLOR: "1", HF_HUB_OFFLINE: "1", HF_HUB_CACHE: "/none" },
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(stdin ?? "")).catch(() => {});
  await writer.close().catch(() => {});
  const { code, stdout, stderr } = await child.output();
  const text = new TextDecoder();
  return { code, stdout: text.decode(stdout), stderr: text.decode(stderr) };
}

const dot = (a: Float32Array, b: Float32Array) =>
  a.reduce((sum, value, i) => sum + value * b[i], 0);

Deno.test("embed prints the vectors that the library gives, one a line", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const expected = await qwen.embed(TEXTS, { dimensions: 5 });
  const few = [...STORY, "--dimensions", "5"];
  const args = await embed([...TEXTS, ...few]);
  assertEquals(args.code, 0, args.stderr);
  const lines = args.stdout.split("\n");
  assertEquals(lines.pop(), "");
  assertEquals(
    lines.map((line) => Float32Array.from(JSON.parse(line))),
    expected,
  );
  assertMatch(
    args.stderr,
    /^Running on cpu: .*\nCPU \(\d+ threads?\): 3 texts in \d+ ms\.\n$/,
  );
  const stdin = await embed(few, TEXTS.join("\r\n") + "\n");
  assertEquals(stdin.stdout, args.stdout);
  const between = [TEXTS[0], "-", TEXTS[2], ...few];
  assertEquals((await embed(between, `${TEXTS[1]}\n`)).stdout, args.stdout);
  const json = JSON.parse((await embed([...TEXTS, ...few, "--json"])).stdout);
  assertEquals(Object.keys(json), [
    "vectors",
    "device",
    "adapter",
    "loadMs",
    "embedMs",
  ]);
  assertEquals(
    json.vectors.map((one: number[]) => Float32Array.from(one)),
    expected,
  );
  const other = ["--no-normalize", "--instruction", "Find pets"];
  const [raw] = await qwen.embed(TEXTS[0], {
    normalize: false,
    instruction: "Find pets",
  });
  const { stdout } = await embed([TEXTS[0], ...STORY, ...other]);
  assertEquals(Float32Array.from(JSON.parse(stdout)), raw);
});

Deno.test("a query sorts texts by the cosine", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const vectors = await qwen.embed(TEXTS);
  for (const instruction of [undefined, "Find pets"]) {
    const [query] = await qwen.embed("dogs", {
      instruction: instruction ?? SEARCH_TASK,
    });
    const scores = vectors.map((vector, index) => ({
      index,
      score: dot(vector, query),
    })).sort((a, b) => b.score - a.score);
    const args = [...TEXTS, ...STORY, "--query", "dogs"];
    if (instruction) args.push("--instruction", instruction);
    const { code, stdout, stderr } = await embed(args);
    assertEquals(code, 0, stderr);
    assertEquals(
      stdout,
      scores.map(({ index, score }) => `${score.toFixed(4)}  ${TEXTS[index]}\n`)
        .join(""),
    );
    const json = JSON.parse((await embed([...args, "--json"])).stdout);
    assertEquals(
      json.scores.map(({ index, text }: { index: number; text: string }) => [
        index,
        text,
      ]),
      scores.map(({ index }) => [index, TEXTS[index]]),
    );
  }
});

Deno.test("--rerank sorts by the probability of yes", async () => {
  const parts = { classifier: true, template: RERANK_TEMPLATE };
  await using folder = await tempFolder({
    "x.gguf": await writeReranker(new Random(7), parts),
  });
  const model = `${folder.path}/x.gguf`;
  using qwen = await loadQwen3(model, { device: "cpu" });
  const scores = await qwen.rerank("dogs", TEXTS);
  scores.sort((a, b) => b.score - a.score);
  const args = ["--model", model, "--query", "dogs", "--rerank"];
  const { code, stdout, stderr } = await embed(args, TEXTS.join("\n"));
  assertEquals(code, 0, stderr);
  assertEquals(
    stdout,
    scores.map(({ index, score }) => `${score.toFixed(4)}  ${TEXTS[index]}\n`)
      .join(""),
  );
});

Deno.test("a model without a tokenizer takes token ids", async () => {
  const model = "synthetic:qwen3-0.6b?layers=1&vocab=64";
  using qwen = await loadQwen3(model, { device: "cpu" });
  const expected = await qwen.embed([[1, 2], [3]], { dimensions: 3 });
  const args = ["1 2", "3", "--model", model, "--dimensions", "3"];
  const { stdout } = await embed(args);
  assertEquals(
    stdout.trim().split("\n").map((line) =>
      Float32Array.from(JSON.parse(line))
    ),
    expected,
  );
});

Deno.test("what embed refuses is one line", async () => {
  const synthetic = "synthetic:qwen3-0.6b?layers=1&vocab=64";
  for (
    const [args, problem] of [
      [
        [],
        "Cannot embed: there are no texts, pass them as arguments or as lines of stdin",
      ],
      [["a", "", "b"], "Cannot embed: argument 2 is empty, must be a text"],
      [
        ["-"],
        "Cannot embed: there are no texts, pass them as arguments or as lines of stdin",
      ],
      [["-", "a", "-"], "Cannot embed: - is given twice, must be given once"],
      [
        ["a", "--query", ""],
        'Cannot read the flags: --query is "", must be a text',
      ],
      [
        ["a", "--rerank"],
        "Cannot read the flags: --rerank needs a --query",
      ],
      [
        ["a", "--query", "b", "--rerank", "--dimensions", "3"],
        "Cannot read the flags: --dimensions is given with --rerank, which makes no vectors",
      ],
      [
        ["a", "--query", "b", "--no-normalize"],
        "Cannot read the flags: --no-normalize is given with --query, whose scores are the same either way",
      ],
      [
        ["a", "--dimensions", "0"],
        "Cannot read the flags: --dimensions is 0, must be an integer of at least 1",
      ],
      [
        ["1 2", "a", "--model", synthetic],
        "Cannot embed: synthetic:qwen3-0.…layers=1&vocab=64 has no tokenizer, pass token ids such as 1 2 3",
      ],
      [
        ["1 2", "--query", "3", "--rerank", "--model", synthetic],
        "Cannot embed: the model has no tokenizer, which --rerank needs",
      ],
    ] as const
  ) {
    const { code, stdout, stderr } = await embed([...args]);
    assertEquals([code, stdout, stderr], [1, "", `error: ${problem}\n`]);
  }
  const wide = await embed(["a", ...STORY, "--dimensions", "193"]);
  assertEquals([wide.code, wide.stdout], [1, ""]);
  assert(
    wide.stderr.endsWith(
      "error: Cannot embed: --dimensions is 193, must be an integer from 1 to 192\n",
    ),
    wide.stderr,
  );
});
