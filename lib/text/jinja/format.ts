/**
 * Python's three ways to format: `%`, `format` of one value, and `str.format`.
 *
 * @module
 */
import { escapeHtml } from "./html.ts";
import { atMost, Fault, MOST } from "./meter.ts";
import {
  exponential,
  fixed,
  floatText,
  general,
  isNegative,
  numberOf,
  toFloat,
  toInt,
} from "./numbers.ts";
import { repr, str } from "./print.ts";
import { lengthOf, substring } from "./unicode.ts";
import {
  Dict,
  Markup,
  type Named,
  otherwise,
  Range,
  type Run,
  textOf,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";

/** How a number or string is laid out. */
interface Layout {
  fill: string;
  align: "<" | ">" | "^" | "=";
  width: number;
}

function pad(
  run: Run,
  sign: string,
  body: string,
  { fill, align, width }: Layout,
): string {
  const missing = width - lengthOf(sign) - lengthOf(body);
  if (missing <= 0) return sign + body;
  run.text(width);
  if (align === "=") return sign + fill.repeat(missing) + body;
  const left = align === "<" ? 0 : align === ">" ? missing : missing >> 1;
  return fill.repeat(left) + sign + body + fill.repeat(missing - left);
}

/** The digits of |value| for a type of float format. */
function floatBody(
  value: number,
  type: string,
  digits: number,
  alternate: boolean,
): string {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : "inf";
  const body = type === "f"
    ? fixed(value, digits)
    : type === "e"
    ? exponential(value, digits)
    : type === "%"
    ? `${fixed(value * 100, digits)}%`
    : general(value, digits, alternate);
  return alternate && !body.includes(".")
    ? body.replace(/(?=e|%|$)/, ".")
    : body;
}

const RADIX: Readonly<Record<string, number>> = { b: 2, o: 8, x: 16 };

/** Puts a separator between every `size` digits before the point. */
function grouped(
  body: string,
  separator: string,
  size: number,
  width: number,
): string {
  const [, whole, rest] = (size === 4 ? /^([\da-f]*)([^]*)$/ : /^(\d*)([^]*)$/)
    .exec(body)!;
  const group = (digits: string) => {
    const groups: string[] = [];
    for (let end = digits.length; end > 0; end -= size) {
      groups.unshift(digits.slice(Math.max(0, end - size), end));
    }
    return groups.join(separator);
  };
  // Zeros that fill the width are grouped too.
  const room = width - rest.length;
  const filled = Math.max(
    whole.length,
    room - Math.floor((room - 1) / (size + 1)),
  );
  return group(whole.padStart(filled, "0")) + rest;
}

const SPEC =
  /^(?:(.)?([<>=^]))?([-+ ])?(z)?(#)?(0)?(\d+)?([,_])?(?:\.(\d+))?(.)?$/su;

function count(digits: string | undefined, what: string): number | undefined {
  if (digits === undefined) return undefined;
  const number = Number(digits);
  atMost(number, MOST.text, what);
  return number;
}

/** Python's `format(value, spec)`. */
export function format(run: Run, value: Value, spec: string): string {
  if (spec === "") return str(run, value);
  const match = SPEC.exec(spec);
  if (!match) throw new Fault("Invalid format specifier");
  const number = numberOf(value);
  const text = textOf(value);
  if (text !== undefined) return formatText(run, text, match);
  if (number === undefined) {
    throw new Fault(
      `unsupported format string passed to ${typeName(value)}.__format__`,
    );
  }
  return formatNumber(run, number, match);
}

function layout(match: RegExpExecArray, align: Layout["align"]): Layout {
  const zero = match[6] !== undefined && match[2] === undefined;
  return {
    fill: match[1] ?? (match[6] !== undefined ? "0" : " "),
    align: (match[2] as Layout["align"] | undefined) ??
      (zero && align === ">" ? "=" : align),
    width: count(match[7], "a width is {}") ?? 0,
  };
}

function formatText(run: Run, text: string, match: RegExpExecArray): string {
  const [, , align, sign, , sharp, , , separator, digits, type = "s"] = match;
  if (type !== "s") {
    throw new Fault(`Unknown format code '${type}' for object of type 'str'`);
  }
  const wrong = align === "="
    ? "'=' alignment"
    : sign !== undefined
    ? "Sign"
    : sharp !== undefined
    ? "Alternate form (#)"
    : separator && `'${separator}'`;
  if (wrong !== undefined) {
    throw new Fault(`${wrong} not allowed in string format specifier`);
  }
  const precision = count(digits, "a precision is {}") ?? Infinity;
  const part = lengthOf(text) > precision
    ? substring(text, 0, precision)
    : text;
  return pad(run, "", part, layout(match, "<"));
}

function formatNumber(
  run: Run,
  value: bigint | number,
  match: RegExpExecArray,
): string {
  const [, , , sign, , sharp, , , separator = "", digits] = match;
  const type = match[10] ?? (typeof value === "bigint" ? "d" : "");
  const shape = layout(match, ">");
  const precision = count(digits, "a precision is {}");
  const alternate = sharp !== undefined;
  const whole = typeof value === "bigint" && /^[bcdnoxX]$/.test(type);
  checkNumberSpec(value, type, whole, match);
  if (whole && type === "c") {
    return pad(run, "", char(value), layout(match, ">"));
  }
  const lower = type.toLowerCase();
  let body = whole
    ? (value < 0n ? -value : value).toString(RADIX[lower] ?? 10)
    : realBody(toFloat(value), lower, precision, alternate);
  const prefix = whole && alternate && RADIX[lower] ? `0${lower}` : "";
  const lead = (isNegative(value) ? "-" : sign === "-" ? "" : sign ?? "") +
    prefix;
  if (separator) {
    const size = RADIX[lower] ? 4 : 3;
    const zeros = shape.fill === "0" && shape.align === "=";
    run.text(shape.width);
    body = grouped(
      body,
      separator,
      size,
      zeros ? shape.width - lead.length : 0,
    );
  }
  const upper = type !== lower;
  return pad(
    run,
    upper ? lead.toUpperCase() : lead,
    upper ? body.toUpperCase() : body,
    shape,
  );
}

/** Throws if a type does not fit the value or other parts of the format. */
function checkNumberSpec(
  value: bigint | number,
  type: string,
  whole: boolean,
  [, , , sign, , sharp, , , separator, digits]: RegExpExecArray,
): void {
  if (whole && digits !== undefined) {
    throw new Fault("Precision not allowed in integer format specifier");
  }
  if (!whole && !/^[eEfFgGn%]?$/.test(type)) {
    throw new Fault(
      `Unknown format code '${type}' for object of type '${typeName(value)}'`,
    );
  }
  if (type === "c" && (sign ?? sharp) !== undefined) {
    const what = sign === undefined ? "Alternate form (#)" : "Sign";
    throw new Fault(`${what} not allowed with integer format specifier 'c'`);
  }
  const ungrouped = separator === "_" ? /^[cn]$/ : /^[bcnoxX]$/;
  if (separator !== undefined && ungrouped.test(type)) {
    throw new Fault(`Cannot specify '${separator}' with '${type}'.`);
  }
}

function realBody(
  value: number,
  type: string,
  precision: number | undefined,
  alternate: boolean,
): string {
  const size = Math.abs(value);
  if (type !== "") {
    return floatBody(
      size,
      type === "n" ? "g" : type,
      precision ?? 6,
      alternate,
    );
  }
  if (precision === undefined || !Number.isFinite(size)) return floatText(size);
  // Without a type the number keeps a digit after the point, which counts.
  const digits = Math.max(1, precision);
  const [mantissa, power] = exponential(size, digits - 1).split("e");
  if (Number(power) >= 0 && Number(power) === digits - 1) {
    const kept = alternate ? mantissa : mantissa.replace(/\.?0+$|\.$/, "");
    return `${mantissa.includes(".") ? kept : mantissa}${
      alternate && digits === 1 ? "." : ""
    }e${power}`;
  }
  const body = floatBody(size, "g", precision, alternate);
  return /[.e]/.test(body) ? body : `${body}.0`;
}

function char(value: bigint): string {
  if (value < 0n || value > 0x10ffffn) {
    throw new Fault("a character's code must be in range(0x110000)");
  }
  return String.fromCodePoint(Number(value));
}

const PERCENT =
  /%(?:\(([^()]*(?:\([^()]*\)[^()]*)*)\))?([-+ #0]*)(\*|\d+)?(?:\.(\*|\d*))?[hlL]?(.)?/gsu;

/** The values that a `%` format takes, one after the other or by name. */
class PercentValues {
  #next = 0;
  readonly #values: readonly Value[];

  constructor(readonly run: Run, readonly source: Value) {
    this.#values = source instanceof Tuple ? source.items : [source];
  }

  named(name: string): Value {
    if (!(this.source instanceof Dict)) {
      throw new Fault("format requires a mapping");
    }
    const value = this.source.get(name, this.run);
    if (value === undefined) throw new Fault(`the key '${name}' is missing`);
    this.#next = 1;
    return value;
  }

  next(): Value {
    if (this.#next >= this.#values.length) {
      throw new Fault("not enough arguments for format string");
    }
    return this.#values[this.#next++];
  }

  number(): number {
    const value = this.next();
    if (typeof value !== "bigint") throw new Fault("* wants int");
    return Number(value);
  }

  end(): void {
    // Anything with items counts as a mapping, which may have too many.
    const mapping = this.source instanceof Dict || Array.isArray(this.source) ||
      this.source instanceof Range || this.source instanceof Undefined;
    if (!mapping && this.#next < this.#values.length) {
      throw new Fault("not all arguments converted during string formatting");
    }
  }
}

/** Python's `template % values`. */
export function percentFormat(run: Run, template: Value, values: Value): Value {
  const text = textOf(template)!;
  const safe = template instanceof Markup;
  const source = new PercentValues(run, values);
  const parts: string[] = [];
  let end = 0;
  const write = (part: string) => {
    run.text(part.length);
    parts.push(part);
  };
  for (const match of text.matchAll(PERCENT)) {
    write(text.slice(end, match.index));
    end = match.index + match[0].length;
    write(match[0] === "%%" ? "%" : percentPart(run, match, source, safe));
  }
  write(text.slice(end));
  source.end();
  return safe ? new Markup(parts.join("")) : parts.join("");
}

function percentPart(
  run: Run,
  [, name, flags, wide, precise, type]: RegExpExecArray,
  source: PercentValues,
  safe: boolean,
): string {
  if (type === undefined) throw new Fault("incomplete format");
  const named = name === undefined ? undefined : source.named(name);
  let width = wide === "*" ? source.number() : Number(wide ?? 0);
  const left = flags.includes("-") || width < 0;
  width = Math.abs(width);
  atMost(width, MOST.text, "a width is {}");
  const digits = precise === "*"
    ? Math.max(0, source.number())
    : precise === undefined
    ? undefined
    : Number(precise);
  if (type === "%") return "%";
  const value = otherwise(named, () => source.next());
  const zeros = flags.includes("0") && !left;
  const shape: Layout = { fill: " ", align: left ? "<" : ">", width };
  if ("srac".includes(type)) {
    const part = percentText(run, type, value, safe);
    const kept = type !== "c" && digits !== undefined && lengthOf(part) > digits
      ? substring(part, 0, digits)
      : part;
    return pad(run, "", kept, shape);
  }
  const numeric = zeros ? { ...shape, fill: "0", align: "=" as const } : shape;
  const [lead, body] = percentNumber(flags, type, value, digits);
  return pad(run, lead, body, numeric);
}

function percentText(
  run: Run,
  type: string,
  value: Value,
  safe: boolean,
): string {
  if (type === "c") {
    if (typeof value === "bigint") return char(value);
    const text = textOf(value);
    if (text === undefined || lengthOf(text) !== 1) {
      throw new Fault("%c requires int or char");
    }
    return text;
  }
  const text = type === "s" ? str(run, value) : repr(run, value);
  const ascii = type === "a"
    ? text.replaceAll(/[^ -~]/gu, (char) => {
      const code = char.codePointAt(0)!.toString(16);
      if (code.length <= 2) return `\\x${code}`;
      return code.length <= 4
        ? `\\u${code.padStart(4, "0")}`
        : `\\U${code.padStart(8, "0")}`;
    })
    : text;
  return safe && !(value instanceof Markup) ? escapeHtml(ascii) : ascii;
}

function percentNumber(
  flags: string,
  type: string,
  value: Value,
  digits: number | undefined,
): [lead: string, body: string] {
  const number = numberOf(value);
  const lower = type.toLowerCase();
  const whole = "diuoxX".includes(type);
  if (!whole && !"eEfFgG".includes(type)) {
    throw new Fault(`unsupported format character '${type}'`);
  }
  if (number === undefined) {
    if (value instanceof Undefined) value.fail();
    throw new Fault(
      whole
        ? `%${type} format: a real number is required, not ${typeName(value)}`
        : `must be real number, not ${typeName(value)}`,
    );
  }
  if ("oxX".includes(type) && typeof number !== "bigint") {
    throw new Fault(`%${type} format: an integer is required, not float`);
  }
  const alternate = flags.includes("#");
  const sign = isNegative(number) && (!whole || toInt(number) < 0n)
    ? "-"
    : flags.includes("+")
    ? "+"
    : flags.includes(" ")
    ? " "
    : "";
  let body: string;
  if (whole) {
    const int = toInt(number);
    atMost(digits ?? 0, MOST.digits, "a number has {} digits");
    body = (int < 0n ? -int : int).toString(RADIX[lower] ?? 10).padStart(
      digits ?? 0,
      "0",
    );
  } else {
    body = floatBody(Math.abs(toFloat(number)), lower, digits ?? 6, alternate);
  }
  const prefix = whole && alternate && RADIX[lower] ? `0${lower}` : "";
  const upper = type !== lower;
  return [
    sign + (upper ? prefix.toUpperCase() : prefix),
    upper ? body.toUpperCase() : body,
  ];
}

/** Looks up `.name` or `[key]` of a value. */
export type Lookup = (
  object: Value,
  key: string | bigint,
  dot: boolean,
) => Value;

/** What fills the fields of `str.format`. */
export interface FormatValues {
  args: readonly Value[];
  named: Named;
  lookup: Lookup;
}

/** Python's `template.format(*args, **named)`. */
export function braceFormat(
  run: Run,
  template: Value,
  values: FormatValues,
): Value {
  const safe = template instanceof Markup;
  const formatter = new BraceFormatter(run, values, safe);
  const text = formatter.format(textOf(template)!, 2);
  return safe ? new Markup(text) : text;
}

class BraceFormatter {
  #next: number | undefined = 0;

  constructor(
    readonly run: Run,
    readonly values: FormatValues,
    readonly safe: boolean,
  ) {}

  format(text: string, depth: number): string {
    if (depth === 0) throw new Fault("Max string recursion exceeded");
    const parts: string[] = [], brace = /[{}]/g;
    let at = 0;
    while (at < text.length) {
      brace.lastIndex = at;
      const end = brace.exec(text)?.index ?? text.length;
      this.run.text(end - at);
      parts.push(text.slice(at, end));
      at = end;
      if (at >= text.length) break;
      if (text[at] === text[at + 1]) {
        parts.push(text[at]);
        at += 2;
        continue;
      }
      if (text[at] === "}") {
        throw new Fault("Single '}' encountered in format string");
      }
      const close = closing(text, at);
      parts.push(this.#field(text.slice(at + 1, close), depth));
      at = close + 1;
    }
    return parts.join("");
  }

  #field(field: string, depth: number): string {
    const path = field.slice(0, pathEnd(field));
    const match = /^(?:!([^:]?))?(?::([^]*))?$/.exec(field.slice(path.length));
    if (!match) throw new Fault(`the field '${field}' is malformed`);
    const [, conversion, spec = ""] = match;
    const value = this.#value(path);
    const shaped = this.format(spec, depth - 1);
    const converted = conversion === undefined
      ? value
      : conversion === "s"
      ? str(this.run, value)
      : conversion === "r" || conversion === "a"
      ? percentText(this.run, conversion, value, false)
      : undefined;
    if (converted === undefined) {
      throw new Fault(`Unknown conversion specifier ${conversion}`);
    }
    const text = format(this.run, converted, shaped);
    return this.safe && !(converted instanceof Markup)
      ? escapeHtml(text)
      : text;
  }

  #value(path: string): Value {
    const [first] = /^[^.[]*/.exec(path)!;
    let value = this.#first(first);
    const rest = path.slice(first.length);
    for (const [, name, key] of rest.matchAll(/\.([^.[]*)|\[([^\]]*)\]/g)) {
      value = name !== undefined
        ? this.values.lookup(value, name, true)
        : this.values.lookup(
          value,
          /^\d+$/.test(key) ? BigInt(key) : key,
          false,
        );
    }
    return value;
  }

  #first(name: string): Value {
    if (name === "") {
      if (this.#next === undefined) {
        throw new Fault(
          "cannot switch from manual field specification to automatic field numbering",
        );
      }
      return this.#argument(this.#next++);
    }
    if (/^\d+$/.test(name)) {
      if (this.#next) {
        throw new Fault(
          "cannot switch from automatic field numbering to manual field specification",
        );
      }
      this.#next = undefined;
      return this.#argument(Number(name));
    }
    const value = this.values.named.get(name);
    if (value === undefined) throw new Fault(`the key '${name}' is missing`);
    return value;
  }

  #argument(index: number): Value {
    const value = this.values.args[index];
    if (value === undefined) {
      throw new Fault(
        `Replacement index ${index} out of range for positional args tuple`,
      );
    }
    return value;
  }
}

/** Where the path of a field ends: at a `!` or `:` outside of square brackets. */
function pathEnd(field: string): number {
  let inBrackets = false;
  for (let at = 0; at < field.length; at++) {
    const char = field[at];
    if (inBrackets) inBrackets = char !== "]";
    else if (char === "[") inBrackets = true;
    else if (char === "!" || char === ":") return at;
  }
  return field.length;
}

/** The brace that closes the one at `begin`. */
function closing(text: string, begin: number): number {
  let depth = 0;
  for (let at = begin; at < text.length; at++) {
    if (text[at] === "{") depth++;
    else if (text[at] === "}" && --depth === 0) return at;
  }
  throw new Fault("expected '}' before end of string");
}
