/**
 * Text for people: lines of limited width, and suggestions for misspelled names.
 *
 * @module
 */

/** The most columns of a line. */
export const WIDTH = 100;

/**
 * Breaks `text` into lines of at most `width` characters. The first line starts with
 * `first`, the others with `rest`; a word longer than a line is shortened in the middle.
 */
export function wrap(
  text: string,
  width: number,
  first: string,
  rest: string,
): string[] {
  const lines = [first];
  const room = width - Math.max(first.length, rest.length);
  for (const word of text.split(" ").map((word) => shortened(word, room))) {
    const line = lines.at(-1)!;
    const begins = line === first || line === rest;
    if (!begins && line.length + 1 + word.length > width) {
      lines.push(rest + word);
    } else lines[lines.length - 1] += begins ? word : ` ${word}`;
  }
  return lines;
}

/** Cuts out the middle of a word of more than `most` characters. */
export function shortened(word: string, most: number): string {
  if (word.length <= most) return word;
  const tail = Math.floor((most - 1) / 2);
  return `${word.slice(0, most - 1 - tail)}…${word.slice(-tail)}`;
}

/**
 * What to try instead of an unknown name: `try gemm or --help`, or only `try --help` if no
 * known name is close.
 */
export function tryInstead(
  name: string,
  known: readonly string[],
  help: string,
): string {
  const close = nearest(name, known);
  return close === undefined ? `try ${help}` : `try ${close} or ${help}`;
}

/**
 * The known name that takes the fewest edits, at most one for every three characters, or
 * else one of which `name` is the beginning.
 */
export function nearest(
  name: string,
  known: readonly string[],
): string | undefined {
  let best: string | undefined;
  let least = Math.floor(name.length / 3) + 1;
  for (const candidate of known) {
    // As many edits at least as the lengths differ by: the name may be anybody's, and long.
    if (Math.abs(name.length - candidate.length) >= least) continue;
    const count = edits(name.toLowerCase(), candidate.toLowerCase());
    if (count < least) [best, least] = [candidate, count];
  }
  return best ??
    known.find((candidate) => name.length >= 3 && candidate.startsWith(name));
}

/** Characters to insert, delete, replace or swap with their neighbor to get from a to b. */
function edits(a: string, b: string): number {
  let before: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      row[j] = Math.min(
        last[j] + 1,
        row[j - 1] + 1,
        last[j - 1] + (same ? 0 : 1),
      );
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        row[j] = Math.min(row[j], before[j - 2] + 1);
      }
    }
    [before, last] = [last, row];
  }
  return last[b.length];
}
