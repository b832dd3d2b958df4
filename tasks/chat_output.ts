/**
 * What `deno task chat` prints: replies and the answers of commands, as text or as one line
 * of JSON per event.
 *
 * @module
 */
import { printable } from "../lib/errors.ts";
import type { Run } from "../mod.ts";
import { stderr, stdout } from "./colour.ts";
import { say, write, writeAll } from "./model.ts";

/** How reasoning is shown. */
export type Thoughts = "dimmed" | "hidden";

/** Where replies and answers go. */
export interface Output {
  thoughts: Thoughts;
  /** Prints a reply as it is generated. */
  reply(run: Run): Promise<void>;
  /** Answers a command: in words, and as an event. */
  tell(text: string, event: { event: string; [field: string]: unknown }): void;
}

const REPLY = "the reply";

/** One line of JSON per event on stdout. */
export class JsonOutput implements Output {
  thoughts: Thoughts = "dimmed";

  async reply(run: Run): Promise<void> {
    let printed = 0;
    for await (const { kind, text } of run) {
      if (text !== "" && kind !== "tool") this.#write({ event: kind, text });
      for (; printed < run.toolCalls.length; printed++) {
        this.#write({ event: "call", call: run.toolCalls[printed] });
      }
    }
    const { stats } = run;
    this.#write({
      event: "end",
      finishReason: run.finishReason,
      text: run.text,
      reasoning: run.reasoning,
      toolCalls: run.toolCalls,
      promptTokens: stats.promptTokens,
      cachedTokens: stats.cachedTokens,
      tokens: stats.tokens,
      timeToFirstTokenMs: round(stats.timeToFirstTokenMs),
      decodeTokensPerSecond: round(stats.decodeTokensPerSecond),
    });
  }

  tell(_text: string, event: object): void {
    this.#write(event);
  }

  #write(event: object): void {
    write(`${JSON.stringify(event)}\n`, "an event");
  }
}

/**
 * Text: replies on stdout, reasoning beside them on a terminal and on stderr elsewhere,
 * answers on stderr.
 */
export class TextOutput implements Output {
  constructor(
    readonly interactive: boolean,
    public thoughts: Thoughts,
  ) {}

  async reply(run: Run): Promise<void> {
    let shown: "nothing" | "thoughts" | "text" = "nothing", printed = 0;
    let lineBegun = false;
    for await (const { kind, text } of run) {
      if (kind === "reasoning" && text !== "") {
        if (shown !== "thoughts") this.#think("begin");
        if (this.thoughts === "dimmed") this.#think(text);
        shown = "thoughts";
      } else if (text !== "") {
        if (shown === "thoughts") this.#think("end");
        if (kind === "text") {
          // On a terminal a reply begins a line, also if it continues a text.
          const begins = this.interactive && shown !== "text";
          write(begins ? text.trimStart() : text, REPLY);
          lineBegun = !text.endsWith("\n");
        }
        shown = "text";
      }
      for (; printed < run.toolCalls.length; printed++) {
        const call = JSON.stringify(run.toolCalls[printed].function);
        write(`${lineBegun ? "\n" : ""}${call}\n`, REPLY);
        lineBegun = false;
      }
    }
    if (shown === "thoughts") this.#think("end");
    if (lineBegun || !this.interactive && printed === 0) write("\n", REPLY);
    const { finishReason, stats: { tokens } } = run;
    if (finishReason === "aborted") {
      say(tokens > 0 ? "(stopped)" : "(stopped before the first token)");
    } else if (finishReason === "length") {
      say(`(cut off after ${tokens} tokens)`);
    }
  }

  tell(text: string): void {
    say(text);
  }

  /** Prints a piece of reasoning, or what surrounds it. */
  #think(text: "begin" | "end" | string): void {
    const to = this.interactive ? Deno.stdout : Deno.stderr;
    const { dim } = this.interactive ? stdout : stderr;
    const hidden = this.thoughts === "hidden";
    if (hidden && !this.interactive) return;
    if (text === "begin") {
      writeAll(to, dim(hidden ? "Thinking…" : "Thinking:\n"));
    } else if (text !== "end") writeAll(to, dim(printable(text)));
    else writeAll(to, hidden ? "\r\x1b[K" : "\n\n");
  }
}

const round = (value: number) => Math.round(value * 100) / 100;
