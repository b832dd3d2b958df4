import { assert, assertEquals, assertMatch } from "@std/assert";
import { doctor } from "../../../lib/tools/doctor/doctor.ts";
import { examineApart } from "../../../lib/tools/doctor/apart.ts";
import type { Trial } from "../../../lib/tools/doctor/bench.ts";
import { type Finding, findingText } from "../../../lib/tools/doctor/report.ts";
import { KERNEL_NAMES } from "../../../kernels/list.ts";
import { gpuTest } from "../../support/gpu.ts";
import { tamperedGpu } from "../../support/tampered_gpu.ts";
import { NO_ADAPTER, wrapGpu } from "../../support/wrapped_gpu.ts";

const TYPES = ["f32", "f16", "bf16"];
const MODEL = new URL("../../fixtures/tiny-tied-bf16/", import.meta.url).href;

gpuTest("every kernel is tested, in all its forms, and agrees", async (gpu) => {
  const told: string[] = [];
  const { ok, findings } = await doctor({
    model: MODEL,
    onFinding: (finding) => told.push(findingText(finding)),
  });
  assert(ok, told.join("\n"));
  assertEquals(told.length, findings.length);
  const topics = findings.map(({ topic }) => topic);
  for (const name of KERNEL_NAMES) {
    if (/^peak/.test(name)) continue; // they compute nothing, and are timed
    if (name === "attendPrefillF16" && !gpu.f16) continue;
    assert(topics.includes(name), name);
  }
  const forms: [kernel: string, form: RegExp][] = [
    ["gemv", /normed first/],
    ["gemvRows", /normed first/],
    ["gemm", /k in \d runs/],
    ["attendDecode", /long context$/],
    ["mergeSplits", /short context, in 5 runs/],
    ["mergeSplits", /146 and 21 and 100 keys/],
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
    ...["qkNormRope", "attendPrefill", "attendDecode", "mergeSplits"]
      .flatMap((name) => [
        [name, /keys in f16/] as typeof forms[number],
        [name, /keys in f32/] as typeof forms[number],
      ]),
  ];
  for (const [name, form] of forms) {
    const { data } = findings.find(({ topic }) => topic === name)!;
    const trials = data!.trials as Trial[];
    assert(trials.some(({ what }) => form.test(what)), `${name}: ${form}`);
  }
  for (const topic of ["bandwidth", "readback", "first use", "memory"]) {
    assert(topics.includes(topic), topic);
  }
});

gpuTest(
  "a kernel that computes wrongly is found, with both values",
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
      findingText(red[0]),
      /^✗ rmsNorm .* WRONG; worst error 1\.\de-2 .* at \[\d+\] of .* on the GPU, .* on the CPU/,
    );
  },
);

gpuTest("a kernel that hangs or ends its process is named", async () => {
  const ways = [
    ["hang", /^✗ rmsNorm +hangs: not done in 10 s, .*DENO_WEBGPU_BACKEND/],
    [
      "crash",
      /^✗ rmsNorm .* ended with exit code 3: driver: assertion failed;/,
    ],
  ] as const;
  for (const [way, expected] of ways) {
    const found: Finding[] = [];
    await examineApart(
      undefined,
      (severity, topic, text) => found.push({ severity, topic, text }),
      {
        script: new URL(`failing_examination.ts?${way}`, import.meta.url),
        deadlineMs: 10_000,
      },
    );
    assertEquals(found.length, 1);
    assertMatch(findingText(found[0]), expected);
  }
});

Deno.test("without an adapter it answers, and names the package that brings one", async () => {
  const { ok, findings } = await doctor({ model: MODEL, gpu: NO_ADAPTER });
  assertEquals(ok, false);
  const red = findings.filter(({ severity }) => severity === "red");
  assertEquals(red.map(({ topic }) => topic), ["adapter"]);
  assertMatch(red[0].text, /apt-get install mesa-vulkan-drivers/);
  assert(findings.some(({ topic }) => topic === "CPU path"));
});

Deno.test("a broken model and an impossible context are findings", async () => {
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
  assertMatch(of("largest binding").text, /embed_tokens goes into 5 buffers/);
  assertEquals(of("context").severity, "red");
  assertMatch(of("context").text, /use --context 32768 or less/);
});
