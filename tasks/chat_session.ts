/**
 * The conversation of `deno task chat`: messages and commands.
 *
 * @module
 */
import { bytesText } from "../lib/checkpoint/sources.ts";
import { OtherCacheError } from "../lib/engine/chat_file.ts";
import { quoted } from "../lib/errors.ts";
import { homeFolder, ownCacheFolder } from "../lib/host.ts";
import { tryInstead } from "../lib/text/messages.ts";
import type { Chat, ChatContent, Message, Qwen3, Run } from "../mod.ts";
import type { Output } from "./chat_output.ts";
import { stderr } from "./colour.ts";
import { say, stdinLines, writeAll } from "./model.ts";
import { readToolsFile } from "./replies.ts";
import { History, Terminal } from "./terminal.ts";

/** A command of the conversation. */
interface Command {
  /** What follows the name, for /help. */
  takes: string;
  help: string;
  run(rest: string): Promise<void> | void;
}

/** The text of a message, as far as it has any. */
const textOf = ({ content }: Message): string =>
  typeof content === "string"
    ? content
    : (content ?? []).map((part) => "text" in part ? part.text : "").join("");

/** How a conversation is held. */
export interface SessionOptions {
  output: Output;
  /** Whether messages are asked for on a terminal. */
  interactive: boolean;
  /** Whether to say how fast each reply was. */
  verbose: boolean;
  /** The text of an error after which the conversation goes on. */
  errorText: (error: unknown) => string;
}

/** A conversation with the user. */
export class Session {
  readonly #output: Output;
  readonly #interactive: boolean;
  readonly #options: SessionOptions;
  #terminal?: Terminal;
  /** Ends the reply in progress. */
  #stop?: AbortController;
  #last?: Run;
  /** Calls whose results are still asked for, and those that are there. */
  #asked: string[] = [];
  #results: Message[] = [];
  /** Asks for a message; undefined if there is none any more. */
  #ask: (prompt: string, text?: string) => Promise<string | undefined> = () =>
    Promise.resolve(undefined);

  constructor(
    readonly qwen: Qwen3,
    readonly chat: Chat,
    options: SessionOptions,
  ) {
    this.#options = options;
    this.#output = options.output;
    this.#interactive = options.interactive;
  }

  /** Talks until the user leaves, or the lines end, or `stopped`. */
  async run({ message, file, history, stopped }: {
    /** The first message; none if it is empty. */
    message: string;
    /** The conversation to continue. */
    file?: string;
    /** Whether what is typed is kept for the next time. */
    history: boolean;
    stopped: () => boolean;
  }): Promise<void> {
    if (file !== undefined) await this.#load(file);
    using opened = this.#interactive ? await this.#open(history) : undefined;
    this.#terminal = opened;
    if (!opened) this.#readLines();
    let line: string | undefined = message || undefined;
    for (; !stopped(); line = undefined) {
      const [call] = this.#asked;
      line ??= await this.#ask(
        call === undefined ? "> " : `result of ${call}> `,
      );
      if (line === undefined) return;
      try {
        await this.#take(line);
      } catch (error) {
        // Whoever types can go on; a script ends.
        if (!this.#interactive || error instanceof Deno.errors.BrokenPipe) {
          throw error;
        }
        const text = this.#options.errorText(error);
        console.error(`${stderr.red("error:")} ${text}`);
      }
    }
  }

  async #open(keep: boolean): Promise<Terminal> {
    let path: string | undefined;
    if (keep) {
      try {
        path = `${ownCacheFolder()}/chat_history.jsonl`;
      } catch { /* there is no folder for it */ }
    }
    const history = await History.read(path);
    const words = Object.keys(this.#commands).map((name) => `/${name}`);
    const terminal = new Terminal(history, words);
    say("/help lists the commands; Ctrl-D leaves.");
    this.#ask = async (prompt, text) => {
      const line = await terminal.ask(prompt, text);
      if (line !== undefined) await history.add(line);
      return line;
    };
    return terminal;
  }

  /** Takes messages from the lines of stdin. */
  #readLines(): void {
    const lines = stdinLines("a message"), typed = Deno.stdin.isTerminal();
    this.#ask = async (prompt) => {
      for (;;) {
        if (typed) writeAll(Deno.stderr, prompt);
        const { value, done } = await lines.next();
        if (done) return undefined;
        if (value.trim() !== "") return value;
      }
    };
  }

  /** Ctrl-C: stops the reply, the second time the task; without a reply, what is typed. */
  interrupt(): void {
    if (this.#stop) this.end(130);
    else this.#terminal?.interrupt();
  }

  /** Stops the reply; without one, or the second time, ends the task. */
  end(code: number): void {
    if (!this.#stop || this.#stop.signal.aborted) this.#leave(code);
    this.#stop.abort();
  }

  #leave(code: number): never {
    try {
      this.#terminal?.[Symbol.dispose]();
    } catch { /* the terminal is gone */ }
    Deno.exit(code);
  }

  /** Does what a line says: a command, the result of a function, or a message. */
  async #take(line: string): Promise<void> {
    const [, name, rest = ""] = /^\/(\w+)(?:\s+([^]*))?$/.exec(line) ?? [];
    if (name !== undefined) {
      if (["quit", "exit"].includes(name)) return this.#leave(0);
      if (Object.hasOwn(this.#commands, name)) {
        return await this.#commands[name].run(rest.trim());
      }
      const known = Object.keys(this.#commands).map((name) => `/${name}`);
      throw new Error(
        `Cannot run /${name}: there is no such command, ${
          tryInstead(`/${name}`, known, "/help")
        } (// begins a message with /)`,
      );
    }
    const message = line.startsWith("//") ? line.slice(1) : line;
    const call = this.#asked.shift();
    if (call === undefined) return await this.#send(message);
    this.#results.push({ role: "tool", content: message });
    if (this.#asked.length === 0) await this.#send(this.#results.splice(0));
  }

  async #send(content: ChatContent): Promise<void> {
    await this.#reply((signal) => this.chat.send(content, { signal }));
  }

  async #reply(begin: (signal: AbortSignal) => Run): Promise<void> {
    const stop = this.#stop = new AbortController();
    this.#forget();
    try {
      const run = this.#last = begin(stop.signal);
      await this.#output.reply(run);
      if (run.finishReason !== "tool_calls") return;
      this.#asked = run.toolCalls.map((call) => call.function.name);
    } finally {
      this.#stop = undefined;
      if (this.#options.verbose && this.#last) say(this.#last.stats.summary);
    }
  }

  /** Asks for no results any more. */
  #forget(): void {
    this.#asked = [];
    this.#results = [];
  }

  async #load(file: string): Promise<void> {
    const path = expanded(file), { chat } = this;
    let cachedTokens = 0;
    try {
      ({ cachedTokens } = await chat.load(path));
    } catch (error) {
      const { cause } = error as Error;
      if (!(cause instanceof OtherCacheError)) throw error;
      await chat.load(path, { cache: false });
      say(
        `Its keys and values are ${cause.saved}, this model's are ${cause.own}: the conversation runs again.`,
      );
    }
    this.#forget();
    const { turns, tokens } = chat;
    this.#output.tell(
      `Loaded ${counted(turns, "turn")}, ${counted(tokens, "token")}.`,
      { event: "loaded", turns, tokens, cachedTokens },
    );
    const last = chat.messages.findLast(({ role }) => role === "user");
    if (this.#interactive && last) {
      const reply = chat.messages.at(-1)!;
      say(`> ${textOf(last)}\n${reply === last ? "" : textOf(reply).trim()}`);
    }
  }

  readonly #commands: Record<string, Command> = {
    system: {
      takes: "[TEXT | -]",
      help: "show the system message, set it, or remove it",
      run: (text) => {
        if (text !== "") this.chat.system = text === "-" ? undefined : text;
        const { system } = this.chat;
        this.#output.tell(
          system === undefined
            ? "There is no system message."
            : `System: ${system}`,
          { event: "system", system: system ?? null },
        );
      },
    },
    tools: {
      takes: "[FILE | -]",
      help: "show the functions that may be called, read them, or remove them",
      run: async (file) => {
        if (file !== "") {
          this.chat.tools = file === "-"
            ? undefined
            : await readToolsFile(expanded(file));
        }
        const names = (this.chat.tools ?? []).map((tool) => tool.function.name);
        this.#output.tell(
          names.length === 0
            ? "There are no tools."
            : `Tools: ${names.join(", ")}`,
          { event: "tools", tools: names },
        );
      },
    },
    thoughts: {
      takes: "[dimmed | hidden]",
      help: "show reasoning, or hide it; without a word, the other",
      run: (word) => {
        const next = word ||
          (this.#output.thoughts === "dimmed" ? "hidden" : "dimmed");
        if (next !== "dimmed" && next !== "hidden") {
          throw new Error(
            `Cannot run /thoughts: ${
              quoted(next)
            } is given, must be dimmed or hidden`,
          );
        }
        this.#output.thoughts = next;
        this.#output.tell(`Thoughts are ${next}.`, {
          event: "thoughts",
          thoughts: next,
        });
      },
    },
    reset: {
      takes: "",
      help: "begin a new conversation",
      run: () => {
        this.chat.reset();
        this.#forget();
        this.#output.tell("A new conversation.", { event: "reset" });
      },
    },
    undo: {
      takes: "[N]",
      help: "take back the last turn, or the last N",
      run: (count) => {
        const undone = this.chat.undo(count === "" ? 1 : Number(count));
        this.#forget();
        const { turns } = this.chat;
        this.#output.tell(
          `Took back: ${shortText(textOf(undone[0]))} (${
            counted(turns, "turn")
          } left)`,
          { event: "undone", messages: undone, turns },
        );
      },
    },
    edit: {
      takes: "[TEXT]",
      help: "change your last message and send it again",
      run: async (text) => {
        const message = this.chat.messages.findLast(({ role }) =>
          role === "user"
        );
        if (message === undefined) {
          throw new Error("Cannot edit: there is no message yet");
        }
        if (text === "" && !this.#interactive) {
          throw new Error("Cannot edit: the text is missing, as in /edit TEXT");
        }
        const changed = text || await this.#ask("edit> ", textOf(message));
        if (changed === undefined) return;
        await this.#reply((signal) => this.chat.edit(-1, changed, { signal }));
      },
    },
    retry: {
      takes: "",
      help: "ask for another reply to your last message",
      run: async () => {
        const message = this.chat.messages.findLast(({ role }) =>
          role === "user"
        );
        if (message === undefined) {
          throw new Error("Cannot retry: there is no message yet");
        }
        const again = (signal: AbortSignal) =>
          this.chat.edit(-1, [message], { signal });
        await this.#reply(again);
      },
    },
    save: {
      takes: "FILE",
      help: "write the conversation to a file, with keys and values",
      run: async (file) => {
        if (file === "") {
          throw new Error("Cannot save: the file is missing, as in /save FILE");
        }
        const { bytes, cachedTokens } = await this.chat.save(expanded(file));
        this.#output.tell(
          `Saved ${counted(this.chat.turns, "turn")}, ${bytesText(bytes)}.`,
          { event: "saved", file, bytes, cachedTokens },
        );
      },
    },
    load: {
      takes: "FILE",
      help: "continue a conversation that was saved",
      run: async (file) => {
        if (file === "") {
          throw new Error("Cannot load: the file is missing, as in /load FILE");
        }
        await this.#load(file);
      },
    },
    stats: {
      takes: "",
      help:
        "show the length of the conversation, and how fast the last reply was",
      run: () => this.#tellStats(),
    },
    help: {
      takes: "",
      help: "list the commands and keys",
      run: () => this.#tellHelp(),
    },
  };

  #tellStats(): void {
    const { chat, qwen } = this, stats = this.#last?.stats;
    const { turns, tokens, context } = chat, { memoryBytes } = qwen;
    const lines = [
      `${counted(turns, "turn")}, ${tokens} of ${context} tokens; ${
        bytesText(memoryBytes)
      } of memory`,
      ...stats ? [stats.summary] : [],
    ];
    this.#output.tell(lines.join("\n"), {
      event: "stats",
      turns,
      tokens,
      context,
      memoryBytes,
      ...stats && {
        promptTokens: stats.promptTokens,
        cachedTokens: stats.cachedTokens,
        timeToFirstTokenMs: stats.timeToFirstTokenMs,
        decodeTokensPerSecond: stats.decodeTokensPerSecond,
      },
    });
  }

  #tellHelp(): void {
    const rows = [
      ...Object.entries(this.#commands).map(([name, { takes, help }]) =>
        [`/${name} ${takes}`, help] as const
      ),
      ["/quit", "leave, as Ctrl-D does"] as const,
    ];
    const keys = this.#interactive
      ? [
        "Alt-Enter, or \\ and Enter: another line    Ctrl-R: search what was sent",
        "Ctrl-C: stop the reply, or give up the line; at an empty one, leave",
      ]
      : [];
    const text = [
      ...rows.map(([left, right]) => `${left.padEnd(28)}${right}`),
      ...keys,
    ].join("\n");
    const commands = rows.map(([left]) => left.trim());
    this.#output.tell(text, { event: "help", commands });
  }
}

const counted = (n: number, what: string) =>
  `${n} ${what}${n === 1 ? "" : "s"}`;

/** The beginning of a text, on one line. */
function shortText(text: string): string {
  const line = text.trim().replaceAll(/\s+/g, " ");
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

/** A path as a shell would read it. */
function expanded(path: string): string {
  const home = homeFolder();
  return home !== undefined && path.startsWith("~/")
    ? home + path.slice(1)
    : path;
}
