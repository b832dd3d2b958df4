/**
 * The options of an engine.
 *
 * @module
 */
import { wrongOption } from "../errors.ts";
import type { RowsSize } from "../model/rows.ts";
import { givenOptions } from "../text/options.ts";

/** Options of {@linkcode Qwen3.engine}. */
export interface EngineOptions {
  /** The most requests that run at a time, from 1 to 64; others wait. 8 by default. */
  slots?: number;
  /** The most tokens of a prompt with its reply; the model's context by default. */
  context?: number;
  /**
   * Tokens whose keys and values are kept, over all requests that run and that ended. By
   * default `slots` times `context`, or less if that takes much memory.
   */
  cacheTokens?: number;
}

/** A token to read and one to write. */
const LEAST_CONTEXT = 2;
/** The most slots: passes of more rows were not measured. */
const MOST_SLOTS = 64;

/**
 * Checks the options of an engine for a model with a context of `most` tokens.
 *
 * @throws {OptionError} if one is unknown or has a wrong value.
 */
export function checkEngine(options: EngineOptions, most: number): RowsSize {
  const cannot = "Cannot start an engine";
  const kinds = {
    slots: "number",
    context: "number",
    cacheTokens: "number",
  } as const;
  const { slots = 8, context = most, cacheTokens } = givenOptions(
    cannot,
    options,
    kinds,
  );
  const require = (name: string, value: number, low: number, high: number) => {
    if (Number.isInteger(value) && value >= low && value <= high) return;
    const range = high === Infinity
      ? `of at least ${low}`
      : `from ${low} to ${high}`;
    throw wrongOption(cannot, name, value, `an integer ${range}`);
  };
  require("slots", slots, 1, MOST_SLOTS);
  if (most < LEAST_CONTEXT) {
    throw wrongOption(cannot, "context", most, `at least ${LEAST_CONTEXT}`);
  }
  require("context", context, LEAST_CONTEXT, most);
  if (cacheTokens !== undefined) {
    require("cacheTokens", cacheTokens, context, Infinity);
  }
  return { slots, context, positions: cacheTokens };
}
