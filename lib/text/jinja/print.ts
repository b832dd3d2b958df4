/**
 * Values as text: `str`, `repr` and `json.dumps`.
 *
 * @module
 */
import { Fault, MOST } from "./meter.ts";
import { floatText } from "./numbers.ts";
import { isPrintable } from "./unicode.ts";
import {
  Callable,
  Dict,
  DictView,
  listOf,
  Markup,
  Namespace,
  Range,
  type Run,
  type Thing,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";

const ESCAPES: Readonly<Record<string, string>> = {
  "\\": "\\\\",
  "\n": "\\n",
  "\r": "\\r",
  "\t": "\\t",
};

function escaped(char: string): string {
  const known = ESCAPES[char];
  if (known !== undefined) return known;
  if (isPrintable(char)) return char;
  const code = char.codePointAt(0)!.toString(16);
  if (code.length <= 2) return `\\x${code.padStart(2, "0")}`;
  return code.length <= 4
    ? `\\u${code.padStart(4, "0")}`
    : `\\U${code.padStart(8, "0")}`;
}

/** A string as repr writes it. */
export function quoted(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const body = text.replaceAll(/[^ -&(-[\]-~]/gu, escaped);
  return quote + (quote === "'" ? body.replaceAll("'", "\\'") : body) + quote;
}

/** A value as print writes it. */
export function str(run: Run, value: Value): string {
  if (typeof value === "string") return value;
  if (value instanceof Markup) return value.text;
  if (value instanceof Undefined) return "";
  return repr(run, value);
}

/** A value as repr writes it. */
export function repr(run: Run, value: Value): string {
  if (value === null) return "None";
  switch (typeof value) {
    case "string":
      run.slowly(value.length + 2);
      return quoted(value);
    case "boolean":
      return value ? "True" : "False";
    case "bigint":
      return String(value);
    case "number":
      return floatText(value);
  }
  run.enter();
  const text = Array.isArray(value)
    ? `[${reprs(run, value).join(", ")}]`
    : thingRepr(run, value);
  run.text(text.length);
  run.leave();
  return text;
}

function reprs(run: Run, items: readonly Value[]): string[] {
  run.items(items.length);
  return items.map((item) => repr(run, item));
}

function thingRepr(run: Run, value: Thing): string {
  if (value instanceof Tuple) {
    const items = reprs(run, value.items);
    return items.length === 1 ? `(${items[0]},)` : `(${items.join(", ")})`;
  }
  if (value instanceof Dict) {
    const pairs: string[] = [];
    for (const [key, item] of value.entries()) {
      run.items(1);
      pairs.push(`${repr(run, key)}: ${repr(run, item)}`);
    }
    return `{${pairs.join(", ")}}`;
  }
  if (value instanceof DictView) {
    return `${value.type}(${repr(run, listOf(run, value))})`;
  }
  if (value instanceof Markup) return `Markup(${quoted(value.text)})`;
  if (value instanceof Namespace) {
    return `<Namespace ${repr(run, value.values)}>`;
  }
  if (value instanceof Undefined) return "Undefined";
  if (value instanceof Range) {
    const { start, stop, step } = value;
    return `range(${start}, ${stop}${step === 1 ? "" : `, ${step}`})`;
  }
  if (value instanceof Callable) {
    return `<${value.type} ${value.name}>`;
  }
  return `<${value.type} object>`;
}

/** How `tojson` writes. */
export interface JsonStyle {
  ensureAscii: boolean;
  /** What a level is indented by; null for all on one line. */
  indent: string | null;
  itemSeparator: string;
  keySeparator: string;
  sortKeys: boolean;
  /** Orders keys that are sorted. */
  compare: (a: Value, b: Value) => number;
}

function jsonString(text: string, ascii: boolean): string {
  const body = text.replaceAll(
    /["\\\p{Cc}]/gu,
    (char) => JSON.stringify(char).slice(1, -1),
  );
  return `"${ascii ? body.replaceAll(/\P{ASCII}/gu, unicodeEscapes) : body}"`;
}

/** A character as \u escapes of its units. */
function unicodeEscapes(char: string): string {
  return char.split("").map((unit) =>
    `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`
  ).join("");
}

function jsonNumber(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "Infinity" : "-Infinity";
  return floatText(value);
}

/** A key of an object: what is not a string is written as one. */
function jsonKey(key: Value): string {
  if (typeof key === "string") return key;
  if (key instanceof Markup) return key.text;
  if (key === null) return "null";
  if (typeof key === "boolean") return String(key);
  if (typeof key === "bigint") return String(key);
  if (typeof key === "number") return jsonNumber(key);
  throw new Fault(
    `keys must be str, int, float, bool or None, not ${typeName(key)}`,
  );
}

/** Writes a value as Python's json.dumps. */
export function toJson(run: Run, value: Value, style: JsonStyle): string {
  const parts: string[] = [];
  let length = 0;
  const write = (text: string) => {
    length += text.length;
    run.text(text.length);
    run.items(2);
    if (length > MOST.text) run.text(length);
    parts.push(text);
  };
  const line = (depth: number) => {
    if (style.indent !== null) write(`\n${style.indent.repeat(depth)}`);
  };
  const group = (
    brackets: string,
    items: Iterable<() => void>,
    depth: number,
  ) => {
    let count = 0;
    write(brackets[0]);
    for (const item of items) {
      if (count++ > 0) write(style.itemSeparator);
      line(depth + 1);
      item();
    }
    if (count > 0) line(depth);
    write(brackets[1]);
  };
  const visit = (item: Value, depth: number): void => {
    run.enter();
    run.step();
    const simple = jsonScalar(item, style);
    if (simple !== undefined) write(simple);
    else if (Array.isArray(item) || item instanceof Tuple) {
      const items = Array.isArray(item) ? item : item.items;
      group(
        "[]",
        items.values().map((child) => () => visit(child, depth + 1)),
        depth,
      );
    } else if (item instanceof Dict) {
      const members = Iterator.from(pairs(item, style)).map(
        ([key, child]) => () => {
          write(
            jsonString(jsonKey(key), style.ensureAscii) + style.keySeparator,
          );
          visit(child, depth + 1);
        },
      );
      group("{}", members, depth);
    } else {
      throw new Fault(
        `Object of type ${typeName(item)} is not JSON serializable`,
      );
    }
    run.leave();
  };
  visit(value, 0);
  return parts.join("");
}

function jsonScalar(value: Value, style: JsonStyle): string | undefined {
  if (value === null) return "null";
  if (typeof value === "string") return jsonString(value, style.ensureAscii);
  if (value instanceof Markup) return jsonString(value.text, style.ensureAscii);
  if (typeof value === "number") return jsonNumber(value);
  return typeof value === "object" ? undefined : String(value);
}

function pairs(
  dict: Dict,
  { sortKeys, compare }: JsonStyle,
): Iterable<readonly [Value, Value]> {
  if (!sortKeys) return dict.entries();
  return [...dict.entries()].sort(([a], [b]) => compare(a, b));
}
