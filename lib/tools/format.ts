/**
 * Numbers and lines of text as the tools print them.
 *
 * @module
 */

/** Up to three significant digits; integers from 100 up. */
export function significant(value: number): string {
  if (value >= 100) return Math.round(value).toLocaleString("en-US");
  return value >= 10 ? value.toFixed(1) : value.toPrecision(2);
}

/** `71 %`; only exactly 0 and 1 print as 0 % and 100 %. */
export function percent(share: number): string {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  if (value < 100 && value > 99.9) return "> 99.9 %";
  const digits = value > 0 && value < 2 || value > 99 && value < 100 ? 1 : 0;
  return `${value.toFixed(digits)} %`;
}

/** `4.50 TB/s` or `310 GB/s`. */
export function bandwidth(gbps: number): string {
  return gbps >= 1000
    ? `${(gbps / 1000).toFixed(2)} TB/s`
    : `${significant(gbps)} GB/s`;
}

/** `38.4 TFLOP/s` or `9.1 GFLOP/s`. */
export function arithmetic(tflops: number): string {
  return tflops >= 1
    ? `${significant(tflops)} TFLOP/s`
    : `${significant(tflops * 1000)} GFLOP/s`;
}

/** `12.0 s`, `1.2 ms` or `35.0 µs`. */
export function milliseconds(ms: number): string {
  if (ms < 1) return `${significant(ms * 1000)} µs`;
  return ms < 10_000 ? `${significant(ms)} ms` : `${significant(ms / 1000)} s`;
}

/** `1.5 G`: a count with its SI prefix. */
export function prefixed(value: number): string {
  const power = Math.min(4, Math.max(0, Math.floor(Math.log10(value) / 3)));
  return `${significant(value / 1000 ** power)} ${" kMGT"[power]}`.trimEnd();
}

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
function shortened(word: string, most: number): string {
  if (word.length <= most) return word;
  const tail = Math.floor((most - 1) / 2);
  return `${word.slice(0, most - 1 - tail)}…${word.slice(-tail)}`;
}
