/**
 * Generates a reply and prints it token by token.
 *
 *   deno task generate "Once upon a time"
 *   deno task generate "Why is the sky blue?" --model Qwen/Qwen3-0.6B
 */
import { shownUrl } from "../lib/checkpoint/fetch.ts";
import { bytesText } from "../lib/checkpoint/sources.ts";
import { parseSynthetic } from "../lib/checkpoint/synthetic.ts";
import { errorText, printable } from "../lib/errors.ts";
import { checkGenerating } from "../lib/generate.ts";
import { isObject, parseJson } from "../lib/json.ts";
import { DEFAULT_MODEL } from "../lib/load.ts";
import { placement } from "../lib/place.ts";
import { resolveSampling } from "../lib/model/sampling.ts";
import { readTools } from "../lib/text/conversation.ts";
import { shortened, WIDTH, wrap } from "../lib/text/messages.ts";
import {
  type GenerateOptions,
  loadQwen3,
  type Qwen3,
  type Qwen3Options,
  type Run,
  type Tool,
} from "../mod.ts";
import { asTyped } from "./command.ts";
import { stderr } from "./colour.ts";
import { onInterrupt } from "./interrupts.ts";
import { type Flags, type FlagTable, runTask } from "./flags.ts";
import {
  cacheRequest,
  KV_FLAG,
  LOADING_FLAGS,
  loadingOptions,
  Progress,
  THREADS_FLAG,
} from "./progress.ts";

const FLAGS: FlagTable = {
  "model": [
    "text",
    "folder, .gguf file, URL, owner/name[@revision][:TYPE] or synthetic:…",
    "the story model",
  ],
  "device": ["text", "auto, gpu or cpu", "auto"],
  "precision": ["text", "auto, or f32 throughout", "auto"],
  ...KV_FLAG,
  "context": [
    "number",
    "maximum tokens of prompt and reply together",
    "4096, or what the model allows",
  ],
  "max-tokens": [
    "number",
    "maximum tokens to generate",
    "checkpoint's, else what the context has room for",
  ],
  "temperature": [
    "number",
    "0 always picks the most likely token",
    "checkpoint's, else 0, or 1 with --top-k, --top-p or --min-p",
  ],
  "top-k": [
    "number",
    "sample from the k most likely tokens; 0 for all",
    "checkpoint's, else 50",
  ],
  "top-p": [
    "number",
    "sample from the most likely tokens that add up to this probability",
    "checkpoint's, else 1",
  ],
  "min-p": [
    "number",
    "sample from tokens at least this fraction as likely as the best",
    "checkpoint's, else 0",
  ],
  "repetition-penalty": [
    "number",
    "above 1 makes tokens that already occurred less likely",
    "checkpoint's, else 1",
  ],
  "seed": ["number", "makes the reply reproducible", "random"],
  "stop": ["texts", "stop before this text; may be repeated"],
  "ignore-eos": ["switch", "continue past the end-of-text token"],
  "system": ["text", "system message, for instruct checkpoints"],
  "think": [
    "switch",
    "let an instruct checkpoint think first; --no-think turns this off",
    "the chat template's",
  ],
  "tools": [
    "text",
    "JSON file of functions that an instruct checkpoint may call, as in OpenAI's API",
  ],
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

/** The most bytes of a prompt on stdin; the longest contexts take far fewer. */
const MOST_STDIN = 16 << 20;
/** The word that stands for the text on stdin. */
const STDIN = "-";
/** How long the other end of a pipe may be silent before that is said. */
const PATIENCE_MS = 2000;

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
    requireIds(prompt, model);
  }

  const interrupt = onInterrupt(), { signal } = interrupt;
  using progress = await Progress.start();
  // Notices wait for a turn, so that an error that follows is the only line on stderr.
  const notices: string[] = [];
  let moved = false;
  const tell = () => notices.splice(0).forEach(progress.notice);
  try {
    using qwen = await loadQwen3(model, {
      ...where,
      onProgress: progress.report,
      onNotice(notice) {
        if (notice.startsWith("Running on ")) return; // said below in any case
        moved ||= notice.startsWith("Continuing on the CPU");
        notices.push(notice);
        setTimeout(tell);
      },
      signal,
    });
    if (!qwen.hasTokenizer) requireIds(prompt, model ?? "the model");
    const run = qwen.generate(qwen.hasTokenizer ? prompt : asIds(prompt), {
      ...options,
      signal,
    });
    tell();
    if (model === undefined) {
      say(
        "Using the embedded story model. For a real one: deno task generate PROMPT --model Qwen/Qwen3-0.6B",
      );
    }
    const verbose = flags.on("verbose") ?? false;
    if (verbose || !moved) sayPlacement(qwen, verbose);
    await printRun(qwen, run, json, signal);
  } catch (error) {
    if (interrupt.code === undefined) throw nameModel(error);
    progress.clear();
    say("Interrupted before the first token.");
  }
  return interrupt.code ?? 0;
});

/** Lets an error name the model that no flag names. */
function nameModel(error: unknown): unknown {
  if (error instanceof Error) {
    error.message = error.message.replaceAll(DEFAULT_MODEL, "the story model");
  }
  return error;
}

/** @throws {Error} if `prompt` is text, for a model that has no tokenizer. */
function requireIds(prompt: string, model: string): void {
  if (typeof asIds(prompt) !== "string") return;
  throw new Error(
    `Cannot generate: ${
      shortened(shownUrl(model), 36)
    } has no tokenizer, pass token ids such as 1 2 3`,
  );
}

/** Says where the model runs and why; if `verbose`, every choice. */
function sayPlacement({ device: { choices } }: Qwen3, verbose: boolean): void {
  if (!verbose) return say(placement(choices[0]));
  for (const { what, value, reason } of choices) {
    say(`${what}: ${value} (${reason})`);
  }
}

/**
 * Reads what to generate and how.
 *
 * @throws {Error} if an option is out of range, or two exclude each other.
 */
async function generateOptions(flags: Flags): Promise<GenerateOptions> {
  const sampling = {
    temperature: flags.number("temperature"),
    topK: flags.number("top-k"),
    topP: flags.number("top-p"),
    minP: flags.number("min-p"),
    repetitionPenalty: flags.number("repetition-penalty"),
    seed: flags.number("seed"),
  };
  resolveSampling(sampling);
  for (const name of ["system", "tools"]) {
    if (flags.on("raw") && flags.text(name) !== undefined) {
      throw new Error(
        `Cannot generate: --raw and --${name} are both given, must be one of them, since raw skips the chat template`,
      );
    }
  }
  const options: GenerateOptions = {
    ...sampling,
    maxTokens: flags.whole("max-tokens", 1),
    stop: flags.texts("stop"),
    ignoreEos: flags.on("ignore-eos"),
    system: flags.text("system"),
    thinking: flags.on("think"),
    tools: await readToolsFile(flags.text("tools")),
    raw: flags.on("raw"),
  };
  checkGenerating(options);
  return options;
}

/** Reads a list of tools, or the `tools` of an object as in OpenAI's requests. */
async function readToolsFile(file?: string): Promise<Tool[] | undefined> {
  if (file === undefined) return undefined;
  const cannot = `Cannot read the tools in ${file}`;
  let text: string;
  try {
    text = await Deno.readTextFile(file);
  } catch (error) {
    throw new Error(`${cannot}: ${errorText(error)}`);
  }
  // Editors on Windows write a byte order mark.
  const json = parseJson(text.replace(/^\uFEFF/, ""), file);
  const tools = readTools(isObject(json) ? json.tools : json, cannot);
  if (tools.length > 0) return tools;
  throw new Error(`${cannot}: it lists 0 tools, must list at least one`);
}

/** Reads where the model should run. */
function placementOf(flags: Flags): Qwen3Options {
  const device = flags.oneOf("device", ["auto", "gpu", "cpu"]);
  const threads = flags.text("threads");
  if (device === "gpu" && threads !== undefined) {
    throw new Error(
      `Cannot read the flags: --threads is ${threads}, must be left out with --device gpu`,
    );
  }
  return {
    device,
    precision: flags.oneOf("precision", ["auto", "f32"]),
    kv: cacheRequest(flags),
    context: flags.whole("context", 1),
    ...loadingOptions(flags),
  };
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
  if (json) write(jsonLine(qwen, run));
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
      write(`${tokenId} `);
      lineBegun = true;
    } else if (text !== "" && kind === "reasoning") {
      think(true);
      writeAll(Deno.stderr, stderr.dim(printable(text)));
    } else if (text !== "") {
      think(false);
      if (kind === "text") write(text);
      lineBegun = kind === "text" ? !text.endsWith("\n") : lineBegun;
    }
    for (; printed < run.toolCalls.length; printed++) {
      const call = JSON.stringify(run.toolCalls[printed].function);
      write(`${lineBegun ? "\n" : ""}${call}\n`);
      lineBegun = false;
    }
  }
  think(false);
  if (lineBegun || printed === 0 && run.tokenIds.length > 0) write("\n");
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
  const text = asked || !isTerminal
    ? (await readStdin(words.length > 0 && !asked)).trimEnd()
    : "";
  const prompt = [before.join(" "), text, after.join(" ")].filter(Boolean)
    .join("\n\n");
  if (prompt !== "") return prompt;
  throw new Error(
    "Cannot generate: the prompt is empty, pass it as arguments or on stdin",
  );
}

/**
 * Reads stdin to its end. A pipe may have no end; `beside` other words its user may not
 * know that it is read, and is told.
 */
async function readStdin(beside: boolean): Promise<string> {
  const text = new TextDecoder();
  let prompt = "", bytes = 0;
  const patience = beside
    ? setTimeout(() =>
      say(
        "Waiting for the end of stdin, which follows the prompt; without it: generate … < /dev/null",
      ), PATIENCE_MS)
    : undefined;
  try {
    for await (const chunk of stdinChunks()) {
      bytes += chunk.length;
      if (bytes > MOST_STDIN) {
        throw new Error(
          `Cannot generate: the prompt on stdin has more than ${MOST_STDIN} bytes, must be at most ${MOST_STDIN}`,
        );
      }
      prompt += text.decode(chunk, { stream: true });
    }
  } finally {
    clearTimeout(patience);
  }
  return prompt + text.decode();
}

async function* stdinChunks(): AsyncGenerator<Uint8Array, void> {
  try {
    yield* Deno.stdin.readable;
  } catch (error) {
    throw new Error(`Cannot read the prompt on stdin: ${errorText(error)}`);
  }
}

/** Parses a prompt of token ids, for a checkpoint without a tokenizer; other text stays text. */
function asIds(prompt: string): string | number[] {
  return /^\d+(\s+\d+)*$/.test(prompt)
    ? prompt.split(/\s+/).map(Number)
    : prompt;
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

/** Prints a notice on stderr, wrapped. */
function say(notice: string): void {
  const lines = printable(asTyped(notice)).split("\n").flatMap((line) =>
    line.length > WIDTH ? wrap(line, WIDTH, "", "  ") : line
  );
  console.error(stderr.dim(lines.join("\n")));
}

/** Writes to stdout; control characters from the model do not reach a terminal. */
function write(text: string): void {
  const shown = Deno.stdout.isTerminal() ? printable(text) : text;
  try {
    writeAll(Deno.stdout, shown);
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) throw error;
    throw new Error(`Cannot write the reply: ${errorText(error)}`);
  }
}

function writeAll(to: { writeSync(bytes: Uint8Array): number }, text: string) {
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length;) at += to.writeSync(bytes.subarray(at));
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}
