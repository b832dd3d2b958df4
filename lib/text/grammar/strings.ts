/**
 * Strings as JSON writes them (RFC 8259): UTF-8 with escapes, between quotes. Every
 * character may be escaped; half of a surrogate pair is never written.
 *
 * @module
 */
import { type Limits, State } from "./automaton.ts";
import { LAST } from "./sets.ts";
import { anyWord, type Word } from "./words.ts";

/** What comes next: the opening quote. */
const OPEN = 0;
/** A character, an escape or the closing quote. */
const NEXT = 1;
/** Nothing. */
const CLOSED = 2;
/** More bytes of a character. */
const BYTES = 3;
/** What follows a backslash. */
const ESCAPE = 4;
/** Hexadecimal digits. */
const HEX = 5;
/** The backslash, the u and the digits of a pair's second half. */
const LOW = 6, LOW_U = 7, LOW_HEX = 8;

/** The characters that stand after a backslash, and what they mean. */
const ESCAPES: ReadonlyMap<number, number> = new Map(
  ['""', "\\\\", "//", "b\b", "f\f", "n\n", "r\r", "t\t"]
    .map((both) => [both.charCodeAt(0), both.charCodeAt(1)]),
);

class Written extends State {
  readonly accepts: boolean;
  readonly #next: (State | null | undefined)[] = [];

  /**
   * @param value the digits or bytes so far
   * @param left how many are missing
   * @param high the first half of a pair
   */
  constructor(
    readonly word: Word,
    readonly where: number,
    readonly value = 0,
    readonly left = 0,
    readonly high = 0,
  ) {
    super();
    this.accepts = where === CLOSED;
  }

  next(byte: number): State | undefined {
    let next = this.#next[byte];
    if (next === undefined) next = this.#next[byte] = this.#step(byte) ?? null;
    return next ?? undefined;
  }

  override alike(most: number): State {
    const word = this.word.alike?.(most) ?? this.word;
    if (word === this.word) return this;
    return states(word)(this.where, this.value, this.left, this.high);
  }

  override get between(): boolean {
    return this.where === NEXT;
  }

  override get limits(): Limits | undefined {
    const { limits } = this.word;
    // Before the opening quote, few tokens are possible anyway.
    if (!limits || this.where === OPEN || this.where === CLOSED) {
      return undefined;
    }
    const { where, value, left, high } = this;
    return {
      ...limits,
      unlimited: states(anyWord())(where, value, left, high),
    };
  }

  #step(byte: number): State | undefined {
    switch (this.where) {
      case OPEN:
        return byte === 0x22 ? this.#at(NEXT) : undefined;
      case NEXT:
        return this.#begin(byte);
      case BYTES:
        if (byte >>> 6 !== 2) return undefined;
        return this.#bytes(
          this.value << 6 | byte & 63,
          this.left - 1,
          this.high,
        );
      case ESCAPE:
        if (byte === 0x75) return this.#hex(0, 4);
        return this.#take(ESCAPES.get(byte));
      case HEX: {
        const digit = digitOf(byte);
        if (digit === undefined) return undefined;
        return this.#hex(this.value << 4 | digit, this.left - 1);
      }
      case LOW:
        return byte === 0x5c ? this.#at(LOW_U, 0, 0, this.high) : undefined;
      case LOW_U:
        return byte === 0x75 ? this.#lowHex(0, 4) : undefined;
      case LOW_HEX: {
        const digit = digitOf(byte);
        if (digit === undefined) return undefined;
        return this.#lowHex(this.value << 4 | digit, this.left - 1);
      }
      case CLOSED:
        return undefined;
    }
  }

  #begin(byte: number): State | undefined {
    if (byte === 0x22) {
      return this.word.accepts ? this.#at(CLOSED) : undefined;
    }
    if (byte === 0x5c) {
      return this.word.moves.length > 0 ? this.#at(ESCAPE) : undefined;
    }
    if (byte < 0x20) return undefined;
    if (byte < 0x80) return this.#take(byte);
    if (byte < 0xc2 || byte > 0xf4) return undefined;
    const length = byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
    // `high` holds the smallest character of this length, which none may fall below.
    const least = [0x80, 0x800, 0x10000][length - 2];
    return this.#bytes(byte & 0x7f >> length, length - 1, least);
  }

  /** Continues a character whose first bits are `value`. */
  #bytes(value: number, left: number, least: number): State | undefined {
    if (left === 0) return value < least ? undefined : this.#take(value);
    const low = Math.max(value << 6 * left, least);
    const high = Math.min(((value + 1) << 6 * left) - 1, LAST);
    return meets(this.word, low, high)
      ? this.#at(BYTES, value, left, least)
      : undefined;
  }

  /** Continues an escape; the first half of a pair leads to a second one. */
  #hex(value: number, left: number): State | undefined {
    if (left === 0) {
      return isHigh(value) ? this.#at(LOW, 0, 0, value) : this.#take(value);
    }
    const low = value << 4 * left, high = ((value + 1) << 4 * left) - 1;
    const first = Math.max(low, 0xd800), last = Math.min(high, 0xdbff);
    const fits = meets(this.word, low, high) ||
      (first <= last &&
        meets(this.word, pair(first, 0xdc00), pair(last, 0xdfff)));
    return fits ? this.#at(HEX, value, left) : undefined;
  }

  #lowHex(value: number, left: number): State | undefined {
    const low = Math.max(value << 4 * left, 0xdc00);
    const high = Math.min(((value + 1) << 4 * left) - 1, 0xdfff);
    if (low > high) return undefined;
    if (left === 0) return this.#take(pair(this.high, value));
    return meets(this.word, pair(this.high, low), pair(this.high, high))
      ? this.#at(LOW_HEX, value, left, this.high)
      : undefined;
  }

  /** Takes a character, if the word goes on with it. */
  #take(point: number | undefined): State | undefined {
    if (point === undefined) return undefined;
    const to = find(this.word, point);
    return to && states(to)(NEXT, 0, 0, 0);
  }

  #at(where: number, value = 0, left = 0, high = 0): State | undefined {
    if (where === LOW) {
      const any = meets(this.word, pair(high, 0xdc00), pair(high, 0xdfff));
      if (!any) return undefined;
    }
    return states(this.word)(where, value, left, high);
  }
}

const isHigh = (unit: number) => unit >= 0xd800 && unit <= 0xdbff;

const pair = (high: number, low: number) =>
  0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);

function digitOf(byte: number): number | undefined {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30;
  const letter = byte | 0x20;
  return letter >= 0x61 && letter <= 0x66 ? letter - 0x57 : undefined;
}

/** The index of the first move that ends at `point` or later. */
function at(word: Word, point: number): number {
  const { moves } = word;
  let low = 0, high = moves.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (moves[middle].high < point) low = middle + 1;
    else high = middle;
  }
  return low;
}

function find(word: Word, point: number): Word | undefined {
  const move = word.moves[at(word, point)];
  return move && move.low <= point ? move.to : undefined;
}

/** Whether the word goes on with some character from `low` to `high`. */
function meets(word: Word, low: number, high: number): boolean {
  const move = word.moves[at(word, low)];
  return low <= high && move !== undefined && move.low <= high;
}

type Find = (where: number, value: number, left: number, high: number) => State;

const finders = new WeakMap<Word, Find>();

/** Finds the one state that a word has for each position in a character. */
function states(word: Word): Find {
  let finder = finders.get(word);
  if (!finder) {
    const made = new Map<number, State>();
    finder = (where, value, left, high) => {
      const key = where + 16 * (left + 8 * (value + 2 ** 21 * high));
      let state = made.get(key);
      if (!state) {
        made.set(key, state = new Written(word, where, value, left, high));
      }
      return state;
    };
    finders.set(word, finder);
  }
  return finder;
}

/** The start of the strings whose values are the texts of `word`. */
export function stringOf(word: Word = anyWord()): State {
  return states(word)(OPEN, 0, 0, 0);
}
