/**
 * Rotates query and key heads by their position, with a table of angles.
 *
 * @module
 */
import type { Qwen3Config } from "../checkpoint/config.ts";
import {
  fillAngles,
  type RopeFrequencies,
  ropeFrequencies,
} from "../model/rope.ts";

/** Cosines and sines of positions, computed when they are first needed. */
export class RopeTable {
  readonly #frequencies: RopeFrequencies;
  /** Per position, `headDim / 2` cosines followed by `headDim / 2` sines. */
  #table = new Float32Array(0);

  constructor(config: Qwen3Config) {
    this.#frequencies = ropeFrequencies(config);
  }

  get byteLength(): number {
    return this.#table.byteLength;
  }

  /** Rotates `x[at .. at + headDim]` in place: element i pairs with i + headDim / 2. */
  rotate(x: Float32Array, at: number, position: number): void {
    const half = this.#frequencies.inverse.length;
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
    const headDim = 2 * this.#frequencies.inverse.length;
    const known = this.#table.length / headDim;
    const table = new Float32Array(
      headDim * Math.max(positions, 2 * known, 64),
    );
    table.set(this.#table);
    fillAngles(this.#frequencies, table, known);
    this.#table = table;
  }
}
