/**
 * Divides a template into text and tokens, and removes white space around tags as Jinja2
 * does with `trim_blocks` and `lstrip_blocks`, which chat templates are written for.
 *
 * @module
 */
import { atMost, Fault, MOST } from "./meter.ts";
import { quoted } from "./print.ts";
import { SPACES, strip } from "./unicode.ts";

/** A token; `operator` and the tags' ends have their text as value. */
export interface Token {
  type:
    | "text"
    | "{{"
    | "}}"
    | "{%"
    | "%}"
    | "name"
    | "string"
    | "integer"
    | "float"
    | "operator"
    | "end";
  value: string;
  line: number;
}

const SPACE = `(?:${SPACES.source})?`;
const NAME = /[\p{XID_Continue}_]+/uy;
const STRING = /'[^'\\]*(?:\\[^][^'\\]*)*'|"[^"\\]*(?:\\[^][^"\\]*)*"/y;
const FLOAT =
  /(?<!\.)(?:\d+_)*\d+(?:(?:\.(?:\d+_)*\d+)?e[+-]?(?:\d+_)*\d+|\.(?:\d+_)*\d+)/iy;
const INTEGER =
  /0b(?:_?[01])+|0o(?:_?[0-7])+|0x(?:_?[\da-f])+|[1-9](?:_?\d)*|0(?:_?0)*/iy;
const OPERATOR = /\/\/|\*\*|[=!<>]=|[-+/*%~[\](){}>=<.:|,;]/y;
const BLANK = new RegExp(SPACES, "y");
/** The end of each kind of tag, with the white space that it removes. */
const ENDS = {
  "{%": new RegExp(`\\+%\\}|-%\\}${SPACE}|%\\}\\n?`, "y"),
  "{{": new RegExp(`-\\}\\}${SPACE}|\\}\\}`, "y"),
  "{#": new RegExp(`\\+#\\}|-#\\}${SPACE}|#\\}\\n?`, "g"),
};
const RAW = new RegExp(
  `\\{%[-+]?${SPACE}raw${SPACE}(?:-%\\}${SPACE}|%\\})`,
  "y",
);
const END_RAW = new RegExp(
  `\\{%([-+]?)${SPACE}endraw${SPACE}(?:\\+%\\}|-%\\}${SPACE}|%\\}\\n?)`,
  "g",
);
const CLOSERS: Readonly<Record<string, string>> = {
  "(": ")",
  "[": "]",
  "{": "}",
};

const ESCAPE =
  /\\(?:\n|x([\da-f]{2})|u([\da-f]{4})|U([\da-f]{8})|([0-7]{1,3})|([^]))/gi;
const SIMPLE: Readonly<Record<string, string>> = {
  "\\": "\\",
  "'": "'",
  '"': '"',
  a: "\x07",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
  v: "\v",
};

/** The value of a string literal, without its quotes. */
function unescape(text: string): string {
  return text.replaceAll(ESCAPE, (whole, x, u, U, octal, char) => {
    const hex = x ?? u ?? U;
    if (hex !== undefined) {
      const code = parseInt(hex, 16);
      if (code > 0x10ffff) throw new Fault("illegal Unicode character");
      return String.fromCodePoint(code);
    }
    if (octal !== undefined) return String.fromCodePoint(parseInt(octal, 8));
    if (char === undefined) return "";
    if (/[xuUN]/.test(char)) {
      throw new Fault(
        char === "N"
          ? "\\N{…} escapes are not supported, write the character"
          : `truncated \\${char} escape`,
      );
    }
    return SIMPLE[char] ?? whole;
  });
}

/** Reads a template from left to right. */
class Lexer {
  readonly tokens: Token[] = [];
  #at = 0;
  #line = 1;
  #counted = 0;
  /** Whether what was read last ended a line. */
  #lineStarts = true;

  constructor(readonly source: string) {}

  read(): Token[] {
    const opening = /\{[%{#]/g;
    for (;;) {
      opening.lastIndex = this.#at;
      const match = opening.exec(this.source);
      if (!match) break;
      this.#tag(match[0] as "{%" | "{{" | "{#", match.index);
    }
    this.#text(this.source.slice(this.#at));
    this.#at = this.source.length;
    this.#push("end", "");
    return this.tokens;
  }

  /** The line of a position; positions only grow. */
  #lineAt(at: number): number {
    for (;;) {
      const next = this.source.indexOf("\n", this.#counted);
      if (next < 0 || next >= at) break;
      this.#counted = next + 1;
      this.#line++;
    }
    return this.#line;
  }

  #push(type: Token["type"], value: string): void {
    this.tokens.push({ type, value, line: this.#lineAt(this.#at) });
  }

  #text(text: string): void {
    if (text !== "") this.#push("text", text);
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    return pattern.exec(this.source)?.[0];
  }

  #take(text: string): void {
    this.#at += text.length;
    this.#lineStarts = text.endsWith("\n");
  }

  /** Text before a tag, without the white space that the tag removes. */
  #before(begin: number, sign: string, isPrint: boolean): void {
    const text = this.source.slice(this.#at, begin);
    if (sign === "-") return this.#text(strip(text, null, false, true));
    if (sign === "+" || isPrint) return this.#text(text);
    const lineBegin = text.lastIndexOf("\n") + 1;
    const indents = (lineBegin > 0 || this.#lineStarts) &&
      strip(text.slice(lineBegin), null, true, false) === "";
    this.#text(indents ? text.slice(0, lineBegin) : text);
  }

  #tag(opening: "{%" | "{{" | "{#", begin: number): void {
    const sign = /^[-+]?/.exec(this.source.slice(begin + 2, begin + 3))![0];
    RAW.lastIndex = begin;
    const raw = opening === "{%" ? RAW.exec(this.source)?.[0] : undefined;
    this.#before(begin, sign, opening === "{{");
    this.#at = begin;
    if (raw !== undefined) return this.#raw(raw);
    if (opening === "{#") return this.#comment();
    this.#push(opening, opening);
    this.#take(opening + sign);
    this.#inside(opening);
  }

  #comment(): void {
    const end = ENDS["{#"];
    end.lastIndex = this.#at + 2;
    const match = end.exec(this.source);
    if (!match) this.#fail("Missing end of comment tag");
    this.#take(this.source.slice(this.#at, match.index + match[0].length));
  }

  #raw(opening: string): void {
    this.#take(opening);
    END_RAW.lastIndex = this.#at;
    const match = END_RAW.exec(this.source);
    if (!match) this.#fail("Missing end of raw directive");
    this.#before(match.index, match[1], false);
    this.#at = match.index;
    this.#take(match[0]);
  }

  /** Tokens up to the end of a tag, which is recognised only outside of brackets. */
  #inside(opening: "{%" | "{{"): void {
    const open: string[] = [];
    for (;;) {
      const end = open.length === 0 ? this.#match(ENDS[opening]) : undefined;
      if (end !== undefined) {
        this.#push(opening === "{%" ? "%}" : "}}", end);
        return this.#take(end);
      }
      const space = this.#match(BLANK);
      if (space !== undefined) this.#take(space);
      else if (this.#at >= this.source.length) return;
      else this.#token(open);
    }
  }

  #token(open: string[]): void {
    const patterns = [
      ["float", FLOAT],
      ["integer", INTEGER],
      ["name", NAME],
      ["string", STRING],
      ["operator", OPERATOR],
    ] as const;
    for (const [type, pattern] of patterns) {
      const text = this.#match(pattern);
      if (text === undefined) continue;
      if (type === "operator") this.#balance(text, open);
      this.#push(type, this.#value(type, text));
      return this.#take(text);
    }
    const char = String.fromCodePoint(this.source.codePointAt(this.#at)!);
    this.#fail(`unexpected char ${quoted(char)}`);
  }

  #value(type: Token["type"], text: string): string {
    if (type === "name" && !/^[\p{XID_Start}_]/u.test(text)) {
      this.#fail("Invalid character in identifier");
    }
    if (type !== "string") return text;
    try {
      return unescape(text.slice(1, -1));
    } catch (error) {
      throw error instanceof Fault ? error.at(this.#lineAt(this.#at)) : error;
    }
  }

  #balance(text: string, open: string[]): void {
    if (Object.hasOwn(CLOSERS, text)) open.push(CLOSERS[text]);
    else if (text === ")" || text === "]" || text === "}") {
      const expected = open.pop();
      if (expected === text) return;
      const hint = expected === undefined ? "" : `, expected '${expected}'`;
      this.#fail(`unexpected '${text}'${hint}`);
    }
  }

  #fail(reason: string): never {
    throw new Fault(reason).at(this.#lineAt(this.#at));
  }
}

/** Divides a template into tokens. */
export function tokenize(source: string): Token[] {
  atMost(source.length, MOST.source, "the template has {} characters");
  // One line break at the end of the file is not part of the template.
  const text = source.replaceAll(/\r\n?/g, "\n").replace(/\n$/, "");
  return new Lexer(text).read();
}
