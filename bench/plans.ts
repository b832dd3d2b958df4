/**
 * Kernels under `deno bench`, which only knows wall time: an iteration is a batch of
 * dispatches, long enough for the final wait to be negligible. A table of GPU times
 * from timestamp queries follows at the end of each file.
 *
 * @module
 */
import { openDevice } from "../lib/open_device.ts";
import type { Gpu } from "../lib/webgpu/device.ts";
import { measurePeaks } from "../lib/tools/peaks.ts";
import { Plan } from "../lib/webgpu/plan.ts";
import type { Peaks } from "../lib/tools/profile/report.ts";
import { prepareEnvironment } from "../lib/webgpu/environment.ts";
import {
  type Measure,
  measure,
  number,
  peaksText,
  withBound,
} from "./report.ts";
import { hotTimes } from "./setting.ts";

/** Iterations that Deno times, and runs that are timed on the GPU. */
const ITERATIONS = 11, SOFTWARE_ITERATIONS = 3;

/** Cases of equal work, compared with a baseline. */
export interface PlanGroup {
  /** Shapes. */
  name: string;
  /** Dispatches per plan, each on its own memory. */
  copies: number;
  /** Runs of the plan per iteration: Deno takes 10 ms to notice that a GPU is done. */
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
    for (const [i, one] of group.cases.entries()) {
      const { length = 0, batch, copies } = group;
      Deno.bench({
        name: one.name,
        group: `${batch * copies} × ${group.name}`,
        baseline: i === 0,
        warmup: 1,
        n: gpu.software ? SOFTWARE_ITERATIONS : ITERATIONS,
        async fn(b) {
          if (current?.of !== one) { // the warm-up call, which Deno does not time
            peaks ??= measurePeaks(gpu);
            const known = await peaks;
            if (lines.length === 0) lines.push("", title, peaksText(known));
            current?.plan[Symbol.dispose]();
            const plan = new Plan(gpu);
            current = { of: one, plan };
            one.record(plan);
            plan.seal();
            lines.push(await gpuLine(gpu, plan, known, group, one));
          }
          const { plan } = current;
          b.start();
          for (let run = 0; run < batch; run++) plan.run({ length });
          await gpu.device.queue.onSubmittedWorkDone();
          b.end();
          gpu.check();
        },
      });
    }
  }
  addEventListener("unload", () => {
    if (lines.length) console.error(lines.join("\n"));
  });
}

async function gpuLine(
  gpu: Gpu,
  plan: Plan,
  peaks: Peaks,
  { name: shapes, copies, flops, length = 0 }: PlanGroup,
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
  const { fraction } = withBound(rate, peaks, bound, memory ? 1e9 : 1e12);
  return `  ${shapes.padEnd(44)} ${name.padEnd(22)} ${
    `${number(1000 * median)} µs`.padStart(12)
  } (${number(1000 * low)}–${number(1000 * high)}) ${
    `${number(rate.median)} ${rate.unit}`.padStart(16)
  }, ${(100 * fraction!).toFixed(1)}% of the ${bound} peak`;
}
