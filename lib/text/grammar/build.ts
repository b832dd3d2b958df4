/**
 * Builds the grammar of the JSON texts that are valid under a schema: compact, with properties
 * in the schema's order.
 *
 * @module
 */
import { literal, literals, type Part } from "./automaton.ts";
import { Alternatives, keyOf } from "./alternatives.ts";
import { SchemaError } from "./error.ts";
import { Schema } from "./schema.ts";
import {
  type ArrayShape,
  type ObjectShape,
  type Shape,
  shapeOf,
  type Sites,
} from "./shapes.ts";

/** The most different values of a schema. */
const MOST_VALUES = 5000;

/** A value's shapes, and whether a text is valid under one of them. */
interface Value {
  readonly sites: Sites;
  readonly shapes: readonly Shape[];
  possible: boolean;
  part?: Part;
}

/**
 * The grammar of a schema.
 *
 * @throws {SchemaError} if it is wrong, asks for what cannot be guaranteed, or no value is
 * valid under it.
 */
export function buildGrammar(schema: unknown): Part {
  return new Builder(schema).root;
}

class Builder {
  readonly #values = new Map<string, Value>();
  readonly root: Part;

  constructor(given: unknown) {
    const schema = new Schema(given), root = [schema.root];
    this.#find(root, new Alternatives(schema));
    this.#decide();
    if (!this.#value(root).possible) {
      throw this.#tooFewNames() ??
        new SchemaError("#", "", "allows no value that can be written");
    }
    this.root = this.#part(root);
  }

  #value(sites: Sites): Value {
    return this.#values.get(keyOf(sites))!;
  }

  /** Finds the values inside values. */
  #find(root: Sites, all: Alternatives): void {
    const work: Sites[] = [root];
    for (let sites = work.pop(); sites; sites = work.pop()) {
      const key = keyOf(sites);
      if (this.#values.has(key)) continue;
      if (this.#values.size >= MOST_VALUES) {
        throw new SchemaError(
          "#",
          "",
          `has more than ${MOST_VALUES} different values`,
        );
      }
      const shapes = all.of(sites).map((one) => shapeOf(one, all));
      this.#values.set(key, { sites, shapes, possible: false });
      for (const { object, array } of shapes) {
        for (const { value } of object?.named ?? []) work.push(value);
        for (const { value } of object?.others ?? []) work.push(value);
        for (const item of array?.first ?? []) work.push(item);
        if (array) work.push(array.rest);
      }
    }
  }

  /** Decides which values are possible: those that are made of possible ones. */
  #decide(): void {
    for (let changed = true; changed;) {
      changed = false;
      for (const value of this.#values.values()) {
        if (value.possible) continue;
        value.possible = value.shapes.some((shape) => this.#isPossible(shape));
        changed ||= value.possible;
      }
    }
  }

  #isPossible({ texts, terminals, object, array }: Shape): boolean {
    return texts.length > 0 || terminals.length > 0 ||
      (object !== undefined && this.#properties(object) !== undefined) ||
      (array !== undefined && this.#longest(array) >= array.min);
  }

  /** How many items an array can have. */
  #longest({ first, rest, max }: ArrayShape): number {
    const at = first.findIndex((item) => !this.#value(item).possible);
    const most = at >= 0
      ? at
      : this.#value(rest).possible
      ? Infinity
      : first.length;
    return Math.min(most, max);
  }

  /** An object's possible properties; undefined if those that it must have are not. */
  #properties(
    { named, others, min, max }: ObjectShape,
  ): Pick<ObjectShape, "named" | "others"> | undefined {
    const own = named.filter(({ required, value }) =>
      required || this.#value(value).possible
    );
    const more = others.filter(({ value }) => this.#value(value).possible);
    const needed = own.filter(({ required }) => required);
    // Further keys count once, because the next one may be the same again.
    const most = own.length + Math.min(1, more.length);
    const possible = needed.every(({ value }) => this.#value(value).possible) &&
      needed.length <= max && min <= Math.min(most, max);
    return possible ? { named: own, others: more } : undefined;
  }

  /** The error if an object would need further keys, which may be the same. */
  #tooFewNames(): SchemaError | undefined {
    for (const { sites, shapes } of this.#values.values()) {
      for (const { object } of shapes) {
        if (!object || this.#properties(object)) continue;
        const { named, others, min, max } = object;
        if (others.length === 0 || min > max) continue;
        const most = named.length + 1;
        if (min <= most) continue;
        const { path } = sites.find(({ schema }) =>
          typeof schema === "object" && "minProperties" in schema
        ) ?? sites[0];
        const why =
          `is ${min}, must be at most ${most}: keys that properties does not name may be the same`;
        return new SchemaError(path, "minProperties", why);
      }
    }
  }

  #part(sites: Sites): Part {
    const value = this.#value(sites);
    // Asked for only when it is reached, since it may contain itself.
    return value.part ??= once(() => ({
      choice: value.shapes.flatMap((shape) => this.#ways(shape)),
    }));
  }

  #ways({ texts, terminals, object, array }: Shape): Part[] {
    const ways: Part[] = [...terminals];
    if (texts.length > 0) ways.push(literals(texts));
    const properties = object && this.#properties(object);
    if (properties) {
      ways.push(this.#object({ ...object, ...properties }));
    }
    if (array && this.#longest(array) >= array.min) {
      ways.push(this.#array(array));
    }
    return ways;
  }

  #array(shape: ArrayShape): Part {
    const { first, rest, min } = shape, max = this.#longest(shape);
    // From here on, the number of items does not matter.
    const settled = max < Infinity ? max : Math.max(first.length, min, 1);
    const after = memo((items: number): Part => {
      const ways: Part[] = items >= min ? [CLOSE_ARRAY] : [];
      if (items < max) {
        const item = this.#part(items < first.length ? first[items] : rest);
        const next = after(Math.min(items + 1, settled));
        ways.push({
          sequence: items === 0 ? [item, next] : [COMMA, item, next],
        });
      }
      return { choice: ways };
    });
    return { sequence: [OPEN_ARRAY, after(0)] };
  }

  #object(shape: ObjectShape): Part {
    const { named, others, min, max } = shape;
    const counts = min > 0 || max < Infinity;
    /** How many must still be written, by the number that are decided. */
    const required = [0];
    for (const one of named.toReversed()) {
      required.unshift(required[0] + (one.required ? 1 : 0));
    }
    /** With `at` properties decided and `count` of them written. */
    const members = memo((at: number, count: number): Part => {
      const ways: Part[] = [];
      for (let next = at; next < named.length; next++) {
        const one = named[next];
        if (fits(next + 1, count + 1)) {
          const key = (count > 0 ? "," : "") + JSON.stringify(one.name) + ":";
          const rest = members(next + 1, counts ? count + 1 : 1);
          ways.push({ sequence: [literal(key), this.#part(one.value), rest] });
        }
        if (one.required) return { choice: ways };
      }
      if (fits(named.length, count)) ways.push(further(count, 0));
      return { choice: ways };
    });
    /** Whether the object can be completed. */
    const fits = (at: number, count: number) =>
      count + required[at] <= max &&
      count + named.length - at + Math.min(1, others.length) >= min;
    /** With `count` properties written that have a name, and `more` others. */
    const further = memo((count: number, more: number): Part => {
      const ways: Part[] = count + Math.min(1, more) >= min
        ? [CLOSE_OBJECT]
        : [];
      if (count + more < max) {
        const rest = further(count, max < Infinity ? more + 1 : 1);
        for (const { key, value } of others) {
          const comma = count + more > 0 ? [COMMA] : [];
          ways.push({
            sequence: [...comma, key, COLON, this.#part(value), rest],
          });
        }
      }
      return { choice: ways };
    });
    return { sequence: [OPEN_OBJECT, members(0, 0)] };
  }
}

const OPEN_ARRAY = literal("["), CLOSE_ARRAY = literal("]");
const OPEN_OBJECT = literal("{"), CLOSE_OBJECT = literal("}");
const COMMA = literal(","), COLON = literal(":");

/** A part that is made when it is reached, once. */
function once(make: () => Part): Part {
  let part: Part | undefined;
  return () => part ??= make();
}

/** A family of parts, each made once, when it is reached. */
function memo(
  make: (a: number, b: number) => Part,
): (a: number, b?: number) => Part {
  const made = new Map<string, Part>();
  return (a, b = 0) => {
    const key = `${a},${b}`;
    let part = made.get(key);
    if (!part) made.set(key, part = once(() => make(a, b)));
    return part;
  };
}
