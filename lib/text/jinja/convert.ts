/**
 * Converts JavaScript's values to Python's.
 *
 * @module
 */
import { Fault } from "./meter.ts";
import { Dict, type Run, type Value } from "./values.ts";

/** The largest integer that JavaScript writes without an exponent. */
const LARGEST = 1e21;

class Converter {
  readonly #done = new Map<object, Value>();

  constructor(readonly run: Run) {}

  /** Returns undefined for undefined, which means absent. */
  convert(value: unknown, path: string): Value | undefined {
    switch (typeof value) {
      case "undefined":
      case "string":
      case "boolean":
      case "bigint":
        return value;
      case "number":
        return Number.isInteger(value) && Math.abs(value) < LARGEST
          ? BigInt(value)
          : value;
      case "object":
        if (value === null) return null;
        // A float, even if it is whole.
        if (value instanceof Number) return value.valueOf();
        return this.#object(value, path);
      default:
        throw new Fault(
          `the variable ${path} is a ${typeof value}, must be a string, number, ` +
            "boolean, null, array, Map or object",
        );
    }
  }

  #object(value: object, path: string): Value {
    const done = this.#done.get(value);
    if (done !== undefined) return done;
    this.run.enter();
    const result = this.#container(value, path);
    this.run.leave();
    return result;
  }

  #container(value: object, path: string): Value {
    if (
      !Array.isArray(value) && !(value instanceof Map) &&
      Symbol.iterator in value
    ) {
      value = [...value as Iterable<unknown>];
    }
    if (Array.isArray(value)) {
      const list: Value[] = [];
      this.#done.set(value, list);
      for (let i = 0; i < value.length; i++) {
        list.push(this.convert(value[i], `${path}[${i}]`) ?? null);
      }
      return list;
    }
    if ("toJSON" in value && typeof value.toJSON === "function") {
      return this.convert(value.toJSON(), path) ?? null;
    }
    const dict = new Dict([], this.run);
    this.#done.set(value, dict);
    const entries = value instanceof Map ? value : Object.entries(value);
    for (const [key, item] of entries) {
      const name = this.convert(key, `a key of ${path}`);
      const found = this.convert(item, `${path}.${String(key)}`);
      if (name !== undefined && found !== undefined) {
        dict.set(name, found, this.run);
      }
    }
    return dict;
  }
}

/** Converts variables; what is undefined is left out, as in JSON. */
export function convertVariables(
  variables: Readonly<Record<string, unknown>>,
  run: Run,
): Map<string, Value> {
  const converter = new Converter(run);
  const result = new Map<string, Value>();
  for (const [name, value] of Object.entries(variables)) {
    const converted = converter.convert(value, name);
    if (converted !== undefined) result.set(name, converted);
  }
  return result;
}
