/**
 * Values in lines of 80 columns, as Python's pprint lays them out.
 *
 * @module
 */
import { Fault } from "./meter.ts";
import { compare } from "./operators.ts";
import { repr } from "./print.ts";
import { lengthOf, SPACES, splitLines } from "./unicode.ts";
import {
  Dict,
  type Run,
  textOf,
  Tuple,
  typeName,
  type Value,
} from "./values.ts";

const WIDTH = 80;
const WORDS = new RegExp(`(?<=${SPACES.source})(?!${SPACES.source})`);

/** A copy in which the keys of every dict are sorted. */
function sortedKeys(run: Run, value: Value): Value {
  const items = Array.isArray(value)
    ? value
    : value instanceof Tuple
    ? value.items
    : undefined;
  if (!items && !(value instanceof Dict)) return value;
  run.enter();
  const copy = items
    ? items.map((item) => sortedKeys(run, item))
    : sortedPairs(run, value as Dict);
  run.list(copy.length);
  run.leave();
  if (Array.isArray(value)) return copy as Value[];
  return value instanceof Tuple
    ? new Tuple(copy as Value[])
    : new Dict(copy as [Value, Value][], run);
}

function sortedPairs(run: Run, dict: Dict): [Value, Value][] {
  const order = (a: Value, b: Value) => {
    try {
      return compare(run, a, b);
    } catch (error) {
      // Keys that Python cannot compare are sorted by their types.
      if (!(error instanceof Fault)) throw error;
      return typeName(a) < typeName(b) ? -1 : 1;
    }
  };
  return Array.from(
    dict.entries(),
    ([key, item]): [Value, Value] => [key, sortedKeys(run, item)],
  ).sort(([a], [b]) => order(a, b));
}

/** Lays out a value that begins in column `indent` and is followed by `after` characters. */
function layOut(
  run: Run,
  value: Value,
  indent: number,
  after: number,
  level: number,
): string {
  const line = repr(run, value);
  if (lengthOf(line) <= WIDTH - indent - after) return line;
  if (typeof value === "string") {
    return layOutText(run, value, indent, after, level);
  }
  const inner = (item: Value, column: number, isLast: boolean, end: number) =>
    layOut(run, item, column, isLast ? after + end : 1, level + 1);
  const between = `,\n${" ".repeat(indent + 1)}`;
  if (value instanceof Dict) {
    const pairs = [...value.entries()];
    const parts = pairs.map(([key, item], i) => {
      const name = `${repr(run, key)}: `;
      const column = indent + 1 + lengthOf(name);
      return name + inner(item, column, i === pairs.length - 1, 1);
    });
    return `{${parts.join(between)}}`;
  }
  const items = Array.isArray(value)
    ? value
    : value instanceof Tuple
    ? value.items
    : undefined;
  if (!items) return line;
  const [open, close] = Array.isArray(value)
    ? ["[", "]"]
    : ["(", items.length === 1 ? ",)" : ")"];
  const parts = items.map((item, i) =>
    inner(item, indent + 1, i === items.length - 1, close.length)
  );
  return open + parts.join(between) + close;
}

/** A long string as several literals, which Python concatenates. */
function layOutText(
  run: Run,
  text: string,
  indent: number,
  after: number,
  level: number,
): string {
  const outer = level === 1;
  const column = outer ? indent + 1 : indent;
  const behind = outer ? after + 1 : after;
  const room = WIDTH - column;
  const chunks: string[] = [];
  const lines = splitLines(text, true);
  for (const [i, line] of lines.entries()) {
    const isLast = i === lines.length - 1;
    const whole = repr(run, line);
    if (lengthOf(whole) <= (isLast ? room - behind : room)) {
      chunks.push(whole);
      continue;
    }
    const words = line.split(WORDS);
    let current = "";
    for (const [j, word] of words.entries()) {
      const most = isLast && j === words.length - 1 ? room - behind : room;
      if (lengthOf(repr(run, current + word)) > most) {
        if (current !== "") chunks.push(repr(run, current));
        current = word;
      } else current += word;
    }
    if (current !== "") chunks.push(repr(run, current));
  }
  if (chunks.length === 1) return repr(run, text);
  const body = chunks.join(`\n${" ".repeat(column)}`);
  return outer ? `(${body})` : body;
}

/** Lays out a value. */
export function pretty(run: Run, value: Value): string {
  return textOf(value) !== undefined && typeof value !== "string"
    ? repr(run, value)
    : layOut(run, sortedKeys(run, value), 0, 0, 1);
}
