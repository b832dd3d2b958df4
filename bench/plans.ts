/**
 * Kernels under `deno bench`, which only knows wall time. An iteration is the GPU's work on
 * many dispatches: they are encoded before its clock starts, and the clock stops when the
 * GPU is done, not when Deno notices. A table of the same work by timestamp queries
 * follows at the end of each file.
 *
 * @module
 */
import { openDevice } from "../lib/device/open_device.ts";
import type { Gpu } from "../lib/webgpu/device.ts";
import { measurePeaks } from "../lib/tools/peaks.ts";
import { Plan, type StepState } from "../lib/webgpu/plan.ts";
import type { Peaks } from "../lib/tools/profile/report.ts";
import { prepareEnvironment } from "../lib/webgpu/environment.ts";
import {
  arithmetic,
  bandwidth,
  milliseconds,
  percent,
  significant,
} from "../lib/tools/format.ts";
import { WIDTH, wrap } from "../lib/text/messages.ts";
import { type Measure, measure, peaksText, withBound } from "./report.ts";
import { hotTimes } from "./setting.ts";

/** Iterations that Deno times, and runs that are timed on the GPU. */
const ITERATIONS = 11, SOFTWARE_ITERATIONS = 5;

/** Cases of equal work, compared with a baseline. */
export interface PlanGroup {
  /** Shapes. */
  name: string;
  /** Dispatches per plan, each on its own memory. */
  copies: number;
  /** Runs of the plan per iteration, enough to keep a GPU busy for milliseconds. */
  batch: number;
  /** FLOPs of one dispatch. */
  flops: number;
  /** Tokens in the KV cache, where they matter. */
  length?: number;
  /** The first is the baseline. */
  cases: PlanCase[];
}

/** One way to do the work. */
export interface PlanCase {
  name: string;
  /** The peak that limits it. */
  bound: NonNullable<Measure["bound"]>;
  /** Least bytes that a dispatch must move, if memory limits it. */
  bytes?: number;
  /** Records `copies` dispatches; the plan owns their tensors. */
  record(plan: Plan): void;
}

/** Opens the device for a bench file. */
export async function openBench(): Promise<Gpu> {
  prepareEnvironment();
  return await openDevice();
}

/** How many copies of `bytes` exceed every GPU's caches. */
export function copiesOf(gpu: Gpu, bytes: number): number {
  const beyond = gpu.software ? 0 : 256e6;
  return Math.min(64, Math.max(1, Math.ceil(beyond / bytes)));
}

/** The clock of an iteration. */
export type Clock = Pick<Deno.BenchContext, "start" | "end">;

/**
 * Times `batch` runs of a plan, after as many others, since an idle GPU lowers its clocks.
 * The clock runs during one submission and the wait for it. Deno 2.9.6 waits in the call
 * and lets the promise sleep for another 10 ms, which are not timed; with any other
 * WebGPU the clock stops when the promise settles.
 */
export async function iterate(
  gpu: Gpu,
  plan: Plan,
  batch: number,
  clock: Clock,
  state?: StepState,
): Promise<void> {
  const { queue } = gpu.device;
  plan.seal();
  const warming = encoded(gpu, plan, batch, state);
  const timed = encoded(gpu, plan, batch, state);
  queue.submit([warming]);
  const warmed = queue.onSubmittedWorkDone();
  if (!gpu.readsAtOnce) await warmed;
  clock.start();
  queue.submit([timed]);
  const done = queue.onSubmittedWorkDone();
  if (!gpu.readsAtOnce) await done;
  clock.end();
  await Promise.all([warmed, done]);
  gpu.check();
}

/** Runs of a plan, each a pass as in the table of GPU times. */
function encoded(
  { device }: Gpu,
  plan: Plan,
  batch: number,
  state?: StepState,
): GPUCommandBuffer {
  const encoder = device.createCommandEncoder();
  for (let run = 0; run < batch; run++) {
    const pass = encoder.beginComputePass();
    plan.encode(pass, state);
    pass.end();
  }
  return encoder.finish();
}

/** Registers the groups; a table of GPU times goes to stderr at the end. */
export function benchPlans(
  gpu: Gpu,
  title: string,
  groups: readonly PlanGroup[],
): void {
  const lines: string[] = [];
  let peaks: Promise<Peaks> | undefined;
  let current: { of: PlanCase; plan: Plan } | undefined;
  for (const group of groups) {
    const { length = 0, batch, copies } = group;
    const dispatches = `${
      (batch * copies).toLocaleString("en")
    } × ${group.name}`;
    for (const [i, one] of group.cases.entries()) {
      Deno.bench({
        name: one.name,
        group: dispatches,
        baseline: i === 0,
        warmup: 1,
        n: gpu.software ? SOFTWARE_ITERATIONS : ITERATIONS,
        async fn(clock) {
          if (current?.of !== one) { // the warm-up call, which Deno does not time
            peaks ??= measurePeaks(gpu);
            const known = await peaks;
            if (lines.length === 0) lines.push(...headLines(gpu, title, known));
            current?.plan[Symbol.dispose]();
            const plan = new Plan(gpu);
            current = { of: one, plan };
            one.record(plan);
            plan.seal();
            if (i === 0) lines.push(dispatches);
            lines.push(await gpuLine(gpu, plan, known, group, one));
          }
          await iterate(gpu, current.plan, batch, clock, { length });
        },
      });
    }
  }
  addEventListener("unload", () => {
    if (lines.length) console.error(lines.join("\n"));
  });
}

function headLines(gpu: Gpu, title: string, peaks: Peaks): string[] {
  const by = gpu.timestamps ? "timestamp queries" : "wall clock";
  return [
    "",
    `${title}: time on the GPU by ${by}, of an iteration and of a dispatch`,
    ...gpu.readsAtOnce ? [] : [
      "iterations above include the wait until the runtime notices that the GPU is done",
    ],
    ...wrap(peaksText(peaks), WIDTH, "", "  "),
  ];
}

async function gpuLine(
  gpu: Gpu,
  plan: Plan,
  peaks: Peaks,
  { batch, copies, flops, length = 0 }: PlanGroup,
  { name, bound, bytes = 0 }: PlanCase,
): Promise<string> {
  const runs = gpu.software ? SOFTWARE_ITERATIONS : ITERATIONS;
  const times = (await hotTimes(gpu, plan, runs, { length })).map((ms) =>
    ms / copies
  );
  const { median, low, high } = measure("GPU time", "ms", times);
  const memory = bound === "memory";
  const work = memory ? bytes / 1e9 : flops / 1e12;
  const rate = measure(
    "GPU time",
    memory ? "GB/s" : "TFLOP/s",
    times.map((ms) => work / ms * 1000),
  );
  const rateText = (memory ? bandwidth : arithmetic)(rate.median);
  const { fraction } = withBound(rate, peaks, bound, memory ? 1e9 : 1e12);
  const whole = milliseconds(median * batch * copies);
  const each = `${significant(1000 * median)} µs`;
  const range = `(${significant(1000 * low)}–${significant(1000 * high)})`;
  return `  ${name.padEnd(26)} ${whole.padStart(8)} ${each.padStart(9)} ${
    range.padEnd(17)
  } ${rateText.padStart(12)} ${percent(fraction!).padStart(7)} of ${bound}`;
}
