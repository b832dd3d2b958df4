/**
 * What was made last, by a key.
 *
 * @module
 */

/** How many are kept. */
const MOST = 32;

/** Values that are made once, as long as they are asked for often. */
export class Recent<V> {
  readonly #known = new Map<string, V>();

  /** The value of a key, which `make` makes if it is not known. */
  of(key: string, make: () => V): V {
    const value = this.#known.get(key) ?? make();
    this.#known.delete(key); // the last one goes last
    this.#known.set(key, value);
    for (const oldest of this.#known.keys()) {
      if (this.#known.size > MOST) this.#known.delete(oldest);
    }
    return value;
  }
}
