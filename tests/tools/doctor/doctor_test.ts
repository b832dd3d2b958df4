import { assert, assertEquals, assertMatch } from "@std/assert";
import { doctor } from "../../../lib/tools/doctor/doctor.ts";
import { examineApart } from "../../../lib/tools/doctor/apart.ts";
import {
  type Finding,
  findingText,
  summaryText,
} from "../../../lib/tools/doctor/report.ts";
import type { TestResult } from "../../../lib/tools/doctor/kernels.ts";
import { KERNEL_NAMES } from "../../../kernels/list.ts";
import { gpuTest } from "../../support/gpu.ts";
import { tamperedGpu } from "../../support/tampered_gpu.ts";
import { NO_ADAPTER, wrapGpu } from "../../support/wrapped_gpu.ts";

const TYPES = ["f32", "f16", "bf16"];
const MODEL = new URL("../../fixtures/tiny-tied-bf16/", import.meta.url).href;

/** Fails if a line has more than 100 columns. */
function assertFits(text: string) {
  for (const line of text.split("\n")) {
    assert(line.length <= 100, `${line.length} columns: ${line}`);
  }
}

Deno.test("long texts wrap, and words longer than a line are cut in the middle", () => {
  const path = `/home/someone/${"folder/".repeat(30)}tuned.json`;
  const topic = "tuned constants";
  const text = `none: there is no ${path}; ${
    "deno task tune creates it ".repeat(9)
  }`;
  const finding: Finding = { severity: "red", topic, text: text.trim() };
  const lines = findingText(finding);
  assertFits(lines);
  assertMatch(lines, /^✗ tuned constants {4}none: there is no\n {21}\S/);
  assertMatch(lines, /\n {21}\/home\/someone\/\S+…\S+\/tuned\.json;\n/);
  const findings = Array.from({ length: 40 }, (_, i): Finding => ({
    ...finding,
    topic: `kernel${i}`,
  }));
  const summary = summaryText({ ok: false, findings });
  assertFits(summary);
  assertMatch(summary, /^✗ problems: kernel0, .*\n {2}kernel[^]* kernel39$/);
});

gpuTest(
  "the doctor runs every kernel in all its forms, and all agree",
  async (gpu) => {
    const lines: string[] = [];
    const { ok, findings } = await doctor({
      model: MODEL,
      onFinding: (finding) => lines.push(findingText(finding)),
    });
    assert(ok, lines.join("\n"));
    assertEquals(lines.length, findings.length);
    const topics = findings.map(({ topic }) => topic);
    for (const name of KERNEL_NAMES) {
      if (/^peak/.test(name)) continue; // they compute nothing but are timed
      if (name === "attendPrefillF16" && !gpu.f16) continue;
      assert(topics.includes(name), name);
    }
    const forms: [kernel: string, form: RegExp][] = [
      ["gemv", /normed first/],
      ["gemvRows", /normed first/],
      ["gemm", /k in \d splits/],
      ["attendDecode", /long context$/],
      ["attendDecode", /short context, in 5 splits/],
      ["attendDecode", /146 and 21 and 100 keys/],
      ["mergeSplits", /^5 splits of \[2, 3, 6\]/],
      ["sampleDraw", /top-k 300, top-p 0.6/],
      ["sampleFinish", /from histogram, top-p 0.9/],
      ["gemv", /\[1, 3072\] × \[1024, 3072\]/],
      ["gemvRows", /\[16, 1024\] × \[1024, 1024\]/],
      ["gemm", /\[33, 1024\] × \[1024, 1024\]/],
      ...[
        "gemv",
        "gemvRows",
        "gemm",
        "gemvColumns",
        "batchedGemm",
        "embed",
        "maxAbs",
      ]
        .flatMap((name) =>
          TYPES.map((type): typeof forms[number] => [name, RegExp(`^${type} `)])
        ),
      ...["rmsNorm", "toF16"].flatMap((name) =>
        TYPES.map((type): typeof forms[number] => [name, RegExp(`by ${type}$`)])
      ),
      ...TYPES.map((type): typeof forms[number] => [
        "qkNormRope",
        RegExp(`norms in ${type}$`),
      ]),
      ...["qkNormRope", "attendPrefill", "attendDecode"]
        .flatMap((name) => [
          [name, /keys in f16/] as typeof forms[number],
          [name, /keys in f32/] as typeof forms[number],
        ]),
    ];
    for (const [name, form] of forms) {
      const { data } = findings.find(({ topic }) => topic === name)!;
      const results = data!.results as TestResult[];
      assert(results.some(({ what }) => form.test(what)), `${name}: ${form}`);
    }
    for (const topic of ["bandwidth", "readback", "first use", "memory"]) {
      assert(topics.includes(topic), topic);
    }
  },
);

gpuTest(
  "the doctor finds a wrong kernel and reports both values",
  async () => {
    const gpu = tamperedGpu(
      "rmsNorm",
      (wgsl) => wgsl.replaceAll("inverseSqrt(", "1.01 * inverseSqrt("),
    );
    const { ok, findings } = await doctor({ model: MODEL, gpu });
    assertEquals(ok, false);
    const red = findings.filter(({ severity }) => severity === "red");
    assertEquals(red.map(({ topic }) => topic), ["rmsNorm"]);
    assertMatch(
      red[0].text,
      /WRONG; worst error 1\.\de-2, .* at \[\d+\] of .* on the GPU, .* on the CPU/,
    );
    assertFits(findingText(red[0]));
  },
);

gpuTest(
  "the doctor names a kernel that hangs or crashes its process",
  async () => {
    const ways = [
      ["hang", /^hangs: not done after 0.2 s, .*DENO_WEBGPU_BACKEND$/],
      ["crash", / ended with exit code 3: driver: assertion failed; update/],
    ] as const;
    for (const [way, expected] of ways) {
      const found: Finding[] = [];
      await examineApart(
        undefined,
        {
          found: (severity, topic, text) => {
            found.push({ severity, topic, text });
          },
        },
        {
          script: new URL(`failing_examination.ts?${way}`, import.meta.url),
          // A hang never answers, so any deadline will do; a crash is waited for.
          deadlineMs: way === "hang" ? 200 : undefined,
        },
      );
      assertEquals(found.map(({ topic }) => topic), ["argmax"]);
      assertMatch(found[0].text, expected);
      assertFits(findingText(found[0]));
    }
  },
);

Deno.test("without an adapter the doctor names the package to install", async () => {
  const { ok, findings } = await doctor({ model: MODEL, gpu: NO_ADAPTER });
  assertEquals(ok, false);
  const red = findings.filter(({ severity }) => severity === "red");
  assertEquals(red.map(({ topic }) => topic), ["adapter"]);
  assertMatch(red[0].text, /apt-get install mesa-vulkan-drivers/);
  assert(findings.some(({ topic }) => topic === "CPU path"));
});

Deno.test("a broken model and a context that does not fit are findings", async () => {
  const reds = async (model: string, context?: number) =>
    (await doctor({ model, context, gpu: NO_ADAPTER })).findings
      .filter(({ severity }) => severity === "red").map(({ text }) => text);
  assertMatch((await reds("/nowhere/at/all"))[1], /Cannot open/);
  assertMatch((await reds(MODEL, 10_000_000))[1], /--context is 10000000/);
});

gpuTest("splits and refused contexts follow the adapter's limits", async () => {
  const { modelNeeds } = await import("../../../lib/tools/doctor/needs.ts");
  const { openCheckpoint } = await import("../../../lib/checkpoint/open.ts");
  const { openDevice } = await import("../../../lib/open_device.ts");
  const limits = { maxStorageBufferBindingSize: 1 << 26 };
  using gpu = await openDevice({ gpu: wrapGpu({ limits }).gpu });
  await using checkpoint = await openCheckpoint("synthetic:qwen3-0.6b");
  const needs = await modelNeeds(checkpoint, 40960, gpu);
  const of = (topic: string) => needs.find((need) => need.topic === topic)!;
  assertEquals(of("largest binding").severity, "yellow");
  assertMatch(of("largest binding").text, /embed_tokens needs 5 buffers/);
  assertEquals(of("context").severity, "red");
  assertMatch(of("context").text, /use --context 32768 or less/);
});
