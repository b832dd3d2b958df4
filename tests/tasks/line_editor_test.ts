/** Keys, and what they do to a message. */
import { assert, assertEquals } from "@std/assert";
import { Random } from "../../lib/check/reference.ts";
import {
  characters,
  columnsOf,
  type Key,
  KeyReader,
} from "../../tasks/keys.ts";
import { LineEditor } from "../../tasks/line_editor.ts";

const HISTORY = ["first one", "second\ntwo", "the third"];
const WORDS = ["/save", "/stats", "/system"];
const bytes = (text: string) => new TextEncoder().encode(text);

/** An editor after some keys, and what the last of them ended. */
function pressed(keys: string, text = "") {
  const editor = new LineEditor(HISTORY, WORDS, text);
  let ending: string | undefined;
  for (const key of new KeyReader().read(bytes(keys))) {
    ending = editor.press(key);
  }
  return { editor, ending };
}

/** The message as it is drawn, with the cursor as `|`. */
function drawn(editor: LineEditor, columns = 40): string {
  const { rows, row, column } = editor.picture("> ", columns);
  return rows.map((text, i) => {
    if (i !== row) return text;
    let width = 0, before = "";
    for (const character of characters(text)) {
      if (width >= column) break;
      width += columnsOf(character);
      before += character;
    }
    return `${before}|${text.slice(before.length)}`;
  }).join("\n");
}

const LEFT = "\x1b[D", RIGHT = "\x1b[C", UP = "\x1b[A", DOWN = "\x1b[B";

Deno.test("keys edit a message as they do elsewhere", () => {
  const cases: [keys: string, drawn: string, text?: string][] = [
    ["abc", "> abc|"],
    [`abc${LEFT}${LEFT}X`, "> aX|bc"],
    [`abc${LEFT}\x1bOD\x02\x1b[CX`, "> aX|bc"],
    ["abc\x01X", "> X|abc"],
    ["abc\x1b[HX\x05Y", "> XabcY|"],
    ["one two\x1bbX", "> one X|two"],
    ["one two\x1b[1;5D\x1b[1;3DX", "> X|one two"],
    ["one, two!\x17", "> one, |"],
    ["one two\x01\x1bfX", "> oneX| two"],
    ["one two\x01\x1bd", "> | two"],
    ["one two\x1bb\x0b", "> one |"],
    ["one two\x1bb\x15", "> |two"],
    ["one two\x17\x01\x19", "> two|one "],
    ["ab\x7f\x08c", "> c|"],
    ["abc\x01\x1b[3~\x04", "> |c"],
    ["👩‍👩‍👧é\x7f", "> 👩‍👩‍👧|"],
    ["👩‍👩‍👧é\x7f\x7f", "> |"],
    [`👩‍👩‍👧${LEFT}a`, "> a|👩‍👩‍👧"],
    ["one\x1b\rtwo", "> one\n  two|"],
    ["one\\\rtwo", "> one\n  two|"],
    [`one\x1b\rtwo${UP}X`, "> oneX|\n  two"],
    [`o\x1b\rtwo${UP}${DOWN}X`, "> o\n  tX|wo"],
    ["one\x1b\rtwo\x01X\x05Y", "> one\n  XtwoY|"],
    ["a\x1b[200~b\rc\r\nd\x1b[201~e", "> ab\n  c\n  de|"],
    ["\x1b[99;99Za\x1b[5~b", "> ab|"], // keys that do nothing
    ["/sy\t", "> /system |"],
    ["/s\t", "> /s|"],
    ["/st\tx", "> /stats x|"],
    ["x/s\t", "> x/s|"],
    [UP, "> the third|"],
    [`new${UP}${DOWN}`, "> new|"],
    [`${UP}!${UP}${DOWN}`, "> the third!|"],
    [`${UP}\x10\x10\x10\x10\x10`, "> first one|"],
    [DOWN, "> |"],
    ["\x1b[C\x1b[D\x7f", "> a|c", "abc"],
  ];
  for (const [keys, expected, text] of cases) {
    const { editor, ending } = pressed(keys, text);
    assertEquals(drawn(editor), expected, JSON.stringify(keys));
    assertEquals(ending, undefined);
  }
  // In a message of two lines, up goes to its first line before the message above.
  assertEquals(drawn(pressed(`${UP}${UP}`).editor), "> second\n  two|");
  assertEquals(drawn(pressed(`${UP}${UP}${UP}`).editor), "> sec|ond\n  two");
  assertEquals(drawn(pressed(`${UP}${UP}${UP}${UP}`).editor), "> first one|");
});

Deno.test("Ctrl-R searches what was sent", () => {
  const cases: [keys: string, drawn: string][] = [
    ["\x12", 'search "": |'],
    ["\x12o", 'search "o": sec|ond\n  two'],
    ["\x12o\x12", 'search "o": first |one'],
    ["\x12o\x12\x12\x12", 'search "o": first |one'],
    ["\x12th\x7f", 'search "t": |the third'],
    ["new\x12th\x07", "> new|"],
    ["new\x12th\x1b", "> new|"],
    [`\x12th${RIGHT}X`, "> tX|he third"],
    ["\x12th\x05X", "> the thirdX|"],
  ];
  for (const [keys, expected] of cases) {
    assertEquals(drawn(pressed(keys).editor), expected, JSON.stringify(keys));
  }
  assertEquals(pressed("\x12first\r").editor.text, "first one");
  assertEquals(pressed("\x12first\r").ending, "send");
  // What is not found leaves what was.
  const { editor } = pressed("\x12first");
  editor.press({ name: "text", text: "x" });
  assertEquals(drawn(editor), 'search "firstx": |first one');
});

Deno.test("what is sent, and what leaves", () => {
  assertEquals(pressed("Hi\r").ending, "send");
  assertEquals(pressed("Hi\n").ending, "send");
  assertEquals(pressed("\x04").ending, "leave");
  assertEquals(pressed("Hi\x04").ending, undefined);
  const { editor } = pressed("Hi");
  assertEquals([editor.clear(), editor.text, editor.clear()], [
    true,
    "",
    false,
  ]);
  // A backslash before the end is one.
  const kept = pressed(`a\\b${LEFT}\r`);
  assertEquals([kept.ending, kept.editor.text], ["send", "a\\b"]);
});

Deno.test("rows are narrower than the terminal, and the cursor is where it was", () => {
  const { editor } = pressed("0123456789");
  assertEquals(drawn(editor, 8), "> 01234\n56789|");
  assertEquals(
    drawn(pressed(`0123456789${LEFT.repeat(5)}`).editor, 8),
    "> 01234\n|56789",
  );
  assertEquals(drawn(pressed("字字字字").editor, 8), "> 字字\n字字|");
  assertEquals(editor.picture("> ", 8).column, 5);
  assertEquals(pressed("字字字字").editor.picture("> ", 8).column, 4);
  assertEquals(
    drawn(pressed("a\tb\x1b[200~\x1b\x1b[201~c").editor),
    "> ab\\x1bc|",
  );
});

Deno.test("random keys leave a cursor in the message, however the bytes are cut", () => {
  const random = new Random();
  const keys = [
    ..."ab \x01\x02\x04\x05\x06\x08\x0b\x0c\x0e\x10\x12\x15\x17\x19\x7f\t",
    ...[LEFT, RIGHT, UP, DOWN, "\x1b\r", "\x1bb", "\x1bf", "\x1bd", "\x1b\x7f"],
    ...["字", "👩‍👩‍👧", "\x1b[200~x\ny\x1b[201~", "\x07", "\x1b[1;5C"],
  ];
  for (let round = 0; round < 300; round++) {
    const typed = Array.from({ length: 40 }, () => random.pick(keys)).join("");
    const all = bytes(typed), whole = new KeyReader().read(all);
    const editor = new LineEditor(HISTORY, WORDS);
    for (const key of whole) {
      editor.press(key);
      const columns = random.int(8, 30);
      const { rows, row, column } = editor.picture("> ", columns);
      assert(row >= 0 && row < rows.length && column >= 0 && column < columns);
    }
    // Cut anywhere but after an Escape, which alone is a key.
    const reader = new KeyReader(), cut: Key[] = [];
    for (let at = 0; at < all.length;) {
      let end = Math.min(all.length, at + random.int(1, 5));
      while (end < all.length && all[end - 1] === 0x1b) end++;
      cut.push(...reader.read(all.subarray(at, end)));
      at = end;
    }
    const flat = (keys: Key[]): unknown[] =>
      keys.flatMap((key): unknown[] =>
        "text" in key && key.name === "text" ? [...key.text] : [key]
      );
    assertEquals(flat(cut), flat(whole), JSON.stringify(typed));
  }
});
