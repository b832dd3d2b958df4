import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { gpuTest } from "../support/gpu.ts";
import { runTask } from "../support/run_task.ts";

const TINY = "tests/fixtures/tiny-tied-bf16";

const task = (...args: string[]) => runTask("profile", args);

const SHORT = [
  ...["--model", TINY, "--device", "cpu", "--prompt-tokens", "4"],
  ...["--max-tokens", "3"],
];

Deno.test("--threads sets the threads of the CPU path", async () => {
  for (const threads of ["1", "3"]) {
    const { code, stdout, stderr } = await task(
      ...SHORT,
      ...["--threads", threads, "--json"],
    );
    assertEquals(code, 0, stderr);
    const { adapter } = JSON.parse(stdout).device;
    assertMatch(adapter, new RegExp(`^CPU \\(${threads} thread`));
  }
});

gpuTest("--threads on a GPU is not ignored silently", async () => {
  const { code, stderr } = await task(
    ...SHORT.with(3, "gpu"),
    ...["--threads", "2"],
  );
  assertEquals(code, 0, stderr);
  assertMatch(stderr, /^threads is 2, but is not used: the model runs on/m);
});

Deno.test("the verdict is the first thing printed", async () => {
  const { code, stdout, stderr } = await task(...SHORT);
  assertEquals(code, 0, stderr);
  assertMatch(stdout, /^! the CPU was chosen: /);
  assertMatch(stderr, /^timing the CPU path …$/m);
  assert(!stdout.includes("Why these kernels"));
  assertThrows(() => JSON.parse(stdout.trimEnd().split("\n").at(-1)!));
  for (const line of stdout.split("\n")) {
    assert([...line].length <= 100, `${line.length} columns: ${line}`);
  }
});

Deno.test("--verbose says why the kernels were chosen", async () => {
  const { stdout } = await task(...SHORT, "--verbose");
  assertStringIncludes(stdout, "Why these kernels");
});

Deno.test("--json prints the report alone, as one line", async () => {
  const { code, stdout, stderr } = await task(...SHORT, "--json");
  assertEquals(code, 0, stderr);
  assertEquals(stdout.trimEnd().split("\n").length, 1);
  const report = JSON.parse(stdout);
  assertEquals(report.promptTokens, 4);
  assertEquals(report.phases.length, 2);
  assertEquals(report.device.kind, "cpu");
  assertMatch(stderr, /^timing the CPU path …$/m);
});

Deno.test("--trace and --html write files, and say where", async () => {
  const folder = await Deno.makeTempDir();
  const file = (name: string) => `${folder}/${name}`;
  const { code, stderr, stdout } = await task(
    ...SHORT,
    ...["--trace", file("a.trace"), "--html", file("a.html")],
  );
  assertEquals(code, 0, stderr);
  assertMatch(stdout, /^! the CPU was chosen: /);
  const read = (name: string) => Deno.readTextFile(file(name));
  assert(JSON.parse(await read("a.trace")).traceEvents.length > 10);
  assertMatch(await read("a.html"), /^<!doctype html>/);
  assertStringIncludes(stderr, `--trace is in ${file("a.trace")}\n`);
  assertStringIncludes(stderr, `--html is in ${file("a.html")}\n`);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("--trace - prints the events alone", async () => {
  const { code, stdout } = await task(...SHORT, "--trace", "-");
  assertEquals(code, 0);
  assert(JSON.parse(stdout).traceEvents.length > 10);
});

for (
  const [args, message] of [
    [
      ["--trace", "/nowhere/at/all.json"],
      /Cannot write --trace to "\/nowhere.*": no such folder, must be/,
    ],
    [
      ["--json", "report.json"],
      /--json takes no file, must be --json > report.json$/,
    ],
    [["--json", "--html", "-"], /Cannot write --html to -: --json is written/],
    [["--html", "/"], /Cannot write --html to "\/": it is a folder, must be/],
    [["--html", ""], /Cannot write --html to "": .*, must be/],
    [
      ["--html", "/dev/null", "--trace", "/dev/null"],
      /Cannot write --html to \/dev\/null: --trace is written there/,
    ],
    [["--chunk", "2", "--chunk", "3"], /--chunk is given twice, must be/],
    [["--compare", "--no-compare"], /--compare is given twice, must be/],
    [["--json", "--json"], /--json is given twice, must be/],
    [
      ["--prompt-tokens", "-3"],
      /--prompt-tokens is -3, must be an integer of at least 1$/,
    ],
    [["--max-tokens", "2.5"], /--max-tokens is 2.5, must be/],
    [["--max-tokens", "many"], /--max-tokens is "many", must be a finite/],
    [["--batch", "0"], /--batch is 0, must be an integer from 1 to 256/],
    [["--chunk", "-1"], /--chunk is -1, must be/],
    [
      ["--kernels", "gemv,gem"],
      /gem is unknown, must be some of gemv, gemm, batchedGemm/,
    ],
    [["--kernels", ","], /the list is empty/],
    [["--prompts", "5"], /--prompts is unknown/],
    [
      ["--prompt-tokens", "9999"],
      /--prompt-tokens is 9999, must be an integer from 1 to 448/,
    ],
    [["--max-tokens", "1"], /--max-tokens is 1, must be/],
    [["--chunk", "0"], /--chunk is 0, must be/],
    [
      ["--kernels", "gemm", "--device", "cpu"],
      /cannot be restricted on the CPU/,
    ],
    [
      ["--kernels", "gemm", "--compare"],
      /cannot be restricted in a comparison/,
    ],
    [["--device", "tpu"], /--device is "tpu", must be auto, gpu or cpu/],
    [["words"], /unexpected argument "words", this task takes flags only/],
  ] as const
) {
  Deno.test(`deno task profile refuses in one line: ${args.join(" ")}`, async () => {
    const { code, stdout, stderr } = await task("--model", TINY, ...args);
    assertEquals(code, 1);
    assertEquals(stdout, "");
    const lines = stderr.trimEnd().split("\n");
    assertEquals(lines.length, 1, stderr);
    assertMatch(lines[0], message);
    assert(lines[0].length <= 100, lines[0]);
  });
}
