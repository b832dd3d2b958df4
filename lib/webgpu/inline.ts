/**
 * Writes out calls that only index a buffer.
 *
 * @module
 */

/** A function that returns one element of an array. */
const INDEXING = /^fn (\w+)\(at: u32\) -> \w+ \{ return (\w+)\[at\]; \}$/;

/**
 * Replaces `x_load(i)` by `x[i]` wherever `x_load` is declared as just that. Compilers
 * inline such functions too, but NVIDIA's schedules loads that were calls worse: 16 rows
 * decoded 17 % slower (bench/log.md, "Loads behind a function: gemvRows 17 % slower").
 *
 * ```ts
 * import { inlineLoads } from "./inline.ts";
 *
 * const load = "fn w_load(at: u32) -> vec4u { return w[at]; }";
 * const twice = "fn two(at: u32) -> vec4u { return w_load(2u * at); }";
 * console.assert(inlineLoads([load, twice])[1] ===
 *   "fn two(at: u32) -> vec4u { return w[2u * at]; }");
 * ```
 */
export function inlineLoads(texts: readonly string[]): string[] {
  const arrays = new Map<string, string>();
  for (const text of texts) {
    const [, name, array] = INDEXING.exec(text) ?? [];
    if (name) arrays.set(name, array);
  }
  return texts.map((text) => {
    if (INDEXING.test(text)) return text;
    for (const [name, array] of arrays) text = replaceCalls(text, name, array);
    return text;
  });
}

function replaceCalls(text: string, name: string, array: string): string {
  const call = new RegExp(`\\b${name}\\(`, "g");
  let out = "", from = 0;
  for (let found; (found = call.exec(text)) !== null;) {
    const begin = found.index + found[0].length;
    let end = begin;
    for (let depth = 1; depth > 0; end++) {
      if (text[end] === "(") depth++;
      else if (text[end] === ")") depth--;
      else if (text[end] === undefined) {
        throw new Error(`Cannot inline ${name}: a call of it is not closed`);
      }
    }
    const index = replaceCalls(text.slice(begin, end - 1), name, array);
    out += `${text.slice(from, found.index)}${array}[${index}]`;
    from = call.lastIndex = end;
  }
  return out + text.slice(from);
}
