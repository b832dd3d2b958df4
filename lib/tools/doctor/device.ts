/**
 * Measures what a device can do and checks whether every kernel computes correctly.
 *
 * @module
 */
import type { Qwen3Config } from "../../checkpoint/config.ts";
import { passes } from "../../check/kernel_case.ts";
import { chooseDevice } from "../../dispatch/device.ts";
import { errorText } from "../../errors.ts";
import { measureRates } from "../../device/select_device.ts";
import type { Gpu } from "../../webgpu/device.ts";
import { Tensor } from "../../webgpu/tensor.ts";
import {
  arithmetic,
  bandwidth,
  decimal,
  percent,
  significant,
} from "../format.ts";
import { measurePeaks } from "../peaks.ts";
import { type KernelTests, testKernels, type TestResult } from "./kernels.ts";
import type { Finding, Reporter } from "./report.ts";

/** Deno's WebGPU sleeps 10 ms in every readback; anything above is the driver's. */
const SLOW_READBACK_MS = 20;

/** What is examined on a device, as JSON. */
export interface Examination {
  /** Bytes that a decode step reads, if the model is known. */
  weights?: number;
  /** The sizes for which `auto` compares a software adapter with the CPU path. */
  config: Qwen3Config;
  /** Whether to test all cases of all kernels even if `auto` takes the CPU. */
  all: boolean;
  /** Threads of the CPU path that a software adapter is compared with. */
  threads?: number;
}

/** Examines one device. A problem is a finding, not an error. */
export async function examineDevice(
  gpu: Gpu,
  { weights, config, all, threads }: Examination,
  reporter: Reporter,
): Promise<void> {
  try {
    reporter.starting?.("speed");
    await measure(gpu, weights, reporter);
    const used = await choose(gpu, config, reporter, threads);
    await selfTest(gpu, reporter, !used && !all);
  } catch (error) {
    const text = `${errorText(error)}; update its driver`;
    reporter.found({ severity: "red", topic: "device", text });
  }
}

/** Whether `auto` would take this device rather than the CPU. */
async function choose(
  gpu: Gpu,
  config: Qwen3Config,
  reporter: Reporter,
  threads?: number,
): Promise<boolean> {
  const known = chooseDevice("auto", gpu);
  const measured = known
    ? undefined
    : await measureRates(gpu, config, undefined, threads);
  const { choice: { reason }, gpu: used } = known ??
    chooseDevice("auto", gpu, measured)!;
  reporter.found({
    severity: used && !gpu.software ? "green" : "yellow",
    topic: "device",
    text: `auto takes ${used ? gpu.name : "the CPU path"}: ${reason}`,
    data: { device: used ? "gpu" : "cpu", reason, measured },
  });
  return used;
}

/** What a device reads, and the tokens/s that this allows at most. */
export function bandwidthText(readGBps: number, most?: number): string {
  const limit = most
    ? `: at most ${significant(most)} tokens/s with this model`
    : "";
  return `reads ${bandwidth(readGBps)}${limit}`;
}

/** Bandwidth, arithmetic and readback. */
async function measure(
  gpu: Gpu,
  weights: number | undefined,
  reporter: Reporter,
) {
  const green = (topic: string, text: string, data: Finding["data"]) =>
    reporter.found({ severity: "green", topic, text, data });
  const peaks = await measurePeaks(gpu);
  const { readGBps, f32TFLOPS, f16TFLOPS } = peaks;
  const most = weights && readGBps * 1e9 / weights;
  green("bandwidth", bandwidthText(readGBps, most), {
    readGBps,
    mostTokensPerSecond: most,
  });
  const half = f16TFLOPS === undefined
    ? ""
    : `, ${arithmetic(f16TFLOPS)} in f16`;
  green("arithmetic", `${arithmetic(f32TFLOPS)} in f32${half}`, {
    f32TFLOPS,
    f16TFLOPS,
  });
  using word = Tensor.create(gpu, "u32", [4]);
  const times: number[] = [];
  for (let i = 0; i < 7; i++) {
    const began = performance.now();
    await word.read();
    times.push(performance.now() - began);
  }
  const ms = times.sort((a, b) => a - b)[3], slow = ms > SLOW_READBACK_MS;
  reporter.found({
    severity: slow ? "yellow" : "green",
    topic: "readback",
    text: `${ms.toFixed(1)} ms for one word, ${
      slow
        ? "which is slow: it delays the first token and short replies"
        : gpu.implementation === "deno"
        ? "10 ms of it a sleep in Deno"
        : "which does not stop the device"
    }`,
    data: { ms },
  });
}

/**
 * Compares the results of every kernel with float64 on the CPU; with `few`, those of its
 * first case.
 */
export async function selfTest(
  gpu: Gpu,
  reporter: Reporter,
  few = false,
): Promise<void> {
  const tests = await testKernels(gpu, reporter, few);
  const byKernel = Map.groupBy(tests.results, ({ kernel }) => kernel);
  for (const [topic, results] of byKernel) {
    reporter.found({
      severity: results.every(passes) ? "green" : "red",
      topic,
      text: resultsText(results, "the GPU"),
      data: { results },
      detail: true,
    });
  }
  if (tests.failure) {
    const { kernel, message } = tests.failure;
    const text = `${message}; update the driver and report this message`;
    reporter.found({ severity: "red", topic: kernel, text });
  }
  reporter.found(summaryOf(tests, byKernel));
}

/** All kernels in one line. */
function summaryOf(
  { failure, firstUses, results, untested }: KernelTests,
  byKernel: ReadonlyMap<string, readonly TestResult[]>,
): Finding {
  const totalMs = firstUses.reduce((sum, { ms }) => sum + ms, 0);
  const slowest = firstUses.reduce(
    (a, b) => b.ms > a.ms ? b : a,
    { kernel: "none", ms: 0 },
  );
  const wrong = [...byKernel].filter(([, some]) => !some.every(passes))
    .map(([kernel]) => kernel);
  if (failure) wrong.push(failure.kernel);
  const cases = firstUses.length;
  const which = untested
    ? `the first case of each (--all tests all ${cases + untested})`
    : `${cases} cases`;
  const outcome = wrong.length
    ? `WRONG: ${wrong.join(", ")}`
    : `all correct, ${excessText(results)}`;
  return {
    severity: wrong.length ? "red" : "green",
    topic: "kernels",
    text:
      `${byKernel.size} kernels, ${which}, ${outcome}; compiled and run in ${
        (totalMs / 1000).toFixed(1)
      } s, ${slowest.kernel} the slowest`,
    data: { kernels: byKernel.size, cases, untested, totalMs, slowest },
  };
}

/** How much of its tolerance an error takes. */
const excess = ({ error, tolerance }: TestResult) =>
  Number.isNaN(error) ? Infinity : error === 0 ? 0 : error / tolerance;

const worstOf = (results: readonly TestResult[]) =>
  results.reduce((a, b) => excess(b) > excess(a) ? b : a);

const excessText = (results: readonly TestResult[]) =>
  `largest error ${percent(excess(worstOf(results)))} of the tolerance`;

/** Summarizes the results of one kernel; a failure also says where and by how much. */
export function resultsText(
  results: readonly TestResult[],
  where: string,
): string {
  const { error, tolerance, index, actual, expected, what } = worstOf(results);
  const failed = new Set(
    results.filter((result) => !passes(result)).map(({ what }) => what),
  ).size;
  const count = new Set(results.map(({ what }) => what)).size;
  const cases = `${count} ${count === 1 ? "case" : "cases"}`;
  if (failed === 0) {
    return `${cases}, all correct, ${excessText(results)}`;
  }
  return `${cases}, ${failed} WRONG; worst error ${decimal(error)}, allowed \
${decimal(tolerance)}, at [${index}] of ${what}: ${
    decimal(actual)
  } on ${where}, \
${decimal(expected)} expected; report this message`;
}
