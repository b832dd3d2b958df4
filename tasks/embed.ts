/**
 * Prints the vectors of texts, or sorts texts by how well they meet a query.
 *
 *   deno task embed "A dog ran." "It rained."
 *   deno task embed --query "Who has a dog?" --model Qwen/Qwen3-Embedding-0.6B < texts.txt
 */
import { parseSynthetic } from "../lib/checkpoint/synthetic.ts";
import { printable } from "../lib/errors.ts";
import { SEARCH_TASK } from "../lib/text/embedding.ts";
import type { Qwen3 } from "../mod.ts";
import { type Flags, type FlagTable, runTask } from "./flags.ts";
import { onInterrupt } from "./interrupts.ts";
import {
  asIds,
  MODEL_FLAGS,
  nameModel,
  openModel,
  placementOf,
  readStdin,
  requireIds,
  say,
  sayPlacement,
  write,
} from "./model.ts";
import { LOADING_FLAGS, Progress, THREADS_FLAG } from "./progress.ts";

const FLAGS: FlagTable = {
  ...MODEL_FLAGS,
  "context": [
    "number",
    "maximum tokens of a text, with query and prompt",
    "4096, or what the model allows",
  ],
  "query": ["text", "print the texts with their scores, best first"],
  "rerank": [
    "switch",
    "score with a reranker (Qwen3-Reranker) instead of by vectors",
  ],
  "instruction": [
    "text",
    "the task, in front of every text or, if there is one, of the query",
    "none; for a query, as for a web search",
  ],
  "dimensions": ["number", "elements of a vector to keep", "all"],
  "normalize": [
    "switch",
    "scale vectors to length 1; --no-normalize turns this off",
    "on",
  ],
  "json": ["switch", "print one line of JSON"],
  "verbose": ["switch", "say every choice about the device, with its reason"],
  ...LOADING_FLAGS,
  ...THREADS_FLAG,
};

const NOTES =
  `Each argument is a text, and each line of stdin in place of a - or if there are no arguments.
Prints the vector of each text as a line of JSON. With --query, prints each text after its score: the cosine of its vector and the query's or, with --rerank, how probable it is from 0 to 1 that it meets the query.`;

const CANNOT = "Cannot embed";
/** The word that stands for the lines of stdin. */
const STDIN = "-";

/** What is to be done. */
interface Job {
  texts: readonly string[];
  query: string | undefined;
  rerank: boolean;
  instruction: string | undefined;
  dimensions: number | undefined;
  normalize: boolean | undefined;
}

/** A text's place among those given, and how well it meets the query. */
interface Scored {
  index: number;
  score: number;
}

/** The outcome: vectors, or scores if there is a query, best first. */
type Outcome = { vectors: Float32Array[] } | { scores: Scored[] };

await runTask({
  usage: "deno task embed [TEXT …] [flags]",
  flags: FLAGS,
  notes: NOTES,
  examples: [
    'deno task embed "A dog ran." "It rained." --model Qwen/Qwen3-Embedding-0.6B',
    'deno task embed --query "Who has a dog?" --model Qwen/Qwen3-Embedding-0.6B < texts',
    'deno task embed --query "dogs" --rerank --model Qwen/Qwen3-Reranker-0.6B < texts',
    "deno task embed --dimensions 256 --json < texts",
  ],
}, async (flags) => {
  const where = placementOf(flags), options = optionsOf(flags);
  const job: Job = { ...options, texts: await readTexts(flags.words) };
  const model = flags.text("model");
  const given = [...job.texts, ...job.query === undefined ? [] : [job.query]];
  if (model?.startsWith("synthetic:")) {
    parseSynthetic(model);
    for (const text of given) requireIds(CANNOT, text, model);
  }
  const interrupt = onInterrupt(), { signal } = interrupt;
  using progress = await Progress.start();
  try {
    const opened = await openModel(model, { ...where, signal }, progress);
    using qwen = opened.qwen;
    if (!qwen.hasTokenizer) {
      if (job.rerank) {
        throw new Error(
          `${CANNOT}: the model has no tokenizer, which --rerank needs`,
        );
      }
      for (const text of given) requireIds(CANNOT, text, model ?? "the model");
    }
    opened.tell();
    if (model === undefined) {
      say(
        "Using the embedded story model, whose vectors mean little. For others: deno task embed TEXT --model Qwen/Qwen3-Embedding-0.6B",
      );
    }
    const verbose = flags.on("verbose") ?? false;
    if (verbose || !opened.moved()) sayPlacement(qwen, verbose);
    const began = performance.now();
    const outcome = await run(qwen, job, signal);
    const ms = performance.now() - began;
    const count = job.texts.length;
    say(
      `${qwen.device.adapter}: ${count} ${count === 1 ? "text" : "texts"} in ${
        ms.toFixed(0)
      } ms.`,
    );
    print(qwen, job, outcome, ms, flags.on("json") ?? false);
  } catch (error) {
    if (interrupt.code === undefined) throw nameModel(error);
    progress.clear();
    say("Interrupted.");
  }
  return interrupt.code ?? 0;
});

/**
 * Reads how texts are embedded or scored.
 *
 * @throws {Error} if an option is out of range, or would have no effect.
 */
function optionsOf(flags: Flags): Omit<Job, "texts"> {
  const query = flags.text("query"), rerank = flags.on("rerank") ?? false;
  const dimensions = flags.whole("dimensions", 1);
  const normalize = flags.on("normalize");
  const refuse = (problem: string): never => {
    throw new Error(`Cannot read the flags: ${problem}`);
  };
  if (query === "") refuse('--query is "", must be a text');
  if (rerank && query === undefined) {
    refuse("--rerank needs a --query");
  }
  if (rerank && dimensions !== undefined) {
    refuse("--dimensions is given with --rerank, which makes no vectors");
  }
  if (query !== undefined && normalize !== undefined) {
    refuse(
      `--${
        normalize ? "" : "no-"
      }normalize is given with --query, whose scores are the same either way`,
    );
  }
  const instruction = flags.text("instruction");
  return { query, rerank, instruction, dimensions, normalize };
}

/** The texts from the arguments, and from the lines of stdin where those are asked for. */
async function readTexts(words: readonly string[]): Promise<string[]> {
  const at = words.indexOf(STDIN);
  if (words.lastIndexOf(STDIN) !== at) {
    throw new Error(`${CANNOT}: - is given twice, must be given once`);
  }
  const given = notEmpty(words, "argument");
  if (at >= 0) return given.toSpliced(at, 1, ...await readLines());
  return given.length > 0 ? given : await readLines();
}

async function readLines(): Promise<string[]> {
  if (Deno.stdin.isTerminal()) {
    say("Type a text on each line, then Ctrl-D on an empty line.");
  }
  const lines = (await readStdin(CANNOT, "the texts")).split(/\r?\n/);
  if (lines.at(-1) === "") lines.pop();
  if (lines.length > 0) return notEmpty(lines, "line");
  throw new Error(
    `${CANNOT}: there are no texts, pass them as arguments or as lines of stdin`,
  );
}

/** @throws {Error} if a text is empty, before a model is loaded. */
function notEmpty(texts: readonly string[], what: string): string[] {
  const at = texts.indexOf("");
  if (at < 0) return [...texts];
  throw new Error(`${CANNOT}: ${what} ${at + 1} is empty, must be a text`);
}

async function run(
  qwen: Qwen3,
  { texts, query, rerank, instruction, dimensions, normalize }: Job,
  signal: AbortSignal,
): Promise<Outcome> {
  const sorted = (scores: Scored[]) =>
    scores.sort((a, b) => b.score - a.score || a.index - b.index);
  if (query !== undefined && rerank) {
    const options = { instruction, signal };
    return { scores: sorted(await qwen.rerank(query, texts, options)) };
  }
  const read = (text: string) => qwen.hasTokenizer ? text : asIds(text);
  const all = texts.map(read), options = { dimensions, signal };
  if (query === undefined) {
    const more = { ...options, instruction, normalize };
    return { vectors: await qwen.embed(all, more) };
  }
  const [asked] = await qwen.embed([read(query)], {
    ...options,
    instruction: qwen.hasTokenizer ? instruction ?? SEARCH_TASK : instruction,
  });
  const vectors = await qwen.embed(all, options);
  return {
    scores: sorted(vectors.map((vector, index) => ({
      index,
      score: vector.reduce((sum, value, i) => sum + value * asked[i], 0),
    }))),
  };
}

/** The elements with the digits that an f32 has. */
function shortest(vector: Float32Array): number[] {
  return Array.from(vector, (value) => Number(value.toPrecision(9)));
}

function print(
  qwen: Qwen3,
  { texts }: Job,
  outcome: Outcome,
  ms: number,
  json: boolean,
): void {
  const isVectors = "vectors" in outcome;
  let lines: string[];
  if (json) {
    const found = isVectors ? { vectors: outcome.vectors.map(shortest) } : {
      scores: outcome.scores.map((one) => ({
        ...one,
        text: texts[one.index],
      })),
    };
    const { kind: device, adapter } = qwen.device;
    const [loadMs, embedMs] = [qwen.loadMs, ms].map(Math.round);
    lines = [JSON.stringify({ ...found, device, adapter, loadMs, embedMs })];
  } else if (isVectors) {
    lines = outcome.vectors.map((vector) => JSON.stringify(shortest(vector)));
  } else {
    lines = outcome.scores.map(({ index, score }) =>
      `${score.toFixed(4)}  ${printable(texts[index]).replaceAll("\n", " ")}`
    );
  }
  write(lines.map((line) => `${line}\n`).join(""), "the result");
}
