/**
 * Functions that every template can call.
 *
 * @module
 */
import { Fault } from "./meter.ts";
import { str } from "./print.ts";
import { asInt, asText, builtin } from "./signature.ts";
import { formatTime } from "./time.ts";
import {
  type Builtin,
  Callable,
  Dict,
  iterate,
  listOf,
  type Named,
  Namespace,
  Range,
  type Run,
  Thing,
  type Value,
} from "./values.ts";

function range(_run: Run, args: Value[]): Value {
  if (args.length < 1 || args.length > 3) {
    throw new Fault(`range() has ${args.length} arguments, must have 1 to 3`);
  }
  const [first, second, step = 1] = args.map(asInt);
  if (step === 0) throw new Fault("range() arg 3 must not be zero");
  return second === undefined
    ? new Range(0, first, 1)
    : new Range(first, second, step);
}

function dict(run: Run, args: Value[], named: Named): Dict {
  if (args.length > 1) {
    throw new Fault(`dict() has ${args.length} arguments, must have at most 1`);
  }
  const result = new Dict([], run);
  const [source] = args;
  if (source instanceof Dict) {
    for (const [key, value] of source.entries()) result.set(key, value, run);
  } else if (source !== undefined) {
    for (const pair of iterate(run, source)) {
      const items = listOf(run, pair);
      if (items.length !== 2) {
        throw new Fault(
          `a pair for dict() has ${items.length} items, must have 2`,
        );
      }
      result.set(items[0], items[1], run);
    }
  }
  for (const [key, value] of named) result.set(key, value, run);
  return result;
}

/** What `cycler` returns. */
class Cycler extends Thing {
  readonly type = "Cycler";
  #at = 0;

  constructor(readonly items: readonly Value[]) {
    super();
    if (items.length === 0) {
      throw new Fault("at least one item has to be provided");
    }
  }

  override attribute(name: string): Value | undefined {
    switch (name) {
      case "current":
        return this.items[this.#at];
      case "items":
        return [...this.items];
      case "pos":
        return BigInt(this.#at);
      case "next":
        return new Callable("next", () => {
          const item = this.items[this.#at];
          this.#at = (this.#at + 1) % this.items.length;
          return item;
        });
      case "reset":
        return new Callable("reset", () => {
          this.#at = 0;
          return null;
        });
    }
  }
}

function joiner(_run: Run, separator: Value): Value {
  let used = false;
  return new Callable("joiner", () => {
    if (used) return separator;
    used = true;
    return "";
  }, "Joiner");
}

const FUNCTIONS: Readonly<Record<string, Builtin>> = {
  cycler: (_, args) => new Cycler(args),
  dict,
  joiner: builtin("joiner(sep=', ')", joiner),
  namespace: (run, args, named) => new Namespace(dict(run, args, named)),
  raise_exception: builtin("raise_exception(message)", (run, message) => {
    throw new Fault(str(run, message));
  }),
  range,
  strftime_now: builtin(
    "strftime_now(format)",
    (run, format) => formatTime(run.options.now ?? new Date(), asText(format)),
  ),
};

/** The functions by name. */
export const GLOBALS: ReadonlyMap<string, Value> = new Map(
  Object.entries(FUNCTIONS).map((
    [name, call],
  ) => [name, new Callable(name, call)]),
);
