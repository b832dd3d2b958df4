/**
 * The variable `loop` of a for loop.
 *
 * @module
 */
import { Fault } from "./meter.ts";
import { equal } from "./operators.ts";
import {
  type Builtin,
  Callable,
  iteratorOf,
  type Run,
  sizeOf,
  Thing,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";

/** A loop in progress, which looks ahead only when asked to. */
export class Loop extends Thing {
  readonly type = "LoopContext";
  #items: Iterator<Value>;
  #length: number | undefined;
  #index = -1;
  #before?: Value;
  #current?: Value;
  /** The next item, if it was looked at; null after the last. */
  #after?: { item: Value } | null;
  #changed?: Value[];

  constructor(
    readonly run: Run,
    source: Value,
    filtered: ((items: Iterator<Value>) => Iterator<Value>) | undefined,
    readonly depth: number,
    /** Renders the loop for other items, if it is recursive. */
    readonly recurse: ((items: Value) => string) | undefined,
  ) {
    super();
    const items = iteratorOf(run, source);
    if (!items) throw new Fault(`'${typeName(source)}' object is not iterable`);
    this.#items = filtered ? filtered(items) : items;
    this.#length = filtered ? undefined : sizeOf(source);
  }

  /** Goes to the next item. */
  next(): { item: Value } | null {
    const next = this.#peek();
    if (next) {
      this.#after = undefined;
      this.#index++;
      this.#before = this.#current;
      this.#current = next.item;
    }
    return next;
  }

  #peek(): { item: Value } | null {
    if (this.#after === undefined) {
      const { done, value } = this.#items.next();
      this.#after = done ? null : { item: value };
    }
    return this.#after;
  }

  override get size(): number {
    if (this.#length === undefined) {
      const rest: Value[] = [];
      for (;;) {
        const { done, value } = this.#items.next();
        if (done) break;
        this.run.items(1);
        rest.push(value);
      }
      this.#length = this.#index + 1 + (this.#after ? 1 : 0) + rest.length;
      this.#items = rest.values();
    }
    return this.#length;
  }

  readonly #attributes: Readonly<Record<string, () => Value>> = {
    index: () => BigInt(this.#index + 1),
    index0: () => BigInt(this.#index),
    revindex: () => BigInt(this.size - this.#index),
    revindex0: () => BigInt(this.size - this.#index - 1),
    first: () => this.#index === 0,
    last: () => this.#peek() === null,
    length: () => BigInt(this.size),
    depth: () => BigInt(this.depth + 1),
    depth0: () => BigInt(this.depth),
    previtem: () =>
      this.#index > 0
        ? this.#before!
        : new Undefined("there is no previous item"),
    nextitem: () => {
      const next = this.#peek();
      return next ? next.item : new Undefined("there is no next item");
    },
    cycle: () => new Callable("cycle", (_, args) => this.#cycle(args)),
    changed: () =>
      new Callable("changed", (run, args) => {
        const last = this.#changed;
        this.#changed = args;
        return !last || !equal(run, new Tuple(last), new Tuple(args));
      }),
  };

  #cycle(args: Value[]): Value {
    if (args.length === 0) throw new Fault("no items for cycling given");
    return args[this.#index % args.length];
  }

  override attribute(name: string): Value | undefined {
    return Object.hasOwn(this.#attributes, name)
      ? this.#attributes[name]()
      : undefined;
  }

  override get call(): Builtin {
    return (_, [items]) => {
      if (!this.recurse) {
        throw new Fault(
          "The loop must have the 'recursive' marker to be called recursively.",
        );
      }
      if (items === undefined) throw new Fault("loop() lacks the items");
      return this.recurse(items);
    };
  }
}
