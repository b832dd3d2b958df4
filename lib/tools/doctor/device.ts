/**
 * Measures what a device can do and checks whether every kernel computes correctly.
 *
 * @module
 */
import { passes } from "../../check/kernel_case.ts";
import { errorText } from "../../errors.ts";
import type { Gpu } from "../../webgpu/device.ts";
import { Tensor } from "../../webgpu/tensor.ts";
import { arithmetic, bandwidth } from "../format.ts";
import { measurePeaks } from "../peaks.ts";
import { testKernels, type TestResult } from "./kernels.ts";
import type { Reporter } from "./report.ts";

/** Deno's WebGPU sleeps 10 ms in every readback; anything above is the driver's. */
const SLOW_READBACK_MS = 20;

/**
 * Examines one device. A problem is a finding, not an error.
 *
 * @param weights Bytes that a decode step reads, if the model is known.
 */
export async function examineDevice(
  gpu: Gpu,
  weights: number | undefined,
  reporter: Reporter,
): Promise<void> {
  try {
    reporter.starting?.("speed");
    await measure(gpu, weights, reporter);
    await selfTest(gpu, reporter);
  } catch (error) {
    const text = `${errorText(error)}; update its driver`;
    reporter.found("red", "device", text);
  }
}

/** Bandwidth, arithmetic and readback. */
async function measure(
  gpu: Gpu,
  weights: number | undefined,
  reporter: Reporter,
) {
  const peaks = await measurePeaks(gpu);
  const { readGBps, f32TFLOPS, f16TFLOPS } = peaks;
  const most = weights && readGBps * 1e9 / weights;
  const limit = most
    ? `: at most ${Math.round(most).toLocaleString("en-US")} tokens/s \
with this model`
    : "";
  reporter.found(
    "green",
    "bandwidth",
    `reads ${bandwidth(readGBps)}${limit}`,
    { readGBps, mostTokensPerSecond: most },
  );
  const half = f16TFLOPS === undefined
    ? ""
    : `, ${arithmetic(f16TFLOPS)} in f16`;
  reporter.found(
    "green",
    "arithmetic",
    `${arithmetic(f32TFLOPS)} in f32${half}`,
    { f32TFLOPS, f16TFLOPS },
  );
  using word = Tensor.create(gpu, "u32", [4]);
  const times: number[] = [];
  for (let i = 0; i < 7; i++) {
    const began = performance.now();
    await word.read();
    times.push(performance.now() - began);
  }
  const ms = times.sort((a, b) => a - b)[3], slow = ms > SLOW_READBACK_MS;
  reporter.found(
    slow ? "yellow" : "green",
    "readback",
    `${ms.toFixed(1)} ms for one word, ${
      slow
        ? "which is slow: it delays the first token and short replies"
        : "10 ms of that is Deno sleeping"
    }`,
    { ms },
  );
}

/** Compares the results of every kernel with float64 on the CPU. */
export async function selfTest(gpu: Gpu, reporter: Reporter): Promise<void> {
  const tests = await testKernels(gpu, reporter);
  const byKernel = Map.groupBy(tests.results, ({ kernel }) => kernel);
  for (const [kernel, results] of byKernel) {
    const right = results.every(passes);
    const text = resultsText(results);
    reporter.found(right ? "green" : "red", kernel, text, { results });
  }
  if (tests.failure) {
    const { kernel, message } = tests.failure;
    const text = `${message}; update the driver and report this message`;
    reporter.found("red", kernel, text);
  }
  const uses = tests.firstUses;
  const totalMs = uses.reduce((sum, { ms }) => sum + ms, 0);
  const slowest = uses.reduce(
    (a, b) => b.ms > a.ms ? b : a,
    { kernel: "", ms: 0 },
  );
  reporter.found(
    "green",
    "first use",
    `${uses.length} pipelines compiled and run in ${
      (totalMs / 1000).toFixed(1)
    } s, ${slowest.kernel} the slowest at ${slowest.ms.toFixed(0)} ms`,
    { totalMs, slowest },
  );
}

/** Summarizes the results of one kernel; a failure also says where and by how much. */
function resultsText(results: readonly TestResult[]): string {
  const excess = ({ error, tolerance }: TestResult) =>
    Number.isNaN(error) ? Infinity : tolerance ? error / tolerance : error;
  const worst = results.reduce((a, b) => excess(b) > excess(a) ? b : a);
  const { error, tolerance, index, actual, expected, what } = worst;
  const failed = new Set(
    results.filter((result) => !passes(result)).map(({ what }) => what),
  ).size;
  const count = new Set(results.map(({ what }) => what)).size;
  const cases = `${count} ${count === 1 ? "case" : "cases"}`;
  const size = `worst error ${error.toExponential(1)}, tolerance ${
    tolerance.toExponential(1)
  }`;
  if (failed === 0) return `${cases}, all correct; ${size}`;
  return `${cases}, ${failed} WRONG; ${size}, at [${index}] of ${what}: \
${actual} on the GPU, ${expected} on the CPU; update the driver and report this message`;
}
