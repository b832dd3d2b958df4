/**
 * Jinja2's filters of sequences and mappings.
 *
 * @module
 */
import { Fault } from "./meter.ts";
import { attributeOf, ownAttribute, subscript } from "./methods.ts";
import { binary, compare, equal, sorted } from "./operators.ts";
import { testNamed } from "./predicates.ts";
import { str } from "./print.ts";
import { asInt, asText, builtin } from "./signature.ts";
import { offsetsOf } from "./unicode.ts";
import {
  type Builtin,
  Dict,
  Group,
  iterate,
  iteratorOf,
  keyOf,
  Lazy,
  listOf,
  Markup,
  type Named,
  otherwise,
  Range,
  type Run,
  sizeOf,
  textOf,
  truth,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";

type Getter = (item: Value) => Value;

function lowered(value: Value): Value {
  const text = textOf(value);
  return text === undefined ? value : text.toLowerCase();
}

/** Reads a path like `a.b.0` of an item; `fallback` replaces what is missing. */
function getter(run: Run, path: Value, fallback: Value = null): Getter {
  const text = textOf(path);
  const parts: Value[] = path === null
    ? []
    : text === undefined
    ? [path]
    : text.split(".").map((part) =>
      /^\p{Nd}+$/u.test(part) ? BigInt(part) : part
    );
  return (item) => {
    for (const part of parts) {
      item = subscript(run, item, part);
      if (fallback !== null && item instanceof Undefined) item = fallback;
    }
    return item;
  };
}

/** A getter that ignores case by default. */
function caseGetter(run: Run, path: Value, caseSensitive: Value): Getter {
  const get = getter(run, path);
  return truth(caseSensitive) ? get : (item) => lowered(get(item));
}

function* batches(
  run: Run,
  value: Value,
  size: Value,
  fill: Value,
): Generator<Value> {
  const count = asInt(size);
  let batch: Value[] = [];
  for (const item of iterate(run, value)) {
    if (batch.length === count) {
      run.list(0);
      yield batch;
      batch = [];
    }
    run.items(1);
    batch.push(item);
  }
  if (batch.length === 0) return;
  if (fill !== null && batch.length < count) {
    run.items(count - batch.length);
    while (batch.length < count) batch.push(fill);
  }
  yield batch;
}

function* slices(
  run: Run,
  value: Value,
  slices: Value,
  fill: Value,
): Generator<Value> {
  const items = listOf(run, value), count = asInt(slices);
  if (count === 0) throw new Fault("integer division or modulo by zero");
  const size = Math.floor(items.length / count);
  const extra = items.length % count;
  let begin = 0;
  for (let i = 0; i < count; i++) {
    run.list(size);
    const end = begin + size + (i < extra ? 1 : 0);
    const part = items.slice(begin, end);
    if (fill !== null && i >= extra) part.push(fill);
    begin = end;
    yield part;
  }
}

function* unique(
  run: Run,
  value: Value,
  caseSensitive: Value,
  path: Value,
): Generator<Value> {
  const get = caseGetter(run, path, caseSensitive);
  const seen = new Set();
  for (const item of iterate(run, value)) {
    const key = keyOf(get(item), run);
    if (seen.has(key)) continue;
    run.items(1);
    seen.add(key);
    yield item;
  }
}

function extreme(sign: number): (run: Run, ...args: Value[]) => Value {
  return (run, value, caseSensitive, path) => {
    const get = caseGetter(run, path, caseSensitive);
    let best: Value | undefined, bestKey: Value = null;
    for (const item of iterate(run, value)) {
      const key = get(item);
      if (
        best === undefined ||
        sign * compare(run, key, bestKey, sign < 0 ? ">" : "<") < 0
      ) {
        [best, bestKey] = [item, key];
      }
    }
    return otherwise(
      best,
      () => new Undefined("No aggregated item, sequence was empty."),
    );
  };
}

function groupBy(run: Run, ...args: Value[]): Value {
  const [value, path, fallback, caseSensitive] = args;
  const real = getter(run, path, fallback);
  const key = truth(caseSensitive)
    ? real
    : (item: Value) => lowered(real(item));
  const groups: Value[] = [];
  let list: Value[] = [], current: Value | undefined;
  for (const item of sorted(run, listOf(run, value), key)) {
    const next = key(item);
    if (current === undefined || !equal(run, next, current)) {
      list = [];
      current = next;
      groups.push(new Group([real(item), list]));
    }
    run.items(1);
    list.push(item);
  }
  return groups;
}

function sortDict(run: Run, ...args: Value[]): Value {
  const [dict, caseSensitive, by, reverse] = args;
  if (!(dict instanceof Dict)) {
    throw new Fault(`'${typeName(dict)}' object has no attribute 'items'`);
  }
  const part = ["key", "value"].indexOf(textOf(by) ?? "");
  if (part < 0) throw new Fault('You can only sort by either "key" or "value"');
  const pairs = Array.from(dict.entries(), (pair) => new Tuple(pair));
  const key = (pair: Tuple) =>
    truth(caseSensitive) ? pair.items[part] : lowered(pair.items[part]);
  return sorted(run, pairs, key, truth(reverse));
}

function sort(run: Run, ...args: Value[]): Value {
  const [value, reverse, caseSensitive, path] = args;
  const text = textOf(path);
  const paths: Value[] = text === undefined ? [path] : text.split(",");
  const getters = paths.map((one) => caseGetter(run, one, caseSensitive));
  return sorted(
    run,
    listOf(run, value),
    (item) => getters.map((get) => get(item)),
    truth(reverse),
  );
}

function join(run: Run, value: Value, separator: Value, path: Value): Value {
  const between = str(run, separator);
  const get = path === null ? (item: Value) => item : getter(run, path);
  const parts: string[] = [];
  let length = 0;
  for (const item of iterate(run, value)) {
    const part = str(run, get(item));
    length += part.length + between.length;
    run.text(part.length + between.length);
    parts.push(part);
  }
  run.text(length);
  return parts.join(between);
}

function reversed(run: Run, value: Value): Value {
  const text = textOf(value);
  if (text !== undefined) {
    run.slowly(text.length);
    const result = offsetsOf(text)
      ? [...text].reverse().join("")
      : reversedUnits(text);
    return value instanceof Markup ? new Markup(result) : result;
  }
  if (!iteratorOf(run, value)) throw new Fault("argument must be iterable");
  const items = listOf(run, value).reverse();
  // A generator has no reverse, so Jinja2 makes a list of it.
  return value instanceof Lazy
    ? items
    : new Lazy(items.values(), "list_reverseiterator");
}

function reversedUnits(text: string): string {
  const units = new Array<string>(text.length);
  for (let i = 0; i < text.length; i++) units[i] = text[text.length - 1 - i];
  return units.join("");
}

function last(run: Run, value: Value): Value {
  const none = () => new Undefined("No last item, sequence was empty.");
  const size = sizeOf(value);
  if (size === undefined) {
    throw new Fault(`'${typeName(value)}' object is not reversible`);
  }
  if (size === 0) return none();
  if (
    textOf(value) !== undefined || Array.isArray(value) ||
    value instanceof Tuple || value instanceof Range
  ) {
    return subscript(run, value, -1n);
  }
  return otherwise(listOf(run, value).at(-1), none);
}

function sum(run: Run, value: Value, path: Value, start: Value): Value {
  if (textOf(start) !== undefined) {
    throw new Fault("sum() can't sum strings [use ''.join(seq) instead]");
  }
  const get = path === null ? (item: Value) => item : getter(run, path);
  let total = start;
  for (const item of iterate(run, value)) {
    total = binary(run, "+", total, get(item));
  }
  return total;
}

function size(run: Run, value: Value): Value {
  run.step();
  run.work(textOf(value)?.length ?? 0);
  const size = sizeOf(value);
  if (size === undefined) {
    throw new Fault(`object of type '${typeName(value)}' has no len()`);
  }
  return BigInt(size);
}

/** Returns a filter, or says that there is none. */
export function filterNamed(run: Run, name: string): Builtin {
  const filter = run.filters.get(name);
  if (!filter) throw new Fault(`No filter named '${name}'.`);
  return filter;
}

function mapper(run: Run, args: Value[], named: Named): Getter {
  if (args.length === 0 && named.has("attribute")) {
    for (const name of named.keys()) {
      if (name !== "attribute" && name !== "default") {
        throw new Fault(`Unexpected keyword argument '${name}'`);
      }
    }
    return getter(run, named.get("attribute")!, named.get("default"));
  }
  if (args.length === 0) throw new Fault("map requires a filter argument");
  const filter = filterNamed(run, asText(args[0]));
  return (item) => filter(run, [item, ...args.slice(1)], named);
}

function* map(
  run: Run,
  value: Value,
  args: Value[],
  named: Named,
): Generator<Value> {
  if (!truth(value)) return;
  const apply = mapper(run, args, named);
  for (const item of iterate(run, value)) yield apply(item);
}

/** `select`, `reject` and their variants for an attribute. */
function selector(keep: boolean, byAttribute: boolean): Builtin {
  function* select(
    run: Run,
    value: Value,
    args: Value[],
    named: Named,
  ): Generator<Value> {
    if (!truth(value)) return;
    if (byAttribute && args.length === 0) {
      throw new Fault("Missing parameter for attribute name");
    }
    const get = byAttribute ? getter(run, args[0]) : (item: Value) => item;
    const [name, ...rest] = args.slice(byAttribute ? 1 : 0);
    const test = name === undefined ? undefined : testNamed(run, asText(name));
    for (const item of iterate(run, value)) {
      const found = get(item);
      const passes = test ? test(run, [found, ...rest], named) : found;
      if (truth(passes) === keep) yield item;
    }
  }
  return (run, [value, ...args], named) =>
    new Lazy(select(run, value, args, named));
}

/** A filter that returns a generator. */
function lazy(
  signature: string,
  body: (run: Run, ...values: Value[]) => Iterator<Value>,
): Builtin {
  return builtin(signature, (run, ...values) => new Lazy(body(run, ...values)));
}

function* itemsOf(_run: Run, value: Value): Generator<Value> {
  if (value instanceof Undefined) return;
  if (!(value instanceof Dict)) {
    throw new Fault("Can only get item pairs from a mapping.");
  }
  for (const pair of value.entries()) yield new Tuple(pair);
}

function random(run: Run, value: Value): Value {
  const items = listOf(run, value);
  if (items.length === 0) {
    return new Undefined("No random item, sequence was empty.");
  }
  return items[Math.floor(Math.random() * items.length)];
}

const fallbackTo = (value: Value, fallback: Value, forFalse: Value) =>
  value instanceof Undefined || truth(forFalse) && !truth(value)
    ? fallback
    : value;

const ORDER = "case_sensitive=False, attribute=None";

/** Filters by name. */
export const SEQUENCE_FILTERS: Readonly<Record<string, Builtin>> = {
  attr: builtin("attr(obj, name)", (run, object, name) => {
    const key = asText(name);
    if (object instanceof Undefined) object.fail();
    return ownAttribute(object, key) === undefined
      ? new Undefined(`'${typeName(object)} object' has no attribute '${key}'`)
      : attributeOf(run, object, key);
  }),
  batch: lazy("batch(value, linecount, fill_with=None)", batches),
  count: builtin("count(obj)", size),
  d: builtin(
    "d(value, default_value='', boolean=False)",
    (_, ...args) => fallbackTo(args[0], args[1], args[2]),
  ),
  default: builtin(
    "default(value, default_value='', boolean=False)",
    (_, ...args) => fallbackTo(args[0], args[1], args[2]),
  ),
  dictsort: builtin(
    "dictsort(value, case_sensitive=False, by='key', reverse=False)",
    sortDict,
  ),
  first: builtin("first(seq)", (run, value) => {
    const { done, value: item } = iterate(run, value).next();
    return done ? new Undefined("No first item, sequence was empty.") : item;
  }),
  groupby: builtin(
    "groupby(value, attribute, default=None, case_sensitive=False)",
    groupBy,
  ),
  items: lazy("items(value)", itemsOf),
  join: builtin("join(value, d='', attribute=None)", join),
  last: builtin("last(seq)", last),
  length: builtin("length(obj)", size),
  list: builtin("list(value)", listOf),
  map: (run, [value, ...args], named) => new Lazy(map(run, value, args, named)),
  max: builtin(`max(value, ${ORDER})`, extreme(-1)),
  min: builtin(`min(value, ${ORDER})`, extreme(1)),
  random: builtin("random(seq)", random),
  reject: selector(false, false),
  rejectattr: selector(false, true),
  reverse: builtin("reverse(value)", reversed),
  select: selector(true, false),
  selectattr: selector(true, true),
  slice: lazy("slice(value, slices, fill_with=None)", slices),
  sort: builtin(`sort(value, reverse=False, ${ORDER})`, sort),
  sum: builtin("sum(iterable, attribute=None, start=0)", sum),
  unique: lazy(`unique(value, ${ORDER})`, unique),
};
