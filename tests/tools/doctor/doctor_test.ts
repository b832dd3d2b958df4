import type { Capabilities } from "../../../lib/dispatch/capabilities.ts";
import { hasMatrices } from "../../../lib/dispatch/matrices.ts";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import {
  doctor,
  type DoctorOptions,
} from "../../../lib/tools/doctor/doctor.ts";
import type { Qwen3Config } from "../../../lib/checkpoint/config.ts";
import { parseSynthetic } from "../../../lib/checkpoint/synthetic.ts";
import { CpuOps, type CpuTensor } from "../../../lib/cpu/ops.ts";
import { examineApart } from "../../../lib/tools/doctor/apart.ts";
import { examineCpu } from "../../../lib/tools/doctor/cpu.ts";
import { bytesPerToken, weightBytes } from "../../../lib/tools/doctor/needs.ts";
import { bandwidthText } from "../../../lib/tools/doctor/device.ts";
import {
  type Finding,
  findingText,
  isShown,
  summaryText,
} from "../../../lib/tools/doctor/report.ts";
import {
  testKernels,
  type TestResult,
} from "../../../lib/tools/doctor/kernels.ts";
import { findKernel, KERNEL_NAMES } from "../../../kernels/list.ts";
import type { Matrix } from "../../../lib/formats/matrix.ts";
import { FORMATS } from "../../../lib/formats/mod.ts";
import { gpuTest, someOf } from "../../support/gpu.ts";
import { makeCase } from "../../support/kernel_case.ts";
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

Deno.test("long texts wrap, a long path has a line of its own and is cut only if it must be", () => {
  const whole = `/home/someone/.cache/${"folder/".repeat(9)}tuned.json`;
  assert(whole.length > 79 && whole.length <= 100);
  assertEquals(
    findingText({
      severity: "green",
      topic: "tuned constants",
      text: `none: there is no ${whole}; tune creates it`,
    }).split("\n"),
    [
      "✓ tuned constants    none: there is no",
      `${whole};`.padStart(100),
      `${" ".repeat(21)}tune creates it`,
    ],
  );
  const path = `/home/someone/${"folder/".repeat(30)}tuned.json`;
  const topic = "tuned constants";
  const text = `none: there is no ${path}; ${
    "deno task tune creates it ".repeat(9)
  }`;
  const finding: Finding = { severity: "red", topic, text: text.trim() };
  const lines = findingText(finding);
  assertFits(lines);
  assertMatch(lines, /^✗ tuned constants {4}none: there is no\n\//);
  assertMatch(lines, /\n\/home\/someone\/\S+…\S+\/tuned\.json;\n/);
  const findings = Array.from({ length: 40 }, (_, i): Finding => ({
    ...finding,
    topic: `kernel${i}`,
  }));
  const summary = summaryText({ ok: false, findings });
  assertFits(summary);
  assertMatch(summary, /^✗ problems: kernel0, .*\n {2}kernel[^]* kernel39$/);
});

Deno.test("a summary names problems, or says that models run on the CPU path", () => {
  const green: Finding = { severity: "green", topic: "model", text: "fits" };
  const slow: Finding = { ...green, severity: "yellow", topic: "adapter" };
  const device = (device: string): Finding => ({
    ...slow,
    topic: "device",
    data: { device },
  });
  const summary = (...findings: Finding[]) =>
    summaryText({ ok: true, findings });
  assertEquals(summary(green), "✓ no problems");
  assertEquals(
    summary(green, slow),
    "! everything works, but slower than it could: adapter",
  );
  assertEquals(
    summary(slow, device("cpu"), green),
    "! the CPU path works, and models run on it: a GPU would be faster",
  );
  assertEquals(
    summary(device("gpu")),
    "! everything works, but slower than it could: device",
  );
  const red: Finding = { ...green, severity: "red", topic: "CPU path" };
  assertEquals(summary(device("cpu"), red), "✗ problems: CPU path");
  // A detail is shown if it is a problem.
  assertEquals([green, { ...green, detail: true }].map(isShown), [true, false]);
  assertEquals(isShown({ ...red, detail: true }), true);
});

gpuTest(
  "the doctor runs the first case of every kernel where auto takes the CPU, and all agree",
  async (gpu) => {
    const lines: string[] = [];
    const { ok, findings } = await doctor({
      model: MODEL,
      onFinding: (finding) => lines.push(findingText(finding)),
    });
    assert(ok, lines.join("\n"));
    assertEquals(lines.length, findings.length);
    const topics = findings.map(({ topic }) => topic);
    const device: Capabilities = gpu;
    for (const name of KERNEL_NAMES) {
      if (/^peak/.test(name)) continue; // they compute nothing but are timed
      if (name === "attendPrefillF16" && !gpu.f16) continue;
      if (/Matrix$/.test(name) && !hasMatrices(device)) continue;
      assert(topics.includes(name), name);
    }
    for (const topic of ["bandwidth", "readback", "kernels", "memory"]) {
      assert(topics.includes(topic), topic);
    }
    const kernels = findings.find(({ topic }) => topic === "kernels")!;
    const { kernels: count, cases, untested } = kernels.data!;
    assertEquals(Number(untested) > 0, gpu.software);
    assertMatch(
      kernels.text,
      gpu.software
        ? new RegExp(
          `^${count} kernels, the first case of each \\(--all tests all ${
            Number(cases) + Number(untested)
          }\\), all correct, largest error `,
        )
        : new RegExp(
          `^${count} kernels, ${cases} cases, all correct, largest error `,
        ),
    );
    if (gpu.software) {
      assertEquals(count, cases);
      for (const { topic, data } of findings) {
        if (!KERNEL_NAMES.includes(topic)) continue;
        const results = data!.results as TestResult[];
        assertEquals(new Set(results.map(({ what }) => what)).size, 1, topic);
      }
    }
    // One line stands for all of them unless they are asked for.
    const shown = findings.filter(isShown).map(({ topic }) => topic);
    assertEquals(shown.filter((topic) => KERNEL_NAMES.includes(topic)), []);
    for (const line of lines) {
      const plain = line.replaceAll(/\/\S+/g, ""); // names of files may be random
      assert(!/\d{8}|\de[+-]\d|MiB|KiB/.test(plain), line);
    }
  },
);

gpuTest("with --all the self-test runs every case", async (gpu) => {
  const few = ["rmsNorm", "swiglu", "sumSplits"].map((name) =>
    findKernel(name)!
  );
  const { results, untested } = await testKernels(gpu, {}, false, few);
  assertEquals(untested, 0);
  for (const { name, cases } of few) {
    const whats = results.filter(({ kernel }) => kernel === name)
      .map(({ what }) => what);
    assertEquals(new Set(whats).size, cases.length, name);
  }
});

gpuTest("the self-test has cases of every form", (_, trial) => {
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
    ["gemm", /\[65, 1024\] × \[1024, 1024\]/],
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
  const known = new Map<string, string[]>();
  /** What the cases of a kernel compute; making one takes long. */
  const whatsOf = (name: string) => {
    const kernel = findKernel(name)!;
    const whats = known.get(name) ??
      kernel.cases.map((given) => makeCase(kernel, trial, given)?.what ?? "");
    known.set(name, whats);
    return whats;
  };
  for (const [name, form] of forms) {
    assert(whatsOf(name).some((what) => form.test(what)), `${name}: ${form}`);
  }
});

/** Verbs of the CPU path that are made wrong; each takes an examination. */
const WRONG_VERBS = someOf(
  [
    ...["matmulAdd", "normMatmul", "normSwiglu", "attend"] as const,
    ...["chooseExperts", "expertsSwiglu", "expertsAdd"] as const,
  ],
  3,
);

Deno.test("the CPU path is tested, and a wrong verb is found", async () => {
  const examined = async (makeOps?: (config: Qwen3Config) => CpuOps) => {
    const found: Finding[] = [];
    await examineCpu(
      { found: (finding) => void found.push(finding) },
      3,
      makeOps,
    );
    assertEquals(found.map(({ topic }) => topic), ["CPU path", "CPU reply"]);
    return found;
  };
  const [path, reply] = await examined();
  assertEquals([path.severity, reply.severity], ["green", "green"], path.text);
  assertMatch(path.text, / on 3 threads \(/);
  assertMatch(path.text, /: 238 cases, all correct, largest error [^ ]+ % of /);
  const whats = (path.data!.results as TestResult[]).map(({ what }) => what);
  for (const { name } of FORMATS) {
    const ways = whats.filter((what) => what.startsWith(`${name} [1, `));
    assert(ways.length >= 3, `${name}: ${ways}`);
  }
  assertMatch(
    reply.text,
    /^the story model wrote 16 tokens at \d+ tokens\/s: "Once upon a time/,
  );
  const [misread] = await examined((config) => {
    const ops = new CpuOps(config), together = ops.together.bind(ops);
    return Object.assign(ops, {
      together(w: Matrix<CpuTensor>) {
        together(w);
        const [{ format, planes: [plane] }] = w.parts;
        if (format.name === "q6_k") plane.data[1] ^= 1 << 4;
      },
    });
  });
  assertEquals(misread.severity, "red");
  assertMatch(misread.text, / of q6_k \[\d+, 768\] × \[768, 74\]/);
  for (const verb of WRONG_VERBS) {
    const [{ severity, text }] = await examined((config) => {
      const ops = new CpuOps(config);
      const right = Reflect.get(ops, verb).bind(ops) as (
        ...given: unknown[]
      ) => CpuTensor;
      return Object.assign(ops, {
        [verb](...given: unknown[]) {
          const y = right(...given);
          y.data[1] *= 1.01;
          return y;
        },
      });
    });
    assertEquals(severity, "red", verb);
    if (verb === "chooseExperts") continue; // the verbs after it are further off
    assertMatch(
      text,
      /cases, \d+ WRONG; worst error [\d.]+, allowed 1 × 10\^-5, at \[1\] of .* on the CPU path, .* expected/,
    );
  }
});

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
    assertEquals(red.map(({ topic }) => topic), ["rmsNorm", "kernels"]);
    assertMatch(
      red[0].text,
      /WRONG; worst error 0\.01\d+, allowed 1 × 10\^-5, at \[\d+\] of .* on the GPU, .* expected/,
    );
    assertMatch(red[1].text, /WRONG: rmsNorm; /);
    assert(red.every(isShown));
    assertFits(red.map(findingText).join("\n"));
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
        { config: parseSynthetic("synthetic:qwen3-0.6b").config, all: true },
        { found: (finding) => void found.push(finding) },
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

Deno.test("without an adapter the doctor tests the CPU path and recommends no software driver", async () => {
  const report = await doctor({ model: MODEL, gpu: NO_ADAPTER });
  const { ok, findings } = report;
  const of = (topic: string) => findings.find((one) => one.topic === topic)!;
  assertEquals(ok, true);
  assertEquals(
    findings.filter(({ severity }) => severity !== "green").map((
      { severity, topic, text },
    ) => [severity, topic, text.replace("Vulkan ", "")]),
    [
      [
        "yellow",
        "adapter",
        "no WebGPU adapter here; install the GPU's driver or run on the CPU",
      ],
      ["yellow", "device", "auto takes the CPU path: no WebGPU adapter here"],
    ],
  );
  assertMatch(of("CPU path").text, /238 cases, all correct/);
  assertMatch(of("CPU reply").text, /^the story model wrote 16 tokens/);
  assertMatch(summaryText(report), /^! the CPU path works, /);
  assert(!/mesa|llvmpipe/.test(JSON.stringify(report)));
});

/** Findings before the examination of the CPU path, which takes seconds. */
async function findingsOfModel(options: DoctorOptions): Promise<Finding[]> {
  const found: Finding[] = [], enough = new Error("enough was found");
  const error = await assertRejects(() =>
    doctor({
      gpu: NO_ADAPTER,
      ...options,
      onFinding: (finding) => found.push(finding),
      onStart(what) {
        if (what === "CPU path") throw enough;
      },
    })
  );
  assertEquals(error, enough);
  return found;
}

Deno.test("the embedded model is called the story model", async () => {
  const findings = await findingsOfModel({});
  const { text } = findings.find(({ topic }) => topic === "model")!;
  assertMatch(text, /^the story model needs 6\.7 MB for weights and /);
});

Deno.test("a broken model and a context that does not fit are findings", async () => {
  const reds = (findings: readonly Finding[]) =>
    findings.filter(({ severity }) => severity === "red")
      .map(({ text }) => text);
  const broken = await doctor({ model: "/nowhere/at/all", gpu: NO_ADAPTER });
  assertMatch(reds(broken.findings)[0], /Cannot open/);
  const long = await findingsOfModel({ model: MODEL, context: 10_000_000 });
  assertMatch(reds(long)[0], /--context is 10000000/);
});

gpuTest("of two GPUs each is listed with the flag that takes it", async () => {
  const named = (description: string, isFallbackAdapter = false) =>
    wrapGpu({ info: { description, isFallbackAdapter } }).gpu;
  const [large, small] = [named("Large GPU"), named("Small GPU")];
  const soft = named("llvmpipe", true);
  const adaptersOf = async (low: GPU, fallback: GPU) => {
    const requestAdapter = (options: GPURequestAdapterOptions) => {
      const { forceFallbackAdapter, powerPreference } = options;
      const gpu = forceFallbackAdapter
        ? fallback
        : powerPreference === "low-power"
        ? low
        : large;
      return gpu.requestAdapter(options);
    };
    const findings = await findingsOfModel({ gpu: { requestAdapter } as GPU });
    return findings.filter(({ topic }) => topic === "adapter")
      .map(({ severity, text }) => `${severity} ${text}`);
  };
  const renderer = "llvmpipe: a software renderer, which runs on the CPU";
  assertEquals(await adaptersOf(small, soft), [
    "green Large GPU: a hardware GPU (--adapter high)",
    "green Small GPU: a hardware GPU (--adapter low)",
    `yellow ${renderer}`,
  ]);
  assertEquals(await adaptersOf(large, soft), [
    "green Large GPU: a hardware GPU (--adapter high and --adapter low)",
    `yellow ${renderer}`,
  ]);
  assertEquals(await adaptersOf(large, large), [
    "green Large GPU: a hardware GPU",
  ]);
});

gpuTest("splits and refused contexts follow the adapter's limits", async () => {
  const { modelNeeds } = await import("../../../lib/tools/doctor/needs.ts");
  const { openCheckpoint } = await import("../../../lib/checkpoint/open.ts");
  const { openDevice } = await import("../../../lib/device/open_device.ts");
  const limits = { maxStorageBufferBindingSize: 1 << 26 };
  using gpu = await openDevice({ gpu: wrapGpu({ limits }).gpu });
  await using checkpoint = await openCheckpoint("synthetic:qwen3-0.6b");
  const needs = await modelNeeds(checkpoint, { context: 40960 }, gpu);
  const of = (topic: string) => needs.find((need) => need.topic === topic)!;
  assertEquals(of("largest binding").severity, "yellow");
  assertMatch(of("largest binding").text, /embed_tokens needs 5 buffers/);
  assertEquals(of("context").severity, "red");
  assertMatch(of("context").text, /use --context 32768 or less, or --kv q8_0/);
});

Deno.test("a token reads the experts that are used, and a row of an untied embedding", () => {
  const bytes = (spec: string) => bytesPerToken(parseSynthetic(spec));
  const hidden = 2048, expert = 3 * 768 * hidden, vocab = 1000;
  const one = "synthetic:qwen3-30b-a3b?layers=1&vocab=1000";
  const all = weightBytes(parseSynthetic(one));
  const unread = 2 * (120 * expert + (vocab - 1) * hidden);
  assertEquals(bytes(one), all - unread);
  const dense = "synthetic:qwen3-0.6b?layers=1"; // tied
  assertEquals(bytes(dense), weightBytes(parseSynthetic(dense)));
});

Deno.test("a slow device's limit is not rounded to 0 tokens/s", () => {
  assertEquals(
    bandwidthText(4.1, 4.1 / 65.5),
    "reads 4.1 GB/s: at most 0.063 tokens/s with this model",
  );
  assertEquals(
    bandwidthText(2996, 2500),
    "reads 3.00 TB/s: at most 2,500 tokens/s with this model",
  );
  assertEquals(bandwidthText(4.1), "reads 4.1 GB/s");
});
