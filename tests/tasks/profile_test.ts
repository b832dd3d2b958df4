import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { runTask } from "../support/run_task.ts";

const TINY = "tests/fixtures/tiny-tied-bf16";

const task = (...args: string[]) => runTask("profile", args);

Deno.test("the verdict is the first thing printed, JSON the last", async () => {
  const { code, stdout } = await task(
    ...["--model", TINY, "--device", "cpu", "--prompt-tokens", "4"],
    ...["--max-tokens", "3", "--json"],
  );
  assertEquals(code, 0);
  const lines = stdout.trimEnd().split("\n");
  const report = JSON.parse(lines.at(-1)!);
  assertStringIncludes(lines[0], report.verdicts[0].text);
  assertStringIncludes(lines[0], "the CPU was chosen");
  assertEquals(report.promptTokens, 4);
  assertEquals(report.phases.length, 2);
});

Deno.test("--json, --trace and --html write files", async () => {
  const folder = await Deno.makeTempDir();
  const file = (name: string) => `${folder}/${name}`;
  const { code, stderr } = await task(
    ...["--model", TINY, "--device", "cpu", "--prompt-tokens", "4"],
    ...["--max-tokens", "3", "--json", file("a.json")],
    ...["--trace", file("a.trace"), "--html", file("a.html")],
  );
  assertEquals(code, 0, stderr);
  const read = (name: string) => Deno.readTextFile(file(name));
  assertEquals(JSON.parse(await read("a.json")).device.kind, "cpu");
  assert(JSON.parse(await read("a.trace")).traceEvents.length > 10);
  assertMatch(await read("a.html"), /^<!doctype html>/);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("deno task profile --help fits 100 columns", async () => {
  const { code, stdout } = await task("--help");
  assertEquals(code, 0);
  for (const line of stdout.split("\n")) {
    assert(line.length <= 100, `${line.length} columns: ${line}`);
  }
});

for (
  const [args, message] of [
    [
      ["--json", "/nowhere/at/all.json"],
      /Cannot write --json to "\/nowhere.*": no such folder, must be/,
    ],
    [["--html", "/"], /Cannot write --html to "\/": it is a folder, must be/],
    [["--html", ""], /Cannot write --html to "": .*, must be/],
    [
      ["--html", "/dev/null", "--trace", "/dev/null"],
      /Cannot write --html to \/dev\/null: --trace is written there/,
    ],
    [["--chunk", "2", "--chunk", "3"], /--chunk is given twice, must be/],
    [["--compare", "--no-compare"], /--compare is given twice, must be/],
    [["--json", "--json", "a"], /--json is given twice, must be/],
    [["--prompt-tokens", "-3"], /promptTokens is -3, must be/],
    [["--max-tokens", "2.5"], /maxTokens is 2.5, must be/],
    [["--max-tokens", "many"], /--max-tokens is "many", must be a finite/],
    [["--batch", "0"], /batch is 0, must be an integer from 1 to 256/],
    [["--chunk", "-1"], /chunk is -1, must be/],
    [
      ["--kernels", "gemv,gem"],
      /gem is unknown, must be some of gemv, gemm, batchedGemm/,
    ],
    [["--kernels", ","], /the list is empty/],
    [["--prompts", "5"], /--prompts is unknown/],
    [
      ["--prompt-tokens", "9999"],
      /promptTokens is 9999, must be an integer from 1 to 448/,
    ],
    [["--max-tokens", "1"], /maxTokens is 1, must be/],
    [["--chunk", "0"], /chunk is 0, must be/],
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
