/**
 * Python's operators on values: equality, order, membership, arithmetic, items and slices.
 *
 * @module
 */
import { escapeHtml } from "./html.ts";
import { atMost, Fault, MOST } from "./meter.ts";
import { arithmetic, numberOf } from "./numbers.ts";
import { percentFormat } from "./format.ts";
import {
  compareText,
  isIndexed,
  lengthOf,
  offsetsOf,
  substring,
} from "./unicode.ts";
import {
  Dict,
  DictView,
  iterate,
  listOf,
  Markup,
  Range,
  type Run,
  sizeOf,
  textOf,
  Thing,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";

function itemsOf(value: Value): readonly Value[] | undefined {
  return Array.isArray(value)
    ? value
    : value instanceof Tuple
    ? value.items
    : undefined;
}

/** `a == b`. */
export function equal(run: Run, a: Value, b: Value): boolean {
  const text = textOf(a);
  if (text !== undefined) {
    const other = textOf(b);
    if (other?.length !== text.length) return false;
    run.work(text.length);
    return text === other;
  }
  if (a === b) return true;
  const x = numberOf(a), y = numberOf(b);
  // JavaScript compares a bigint and a number by their exact values, as Python does.
  if (x !== undefined && y !== undefined) return x == y;
  if (!(a instanceof Object && b instanceof Object)) return false;
  return equalThings(run, a, b);
}

function equalThings(
  run: Run,
  a: Value[] | Thing,
  b: Value[] | Thing,
): boolean {
  if (Array.isArray(a) !== Array.isArray(b)) return false;
  const x = itemsOf(a), y = itemsOf(b);
  if (x && y) return x.length === y.length && sameItems(run, x, y);
  if (a instanceof Dict && b instanceof Dict) return equalDicts(run, a, b);
  if (a instanceof Undefined) return b instanceof Undefined;
  if (
    a instanceof Range && b instanceof Range ||
    a instanceof DictView && b instanceof DictView && a.part !== "values" &&
      a.part === b.part
  ) {
    const x = listOf(run, a), y = listOf(run, b);
    if (x.length !== y.length) return false;
    return a instanceof Range
      ? sameItems(run, x, y)
      : x.every((item) => contains(run, item, y));
  }
  return false;
}

function sameItems(
  run: Run,
  a: readonly Value[],
  b: readonly Value[],
): boolean {
  run.enter();
  const same = a.every((item, i) => {
    run.step();
    return equal(run, item, b[i]);
  });
  run.leave();
  return same;
}

function equalDicts(run: Run, a: Dict, b: Dict): boolean {
  if (a.size !== b.size) return false;
  run.enter();
  let same = true;
  for (const [key, value] of a.entries()) {
    run.step();
    const other = b.get(key, run);
    if (other === undefined || !equal(run, value, other)) {
      same = false;
      break;
    }
  }
  run.leave();
  return same;
}

/** Orders values: negative if a < b, positive if a > b, NaN if neither is nor are they equal. */
export function compare(
  run: Run,
  a: Value,
  b: Value,
  operator = "<",
): number {
  run.step();
  const x = numberOf(a), y = numberOf(b);
  if (x !== undefined && y !== undefined) {
    return x < y ? -1 : x > y ? 1 : x == y ? 0 : NaN;
  }
  const s = textOf(a), t = textOf(b);
  if (s !== undefined && t !== undefined) {
    run.work(Math.min(s.length, t.length));
    return compareText(s, t);
  }
  const v = itemsOf(a), w = itemsOf(b);
  if (v && w && Array.isArray(a) === Array.isArray(b)) {
    for (let i = 0; i < v.length && i < w.length; i++) {
      run.enter();
      const order = equal(run, v[i], w[i])
        ? 0
        : compare(run, v[i], w[i], operator) || NaN;
      run.leave();
      if (order !== 0) return order;
    }
    return v.length - w.length;
  }
  for (const side of [a, b]) if (side instanceof Undefined) side.fail();
  throw new Fault(
    `'${operator}' not supported between instances of ` +
      `'${typeName(a)}' and '${typeName(b)}'`,
  );
}

/** Sorts a new array in place as Python does: stable, also in reverse. */
export function sorted<T>(
  run: Run,
  items: T[],
  keyOf: (item: T) => Value,
  reverse = false,
): T[] {
  run.items(items.length);
  const keyed = items.map((item) => ({ item, key: keyOf(item) }));
  keyed.sort((a, b) =>
    reverse ? compare(run, b.key, a.key) : compare(run, a.key, b.key)
  );
  return keyed.map(({ item }) => item);
}

/** `item in container`. */
export function contains(run: Run, item: Value, container: Value): boolean {
  const text = textOf(container);
  if (text !== undefined) {
    const part = textOf(item);
    if (part === undefined) {
      throw new Fault(
        `'in <string>' requires string as left operand, not ${typeName(item)}`,
      );
    }
    run.work(text.length);
    return text.includes(part);
  }
  if (container instanceof Dict) return container.has(item, run);
  if (container instanceof DictView && container.part === "keys") {
    return container.dict.has(item, run);
  }
  if (sizeOf(container) === undefined && !(container instanceof Thing)) {
    throw new Fault(
      `argument of type '${typeName(container)}' is not iterable`,
    );
  }
  for (const other of iterate(run, container)) {
    if (equal(run, other, item)) return true;
  }
  return false;
}

type Comparison = (run: Run, a: Value, b: Value) => boolean;

/** The comparison operators. */
export const COMPARISONS: Readonly<Record<string, Comparison>> = {
  "==": equal,
  "!=": (run, a, b) => !equal(run, a, b),
  "<": (run, a, b) => compare(run, a, b, "<") < 0,
  "<=": (run, a, b) => compare(run, a, b, "<=") <= 0,
  ">": (run, a, b) => compare(run, a, b, ">") > 0,
  ">=": (run, a, b) => compare(run, a, b, ">=") >= 0,
  "in": contains,
  "not in": (run, a, b) => !contains(run, a, b),
};

function unsupported(operator: string, a: Value, b: Value): never {
  for (const side of [a, b]) if (side instanceof Undefined) side.fail();
  const what = operator === "**" ? "** or pow()" : operator;
  throw new Fault(
    `unsupported operand type(s) for ${what}: '${typeName(a)}' and '${
      typeName(b)
    }'`,
  );
}

/** Joins strings, and escapes what is joined to Markup. */
export function concatenate(run: Run, a: Value, b: Value): string | Markup {
  const x = textOf(a)!, y = textOf(b)!;
  atMost(x.length + y.length, MOST.text, "it makes a string of {} characters");
  // A joined string shares its parts.
  run.work(Math.min(x.length, y.length));
  return a instanceof Markup || b instanceof Markup
    ? new Markup(escapeHtml(a) + escapeHtml(b))
    : x + y;
}

function add(run: Run, a: Value, b: Value): Value {
  if (textOf(a) !== undefined && textOf(b) !== undefined) {
    return concatenate(run, a, b);
  }
  const x = itemsOf(a), y = itemsOf(b);
  if (x && y && Array.isArray(a) === Array.isArray(b)) {
    run.list(x.length + y.length);
    const items = [...x, ...y];
    return Array.isArray(a) ? items : new Tuple(items);
  }
  if (textOf(a) !== undefined && !(b instanceof Undefined)) {
    throw new Fault(
      `can only concatenate str (not "${typeName(b)}") to str`,
    );
  }
  if (x && !(b instanceof Undefined)) {
    const type = typeName(a);
    throw new Fault(
      `can only concatenate ${type} (not "${typeName(b)}") to ${type}`,
    );
  }
  return unsupported("+", a, b);
}

/** A sequence `count` times. */
function repeat(run: Run, value: Value, times: bigint): Value | undefined {
  const count = times < 0n ? 0 : Number(times);
  const text = textOf(value);
  if (text !== undefined) {
    run.text(text.length * count);
    const result = text === "" ? "" : text.repeat(count);
    return value instanceof Markup ? new Markup(result) : result;
  }
  const items = itemsOf(value);
  if (!items) return undefined;
  run.list(items.length * count);
  const result: Value[] = [];
  if (items.length > 0) {
    for (let i = 0; i < count; i++) {
      result.push(...items);
    }
  }
  return Array.isArray(value) ? result : new Tuple(result);
}

function multiply(run: Run, a: Value, b: Value): Value {
  const x = numberOf(a), y = numberOf(b);
  const result = typeof y === "bigint"
    ? repeat(run, a, y)
    : typeof x === "bigint"
    ? repeat(run, b, x)
    : undefined;
  return result ?? unsupported("*", a, b);
}

/** Applies an arithmetic operator. */
export function binary(
  run: Run,
  operator: string,
  a: Value,
  b: Value,
): Value {
  const x = numberOf(a), y = numberOf(b);
  if (x !== undefined && y !== undefined) return arithmetic(operator, x, y);
  if (operator === "+") return add(run, a, b);
  if (operator === "*") return multiply(run, a, b);
  if (operator === "%" && textOf(a) !== undefined) {
    return percentFormat(run, a, b);
  }
  return unsupported(operator, a, b);
}

/** Applies `-` or `+` to one value. */
export function unary(operator: string, value: Value): Value {
  const number = numberOf(value);
  if (number !== undefined) return operator === "-" ? -number : number;
  if (value instanceof Undefined) value.fail();
  throw new Fault(
    `bad operand type for unary ${operator}: '${typeName(value)}'`,
  );
}

/** Counts the search for a string's code points, which are known if it was the last one. */
function countIndexing(run: Run, text: string | undefined): void {
  if (text === undefined) return;
  run.work(isIndexed(text) ? text.length >> 6 : text.length);
}

/** The item at an index; undefined if there is none. */
function itemAt(run: Run, value: Value, index: bigint): Value | undefined {
  countIndexing(run, textOf(value));
  const size = sizeOf(value)!;
  const at = Number(index < 0n ? index + BigInt(size) : index);
  if (at < 0 || at >= size) return undefined;
  const text = textOf(value);
  if (text !== undefined) {
    const char = substring(text, at, at + 1);
    return value instanceof Markup ? new Markup(char) : char;
  }
  return value instanceof Range
    ? BigInt(value.start + at * value.step)
    : itemsOf(value)![at];
}

/** `object[key]`; undefined if there is no such item. */
export function itemOf(run: Run, object: Value, key: Value): Value | undefined {
  if (object instanceof Undefined) object.fail();
  if (object instanceof Dict) {
    const hashable = !(Array.isArray(key) || key instanceof Dict);
    return hashable ? object.get(key, run) : undefined;
  }
  const index = typeof key === "number" ? undefined : numberOf(key);
  const indexed = textOf(object) !== undefined || itemsOf(object) ||
    object instanceof Range;
  return indexed && typeof index === "bigint"
    ? itemAt(run, object, index)
    : undefined;
}

function sliceIndex(value: Value, fallback: number): number {
  if (value === null) return fallback;
  const number = typeof value === "number" ? undefined : numberOf(value);
  if (typeof number !== "bigint") {
    if (value instanceof Undefined) value.fail();
    throw new Fault(
      `slice indices must be integers or None, not ${typeName(value)}`,
    );
  }
  return Number(number);
}

function sliceBounds(
  size: number,
  start: Value,
  stop: Value,
  step: Value,
): { begin: number; end: number; count: number; by: number } {
  const by = sliceIndex(step, 1);
  if (by === 0) throw new Fault("slice step cannot be zero");
  const [low, high] = by > 0 ? [0, size] : [-1, size - 1];
  const clamp = (index: number) =>
    Math.min(Math.max(index < 0 ? index + size : index, low), high);
  const begin = start === null
    ? (by > 0 ? 0 : size - 1)
    : clamp(sliceIndex(start, 0));
  const end = stop === null ? (by > 0 ? size : -1) : clamp(sliceIndex(stop, 0));
  const count = Math.max(0, Math.ceil((end - begin) / by));
  return { begin, end, count, by };
}

/** `object[start:stop:step]`. */
export function sliceOf(
  run: Run,
  object: Value,
  start: Value,
  stop: Value,
  step: Value,
): Value {
  if (object instanceof Undefined) object.fail();
  const text = textOf(object);
  countIndexing(run, text);
  const size = text !== undefined ? lengthOf(text) : sizeOf(object);
  const sequence = text !== undefined || itemsOf(object) ||
    object instanceof Range;
  if (!sequence || size === undefined) {
    throw new Fault(
      object instanceof Dict
        ? "unhashable type: 'slice'"
        : `'${typeName(object)}' object is not subscriptable`,
    );
  }
  const { begin, end, count, by } = sliceBounds(size, start, stop, step);
  if (object instanceof Range) {
    const at = (index: number) => object.start + index * object.step;
    return new Range(at(begin), at(end), object.step * by);
  }
  if (text !== undefined) {
    run.work(by === 1 ? count : 8 * count);
    const part = sliceText(text, begin, count, by);
    return object instanceof Markup ? new Markup(part) : part;
  }
  run.list(count);
  const items = itemsOf(object)!;
  const part = Array.from({ length: count }, (_, i) => items[begin + i * by]);
  return Array.isArray(object) ? part : new Tuple(part);
}

function sliceText(
  text: string,
  begin: number,
  count: number,
  by: number,
): string {
  if (by === 1) return substring(text, begin, begin + count);
  const offsets = offsetsOf(text);
  const parts: string[] = [];
  for (let i = 0, at = begin; i < count; i++, at += by) {
    parts.push(offsets ? text.slice(offsets[at], offsets[at + 1]) : text[at]);
  }
  return parts.join("");
}
