/**
 * Keys of a terminal: the bytes that it sends for them, and how wide it shows text.
 *
 * @module
 */

/** A key, or text that was typed or pasted. */
export type Key =
  | { readonly name: KeyName }
  | { readonly name: "text" | "paste"; readonly text: string };

/** Keys that do something. */
export type KeyName =
  | "enter"
  | "newline"
  | "up"
  | "down"
  | "left"
  | "right"
  | "word-left"
  | "word-right"
  | "home"
  | "end"
  | "backspace"
  | "delete"
  | "delete-or-leave"
  | "delete-word-left"
  | "delete-word-right"
  | "delete-to-start"
  | "delete-to-end"
  | "put-back"
  | "search"
  | "cancel"
  | "clear-screen"
  | "complete";

/** Control characters and escape sequences, of xterm and of those that differ from it. */
const SEQUENCES: Readonly<Record<string, KeyName>> = {
  "\r": "enter",
  "\n": "enter",
  "\x1b\r": "newline",
  "\x1b\n": "newline",
  "\x1b[13;2u": "newline",
  "\x1b[A": "up",
  "\x1bOA": "up",
  "\x10": "up",
  "\x1b[B": "down",
  "\x1bOB": "down",
  "\x0e": "down",
  "\x1b[D": "left",
  "\x1bOD": "left",
  "\x02": "left",
  "\x1b[C": "right",
  "\x1bOC": "right",
  "\x06": "right",
  "\x1b[1;5D": "word-left",
  "\x1b[1;3D": "word-left",
  "\x1bb": "word-left",
  "\x1b[1;5C": "word-right",
  "\x1b[1;3C": "word-right",
  "\x1bf": "word-right",
  "\x1b[H": "home",
  "\x1bOH": "home",
  "\x1b[1~": "home",
  "\x01": "home",
  "\x1b[F": "end",
  "\x1bOF": "end",
  "\x1b[4~": "end",
  "\x05": "end",
  "\x7f": "backspace",
  "\x08": "backspace",
  "\x1b[3~": "delete",
  "\x04": "delete-or-leave",
  "\x17": "delete-word-left",
  "\x1b\x7f": "delete-word-left",
  "\x1b\x08": "delete-word-left",
  "\x1bd": "delete-word-right",
  "\x15": "delete-to-start",
  "\x0b": "delete-to-end",
  "\x19": "put-back",
  "\x12": "search",
  "\x07": "cancel",
  "\x1b": "cancel",
  "\x0c": "clear-screen",
  "\t": "complete",
};

const PASTE = "\x1b[200~", PASTE_END = "\x1b[201~";

/** One sequence: CSI, SS3, or a character after Escape. */
// deno-lint-ignore no-control-regex
const SEQUENCE = /^\x1b(?:\[[0-?]*[ -/]*[@-~]|O[@-~]|[^\[O\x1b])/;

/** The beginning of a sequence whose rest has not come yet. */
// deno-lint-ignore no-control-regex
const PARTIAL = /^\x1b(?:\[[0-?]*[ -/]*|O)$/;

/** Text up to the next control character. */
// deno-lint-ignore no-control-regex
const TEXT = /^[^\x00-\x1f\x7f]+/;

/** Reads keys from what a terminal sends, which may be cut anywhere but after an Escape. */
export class KeyReader {
  readonly #decoder = new TextDecoder();
  #held = "";

  /** The keys in these bytes and those held back before. */
  read(bytes: Uint8Array): Key[] {
    this.#held += this.#decoder.decode(bytes, { stream: true });
    const keys: Key[] = [];
    for (;;) {
      const key = this.#next();
      if (key === undefined) return keys;
      if (key !== "unknown") keys.push(key);
    }
  }

  #next(): Key | "unknown" | undefined {
    const held = this.#held;
    if (held === "" || PARTIAL.test(held)) return undefined;
    if (held.startsWith(PASTE)) {
      const end = held.indexOf(PASTE_END);
      if (end < 0) return undefined;
      this.#held = held.slice(end + PASTE_END.length);
      const text = held.slice(PASTE.length, end).replaceAll(/\r\n?/g, "\n");
      return { name: "paste", text };
    }
    const [text] = TEXT.exec(held) ?? [];
    const part = text ?? SEQUENCE.exec(held)?.[0] ?? held[0];
    this.#held = held.slice(part.length);
    if (text !== undefined) return { name: "text", text };
    const name = Object.hasOwn(SEQUENCES, part) ? SEQUENCES[part] : undefined;
    return name === undefined ? "unknown" : { name };
  }
}

/** Characters of East Asian scripts, which take two columns. */
const WIDE =
  /[\u1100-\u115f\u2e80-\u303e\u3041-\u33ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff01-\uff60\uffe0-\uffe6]|[\u{20000}-\u{3fffd}]|\p{Emoji_Presentation}|\ufe0f/u;
const NARROW = /^[\p{M}\p{Cf}]*$/u;

const segmenter = new Intl.Segmenter();

/** What a reader takes for characters. */
export const characters = (text: string): string[] =>
  Array.from(segmenter.segment(text), ({ segment }) => segment);

/** Columns that a character takes. */
export const columnsOf = (character: string): number =>
  WIDE.test(character) ? 2 : NARROW.test(character) ? 0 : 1;
