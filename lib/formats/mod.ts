/**
 * The list of weight formats. To add one, write its file in this folder and list it
 * here.
 *
 * @module
 */
import { bf16 } from "./bf16.ts";
import { f16 } from "./f16.ts";
import { q4_0, q4_1, q5_0, q5_1, q8_0 } from "./blocks_of_32.ts";
import { f32 } from "./f32.ts";
import type { Format } from "./format.ts";
import { q2_k, q3_k, q4_k, q5_k, q6_k } from "./k_quants.ts";
import { iq4_nl, iq4_xs, mxfp4 } from "./lookup.ts";

/** All formats. */
export const FORMATS: readonly Format[] = [
  ...[bf16, f16, f32],
  ...[q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, q3_k, q2_k],
  ...[iq4_xs, iq4_nl, mxfp4],
];

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
