import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { type FlagTable, helpText, readFlags } from "../../tasks/flags.ts";

const TABLE: FlagTable = {
  "model": ["text", "what to load"],
  "stop": ["texts", "ends"],
  "top-k": ["number", "how many"],
  "think": ["switch", "or not"],
};
const read = (...args: string[]) => readFlags(args, TABLE);

Deno.test("flags are read between words, joined or not", () => {
  const flags = read("Once", "--model", "a b", "upon", "--top-k=3", "--think");
  assertEquals(flags.words, ["Once", "upon"]);
  assertEquals(flags.text("model"), "a b");
  assertEquals(flags.number("top-k"), 3);
  assertEquals(flags.on("think"), true);
  assertEquals(flags.texts("stop"), undefined);
});

Deno.test("absent flags are undefined", () => {
  const flags = read();
  assertEquals(flags.words, []);
  assertEquals(flags.text("model"), undefined);
  assertEquals(flags.number("top-k"), undefined);
  assertEquals(flags.on("think"), undefined);
  assertEquals(read("--no-think").on("think"), false);
});

Deno.test("values may be negative, empty or contain = and newlines; lists repeat their flag", () => {
  assertEquals(read("--top-k", "-1").number("top-k"), -1);
  assertEquals(read("--top-k=-1e-3").number("top-k"), -0.001);
  assertEquals(read("--model", "").text("model"), "");
  assertEquals(read("--model=a=b").text("model"), "a=b");
  const stops = ["\n", "a\n=b", "-x", "--", ""];
  assertEquals(
    read(...stops.flatMap((stop) => ["--stop", stop])).texts("stop"),
    stops,
  );
});

Deno.test("after -- everything is words, as is a dash that starts no flag", () => {
  assertEquals(read("--think", "--", "--model", "-x", "--").words, [
    "--model",
    "-x",
    "--",
  ]);
  assertEquals(read("- item", "-", "a-b").words, ["- item", "-", "a-b"]);
});

Deno.test("words stay text even if they look like numbers", () => {
  assertEquals(read("1", "02", "3.0").words, ["1", "02", "3.0"]);
});

Deno.test("unknown flags and missing or wrong values are refused", () => {
  const refused: [string[], string][] = [
    [
      ["--modle", "x"],
      "Cannot read the flags: --modle is unknown, try --model or --help",
    ],
    [["--modle=x"], "--modle is unknown"],
    [["--no-model"], "--no-model is unknown, try --help (text like this"],
    [["-m"], "-m is unknown, try --help (text like this goes after --)"],
    [["--Model", "x"], "--Model is unknown, try --model or --help"],
    [["--model"], "--model has no value, must be followed by a text"],
    [["--top-k"], "--top-k has no value, must be followed by a number"],
    [["--model", "--think"], "--model has no value"],
    [["--model", "x", "--model=y"], "--model is given twice, must be given on"],
    [["--think", "--no-think"], "--think is given twice"],
    [["--think=yes"], "--think takes no value, but yes was given"],
  ];
  for (const [args, message] of refused) {
    assertThrows(() => read(...args), Error, message);
  }
  for (const value of ["abc", "", " ", "1x", "NaN", "Infinity"]) {
    assertThrows(
      () => read(`--top-k=${value}`).number("top-k"),
      Error,
      `Cannot read the flags: --top-k is "${value}", must be a finite number`,
    );
  }
});

Deno.test("helpText lists every flag with its description", () => {
  assertEquals(
    helpText("usage", { "a": ["switch", "one"], "long-name": ["text", "two"] }),
    "usage\n\n  --a            one\n  --long-name …  two",
  );
});

Deno.test("helpText breaks long help and notes into lines of 100 columns", () => {
  const long = "word ".repeat(40).trim();
  const text = helpText(
    "usage",
    { "a": ["text", long] },
    `Rows:\n  b\n${long}`,
  );
  const lines = text.split("\n");
  for (const line of lines) assert(line.length <= 100, line);
  assertEquals(text.match(/word/g)?.length, 80);
  assertMatch(text, /^ {2}--a … {2}word/m);
  assertMatch(text, /^ {9}word/m);
  assertMatch(text, /\n\nRows:\n {2}b\nword .*word\n {2}word/);
});
