/**
 * Functions with Python's parameters: by position, by name, with defaults.
 *
 * @module
 */
import { Fault } from "./meter.ts";
import { numberOf, toInt } from "./numbers.ts";
import { str } from "./print.ts";
import {
  type Builtin,
  Markup,
  type Named,
  type Run,
  textOf,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";

interface Parameter {
  name: string;
  /** Undefined if it must be given. */
  initial: Value | undefined;
}

const LITERALS: Readonly<Record<string, Value>> = {
  None: null,
  True: true,
  False: false,
};

function literal(text: string): Value {
  if (text in LITERALS) return LITERALS[text];
  return text.startsWith("'")
    ? text.slice(1, -1)
    : text.includes(".")
    ? Number(text)
    : BigInt(text);
}

function parameter(text: string): Parameter {
  const [name, initial] = text.split("=");
  return {
    name,
    initial: initial === undefined ? undefined : literal(initial),
  };
}

/**
 * Makes a function from a signature like `indent(s, width=4, first=False)`; `body` gets a value
 * for every parameter, in their order.
 */
export function builtin(
  signature: string,
  body: (run: Run, ...values: Value[]) => Value,
): Builtin {
  const [, name, list] = /^(\w+)\((.*)\)$/.exec(signature)!;
  const parameters = list === "" ? [] : list.split(/, (?=\w)/).map(parameter);
  return (run, args, named) =>
    body(run, ...bind(name, parameters, args, named));
}

function bind(
  name: string,
  parameters: readonly Parameter[],
  args: readonly Value[],
  named: Named,
): Value[] {
  if (args.length > parameters.length) {
    throw new Fault(
      `${name}() has ${args.length} arguments, must have at most ${parameters.length}`,
    );
  }
  for (const key of named.keys()) {
    const at = parameters.findIndex((parameter) => parameter.name === key);
    if (at < 0) throw new Fault(`${name}() has no parameter '${key}'`);
    if (at < args.length) {
      throw new Fault(`${name}() has two values for '${key}', must have one`);
    }
  }
  return parameters.map((parameter, i) => {
    if (i < args.length) return args[i];
    const value = named.get(parameter.name);
    if (value !== undefined) return value;
    if (parameter.initial !== undefined) return parameter.initial;
    throw new Fault(`${name}() lacks the argument '${parameter.name}'`);
  });
}

/** Requires an int. */
export function asInt(value: Value): number {
  const number = typeof value === "number" ? undefined : numberOf(value);
  if (typeof number === "bigint") return Number(toInt(number));
  if (value instanceof Undefined) value.fail();
  throw new Fault(
    `'${typeName(value)}' object cannot be interpreted as an integer`,
  );
}

/** Requires a string. */
export function asText(value: Value): string {
  const text = textOf(value);
  if (text !== undefined) return text;
  if (value instanceof Undefined) value.fail();
  throw new Fault(`expected str, got ${typeName(value)}`);
}

/** Applies `change` to a value's text; Markup stays Markup. */
export function onText(
  run: Run,
  value: Value,
  change: (text: string) => string,
): Value {
  const text = textOf(value) ?? str(run, value);
  run.work(2 * text.length);
  const result = change(text);
  run.text(result.length);
  return value instanceof Markup ? new Markup(result) : result;
}
