/**
 * Python's values. `None` is null, `bool` boolean, `int` bigint, `float` number, `str` string
 * and `list` an array; everything else is a `Thing`.
 *
 * @module
 */
import { Fault, Meter, MOST } from "./meter.ts";
import { lengthOf } from "./unicode.ts";

/** A value of a template. */
export type Value =
  | null
  | boolean
  | bigint
  | number
  | string
  | Value[]
  | Thing;

/** Keyword arguments. */
export type Named = Map<string, Value>;
/** A function, filter or test. */
export type Builtin = (run: Run, args: Value[], named: Named) => Value;
/** Functions by name. */
export type Builtins = ReadonlyMap<string, Builtin>;

/** Options of a rendering. */
export interface RenderOptions {
  /** The time that `strftime_now` formats. Default: now. */
  now?: Date;
}

/** One rendering: its costs, its options and the names it can look up. */
export class Run extends Meter {
  constructor(
    readonly filters: Builtins,
    readonly tests: Builtins,
    readonly options: RenderOptions,
  ) {
    super();
  }
}

/** A value with its own behaviour. */
export abstract class Thing {
  /** The name of its Python type. */
  abstract readonly type: string;

  /** Its own attributes, which take precedence over items. */
  attribute(_name: string): Value | undefined {
    return undefined;
  }

  /** The items that `for` visits; undefined if it is not iterable. */
  iterate(_run: Run): Iterator<Value> | undefined {
    return undefined;
  }

  /** What `len` returns; undefined if it has none. */
  get size(): number | undefined {
    return undefined;
  }

  /** Calls it; undefined if it cannot be called. */
  get call(): Builtin | undefined {
    return undefined;
  }
}

/** A string that is known to be safe HTML; strings joined to it are escaped. */
export class Markup extends Thing {
  readonly type = "Markup";

  constructor(readonly text: string) {
    super();
  }

  override get size(): number {
    return lengthOf(this.text);
  }
}

/** A tuple. */
export class Tuple extends Thing {
  readonly type = "tuple";

  constructor(readonly items: readonly Value[]) {
    super();
  }

  override get size(): number {
    return this.items.length;
  }

  override iterate(): Iterator<Value> {
    return this.items.values();
  }
}

/** A group of `groupby`: a tuple whose items have names. */
export class Group extends Tuple {
  override attribute(name: string): Value | undefined {
    return name === "grouper"
      ? this.items[0]
      : name === "list"
      ? this.items[1]
      : undefined;
  }
}

/** A missing value. It prints as nothing; most other uses fail. */
export class Undefined extends Thing {
  readonly type = "Undefined";

  constructor(readonly reason: string) {
    super();
  }

  override get size(): number {
    return 0;
  }

  override iterate(): Iterator<Value> {
    return [].values();
  }

  /** Throws an error that says what is missing. */
  fail(): never {
    throw new Fault(this.reason);
  }
}

/** Map keys for Python keys: 1, 1.0 and True are equal. */
type Key = string | number | bigint | null | Thing;

const NO_VALUE = new Undefined("");

/** Returns the key for a hashable value. */
export function keyOf(value: Value, run: Run): Key {
  if (typeof value === "string") {
    run.work(value.length);
    return value.startsWith("\0") ? `\0${value}` : value;
  }
  if (value === null) return null;
  if (typeof value === "boolean") return Number(value);
  if (typeof value === "bigint") {
    const small = Number(value);
    return Number.isSafeInteger(small) ? small : value;
  }
  if (typeof value === "number") {
    return Number.isInteger(value) && !Number.isSafeInteger(value)
      ? BigInt(value)
      : value;
  }
  if (value instanceof Markup) return keyOf(value.text, run);
  if (value instanceof Undefined) return NO_VALUE;
  if (value instanceof Tuple) return tupleKey(value, run);
  if (Array.isArray(value) || value instanceof Dict) {
    throw new Fault(`unhashable type: '${typeName(value)}'`);
  }
  return value;
}

const things = new WeakMap<Thing, number>();
let thingCount = 0;

function tupleKey(tuple: Tuple, run: Run): string {
  run.enter();
  const parts = tuple.items.map((item) => {
    const key = keyOf(item, run);
    run.step();
    if (!(key instanceof Thing)) {
      return `${typeof key === "bigint" ? "number" : typeof key}:${key}`;
    }
    if (!things.has(key)) things.set(key, thingCount++);
    return `thing:${things.get(key)}`;
  });
  run.leave();
  const key = `\0(${parts.map((part) => `${part.length},${part}`).join("")}`;
  run.text(key.length);
  return key;
}

/** A dict; keys keep the order in which they were added. */
export class Dict extends Thing {
  readonly type = "dict";
  readonly #entries = new Map<Key, [Value, Value]>();

  constructor(entries: Iterable<readonly [Value, Value]>, run: Run) {
    super();
    for (const [key, value] of entries) this.set(key, value, run);
  }

  /** Adds or replaces a value. */
  set(key: Value, value: Value, run: Run): void {
    const found = keyOf(key, run);
    const entry = this.#entries.get(found);
    if (entry) entry[1] = value;
    else {
      run.items(8);
      this.#entries.set(found, [key, value]);
    }
  }

  /** Whether it has a key. */
  has(key: Value, run: Run): boolean {
    return this.#entries.has(keyOf(key, run));
  }

  /** A value, by its key. */
  get(key: Value, run: Run): Value | undefined {
    return this.#entries.get(keyOf(key, run))?.[1];
  }

  /** Keys and values. */
  entries(): IteratorObject<readonly [Value, Value]> {
    return this.#entries.values();
  }

  /** The keys. */
  *keys(): Generator<Value> {
    for (const [key] of this.#entries.values()) yield key;
  }

  override get size(): number {
    return this.#entries.size;
  }

  override iterate(): Iterator<Value> {
    return this.keys();
  }
}

/** What `keys`, `values` and `items` of a dict return. */
export class DictView extends Thing {
  readonly type: string;

  constructor(
    readonly dict: Dict,
    readonly part: "keys" | "values" | "items",
  ) {
    super();
    this.type = `dict_${part}`;
  }

  override get size(): number {
    return this.dict.size;
  }

  override *iterate(): Generator<Value> {
    if (this.part === "keys") return yield* this.dict.keys();
    for (const [key, value] of this.dict.entries()) {
      yield this.part === "values" ? value : new Tuple([key, value]);
    }
  }
}

/** What `range` returns. */
export class Range extends Thing {
  readonly type = "range";
  readonly #size: number;

  constructor(
    readonly start: number,
    readonly stop: number,
    readonly step: number,
  ) {
    super();
    this.#size = Math.max(0, Math.ceil((stop - start) / step));
    if (this.#size > MOST.range) {
      throw new Fault(
        `range() has ${this.#size} items, must have at most ${MOST.range}`,
      );
    }
  }

  override get size(): number {
    return this.#size;
  }

  override iterate(): Iterator<Value> {
    let i = 0;
    return {
      next: () =>
        i < this.#size
          ? { done: false, value: BigInt(this.start + i++ * this.step) }
          : { done: true, value: null },
    };
  }
}

/** A generator, which can be iterated once. */
export class Lazy extends Thing {
  /** Its state. It has no `return`, so that leaving a loop does not end it. */
  readonly #rest: Iterator<Value>;

  constructor(items: Iterator<Value>, readonly type = "generator") {
    super();
    this.#rest = { next: () => items.next() };
  }

  override iterate(): Iterator<Value> {
    return this.#rest;
  }
}

/** A function or a bound method. */
export class Callable extends Thing {
  readonly #call: Builtin;

  constructor(
    readonly name: string,
    call: Builtin,
    readonly type = "function",
  ) {
    super();
    this.#call = call;
  }

  override get call(): Builtin {
    return this.#call;
  }
}

/** What `namespace` returns: the one object whose attributes a template can set. */
export class Namespace extends Thing {
  readonly type = "Namespace";

  constructor(readonly values: Dict) {
    super();
  }
}

/** `value`, or what `instead` returns if it is undefined; unlike with `??`, None is a value. */
export function otherwise(
  value: Value | undefined,
  instead: () => Value,
): Value {
  return value === undefined ? instead() : value;
}

/** The name of a value's Python type. */
export function typeName(value: Value): string {
  if (value === null) return "NoneType";
  if (Array.isArray(value)) return "list";
  switch (typeof value) {
    case "boolean":
      return "bool";
    case "bigint":
      return "int";
    case "number":
      return "float";
    case "string":
      return "str";
    default:
      return value.type;
  }
}

/** The characters of a str or Markup; undefined for other values. */
export function textOf(value: Value): string | undefined {
  if (typeof value === "string") return value;
  return value instanceof Markup ? value.text : undefined;
}

/** `len`, or undefined. */
export function sizeOf(value: Value): number | undefined {
  if (typeof value === "string") return lengthOf(value);
  if (Array.isArray(value)) return value.length;
  return value instanceof Thing ? value.size : undefined;
}

/** Makes a function count the sizes of its arguments, which it may iterate. */
export function counted(call: Builtin): Builtin {
  return (run, args, named) => {
    for (const arg of args) {
      const text = textOf(arg);
      if (text !== undefined) run.work(text.length);
      else if (Array.isArray(arg)) run.work(arg.length);
      else if (arg instanceof Tuple) run.work(arg.size);
    }
    return call(run, args, named);
  };
}

/** Whether a value is true in Python. */
export function truth(value: Value): boolean {
  if (value === null) return false;
  if (Array.isArray(value)) return value.length > 0;
  if (typeof value !== "object") return Boolean(value) || Number.isNaN(value);
  return value.size !== 0;
}

/** The items that `for` visits; undefined if the value is not iterable. */
export function iteratorOf(
  run: Run,
  value: Value,
): Iterator<Value> | undefined {
  const text = textOf(value);
  if (text !== undefined) return text[Symbol.iterator]();
  if (Array.isArray(value)) return value.values();
  return value instanceof Thing ? value.iterate(run) : undefined;
}

/** Iterates a value; a generator that is left early can be continued. */
export function* iterate(run: Run, value: Value): Generator<Value> {
  const items = iteratorOf(run, value);
  if (!items) throw new Fault(`'${typeName(value)}' object is not iterable`);
  for (;;) {
    const { done, value: item } = items.next();
    if (done) return;
    run.step();
    yield item;
  }
}

/** All items, as a new array. */
export function listOf(run: Run, value: Value): Value[] {
  if (Array.isArray(value)) {
    run.list(value.length);
    return value.slice();
  }
  const list: Value[] = [];
  for (const item of iterate(run, value)) {
    run.items(1);
    list.push(item);
  }
  return list;
}
