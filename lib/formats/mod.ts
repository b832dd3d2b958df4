/**
 * The list of weight formats. To add one, write its file in this folder and list it
 * here.
 *
 * @module
 */
import { bf16 } from "./bf16.ts";
import { f16 } from "./f16.ts";
import { f32 } from "./f32.ts";
import type { Format } from "./format.ts";

/** All formats. */
export const FORMATS: readonly Format[] = [bf16, f16, f32];

/**
 * Finds a format by name.
 *
 * @throws {Error} if there is none
 */
export function formatNamed(name: string): Format {
  const found = FORMATS.find((format) => format.name === name);
  if (found) return found;
  throw new Error(
    `Cannot read ${name} as weights: it must be one of ${formatNames()}`,
  );
}

/** The names of all formats, for messages. */
export const formatNames = (): string =>
  FORMATS.map(({ name }) => name).join(", ");
