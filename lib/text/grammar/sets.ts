/**
 * Sets of Unicode code points, as ranges.
 *
 * @module
 */

/** Ranges of code points, ascending, apart from each other, both ends included. */
export type Ranges = readonly (readonly [low: number, high: number])[];

/** The largest code point. */
export const LAST = 0x10ffff;
/** Every code point; surrogates are none. */
export const EVERY: Ranges = [[0, 0xd7ff], [0xe000, LAST]];

/** Sorts ranges and joins those that touch. */
export function union(ranges: Iterable<readonly [number, number]>): Ranges {
  const sorted = [...ranges].sort((a, b) => a[0] - b[0]);
  const joined: [number, number][] = [];
  for (const [low, high] of sorted) {
    const last = joined.at(-1);
    if (last && low <= last[1] + 1) last[1] = Math.max(last[1], high);
    else joined.push([low, high]);
  }
  return joined;
}

/** The code points that are in both. */
export function intersection(a: Ranges, b: Ranges): Ranges {
  const both: [number, number][] = [];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    const low = Math.max(a[i][0], b[j][0]), high = Math.min(a[i][1], b[j][1]);
    if (low <= high) both.push([low, high]);
    if (a[i][1] < b[j][1]) i++;
    else j++;
  }
  return both;
}

/** The code points that are not in `ranges`. */
export function complement(ranges: Ranges): Ranges {
  const gaps: [number, number][] = [];
  let from = 0;
  for (const [low, high] of ranges) {
    if (low > from) gaps.push([from, low - 1]);
    from = high + 1;
  }
  if (from <= LAST) gaps.push([from, LAST]);
  return intersection(gaps, EVERY);
}
