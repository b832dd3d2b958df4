/**
 * Which sizes the text of a kernel states, and which it reads from memory.
 *
 * @module
 */
import type { Choice } from "./choice.ts";

/** The choice for decode steps, and whether their sizes are literals. */
export function chooseLiterals(
  { software }: { software: boolean },
): Choice & { literal: boolean } {
  const what = "sizes in the kernels of decode steps";
  return software
    ? {
      what,
      value: "read from memory",
      reason: "a software renderer takes a second to compile each text",
      literal: false,
    }
    : {
      what,
      value: "literals",
      reason: 'each kernel waits for sizes that it reads ("Sizes as literals")',
      literal: true,
    };
}

/**
 * Which sizes and uniforms of a pass are literals, if any: those of a decode step that are the
 * same in every cache of the model. The pages of a cache grow, and the context of several
 * sequences fits their texts. A pass that reads a single token begins at any sequence, and
 * shares the texts of decode steps.
 */
export function literalsOf(
  { tokens, sequences, paged }: Readonly<
    { tokens: number; sequences: number; paged: boolean }
  >,
  device: { software: boolean },
): ((name: string) => boolean) | undefined {
  if (tokens > 1 || !chooseLiterals(device).literal) return undefined;
  if (sequences === 1 && !paged) return () => true;
  const size = paged ? "sequences" : "context";
  return (name) => name !== size && name !== "firstSequence";
}
