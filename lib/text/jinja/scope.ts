/**
 * The names that a template has set.
 *
 * @module
 */
import type { Value } from "./values.ts";

/** Names of one block, iteration or macro call, and those around them. */
export class Scope {
  #names?: Map<string, Value>;

  constructor(readonly outer?: Scope) {}

  /** Returns what a name stands for here. */
  get(name: string): Value | undefined {
    const value = this.#names?.get(name);
    return value !== undefined ? value : this.outer?.get(name);
  }

  /** Sets a name in this scope only. */
  set(name: string, value: Value): void {
    this.#names ??= new Map();
    this.#names.set(name, value);
  }
}
