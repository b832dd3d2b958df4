import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { openDevice } from "../../lib/device/open_device.ts";
import { tune } from "../../lib/tools/tune/tune.ts";
import { saveTuning, TUNING_DIR } from "../../lib/device/tuning_file.ts";
import { TUNED_KERNELS } from "../../kernels/list.ts";
import { gpuTest, type Trial } from "../support/gpu.ts";
import { RUN, runTask } from "../support/run_task.ts";
import { tamperedGpu } from "../support/tampered_gpu.ts";

const ROOT = new URL("../..", import.meta.url).pathname;
const TINY = `${ROOT}tests/fixtures/tiny-tied-bf16`;

/**
 * A budget that no test uses up, so that results do not depend on the machine's speed.
 */
const UNLIMITED = "100000";

const task = (folder: string, ...args: string[]) =>
  runTask("tune", args, { [TUNING_DIR]: folder });

gpuTest("winners are stored, and loaded by the next device", async () => {
  const folder = await Deno.makeTempDir(), before = Deno.env.get(TUNING_DIR);
  try {
    // A shape that an earlier run stored.
    Deno.env.set(TUNING_DIR, folder);
    const kept = "gemm bf16 64 1024 2048";
    const constants = { BM: 32, BN: 64, BK: 16, TM: 4, TN: 8 };
    using first = await openDevice();
    await saveTuning(
      first,
      new Map([[kept, { constants, gain: 0.1, spread: 0.01, model: "m" }]]),
    );
    const { code, stdout, stderr } = await task(
      folder,
      ...["--model", TINY, "--kernels", "gemv"],
      ...["--budget-seconds", UNLIMITED, "--json"],
    );
    assertEquals(code, 0, stderr);
    assertEquals(stdout.trimEnd().split("\n").length, 1);
    const report = JSON.parse(stdout);
    assertEquals(report.wrong, []);
    assert(report.cases.length >= 5, stderr);
    assertMatch(stderr, /^gemv bf16.* \(1 of \d+\) …$/m);
    const winners = new Map<string, Record<string, number>>([[
      kept,
      constants,
    ]]);
    for (const found of report.cases) {
      const { key, winner, gain, spread, outcome, refused } = found;
      assertMatch(key, /^gemv bf16/);
      assertEquals(refused, 0); // candidates that cannot run are left out earlier
      assertStringIncludes(stderr, key);
      assert(outcome !== "");
      if (!winner) continue;
      assert(gain > spread);
      winners.set(key, winner);
    }
    using second = await openDevice();
    assertEquals(new Map([...second.tuned]), new Map([...winners]));
    const { value, reason } = second.choices
      .find(({ what }) => what === "tuned constants")!;
    assertMatch(value, new RegExp(`^${winners.size} shape`));
    assertEquals(reason, `from ${report.file}`);
  } finally {
    if (before === undefined) Deno.env.delete(TUNING_DIR);
    else Deno.env.set(TUNING_DIR, before);
    await Deno.remove(folder, { recursive: true });
  }
});

const WRONG_GEMV = [
  /(u\.column \+ row\]) = value;/,
  "$1 = 1.01 * value;",
] as const;

/**
 * On a software adapter, which compiles each candidate for a second, lets tuning try fewer
 * until this is disposed: `value` and random others of constant `name`, and of the rest
 * some that keep any candidate valid.
 */
function narrowed(
  kernel: string,
  name: string,
  value: number,
  trial: Trial,
): Disposable {
  const { grid } = TUNED_KERNELS.find((one) => one.name === kernel)!.tuning;
  const whole = { ...grid };
  const set = (changes: Record<string, readonly number[]>) =>
    void Object.assign(grid, changes);
  const others = whole[name].filter((one) => one !== value);
  set({
    [name]: [value, ...trial.some(others, 1)],
    STEPS: trial.some(whole.STEPS, 1),
  });
  return { [Symbol.dispose]: () => set(whole) };
}

// Slightly wrong, and only with a constant other than the default.
for (
  const [kernel, name, value, from, to] of [
    ["gemv", "WORKGROUP", 64, ...WRONG_GEMV],
    [
      ...["attendDecode", "LOG_KEY_LANES", 2] as const,
      ...[/exp\(score_0 - top_0\)/, "exp(0.9 * (score_0 - top_0))"] as const,
    ],
  ] as const
) {
  gpuTest(
    `a wrong candidate of ${kernel} is reported and never chosen`,
    async (_, trial) => {
      using _narrowed = narrowed(kernel, name, value, trial);
      const wrongs = (wgsl: string) =>
        wgsl.includes(`const ${name}: u32 = ${value}u;`) && from.test(wgsl);
      let planted = 0;
      const gpu = tamperedGpu(kernel, (wgsl) => {
        if (!wrongs(wgsl)) return wgsl + "\n"; // unchanged in effect
        planted++;
        return wgsl.replace(from, to);
      });
      const { cases, wrong, winners, file } = await tune(TINY, {
        ...{
          gpu,
          kernels: [kernel],
          budgetSeconds: Number(UNLIMITED),
          dryRun: true,
        },
      });
      assert(planted > 0, "nothing was planted");
      assert(wrong.length > 0);
      for (const { key, constants, problem } of wrong) {
        assertEquals(constants[name], value);
        assertMatch(key, new RegExp(`^${kernel}`));
        assertMatch(
          problem,
          /differs from the CPU at \[\d+, \d+\]: .* on the GPU/,
        );
      }
      for (const { winner } of cases) assert(winner?.[name] !== value);
      assertEquals(
        cases.reduce((sum, { wrong }) => sum + wrong, 0),
        wrong.length,
      );
      assertEquals(winners, cases.filter(({ winner }) => winner).length);
      assertEquals(file, undefined);
    },
  );
}

gpuTest("if the default is wrong, no candidate is chosen", async () => {
  const gpu = tamperedGpu("gemv", (wgsl) => wgsl.replace(...WRONG_GEMV));
  const { cases, wrong, winners } = await tune(TINY, {
    ...{
      gpu,
      kernels: ["gemv"],
      budgetSeconds: Number(UNLIMITED),
      dryRun: true,
    },
  });
  assertEquals([wrong.length, winners], [cases.length, 0]);
  for (const [i, { key, outcome, timed }] of cases.entries()) {
    assertMatch(outcome, /the DEFAULT is wrong, run deno task doctor/);
    assertEquals([wrong[i].key, wrong[i].constants], [key, cases[i].default]);
    assertEquals(timed, 0);
  }
});

for (
  const [args, message] of [
    [
      ["--kernels", "gemv,gem"],
      /gem is unknown, did you mean gemm\?$/,
    ],
    [
      ["--kernels", "unlike"],
      /unlike is unknown, try --help$/,
    ],
    [["--kernels", ","], /the list of kernels is empty/],
    [["--budget-seconds", "0"], /--budget-seconds is 0, must be more than 0/],
    [["--budget", "5"], /--budget is unknown, did you mean --budget-seconds\?/],
    [["words"], /unexpected argument "words", this task takes flags only/],
    [["--model", "/nowhere"], /Cannot open "\/nowhere"/],
    [["--kv", "q8"], /--kv is "q8", must be auto, f16, f32 or q8_0$/],
    [
      ["--kv", "q8_0", "--model", "tests/fixtures/tiny-untied-f32"],
      /Cannot tune tests.*: --kv is "q8_0", must be auto, f16 or f32: heads have 16 values, q8_0 takes blocks of 32$/,
    ],
  ] as const
) {
  Deno.test(`deno task tune refuses in one line: ${args.join(" ")}`, async () => {
    const { code, stdout, stderr } = await task("/nowhere", ...args);
    assertEquals([code, stdout], [1, ""]);
    const lines = stderr.trimEnd().split("\n");
    assertEquals(lines.length, 1, stderr);
    assertMatch(lines[0], message);
  });
}

gpuTest(
  "the table and its summary are on stdout, progress is not",
  async () => {
    const folder = await Deno.makeTempDir();
    const { code, stdout, stderr } = await task(
      folder,
      ...["--model", TINY, "--kernels", "gemv", "--dry-run"],
      ...["--budget-seconds", UNLIMITED],
    );
    await Deno.remove(folder, { recursive: true });
    assertEquals(code, 0, stderr);
    const lines = stdout.trimEnd().split("\n");
    assertMatch(lines[0], /^kernel and shape +outcome +gain +spread +timed$/);
    const rows = lines.filter((line) => line.startsWith("gemv bf16"));
    assert(rows.length >= 5, stdout);
    const summary = lines.slice(lines.indexOf("") + 1).join(" ");
    assertMatch(
      summary,
      new RegExp(`^tuned constants beat .* of ${rows.length} `),
    );
    assertMatch(summary, /nothing was stored \(--dry-run\)$/);
    for (const line of [...lines, ...stderr.split("\n")]) {
      assert([...line].length <= 100, line);
    }
    assertMatch(stderr, /: \d+ shapes, timed/);
    assert(!stderr.includes("tuned constants beat"), stderr);
  },
);

gpuTest("kernels of several rows are checked too", async () => {
  for (const kernel of ["gemvRows", "gemm"]) {
    const begun = new AbortController();
    const error = await assertRejects(() =>
      tune(TINY, {
        kernels: [kernel],
        budgetSeconds: Number(UNLIMITED),
        dryRun: true,
        // The default is checked, then this is found to be aborted.
        onProgress: () => begun.abort(),
        signal: begun.signal,
      })
    );
    assertEquals(error, begun.signal.reason);
  }
});

gpuTest(
  "Ctrl-C ends tuning with code 130, and says what is stored",
  async () => {
    const folder = await Deno.makeTempDir();
    await using child = new Deno.Command(Deno.execPath(), {
      args: [
        ...[...RUN, "tasks/tune.ts", "--model", TINY, "--json", "--dry-run"],
        ...["--budget-seconds", UNLIMITED],
      ],
      cwd: ROOT,
      env: { [TUNING_DIR]: folder, NO_COLOR: "1" },
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    let stderr = "", killed = false;
    for await (
      const text of child.stderr.pipeThrough(new TextDecoderStream())
    ) {
      stderr += text;
      if (killed || !stderr.includes("(1 of ")) continue;
      child.kill("SIGINT");
      killed = true;
    }
    assertEquals((await child.status).code, 130, stderr);
    assertEquals(await new Response(child.stdout).text(), "");
    assertMatch(stderr, /^Interrupted: nothing was stored$/m);
    await Deno.remove(folder, { recursive: true });
  },
);

gpuTest(
  "a folder that cannot be written ends the task immediately",
  async () => {
    const file = await Deno.makeTempFile();
    const { code, stderr } = await task(file, "--model", TINY);
    await Deno.remove(file);
    assertEquals(code, 1);
    assertMatch(stderr, /^error: Cannot store tuned constants in .*: .*\n$/);
  },
);
