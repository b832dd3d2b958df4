/**
 * Run every test and every example in the documentation.
 *
 *   deno task test
 *   deno task test --require-gpu      a missing adapter is a failure
 *   deno task test tests/kernels      some of it
 *
 * Without an adapter the GPU tests are not run, and the summary says what brings
 * one. The last line is `N passed, N failed`, with the number that was not run.
 */
const REQUIRE_GPU = "QWEN3_REQUIRE_GPU"; // read by tests/gpu.ts

const args = Deno.args.filter((arg) => arg !== "--require-gpu");
const required = args.length < Deno.args.length ||
  Deno.env.get(REQUIRE_GPU) === "1";

// Named, because this very file would match the runner's own pattern.
const WHERE = ["tests", "lib", "kernels", "mod.ts", "README.md"];

const runner = new Deno.Command(Deno.execPath(), {
  args: ["test", "-A", "--doc", ...(args.length ? args : WHERE)],
  env: {
    NO_COLOR: "1",
    // Vulkan's loader complains on stderr where this is unset.
    XDG_RUNTIME_DIR: Deno.env.get("XDG_RUNTIME_DIR") ?? "/tmp",
    ...(required ? { [REQUIRE_GPU]: "1" } : {}),
  },
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

const summary = last.match(
  /\| (\d+) passed(?: \([^)]*\))? \| (\d+) failed(?: \([^)]*\))?(?: \| (\d+) ignored)?/,
);
const [passed, failed, ignored] = (summary ?? []).slice(1).map((n) =>
  Number(n ?? 0)
);
if (!summary) console.log("The test runner ended before its summary.");
if (ignored) {
  console.log(
    `${ignored} GPU tests were not run: there is no WebGPU adapter here. On Debian and Ubuntu "apt-get install mesa-vulkan-drivers" brings a software one.`,
  );
}
const broken = code !== 0 && !failed ? 1 : 0; // a file that did not load
console.log(
  `${passed ?? 0} passed, ${(failed ?? 0) + broken} failed${
    ignored ? `, ${ignored} skipped` : ""
  }`,
);
Deno.exit(code === 0 && summary ? 0 : 1);
