import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import type {
  Loop,
  Operation,
  Phase,
} from "../../../lib/tools/profile/report.ts";
import { loopNotes } from "../../../lib/tools/profile/loop.ts";
import { percent } from "../../../lib/tools/format.ts";
import {
  type Findings,
  verdictsOf,
} from "../../../lib/tools/profile/verdict.ts";

function operation(more: Partial<Operation> = {}): Operation {
  return {
    name: "gate_up_proj",
    group: "linear",
    matmul: true,
    shape: "",
    dtypes: "",
    kernel: "gemm",
    fused: [],
    constants: {},
    reason: "",
    calls: 28,
    workgroups: 1024,
    threads: 128,
    ms: 1,
    share: 1,
    flops: 0,
    bytes: 0,
    ...more,
  };
}

function phase(
  name: Phase["name"],
  ms: number,
  ...operations: Operation[]
): Phase {
  return {
    name,
    tokens: 1,
    sampledSteps: 1,
    ms,
    dispatches: 170,
    flops: operations.reduce((sum, { flops }) => sum + flops, 0),
    bytes: operations.reduce((sum, { bytes }) => sum + bytes, 0),
    operations,
  };
}

const loop: Loop = {
  steps: 64,
  tokens: 64,
  chunk: 64,
  stepMs: 1.05,
  encodeMs: 0.1,
  submitMs: 0.05,
  waitMs: 1,
  readbackMs: 0.01,
  gpuMs: 1,
  idle: 0.05,
  gaps: [],
  firstTokenMs: 20,
};

/** A healthy run on a large GPU, with the changes of a test. */
function findings(more: Partial<Findings> = {}): Findings {
  return {
    model: "m",
    device: { kind: "gpu", adapter: "H200", software: false, choices: [] },
    promptTokens: 512,
    maxTokens: 64,
    batch: 1,
    peaks: {
      readGBps: 4500,
      f32TFLOPS: 60,
      f16TFLOPS: 100,
      fillWorkgroups: 256,
    },
    timedBy: "timestamps",
    notes: [],
    phases: [],
    coverage: {
      calls: { gpu: 1, total: 1 },
      flops: { gpu: 1, total: 1 },
      refusals: [],
    },
    fallbacks: [],
    loop,
    ...more,
  };
}

const rules = (more: Partial<Findings>) =>
  verdictsOf(findings(more)).map(({ rule }) => rule);
const text = (more: Partial<Findings>) =>
  verdictsOf(findings(more)).map(({ text }) => text).join("\n");

Deno.test("decode near its memory bound says how close it is", () => {
  const decode = phase("decode", 1, operation({ bytes: 0.71 * 4.5e9 }));
  const [verdict] = verdictsOf(findings({ phases: [decode] }));
  assertEquals(verdict.severity, "green");
  assertStringIncludes(
    verdict.text,
    "decode is bound by memory: 71 % of 4.50 TB/s",
  );
});

Deno.test("decode faster than its memory bound is not reported as a share of it", () => {
  const decode = phase("decode", 1, operation({ bytes: 1.3 * 4.5e9 }));
  assertMatch(
    text({ phases: [decode] }),
    /^decode is bound by memory, at more than the 4.50 TB\/s measured here: .*cache/,
  );
});

Deno.test("decode far from its memory bound names dispatches and the largest", () => {
  const decode = phase("decode", 4, operation({ bytes: 4.5e9 }));
  const said = text({ phases: [decode] });
  assertStringIncludes(said, "reaches 25 % of its bound, memory at 4.50 TB/s");
  assertStringIncludes(said, "170 dispatches of 23.5 µs");
  assertStringIncludes(said, "gate_up_proj takes 100 %");
});

Deno.test("a prefill with small grids says so", () => {
  const small = operation({ flops: 0.38 * 60e9, workgroups: 32 });
  const prefill = phase("prefill", 1, small);
  const said = text({ phases: [prefill] });
  assertStringIncludes(
    said,
    "prefill reaches 38 % of the f32 rate of 60.0 TFLOP/s",
  );
  assertStringIncludes(said, "a grid of 32 workgroups of 128 threads");
  assertStringIncludes(said, "does not fill this adapter");
  const large = { ...small, workgroups: 1024 };
  const other = text({ phases: [phase("prefill", 1, large)] });
  assert(!other.includes("does not fill"), other);
});

Deno.test("f16 matmuls are measured against the f16 rate", () => {
  const half = operation({ flops: 50e9, constants: { F16: 1 } });
  assertStringIncludes(
    text({ phases: [phase("prefill", 1, half)] }),
    "50 % of the f16 rate of 100 TFLOP/s",
  );
});

Deno.test("an idle GPU: readbacks, encoding and short runs are distinguished", () => {
  const idle = { ...loop, idle: 0.6, stepMs: 11.7 };
  assertEquals(rules({ loop }), []);
  assertEquals(rules({ loop: { ...idle, chunk: 1, waitMs: 11 } }), [
    "readbacks",
  ]);
  assertStringIncludes(
    text({ loop: { ...idle, chunk: 1, waitMs: 11 } }),
    "GPU idle 60 %: one readback a token",
  );
  assertEquals(rules({ loop: { ...idle, encodeMs: 10 } }), ["encoding"]);
  assertEquals(rules({ loop: { ...idle, waitMs: 10 } }), ["idle"]);
});

Deno.test("refusals come first, and name what to allow", () => {
  const refusal = (kernel: string, need: string, got: string) => ({
    line: "",
    kernel,
    need,
    got,
    shape: "",
    operations: [],
    count: 1,
  });
  const coverage = {
    calls: { gpu: 0, total: 9 },
    flops: { gpu: 0, total: 9 },
    refusals: [refusal("gemv", "2D×1D", "2D×2D")],
  };
  const [first] = verdictsOf(findings({ coverage }));
  assertEquals(first.severity, "red");
  assertEquals(
    first.text,
    "0 % of matmul FLOPs ran on the GPU: gemv takes 2D×1D, the model calls 2D×2D; allow gemm",
  );
  const partly = text({
    coverage: {
      calls: { gpu: 7, total: 9 },
      flops: { gpu: 95, total: 100 },
      refusals: [refusal("gemm", "2D×2D", "4D×4D")],
    },
  });
  assertStringIncludes(partly, "95 % of matmul FLOPs");
  assertStringIncludes(partly, "allow batchedGemm");
});

Deno.test("GPU over CPU is judged by its target", () => {
  const said = (...factors: number[]) =>
    verdictsOf(findings({
      compare: factors.map((factor, i) => ({
        phase: i ? "decode" : "prefill",
        what: "whole",
        gpuMs: 1,
        cpuMs: factor,
        factor,
        target: [5, 10],
      })),
    }))[0];
  assertEquals(said(263, 43), {
    rule: "compare",
    severity: "green",
    text: "GPU over CPU: prefill 263×, decode 43.0×",
  });
  assertMatch(
    said(12, 2.5).text,
    /decode 2.5×, below the 5× that a GPU should reach/,
  );
  assertMatch(said(12, 0.25).text, /decode 0.25×; use --device cpu/);
  assertEquals(said(12, 0.25).severity, "yellow");
});

Deno.test("passes that were not timed are noted", () => {
  const span = { begin: 0, end: 1 };
  const watched = {
    cpu: [],
    gpu: [span, span],
    passes: [1, 1, 1],
    chunk: 1,
    sequences: 1,
    began: 0,
    first: 1,
    last: 2,
  };
  assertMatch(loopNotes(watched).join(), /cover the first 2 of 3 passes/);
  assertEquals(loopNotes({ ...watched, gpu: [span, span, span] }), []);
  assertEquals(loopNotes({ ...watched, gpu: [] }), []);
});

Deno.test("shares near the ends are not rounded to them", () => {
  assertEquals([0, 0.0005, 0.5, 0.995, 0.9999, 1].map(percent), [
    "0 %",
    "< 0.1 %",
    "50 %",
    "99.5 %",
    "> 99.9 %",
    "100 %",
  ]);
});

Deno.test("the CPU and a software renderer are named", () => {
  const device = {
    kind: "cpu" as const,
    adapter: "CPU (2 threads)",
    software: false,
    choices: [{ what: "device", value: "cpu", reason: "no adapter" }],
  };
  assertMatch(text({ device }), /^the CPU was chosen: no adapter; /);
  assertMatch(
    text({ device: { ...device, kind: "gpu", software: true } }),
    /^software renderer: /,
  );
});
