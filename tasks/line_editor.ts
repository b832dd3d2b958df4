/**
 * Editing a message on a terminal: what keys do to it, and the rows that show it.
 *
 * @module
 */
import { printable } from "../lib/errors.ts";
import { characters, columnsOf, type Key } from "./keys.ts";

/** What a key ended: the message is sent, or the user leaves. */
export type Ending = "send" | "leave";

/** What a message looks like: rows, none wider than the terminal, and where the cursor is. */
export interface Picture {
  readonly rows: readonly string[];
  readonly row: number;
  readonly column: number;
}

/** A search through earlier messages. */
interface Search {
  text: string;
  /** The message that was found; messages further back are older. */
  at: number;
  /** What is edited again if the search is cancelled. */
  readonly before: Edited;
}

interface Edited {
  readonly text: string;
  readonly cursor: number;
}

const WORD_LEFT = /[\p{L}\p{N}_]+[^\p{L}\p{N}_]*$|^[^\p{L}\p{N}_]+$/u;
const WORD_RIGHT = /^[^\p{L}\p{N}_]*[\p{L}\p{N}_]+|^[^\p{L}\p{N}_]+$/u;

/** A message while it is edited. */
export class LineEditor {
  #text: string;
  /** The character before which text is inserted, in UTF-16 units. */
  #cursor: number;
  #cut = "";
  #search?: Search;
  /** The earlier message that is shown; as many as there are for the new one. */
  #at: number;
  /** Earlier messages as they were changed, and the new one. */
  readonly #drafts = new Map<number, string>();

  /**
   * @param history earlier messages, the oldest first
   * @param words what Tab completes at the beginning of a message
   */
  constructor(
    readonly history: readonly string[],
    readonly words: readonly string[] = [],
    text = "",
  ) {
    this.#text = text;
    this.#cursor = text.length;
    this.#at = history.length;
  }

  get text(): string {
    return this.#text;
  }

  /** Empties the message, as Ctrl-C does; false if it was empty. */
  clear(): boolean {
    const had = this.#text !== "" || this.#search !== undefined;
    this.#search = undefined;
    this.#set("", 0);
    this.#at = this.history.length;
    return had;
  }

  /** Does what a key says. */
  press(key: Key): Ending | undefined {
    if (this.#search && this.#searched(this.#search, key)) return undefined;
    this.#search = undefined;
    if ("text" in key) this.#insert(key.text);
    else if (key.name === "enter") {
      // A backslash continues the message on another line.
      if (!this.#text.endsWith("\\") || this.#cursor < this.#text.length) {
        return "send";
      }
      this.#delete(this.#cursor - 1, this.#cursor);
      this.#insert("\n");
    } else if (key.name === "delete-or-leave" && this.#text === "") {
      return "leave";
    } else this.#keys[key.name]?.();
    return undefined;
  }

  readonly #keys: Partial<Record<Key["name"], () => void>> = {
    "newline": () => this.#insert("\n"),
    "left": () => this.#cursor -= this.#left.at(-1)?.length ?? 0,
    "right": () => this.#cursor += this.#right[0]?.length ?? 0,
    "word-left": () => this.#cursor -= this.#word(WORD_LEFT),
    "word-right": () => this.#cursor += this.#word(WORD_RIGHT),
    "home": () => this.#cursor = this.#lineStart,
    "end": () => this.#cursor = this.#lineEnd,
    "up": () => this.#vertical(-1),
    "down": () => this.#vertical(1),
    "backspace": () =>
      this.#delete(
        this.#cursor - (this.#left.at(-1)?.length ?? 0),
        this.#cursor,
      ),
    "delete": () => this.#deleteRight(),
    "delete-or-leave": () => this.#deleteRight(),
    "delete-word-left": () =>
      this.#cutOut(this.#cursor - this.#word(WORD_LEFT), this.#cursor),
    "delete-word-right": () =>
      this.#cutOut(this.#cursor, this.#cursor + this.#word(WORD_RIGHT)),
    "delete-to-start": () => this.#cutOut(this.#lineStart, this.#cursor),
    "delete-to-end": () => this.#cutOut(this.#cursor, this.#lineEnd),
    "put-back": () => this.#insert(this.#cut),
    "search": () =>
      this.#search = {
        text: "",
        at: this.history.length,
        before: { text: this.#text, cursor: this.#cursor },
      },
    "complete": () => this.#complete(),
  };

  get #left(): string[] {
    return characters(this.#text.slice(0, this.#cursor));
  }

  get #right(): string[] {
    return characters(this.#text.slice(this.#cursor));
  }

  get #lineStart(): number {
    return this.#text.lastIndexOf("\n", this.#cursor - 1) + 1;
  }

  get #lineEnd(): number {
    const end = this.#text.indexOf("\n", this.#cursor);
    return end < 0 ? this.#text.length : end;
  }

  #word(pattern: RegExp): number {
    const side = pattern === WORD_LEFT
      ? this.#text.slice(0, this.#cursor)
      : this.#text.slice(this.#cursor);
    return pattern.exec(side)?.[0].length ?? 0;
  }

  #set(text: string, cursor: number): void {
    this.#text = text;
    this.#cursor = cursor;
  }

  #insert(text: string): void {
    const before = this.#text.slice(0, this.#cursor);
    const after = this.#text.slice(this.#cursor);
    this.#set(before + text + after, this.#cursor + text.length);
  }

  #delete(from: number, to: number): void {
    this.#set(this.#text.slice(0, from) + this.#text.slice(to), from);
  }

  #deleteRight(): void {
    const [next = ""] = this.#right;
    this.#delete(this.#cursor, this.#cursor + next.length);
  }

  #cutOut(from: number, to: number): void {
    if (from === to) return;
    this.#cut = this.#text.slice(from, to);
    this.#delete(from, to);
  }

  /** Moves to another line of the message, from the first and the last to other messages. */
  #vertical(by: -1 | 1): void {
    const start = this.#lineStart, column = this.#cursor - start;
    if (by < 0 && start > 0) {
      const above = this.#text.lastIndexOf("\n", start - 2) + 1;
      this.#cursor = Math.min(above + column, start - 1);
    } else if (by > 0 && this.#lineEnd < this.#text.length) {
      const below = this.#lineEnd + 1;
      const end = this.#text.indexOf("\n", below);
      const last = end < 0 ? this.#text.length : end;
      this.#cursor = Math.min(below + column, last);
    } else this.#recall(this.#at + by);
  }

  #recall(at: number): void {
    if (at < 0 || at > this.history.length) return;
    this.#drafts.set(this.#at, this.#text);
    this.#at = at;
    const text = this.#drafts.get(at) ?? this.history[at] ?? "";
    this.#set(text, text.length);
  }

  #complete(): void {
    const start = this.#text.slice(0, this.#cursor);
    const fits = this.words.filter((word) => word.startsWith(start));
    if (start === "" || fits.length === 0) return;
    let common = fits[0];
    while (!fits.every((word) => word.startsWith(common))) {
      common = common.slice(0, -1);
    }
    this.#insert(common.slice(start.length) + (fits.length === 1 ? " " : ""));
  }

  /** What a key does in a search; false if it ends the search and does what it always does. */
  #searched(search: Search, key: Key): boolean {
    if (key.name === "text" || key.name === "paste") {
      this.#find(search, search.text + (key as { text: string }).text, 0);
    } else if (key.name === "search") this.#find(search, search.text, -1);
    else if (key.name === "backspace") {
      const shorter = characters(search.text).slice(0, -1).join("");
      search.at = this.history.length;
      this.#find(search, shorter, 0);
    } else if (key.name === "cancel") {
      this.#set(search.before.text, search.before.cursor);
      this.#search = undefined;
    } else return false;
    return true;
  }

  /** Finds the newest message with a text, from the one that was found before. */
  #find(search: Search, text: string, by: 0 | -1): void {
    search.text = text;
    if (text === "") return;
    const from = search.at + by;
    const at = from < 0
      ? -1
      : this.history.findLastIndex((message, i) =>
        i <= from && message.includes(text)
      );
    if (at < 0) return;
    search.at = at;
    const found = this.history[at];
    this.#set(found, found.indexOf(text));
    this.#at = at;
  }

  /**
   * Draws the message after a prompt, in rows of fewer than `columns` columns; further lines
   * are indented.
   */
  picture(prompt: string, columns: number): Picture {
    const search = this.#search;
    const whole = search ? `search "${search.text}": ` : prompt;
    const shown = lastColumns(printable(whole), columns / 2);
    const rows: string[] = [];
    let line = shown, width = widthOf(shown), row = 0, column = width, at = 0;
    const indent = " ".repeat(Math.min(widthOf(prompt), 8));
    const wrap = (begin: string) => {
      rows.push(line);
      line = begin;
      width = begin.length;
    };
    for (const character of characters(this.#text)) {
      if (at <= this.#cursor) [row, column] = [rows.length, width];
      if (character === "\n") wrap(indent);
      else {
        const visible = character === "\t" ? " " : printable(character);
        const wide = widthOf(visible);
        if (width + wide >= columns) {
          wrap("");
          if (at <= this.#cursor) [row, column] = [rows.length, 0];
        }
        line += visible;
        width += wide;
      }
      at += character.length;
    }
    if (this.#cursor >= this.#text.length) [row, column] = [rows.length, width];
    rows.push(line);
    return { rows, row, column };
  }
}

/** The end of a text, of up to `most` columns. */
function lastColumns(text: string, most: number): string {
  const shown = characters(text);
  while (widthOf(shown.join("")) > most) shown.shift();
  return shown.join("");
}

const widthOf = (text: string): number =>
  characters(text).reduce((sum, one) => sum + columnsOf(one), 0);
