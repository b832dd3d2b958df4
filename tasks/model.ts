/**
 * Shared by the tasks that run a model on texts: their flags, loading, notices, and texts
 * in and out.
 *
 * @module
 */
import { shownUrl } from "../lib/checkpoint/fetch.ts";
import { errorText, printable } from "../lib/errors.ts";
import { DEFAULT_MODEL } from "../lib/load.ts";
import { placement } from "../lib/place.ts";
import { shortened, WIDTH, wrap } from "../lib/text/messages.ts";
import { loadQwen3, type Qwen3, type Qwen3Options } from "../mod.ts";
import { stderr } from "./colour.ts";
import { asTyped } from "./command.ts";
import type { Flags, FlagTable } from "./flags.ts";
import {
  cacheRequest,
  DEVICE_FLAGS,
  deviceOptions,
  KV_FLAG,
  loadingOptions,
  type Progress,
} from "./progress.ts";

/** Flags that say which model runs where. */
export const MODEL_FLAGS: FlagTable = {
  "model": [
    "text",
    "folder, .gguf file, URL, owner/name[@revision][:TYPE] or synthetic:…",
    "the story model",
  ],
  "device": ["text", "auto, gpu or cpu", "auto"],
  "precision": ["text", "auto, or f32 throughout", "auto"],
  ...KV_FLAG,
  ...DEVICE_FLAGS,
};

/** The flag of tasks that generate; {@linkcode placementOf} reads it. */
export const CONTEXT_FLAG: FlagTable = {
  "context": [
    "number",
    "maximum tokens of prompt and reply together",
    "4096, or what the model allows",
  ],
};

/** The most bytes of stdin; the longest contexts take far fewer. */
const MOST_STDIN = 16 << 20;
/** How long the other end of a pipe may be silent before that is said. */
const PATIENCE_MS = 2000;

/** Reads where the model should run. */
export function placementOf(flags: Flags): Qwen3Options {
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
    ...deviceOptions(flags),
    ...loadingOptions(flags),
  };
}

/** A model, and what is still to be said about it. */
export interface Opened {
  qwen: Qwen3;
  /** Prints the notices so far. */
  tell(): void;
  /** Whether it moved to the CPU, which was said. */
  moved(): boolean;
}

/**
 * Loads a model. Notices wait for a turn, so that an error that follows is the only line on
 * stderr.
 */
export async function openModel(
  model: string | undefined,
  options: Qwen3Options,
  progress: Progress,
): Promise<Opened> {
  const notices: string[] = [];
  let moved = false;
  const tell = () => notices.splice(0).forEach(progress.notice);
  const qwen = await loadQwen3(model, {
    ...options,
    onProgress: progress.report,
    onNotice(notice) {
      if (notice.startsWith("Running on ")) return; // sayPlacement does
      moved ||= notice.startsWith("Continuing on the CPU");
      notices.push(notice);
      setTimeout(tell);
    },
  });
  return { qwen, tell, moved: () => moved };
}

/** Lets an error name the model that no flag names. */
export function nameModel(error: unknown): unknown {
  if (error instanceof Error) {
    error.message = error.message.replaceAll(DEFAULT_MODEL, "the story model");
  }
  return error;
}

/** @throws {Error} if a text is no token ids, for a model that has no tokenizer. */
export function requireIds(
  cannot: string,
  text: string,
  model: string,
): void {
  if (typeof asIds(text) !== "string") return;
  throw new Error(
    `${cannot}: ${
      shortened(shownUrl(model), 36)
    } has no tokenizer, pass token ids such as 1 2 3`,
  );
}

/** Parses a text of token ids, for a checkpoint without a tokenizer; other text stays text. */
export function asIds(text: string): string | number[] {
  return /^\d+(\s+\d+)*$/.test(text) ? text.split(/\s+/).map(Number) : text;
}

/** Says where the model runs and why; if `verbose`, every choice. */
export function sayPlacement(
  { device: { choices } }: Qwen3,
  verbose: boolean,
): void {
  if (!verbose) return say(placement(choices[0]));
  for (const { what, value, reason } of choices) {
    say(`${what}: ${value} (${reason})`);
  }
}

/** Prints a notice on stderr, wrapped. */
export function say(notice: string): void {
  const lines = printable(asTyped(notice)).split("\n").flatMap((line) =>
    line.length > WIDTH ? wrap(line, WIDTH, "", "  ") : line
  );
  console.error(stderr.dim(lines.join("\n")));
}

/**
 * Reads stdin to its end. A pipe may have no end: where its user may not know that it is
 * read, `waiting` says so after a while.
 *
 * @param what is read, for errors
 */
export async function readStdin(
  cannot: string,
  what: string,
  waiting?: string,
): Promise<string> {
  const text = new TextDecoder();
  let all = "", bytes = 0;
  const patience = waiting === undefined
    ? undefined
    : setTimeout(() => say(waiting), PATIENCE_MS);
  try {
    for await (const chunk of stdinChunks(what)) {
      bytes += chunk.length;
      if (bytes > MOST_STDIN) {
        throw new Error(
          `${cannot}: ${what} on stdin has more than ${MOST_STDIN} bytes, must be at most ${MOST_STDIN}`,
        );
      }
      all += text.decode(chunk, { stream: true });
    }
  } finally {
    clearTimeout(patience);
  }
  return all + text.decode();
}

/** The lines of stdin, without their ends. */
export async function* stdinLines(
  what: string,
): AsyncGenerator<string, undefined> {
  const text = new TextDecoder();
  let held = "";
  for await (const chunk of stdinChunks(what)) {
    const lines = (held + text.decode(chunk, { stream: true })).split(/\r?\n/);
    held = lines.pop()!;
    yield* lines;
  }
  held += text.decode();
  if (held !== "") yield held;
}

async function* stdinChunks(
  what: string,
): AsyncGenerator<Uint8Array, void> {
  try {
    yield* Deno.stdin.readable;
  } catch (error) {
    throw new Error(`Cannot read ${what} on stdin: ${errorText(error)}`);
  }
}

/** Writes to stdout; control characters do not reach a terminal. */
export function write(text: string, what: string): void {
  const shown = Deno.stdout.isTerminal() ? printable(text) : text;
  try {
    writeAll(Deno.stdout, shown);
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) throw error;
    throw new Error(`Cannot write ${what}: ${errorText(error)}`);
  }
}

/** Writes all of a text. */
export function writeAll(
  to: { writeSync(bytes: Uint8Array): number },
  text: string,
) {
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length;) at += to.writeSync(bytes.subarray(at));
}
