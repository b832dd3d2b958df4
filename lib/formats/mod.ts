/**
 * The list of stored types. A new one is a file in this folder and a line here.
 *
 * @module
 */
import { bf16 } from "./bf16.ts";
import { f16 } from "./f16.ts";
import { f32 } from "./f32.ts";
import type { Format } from "./format.ts";

/** All formats. */
export const FORMATS: readonly Format[] = [bf16, f16, f32];

/** A format by its name. @throws {Error} if there is none */
export function formatNamed(name: string): Format {
  const found = FORMATS.find((format) => format.name === name);
  if (found) return found;
  throw new Error(
    `Cannot read ${name} as weights: it must be one of ${formatNames()}`,
  );
}

/** All names, for messages. */
export const formatNames = (): string =>
  FORMATS.map(({ name }) => name).join(", ");
