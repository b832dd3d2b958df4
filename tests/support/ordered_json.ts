/**
 * Reads JSON with the keys of objects in their order in the file.
 *
 * @module
 */

const MARK = "\0";

/**
 * Parses JSON; objects with keys like "1", which JavaScript would move to the front, become
 * Maps.
 */
export function parseOrderedJson(text: string): unknown {
  const marked = text.replaceAll(
    /"((?:[^"\\]|\\.)*)"(\s*:)?/g,
    (whole, key, colon) =>
      colon && /^\d+$/.test(key) ? `"\\u0000${key}"${colon}` : whole,
  );
  return restore(JSON.parse(marked));
}

function restore(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(restore);
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value).map(([key, item]) =>
    [key.startsWith(MARK) ? key.slice(1) : key, restore(item)] as const
  );
  return Object.keys(value).some((key) => key.startsWith(MARK))
    ? new Map(entries)
    : Object.fromEntries(entries);
}
