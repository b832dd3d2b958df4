/**
 * Print one reply, token by token.
 *
 *   deno task generate "Once upon a time"
 *   deno task generate "Why is the sky blue?" --model Qwen/Qwen3-0.6B
 */
import {
  DEFAULT_MODEL,
  type DeviceKind,
  type LoadProgress,
  loadQwen3,
} from "../mod.ts";
import { type FlagTable, helpText, readFlags, runTask } from "./flags.ts";

const FLAGS: FlagTable = {
  "model": [
    "text",
    "directory, URL, owner/name[@revision] or synthetic:qwen3-0.6b; default: the embedded story model",
  ],
  "device": ["text", "auto (default), gpu or cpu"],
  "precision": ["text", "auto (default) or f32 throughout"],
  "context": ["number", "tokens that prompt and reply may have together"],
  "max-tokens": ["number", "tokens to generate at most"],
  "temperature": ["number", "0 always takes the most likely token"],
  "top-k": ["number", "sample among the k most likely tokens; 0: all"],
  "top-p": [
    "number",
    "sample among the most likely tokens that reach this probability",
  ],
  "min-p": [
    "number",
    "sample among tokens at least this fraction as likely as the best",
  ],
  "repetition-penalty": [
    "number",
    "above 1: tokens that were there before become less likely",
  ],
  "seed": ["number", "the same seed gives the same reply"],
  "stop": ["texts", "end before this text; may be given several times"],
  "ignore-eos": ["switch", "go on past the end-of-text token"],
  "system": ["text", "a system message, for instruct checkpoints"],
  "think": [
    "switch",
    "let an instruct checkpoint think first, or not: --no-think",
  ],
  "raw": ["switch", "take the prompt as it is, without the chat template"],
  "json": ["switch", "one line of JSON last on stdout, instead of the text"],
  "help": ["switch", "this text"],
};

await runTask(async () => {
  const flags = readFlags(Deno.args, FLAGS);
  if (flags.on("help")) {
    console.log(
      helpText(
        "deno task generate PROMPT [flags]; without PROMPT it is read from stdin",
        FLAGS,
      ),
    );
    return 0;
  }
  const interrupt = new AbortController();
  const onInterrupt = () => interrupt.abort();
  Deno.addSignalListener("SIGINT", onInterrupt);
  const { signal } = interrupt;
  const prompt = await readPrompt(flags.words);
  const model = flags.text("model");
  if (model === undefined) {
    say(
      "Using the embedded story model. For a real one: deno task generate PROMPT --model Qwen/Qwen3-0.6B",
    );
  }
  try {
    using qwen = await loadQwen3(model ?? DEFAULT_MODEL, {
      device: flags.text("device") as DeviceKind | undefined,
      precision: flags.text("precision") as "auto" | "f32" | undefined,
      context: flags.number("context"),
      onProgress: progressLine(),
      onNotice: say,
      signal,
    });
    const [device] = qwen.device.choices;
    say(`Running on ${device.value}: ${device.reason}.`);
    const run = qwen.generate(prompt, {
      maxTokens: flags.number("max-tokens"),
      temperature: flags.number("temperature"),
      topK: flags.number("top-k"),
      topP: flags.number("top-p"),
      minP: flags.number("min-p"),
      repetitionPenalty: flags.number("repetition-penalty"),
      seed: flags.number("seed"),
      stop: flags.texts("stop"),
      ignoreEos: flags.on("ignore-eos"),
      system: flags.text("system"),
      thinking: flags.on("think"),
      raw: flags.on("raw"),
      signal,
    });
    const json = flags.on("json");
    if (!qwen.hasTokenizer && !json) {
      say("The checkpoint has no tokenizer: token ids are printed.");
    }
    let text = "";
    for await (const piece of run) {
      text += piece.text;
      if (json) continue;
      write(qwen.hasTokenizer ? piece.text : `${piece.tokenId} `);
    }
    const { stats } = run;
    if (!json) write("\n");
    say(
      `${stats.summary} (${run.finishReason}${
        stats.sampling.temperature === 0
          ? ", greedy"
          : `, seed ${stats.sampling.seed}`
      })`,
    );
    if (json) {
      console.log(JSON.stringify({
        text,
        tokenIds: run.tokenIds,
        promptTokens: stats.promptTokens,
        finishReason: run.finishReason,
        device: qwen.device.kind,
        adapter: qwen.device.adapter,
        timeToFirstTokenMs: round(stats.timeToFirstTokenMs),
        prefillTokensPerSecond: round(stats.prefillTokensPerSecond),
        decodeTokensPerSecond: round(stats.decodeTokensPerSecond),
        fallbacks: qwen.fallbacks,
      }));
    }
    return 0;
  } catch (error) {
    if (!signal.aborted) throw error;
    return 0; // interrupted while loading: nothing was written
  } finally {
    Deno.removeSignalListener("SIGINT", onInterrupt);
  }
});

/** The words given, else stdin; a prompt of numbers alone is token ids for a checkpoint without a tokenizer. */
async function readPrompt(words: string[]): Promise<string> {
  if (words.length) return words.join(" ");
  if (Deno.stdin.isTerminal()) {
    throw new Error(
      "Cannot generate: there is no prompt, give it as words or on stdin",
    );
  }
  return (await new Response(Deno.stdin.readable).text()).trimEnd();
}

/** Progress on one line of stderr that is rewritten, or nothing where that is no terminal. */
function progressLine(): (progress: LoadProgress) => void {
  if (!Deno.stderr.isTerminal()) return () => {};
  let shown = 0;
  return ({ stage, file, done, total }) => {
    if (performance.now() - shown < 100 && done < total) return;
    shown = performance.now();
    const share = total ? Math.floor(100 * done / total) : 100;
    const line = done < total
      ? `${stage} ${share} % of ${Math.ceil(total / 1e6)} MB ${file ?? ""}`
      : "";
    Deno.stderr.writeSync(new TextEncoder().encode(`\r\x1b[K${line}`));
  };
}

function say(line: string): void {
  console.error(line);
}

function write(text: string): void {
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length;) {
    at += Deno.stdout.writeSync(bytes.subarray(at));
  }
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}
