/**
 * Reads JSON (RFC 8259) from bytes, value by value, so that a header with millions of
 * entries takes little more memory than its bytes.
 *
 * @module
 */

/** How deep values may be nested; a header needs 3. */
const MOST_DEPTH = 64;

const QUOTE = 0x22, BACKSLASH = 0x5c;
const OPEN_LIST = 0x5b, CLOSE_LIST = 0x5d;
const OPEN_OBJECT = 0x7b, CLOSE_OBJECT = 0x7d;
const COMMA = 0x2c, COLON = 0x3a, ZERO = 0x30;

/** Where a value lies in the bytes. */
export interface JsonSpan {
  begin: number;
  end: number;
}

/**
 * A position in JSON text. Every method reads one value and its surroundings, and throws
 * if it is not valid JSON.
 */
export class JsonCursor {
  #at = 0;

  /**
   * @param bytes valid UTF-8
   * @param where the file, for errors
   */
  constructor(
    readonly bytes: Uint8Array,
    readonly where: string,
  ) {}

  /** Whether an object comes next. */
  get atObject(): boolean {
    this.#blank();
    return this.bytes[this.#at] === OPEN_OBJECT;
  }

  /** Reads an object. `read` is called after each key and reads the value. */
  object(read: (key: string) => void): void {
    this.#take(OPEN_OBJECT, "{");
    this.#items(CLOSE_OBJECT, "}", () => {
      this.#blank();
      const key = this.text(this.#string());
      this.#take(COLON, ":");
      read(key);
    });
  }

  /** Skips any value. */
  value(): JsonSpan {
    return this.#value(0);
  }

  /** Requires that only white space follows. */
  end(): void {
    this.#blank();
    if (this.#at < this.bytes.length) this.#wrong("the end");
  }

  /** The string that a span holds. */
  text({ begin, end }: JsonSpan): string {
    const text = decode(this.bytes.subarray(begin, end));
    return text.includes("\\") ? JSON.parse(text) : text.slice(1, -1);
  }

  /** The JSON of a span, up to `most` bytes of it. */
  raw({ begin, end }: JsonSpan, most = 1024): string {
    return decode(this.bytes.subarray(begin, Math.min(end, begin + most)));
  }

  #value(depth: number): JsonSpan {
    this.#blank();
    const begin = this.#at, byte = this.bytes[begin];
    if (depth > MOST_DEPTH) {
      this.#refuse(
        `it is nested more than ${MOST_DEPTH} deep at byte ${begin}`,
      );
    }
    if (byte === QUOTE) this.#string();
    else if (byte === OPEN_OBJECT) {
      this.#at++;
      this.#items(CLOSE_OBJECT, "}", () => {
        this.#blank();
        this.#string();
        this.#take(COLON, ":");
        this.#value(depth + 1);
      });
    } else if (byte === OPEN_LIST) {
      this.#at++;
      this.#items(CLOSE_LIST, "]", () => this.#value(depth + 1));
    } else this.#scalar();
    return { begin, end: this.#at };
  }

  /** Reads items up to the closing bracket, and the commas between them. */
  #items(close: number, bracket: string, read: () => void): void {
    this.#blank();
    if (this.bytes[this.#at] === close) {
      this.#at++;
      return;
    }
    while (true) {
      read();
      this.#blank();
      const byte = this.bytes[this.#at];
      if (byte === close) break;
      if (byte !== COMMA) this.#wrong(`"," or "${bracket}"`);
      this.#at++;
    }
    this.#at++;
  }

  /** Skips a string and checks its escapes. */
  #string(): JsonSpan {
    const { bytes } = this, begin = this.#at;
    if (bytes[begin] !== QUOTE) this.#wrong("a string");
    let at = begin + 1;
    while (bytes[at] !== QUOTE) {
      this.#at = at;
      if (!(bytes[at] >= 0x20)) this.#wrong("a character of a string");
      if (bytes[at] !== BACKSLASH) at++;
      else if (bytes[at + 1] === 0x75) { // \u
        for (let digit = at + 2; digit < at + 6; digit++) {
          this.#at = digit;
          if (!isHexDigit(bytes[digit])) this.#wrong("a hexadecimal digit");
        }
        at += 6;
      } else {
        this.#at = at + 1;
        if (!isEscape(bytes[at + 1])) this.#wrong("an escape");
        at += 2;
      }
    }
    this.#at = at + 1;
    return { begin, end: at + 1 };
  }

  /** Skips a number, true, false or null. */
  #scalar(): void {
    const { bytes } = this, begin = this.#at;
    let end = begin;
    while (isDigit(bytes[end])) end++;
    const whole = end > begin &&
      (bytes[begin] !== ZERO || end === begin + 1);
    if (whole && !isScalarByte(bytes[end])) { // the usual case
      this.#at = end;
      return;
    }
    while (isScalarByte(bytes[end])) end++;
    const text = this.raw({ begin, end }, 400);
    const known = /^(true|false|null|-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?)$/;
    if (end - begin > 400 || !known.test(text)) this.#wrong("a value");
    this.#at = end;
  }

  #take(byte: number, character: string): void {
    this.#blank();
    if (this.bytes[this.#at] !== byte) this.#wrong(`"${character}"`);
    this.#at++;
  }

  #blank(): void {
    const { bytes } = this;
    let at = this.#at;
    while (
      bytes[at] === 0x20 || bytes[at] === 0x0a || bytes[at] === 0x0d ||
      bytes[at] === 0x09
    ) at++;
    this.#at = at;
  }

  #wrong(must: string): never {
    const begin = this.#at, { length } = this.bytes;
    const is = begin >= length
      ? "it ends"
      : `it has ${JSON.stringify(this.raw({ begin, end: length }, 12))}`;
    this.#refuse(
      `it is not valid JSON (${is} at byte ${begin}, where ${must} must be)`,
    );
  }

  #refuse(problem: string): never {
    throw new Error(`Cannot read ${this.where}: ${problem}`);
  }
}

const decoder = new TextDecoder();

/** Decodes UTF-8; short ASCII, of which headers consist, without the decoder. */
function decode(bytes: Uint8Array): string {
  if (bytes.length > 200) return decoder.decode(bytes);
  for (let i = 0; i < bytes.length; i++) {
    if (bytes[i] >= 0x80) return decoder.decode(bytes);
  }
  // Spreading would iterate, which is slower.
  return String.fromCharCode.apply(null, bytes as unknown as number[]);
}

const isDigit = (byte: number) => byte >= ZERO && byte <= 0x39;

const isHexDigit = (byte: number) =>
  byte >= 0x30 && byte <= 0x39 || byte >= 0x41 && byte <= 0x46 ||
  byte >= 0x61 && byte <= 0x66;

const ESCAPES = new Set(new TextEncoder().encode('"\\/bfnrt'));
const isEscape = (byte: number) => ESCAPES.has(byte);

/** Letters, digits and the signs of numbers. */
const isScalarByte = (byte: number) =>
  isDigit(byte) || byte >= 0x61 && byte <= 0x7a ||
  byte >= 0x41 && byte <= 0x5a || byte === 0x2d || byte === 0x2b ||
  byte === 0x2e;
