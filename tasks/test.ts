/**
 * Check all types, then run every test and every example in the documentation.
 *
 *   deno task test
 *   deno task test --quick            host tests and one test per kernel
 *   deno task test --require-gpu      fail where the machine lacks something
 *   deno task test --all-cases        all cases, on a software adapter too
 *   deno task test --seeds 500        try random inputs from 500 seeds
 *   deno task test --inputs 10000 tests/fuzz_test.ts    fuzz with 10,000 inputs
 *   deno task test tests/kernels      run some of the tests
 *   deno task test --parallel tests/kernels    several files at once
 *
 * Tests for which this machine lacks something (a GPU adapter, a browser, nginx) are skipped,
 * and the summary says what to install. A software adapter compiles each kernel for a second
 * or more, so there tests take a random few of equal cases. --quick takes one to three
 * minutes; the summary says how many tests it left out. A test on random inputs prints its
 * seed when it fails; QWEN3_TEST_SEED=n repeats it. The last line is `N passed, N failed`,
 * with the number of skipped tests, if any.
 */
import { prepareEnvironment } from "../lib/webgpu/environment.ts";
import { nearest } from "../lib/text/messages.ts";
import { versionText } from "./flags.ts";

const REQUIRE_GPU = "QWEN3_REQUIRE_GPU"; // read by tests/support/gpu.ts
const QUICK = "QWEN3_TEST_QUICK"; // read by tests/support/quick.ts
const ALL_CASES = "QWEN3_ALL_CASES"; // read by tests/support/gpu.ts
const SEEDS = "QWEN3_TEST_SEEDS"; // read by tests/support/random.ts
const INPUTS = "QWEN3_TEST_INPUTS"; // read by tests/fuzz_test.ts

/**
 * The files that take longest come first, so that none of them is left to run alone at the
 * end. The rest is listed, because the runner's default pattern would match this file too.
 */
const WHERE = [
  "tests/golden_test.ts",
  "tests/tasks/bench_test.ts",
  "tests/batch_test.ts",
  "tests/engine/engine_test.ts",
  "tests/browser_test.ts",
  "tests/gguf_golden_test.ts",
  "tests/engine/runs_test.ts",
  "tests/server/page_test.ts",
  "tests/model/mixed_formats_test.ts",
  "tests/fuzz_test.ts",
  "tests/load_test.ts",
  "tests/runtimes_test.ts",
  "tests/tasks/width_test.ts",
  "tests/tools/texts_test.ts",
  "tests/tasks/generate_test.ts",
  ...["tests", "lib", "kernels", "mod.ts", "README.md"],
];
/**
 * Test files that run at once: the software adapter and the CPU path use all cores, but many
 * tests wait for processes, browsers and servers.
 */
const JOBS = 3;

/** Our flags, and those of deno test that look like one of them. */
const FLAGS = [
  ...["--quick", "--require-gpu", "--all-cases", "--seeds", "--inputs"],
  ...["--parallel", "--version"],
];
const DENO_FLAGS = ["--quiet", "--seed"];

const HELP = `deno task test [flags] [files or folders]

  --quick        host tests and one test per kernel: one to three minutes
  --require-gpu  fail where this machine lacks a GPU adapter, a browser or nginx
  --all-cases    all cases on a software adapter too, not a random few
  --seeds N      repeat tests on random inputs with N seeds
  --inputs N     give the fuzzer N inputs instead of 500
  --parallel     run several files at once, as without files or folders
  --help, -h     print this text
  --version      print the version

Other flags go to deno test (--filter …). QWEN3_TEST_SEED=n repeats one seed.`;

prepareEnvironment();
const args = [...Deno.args];
if (takes("--help") || takes("-h")) {
  console.log(HELP);
  Deno.exit(0);
}
if (takes("--version")) {
  console.log(versionText());
  Deno.exit(0);
}
Deno.env.delete("INIT_CWD"); // the tasks that tests run stand where the tests put them
if (takes("--require-gpu")) Deno.env.set(REQUIRE_GPU, "1");
const quick = takes("--quick") !== undefined;
if (quick) Deno.env.set(QUICK, "1");
if (takes("--all-cases")) Deno.env.set(ALL_CASES, "1");
takesNumber("--seeds", SEEDS);
takesNumber("--inputs", INPUTS);
const parallel = takes("--parallel") !== undefined || args.length === 0;
refuseMistyped();
const adapter = await navigator.gpu?.requestAdapter() != null;

let passed = 0, failed = 0, skipped = 0;
if (parallel) await runParallel();
else await run(args);
if (skipped) console.log(`${skipped} tests were not run: ${why()}.`);
console.log(
  `${passed} passed, ${failed} failed${skipped ? `, ${skipped} skipped` : ""}`,
);
Deno.exit(failed ? 1 : 0);

/** Takes a flag and its values out of `args`; undefined if it is absent. */
function takes(flag: string, values = 0): string[] | undefined {
  const at = args.indexOf(flag);
  return at < 0 ? undefined : args.splice(at, 1 + values).slice(1);
}

/** Takes a flag with a number, which tests read from an environment variable. */
function takesNumber(flag: string, variable: string): void {
  const values = takes(flag, 1);
  if (!values) return;
  if (!/^[1-9]\d*$/.test(values[0])) {
    console.error(
      `error: Cannot run the tests: ${flag} is ${
        values[0] ?? "missing its number"
      }, must be a positive integer`,
    );
    Deno.exit(1);
  }
  Deno.env.set(variable, values[0]);
}

/** Refuses flags that are nearly ours, about which deno test knows less. */
function refuseMistyped(): void {
  const end = args.indexOf("--");
  for (const arg of args.slice(0, end < 0 ? args.length : end)) {
    const [flag] = arg.split("=");
    const known = !flag.startsWith("--") || DENO_FLAGS.includes(flag);
    const close = known ? undefined : nearest(flag, FLAGS);
    if (close === undefined) continue;
    console.error(
      `error: Cannot run the tests: ${arg} is unknown, did you mean ${close}?`,
    );
    Deno.exit(1);
  }
}

/**
 * Runs several files at once. Those that set environment variables, which the others would
 * see, run one after another in a process of their own, beside the rest.
 */
async function runParallel(): Promise<void> {
  const flags = args.filter((arg) => arg.startsWith("-"));
  const named = args.filter((arg) => !arg.startsWith("-"));
  if (named.length === 0) {
    // Types are checked once for both processes, and for what no test imports.
    const { success } = await deno(["check", "--doc", ".", "README.md"]).status;
    if (!success) return void failed++;
    flags.push("--no-check");
  }
  const { alone, rest } = await separate(named.length ? named : WHERE);
  if (alone.length === 0) return await run(["--parallel", ...flags, ...rest]);
  const others = ["--parallel", ...flags, ...rest];
  await run([...flags, ...alone], rest.length ? run(others) : undefined);
}

/**
 * Test files that set environment variables, and the rest. Folders are replaced by their test
 * files: `deno test --ignore` has no effect on folders if a file is named as well.
 * Those without any have examples.
 */
async function separate(
  paths: readonly string[],
): Promise<{ alone: string[]; rest: string[] }> {
  const alone = new Set<string>(), rest = new Set<string>();
  for (const path of paths) {
    const files = await testFiles(path);
    for (const file of files.length ? files : [path]) {
      const text = files.length ? await Deno.readTextFile(file) : "";
      const sets = /\bDeno\.env\.(set|delete)\(/.test(text);
      (sets ? alone : rest).add(file);
    }
  }
  return { alone: [...alone], rest: [...rest] };
}

/** The test files of a path, in order; none if it does not exist, which Deno says. */
async function testFiles(path: string): Promise<string[]> {
  const found = await Deno.stat(path).catch(() => undefined);
  if (!found?.isDirectory) {
    return found && /_test\.ts$/.test(path) ? [path] : [];
  }
  const inside = Array.from(Deno.readDirSync(path), ({ name }) => name);
  const files: string[] = [];
  for (const name of inside.sort()) {
    files.push(...await testFiles(`${path}/${name}`));
  }
  return files;
}

/**
 * Runs Deno's test runner and adds up its summary. What it prints is shown at once, or when
 * `before` has ended.
 */
async function run(args: string[], before?: Promise<void>): Promise<void> {
  const runner = deno(["test", "-A", "--doc", ...args], "piped");
  let last = "";
  const [shown, read] = runner.stdout.tee();
  const show = () => shown.pipeTo(Deno.stdout.writable, { preventClose: true });
  const showing = before ? before.then(show) : show();
  for await (const text of read.pipeThrough(new TextDecoderStream())) {
    last = (last + text).slice(-20_000);
  }
  const { code } = await runner.status;
  await showing;
  const summary = [...last.matchAll(
    /\| (\d+) passed(?: \([^)]*\))? \| (\d+) failed(?: \([^)]*\))?(?: \| (\d+) ignored)?/g,
  )].at(-1);
  if (!summary) console.log("The test runner ended before its summary.");
  const [ok = 0, wrong = 0, ignored = 0] = (summary ?? []).slice(1)
    .map((n) => Number(n ?? 0));
  passed += ok;
  skipped += ignored;
  // A file that fails to load counts no failed test.
  failed += wrong || (code === 0 && summary ? 0 : 1);
}

/** Starts Deno. */
function deno(
  args: string[],
  stdout: "inherit" | "piped" = "inherit",
): Deno.ChildProcess {
  return new Deno.Command(Deno.execPath(), {
    args,
    env: {
      NO_COLOR: "1",
      DENO_JOBS: `${JOBS}`,
      // Files that run at once keep the cores busy without llvmpipe's own threads.
      ...(parallel ? { LP_NUM_THREADS: "0" } : {}),
      // Constants tuned on this machine must not affect the tests.
      QWEN3_TUNING_DIR: Deno.makeTempDirSync(),
      QWEN3_CACHE_DIR: Deno.makeTempDirSync(),
    },
    stdout,
    stderr: "inherit",
  }).spawn();
}

/** Why tests were skipped. */
function why(): string {
  const lacks = adapter
    ? 'a browser or nginx (Debian, Ubuntu: "apt-get install chromium nginx-light")'
    : 'a WebGPU adapter (Debian, Ubuntu: "apt-get install mesa-vulkan-drivers" brings a software one)';
  if (!quick) return `this machine lacks ${lacks}`;
  const left =
    "--quick skips slow tests and all GPU tests except one per kernel";
  return adapter ? left : `${left}; for the rest this machine lacks ${lacks}`;
}
