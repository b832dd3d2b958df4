/** What tasks print fits 100 columns; results are on stdout, where JSON stands alone. */
import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import config from "../../deno.json" with { type: "json" };
import { CACHE_DIR } from "../../lib/host.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import {
  radvTable,
  statisticsOf,
  variantsOnAmd,
} from "../../lib/tools/radv/radv.ts";
import { gpuTest, someOf } from "../support/gpu.ts";
import {
  rangeResponse,
  readFolder,
  serveFiles,
} from "../support/serve_folder.ts";
import { slowTest } from "../support/quick.ts";
import { assertFits, columns } from "../support/ruler.ts";
import { type Outcome, runTask } from "../support/run_task.ts";

const TASKS = [
  ...Object.keys(config.tasks).filter((name) => name !== "ok"),
  "qwen3",
];
/** An environment in which there is no adapter. */
const NO_ADAPTER = { VK_DRIVER_FILES: "/none", DENO_WEBGPU_BACKEND: "vulkan" };
const CPU = ["--device", "cpu"];
const STORY_FOLDER = "models/stories-3m";
const STORY = ["--model", STORY_FOLDER];
const SHORT = ["--max-tokens", "4"];
const EIGHT = ["--max-tokens", "8"];
const FEW = ["--prompt-tokens", "4", "--max-tokens", "3"];

/** A case: the task, its arguments, and whether it needs an adapter. */
interface Case {
  task: string;
  args: readonly string[];
  /** `yes`, `no`, or `none`: there must not be one. */
  adapter: "yes" | "no" | "none";
  /** Whether the result can be had as JSON. */
  json?: boolean;
  /** Whether stdout is text of a model or a kernel, which may be of any width. */
  free?: boolean;
}

const CASES: readonly Case[] = [
  { task: "doctor", args: STORY, adapter: "yes", json: true },
  { task: "doctor", args: ["--verbose"], adapter: "yes" },
  { task: "doctor", args: [], adapter: "none", json: true },
  { task: "profile", args: [...STORY, ...FEW], adapter: "yes", json: true },
  {
    task: "profile",
    args: [...STORY, ...FEW, "--verbose", "--compare"],
    adapter: "yes",
  },
  { task: "profile", args: FEW, adapter: "none", json: true },
  {
    task: "tune",
    args: [
      ...STORY,
      ...["--kernels", "gemv", "--dry-run", "--budget-seconds", "2"],
    ],
    adapter: "yes",
    json: true,
  },
  {
    task: "bench",
    args: [...STORY, ...["--only", "decode-128", "--runs", "1"], ...EIGHT],
    adapter: "yes",
    json: true,
  },
  {
    task: "bench",
    args: [...STORY, ...["--only", "cpu", "--runs", "1"], ...EIGHT],
    adapter: "none",
    json: true,
  },
  {
    task: "generate",
    args: ["Once", ...SHORT, ...STORY],
    adapter: "yes",
    json: true,
    free: true,
  },
  {
    task: "generate",
    args: ["Once", ...SHORT],
    adapter: "none",
    json: true,
    free: true,
  },
  {
    task: "generate",
    args: ["1", ...SHORT, "--model", "synthetic:qwen3-0.6b?layers=1&vocab=64"],
    adapter: "no",
    json: true,
    free: true,
  },
  {
    task: "chat",
    args: ["Once", ...SHORT, ...CPU, "--verbose"],
    adapter: "no",
    free: true,
  },
  {
    task: "embed",
    args: ["A dog ran.", "It rained.", ...STORY],
    adapter: "yes",
    json: true,
    free: true,
  },
  {
    task: "embed",
    args: ["A dog ran.", "It rained.", "--query", "A dog", ...CPU],
    adapter: "no",
    json: true,
  },
  { task: "show", args: ["gemm"], adapter: "none", free: true },
];

/** Which of the cases run; of those of a task on an adapter, one on a software adapter. */
const CHOSEN: readonly Case[] = Array.from(
  Map.groupBy(CASES, ({ task, adapter }) => `${task} ${adapter}`),
  ([key, cases]) => key.endsWith("yes") ? someOf(cases, 1) : cases,
).flat();

/** Cases that run again for JSON, which the tests of most tasks look at too. */
const AS_JSON = new Set(someOf(CHOSEN.filter(({ json }) => json), 3));

/** Tasks that are asked for more than `--help`; all read their flags alike. */
const ASKED_MORE = new Set(someOf(TASKS, 4));

/** Warnings of the machine's graphics libraries. */
const OF_DRIVERS = /XDG_RUNTIME_DIR|MESA|EGL/;

function measure({ stdout, stderr }: Outcome, free = false): void {
  if (!free) assertFits(stdout);
  const ours = stderr.split("\n").filter((line) => !OF_DRIVERS.test(line));
  assertFits(ours.join("\n"));
}

/** JSON is one line, alone on stdout. */
function measureJson(outcome: Outcome): void {
  measure(outcome, true);
  assertEquals(outcome.code, 0, outcome.stderr);
  const lines = outcome.stdout.split("\n");
  assertEquals([lines.length, lines[1]], [2, ""], outcome.stdout);
  assert(typeof JSON.parse(lines[0]) === "object");
}

Deno.test("the ruler counts columns, not characters", () => {
  assertEquals(columns("é✓…"), 3);
  assertEquals(columns("模型"), 4);
  assertEquals(columns("\x1b[31mred\x1b[39m"), 3);
  assertFits(`${"x".repeat(100)}\n${"模".repeat(50)}`);
  assertThrows(() => assertFits("x".repeat(101)));
  assertThrows(() => assertFits("模".repeat(51)));
});

for (const task of TASKS) {
  Deno.test(`${task}: help and version fit 100 columns`, async () => {
    const help = await runTask(task, ["--help"]);
    measure(help);
    assertEquals([help.code, help.stderr], [0, ""]);
    const typed = task === "qwen3" ? task : `deno task ${task}`;
    assert(help.stdout.startsWith(`${typed} `), help.stdout);
    assertMatch(help.stdout, /^ {2}--help, -h +print this text\b/m);
    if (!ASKED_MORE.has(task)) return;
    assertEquals(await runTask(task, ["-h"]), help);
    const version = await runTask(task, ["--version"]);
    measure(version);
    assertEquals([version.code, version.stderr], [0, ""]);
    assertMatch(version.stdout, /^@qwen3\/webgpu 0\.1\.0, Deno /);
  });
}

for (const chosen of CHOSEN) {
  const { task, args, adapter, free } = chosen;
  const test = adapter === "yes" ? gpuTest : slowTest;
  const env = adapter === "none" ? NO_ADAPTER : {};
  const where = adapter === "none" ? " without an adapter" : "";
  test(`${task} ${args.join(" ")}${where} fits 100 columns`, async () => {
    const outcome = await runTask(task, args, env);
    measure(outcome, free);
    assertEquals(outcome.code, 0, outcome.stderr);
    assert(outcome.stdout.trim() !== "", "nothing on stdout");
    if (!AS_JSON.has(chosen)) return;
    measureJson(await runTask(task, [...args, "--json"], env));
  });
}

// Errors are exempt: they repeat a name or path in full, in one line.
slowTest("what names a long path still fits", async () => {
  const long = "a-name-as-long-as-some-checkpoints-have".repeat(5);
  const folder = await Deno.makeTempDir({ prefix: long.slice(0, 150) });
  try {
    for await (const { name } of Deno.readDir(STORY_FOLDER)) {
      await Deno.copyFile(`${STORY_FOLDER}/${name}`, `${folder}/${name}`);
    }
    const few = [...SHORT, ...CPU, "--context", "64"];
    measure(await runTask("generate", ["Once", ...few, "--model", folder]));
    const large = ["--model", "synthetic:qwen3-32b", "--context", "40960"];
    measure(await runTask("doctor", large, NO_ADAPTER));
    measure(await runTask("profile", [...FEW, ...CPU, "--model", folder]));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

slowTest(
  "a web folder, and the cache that keeps it",
  async () => {
    const path = `/${"a-long-part-of-a-path/".repeat(2)}`;
    const files = new Map<string, Uint8Array<ArrayBuffer>>();
    for (const [name, file] of await readFolder(STORY_FOLDER)) {
      files.set(path + name.slice(1), file.slice());
    }
    await using server = serveFiles(files, {
      intercept(request) {
        const file = files.get(new URL(request.url).pathname);
        return file && rangeResponse(request, file, { etag: '"one"' });
      },
    });
    const folder = await Deno.makeTempDir();
    try {
      const env = { [CACHE_DIR]: folder }, url = server.url + path;
      const words = ["Once", ...SHORT, ...CPU, "--model", url];
      measure(await runTask("generate", words, env), true);
      const listed = await runTask("cache", [], env);
      assertMatch(listed.stdout, /a-long-part/);
      measure(listed);
      measureJson(await runTask("cache", ["--json"], env));
      measure(await runTask("cache", ["--clear"], env));
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
);

Deno.test("the header of show and the table of radv fit 100 columns", async () => {
  await using checkpoint = await openCheckpoint("synthetic:qwen3-32b");
  const { config } = checkpoint;
  // Numbers as large as RADV's can be, or become for these kernels.
  const statistics = new Map([
    ...["SGPRs", "VGPRs", "Spilled SGPRs", "Spilled VGPRs"].map((name) =>
      [name, 256] as const
    ),
    ["Code size", 99_999],
    ["LDS size", 65_536],
    ["Scratch size", 99_999],
    ["Subgroups per SIMD", 16],
    ["Latency", 9_999_999],
    ["Inverse Throughput", 9_999_999],
  ]);
  const rows = variantsOnAmd({ config }).map((variant) =>
    statisticsOf(variant, { name: "navi31", generation: "GFX11" }, {
      wave: 64,
      statistics,
    })
  );
  assertFits(radvTable(rows));
  for (const kernel of ["gemm", "attendDecode", "qkNormRope"]) {
    const { stdout } = await runTask("show", [kernel], NO_ADAPTER);
    const header = stdout.split("\n").filter((line) => line.startsWith("//"));
    assert(header.length > 2);
    assertFits(header.join("\n"));
  }
});
