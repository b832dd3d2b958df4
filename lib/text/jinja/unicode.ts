/**
 * Strings as Python sees them: sequences of code points, with Python's classes of characters.
 *
 * @module
 */

/** What str.isspace, str.split and str.strip treat as white space. */
const SPACE =
  "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const ONE_SPACE = new RegExp(`^[${SPACE}]$`);
/** Runs of white space; sticky and global uses copy it. */
export const SPACES = new RegExp(`[${SPACE}]+`);
// deno-lint-ignore no-control-regex
const LINE_END = /\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/g;

const SURROGATE = /[\ud800-\udfff]/;

// Where the code points of the last long string begin: templates index the same string
// again and again.
let lastText = "", lastOffsets: Uint32Array | undefined;

/** Whether the code points of a string are known. */
export function isIndexed(text: string): boolean {
  return text === lastText;
}

/** The offset of every code point and of the end; undefined if each is one unit. */
export function offsetsOf(text: string): Uint32Array | undefined {
  if (text === lastText) return lastOffsets;
  lastText = text;
  lastOffsets = undefined;
  if (!SURROGATE.test(text)) return undefined;
  const offsets = new Uint32Array(text.length + 1);
  let count = 0, at = 0;
  while (at < text.length) {
    offsets[count++] = at;
    at += text.codePointAt(at)! > 0xffff ? 2 : 1;
  }
  offsets[count] = text.length;
  lastOffsets = offsets.subarray(0, count + 1);
  return lastOffsets;
}

/** The number of code points. */
export function lengthOf(text: string): number {
  const offsets = offsetsOf(text);
  return offsets ? offsets.length - 1 : text.length;
}

/** Code points from `begin` to before `end`, both within the string. */
export function substring(text: string, begin: number, end: number): string {
  const offsets = offsetsOf(text);
  return offsets
    ? text.slice(offsets[begin], offsets[end])
    : text.slice(begin, end);
}

/** The index in code points of an index in units. */
export function pointIndex(text: string, unit: number): number {
  const offsets = offsetsOf(text);
  if (!offsets || unit < 0) return unit;
  let low = 0, high = offsets.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (offsets[middle] < unit) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The index in units of an index in code points. */
export function unitIndex(text: string, point: number): number {
  return offsetsOf(text)?.[point] ?? point;
}

/** Orders strings by code points; JavaScript's `<` orders them by units. */
export function compareText(a: string, b: string): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) {
    let x = a.charCodeAt(i), y = b.charCodeAt(i);
    if (x === y) continue;
    // Surrogates stand for code points above the rest of the units.
    if (x >= 0xd800 && y >= 0xd800) {
      x = x < 0xe000 ? x + 0x2000 : x - 0x800;
      y = y < 0xe000 ? y + 0x2000 : y - 0x800;
    }
    return x - y;
  }
  return a.length - b.length;
}

/** Whether one character is white space. */
function isSpace(char: string): boolean {
  return ONE_SPACE.test(char);
}

/** Strips characters in `chars` (default: white space) from the given ends. */
export function strip(
  text: string,
  chars: string | null,
  left: boolean,
  right: boolean,
): string {
  const set = chars === null ? undefined : new Set(chars);
  const strips = (char: string) => set ? set.has(char) : isSpace(char);
  let begin = 0, end = text.length;
  while (left && begin < end) {
    const char = String.fromCodePoint(text.codePointAt(begin)!);
    if (!strips(char)) break;
    begin += char.length;
  }
  while (right && end > begin) {
    const pair = end - begin > 1 && text.codePointAt(end - 2)! > 0xffff;
    const char = text.slice(pair ? end - 2 : end - 1, end);
    if (!strips(char)) break;
    end -= char.length;
  }
  return text.slice(begin, end);
}

/** Lines, as str.splitlines divides text. */
export function splitLines(text: string, keepEnds = false): string[] {
  const lines: string[] = [];
  let begin = 0;
  for (const match of text.matchAll(LINE_END)) {
    const end = match.index + match[0].length;
    lines.push(text.slice(begin, keepEnds ? end : match.index));
    begin = end;
  }
  if (begin < text.length) lines.push(text.slice(begin));
  return lines;
}

/** Words between white space; after `most` splits the rest stays whole. */
export function splitSpaces(text: string, most = Infinity): string[] {
  const words: string[] = [];
  const spaces = new RegExp(SPACES, "g");
  let at = text.length - strip(text, null, true, false).length;
  while (at < text.length) {
    if (words.length >= most) return [...words, text.slice(at)];
    spaces.lastIndex = at;
    const match = spaces.exec(text);
    words.push(text.slice(at, match?.index));
    at = match ? match.index + match[0].length : text.length;
  }
  return words;
}

// Characters whose title case is neither their upper case nor its first letter with the rest
// in lower case: the digraphs, Georgian, and Greek with an iota below or beside.
const TITLES = new Map<string, string>([["ŉ", "ʼN"]]);
for (const [upper, title, lower] of ["ǄǅǆǄ", "ǇǈǉǇ", "ǊǋǌǊ", "ǱǲǳǱ"]) {
  for (const char of [upper, title, lower]) TITLES.set(char, title);
}
for (let i = 0; i < 48; i++) {
  // ᾀ to ᾯ: rows of eight small letters and then their eight titles.
  const code = 0x1f80 + i;
  TITLES.set(String.fromCharCode(code), String.fromCharCode(code | 8));
}
for (
  const [char, ...title] of ["ᾲᾺͅ", "ᾳᾼ", "ᾴΆͅ", "ᾷᾼ͂", "ᾼᾼ", "ῂῊͅ", "ῃῌ", "ῄΉͅ"]
) {
  TITLES.set(char, title.join(""));
}
for (const [char, ...title] of ["ῇῌ͂", "ῌῌ", "ῲῺͅ", "ῳῼ", "ῴΏͅ", "ῷῼ͂", "ῼῼ"]) {
  TITLES.set(char, title.join(""));
}

/** One character in title case, as str.capitalize and str.title write it. */
function titleChar(char: string): string {
  const known = TITLES.get(char);
  if (known !== undefined) return known;
  if (/^[\u10d0-\u10ff]$/.test(char)) return char;
  const [first = "", ...rest] = char.toUpperCase();
  return first + rest.join("").toLowerCase();
}

/** The first character in title case, the rest in lower case. */
export function capitalize(text: string): string {
  if (text === "") return "";
  const first = String.fromCodePoint(text.codePointAt(0)!);
  // The whole string is lowered, because a final sigma depends on what precedes it.
  const lower = text.toLowerCase();
  return titleChar(first) + lower.slice(first.toLowerCase().length);
}

const CASED = /[\p{Lowercase}\p{Uppercase}\p{Lt}]/u;
const UPPER = /^\p{Uppercase}$/u;
const TITLE = /^\p{Lt}$/u;
const LOWER = /^\p{Lowercase}$/u;

/** Each run of cased letters in title case, as str.title writes it. */
export function titleWords(text: string): string {
  let result = "", inWord = false, at = 0;
  const lower = text.toLowerCase();
  const aligned = lower.length === text.length;
  for (const char of text) {
    const small = aligned
      ? lower.slice(at, at + char.length)
      : char.toLowerCase();
    result += inWord ? small : titleChar(char);
    inWord = CASED.test(char);
    at += char.length;
  }
  return result;
}

/** Upper case becomes lower case and the reverse. */
export function swapCase(text: string): string {
  const lower = text.toLowerCase();
  const aligned = lower.length === text.length;
  let result = "", at = 0;
  for (const char of text) {
    if (UPPER.test(char)) {
      result += aligned
        ? lower.slice(at, at + char.length)
        : char.toLowerCase();
    } else if (LOWER.test(char)) result += char.toUpperCase();
    else result += char;
    at += char.length;
  }
  return result;
}

// Digits that are not decimal (superscripts, circled digits, …).
const DIGIT = /[\p{Nd}²³¹፩-፱᧚⁰⁴-⁹₀-₉①-⑨⑴-⑼⒈-⒐⓪⓵-⓽⓿❶-❾➀-➈➊-➒𐩀-𐩃𐹠-𐹨𑁒-𑁚🄀-🄊]/u;
// Ideographs that have a numeric value.
const NUMERIC =
  /[\p{N}㐅㒃㠪㭍一七万三九二五亖亿什仟仨伍佰億兆兩八六十千卄卅卌叁参參叄四壱壹幺廾廿弌弍弎弐拾捌柒漆玖百肆萬貮貳贰阡陆陌陸零\uf96b\uf973\uf978\uf9b2\uf9d1\uf9d3\uf9fd\u{20001}\u{20064}\u{200e2}\u{20121}\u{2092a}\u{20983}\u{2098c}\u{2099c}\u{20aea}\u{20afd}\u{20b19}\u{22390}\u{22998}\u{23b1b}\u{2626d}\u{2f890}]/u;

/** Whether a string is not empty and all its characters match. */
function every(text: string, test: (char: string) => boolean): boolean {
  if (text === "") return false;
  for (const char of text) if (!test(char)) return false;
  return true;
}

function isCase(text: string, wrong: RegExp, right: RegExp): boolean {
  let found = false;
  for (const char of text) {
    if (wrong.test(char) || TITLE.test(char)) return false;
    found ||= right.test(char);
  }
  return found;
}

function isTitle(text: string): boolean {
  let inWord = false, found = false;
  for (const char of text) {
    if (UPPER.test(char) || TITLE.test(char)) {
      if (inWord) return false;
      inWord = found = true;
    } else if (LOWER.test(char)) {
      if (!inWord) return false;
      found = true;
    } else inWord = false;
  }
  return found;
}

/** Whether repr prints a character as it is. */
export function isPrintable(char: string): boolean {
  return char === " " || !/[\p{C}\p{Z}]/u.test(char);
}

/** The tests of str that take no arguments. */
export const CLASSES: Readonly<Record<string, (text: string) => boolean>> = {
  isalnum: (text) =>
    every(
      text,
      (char) => /\p{L}/u.test(char) || DIGIT.test(char) || NUMERIC.test(char),
    ),
  isalpha: (text) => every(text, (char) => /\p{L}/u.test(char)),
  isascii: (text) => /^\p{ASCII}*$/u.test(text),
  isdecimal: (text) => every(text, (char) => /\p{Nd}/u.test(char)),
  isdigit: (text) => every(text, (char) => DIGIT.test(char)),
  isidentifier: (text) => /^[\p{XID_Start}_]\p{XID_Continue}*$/u.test(text),
  islower: (text) => isCase(text, UPPER, LOWER),
  isnumeric: (text) => every(text, (char) => NUMERIC.test(char)),
  isprintable: (text) => text === "" || every(text, isPrintable),
  isspace: (text) => every(text, isSpace),
  istitle: isTitle,
  isupper: (text) => isCase(text, LOWER, UPPER),
};
