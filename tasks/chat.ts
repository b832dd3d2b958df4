/**
 * Holds a conversation on the terminal, or with lines from stdin.
 *
 *   deno task chat
 *   deno task chat --model Qwen/Qwen3-0.6B --system "You are a pirate."
 */
import { errorText } from "../lib/errors.ts";
import { JsonOutput, TextOutput } from "./chat_output.ts";
import { Session } from "./chat_session.ts";
import { asTyped } from "./command.ts";
import { type FlagTable, nameFlags, runTask } from "./flags.ts";
import { onSignals } from "./interrupts.ts";
import {
  MODEL_FLAGS,
  nameModel,
  openModel,
  placementOf,
  say,
  sayPlacement,
} from "./model.ts";
import { LOADING_FLAGS, Progress, THREADS_FLAG } from "./progress.ts";
import { REPLY_FLAGS, replyOptions } from "./replies.ts";
import { isInteractive } from "./terminal.ts";

const FLAGS: FlagTable = {
  ...MODEL_FLAGS,
  ...REPLY_FLAGS,
  "chat-template": [
    "text",
    "file of a chat template (Jinja) to use instead of the checkpoint's",
  ],
  "on-full": [
    "text",
    "when the context is full: drop the oldest turns, or refuse the message",
    "drop",
  ],
  "thoughts": ["text", "how reasoning is shown: dimmed or hidden", "dimmed"],
  "load": ["text", "continue the conversation that /save wrote to this file"],
  "history": [
    "switch",
    "keep what is typed for the next time; --no-history does not",
    "on",
  ],
  "json": ["switch", "read lines from stdin, print one line of JSON per event"],
  "verbose": [
    "switch",
    "say every choice about the device, and how fast each reply was",
  ],
  ...LOADING_FLAGS,
  ...THREADS_FLAG,
};

const NOTES =
  `Without a terminal, each line of stdin is a message, and the task ends with its last reply.
On a terminal: Alt-Enter, or \\ at the end of a line, begins another line; Ctrl-R searches what was sent; Ctrl-C stops the reply, at an empty message it leaves, as Ctrl-D does.
The line after a function call is the function's result.`;

await runTask({
  usage: "deno task chat [MESSAGE] [flags]",
  flags: FLAGS,
  notes: NOTES,
  examples: [
    "deno task chat",
    'deno task chat --model Qwen/Qwen3-0.6B --system "You are a pirate."',
    "deno task chat --model Qwen/Qwen3-0.6B --json < questions.txt",
  ],
}, async (flags) => {
  // Reject bad flags before downloading or loading anything.
  const settings = {
    ...await replyOptions(flags),
    onFull: flags.oneOf("on-full", ["drop", "refuse"]) ?? "drop",
    chatTemplate: await readTemplate(flags.text("chat-template")),
  };
  const thoughts = flags.oneOf("thoughts", ["dimmed", "hidden"]) ?? "dimmed";
  const where = placementOf(flags), json = flags.on("json") ?? false;
  const interactive = !json && isInteractive();
  const loading = new AbortController();
  let session: Session | undefined, code: number | undefined;
  onSignals((name, number) => {
    if (session && interactive && name === "SIGINT") session.interrupt();
    else {
      if (code !== undefined && !session) Deno.exit(number);
      code = number;
      loading.abort();
      session?.end(number);
    }
  });
  using progress = await Progress.start();
  try {
    const model = flags.text("model"), { signal } = loading;
    const opened = await openModel(model, { ...where, signal }, progress);
    using qwen = opened.qwen;
    const chat = qwen.chat({ ...settings, onNotice: say });
    opened.tell();
    if (model === undefined) {
      say(
        "Using the embedded story model, which continues the story that you begin. For a real one: deno task chat --model Qwen/Qwen3-0.6B",
      );
    }
    const verbose = flags.on("verbose") ?? false;
    if (verbose || !opened.moved()) sayPlacement(qwen, verbose);
    session = new Session(qwen, chat, {
      output: json ? new JsonOutput() : new TextOutput(interactive, thoughts),
      interactive,
      verbose,
      errorText: (error) =>
        asTyped(errorText(nameFlags(nameModel(error), FLAGS))),
    });
    await session.run({
      message: flags.words.join(" "),
      file: flags.text("load"),
      history: flags.on("history") ?? true,
      stopped: () => code !== undefined,
    });
  } catch (error) {
    if (code === undefined) throw nameModel(error);
    progress.clear();
  }
  return code ?? 0;
});

async function readTemplate(file?: string): Promise<string | undefined> {
  if (file === undefined) return undefined;
  try {
    return await Deno.readTextFile(file);
  } catch (error) {
    throw new Error(
      `Cannot read the chat template in ${file}: ${errorText(error)}`,
    );
  }
}
