/** A ruler for what tasks print. */
import { assertEquals } from "@std/assert";
// It comes without types.
import stringWidth from "npm:string-width@4.2.3";

/** The most columns of a line. */
export const COLUMNS = 100;

/** Columns that a terminal uses for a line; wide characters take two. */
export const columns: (line: string) => number = stringWidth;

/** Fails with the lines of more than {@linkcode COLUMNS} columns, if there are any. */
export function assertFits(text: string): void {
  const long = text.split("\n").map((line) => ({ count: columns(line), line }))
    .filter(({ count }) => count > COLUMNS);
  assertEquals(long, []);
}
