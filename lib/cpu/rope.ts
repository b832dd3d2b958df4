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

  /** The cosines of a position, then its sines; valid until others are asked for. */
  angles(position: number): Float32Array {
    const size = 2 * this.#frequencies.inverse.length;
    const begin = position * size;
    if (begin >= this.#table.length) this.#grow(position + 1);
    return this.#table.subarray(begin, begin + size);
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
