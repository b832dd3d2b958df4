/**
 * Evaluates expressions.
 *
 * @module
 */
import { atMost, Fault, MOST } from "./meter.ts";
import { attributeOf, callValue, subscript } from "./methods.ts";
import type { Arguments, Expression, Expressions } from "./nodes.ts";
import { binary, COMPARISONS, sliceOf, unary } from "./operators.ts";
import { testNamed } from "./predicates.ts";
import { str } from "./print.ts";
import type { Scope } from "./scope.ts";
import { filterNamed } from "./sequence_filters.ts";
import { asText } from "./signature.ts";
import {
  Dict,
  iterate,
  type Named,
  otherwise,
  type Run,
  truth,
  Tuple,
  Undefined,
  type Value,
} from "./values.ts";

type Evaluators = {
  [Type in keyof Expressions]: (
    node: Expressions[Type],
    scope: Scope,
    run: Run,
  ) => Value;
};

const EVALUATORS: Evaluators = {
  constant: (node) => node.value,
  name: (node, scope) =>
    otherwise(
      scope.get(node.name),
      () => new Undefined(`'${node.name}' is undefined`),
    ),
  attribute: (node, scope, run) =>
    attributeOf(run, evaluate(node.object, scope, run), node.name),
  item: (node, scope, run) =>
    subscript(
      run,
      evaluate(node.object, scope, run),
      evaluate(node.key, scope, run),
    ),
  slice: (node, scope, run) => {
    const object = evaluate(node.object, scope, run);
    const [start, stop, step] = node.bounds.map((bound) =>
      bound && evaluate(bound, scope, run)
    );
    return sliceOf(run, object, start, stop, step);
  },
  call: (node, scope, run) => {
    const callee = evaluate(node.callee, scope, run);
    return callValue(run, callee, ...callArguments(node, scope, run));
  },
  filter: (node, scope, run) =>
    applyFilter(node, evaluate(node.value!, scope, run), scope, run),
  test: (node, scope, run) => {
    const test = testNamed(run, node.name);
    const value = evaluate(node.value!, scope, run);
    const [args, named] = callArguments(node, scope, run);
    return test(run, [value, ...args], named);
  },
  list: (node, scope, run) => {
    run.list(node.items.length);
    return node.items.map((item) => evaluate(item, scope, run));
  },
  tuple: (node, scope, run) => {
    run.list(node.items.length);
    return new Tuple(node.items.map((item) => evaluate(item, scope, run)));
  },
  dict: (node, scope, run) => {
    const pairs = node.pairs.map(([key, value]) =>
      [evaluate(key, scope, run), evaluate(value, scope, run)] as const
    );
    return new Dict(pairs, run);
  },
  concat: (node, scope, run) => {
    let text = "";
    for (const part of node.parts) {
      text += str(run, evaluate(part, scope, run));
      atMost(text.length, MOST.text, "it makes a string of {} characters");
    }
    return text;
  },
  binary: (node, scope, run) =>
    binary(
      run,
      node.operator,
      evaluate(node.left, scope, run),
      evaluate(node.right, scope, run),
    ),
  unary: (node, scope, run) =>
    unary(node.operator, evaluate(node.value, scope, run)),
  not: (node, scope, run) => !truth(evaluate(node.value, scope, run)),
  and: (node, scope, run) => {
    const left = evaluate(node.left, scope, run);
    return truth(left) ? evaluate(node.right, scope, run) : left;
  },
  or: (node, scope, run) => {
    const left = evaluate(node.left, scope, run);
    return truth(left) ? left : evaluate(node.right, scope, run);
  },
  compare: (node, scope, run) => {
    let left = evaluate(node.first, scope, run);
    for (const { operator, value } of node.rest) {
      const right = evaluate(value, scope, run);
      if (!COMPARISONS[operator](run, left, right)) return false;
      left = right;
    }
    return true;
  },
  choice: (node, scope, run) => {
    const taken = truth(evaluate(node.test, scope, run)) ? node.yes : node.no;
    return taken ? evaluate(taken, scope, run) : new Undefined(
      `the inline if-expression on line ${node.line} evaluated to false ` +
        "and no else section was defined.",
    );
  },
};

/** Returns the value of an expression. */
export function evaluate(node: Expression, scope: Scope, run: Run): Value {
  run.step();
  run.enter();
  try {
    const value = EVALUATORS[node.type](node as never, scope, run);
    run.leave();
    return value;
  } catch (error) {
    throw error instanceof Fault ? error.at(node.line) : error;
  }
}

/** Evaluates the arguments of a call, filter or test. */
export function callArguments(
  node: Arguments,
  scope: Scope,
  run: Run,
): [args: Value[], named: Named] {
  const args = node.args.map((arg) => evaluate(arg, scope, run));
  const named: Named = new Map();
  for (const { name, value } of node.named) {
    if (named.has(name)) throw new Fault(`keyword argument repeated: ${name}`);
    named.set(name, evaluate(value, scope, run));
  }
  if (node.list) {
    const list = evaluate(node.list, scope, run);
    for (const item of iterate(run, list)) {
      run.items(1);
      args.push(item);
    }
  }
  if (node.map) {
    const map = evaluate(node.map, scope, run);
    if (!(map instanceof Dict)) {
      throw new Fault("argument after ** must be a mapping");
    }
    for (const [key, value] of map.entries()) {
      named.set(asText(key), value);
    }
  }
  return [args, named];
}

/** Applies a filter to a value. */
export function applyFilter(
  node: Expressions["filter"],
  value: Value,
  scope: Scope,
  run: Run,
): Value {
  const filter = filterNamed(run, node.name);
  const [args, named] = callArguments(node, scope, run);
  return filter(run, [value, ...args], named);
}
