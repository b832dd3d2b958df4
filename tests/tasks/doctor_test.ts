import { assert, assertEquals, assertMatch } from "@std/assert";
import type { DoctorReport, Finding } from "../../lib/tools/doctor/report.ts";
import { gpuTest } from "../support/gpu.ts";
import { runTask } from "../support/run_task.ts";

const TINY = "tests/fixtures/tiny-tied-bf16";

const task = (args: string[], env?: Record<string, string>) =>
  runTask("doctor", args, env);

/** Fails if a line has more than 100 columns. */
function assertFits(text: string) {
  for (const line of text.split("\n")) {
    assert(line.length <= 100, `${line.length} columns: ${line}`);
  }
}

/** Vulkan without a driver, as on a machine without a GPU. */
const NO_DRIVER = { VK_DRIVER_FILES: "/none", DENO_WEBGPU_BACKEND: "vulkan" };

Deno.test("without an adapter --json is a report of what works, exit code 0", async () => {
  const { code, stdout, stderr } = await task(
    ["--json", "--model", TINY, "--context", "16"],
    NO_DRIVER,
  );
  assertEquals([code, stderr], [0, ""]);
  assertMatch(stdout, /^\{[^\n]*\}\n$/);
  const { ok, findings }: DoctorReport = JSON.parse(stdout);
  assertEquals(ok, true);
  for (const { severity, topic, text } of findings) {
    assertMatch(severity, /^(green|yellow|red)$/);
    assert(topic && text && !text.includes("\n"));
  }
  const of = (topic: string): Finding =>
    findings.find((finding) => finding.topic === topic)!;
  assertEquals(of("adapter").severity, "yellow");
  assertEquals(of("CPU path").severity, "green");
  assertMatch(of("model").text, /KV cache of 16 tokens/);
  assertEquals(of("model").data!.context, 16);
});

Deno.test("deno task doctor --help fits 100 columns", async () => {
  const { code, stdout } = await task(["--help"]);
  assertEquals(code, 0);
  assertFits(stdout);
});

Deno.test("a wrong flag, word or context ends with exit code 1", async () => {
  for (const args of [["--modle", TINY], [TINY], ["--context", "many"]]) {
    const { code, stdout, stderr } = await task(args, NO_DRIVER);
    assertEquals([code, stdout], [1, ""]);
    assertMatch(stderr, /^error: Cannot (read the flags|diagnose): .*\n$/);
  }
  const { code, stdout } = await task(
    ["--model", TINY, "--context", "1000000"],
    NO_DRIVER,
  );
  assertEquals(code, 1);
  assertMatch(stdout, /^✗ context +--context is 1000000, must be from 1 to/m);
  assertMatch(stdout, /\n✗ problems: context\n$/);
  assertFits(stdout);
});

Deno.test("without an adapter the CPU path works: yellow, exit code 0", async () => {
  const { code, stdout, stderr } = await task(["--threads", "1"], NO_DRIVER);
  assertEquals([code, stderr], [0, ""], stdout);
  assertFits(stdout);
  assertMatch(
    stdout,
    /^! adapter +no WebGPU adapter here; install the GPU's /m,
  );
  assertMatch(stdout, /^✓ model +the story model needs /m);
  assertMatch(stdout, /^✓ CPU path +\S+ on 1 thread .* 238 cases,/ms);
  assertMatch(stdout, /^✓ CPU reply +the story model wrote 16 tokens/m);
  assertMatch(stdout, /\n\n! the CPU path works, [^\n]*\n$/);
});

async function checkBrief() {
  const { code, stdout, stderr } = await task(["--model", TINY]);
  assertEquals([code, stderr], [0, ""], stdout);
  assertFits(stdout);
  const lines = stdout.trimEnd().split("\n").filter(Boolean);
  // A line that goes on is indented up to the text of the first, a long path less.
  for (const line of lines) assertMatch(line, /^[✓!] | {21}\S|^ *\/\S+$/);
  assertMatch(
    lines.at(-1)!,
    /^✓ no problems$|^! everything works, but slower than it could: |^! the CPU path works, /,
  );
  assertMatch(stdout, /^✓ kernels +\d+ kernels, /m);
  assert(!/^✓ gemv|vendor|device 0/m.test(stdout), stdout);
}

async function checkVerbose() {
  const verbose = await task(["--model", TINY, "--verbose"]);
  assertEquals([verbose.code, verbose.stderr], [0, ""], verbose.stdout);
  assertFits(verbose.stdout);
  assertMatch(verbose.stdout, /^✓ gemv +\d+ cases?, all correct/m);
  assertMatch(verbose.stdout, /^✓ kernels +\d+ kernels, .*all correct/m);
  assertMatch(verbose.stdout, /^✓ adapter request .*high-performance/m);
}

gpuTest(
  "with an adapter every line is fine and fits, exit code 0; --verbose lists the kernels",
  async (_, trial) => {
    // Each compiles the first case of every kernel.
    for (const check of trial.some([checkBrief, checkVerbose], 1)) {
      await check();
    }
  },
);
