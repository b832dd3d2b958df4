import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertMatch,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import type { AgainstReport } from "../../bench/against.ts";
import { batchRow } from "../../bench/batch_row.ts";
import { reportMarkdown } from "../../bench/markdown.ts";
import { modelOfPeers } from "../../bench/peers.ts";
import {
  type BenchReport,
  headText,
  measure,
  peersText,
  type Row,
  rowText,
} from "../../bench/report.ts";
import { chooseRows, rowKinds, runsText } from "../../bench/rows.ts";
import { BenchSetting } from "../../bench/setting.ts";
import { type Entry, SMALL, smallTensors, writeGguf } from "../support/gguf.ts";
import { gpuTest } from "../support/gpu.ts";
import { RUN, runTask } from "../support/run_task.ts";

const STORIES = "models/stories-3m";

function assertFits(text: string): void {
  for (const line of text.split("\n")) {
    assert([...line].length <= 100, `${line.length} columns: ${line}`);
  }
}

const task = (args: string[], env?: Record<string, string>) =>
  runTask("bench", args, env);

/** A folder like bench/peers/pack.sh's, whose benchmark only echoes its arguments. */
async function pretendPeers(folder: string, kind = "gpu"): Promise<void> {
  const script = `#!/bin/sh
[ "$3" = ${kind} ] || { echo "no such device" >&2; exit 1; }
model=$1; shift 2; kind=$1; runs=$2; shift 2
for workload in "$@"; do
  echo "{\\"workload\\":\\"$workload\\",\\"tokensPerSecond\\":2,\\"low\\":1,\\"high\\":3,\\"runs\\":$runs,\\"device\\":\\"$kind\\",\\"model\\":\\"$model\\",\\"threads\\":\\"$THREADS\\"}"
done
`;
  await Deno.writeTextFile(`${folder}/llama_bench`, script, { mode: 0o755 });
  const { success } = await new Deno.Command("tar", {
    args: ["--create", "--xz", "--file", "llama.tar.xz", "llama_bench"],
    cwd: folder,
  }).output();
  assert(success);
}

gpuTest(
  "--json prints rows with spread, peaks and peers alone",
  async () => {
    const folder = await Deno.makeTempDir();
    try {
      await pretendPeers(folder);
      const { code, stdout, stderr } = await task([
        ...["--model", STORIES, "--runs", "2", "--max-tokens", "8"],
        ...["--only", "gemm-f32,decode-128,prefill-2048"],
        ...["--peers", folder, "--json"],
      ], { TMPDIR: folder });
      assertEquals(code, 0, stderr);
      const lines = stdout.trimEnd().split("\n");
      assertEquals(lines.length, 1);
      const report: BenchReport = JSON.parse(lines[0]);
      assertEquals(report.runs, 2);
      assert(report.peaks!.readGBps > 0 && report.peaks!.f32TFLOPS > 0);
      assertEquals(report.peersFailed, []);
      const [decode, prefill, gemm] = report.rows;

      assertEquals(decode.row, "decode-128");
      const [wall] = decode.measures;
      assertEquals([wall.name, wall.unit], ["generate", "tokens/s"]);
      assertEquals([wall.runs, wall.bound], [2, "memory"]);
      assert(wall.low <= wall.median && wall.median <= wall.high);
      assert(wall.low > 0 && wall.fraction! > 0);
      const { readGBps } = report.peaks!;
      assertAlmostEquals(wall.readGBps! / readGBps, wall.fraction!, 1e-9);
      // All of its weights: the embedding table is the LM head. Few keys and values.
      const [bytes, weights] = [wall.readGBps! * 1e9 / wall.median, 6.1e6];
      assert(bytes > weights && bytes < 1.2 * weights, `${bytes}`);
      assertEquals(
        decode.peers.map((
          { program, workload, device, measure, runs, factor },
        ) => [
          ...[program, workload, device, measure, runs],
          factor! * 2 / wall.median,
        ]),
        ["vulkan", "vulkan-without-tensor-cores"].map((program) => [
          ...[`llama.cpp ${program}`, "tg@128", "gpu", "generate", 2, 1],
        ]),
      );

      assertEquals(prefill.row, "prefill-2048");
      assertEquals(prefill.measures, []);
      assertMatch(prefill.unmeasured!, /2049 tokens, the checkpoint has 1024/);
      assertEquals(prefill.peers, []);

      assertEquals(gemm.row, "gemm-f32");
      const [rate, time] = gemm.measures;
      assertEquals([rate.unit, time.unit, rate.bound], [
        "TFLOP/s",
        "ms",
        "f32",
      ]);
      const size = Number(/^(\d+)³/.exec(gemm.notes![0])![1]);
      const flops = 2 * size ** 3;
      assert(Math.abs(rate.low * time.high * 1e9 / flops - 1) < 1e-6);

      assertMatch(
        stderr.replaceAll(/\n {2}/g, " "),
        /^Measuring decode-128, prefill-2048, gemm-f32 with models\/stories-3m: 2 runs each, up to 8 tokens, (a few seconds|about )/,
      );
      assertMatch(stderr, /^decode-128 \(1 of 3\), a few seconds …$/m);
      assertMatch(stderr, /^prefill-2048 \(2 of 3\) …$/m);
      assertMatch(stderr, /^llama.cpp vulkan …$/m);
      assertFits(stderr);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
);

gpuTest("a batch is measured next to one sequence", async () => {
  const options = { model: STORIES, runs: 2, maxTokens: 4 };
  using setting = await BenchSetting.open(options);
  const [all, factor, one, gpu] = (await batchRow(setting, 8, 2)).measures;
  assertEquals([all.name, one.name, gpu.name], [
    ...["generateBatch", "generate, one sequence", "GPU time"],
  ]);
  assert(all.low > 0 && gpu.low > 0);
  assert(Math.abs(factor.high * one.median / all.high - 1) < 1e-6);
});

gpuTest("results are a table on stdout, what runs is on stderr", async () => {
  const { code, stdout, stderr } = await task([
    ...["--model", STORIES, "--runs", "2", "--max-tokens", "8"],
    ...["--only", "gemm-f32,prefill-2048"],
  ]);
  assertEquals(code, 0, stderr);
  assertMatch(
    stdout,
    /^models\/stories-3m on .*, Deno .*\npeaks measured here: .*\nprefill-2048: /,
  );
  assertStringIncludes(stdout, "\n  not measured: it needs a context of 2049");
  assertMatch(
    stdout,
    /^ {2}GPU time +[\d.,]+ TFLOP\/s \(.*8 runs\) +.*% of f32/m,
  );
  assert(!stderr.includes("GPU time"), stderr);
  assertFits(stdout + stderr);
});

Deno.test("the plan says how often rows run that take long", () => {
  const kinds = rowKinds();
  const said = (rows: string, runs: number) =>
    runsText(chooseRows(kinds, rows).map((row) => kinds.get(row)!), runs);
  assertEquals(said("cpu", 5), "3 runs");
  assertEquals(said("load,memory,first-use,gpu-over-cpu", 5), "3 runs");
  assertEquals(said("cpu", 2), "2 runs");
  assertEquals(said("decode-128", 5), "5 runs");
  assertEquals(said("decode-128,cpu", 5), "3 to 5 runs");
  assertEquals(said("context", 5), "3 to 5 runs");
  assertEquals(said("context,cpu", 1), "1 run");
});

/** Hides every Vulkan driver. */
const NO_DRIVER = { VK_ICD_FILENAMES: "/nonexistent.json" };

Deno.test("--only cpu needs no GPU", async () => {
  const { code, stdout, stderr } = await task([
    ...["--model", STORIES, "--runs", "1", "--max-tokens", "8"],
    ...["--only", "cpu"],
  ], NO_DRIVER);
  assertEquals(code, 0, stderr);
  assertMatch(stdout, /^models\/stories-3m, Deno [\d.]+\ncpu: the CPU path/);
  assertMatch(stdout, /^ {2}generate +[\d.,]+ tokens\/s \(1 run\)$/m);
  assertMatch(stderr, /^Measuring cpu with models\/stories-3m: 1 run each, /);
  assert(!stderr.includes("GPU"), stderr);
});

Deno.test("without a GPU, rows that need one say so", async () => {
  const { code, stdout, stderr } = await task([
    ...["--model", STORIES, "--runs", "1", "--max-tokens", "8", "--json"],
    ...["--only", "gpu-over-cpu,cpu,load,gemm-f32"],
  ], NO_DRIVER);
  assertEquals(code, 0, stderr);
  assertMatch(stderr.replace("\n  ", " "), /only cpu is measured$/m);
  const { rows, adapter, peaks }: BenchReport = JSON.parse(stdout);
  assertEquals([adapter, peaks], [undefined, undefined]);
  for (const { row, measures, unmeasured } of rows) {
    assertEquals(measures.length > 0, row === "cpu");
    if (row !== "cpu") assertMatch(unmeasured!, /^Cannot open a GPU: /);
  }
  const alone = await task(["--model", STORIES, "--only", "load"], NO_DRIVER);
  assertEquals([alone.code, alone.stdout], [1, ""]);
  assertMatch(alone.stderr, /^error: Cannot open a GPU: [^\n]*\n$/);
});

gpuTest(
  "fresh processes and peers get paths from where the user stands",
  async () => {
    const folder = await Deno.makeTempDir();
    try {
      await Deno.mkdir(`${folder}/peers`);
      await pretendPeers(`${folder}/peers`);
      await Deno.symlink(Deno.realPathSync(STORIES), `${folder}/stories`);
      const { code, stdout, stderr } = await task([
        ...["--model", "./stories", "--only", "load,memory,first-use,cpu"],
        ...["--runs", "1", "--max-tokens", "8", "--peers", "peers", "--json"],
      ], { TMPDIR: folder, INIT_CWD: folder });
      assertMatch(stderr, /^memory \(2 of 4\), a few seconds …$/m);
      assertEquals(stdout.trimEnd().split("\n").length, 1);
      const { rows, peersFailed }: BenchReport = JSON.parse(stdout);
      assertEquals(rows.map(({ row }) => row), [
        ...["load", "memory", "first-use", "cpu"],
      ]);
      assertEquals(rows.map(({ measures }) => measures.length), [1, 3, 2, 2]);
      const median = (row: number, measure: number) =>
        rows[row].measures[measure].median;
      assert(median(0, 0) > 0, "load");
      assert(median(1, 0) <= median(1, 1), "a peak only grows");
      assert(median(2, 0) < median(2, 1), "the process began before the call");
      const cpu = rows[3];
      assertEquals(peersFailed, ["cpu: no such device"]); // it was started
      assertEquals(cpu.peers, []);
      assertEquals(cpu.measures.map(({ unit }) => unit), [
        ...["tokens/s", "tokens/s"],
      ]);
      assertEquals(code, 1); // a failed peer is a failure
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
);

Deno.test("peers run the GGUF file that is measured, with as many threads", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await pretendPeers(folder, "cpu");
    const long = SMALL.map((entry): Entry =>
      entry[0] === "qwen3.context_length" ? [entry[0], "u32", 512] : entry
    );
    const file = `${folder}/small.gguf`;
    await Deno.writeFile(file, writeGguf(long, smallTensors(32)));
    for (const model of [file, folder, `${folder}:small.gguf`]) {
      const { code, stdout, stderr } = await task([
        ...["--model", model, "--only", "cpu", "--json", "--threads", "1"],
        ...["--runs", "1", "--max-tokens", "8", "--peers", folder],
      ], { TMPDIR: folder });
      assertEquals(code, 0, stderr);
      const { rows: [{ peers }] } = JSON.parse(stdout);
      assertEquals(
        peers.map((peer: Record<string, string>) => [
          ...[peer.workload, peer.model, peer.threads],
        ]),
        [["tg@128", file, "1"], ["pp128", file, "1"]],
      );
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("a GGUF file on the web is refused for peers", () => {
  assertEquals(modelOfPeers("a/b:Q8_0", "/x/b-Q8_0.gguf"), "/x/b-Q8_0.gguf");
  assertEquals(
    modelOfPeers("synthetic:qwen3-8b", "a rule"),
    "synthetic:qwen3-8b",
  );
  assertEquals(modelOfPeers("/m", "/m"), "/m");
  assertThrows(
    () => modelOfPeers("https://a/b.gguf", "https://a/b.gguf"),
    Error,
    "Cannot run peers: https://a/b.gguf is on the web, must be a file of this machine",
  );
});

for (
  const [what, row, model, made] of [
    [
      "checkpoint",
      "load",
      "synthetic:qwen3-0.6b?layers=1&vocab=512",
      /^bench-/,
    ],
    ["shader cache", "first-use", "models/stories-3m", /./],
  ] as const
) {
  gpuTest(`Ctrl-C leaves no ${what} behind`, async () => {
    const folder = await Deno.makeTempDir();
    await using child = new Deno.Command(Deno.execPath(), {
      args: [
        ...[...RUN, "tasks/bench.ts", "--only", row, "--runs", "100"],
        ...["--model", model],
      ],
      cwd: new URL("../..", import.meta.url),
      env: { TMPDIR: folder, NO_COLOR: "1" },
      stdout: "null",
      stderr: "null",
    }).spawn();
    const folders = () =>
      [...Deno.readDirSync(folder)].filter(({ name }) => made.test(name));
    const files = () =>
      folders().flatMap(({ name }) => {
        try {
          return [...Deno.readDirSync(`${folder}/${name}`)];
        } catch {
          return []; // of a process that has just ended
        }
      });
    let ended = false;
    child.status.then(() => ended = true);
    while (!ended && files().length === 0) {
      await new Promise((next) => setTimeout(next, 5));
    }
    assert(!ended);
    child.kill("SIGINT");
    assertEquals((await child.status).code, 130);
    assertEquals(folders(), []);
    await Deno.remove(folder, { recursive: true });
  });
}

/** Formats Markdown as the repository does. */
async function formatted(markdown: string): Promise<string> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["fmt", "--no-config", "--ext", "md", "-"],
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(markdown));
  await writer.close();
  return new TextDecoder().decode((await child.output()).stdout);
}

Deno.test("Markdown has a line per measure, formatted as bench/log.md is", async () => {
  const row = (row: string, more: Partial<Row>): Row => ({
    row,
    what: "",
    measures: [],
    peers: [],
    ...more,
  });
  const report: BenchReport = {
    model: "synthetic:qwen3-0.6b",
    adapter: "NVIDIA H100 80GB HBM3",
    software: false,
    choices: [],
    deno: "2.9.6",
    peaks: {
      readGBps: 2996,
      f32TFLOPS: 63.2,
      f16TFLOPS: 105,
      fillWorkgroups: 256,
    },
    runs: 3,
    maxTokens: 256,
    rows: [
      row("decode-128", {
        measures: [
          measure("generate", "tokens/s", [925, 927, 928]),
          {
            ...measure("GPU time", "tokens/s", [968]),
            bound: "memory",
            fraction: 0.385,
            readGBps: 1153.4,
          },
        ],
        targets: { generate: "1.6 × llama.cpp" },
        peers: [{
          program: "llama.cpp vulkan",
          workload: "tg@128",
          tokensPerSecond: 453,
          low: 446,
          high: 454,
          runs: 3,
          device: "gpu",
          measure: "generate",
          factor: 2.046,
        }],
      }),
      row("load", {
        measures: [measure("loadQwen3", "ms", [1090, 1090, 1230])],
      }),
      row("gemm-f16", { unmeasured: "no\nshader-f16" }),
      row("memory", { failed: "a | b" }),
    ],
    peersFailed: ["cpu: no such device"],
    seconds: 1,
  };
  const markdown = reportMarkdown(report);
  const [setting, failure, table] = markdown.split("\n\n");
  assertEquals(
    setting.replaceAll("\n", " "),
    "`synthetic:qwen3-0.6b` on NVIDIA H100 80GB HBM3, Deno 2.9.6: medians of 3 \
runs (spread in brackets), 256 tokens per generation. Peaks measured here: \
2,996 GB/s read, 63.2 TFLOP/s in f32, 105 in f16.",
  );
  assertEquals(failure, "Failed: cpu: no such device.");
  const cells = table.split("\n").map((line) =>
    line.slice(2, -2).split(" | ").map((cell) => cell.trim())
  );
  cells.splice(1, 1); // the line below the head
  assertEquals(cells, [
    [
      ...["row", "measure", "result", "GB/s", "of peak", "llama.cpp vulkan"],
      "target",
    ],
    [
      ...["decode-128", "generate", "927 tokens/s (925–928)", "", ""],
      ...["453 (446–454): 2.05 ×", "1.6 × llama.cpp"],
    ],
    ["", "GPU time", "968 tokens/s", "1,153", "38.5 % memory", "", ""],
    ["load", "loadQwen3", "1.09 s (1.09–1.23)", "", "", "", ""],
    ["gemm-f16", "", "not measured: no shader-f16", "", "", "", ""],
    ["memory", "", "failed: a \\| b", "", "", "", ""],
  ]);
  assertEquals(await formatted(markdown), markdown + "\n");
});

Deno.test("rows and peers as text fit 100 columns", () => {
  const wide = (name: string, unit: "tokens/s" | "TFLOP/s") => ({
    ...measure(name, unit, Array(100).fill(-123456.7)),
    bound: "memory" as const,
    fraction: 12.345,
    readGBps: 12345.6,
  });
  const row: Row = {
    row: "gpu-over-cpu",
    what: "speed ".repeat(30),
    measures: [
      wide("GPU time of a step at 32767", "tokens/s"),
      wide("generate", "TFLOP/s"),
    ],
    notes: ["a note of many words ".repeat(9)],
    failed: "a reason of many words ".repeat(9),
    peers: [{
      program: "llama.cpp vulkan-without-tensor-cores",
      workload: "pp2048:2048",
      tokensPerSecond: 123456,
      low: 123456,
      high: 123456,
      runs: 100,
      device: "gpu",
      measure: "generate",
      factor: 123.45,
    }],
  };
  assertFits(rowText(row));
  assertFits(peersText([row]));
  assertEquals(peersText([{ ...row, peers: [] }]), "");
  assertMatch(
    peersText([row]),
    /^row .*tokens\/s .*ours\ngpu-over-cpu .* 123,456 \(123,456–123,456\) 123.45 ×$/,
  );
  const peaks = { readGBps: 1, f32TFLOPS: 1, f16TFLOPS: 1, fillWorkgroups: 1 };
  assertFits(headText("a model ".repeat(20), { gpu: { name: "GPU" }, peaks }));
});

Deno.test("rows are chosen by name, in the order of the table", () => {
  const names = "decode-128,first-use,decode-2048,prefill-512,batch-16";
  assertEquals(chooseRows(rowKinds(), names), [
    ...["decode-128", "decode-2048", "prefill-512", "batch-16", "first-use"],
  ]);
});

gpuTest(
  "--markdown: the table alone on stdout, progress on stderr",
  async () => {
    const { code, stdout, stderr } = await task([
      ...["--model", STORIES, "--runs", "2", "--max-tokens", "8"],
      ...["--only", "gemm-f32,prefill-2048", "--markdown"],
    ]);
    assertEquals(code, 0, stderr);
    assertMatch(stdout, /^`models\/stories-3m` on [^|]*\n\n\| row [^]*\|\n$/);
    assertMatch(
      stdout,
      /^\| gemm-f32 +\| GPU time +\| [\d.,]+ TFLOP\/s \(.*% f32 /m,
    );
    assertMatch(
      stdout,
      /^\| prefill-2048 \| +\| not measured: it needs a context/m,
    );
    assertMatch(stderr, /^gemm-f32 \(2 of 2\), a few seconds …$/m);
  },
);

Deno.test("--against: another checkout in turns, the first of a pair in turns too", async () => {
  const folder = await Deno.makeTempDir();
  try {
    // It was half as fast as the first, and got its arguments.
    const other = `
      const measure = (median) => ({ name: "generate", unit: "tokens/s", median });
      const rows = [{ row: "cpu", measures: [measure(2)], peers: [] }];
      await Deno.writeTextFile("${folder}/args", Deno.args.join(" ") + "\\n", { append: true });
      console.log(JSON.stringify({ rows }));`;
    await Deno.mkdir(`${folder}/tasks`);
    await Deno.writeTextFile(`${folder}/tasks/bench.ts`, other);
    await Deno.writeTextFile(`${folder}/deno.json`, "{}");
    const { code, stdout, stderr } = await task([
      ...["--model", STORIES, "--only", "cpu", "--against", folder],
      ...["--runs=2", "--max-tokens", "8", "--json", "--threads", "1"],
    ]);
    assertEquals(code, 0, stderr);
    const report: AgainstReport = JSON.parse(stdout);
    assertEquals([report.pairs, report.against], [2, folder]);
    const [{ row, pairs: [{ name, ours, theirs, ratio }, ...rest] }] =
      report.rows;
    assertEquals([row, name, rest], ["cpu", "generate", []]);
    assertEquals([ours.runs, theirs.runs, theirs.median], [2, 2, 2]);
    assertEquals([ratio.low, ratio.high], [ours.low / 2, ours.high / 2]);
    assertEquals(stderr.match(/^pair .*(?= …$)/gm), [
      ...["pair 1 of 2, ours", "pair 1 of 2, theirs"],
      ...["pair 2 of 2, theirs", "pair 2 of 2, ours"],
    ]);
    const flags =
      `--model ${STORIES} --only cpu --max-tokens 8 --threads 1 --runs 1 --json\n`;
    assertEquals(await Deno.readTextFile(`${folder}/args`), flags + flags);
    await Deno.writeTextFile(
      `${folder}/tasks/bench.ts`,
      'console.error("error: Cannot: so"); Deno.exit(1);',
    );
    const failed = await task([
      ...["--model", STORIES, "--only", "cpu", "--against", folder],
      ...["--runs", "1", "--max-tokens", "8"],
    ]);
    assertEquals([failed.code, failed.stdout], [1, ""]);
    assertStringIncludes(
      failed.stderr.replaceAll("\n  ", " "),
      `error: Cannot bench ${folder}/: Cannot: so\n`,
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("a folder without peers is refused immediately", async () => {
  const { code, stderr } = await task(["--peers", "/nowhere"]);
  assertEquals(code, 1);
  assertMatch(stderr, /^error: Cannot run peers: \/nowhere has no llama/);
});

Deno.test("deno task bench --help lists flags and rows", async () => {
  const { code, stdout } = await task(["--help"]);
  assertEquals(code, 0);
  assertStringIncludes(stdout, "--only …");
  assertStringIncludes(stdout, "gpu-over-cpu ");
  assertFits(stdout);
});

for (
  const [args, message] of [
    [
      ["--only", "decode"],
      /--only has "decode", did you mean decode-128\?$/m,
    ],
    [["--only", "load,prefil-512"], /"prefil-512", did you mean prefill-512\?/],
    [["--only", "CPU"], /--only has "CPU", did you mean cpu\?/],
    [["--only", ","], /--only has no rows, try .* --help$/m],
    [["--json", "--markdown"], /--json and --markdown are both given, must be/],
    [["--against", "/nowhere"], /bench against \/nowhere: it has no tasks/],
    [
      ["--against", ".", "--peers", "."],
      /--against and --peers are both given/,
    ],
    [["--runs", "0"], /--runs is 0, must be an integer from 1 to 100/],
    [["--max-tokens", "1.5"], /--max-tokens is 1.5, must be an integer/],
    [["--model", "/nowhere/at/all"], /^error: Cannot open "\/nowhere/],
    [["--row", "load"], /--row is unknown/],
    [["words"], /unexpected argument "words", this task takes flags only/],
  ] as const
) {
  Deno.test(`deno task bench refuses in one line: ${args.join(" ")}`, async () => {
    const { code, stdout, stderr } = await task([...args]);
    assertEquals(code, 1);
    assertEquals(stdout, "");
    assertEquals(stderr.trimEnd().split("\n").length, 1, stderr);
    assertMatch(stderr, message);
  });
}
