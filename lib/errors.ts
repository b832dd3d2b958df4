/**
 * Error classes that callers may want to distinguish, and texts that are safe to print.
 *
 * @module
 */

/** There is no WebGPU adapter, or it does not meet the kernels' requirements. */
export class NoAdapterError extends Error {
  /** Always `NoAdapterError`. */
  override name = "NoAdapterError";
}

/** The device was lost, ran out of memory, or rejected a command. */
export class DeviceError extends Error {
  /** Always `DeviceError`. */
  override name = "DeviceError";
}

/**
 * The device lacks memory for this many sequences, or for sequences this long. Use
 * fewer or shorter ones.
 */
export class MemoryError extends DeviceError {
  /** Always `MemoryError`. */
  override name = "MemoryError";
}

/**
 * An option has a wrong value or is unknown. Its message names the option as
 * {@linkcode option} does.
 */
export class OptionError extends RangeError {
  /** Always `OptionError`. */
  override name = "OptionError";

  /** @ignore Thrown by whatever takes options. */
  constructor(
    /** The name of the option, such as `topK`. */
    readonly option: string,
    message: string,
  ) {
    super(message);
  }
}

/** The error for an option with a wrong value; `cannot` is how its message begins. */
export function wrongOption(
  cannot: string,
  option: string,
  value: unknown,
  must: string,
): OptionError {
  return new OptionError(
    option,
    `${cannot}: ${option} is ${described(value)}, must be ${must}`,
  );
}

/** The most characters of an error: enough for a path or two, not for a file's content. */
const MOST = 1900;

/**
 * Returns the message of a thrown value on one printable line of fewer than 2,000
 * characters; the middle of a longer one is cut out.
 */
export function errorText(error: unknown): string {
  const text = withoutPermission(error) ??
    (error instanceof Error ? error.message : String(error));
  // Bounded before anything else, since a message may quote a whole file.
  const head = text.slice(0, 2 * MOST), tail = text.slice(-2 * MOST);
  const whole = head.length < text.length ? `${head}…${tail}` : text;
  const line = printable(whole.replaceAll(/\s+/g, " ").trim());
  if (line.length <= MOST) return line;
  return `${line.slice(0, MOST - 400)} … ${line.slice(-397)}`;
}

/** What Deno says about a missing permission. */
const NO_PERMISSION =
  /^Requires (\w+) access to (.+), run again with the (--allow-\w+) flag$/s;

function withoutPermission(error: unknown): string | undefined {
  if (!(error instanceof Error)) return undefined;
  const [, kind, what, flag] = NO_PERMISSION.exec(error.message) ?? [];
  return flag &&
    `Deno has no ${kind} permission for ${what}, run it with ${flag}`;
}

/**
 * Returns an error that says what could not be done, if `error` is Deno's for a
 * permission that was not given; otherwise `error`. If that is one of the library's own,
 * its message becomes one printable line, since it may quote a name of any length.
 */
export function explained(action: string, error: unknown): unknown {
  if (withoutPermission(error) !== undefined) {
    const line = `Cannot ${action}: ${errorText(error)}`;
    return new Error(errorText(line), { cause: error });
  }
  if (error instanceof Error && error.message.startsWith("Cannot ")) {
    const line = errorText(error);
    if (line !== error.message) error.message = line;
  }
  return error;
}

/**
 * Control characters (C0, C1, DEL) except line breaks and tabs, which a terminal would obey,
 * and the line separators and invisible characters that reorder text.
 */
const UNPRINTABLE =
  // deno-lint-ignore no-control-regex
  /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;

/** Writes control characters as escapes (`\x1b`); line breaks and tabs stay. */
export function printable(text: string): string {
  return text.replaceAll(UNPRINTABLE, (character) => {
    const hex = character.charCodeAt(0).toString(16);
    return hex.length > 2
      ? `\\u${hex.padStart(4, "0")}`
      : `\\x${hex.padStart(2, "0")}`;
  });
}

/**
 * Describes a wrong value in a few words, for a message: `"text"`, `1.5`,
 * `null`, `a list of 3`, `an object`, `a function`.
 */
export function described(value: unknown): string {
  if (typeof value === "string") {
    const short = value.length > 60 ? `${value.slice(0, 57)}…` : value;
    return printable(JSON.stringify(short));
  }
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (typeof value === "function") return "a function";
  if (typeof value === "object" && value !== null) {
    const name = Object.getPrototypeOf(value)?.constructor?.name ?? "Object";
    if (name === "Object") return "an object";
    return `${/^[AEIO]/.test(name) ? "an" : "a"} ${quoted(String(name), 60)}`;
  }
  return typeof value === "bigint" ? `${value}n` : String(value);
}

/**
 * Quotes text from a file, such as a tensor's name, for a message: on one line, printable,
 * and with the middle cut out if it is long.
 */
export function quoted(text: string, most = 100): string {
  if (text === "") return '""';
  const half = Math.floor(most / 2);
  const short = text.length <= most
    ? text
    : `${text.slice(0, half)}…${text.slice(1 - half)}`;
  return printable(
    short.replaceAll(
      /[\n\r\t]/g,
      (blank) => JSON.stringify(blank).slice(1, -1),
    ),
  );
}

/** A JSON value as written in its file, for a message; long ones are cut. */
export function jsonText(value: unknown, most = 100): string {
  if (value === undefined) return "missing";
  if (typeof value === "number") return String(value); // also 1e999, an infinity
  if (typeof value === "string") {
    return quoted(JSON.stringify(value.slice(0, 4 * most)), most);
  }
  try {
    return quoted(JSON.stringify(value), most);
  } catch { // nested deeper than the stack
    return described(value);
  }
}

/** Lists the first few names, and counts the others. */
export function listed(names: readonly string[], few = 8): string {
  const first = names.slice(0, few).map((name) => quoted(name)).join(", ");
  const more = names.length - few;
  return more > 0 ? `${first} and ${more} more` : first;
}

/** The kinds of values that options take, each with its test and its name in errors. */
const KINDS = {
  text: [(v: unknown) => typeof v === "string", "a string"],
  number: [(v: unknown) => typeof v === "number", "a number"],
  flag: [(v: unknown) => typeof v === "boolean", "true or false"],
  function: [(v: unknown) => typeof v === "function", "a function"],
  list: [(v: unknown) => Array.isArray(v), "a list"],
  iterable: [
    (v: unknown) =>
      typeof (v as Iterable<unknown> | null)?.[Symbol.iterator] === "function",
    "a list",
  ],
  // A promise, a signal or a Map has no options of its own, so all would be lost.
  object: [
    (v: unknown) => Object.prototype.toString.call(v) === "[object Object]",
    "a plain object",
  ],
  signal: [(v: unknown) => v instanceof AbortSignal, "an AbortSignal"],
  gpu: [
    (v: unknown) => typeof (v as GPU | null)?.requestAdapter === "function",
    "a WebGPU implementation, with requestAdapter",
  ],
} satisfies Record<string, [(value: unknown) => boolean, string]>;

/** A kind of value that an option takes. */
export type OptionKind = keyof typeof KINDS;

/** Says what `value` must be; undefined if it is of that kind. */
export function testKind(value: unknown, kind: OptionKind): string | undefined {
  const [test, must] = KINDS[kind];
  return test(value) ? undefined : must;
}

/** @throws {TypeError} if `value` is not of a kind. */
export function requireKind(
  cannot: string,
  what: string,
  value: unknown,
  kind: OptionKind,
): void {
  const must = testKind(value, kind);
  if (must === undefined) return;
  throw new TypeError(
    `${cannot}: ${what} is ${described(value)}, must be ${must}`,
  );
}
