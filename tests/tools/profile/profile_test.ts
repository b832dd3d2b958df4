import { finish } from "../../../lib/model/family.ts";
import { Tensor } from "../../../lib/webgpu/tensor.ts";
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { openCheckpoint } from "../../../lib/checkpoint/open.ts";
import { openDevice } from "../../../lib/device/open_device.ts";
import { GpuKvCache } from "../../../lib/gpu/kv_cache.ts";
import { GpuOps } from "../../../lib/gpu/ops.ts";
import { Plan } from "../../../lib/webgpu/plan.ts";
import { profile } from "../../../lib/tools/profile/profile.ts";
import { costsOf } from "../../../lib/tools/profile/costs.ts";
import type {
  Operation,
  Peaks,
  Phase,
  ProfileReport,
} from "../../../lib/tools/profile/report.ts";
import { profileText } from "../../../lib/tools/profile/text.ts";
import { traceOf } from "../../../lib/tools/profile/trace.ts";
import { verdictsOf } from "../../../lib/tools/profile/verdict.ts";
import { timePlan } from "../../../lib/webgpu/timing.ts";
import { qwen3 } from "../../../lib/model/qwen3.ts";
import { GpuRunner } from "../../../lib/gpu/runner.ts";
import { type Clock, clockedGpu } from "../../support/clocked_gpu.ts";
import { gpuTest } from "../../support/gpu.ts";
import { wrapGpu } from "../../support/wrapped_gpu.ts";

const fixture = (name: string) =>
  new URL(`../../fixtures/${name}/`, import.meta.url).pathname;
const TINY = fixture("tiny-tied-bf16");
const STORIES =
  new URL("../../../models/stories-3m/", import.meta.url).pathname;
const SHAPES = "synthetic:qwen3-0.6b?layers=1&vocab=4096";

let known: Promise<ProfileReport> | undefined;
/** A profile of a tiny model on the GPU, compared with the CPU, shared by tests. */
const tiny = () =>
  known ??= profile(TINY, {
    device: "gpu",
    promptTokens: 68,
    maxTokens: 24,
    compare: true,
  });

const BETWEEN_PASSES_MS = 0.25;
const CLOCK: Clock = {
  dispatchMs: (workgroups) => 2 + workgroups / 64,
  betweenPassesMs: BETWEEN_PASSES_MS,
  betweenSubmitsMs: 8,
};

const onClock = new Map<number, Promise<ProfileReport>>();
/** A profile of the tiny model on a GPU with a made-up clock, shared by tests. */
function clocked(chunk: number): Promise<ProfileReport> {
  const report = onClock.get(chunk) ?? profile(TINY, {
    device: "gpu",
    gpu: clockedGpu(CLOCK),
    promptTokens: 36,
    maxTokens: 24,
    chunk,
  });
  onClock.set(chunk, report);
  return report;
}

/** `report` with the times that `msOf` returns, on an adapter with these peaks. */
function timed(
  report: ProfileReport,
  peaks: Peaks,
  msOf: (operation: Operation) => number,
): ProfileReport {
  const phases = report.phases.map((phase): Phase => {
    const ran = phase.operations.filter(({ calls, share }) =>
      calls > 0 && share !== undefined
    );
    const ms = sum(ran.map(msOf));
    const operations = ran.map((operation) => ({
      ...operation,
      ms: msOf(operation),
      share: msOf(operation) / ms,
    }));
    return { ...phase, ms, operations };
  });
  return { ...report, peaks, phases };
}

let shapes: Promise<ProfileReport> | undefined;
/** A profile of one layer at real shapes, shared by tests. */
const layer = () =>
  shapes ??= profile(SHAPES, { device: "gpu", promptTokens: 1, maxTokens: 2 });

const rules = ({ verdicts }: ProfileReport) => verdicts.map(({ rule }) => rule);
const sum = (values: number[]) => values.reduce((a, b) => a + b, 0);

gpuTest("a profile names every operation of prefill and decode", async () => {
  const { phases } = await tiny();
  const names = ({ operations }: Phase) => operations.map(({ name }) => name);
  const [prefill, decode] = phases;
  for (const { name, operations } of phases) {
    const found = operations.map(({ name }) => name);
    for (
      const wanted of [
        "embedding",
        "qkv_proj",
        "attention scores",
        "attention values",
        "o_proj",
        "gate_up_proj",
        "down_proj",
        "lm_head",
        "sampling",
      ]
    ) assert(found.includes(wanted), `${name} has no ${wanted}: ${found}`);
  }
  assert(names(prefill).includes("input_norm"));
  assert(names(prefill).includes("q_norm, k_norm, rope"));
  const of = (phase: Phase, name: string) =>
    phase.operations.find((operation) => operation.name === name)!;
  assertEquals(of(prefill, "qkv_proj").shape, "[68, 64] × [64, 256]");
  assertEquals(of(decode, "qkv_proj").shape, "[1, 64] × [64, 256]");
  assertEquals(of(decode, "qkv_proj").calls, 2);
  assertEquals(of(decode, "qkv_proj").dtypes, "f32 × bf16 → f32");
  assertEquals(
    of(prefill, "attention scores").shape,
    "[1, 4, 68, 32] × [1, 2, 32, 68]",
  );
  assertMatch(of(decode, "qkv_proj").reason, /1 row/);
});

gpuTest("times of operations add up to the profiled step", async () => {
  const { phases } = await clocked(8);
  for (
    const { operations, profiledMs, ms, factor, betweenMs, dispatches }
      of phases
  ) {
    const total = sum(operations.map(({ ms = 0 }) => ms));
    assertAlmostEquals(total, profiledMs!, 1e-6);
    assertAlmostEquals(sum(operations.map(({ share = 0 }) => share)), 1, 1e-6);
    assertAlmostEquals(factor!, profiledMs! / ms, 1e-9);
    const { name, ms: lastMs } = operations.at(-1)!;
    assertEquals([name, lastMs], ["between passes", betweenMs]);
    // A prefill is timed in two parts: the forward pass, and the first sampling.
    const parts = name === "prefill" ? 2 : 1;
    const gaps = Math.round(betweenMs! / BETWEEN_PASSES_MS);
    assert(gaps <= dispatches - parts && gaps > dispatches / 2, `${gaps} gaps`);
    assertAlmostEquals(betweenMs!, gaps * BETWEEN_PASSES_MS, 1e-6);
    assertAlmostEquals(ms, total - betweenMs!, 1e-6);
  }
});

gpuTest(
  "peaks are measured, and operations are compared with them",
  async () => {
    const { phases, peaks } = await tiny();
    assert(peaks!.readGBps > 0 && peaks!.f32TFLOPS > 0);
    for (const operation of phases.flatMap(({ operations }) => operations)) {
      if (!operation.matmul) continue;
      const { ms, flops, bytes, bound, fraction, constants } = operation;
      assertAlmostEquals(operation.tflops!, flops / ms! / 1e9, 1e-9);
      const inBuffers = constants.W_IN !== "texture" && peaks!.bufferGBps;
      const limit = bound === "memory"
        ? bytes / (inBuffers || peaks!.readGBps) / 1e6
        : flops / peaks!.f32TFLOPS / 1e9;
      assertAlmostEquals(fraction!, limit / ms!, 1e-6);
    }
  },
);

gpuTest("coverage is complete in GPU mode", async () => {
  const stories = await profile(STORIES, {
    device: "gpu",
    promptTokens: 9,
    maxTokens: 2,
  });
  for (const { coverage, fallbacks } of [stories, await layer()]) {
    assertEquals(coverage.calls.gpu, coverage.calls.total);
    assertEquals(coverage.flops.gpu, coverage.flops.total);
    assert(coverage.calls.total > 10, `${coverage.calls.total} calls`);
    assertEquals([coverage.refusals, fallbacks], [[], []]);
  }
});

gpuTest(
  "with gemv alone every matmul is refused, and the verdict says why",
  async () => {
    const report = await profile(SHAPES, {
      promptTokens: 5,
      maxTokens: 3,
      kernels: ["gemv"],
    });
    const [verdict] = report.verdicts;
    assertEquals(verdict.severity, "red");
    assertStringIncludes(
      verdict.text,
      "0 % of matmul FLOPs ran on the GPU: gemv takes 2D×1D, the model calls 2D×2D; allow gemm",
    );
    const { coverage, fallbacks } = report;
    // 7 projections and 2 matmuls of attention per layer, and the head, in 3 passes.
    assertEquals(coverage.calls, { gpu: 0, total: 3 * (9 + 1) });
    assertEquals(coverage.flops.gpu, 0);
    const count = (line: string) =>
      coverage.refusals.find((refusal) => refusal.line === line)?.count;
    const rejected = "[GPU] GEMV rejected: shape mismatch (need 2D×1D, got";
    assertEquals(count(`${rejected} 2D×2D): [5, 1024] × [1024, 2048]`), 1);
    assertEquals(count(`${rejected} 2D×2D): [5, 1024] × [1024, 1024]`), 2);
    assertEquals(count(`${rejected} 2D×2D): [1, 1024] × [1024, 2048]`), 2);
    assertEquals(
      count(`${rejected} 4D×4D): [1, 16, 5, 128] × [1, 8, 128, 5]`),
      1,
    );
    const operations = coverage.refusals.flatMap(({ operations }) =>
      operations
    );
    for (const name of "q k v o gate up down".split(" ")) {
      assert(
        operations.includes(`${name}_proj`),
        `${name}_proj was not refused`,
      );
    }
    assertEquals(
      sum(coverage.refusals.map(({ count }) => count)),
      coverage.calls.total,
    );
    assertEquals(
      sum(fallbacks.map(({ count }) => count)),
      coverage.calls.total,
    );
  },
);

gpuTest("with gemm and batchedGemm every matmul runs on the GPU", async () => {
  const run = (kernels: ("gemm" | "batchedGemm" | "gemv")[]) =>
    profile(TINY, { promptTokens: 3, maxTokens: 2, kernels });
  const whole = await run(["gemm", "batchedGemm"]);
  assertEquals(whole.coverage.flops.gpu, whole.coverage.flops.total);
  assertEquals(whole.fallbacks, []);
  assertEquals(whole.verdicts[0].rule, "unpacked");
  assertStringIncludes(whole.verdicts[0].text, "leave --kernels out");
  const linear = await run(["gemv", "gemm"]);
  const { flops, refusals } = linear.coverage;
  assert(flops.gpu > 0.9 * flops.total && flops.gpu < flops.total);
  assert(refusals.every(({ got }) => got === "4D×4D"));
  assertStringIncludes(linear.verdicts[0].text, "allow batchedGemm");
});

gpuTest("a software renderer has its verdict", async ({ software }) => {
  assertEquals(rules(await tiny()).includes("software renderer"), software);
});

gpuTest(
  "the rate of decode is that of its loop, and is stated once",
  async () => {
    const report = await clocked(8);
    const { rates, loop, phases: [prefill, decode], promptTokens } = report;
    assertEquals(rates.map(({ phase }) => phase), ["prefill", "decode"]);
    const [onPrompt, onDecode] = rates;
    assertAlmostEquals(
      onPrompt.tokensPerSecond,
      1000 * promptTokens / prefill.ms,
    );
    assertAlmostEquals(onDecode.tokensPerSecond, 1000 / loop!.stepMs);
    assertStringIncludes(onDecode.kind, "sampling and readbacks included");
    assert(Math.abs(onDecode.tokensPerSecond * decode.ms / 1000 - 1) > 0.01);
    const text = profileText(report, { verbose: true });
    assertEquals(text.match(/tokens\/s|a second/g)?.length, 2, text);
    assertMatch(text, /^Decode: +[\d.,]+ tokens\/s, as generate runs it/m);
  },
);

Deno.test("on the CPU and with --kernels, the rate says what was timed", async () => {
  const cpu = await profile(TINY, {
    device: "cpu",
    promptTokens: 4,
    maxTokens: 3,
  });
  const [, decode] = cpu.rates;
  assertAlmostEquals(decode.tokensPerSecond, 1000 / cpu.phases[1].ms);
  assertEquals(decode.kind, "as generate runs it, sampling included");
  assertEquals(profileText(cpu).match(/tokens\/s|a second/g)?.length, 2);
});

/** Lines of more than 100 columns. */
const wide = (text: string) =>
  text.split("\n").filter((line) => [...line].length > 100);

gpuTest("the text has at most 100 columns, also for large models", async () => {
  const report = await layer();
  const large: ProfileReport = structuredClone({
    ...report,
    model: `file:///${"long/".repeat(40)}model/`,
    batch: 256,
  });
  for (
    const operation of large.phases.flatMap(({ operations }) => operations)
  ) {
    operation.shape =
      "[256, 64, 16384, 16384 … 32768] × [256, 8, 16384 … 32768, 128]";
    operation.kernel = "sampleTopK + sampleFinish";
    operation.name = "post_attention_norm, q_norm, k_norm, rope";
  }
  large.coverage.refusals = [{
    line: `[GPU] GEMV rejected: shape mismatch ${"[1, 2] × [3, 4] ".repeat(9)}`,
    kernel: "gemv",
    need: "",
    got: "",
    shape: "",
    operations: Array(20).fill("gate_up_proj"),
    count: 123456,
  }];
  for (const shown of [report, await tiny(), large]) {
    const text = profileText(shown, { verbose: true });
    assertEquals(wide(text), []);
  }
  assertMatch(
    profileText(large),
    /^ {2}post_attention_norm, +\[256, 64, 16384, 16384 … 32768\] × /m,
  );
});

gpuTest("lines of verdicts can be painted, others are not", async () => {
  const report = await tiny();
  const plain = profileText(report).split("\n\n");
  const painted = profileText(report, {
    paint: (severity, line) => `<${severity}>${line}`,
  }).split("\n\n");
  const colours = report.verdicts.map(({ severity }) => severity);
  const found = painted[0].split("\n").map((line) =>
    /^<(\w+)>([✗!✓] )?/.exec(line)!
  );
  assertEquals(found.filter(([, , mark]) => mark).map(([, c]) => c), colours);
  assertEquals(painted[0].replaceAll(/^<\w+>/gm, ""), plain[0]);
  assertEquals(painted.slice(1), plain.slice(1));
});

gpuTest("only a verbose text says why the kernels were chosen", async () => {
  const report = await tiny(), why = "Why these kernels";
  assert(!profileText(report).includes(why));
  assertStringIncludes(profileText(report, { verbose: true }), why);
});

gpuTest("more readbacks leave the GPU idle longer", async () => {
  const each = await clocked(1), eight = await clocked(8);
  assertEquals([each.loop!.chunk, each.loop!.steps, each.loop!.tokens], [
    ...[1, 23, 23],
  ]);
  assertEquals(eight.loop!.chunk, 8);
  for (const { loop } of [each, eight]) {
    const { idle, gpuMs, steps } = loop!;
    const gaps = sum(loop!.gaps.map(({ ms, count }) => ms * count));
    assertAlmostEquals(idle!, gaps / (gaps + gpuMs! * steps), 1e-6);
  }
  assert(eight.loop!.idle! < each.loop!.idle!);
});

gpuTest("small grids on a large adapter are found", async () => {
  const peaks = { readGBps: 1e6, f32TFLOPS: 0.01, fillWorkgroups: 256 };
  // Every operation runs at a tenth of the peak.
  const report = timed(await tiny(), peaks, ({ flops }) => 10 * flops / 1e7);
  const verdict = verdictsOf(report).find(({ rule }) => rule === "prefill");
  assertMatch(
    verdict!.text,
    /grids of [\d, ]+ workgroups of \d+ threads do not fill/,
  );
});

gpuTest(
  "decode of wide weights is bound by memory, of narrow ones by dispatches",
  async () => {
    const peaks = { readGBps: 1000, f32TFLOPS: 10, fillWorkgroups: 256 };
    const decode = async (
      model: string,
      ms: (operation: Operation) => number,
    ) => {
      const report = await profile(model, {
        device: "gpu",
        promptTokens: 1,
        maxTokens: 4,
      });
      return verdictsOf(timed(report, peaks, ms))
        .find(({ rule }) => rule === "decode")!;
    };
    // Each dispatch takes 5 µs, plus its reads at 80 % of the peak.
    const ms = ({ bytes, calls }: Operation) => 5e-3 * calls + bytes / 0.8e9;
    const wide = await decode("synthetic:qwen3-8b?layers=1&vocab=64", ms);
    assertMatch(
      wide.text,
      /^decode is bound by memory: \d+ % of .*gate_up_proj/,
    );
    assertEquals(wide.severity, "green");
    const narrow = await decode(fixture("tiny-untied-f32"), ms);
    assertMatch(
      narrow.text,
      /^decode reaches [\d.]+ % of its bound, memory at .* dispatches of/,
    );
    assertEquals(narrow.severity, "yellow");
  },
);

Deno.test("the CPU is profiled verb by verb, and the verdict says that it was chosen", async () => {
  const report = await profile(TINY, {
    device: "cpu",
    promptTokens: 36,
    maxTokens: 6,
  });
  assertEquals(report.verdicts[0].rule, "cpu chosen");
  assertEquals(report.timedBy, "verbs");
  assertEquals(report.coverage.flops.gpu, 0);
  assert(report.coverage.flops.total > 0);
  for (const { operations, ms } of report.phases) {
    assertAlmostEquals(sum(operations.map((o) => o.ms ?? 0)) / ms, 1, 0.1);
  }
});

Deno.test("a tied head is named lm_head on the CPU, not after the embedding", async () => {
  const { phases, timeline } = await profile(TINY, {
    device: "cpu",
    promptTokens: 5,
    maxTokens: 3,
  });
  for (const { name: phase, operations } of phases) {
    const names = operations.map(({ name }) => name);
    assert(names.includes("lm_head"), `${phase} has no lm_head: ${names}`);
    assert(!names.includes("embed_tokens"), `${phase}: ${names}`);
    const part = timeline.filter((event) => event.part === `profiled ${phase}`);
    const called = (name: string) =>
      part.filter((event) => event.name === name).length;
    // Each forward pass looks up the embedding once and ends with the head.
    const passes = called("layers.0.attention");
    assert(passes > 0);
    assertEquals([called("embed_tokens"), called("lm_head")], [passes, passes]);
    assertEquals(part[0].name, "embed_tokens");
  }
});

gpuTest("CPU and GPU profiles count the same FLOPs", async () => {
  const [onGpu] = (await tiny()).phases;
  const onCpu = (await profile(TINY, {
    device: "cpu",
    promptTokens: 68,
    maxTokens: 6,
  })).phases[0];
  const flops = ({ operations }: Phase) =>
    sum(operations.filter((o) => o.matmul).map((o) => o.flops));
  assertEquals(flops(onGpu), flops(onCpu));
});

gpuTest("GPU over CPU is listed with its targets", async () => {
  const { compare } = await tiny();
  assertEquals(compare!.map(({ phase, what }) => `${phase} ${what}`), [
    "prefill Linear",
    "prefill attention",
    "prefill whole",
    "decode Linear",
    "decode attention",
    "decode whole",
  ]);
  for (const { gpuMs, cpuMs, factor, target } of compare!) {
    assertAlmostEquals(factor!, cpuMs / gpuMs!, 1e-9);
    assert(target[0] < target[1]);
  }
});

gpuTest(
  "without timestamps whole passes are timed, and a verdict says so",
  async () => {
    const report = await profile(TINY, {
      device: "gpu",
      gpu: wrapGpu({ without: ["timestamp-query"] }).gpu,
      promptTokens: 4,
      maxTokens: 4,
    });
    assertEquals(report.timedBy, "passes");
    assert(rules(report).includes("untimed"));
    for (const { ms, operations, profiledMs } of report.phases) {
      assert(ms > 0);
      assertEquals(profiledMs, undefined);
      assert(operations.every((operation) => operation.ms === undefined));
      assert(operations.some(({ flops }) => flops > 0));
    }
    assertEquals(report.loop!.idle, undefined);
    const said = profileText(report);
    assertStringIncludes(said, "no timestamp-query");
  },
);

gpuTest(
  "the clock is among the choices, and one in long steps gives no shares",
  async () => {
    for (const stepNs of [1, 65536]) {
      const report = await profile(TINY, {
        device: "gpu",
        gpu: clockedGpu({ ...CLOCK, stepNs }),
        promptTokens: 4,
        maxTokens: 4,
      });
      const isFine = stepNs === 1;
      assertEquals(report.timedBy, isFine ? "timestamps" : "passes");
      const operations = report.phases.flatMap(({ operations }) => operations);
      assertEquals(operations.some(({ share }) => share !== undefined), isFine);
      const clock = report.device.choices.find(({ what }) =>
        what === "clock of timestamps"
      );
      assertEquals(clock?.value, isFine ? "1 ns per tick" : "not used");
      if (isFine) continue;
      assertStringIncludes(profileText(report), clock!.reason);
    }
  },
);

gpuTest("a profile counts the bytes of a cache in q8_0", async () => {
  const bytesOf = async (kv: "f16" | "q8_0") => {
    const options = { device: "gpu", promptTokens: 30, maxTokens: 2 } as const;
    const { phases, device } = await profile(TINY, { ...options, kv });
    const cache = device.choices.find(({ what }) => what === "KV cache");
    assertEquals(cache?.value, kv);
    const found = phases[1].operations.find(({ name }) =>
      name === "attention scores"
    )!;
    assertMatch(found.dtypes, new RegExp(`f32 × ${kv} → f32`));
    return found.bytes / found.calls;
  };
  // 2 kv heads × 31 keys and their values, of 32 values each: 64 and 36 bytes.
  const saved = await bytesOf("f16") - await bytesOf("q8_0");
  assertEquals(saved, 2 * 31 * (64 - 36));
});

gpuTest("an operation that is left out saves its share of a step", async () => {
  await using checkpoint = await openCheckpoint(SHAPES);
  using gpu = await openDevice({ gpu: clockedGpu(CLOCK) });
  const runner = await GpuRunner.load(gpu, checkpoint, {
    context: 16,
    cacheDtype: "f16",
    f16Matmuls: false,
  });
  const { config, weights } = runner;
  using ops = new GpuOps(gpu, config);
  using cache = new GpuKvCache(gpu, config, 1, 16, "f16");
  using plan = ops.plan = new Plan(gpu);
  using input = Tensor.create(gpu, "u32", [1], new Uint32Array([7]));
  cache.record({ first: 0, sequences: 1, tokens: 1 });
  cache.reset([0]);
  finish(qwen3.forward(ops, weights, input, cache));
  plan.seal();
  const name = "gate_up_proj";
  const context = { config, sequences: 1, tokens: 1, length: 0 };
  const all = [...plan.dispatches];
  const without = all.filter((d) => costsOf(d, context)[0].name !== name);
  const msOf = async (dispatches: typeof all) => {
    plan.dispatches.splice(0, Infinity, ...dispatches);
    const [first, ...others] = await timePlan(gpu, plan, 4);
    for (const ms of others) assertAlmostEquals(ms, first, 1e-6);
    return first;
  };
  const report = await profile(SHAPES, {
    device: "gpu",
    gpu: clockedGpu(CLOCK),
    promptTokens: 1,
    maxTokens: 2,
  });
  const { operations } = report.phases[1];
  const share = (name: string) =>
    operations.find((operation) => operation.name === name)!.share!;
  const saved = 1 - await msOf(without) / await msOf(all);
  assertAlmostEquals(saved, share(name) / (1 - share("sampling")), 1e-6);
});

gpuTest("a trace has a GPU and a CPU lane on one clock", async () => {
  const report = await tiny();
  const sleeping = await profile(TINY, {
    device: "gpu",
    gpu: navigator.gpu, // with it, the next chunk is encoded during a readback
    promptTokens: 2,
    maxTokens: 20,
  });
  for (const profiled of [report, sleeping]) {
    const trace: ReturnType<typeof traceOf> = JSON.parse(
      JSON.stringify(traceOf(profiled)),
    );
    const lanes = new Map<number, string>();
    for (const { ph, name, tid, args } of trace.traceEvents) {
      if (ph === "M" && name === "thread_name") {
        lanes.set(tid, String(args!.name));
      }
    }
    assertEquals([...lanes.values()], [
      `GPU: ${profiled.device.adapter}`,
      "CPU",
    ]);
    let before = -Infinity;
    const open = new Map<number, number[]>(); // ends of open events, by lane
    for (const { ph, ts, dur, tid, name } of trace.traceEvents) {
      if (ph !== "X") continue;
      assert(ts! >= before && ts! >= 0, `${name} at ${ts} after ${before}`);
      assert(dur! >= 0 && lanes.has(tid), `${name}: ${dur}`);
      before = ts!;
      const ends = (open.get(tid) ?? []).filter((end) => end > ts! + 1);
      // An event inside another ends inside it, or viewers misplace it.
      for (const end of ends) {
        assert(ts! + dur! <= end + 1, `${name} ends after the event around it`);
      }
      open.set(tid, [...ends, ts! + dur!]);
    }
    assertEquals(open.size, 2);
    const qkv = trace.traceEvents.find(({ name }) =>
      name === "layers.1.qkv_proj"
    )!;
    assertMatch(
      String(qkv.args!.detail),
      /^(gemm|gemv|gemvRows): \[\d+, 64\] × \[64, 256\], f32 × bf16 → f32$/,
    );
  }
});

gpuTest("the text starts with the verdict and has every section", async () => {
  const report = await tiny();
  const said = profileText(report);
  const [mark, ...words] = said.split("\n\n")[0].split(/\s+/);
  assertEquals(mark, "!");
  assert(words.join(" ").startsWith(report.verdicts[0].text), said);
  for (
    const part of [
      "Prefill: ",
      "Decode: ",
      "On the GPU: 100 %",
      "Decode loop: ",
      "GPU over CPU",
      "Notes",
    ]
  ) assertStringIncludes(said, part);
});

Deno.test("options out of range are refused before anything is loaded", async () => {
  for (
    const [options, message] of [
      [
        { promptTokens: 600 },
        /promptTokens is 600, must be an integer from 1 to 448/,
      ],
      [{ promptTokens: 0 }, /promptTokens is 0/],
      [{ maxTokens: 1 }, /maxTokens is 1, must be an integer of at least 2/],
      [{ batch: 0 }, /batch is 0/],
      [{ chunk: 1000 }, /chunk is 1000/],
    ] as const
  ) {
    const error = await assertRejects(() => profile(TINY, options), RangeError);
    assertMatch(error.message, message);
  }
});

gpuTest("a weight that is split over bindings is one operation", async () => {
  const limits = { maxStorageBufferBindingSize: 40 << 10 };
  const { phases, coverage } = await profile(TINY, {
    device: "gpu",
    gpu: wrapGpu({ limits }).gpu,
    promptTokens: 3,
    maxTokens: 2,
  });
  for (const { operations } of phases) {
    const heads = operations.filter(({ name }) => name === "lm_head");
    assertEquals(heads.map(({ shape }) => shape), ["[1, 64] × [64, 512]"]);
    assertEquals(heads[0].calls, 2);
    assertEquals(heads[0].flops, 2 * 64 * 512);
    const tables = operations.filter(({ name }) => name === "embedding");
    assertMatch(
      tables.map(({ shape }) => shape).join(),
      /^\[\d\] of \[512, 64\]$/,
    );
  }
  assertEquals(coverage.calls.gpu, coverage.calls.total);
});

gpuTest("a batch is profiled in prefill, decode and loop", async () => {
  const options = { promptTokens: 9, maxTokens: 3, batch: 3 };
  const onGpu = await profile(TINY, { ...options, device: "gpu" });
  const onCpu = await profile(TINY, { ...options, device: "cpu" });
  for (const { phases: [prefill, decode], batch, notes } of [onGpu, onCpu]) {
    const of = (phase: Phase, name: string) =>
      phase.operations.find((operation) => operation.name === name)!;
    assertEquals([batch, prefill.tokens, decode.tokens], [3, 27, 3]);
    // Prompts run one by one through two layers; then one token of each is sampled.
    assertEquals(of(prefill, "qkv_proj").shape, "[9, 64] × [64, 256]");
    assertEquals(of(prefill, "qkv_proj").calls, 6);
    assertEquals(of(prefill, "qkv_proj").flops, 6 * 2 * 9 * 64 * 256);
    assertEquals(of(prefill, "sampling").shape, "[3, 512]");
    assertEquals(of(decode, "qkv_proj").shape, "[3, 64] × [64, 256]");
    assertEquals(of(decode, "qkv_proj").calls, 2);
    assertAlmostEquals(
      sum(prefill.operations.map(({ ms = 0 }) => ms)) / prefill.profiledMs!,
      1,
      0.1,
    );
    assert(
      notes.some((note) => /only the first and last of 3 prompts/.test(note)),
    );
  }
  const { loop } = onGpu;
  assertEquals([loop!.steps, loop!.tokens], [2, 6]);
  const said = profileText(onGpu);
  assertStringIncludes(said, "for 3 prompts of 9, ");
  assertStringIncludes(said, "6 tokens after the first 3, ");
});

gpuTest("a batch that does not fit is refused with numbers", async () => {
  await assertRejects(
    () =>
      profile("synthetic:qwen3-0.6b?layers=1&vocab=64", {
        device: "gpu",
        promptTokens: 40_000,
        maxTokens: 2,
        batch: 256,
      }),
    Error,
    "256 sequences × 40002 tokens",
  );
});

gpuTest(
  "the text aligns numbers in columns, at most 110 characters wide",
  async () => {
    const said = profileText(await layer());
    const tables = said.split(/\n\n| {2}Why/).filter((part) =>
      /^ {2}operation/m.test(part)
    );
    assertEquals(tables.length, 4);
    for (const line of said.split("\n").filter((line) => /^ /.test(line))) {
      assert(line.length <= 110, `${line.length} characters: ${line}`);
    }
    const [numbers] = tables;
    const lines = numbers.split("\n").filter((line) => /memory$/.test(line));
    assert(lines.length > 5);
    assertEquals(new Set(lines.map((line) => line.length)).size, 1);
  },
);

gpuTest(
  "every field of a report is declared and described",
  async () => {
    const source = await Deno.readTextFile(
      new URL("../../../lib/tools/profile/report.ts", import.meta.url),
    );
    const declared = new Set(
      [...source.matchAll(/\b(\w+)\??:\s/g)].map(([, name]) => name),
    );
    const elsewhere = new Set(["choices", "fallbacks", "constants"]);
    const check = (value: unknown, path: string) => {
      if (typeof value !== "object" || value === null) return;
      for (const [name, inner] of Object.entries(value)) {
        if (!Array.isArray(value)) {
          assert(declared.has(name), `${path}.${name} is not declared`);
          if (elsewhere.has(name)) continue;
        }
        check(inner, `${path}.${name}`);
      }
    };
    check(JSON.parse(JSON.stringify(await tiny())), "report");
    const task = await Deno.readTextFile(
      new URL("../../../tasks/profile.ts", import.meta.url),
    );
    for (const name of Object.keys(await tiny())) {
      assertStringIncludes(task, `\`${name}\``);
    }
  },
);
