/**
 * Jinja2's tests, the words after `is`.
 *
 * @module
 */
import { Fault } from "./meter.ts";
import { numberOf } from "./numbers.ts";
import { binary, COMPARISONS, equal } from "./operators.ts";
import { str } from "./print.ts";
import { builtin } from "./signature.ts";
import { CLASSES } from "./unicode.ts";
import {
  type Builtin,
  Dict,
  iteratorOf,
  keyOf,
  Lazy,
  Markup,
  Range,
  type Run,
  textOf,
  Thing,
  Tuple,
  Undefined,
  type Value,
} from "./values.ts";

type Predicate = (run: Run, value: Value, other: Value) => boolean;

const isUndefined = (value: Value) => value instanceof Undefined;

function isSequence(value: Value): boolean {
  return textOf(value) !== undefined || Array.isArray(value) ||
    value instanceof Tuple || value instanceof Dict ||
    value instanceof Range || isUndefined(value);
}

function isSame(a: Value, b: Value): boolean {
  if (a instanceof Object || b instanceof Object) return a === b;
  return typeof a === typeof b && a === b;
}

function isCallable(value: Value): boolean {
  // Undefined has a __call__, which fails.
  return value instanceof Thing &&
    (value.call !== undefined || isUndefined(value));
}

function isKey(run: Run, value: Value, table: ReadonlyMap<unknown, Builtin>) {
  return table.has(keyOf(value, run));
}

function hasCase(run: Run, value: Value, test: (text: string) => boolean) {
  const text = str(run, value);
  run.slowly(text.length);
  return test(text);
}

const remainder = (run: Run, value: Value, by: Value) =>
  binary(run, "%", value, by);

const ONE: Readonly<Record<string, Predicate>> = {
  boolean: (_, value) => typeof value === "boolean",
  callable: (_, value) => isCallable(value),
  defined: (_, value) => !isUndefined(value),
  escaped: (_, value) => value instanceof Markup,
  even: (run, value) => equal(run, remainder(run, value, 2n), 0n),
  false: (_, value) => value === false,
  filter: (run, value) => isKey(run, value, run.filters),
  float: (_, value) => typeof value === "number",
  integer: (_, value) => typeof value === "bigint",
  iterable: (run, value) =>
    value instanceof Lazy || iteratorOf(run, value) !== undefined,
  lower: (run, value) => hasCase(run, value, CLASSES.islower),
  mapping: (_, value) => value instanceof Dict,
  none: (_, value) => value === null,
  number: (_, value) => numberOf(value) !== undefined,
  odd: (run, value) => equal(run, remainder(run, value, 2n), 1n),
  sequence: (_, value) => isSequence(value),
  string: (_, value) => textOf(value) !== undefined,
  test: (run, value) => isKey(run, value, run.tests),
  true: (_, value) => value === true,
  undefined: (_, value) => isUndefined(value),
  upper: (run, value) => hasCase(run, value, CLASSES.isupper),
};

const TWO: Readonly<Record<string, Predicate>> = {
  divisibleby: (run, value, by) => equal(run, remainder(run, value, by), 0n),
  in: COMPARISONS.in,
  sameas: (_, value, other) => isSame(value, other),
};

/** Names of the comparisons. */
const ORDERS: Readonly<Record<string, readonly string[]>> = {
  "==": ["==", "eq", "equalto"],
  "!=": ["!=", "ne"],
  ">": [">", "gt", "greaterthan"],
  ">=": [">=", "ge"],
  "<": ["<", "lt", "lessthan"],
  "<=": ["<=", "le"],
};

function table(): Map<string, Builtin> {
  const tests = new Map<string, Builtin>();
  for (const [name, test] of Object.entries(ONE)) {
    tests.set(
      name,
      builtin(
        `${name}(value)`,
        test as (run: Run, ...values: Value[]) => boolean,
      ),
    );
  }
  const two = Object.entries(TWO);
  for (const [operator, names] of Object.entries(ORDERS)) {
    for (const name of names) two.push([name, COMPARISONS[operator]]);
  }
  for (const [name, test] of two) {
    const word = /^\w+$/.test(name) ? name : "compare";
    tests.set(name, builtin(`${word}(value, other)`, test));
  }
  return tests;
}

/** Every test by its name. */
export const TESTS: ReadonlyMap<string, Builtin> = table();

/** Returns a test, or says that there is none. */
export function testNamed(run: Run, name: string): Builtin {
  const test = run.tests.get(name);
  if (!test) throw new Fault(`No test named '${name}'.`);
  return test;
}
