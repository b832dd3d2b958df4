/**
 * Wraps text as Python's textwrap does.
 *
 * @module
 */
import { Fault } from "./meter.ts";
import { lengthOf, strip, substring } from "./unicode.ts";

const SPACE = "[\\t\\n\\v\\f\\r ]";
const LETTER = "[\\p{L}\\p{M}_]";
const WORD = "[\\p{L}\\p{M}\\p{N}_!\"'&.,?]";
// Spaces; dashes between words; words up to a hyphen or dash.
const CHUNKS = new RegExp(
  `(${SPACE}+|(?<=${WORD})-{2,}(?=[\\p{L}\\p{M}\\p{N}_])|[^\\t\\n\\v\\f\\r ]+?(?:` +
    `-(?:(?<=${LETTER}{2}-)|(?<=${LETTER}-${LETTER}-))(?=${LETTER}-?${LETTER})` +
    `|(?=${SPACE}|$)|(?<=${WORD})(?=-{2,}[\\p{L}\\p{M}\\p{N}_])))`,
  "u",
);
const WORDS = new RegExp(`(${SPACE}+)`);

/** Lines of at most `width` characters. */
export function wrap(
  text: string,
  width: number,
  breakLong: boolean,
  breakHyphens: boolean,
): string[] {
  if (width <= 0) {
    throw new Fault(`wordwrap() has a width of ${width}, must be at least 1`);
  }
  const chunks = text.split(breakHyphens ? CHUNKS : WORDS).filter(Boolean)
    .reverse();
  const lines: string[] = [];
  const isBlank = (chunk: string) => strip(chunk, null, true, true) === "";
  while (chunks.length > 0) {
    if (isBlank(chunks.at(-1)!) && lines.length > 0) chunks.pop();
    const line: string[] = [];
    let length = 0;
    while (chunks.length > 0) {
      const size = lengthOf(chunks.at(-1)!);
      if (length + size > width) break;
      line.push(chunks.pop()!);
      length += size;
    }
    if (chunks.length > 0 && lengthOf(chunks.at(-1)!) > width) {
      breakChunk(chunks, line, width - length, breakLong, breakHyphens);
    }
    if (line.length > 0 && isBlank(line.at(-1)!)) line.pop();
    if (line.length > 0) lines.push(line.join(""));
  }
  return lines;
}

/** Breaks a word that is longer than a line. */
function breakChunk(
  chunks: string[],
  line: string[],
  room: number,
  breakLong: boolean,
  breakHyphens: boolean,
): void {
  const chunk = chunks.at(-1)!;
  if (!breakLong) {
    if (line.length === 0) line.push(chunks.pop()!);
    return;
  }
  let end = room;
  if (breakHyphens && lengthOf(chunk) > end) {
    const head = substring(chunk, 0, end);
    const hyphen = head.lastIndexOf("-");
    if (hyphen > 0 && /[^-]/.test(head.slice(0, hyphen))) {
      end = lengthOf(head.slice(0, hyphen + 1));
    }
  }
  line.push(substring(chunk, 0, end));
  chunks[chunks.length - 1] = substring(chunk, end, lengthOf(chunk));
}
