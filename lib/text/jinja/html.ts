/**
 * HTML in strings: `escape`, `striptags` and Markup.
 *
 * @module
 */
import { splitSpaces } from "./unicode.ts";
import { Markup, textOf, type Value } from "./values.ts";

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  ">": "&gt;",
  "<": "&lt;",
  "'": "&#39;",
  '"': "&#34;",
};

/** Escapes a string, unless it is Markup. */
export function escapeHtml(value: Value): string {
  const text = textOf(value)!;
  return value instanceof Markup
    ? text
    : text.replaceAll(/[&<>'"]/g, (char) => ENTITIES[char]);
}

/** Removes comments and tags, joins white space, and decodes entities. */
export function stripTags(text: string): string {
  const plain = without(without(text, "<!--", "-->"), "<", ">");
  return splitSpaces(plain).join(" ").replaceAll(
    /&(?:#(\d{1,7})|#x([\da-f]{1,6})|(\w+));/gi,
    (entity, decimal, hex, name) => {
      const code = decimal ? Number(decimal) : hex ? parseInt(hex, 16) : -1;
      if (code >= 0) {
        return code <= 0x10ffff ? String.fromCodePoint(code) : "\ufffd";
      }
      return NAMED.get(name) ?? entity;
    },
  );
}

/** The common named entities; HTML has 2,231. */
const NAMED: ReadonlyMap<string, string> = new Map(Object.entries({
  amp: "&",
  apos: "'",
  copy: "©",
  gt: ">",
  hellip: "…",
  laquo: "«",
  ldquo: "“",
  lsquo: "‘",
  lt: "<",
  mdash: "—",
  nbsp: "\xa0",
  ndash: "–",
  quot: '"',
  raquo: "»",
  rdquo: "”",
  reg: "®",
  rsquo: "’",
  trade: "™",
}));

function without(text: string, begin: string, end: string): string {
  let result = "", at = 0;
  for (;;) {
    const from = text.indexOf(begin, at);
    const to = from < 0 ? -1 : text.indexOf(end, from);
    if (to < 0) return result + text.slice(at);
    result += text.slice(at, from);
    at = to + end.length;
  }
}
