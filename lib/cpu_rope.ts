/**
 * Rotation of query and key heads by their position, from a table of angles.
 *
 * @module
 */
import type { Qwen3Config } from "./config.ts";
import { ropeFrequencies } from "./rope.ts";

/** Cosines and sines of the positions asked for so far. */
export class RopeTable {
  readonly #inverse: Float32Array;
  readonly #scale: number;
  /** Per position, `headDim / 2` cosines, then as many sines. */
  #table = new Float32Array(0);

  constructor(config: Qwen3Config) {
    ({ inverse: this.#inverse, scale: this.#scale } = ropeFrequencies(config));
  }

  /** Rotates `x[at .. at + headDim]` in place: element i pairs with i + headDim / 2. */
  rotate(x: Float32Array, at: number, position: number): void {
    const half = this.#inverse.length;
    const begin = position * 2 * half;
    if (begin >= this.#table.length) this.#grow(position + 1);
    const table = this.#table;
    for (let i = 0; i < half; i++) {
      const cos = table[begin + i], sin = table[begin + half + i];
      const a = x[at + i], b = x[at + half + i];
      x[at + i] = a * cos - b * sin;
      x[at + half + i] = b * cos + a * sin;
    }
  }

  #grow(positions: number): void {
    const half = this.#inverse.length;
    const known = this.#table.length / (2 * half);
    const table = new Float32Array(
      2 * half * Math.max(positions, 2 * known, 64),
    );
    table.set(this.#table);
    for (let p = known; p < table.length / (2 * half); p++) {
      for (let i = 0; i < half; i++) {
        const angle = Math.fround(p * this.#inverse[i]); // an f32, as in transformers
        table[p * 2 * half + i] = Math.cos(angle) * this.#scale;
        table[p * 2 * half + half + i] = Math.sin(angle) * this.#scale;
      }
    }
    this.#table = table;
  }
}
