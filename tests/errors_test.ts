/** Errors that are safe to print. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { described, errorText, explained, printable } from "../lib/errors.ts";

Deno.test("an error's text is one line of fewer than 2,000 printable characters", () => {
  assertEquals(
    errorText(new Error("Cannot open it:\n  gone ")),
    "Cannot open it: gone",
  );
  assertEquals(errorText("a string"), "a string");
  const long = errorText(new Error(`Cannot read ${"x".repeat(1e6)} the end`));
  assert(long.length < 2000, `${long.length} characters`);
  assert(long.startsWith("Cannot read xxx") && long.endsWith("xxx the end"));
  // Escapes make a line longer: the bound is on what is printed.
  const escaped = errorText(new Error("\x1b".repeat(1e5)));
  assert(escaped.length < 2000, `${escaped.length} characters`);
});

Deno.test("the library's own errors become printable lines, others stay as they are", () => {
  const own = new RangeError(`Cannot load \x1b[2J${"x".repeat(5000)}\nit`);
  assertEquals(explained("load it", own), own);
  assert(own.message.startsWith("Cannot load \\x1b[2Jxxx"), own.message);
  assert(own.message.length < 2000 && own.message.endsWith("xxx it"));
  const foreign = new Error("two\nlines");
  assertEquals(explained("load it", foreign), foreign);
  assertEquals(foreign.message, "two\nlines");
  assertEquals(explained("load it", "reason\n"), "reason\n");
});

Deno.test("control characters are printed as escapes", () => {
  assertEquals(
    printable("\x1b[31mred\x07 \x9b2J\x7f"),
    "\\x1b[31mred\\x07 \\x9b2J\\x7f",
  );
  assertEquals(
    printable("right\u202eleft\u2066\u2028"),
    "right\\u202eleft\\u2066\\u2028",
  );
  const kept = "tab\t, line\n, é, 中, 👩‍👩‍👧, \u00a0";
  assertEquals(printable(kept), kept);
  for (let code = 0; code < 256; code++) {
    const character = String.fromCharCode(code);
    const obeyed = code < 32 || (code >= 127 && code < 160);
    const shown = printable(character) !== character;
    assertEquals(shown, obeyed && !"\t\n".includes(character), `${code}`);
  }
});

Deno.test("a wrong value is described in a few words", () => {
  for (
    const [value, words] of [
      ["text", '"text"'],
      ["\x1b[2J", '"\\u001b[2J"'],
      [1.5, "1.5"],
      [NaN, "NaN"],
      [7n, "7n"],
      [null, "null"],
      [undefined, "undefined"],
      [true, "true"],
      [[1, 2, 3], "a list of 3"],
      [{}, "an object"],
      [Object.create(null), "an object"],
      [new Map(), "a Map"],
      [new Uint8Array(2), "a Uint8Array"],
      [new Error("x"), "an Error"],
      [() => 1, "a function"],
      [Symbol("s"), "Symbol(s)"],
    ] as const
  ) assertEquals(described(value), words);
  assert(described("x".repeat(1e6)).length < 80);
  const named = class {};
  Object.defineProperty(named, "name", { value: `a\n\x1b${"b".repeat(1e6)}` });
  assertMatch(described(new named()), /^a a\\n\\x1bb+…b+$/);
  assert(described(new named()).length < 80);
});
