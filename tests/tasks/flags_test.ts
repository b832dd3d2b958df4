import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { coloursOf } from "../../tasks/colour.ts";
import {
  didYouMean,
  type FlagTable,
  helpText,
  nameFlag,
  readFlags,
} from "../../tasks/flags.ts";
import { OptionError, wrongOption } from "../../lib/errors.ts";
import { runTask } from "../support/run_task.ts";
import project from "../../deno.json" with { type: "json" };

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
      "Cannot read the flags: --modle is unknown, did you mean --model?",
    ],
    [["--modle=x"], "--modle is unknown, did you mean --model?"],
    [["--top_k", "3"], "--top_k is unknown, did you mean --top-k?"],
    [["--topk=3"], "--topk is unknown, did you mean --top-k?"],
    [["--mod", "x"], "--mod is unknown, did you mean --model?"],
    [["--no-thnk"], "--no-thnk is unknown, did you mean --no-think?"],
    [["-model", "x"], "-model is unknown, did you mean --model?"],
    [["-m", "x"], "-m is unknown, did you mean --model?"],
    [["-t"], "-t is unknown, did you mean --top-k or --think?"],
    [["--no-model"], "--no-model is unknown, did you mean --model?"],
    [["--nosuch"], "--nosuch is unknown, try --help (text like this goes aft"],
    [["-x"], "-x is unknown, try --help (text like this goes after --)"],
    [["-5 degrees"], "-5 degrees is unknown, try --help (text like this"],
    [["--constructor"], "--constructor is unknown, try --help"],
    [["--Model", "x"], "--Model is unknown, did you mean --model?"],
    [["--model"], "--model has no value, must be followed by a text"],
    [["--top-k"], "--top-k has no value, must be followed by a number"],
    [["--model", "--think"], "--model has no value"],
    [["--model", "x", "--model=y"], "--model is given twice, must be given on"],
    [["--think", "--no-think"], "--think is given twice"],
    [["--think=yes"], "--think takes no value, but yes was given"],
    [["-h"], "-h is unknown"], // the table has no help
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

Deno.test("a value that is none of the possible ones is refused with the nearest", () => {
  const oneOf = (value: string) =>
    read("--model", value).oneOf("model", ["auto", "gpu", "cpu"]);
  assertEquals(oneOf("cpu"), "cpu");
  assertEquals(read().oneOf("model", ["auto"]), undefined);
  assertThrows(
    () => oneOf("gup"),
    Error,
    'Cannot read the flags: --model is "gup", must be auto, gpu or cpu, did you mean gpu?',
  );
  assertThrows(() => oneOf("none"), Error, "must be auto, gpu or cpu");
  assertEquals(
    didYouMean("attend", ["gemm", "attendDecode"]),
    ", did you mean attendDecode?",
  );
  assertEquals(didYouMean("x", ["gemm"]), "");
});

Deno.test("-h is --help, except as the value of a flag or after --", () => {
  const table: FlagTable = { ...TABLE, "help": ["switch", "print"] };
  assertEquals(readFlags(["-h"], table).on("help"), true);
  const flags = readFlags(["--stop", "-h", "--", "-h"], table);
  assertEquals([flags.on("help"), flags.words], [undefined, ["-h"]]);
  assertEquals(flags.texts("stop"), ["-h"]);
});

Deno.test("errors of the library's options name the flags", () => {
  const named = (error: unknown) => (nameFlag(error, TABLE) as Error).message;
  assertEquals(
    named(wrongOption("Cannot generate", "topK", -1, "an integer")),
    "Cannot generate: --top-k is -1, must be an integer",
  );
  assertEquals(
    named(new OptionError("thinking", "Cannot x: thinking is on, but")),
    "Cannot x: --think is on, but",
  );
  const model = wrongOption("Cannot load topK: topK", "topK", 1, "2");
  assertEquals(named(model), "Cannot load topK: topK: --top-k is 1, must be 2");
  // Without such a flag, the name stays.
  const other = wrongOption("Cannot load x", "debug", 1, "true or false");
  assertEquals(
    named(other),
    "Cannot load x: debug is 1, must be true or false",
  );
  assertEquals(named(new Error("Cannot x: topK is 1")), "Cannot x: topK is 1");
});

Deno.test("helpText lists every flag with its description and default", () => {
  assertEquals(
    helpText({
      usage: "usage",
      flags: {
        "a": ["switch", "one"],
        "long-name": ["text", "two", 7],
        "help": ["switch", "three"],
      },
      examples: ["deno task x"],
      notes: "Notes",
    }),
    `usage

  --a            one
  --long-name …  two (default: 7)
  --help, -h     three

Notes

Examples:
  deno task x

Environment variables:
  NO_COLOR  any value turns colours off`,
  );
});

Deno.test("helpText breaks long usage, help and notes into lines of 100 columns", () => {
  const long = "word ".repeat(40).trim();
  const text = helpText({
    usage: long,
    flags: { "a": ["text", long] },
    notes: `Rows:\n  b\n${long}`,
  });
  const lines = text.split("\n");
  for (const line of lines) assert(line.length <= 100, line);
  assertEquals(text.match(/word/g)?.length, 120);
  assertMatch(text, /^ {2}--a … {2}word/m);
  assertMatch(text, /^ {9}word/m);
  assertMatch(text, /\n\nRows:\n {2}b\nword .*word\n {2}word/);
});

Deno.test("text has colours on a terminal only, unless they are turned off", () => {
  const on = (isTerminal: boolean, plain: boolean) =>
    coloursOf({ isTerminal: () => isTerminal }, plain);
  assertEquals(on(true, false).red("x"), "\x1b[31mx\x1b[39m");
  assertEquals(on(true, false).dim(""), "");
  for (const colours of [on(true, true), on(false, false)]) {
    const { red, yellow, green, bold, dim } = colours;
    assertEquals(
      [red, yellow, green, bold, dim].map((f) => f("x")).join(""),
      "xxxxx",
    );
  }
});

Deno.test("--version prints the versions of the package, Deno and V8", async () => {
  const { code, stdout, stderr } = await runTask("generate", ["--version"]);
  assertEquals([code, stderr], [0, ""]);
  const { deno, v8 } = Deno.version;
  assertEquals(
    stdout,
    `${project.name} ${project.version}, Deno ${deno}, V8 ${v8}\n`,
  );
});

Deno.test("-h prints the same as --help, with the variables of tasks that open models", async () => {
  const [short, long] = await Promise.all([
    runTask("generate", ["-h"]),
    runTask("generate", ["--help"]),
  ]);
  assertEquals(short, long);
  for (
    const name of [
      ...["HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "HF_HUB_CACHE"],
      ...["HF_HUB_OFFLINE", "HF_ENDPOINT", "DENO_WEBGPU_BACKEND"],
      ...["QWEN3_TUNING_DIR", "NO_COLOR"],
    ]
  ) assertMatch(long.stdout, new RegExp(`^  ${name} +\\w`, "m"));
});

/** Runs a task as `deno task` does when the user stands in `folder`. */
async function runFrom(folder: string, args: string[], env = {}) {
  const config = new URL("../../deno.json", import.meta.url).pathname;
  const { code, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["task", "--config", config, "generate", ...args],
    cwd: folder,
    env: { NO_COLOR: "1", ...env },
    stdin: "null",
  }).output();
  const text = new TextDecoder().decode(stderr);
  return { code, stderr: text.split("\n").slice(1).join("\n") };
}

Deno.test("relative paths begin where the user stands, also in a task", async () => {
  const folder = await Deno.realPath(await Deno.makeTempDir());
  await Deno.mkdir(`${folder}/mine`);
  await Deno.writeTextFile(`${folder}/mine/tools.json`, "[]");
  const found = await runFrom(folder, ["hi", "--tools", "./mine/tools.json"]);
  assertMatch(found.stderr, /tools\.json: it lists 0 tools/);
  const model = await runFrom(`${folder}/mine`, ["hi", "--model", "../mine"]);
  assertMatch(model.stderr, /there is no \S*\/mine\/config\.json/);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("a folder that is gone, or belongs to another program, does not count", async () => {
  const project = new URL("../..", import.meta.url);
  const run = async (cwd: URL | string, place: string) => {
    const { stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        ...["run", "-A", "--no-check", "--no-lock"],
        new URL("tasks/generate.ts", project).href,
        ...["hi", "--tools", "README.md"],
      ],
      cwd,
      env: { NO_COLOR: "1", INIT_CWD: place },
      stdin: "null",
    }).output();
    return new TextDecoder().decode(stderr);
  };
  // The project's README is found, and is no JSON.
  assertMatch(await run(project, "/none/such"), /README\.md: it is not valid/);
  assertMatch(await run(project, ""), /README\.md: it is not valid/);
  // Started elsewhere, as by npm: INIT_CWD is another program's.
  const other = new URL("tests", project);
  assertMatch(await run(other, project.pathname), /README\.md: No such file/);
});
