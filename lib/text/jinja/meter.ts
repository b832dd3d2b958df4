/**
 * Bounds of what a template may cost, counted in steps and sizes, so that a template with the
 * same variables always ends in the same way, on any machine.
 *
 * @module
 */

/** An error in a template or its execution; the line is added on the way up. */
export class Fault extends Error {
  /** The line of the template, from 1. */
  line?: number;
  /** Whether the template exceeds a bound, rather than being wrong. */
  exceeds = false;

  /** Adds the line unless an inner statement or expression has. */
  at(line: number): this {
    this.line ??= line;
    return this;
  }
}

/** The most that a template may do; conversations need a small fraction. */
export const MOST = {
  /** Statements and expressions that are evaluated, loops and macros included. */
  steps: 20_000_000,
  /** Characters that are read or made, with 8 for an item of a list. */
  work: 2 ** 28,
  /** Characters of one string, and of all output. */
  text: 2 ** 26,
  /** Items of one range(), as in Jinja2's sandbox. */
  range: 100_000,
  /** Nesting of statements and expressions, through macros too. */
  depth: 1_000,
  /** Nesting of brackets, operators and blocks in the source. */
  nesting: 100,
  /** Bits of an integer. */
  bits: 65_536,
  /** Digits after the point in a formatted number. */
  digits: 4_096,
  /** Characters of a template's source. */
  source: 2 ** 24,
} as const;

/** Throws unless `value` is at most `most`; `what` reads "it has {} things". */
export function atMost(value: number, most: number, what: string): void {
  if (value <= most) return;
  const number = new Intl.NumberFormat("en"); // takes 10 ms, so not on loading
  const text = value < 1e15
    ? number.format(Math.floor(value))
    : value.toExponential(1);
  const found = what.replace("{}", text);
  const fault = new Fault(`${found}, must be at most ${number.format(most)}`);
  fault.exceeds = true;
  throw fault;
}

/** Counts what one rendering does. */
export class Meter {
  #steps = 0;
  #work = 0;
  #depth = 0;

  /** Counts evaluated nodes. */
  step(): void {
    if (++this.#steps > MOST.steps) {
      atMost(this.#steps, MOST.steps, "it takes {} steps (is a loop endless?)");
    }
  }

  /** Counts characters that are read, or list items. */
  work(units: number): void {
    this.#work += units;
    if (this.#work > MOST.work) {
      atMost(this.#work, MOST.work, "it handles {} characters and items");
    }
  }

  /** Counts a string before it is made. */
  text(length: number): void {
    atMost(length, MOST.text, "it makes a string of {} characters");
    this.work(length);
  }

  /** Counts work that takes much longer per character than reading. */
  slowly(length: number): void {
    this.work(32 * length);
  }

  /** Counts items that are added to a list. */
  items(count: number): void {
    this.work(8 * count);
  }

  /** Counts a list before it is made. */
  list(count: number): void {
    this.work(8 * (count + 20));
  }

  /** Goes one level deeper; a rendering that throws has no need to leave. */
  enter(): void {
    if (++this.#depth > MOST.depth) {
      atMost(this.#depth, MOST.depth, "it nests {} levels deep");
    }
  }

  /** Comes back from `enter`. */
  leave(): void {
    this.#depth--;
  }
}
