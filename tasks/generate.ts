/**
 * Generates a reply and prints it token by token.
 *
 *   deno task generate "Once upon a time"
 *   deno task generate "Why is the sky blue?" --model Qwen/Qwen3-0.6B
 */
import { bytesText } from "../lib/checkpoint/sources.ts";
import { parseSynthetic } from "../lib/checkpoint/synthetic.ts";
import { printable } from "../lib/errors.ts";
import { WIDTH } from "../lib/text/messages.ts";
import type { GenerateOptions, Qwen3, Run } from "../mod.ts";
import { stderr } from "./colour.ts";
import { onInterrupt } from "./interrupts.ts";
import { type Flags, type FlagTable, runTask } from "./flags.ts";
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
  writeAll,
} from "./model.ts";
import { LOADING_FLAGS, Progress, THREADS_FLAG } from "./progress.ts";
import { REPLY_FLAGS, replyOptions } from "./replies.ts";

const FLAGS: FlagTable = {
  ...MODEL_FLAGS,
  ...REPLY_FLAGS,
  "raw": ["switch", "use the prompt as is, without the chat template"],
  "json": ["switch", "print one line of JSON instead of the text"],
  "verbose": ["switch", "say every choice about the device, with its reason"],
  ...LOADING_FLAGS,
  ...THREADS_FLAG,
};

const NOTES =
  `The checkpoint's defaults are those of its generation_config.json.
Text on stdin is added after PROMPT and a blank line, or in place of a - among the arguments.
Ctrl-C ends a reply with exit code 130; the text so far stays.`;

/** How errors begin. */
const CANNOT = "Cannot generate";
const REPLY = "the reply";
const WAITING =
  "Waiting for the end of stdin, which follows the prompt; without it: generate … < /dev/null";
/** The word that stands for the text on stdin. */
const STDIN = "-";

await runTask({
  usage: "deno task generate [PROMPT] [flags]",
  flags: FLAGS,
  notes: NOTES,
  examples: [
    'deno task generate "Once upon a time"',
    'deno task generate "Why is the sky blue?" --model Qwen/Qwen3-0.6B',
    'deno task generate "Summarise this:" --model Qwen/Qwen3-0.6B < report.txt',
    "deno task generate 1 2 3 --model synthetic:qwen3-0.6b --max-tokens 16 --json",
  ],
}, async (flags) => {
  // Reject bad flags before downloading or loading anything.
  const options = await generateOptions(flags), where = placementOf(flags);
  const prompt = await readPrompt(flags.words);
  const model = flags.text("model"), json = flags.on("json") ?? false;
  if (model?.startsWith("synthetic:")) {
    parseSynthetic(model);
    requireIds(CANNOT, prompt, model);
  }

  const interrupt = onInterrupt(), { signal } = interrupt;
  using progress = await Progress.start();
  try {
    const opened = await openModel(model, { ...where, signal }, progress);
    using qwen = opened.qwen;
    if (!qwen.hasTokenizer) {
      requireIds(CANNOT, prompt, model ?? "the model");
    }
    const run = qwen.generate(qwen.hasTokenizer ? prompt : asIds(prompt), {
      ...options,
      signal,
    });
    opened.tell();
    if (model === undefined) {
      say(
        "Using the embedded story model. For a real one: deno task generate PROMPT --model Qwen/Qwen3-0.6B",
      );
    }
    const verbose = flags.on("verbose") ?? false;
    if (verbose || !opened.moved()) sayPlacement(qwen, verbose);
    await printRun(qwen, run, json, signal);
  } catch (error) {
    if (interrupt.code === undefined) throw nameModel(error);
    progress.clear();
    say("Interrupted before the first token.");
  }
  return interrupt.code ?? 0;
});

/**
 * Reads what to generate and how.
 *
 * @throws {Error} if an option is out of range, or two exclude each other.
 */
async function generateOptions(flags: Flags): Promise<GenerateOptions> {
  for (const name of ["system", "tools"]) {
    if (flags.on("raw") && flags.text(name) !== undefined) {
      throw new Error(
        `Cannot generate: --raw and --${name} are both given, must be one of them, since raw skips the chat template`,
      );
    }
  }
  return { ...await replyOptions(flags), raw: flags.on("raw") };
}

/**
 * Prints the text as it is generated, and the rates; with `json`, one line of JSON instead
 * of the text.
 *
 * @throws the reason of `signal` if it ended the run before the first token.
 */
async function printRun(
  qwen: Qwen3,
  run: Run,
  json: boolean,
  signal: AbortSignal,
): Promise<void> {
  if (!qwen.hasTokenizer && !json) {
    say("The checkpoint has no tokenizer: token ids are printed.");
  }
  if (json) { for await (const _ of run); }
  else await printPieces(qwen, run);
  const { stats } = run;
  if (stats.tokens === 0) signal.throwIfAborted();
  const { temperature, seed } = stats.sampling;
  const how = temperature === 0 ? "greedy" : `seed ${seed}`;
  const { loadMs, memoryBytes } = qwen;
  const loaded = loadMs < 1000
    ? `${Math.ceil(loadMs)} ms`
    : `${(loadMs / 1000).toFixed(1)} s`;
  sayParts([
    ...stats.summary.split(/(?<=,) /),
    `(${run.finishReason}, ${how});`,
    `loaded in ${loaded}, ${bytesText(memoryBytes)} of memory`,
  ]);
  if (json) write(jsonLine(qwen, run), REPLY);
}

/**
 * Prints a reply as it is generated: the text and each function call, as a line of JSON, on
 * stdout; reasoning on stderr, dimmed on a terminal.
 */
async function printPieces(qwen: Qwen3, run: Run): Promise<void> {
  let printed = 0, lineBegun = false, thinking = false;
  const think = (on: boolean) => {
    if (on !== thinking) writeAll(Deno.stderr, on ? "Thinking:\n" : "\n\n");
    thinking = on;
  };
  for await (const { kind, text, tokenId } of run) {
    if (!qwen.hasTokenizer) {
      write(`${tokenId} `, REPLY);
      lineBegun = true;
    } else if (text !== "" && kind === "reasoning") {
      think(true);
      writeAll(Deno.stderr, stderr.dim(printable(text)));
    } else if (text !== "") {
      think(false);
      if (kind === "text") write(text, REPLY);
      lineBegun = kind === "text" ? !text.endsWith("\n") : lineBegun;
    }
    for (; printed < run.toolCalls.length; printed++) {
      const call = JSON.stringify(run.toolCalls[printed].function);
      write(`${lineBegun ? "\n" : ""}${call}\n`, REPLY);
      lineBegun = false;
    }
  }
  think(false);
  if (lineBegun || printed === 0 && run.tokenIds.length > 0) write("\n", REPLY);
}

/** The outcome of a run as one line of JSON. */
function jsonLine(qwen: Qwen3, run: Run): string {
  const { stats } = run;
  return JSON.stringify({
    text: run.text,
    reasoning: run.reasoning,
    toolCalls: run.toolCalls,
    tokenIds: run.tokenIds,
    promptTokens: stats.promptTokens,
    finishReason: run.finishReason,
    device: qwen.device.kind,
    adapter: qwen.device.adapter,
    loadMs: round(qwen.loadMs),
    memoryBytes: qwen.memoryBytes,
    timeToFirstTokenMs: round(stats.timeToFirstTokenMs),
    prefillTokensPerSecond: round(stats.prefillTokensPerSecond),
    decodeTokensPerSecond: round(stats.decodeTokensPerSecond),
    fallbacks: qwen.fallbacks,
  }) + "\n";
}

/** The prompt from the arguments, and from stdin unless that is a terminal. */
async function readPrompt(words: string[]): Promise<string> {
  const at = words.indexOf(STDIN), asked = at >= 0;
  if (words.lastIndexOf(STDIN) !== at) {
    throw new Error("Cannot generate: - is given twice, must be given once");
  }
  const before = asked ? words.slice(0, at) : words;
  const after = asked ? words.slice(at + 1) : [];
  const isTerminal = Deno.stdin.isTerminal();
  if (asked && isTerminal) {
    say("Type the prompt, then Ctrl-D on an empty line.");
  }
  const beside = words.length > 0 && !asked;
  const text = asked || !isTerminal
    ? (await readStdin(CANNOT, "the prompt", beside ? WAITING : undefined))
      .trimEnd()
    : "";
  const prompt = [before.join(" "), text, after.join(" ")].filter(Boolean)
    .join("\n\n");
  if (prompt !== "") return prompt;
  throw new Error(
    "Cannot generate: the prompt is empty, pass it as arguments or on stdin",
  );
}

/** Prints parts of a notice, each on one line if that is possible. */
function sayParts(parts: readonly string[]): void {
  let last = 0;
  say(parts.reduce((text, part) => {
    const joined = `${text.slice(last)} ${part}`;
    if (joined.length <= WIDTH) return `${text} ${part}`;
    last = text.length + 1;
    return `${text}\n  ${part}`;
  }));
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}
