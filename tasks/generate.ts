/**
 * Generates a reply and prints it token by token.
 *
 *   deno task generate "Once upon a time"
 *   deno task generate "Why is the sky blue?" --model Qwen/Qwen3-0.6B
 */
import { errorText, printable } from "../lib/errors.ts";
import { checkGenerating } from "../lib/generate.ts";
import { isObject, parseJson } from "../lib/json.ts";
import { resolveSampling } from "../lib/model/sampling.ts";
import { readTools } from "../lib/text/conversation.ts";
import { WIDTH, wrap } from "../lib/text/messages.ts";
import {
  type GenerateOptions,
  loadQwen3,
  type Qwen3,
  type Qwen3Options,
  type Run,
  type Tool,
} from "../mod.ts";
import { asTyped } from "./command.ts";
import { CTRL_C, onInterrupt } from "./interrupts.ts";
import { type Flags, type FlagTable, runTask } from "./flags.ts";
import { LOADING_FLAGS, loadingOptions, Progress } from "./progress.ts";

const FLAGS: FlagTable = {
  "model": [
    "text",
    "folder, URL, owner/name[@revision] or synthetic:…; default: story model",
  ],
  "device": ["text", "auto (default), gpu or cpu"],
  "precision": ["text", "auto (default) or f32 throughout"],
  "context": ["number", "maximum tokens of prompt and reply together"],
  "max-tokens": ["number", "maximum tokens to generate"],
  "temperature": ["number", "0 always picks the most likely token"],
  "top-k": ["number", "sample from the k most likely tokens; 0 for all"],
  "top-p": [
    "number",
    "sample from the most likely tokens that add up to this probability",
  ],
  "min-p": [
    "number",
    "sample from tokens at least this fraction as likely as the best",
  ],
  "repetition-penalty": [
    "number",
    "above 1 makes tokens that already occurred less likely",
  ],
  "seed": ["number", "makes the reply reproducible"],
  "stop": ["texts", "stop before this text; may be repeated"],
  "ignore-eos": ["switch", "continue past the end-of-text token"],
  "system": ["text", "system message, for instruct checkpoints"],
  "think": [
    "switch",
    "let an instruct checkpoint think first; --no-think turns this off",
  ],
  "tools": [
    "text",
    "JSON file of functions that an instruct checkpoint may call, as in OpenAI's API",
  ],
  "raw": ["switch", "use the prompt as is, without the chat template"],
  "json": ["switch", "print one line of JSON instead of the text"],
  ...LOADING_FLAGS,
};

/** The most bytes of a prompt on stdin; the longest contexts take far fewer. */
const MOST_STDIN = 16 << 20;

await runTask({
  usage:
    "deno task generate PROMPT [flags]; PROMPT is read from stdin if omitted",
  flags: FLAGS,
}, async (flags) => {
  // Reject bad flags before downloading or loading anything.
  const options = await generateOptions(flags), placement = placementOf(flags);
  const prompt = await readPrompt(flags.words);
  const model = flags.text("model"), json = flags.on("json") ?? false;

  const interrupt = onInterrupt(), { signal } = interrupt;
  using progress = await Progress.start();
  // Notices wait for a turn, so that an error that follows is the only line on stderr.
  const notices: string[] = [];
  const tell = () => notices.splice(0).forEach(progress.notice);
  try {
    using qwen = await loadQwen3(model, {
      ...placement,
      onProgress: progress.report,
      onNotice(notice) {
        if (notice.startsWith("Running on ")) return; // printRun says it in any case
        notices.push(notice);
        setTimeout(tell);
      },
      signal,
    });
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
    await printRun(qwen, run, json, signal);
    // A reader ends a reply with Ctrl-C; other signals come from programs.
    return interrupt.code === CTRL_C ? 0 : interrupt.code ?? 0;
  } catch (error) {
    if (interrupt.code === undefined) throw error;
    progress.clear();
    say("Interrupted before the first token.");
    return interrupt.code;
  }
});

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
  return {
    device: flags.oneOf("device", ["auto", "gpu", "cpu"]),
    precision: flags.oneOf("precision", ["auto", "f32"]),
    context: flags.whole("context", 1),
    ...loadingOptions(flags),
  };
}

/**
 * Prints where the model runs, the text as it is generated, and the rates; with `json`,
 * one line of JSON instead of the text.
 *
 * @throws the reason of `signal` if it ended the run before the first token.
 */
async function printRun(
  qwen: Qwen3,
  run: Run,
  json: boolean,
  signal: AbortSignal,
): Promise<void> {
  const [device] = qwen.device.choices;
  say(`Running on ${device.value}: ${device.reason}.`);
  if (!qwen.hasTokenizer && !json) {
    say("The checkpoint has no tokenizer: token ids are printed.");
  }
  if (json) { for await (const _ of run); }
  else await printPieces(qwen, run);
  const { stats } = run;
  if (stats.tokens === 0) signal.throwIfAborted();
  say(
    `${stats.summary} (${run.finishReason}${
      stats.sampling.temperature === 0
        ? ", greedy"
        : `, seed ${stats.sampling.seed}`
    })`,
  );
  if (json) write(jsonLine(qwen, run));
}

/**
 * Prints a reply as it is generated: the text and each function call, as a line of JSON, on
 * stdout; reasoning on stderr, dimmed on a terminal.
 */
async function printPieces(qwen: Qwen3, run: Run): Promise<void> {
  const dim = Deno.stderr.isTerminal() && !Deno.noColor;
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
      const shown = printable(text);
      writeAll(Deno.stderr, dim ? `\x1b[2m${shown}\x1b[22m` : shown);
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
    timeToFirstTokenMs: round(stats.timeToFirstTokenMs),
    prefillTokensPerSecond: round(stats.prefillTokensPerSecond),
    decodeTokensPerSecond: round(stats.decodeTokensPerSecond),
    fallbacks: qwen.fallbacks,
  }) + "\n";
}

/** The prompt from the arguments, or from stdin if there are none. */
async function readPrompt(words: string[]): Promise<string> {
  const asked = words.length > 0 || Deno.stdin.isTerminal();
  const prompt = asked ? words.join(" ") : (await readStdin()).trimEnd();
  if (prompt !== "") return prompt;
  throw new Error(
    "Cannot generate: the prompt is empty, pass it as arguments or on stdin",
  );
}

async function readStdin(): Promise<string> {
  const text = new TextDecoder();
  let prompt = "", bytes = 0;
  for await (const chunk of stdinChunks()) {
    bytes += chunk.length;
    if (bytes > MOST_STDIN) {
      throw new Error(
        `Cannot generate: the prompt on stdin has more than ${MOST_STDIN} bytes, must be at most ${MOST_STDIN}`,
      );
    }
    prompt += text.decode(chunk, { stream: true });
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

/** Prints a notice on stderr, wrapped. */
function say(notice: string): void {
  console.error(wrap(printable(asTyped(notice)), WIDTH, "", "  ").join("\n"));
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
