/**
 * Run every test and every example in the documentation.
 *
 *   deno task test
 *   deno task test --require-gpu      fail where the machine lacks something
 *   deno task test --seeds 500        try random inputs from 500 seeds
 *   deno task test tests/kernels      run some of the tests
 *
 * Tests for which this machine lacks something (a GPU adapter, a browser) are skipped,
 * and the summary says what to install. A test on random inputs prints its seed when it
 * fails; QWEN3_TEST_SEED=n repeats it. The last line is `N passed, N failed`, with the
 * number of skipped tests, if any.
 */
import { prepareEnvironment } from "./flags.ts";

const REQUIRE_GPU = "QWEN3_REQUIRE_GPU"; // read by tests/gpu.ts
const SEEDS = "QWEN3_TEST_SEEDS"; // read by tests/random.ts

prepareEnvironment();
const args = [...Deno.args];
if (takes("--require-gpu")) Deno.env.set(REQUIRE_GPU, "1");
const seeds = takes("--seeds", 1);
if (seeds) Deno.env.set(SEEDS, seeds[0] ?? "");
const adapter = await navigator.gpu?.requestAdapter() != null;

/** Takes a flag and its values out of `args`; undefined if it is not there. */
function takes(flag: string, values = 0): string[] | undefined {
  const at = args.indexOf(flag);
  return at < 0 ? undefined : args.splice(at, 1 + values).slice(1);
}

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
