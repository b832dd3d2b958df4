/** Numbers and verdicts of the decode loop, from recorded spans. */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import {
  type CpuSpan,
  loopOf,
  loopTimeline,
} from "../../../lib/tools/profile/loop.ts";
import {
  type Findings,
  verdictsOf,
} from "../../../lib/tools/profile/verdict.ts";

/** The times of a recorded step, in milliseconds. */
interface Step {
  encode: number;
  submit: number;
  /** The GPU starts when a step is submitted. */
  gpu: number;
  /** From the GPU's end until its token is mapped. */
  settle: number;
  read: number;
}

/** A loop of `steps` steps, each of them read back before the next. */
function recorded(steps: number, step: Step) {
  const cpu: CpuSpan[] = [], gpu: { begin: number; end: number }[] = [];
  let now = 100;
  const spend = (what: CpuSpan["what"], ms: number) => {
    cpu.push({ what, begin: now, end: now + ms });
    now += ms;
  };
  for (let i = 0; i < steps; i++) {
    spend("encode", step.encode);
    spend("submit", step.submit);
    gpu.push({ begin: now - 60, end: now - 60 + step.gpu }); // its own clock
    spend("wait", step.gpu + step.settle);
    spend("readback", step.read);
  }
  return {
    cpu,
    gpu,
    passes: Array<number>(steps).fill(1),
    chunk: 1,
    sequences: 1,
    began: 80,
    first: 100,
    last: now,
  };
}

// Typical of an H100: 28 layers in 0.9 ms and Deno's 10 ms for a readback; a CPU that
// takes 60 ms to encode; and a loop that keeps the GPU busy.
const READBACKS = recorded(15, {
  encode: 0.31,
  submit: 0.06,
  gpu: 0.9,
  settle: 10.4,
  read: 0.02,
});
const ENCODING = recorded(7, {
  encode: 60.2,
  submit: 0.4,
  gpu: 0.9,
  settle: 10.4,
  read: 0.02,
});
const BUSY = recorded(15, {
  encode: 0.05,
  submit: 0.03,
  gpu: 0.9,
  settle: 0.04,
  read: 0.02,
});

const findings = (watched: typeof READBACKS): Findings => ({
  model: "m",
  promptTokens: 1,
  maxTokens: 16,
  batch: 1,
  notes: [],
  device: { kind: "gpu", adapter: "H100", software: false, choices: [] },
  timedBy: "timestamps",
  phases: [],
  coverage: {
    calls: { gpu: 1, total: 1 },
    flops: { gpu: 1, total: 1 },
    refusals: [],
  },
  fallbacks: [],
  loop: loopOf(watched),
});

Deno.test("a loop's times are per step, and its idle share is that of the GPU's gaps", () => {
  const loop = loopOf(READBACKS);
  assertEquals([loop.steps, loop.tokens, loop.chunk], [15, 15, 1]);
  assertAlmostEquals(loop.encodeMs, 0.31, 1e-9);
  assertAlmostEquals(loop.submitMs, 0.06, 1e-9);
  assertAlmostEquals(loop.waitMs, 11.3, 1e-9);
  assertAlmostEquals(loop.readbackMs, 0.02, 1e-9);
  assertAlmostEquals(loop.gpuMs!, 0.9, 1e-9);
  assertAlmostEquals(loop.firstTokenMs, 20, 1e-9);
  const gap = 10.4 + 0.02 + 0.31 + 0.06, step = gap + 0.9;
  assertAlmostEquals(loop.stepMs, step, 1e-6);
  assertAlmostEquals(loop.idle!, 14 * gap / (14 * gap + 15 * 0.9), 1e-9);
  assertEquals(loop.gaps.map(({ count }) => count), [14]);
  assertAlmostEquals(loop.gaps[0].ms, gap, 1e-9);
});

Deno.test("readbacks and a slow CPU have verdicts, a busy GPU has none", () => {
  const texts = (watched: typeof READBACKS) =>
    verdictsOf(findings(watched)).map(({ rule, text }) => [rule, text]);
  assertEquals(texts(READBACKS), [[
    "readbacks",
    "GPU idle 92 %: one readback a token, each taking 11.3 ms; read back after several steps, as without --chunk (down to 900 µs a token from 11.7 ms)",
  ]]);
  const [[rule, text]] = texts(ENCODING);
  assertEquals(rule, "encoding");
  assert(
    text.startsWith(
      "GPU idle 99 %: the CPU takes 60.6 ms a token to encode and submit what the GPU does in 900 µs;",
    ),
    text,
  );
  assertEquals(texts(BUSY), []);
});

Deno.test("the timeline of a loop is on the CPU's clock", () => {
  const events = loopTimeline(READBACKS, (ms) => ms + 60 - 80, 80);
  const of = (lane: string) => events.filter((event) => event.lane === lane);
  const [encode, submit, wait, readback] = of("CPU");
  assertEquals(
    [encode, submit, wait, readback].map(({ name }) => name),
    ["encode", "submit", "wait", "readback"],
  );
  assertEquals(encode.begin, 20);
  for (const [i, pass] of of("GPU").entries()) {
    const submitted = of("CPU").filter(({ name }) => name === "submit")[i];
    assertEquals(pass.name, "1 step");
    assertAlmostEquals(pass.begin, submitted.begin + submitted.ms, 1e-9);
    assertAlmostEquals(pass.ms, 0.9, 1e-9);
  }
});
