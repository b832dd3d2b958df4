/**
 * The methods of Python's types that Jinja2's immutable sandbox allows.
 *
 * @module
 */
import { braceFormat } from "./format.ts";
import { escapeHtml } from "./html.ts";
import { Fault } from "./meter.ts";
import { numberOf, toInt } from "./numbers.ts";
import { equal, itemOf } from "./operators.ts";
import { asInt, asText, builtin } from "./signature.ts";
import {
  capitalize,
  CLASSES,
  lengthOf,
  pointIndex,
  splitLines,
  splitSpaces,
  strip,
  swapCase,
  titleWords,
  unitIndex,
} from "./unicode.ts";
import {
  type Builtin,
  Callable,
  counted,
  Dict,
  DictView,
  iterate,
  listOf,
  Markup,
  Namespace,
  otherwise,
  type Run,
  textOf,
  Thing,
  truth,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";

/** A method, without the object it is called on. */
type Method = (run: Run, self: Value, ...values: Value[]) => Value;

/** Names of methods by their signatures. */
function methods(
  table: Readonly<Record<string, Method>>,
): ReadonlyMap<string, Builtin> {
  return new Map(
    Object.entries(table).map(([signature, method]) => {
      const [, name, list] = /^(\w+)\((.*)\)$/.exec(signature)!;
      const all = list === "" ? "self" : `self, ${list}`;
      return [name, counted(builtin(`${name}(${all})`, method))] as const;
    }),
  );
}

/** The part of a string that `start` and `end` select, in units. */
function span(
  text: string,
  start: Value,
  end: Value,
): [begin: number, end: number] | undefined {
  const size = lengthOf(text);
  const clamp = (value: Value, fallback: number) => {
    const index = value === null ? fallback : asInt(value);
    return index < 0 ? Math.max(0, index + size) : index;
  };
  const begin = clamp(start, 0), stop = Math.min(clamp(end, size), size);
  if (begin > size || begin > stop) return undefined;
  return [unitIndex(text, begin), unitIndex(text, stop)];
}

/** `find` and `rfind`: the index in code points, or -1. */
function find(
  run: Run,
  self: Value,
  part: Value,
  start: Value,
  end: Value,
  last: boolean,
): number {
  const text = asText(self), wanted = asText(part);
  run.work(text.length);
  const range = span(text, start, end);
  if (!range) return -1;
  const found = last
    ? text.lastIndexOf(wanted, range[1] - wanted.length)
    : text.indexOf(wanted, range[0]);
  const inside = found >= range[0] && found + wanted.length <= range[1] &&
    range[1] - range[0] >= wanted.length;
  return inside ? pointIndex(text, found) : -1;
}

function index(last: boolean): Method {
  return (run, self, part, start, end) => {
    const found = find(run, self, part, start, end, last);
    if (found < 0) throw new Fault("substring not found");
    return BigInt(found);
  };
}

function countIn(
  run: Run,
  self: Value,
  part: Value,
  start: Value,
  end: Value,
): bigint {
  const text = asText(self), wanted = asText(part);
  run.work(text.length);
  const range = span(text, start, end);
  if (!range) return 0n;
  const within = text.slice(...range);
  if (wanted === "") return BigInt(lengthOf(within) + 1);
  let count = 0n;
  for (
    let at = within.indexOf(wanted);
    at >= 0;
    at = within.indexOf(wanted, at + wanted.length)
  ) count++;
  return count;
}

/** `startswith` and `endswith`, with one string or a tuple of them. */
function affix(last: boolean): Method {
  return (run, self, parts, start, end) => {
    const text = asText(self);
    if (textOf(parts) === undefined && !(parts instanceof Tuple)) {
      if (parts instanceof Undefined) parts.fail();
      throw new Fault(
        `${last ? "ends" : "starts"}with first arg must be str or ` +
          `a tuple of str, not ${typeName(parts)}`,
      );
    }
    const range = span(text, start, end);
    if (!range) return false;
    const within = text.slice(...range);
    run.step();
    const options = parts instanceof Tuple ? parts.items : [parts];
    return options.some((option) =>
      last ? within.endsWith(asText(option)) : within.startsWith(asText(option))
    );
  };
}

/** Replaces up to `most` times (-1: all). */
export function replaceText(
  run: Run,
  text: string,
  old: string,
  replacement: string,
  most: number,
): string {
  run.work(text.length);
  if (old !== "" && !text.includes(old)) return text;
  const parts = old === "" ? ["", ...text, ""] : text.split(old);
  const count = most < 0 ? parts.length - 1 : Math.min(most, parts.length - 1);
  run.items(parts.length);
  run.text(text.length + count * (replacement.length - old.length));
  const rest = parts.slice(count).join(old);
  return [...parts.slice(0, count), rest].join(replacement);
}

/** `split` and `rsplit`. */
function split(last: boolean): Method {
  return (run, self, separator, most) => {
    const text = asText(self);
    run.work(text.length);
    const limit = asInt(most) < 0 ? Infinity : asInt(most);
    if (separator === null) {
      const words = last && limit < Infinity
        ? rsplitSpaces(text, limit)
        : splitSpaces(text, limit);
      run.items(words.length);
      return words;
    }
    const by = asText(separator);
    if (by === "") throw new Fault("empty separator");
    const parts = text.split(by);
    run.items(parts.length);
    if (parts.length - 1 <= limit) return parts;
    return last
      ? [
        parts.slice(0, parts.length - limit).join(by),
        ...parts.slice(parts.length - limit),
      ]
      : [...parts.slice(0, limit), parts.slice(limit).join(by)];
  };
}

/** Splits at white space from the right. */
function rsplitSpaces(text: string, most: number): string[] {
  const all = splitSpaces(text);
  if (all.length <= most) return all;
  const kept = most === 0 ? [] : all.slice(-most);
  let rest = strip(text, null, false, true);
  for (const word of kept.toReversed()) {
    rest = strip(rest.slice(0, rest.length - word.length), null, false, true);
  }
  return rest === "" ? kept : [rest, ...kept];
}

function partition(last: boolean): Method {
  return (run, self, separator) => {
    const text = asText(self), by = asText(separator);
    if (by === "") throw new Fault("empty separator");
    run.work(text.length);
    const at = last ? text.lastIndexOf(by) : text.indexOf(by);
    if (at < 0) return new Tuple(last ? ["", "", text] : [text, "", ""]);
    return new Tuple([text.slice(0, at), by, text.slice(at + by.length)]);
  };
}

function stripping(left: boolean, right: boolean): Method {
  return (run, self, chars) => {
    const text = asText(self);
    run.work(text.length);
    return strip(text, chars === null ? null : asText(chars), left, right);
  };
}

/** Pads a string to a width; `left` says how much of the padding goes on the left. */
function filling(left: (missing: number, width: number) => number): Method {
  return (run, self, wide, filler) => {
    const text = asText(self), fill = asText(filler), width = asInt(wide);
    if (lengthOf(fill) !== 1) {
      throw new Fault(
        "The fill character must be exactly one character long",
      );
    }
    const missing = width - lengthOf(text);
    if (missing <= 0) return text;
    run.text(text.length + missing * fill.length);
    const before = left(missing, width);
    return fill.repeat(before) + text + fill.repeat(missing - before);
  };
}

/** str.center puts the odd space left if the width is odd. */
const centered = (missing: number, width: number) =>
  (missing >> 1) + (missing & width & 1);

/** str.center as the filter and the method use it. */
export const center: Method = filling(centered);

function zeroFill(run: Run, self: Value, wide: Value): Value {
  const text = asText(self);
  const missing = asInt(wide) - lengthOf(text);
  if (missing <= 0) return text;
  run.text(text.length + missing);
  const sign = /^[+-]/.exec(text)?.[0] ?? "";
  return sign + "0".repeat(missing) + text.slice(sign.length);
}

function expandTabs(run: Run, self: Value, size: Value): Value {
  const width = Math.max(0, asInt(size));
  let column = 0;
  const parts: string[] = [];
  for (const char of asText(self)) {
    if (char === "\t") {
      const spaces = width === 0 ? 0 : width - column % width;
      run.text(spaces);
      parts.push(" ".repeat(spaces));
      column += spaces;
    } else {
      run.slowly(1);
      parts.push(char);
      column = char === "\n" || char === "\r" ? 0 : column + 1;
    }
  }
  return parts.join("");
}

/** Joins strings; anything else in the list is an error, as in Python. */
function joinStrings(run: Run, self: Value, items: Value): Value {
  const separator = asText(self);
  const parts: string[] = [];
  let length = 0;
  for (const item of iterate(run, items)) {
    const text = textOf(item);
    if (text === undefined) {
      throw new Fault(
        `sequence item ${parts.length}: expected str instance, ${
          typeName(item)
        } found`,
      );
    }
    length += text.length + separator.length;
    run.text(text.length + separator.length);
    if (length > separator.length) run.step();
    parts.push(self instanceof Markup ? escapeHtml(item) : text);
  }
  run.text(length);
  return parts.join(separator);
}

/** A method that changes a string in one step. */
function mapping(change: (text: string) => string): Method {
  return (run, self) => {
    const text = asText(self);
    run.slowly(text.length);
    return change(text);
  };
}

function translate(run: Run, self: Value, table: Value): Value {
  if (!(table instanceof Dict)) {
    throw new Fault("translate() needs a dict of code points");
  }
  const parts: string[] = [];
  for (const char of asText(self)) {
    run.slowly(1);
    const found = table.get(BigInt(char.codePointAt(0)!), run);
    if (found === undefined) parts.push(char);
    else if (typeof found === "bigint") {
      parts.push(String.fromCodePoint(Number(found)));
    } else if (found !== null) {
      run.text(asText(found).length);
      parts.push(asText(found));
    }
  }
  return parts.join("");
}

const TEXT_METHODS = methods({
  "capitalize()": mapping(capitalize),
  "casefold()": mapping((text) => foldCase(text)),
  "center(width, fillchar=' ')": center,
  "count(sub, start=None, end=None)": countIn,
  "endswith(suffix, start=None, end=None)": affix(true),
  "expandtabs(tabsize=8)": expandTabs,
  "find(sub, start=None, end=None)": (run, ...all) =>
    BigInt(find(run, all[0], all[1], all[2], all[3], false)),
  "index(sub, start=None, end=None)": index(false),
  "join(iterable)": joinStrings,
  "ljust(width, fillchar=' ')": filling(() => 0),
  "lower()": mapping((text) => text.toLowerCase()),
  "lstrip(chars=None)": stripping(true, false),
  "partition(sep)": partition(false),
  "removeprefix(prefix)": (_, self, prefix) =>
    asText(self).startsWith(asText(prefix))
      ? asText(self).slice(asText(prefix).length)
      : asText(self),
  "removesuffix(suffix)": (_, self, suffix) =>
    asText(self).endsWith(asText(suffix))
      ? asText(self).slice(0, asText(self).length - asText(suffix).length)
      : asText(self),
  "replace(old, new, count=-1)": (run, self, old, replacement, count) =>
    replaceText(
      run,
      asText(self),
      asText(old),
      self instanceof Markup
        ? (asText(replacement), escapeHtml(replacement))
        : asText(replacement),
      asInt(count),
    ),
  "rfind(sub, start=None, end=None)": (run, ...all) =>
    BigInt(find(run, all[0], all[1], all[2], all[3], true)),
  "rindex(sub, start=None, end=None)": index(true),
  "rjust(width, fillchar=' ')": filling((missing) => missing),
  "rpartition(sep)": partition(true),
  "rsplit(sep=None, maxsplit=-1)": split(true),
  "rstrip(chars=None)": stripping(false, true),
  "split(sep=None, maxsplit=-1)": split(false),
  "splitlines(keepends=False)": (run, self, keepEnds) => {
    const text = asText(self);
    run.work(text.length);
    const lines = splitLines(text, truth(keepEnds));
    run.items(lines.length);
    return lines;
  },
  "startswith(prefix, start=None, end=None)": affix(false),
  "strip(chars=None)": stripping(true, true),
  "swapcase()": mapping(swapCase),
  "title()": mapping(titleWords),
  "translate(table)": translate,
  "upper()": mapping((text) => text.toUpperCase()),
  "zfill(width)": zeroFill,
  ...Object.fromEntries(
    Object.entries(CLASSES).map(([name, test]): [string, Method] => [
      `${name}()`,
      (run, self) => {
        const text = asText(self);
        run.slowly(text.length);
        return test(text);
      },
    ]),
  ),
});

/** Full case folding, which lowers ß to ss. */
function foldCase(text: string): string {
  // Upper case unites what folding unites; Cherokee folds to upper case.
  return text.replaceAll(
    /[^]/gu,
    (char) =>
      /[ıİ\u13a0-\u13f5]/u.test(char)
        ? (char === "İ" ? "i̇" : char)
        : /[\u13f8-\u13fd\uab70-\uabbf]/u.test(char)
        ? char.toUpperCase()
        : char.toUpperCase().toLowerCase(),
  );
}

function listIndex(
  run: Run,
  self: Value,
  value: Value,
  start: Value,
  stop: Value,
): Value {
  const items = self instanceof Tuple ? self.items : self as Value[];
  const clamp = (bound: Value, fallback: number) => {
    const at = bound === null ? fallback : asInt(bound);
    return at < 0 ? Math.max(0, at + items.length) : at;
  };
  const end = Math.min(clamp(stop, items.length), items.length);
  for (let i = clamp(start, 0); i < end; i++) {
    run.step();
    if (equal(run, items[i], value)) return BigInt(i);
  }
  throw new Fault(
    self instanceof Tuple
      ? "tuple.index(x): x not in tuple"
      : "the value is not in list",
  );
}

function countItems(run: Run, self: Value, value: Value): Value {
  let count = 0n;
  for (const item of iterate(run, self)) {
    if (equal(run, item, value)) count++;
  }
  return count;
}

const SEQUENCE_METHODS: Readonly<Record<string, Method>> = {
  "count(value)": countItems,
  "index(value, start=None, stop=None)": listIndex,
};

const view = (part: DictView["part"]): Method => (_, self) =>
  new DictView(self as Dict, part);

const METHODS: Readonly<Record<string, ReadonlyMap<string, Builtin>>> = {
  str: TEXT_METHODS,
  Markup: TEXT_METHODS,
  list: methods({
    ...SEQUENCE_METHODS,
    "copy()": (run, self) => listOf(run, self),
  }),
  tuple: methods(SEQUENCE_METHODS),
  dict: methods({
    "copy()": (run, self) => new Dict((self as Dict).entries(), run),
    "get(key, default=None)": (run, self, key, fallback) =>
      otherwise((self as Dict).get(key, run), () => fallback),
    "items()": view("items"),
    "keys()": view("keys"),
    "values()": view("values"),
  }),
  range: methods({
    "count(value)": countItems,
    "index(value)": (run, self, value) =>
      listIndex(run, listOf(run, self), value, null, null),
  }),
  int: methods({
    "bit_length()": (_, self) => {
      const value = toInt(numberOf(self)!);
      const magnitude = value < 0n ? -value : value;
      return value === 0n ? 0n : BigInt(magnitude.toString(2).length);
    },
    "conjugate()": (_, self) => self,
  }),
  float: methods({
    "conjugate()": (_, self) => self,
    "is_integer()": (_, self) => Number.isInteger(self),
  }),
};

/** Methods that exist in Python, and that the sandbox forbids because they change the object. */
const FORBIDDEN: Readonly<Record<string, readonly string[]>> = {
  list: [
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "remove",
    "reverse",
    "sort",
  ],
  dict: ["clear", "pop", "popitem", "setdefault", "update"],
};

/** `Markup` of every string in a result. */
function marked(value: Value): Value {
  if (typeof value === "string") return new Markup(value);
  if (Array.isArray(value)) return value.map(marked);
  return value instanceof Tuple ? new Tuple(value.items.map(marked)) : value;
}

function bound(name: string, method: Builtin, self: Value): Callable {
  return new Callable(
    name,
    (run, args, named) => {
      const result = method(run, [self, ...args], named);
      return self instanceof Markup ? marked(result) : result;
    },
    "built-in method",
  );
}

function formatMethod(self: Value, fromMap: boolean): Callable {
  return new Callable(fromMap ? "format_map" : "format", (run, args, named) => {
    const lookup = (object: Value, key: string | bigint, dot: boolean) =>
      dot ? attributeOf(run, object, String(key)) : subscript(run, object, key);
    if (!fromMap) return braceFormat(run, self, { args, named, lookup });
    const [map] = args;
    if (!(map instanceof Dict)) throw new Fault("format_map() needs a dict");
    const values = new Map(
      map.entries().map(([key, value]) => [String(key), value]),
    );
    return braceFormat(run, self, { args: [], named: values, lookup });
  });
}

const NUMBER_ATTRIBUTES: Readonly<Record<string, (value: Value) => Value>> = {
  real: (value) => typeof value === "boolean" ? BigInt(value) : value,
  imag: (value) => typeof value === "number" ? 0 : 0n,
};
const INT_ATTRIBUTES: Readonly<Record<string, (value: Value) => Value>> = {
  ...NUMBER_ATTRIBUTES,
  numerator: NUMBER_ATTRIBUTES.real,
  denominator: () => 1n,
};

/** An attribute that the type defines; undefined if there is none. */
export function ownAttribute(object: Value, name: string): Value | undefined {
  if (object instanceof Thing) {
    const own = object.attribute(name);
    if (own !== undefined) return own;
  }
  const type = typeName(object);
  const kind = type === "bool" ? "int" : type;
  if ((kind === "str" || kind === "Markup") && name.startsWith("format")) {
    if (name === "format" || name === "format_map") {
      return formatMethod(object, name === "format_map");
    }
  }
  if (kind === "int" || kind === "float") {
    const table = kind === "int" ? INT_ATTRIBUTES : NUMBER_ATTRIBUTES;
    if (Object.hasOwn(table, name)) return table[name](object);
  }
  const method = Object.hasOwn(METHODS, kind)
    ? METHODS[kind].get(name)
    : undefined;
  if (method) return bound(name, method, object);
  const isForbidden = Object.hasOwn(FORBIDDEN, kind) &&
    FORBIDDEN[kind].includes(name);
  return isForbidden
    ? new Undefined(
      `access to attribute '${name}' of '${type}' object is unsafe.`,
    )
    : undefined;
}

/** What an error calls an object. */
function describe(object: Value): string {
  return object === null ? "None" : `${typeName(object)} object`;
}

function lacking(object: Value, name: string): Undefined {
  return new Undefined(`'${describe(object)}' has no attribute '${name}'`);
}

/** `object.name`: an attribute of the type, else an item. */
export function attributeOf(run: Run, object: Value, name: string): Value {
  if (object instanceof Undefined) object.fail();
  if (object instanceof Namespace) {
    return otherwise(object.values.get(name, run), () => lacking(object, name));
  }
  const own = ownAttribute(object, name);
  if (own !== undefined) return own;
  return otherwise(itemOf(run, object, name), () => lacking(object, name));
}

/** `object[key]`: an item, else an attribute of the type. */
export function subscript(run: Run, object: Value, key: Value): Value {
  const item = itemOf(run, object, key);
  if (item !== undefined) return item;
  const name = textOf(key);
  if (name === undefined) {
    return new Undefined(
      `${describe(object)} has no element ${
        typeof key === "bigint" ? key : typeName(key)
      }`,
    );
  }
  if (object instanceof Namespace) return attributeOf(run, object, name);
  return otherwise(ownAttribute(object, name), () => lacking(object, name));
}

/** Calls a value. */
export function callValue(
  run: Run,
  value: Value,
  args: Value[],
  named: Map<string, Value>,
): Value {
  if (value instanceof Undefined) value.fail();
  const call = value instanceof Thing ? value.call : undefined;
  if (!call) throw new Fault(`'${typeName(value)}' object is not callable`);
  return call(run, args, named);
}
