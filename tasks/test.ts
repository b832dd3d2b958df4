/**
 * Run every test and every example in the documentation.
 *
 *   deno task test
 *   deno task test --require-gpu      nothing may be left out
 *   deno task test tests/kernels      some of it
 *
 * Tests for which this machine lacks something (a GPU adapter, a browser) are not
 * run, and the summary says what brings it. The last line is `N passed, N failed`,
 * with the number that was not run, if any.
 */
import { prepareEnvironment } from "../lib/webgpu/environment.ts";

const REQUIRE_GPU = "QWEN3_REQUIRE_GPU"; // read by tests/support/gpu.ts

prepareEnvironment();
const args = Deno.args.filter((arg) => arg !== "--require-gpu");
if (args.length < Deno.args.length) Deno.env.set(REQUIRE_GPU, "1");
const adapter = await navigator.gpu?.requestAdapter() != null;

// Named, because this very file would match the runner's own pattern.
const WHERE = ["tests", "lib", "kernels", "mod.ts", "README.md"];

const runner = new Deno.Command(Deno.execPath(), {
  args: ["test", "-A", "--doc", ...(args.length ? args : WHERE)],
  // What was tuned on this machine is not what is tested.
  env: { NO_COLOR: "1", QWEN3_TUNING_DIR: Deno.makeTempDirSync() },
  stdout: "piped",
  stderr: "inherit",
}).spawn();

let last = "";
const [shown, read] = runner.stdout.tee();
const showing = shown.pipeTo(Deno.stdout.writable, { preventClose: true });
for await (const text of read.pipeThrough(new TextDecoderStream())) {
  last = (last + text).slice(-20_000);
}
await showing;
const { code } = await runner.status;

const summary = [...last.matchAll(
  /\| (\d+) passed(?: \([^)]*\))? \| (\d+) failed(?: \([^)]*\))?(?: \| (\d+) ignored)?/g,
)].at(-1);
const [passed = 0, failed = 0, skipped = 0] = (summary ?? []).slice(1)
  .map((n) => Number(n ?? 0));
if (!summary) console.log("The test runner ended before its summary.");
if (skipped) {
  console.log(
    `${skipped} tests were not run: this machine lacks ${
      adapter
        ? 'a browser (Debian, Ubuntu: "apt-get install chromium")'
        : 'a WebGPU adapter (Debian, Ubuntu: "apt-get install mesa-vulkan-drivers" brings a software one)'
    }.`,
  );
}
const broken = code !== 0 && !failed ? 1 : 0; // a file that did not load
console.log(
  `${passed} passed, ${failed + broken} failed${
    skipped ? `, ${skipped} skipped` : ""
  }`,
);
Deno.exit(code === 0 && summary ? 0 : 1);
