/**
 * Executes statements.
 *
 * @module
 */
import { applyFilter, callArguments, evaluate } from "./evaluate.ts";
import { Loop } from "./loop.ts";
import { atMost, Fault, MOST } from "./meter.ts";
import { callValue } from "./methods.ts";
import type {
  Expression,
  Signature,
  Statement,
  Statements,
  Target,
} from "./nodes.ts";
import { quoted, str } from "./print.ts";
import { Scope } from "./scope.ts";
import {
  Callable,
  Dict,
  listOf,
  type Named,
  Namespace,
  otherwise,
  type Run,
  truth,
  Tuple,
  Undefined,
  type Value,
} from "./values.ts";

/** Collects what a template prints. */
export class Output {
  readonly #parts: string[] = [];
  #length = 0;

  /** Adds text. */
  write(text: string): void {
    this.#length += text.length;
    atMost(this.#length, MOST.text, "it prints {} characters");
    this.#parts.push(text);
  }

  /** All text. */
  text(): string {
    return this.#parts.join("");
  }
}

/** Where a statement is executed. */
interface Frame {
  scope: Scope;
  run: Run;
  output: Output;
}

/** How a statement ended, if it left its iteration of the loop early. */
type Jump = "break" | "continue" | undefined;

type Executors = {
  [Type in keyof Statements]: (node: Statements[Type], frame: Frame) => Jump;
};

const EXECUTORS: Executors = {
  text: (node, { output }) => void output.write(node.text),
  print: (node, { scope, run, output }) =>
    void output.write(str(run, evaluate(node.value, scope, run))),
  if: (node, frame) => {
    const taken = node.cases.find(({ test }) =>
      truth(evaluate(test, frame.scope, frame.run))
    );
    return execute(taken ? taken.body : node.otherwise, frame);
  },
  for: (node, frame) => {
    const items = evaluate(node.items, frame.scope, frame.run);
    executeLoop(node, items, frame, 0);
    return undefined;
  },
  set: (node, { scope, run }) =>
    assign(node.target, evaluate(node.value, scope, run), scope, run),
  setBlock: (node, { scope, run }) => {
    const inner = new Scope(scope);
    const text = capture(node.body, inner, run);
    return assign(
      node.target,
      filtered(node.filter, text, inner, run),
      scope,
      run,
    );
  },
  with: (node, frame) => {
    const inner = new Scope(frame.scope);
    for (const { target, value } of node.values) {
      assign(target, evaluate(value, frame.scope, frame.run), inner, frame.run);
    }
    return execute(node.body, { ...frame, scope: inner });
  },
  macro: (node, { scope }) =>
    void scope.set(node.name, macro(node.name, node, scope)),
  callBlock: (node, { scope, run, output }) => {
    const { call } = node;
    const callee = evaluate(call.callee, scope, run);
    const [args, named] = callArguments(call, scope, run);
    named.set("caller", macro(undefined, node, scope));
    output.write(str(run, callValue(run, callee, args, named)));
    return undefined;
  },
  filterBlock: (node, { scope, run, output }) => {
    const inner = new Scope(scope);
    const text = capture(node.body, inner, run);
    output.write(str(run, filtered(node.filter, text, inner, run)));
    return undefined;
  },
  scope: (node, frame) =>
    execute(node.body, { ...frame, scope: new Scope(frame.scope) }),
  do: (node, { scope, run }) => void evaluate(node.value, scope, run),
  break: () => "break",
  continue: () => "continue",
};

/** Executes statements up to one that leaves the iteration. */
export function execute(body: readonly Statement[], frame: Frame): Jump {
  const { run } = frame;
  for (const node of body) {
    run.step();
    run.enter();
    try {
      const jump = EXECUTORS[node.type](node as never, frame);
      run.leave();
      if (jump) return jump;
    } catch (error) {
      throw error instanceof Fault ? error.at(node.line) : error;
    }
  }
  return undefined;
}

/** Executes a body and returns what it prints. */
function capture(body: readonly Statement[], scope: Scope, run: Run): string {
  const output = new Output();
  execute(body, { scope, run, output });
  const text = output.text();
  run.text(text.length);
  return text;
}

/** Applies the filters of a block, which have no value of their own, to its text. */
function filtered(
  node: Expression | null,
  text: Value,
  scope: Scope,
  run: Run,
): Value {
  if (node?.type !== "filter") return text;
  return applyFilter(node, filtered(node.value, text, scope, run), scope, run);
}

function assign(
  target: Target,
  value: Value,
  scope: Scope,
  run: Run,
): undefined {
  switch (target.type) {
    case "name":
      scope.set(target.name, value);
      return;
    case "member": {
      const object = scope.get(target.object);
      if (!(object instanceof Namespace)) {
        throw new Fault("cannot assign attribute on non-namespace object");
      }
      object.values.set(target.name, value, run);
      return;
    }
    case "targets": {
      const values = listOf(run, value), wanted = target.items.length;
      if (values.length !== wanted) {
        throw new Fault(
          values.length > wanted
            ? `too many values to unpack (expected ${wanted})`
            : `not enough values to unpack (expected ${wanted}, got ${values.length})`,
        );
      }
      target.items.forEach((item, i) => assign(item, values[i], scope, run));
    }
  }
}

function executeLoop(
  node: Statements["for"],
  items: Value,
  frame: Frame,
  depth: number,
): void {
  const { run } = frame;
  const recurse = (items: Value) => {
    const output = new Output();
    executeLoop(node, items, { ...frame, output }, depth + 1);
    const text = output.text();
    run.text(text.length);
    return text;
  };
  const loop = new Loop(
    run,
    items,
    node.test ? (all) => tested(node, all, frame) : undefined,
    depth,
    node.recursive ? recurse : undefined,
  );
  let hasCompleted = false;
  for (let next = loop.next(); next; next = loop.next()) {
    run.step();
    const scope = new Scope(frame.scope);
    scope.set("loop", loop);
    assign(node.target, next.item, scope, run);
    const jump = execute(node.body, { ...frame, scope });
    if (jump === "break") break;
    hasCompleted ||= jump === undefined;
  }
  // As in Jinja2, an iteration that is left early does not count.
  if (!hasCompleted) {
    execute(node.otherwise, { ...frame, scope: new Scope(frame.scope) });
  }
}

/** The items of a loop that pass its test. */
function* tested(
  { test, target }: Statements["for"],
  items: Iterator<Value>,
  { scope, run }: Frame,
): Generator<Value> {
  for (;;) {
    const { done, value } = items.next();
    if (done) return;
    run.step();
    const inner = new Scope(scope);
    assign(target, value, inner, run);
    if (truth(evaluate(test!, inner, run))) yield value;
  }
}

/** A macro, or the body of a call block, which sees the surrounding names. */
function macro(
  name: string | undefined,
  node: Signature,
  scope: Scope,
): Callable {
  return new Macro(name, node, (run, args, named) => {
    const inner = new Scope(scope);
    bind(name ?? "caller", node, args, new Map(named), inner, run);
    return capture(node.body, inner, run);
  });
}

class Macro extends Callable {
  constructor(
    readonly macroName: string | undefined,
    readonly node: Signature,
    call: Callable["call"],
  ) {
    super(
      macroName === undefined ? "anonymous" : quoted(macroName),
      call,
      "Macro",
    );
  }

  override attribute(name: string): Value | undefined {
    const { parameters, uses } = this.node;
    const found = new Map<string, Value>([
      ["name", this.macroName ?? null],
      ["arguments", new Tuple(parameters.map((parameter) => parameter.name))],
      ["catch_kwargs", uses.has("kwargs")],
      ["catch_varargs", uses.has("varargs")],
      ["caller", uses.has("caller")],
    ]);
    return found.get(name);
  }
}

/** Sets a macro's parameters; takes what it uses out of `named`. */
function bind(
  name: string,
  { parameters, uses }: Signature,
  args: readonly Value[],
  named: Named,
  scope: Scope,
  run: Run,
): void {
  const take = (key: string) => {
    const value = named.get(key);
    named.delete(key);
    return value;
  };
  const given = parameters.map(({ name }, i) =>
    i < args.length ? args[i] : take(name)
  );
  if (uses.has("caller")) {
    scope.set(
      "caller",
      otherwise(take("caller"), () => new Undefined("No caller defined")),
    );
  }
  if (uses.has("kwargs")) scope.set("kwargs", new Dict(named, run));
  else if (named.size > 0) {
    const [key] = named.keys();
    throw new Fault(`macro '${name}' takes no keyword argument '${key}'`);
  }
  if (uses.has("varargs")) {
    scope.set("varargs", new Tuple(args.slice(parameters.length)));
  } else if (args.length > parameters.length) {
    throw new Fault(
      `macro '${name}' takes not more than ${parameters.length} argument(s)`,
    );
  }
  // Defaults see the parameters before them.
  parameters.forEach(({ name, initial }, i) => {
    const instead = () =>
      initial
        ? evaluate(initial, scope, run)
        : new Undefined(`parameter '${name}' was not provided`);
    scope.set(name, otherwise(given[i], instead));
  });
}
