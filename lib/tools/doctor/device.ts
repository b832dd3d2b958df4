/**
 * What a device can do, measured, and whether every kernel computes rightly on it.
 *
 * @module
 */
import { Tensor } from "../../webgpu/tensor.ts";
import type { Gpu } from "../../webgpu/device.ts";
import { tryAttention } from "./attention.ts";
import { agrees, Bench } from "./bench.ts";
import { tryLinear, tryRows, trySampling } from "./kernels.ts";
import { Random } from "../../check/reference.ts";
import { type Find, messageOf } from "./report.ts";
import { measurePeaks } from "../peaks.ts";
import { arithmetic, bandwidth } from "../profile/verdict.ts";

/** Deno's WebGPU sleeps 10 ms in every readback; more is the driver's. */
const SLOW_READBACK_MS = 20;

/** Who is told what happens. */
export interface Told {
  find: Find;
  /** What runs next, before it may hang. */
  onStart?: (what: string) => void;
}

/**
 * Looks at one device. What is wrong with it is a finding, not an error.
 *
 * @param weights Bytes that a decode step reads, where a model is known.
 */
export async function examineDevice(
  gpu: Gpu,
  weights: number | undefined,
  { find, onStart }: Told,
): Promise<void> {
  try {
    onStart?.("speed");
    await measure(gpu, weights, find);
    await selfTest(gpu, { find, onStart });
  } catch (error) {
    find("red", "device", `${messageOf(error)}; update its driver`);
  }
}

/** Bandwidth, arithmetic and readback. */
async function measure(gpu: Gpu, weights: number | undefined, find: Find) {
  const peaks = await measurePeaks(gpu);
  const { readGBps, f32TFLOPS, f16TFLOPS } = peaks;
  const most = weights && readGBps * 1e9 / weights;
  find(
    "green",
    "bandwidth",
    `reads ${bandwidth(readGBps)}${
      most ? `: at most ${most.toPrecision(2)} tokens/s for this model` : ""
    }`,
    { readGBps, mostTokensPerSecond: most },
  );
  const half = f16TFLOPS === undefined
    ? ""
    : `, ${arithmetic(f16TFLOPS)} in f16`;
  find(
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
  const ms = times.sort((a, b) => a - b)[3];
  find(
    ms > SLOW_READBACK_MS ? "yellow" : "green",
    "readback",
    `${ms.toFixed(1)} ms for a word${
      ms > SLOW_READBACK_MS
        ? ", slow: the first token and short replies wait for it"
        : ", of which Deno sleeps 10"
    }`,
    { ms },
  );
}

/** Runs every kernel that computes against float64 on the CPU. */
export async function selfTest(
  gpu: Gpu,
  { find, onStart }: Told,
): Promise<void> {
  using bench = new Bench(gpu, new Random(), onStart);
  let failure: { kernel?: string; message: string } | undefined;
  for (const part of [tryRows, tryLinear, tryAttention, trySampling]) {
    try {
      await part(bench);
    } catch (error) {
      failure = { kernel: bench.running, message: messageOf(error) };
      break; // the device goes on reporting it
    }
  }
  const byKernel = Map.groupBy(bench.trials, ({ kernel }) => kernel);
  for (const [kernel, trials] of byKernel) {
    const excess = ({ error, tolerance }: typeof trials[number]) =>
      Number.isNaN(error) ? Infinity : tolerance ? error / tolerance : error;
    const worst = trials.reduce((a, b) => excess(b) > excess(a) ? b : a);
    const { error, tolerance, index, actual, expected, what } = worst;
    const right = trials.every(agrees);
    const wrong = trials.filter((trial) => !agrees(trial)).length;
    find(
      right ? "green" : "red",
      kernel,
      `${trials.length} ${trials.length === 1 ? "case" : "cases"}, ${
        right ? "all right" : `${wrong} WRONG`
      }; worst error ${error.toExponential(1)} (allowed ${
        tolerance.toExponential(1)
      }) at [${index}] of ${what}: ${actual} on the GPU, ${expected} on the CPU${
        right ? "" : "; update the driver, and report this line"
      }`,
      { trials },
    );
  }
  if (failure) {
    const { kernel = "self-test", message } = failure;
    find("red", kernel, `${message}; update the driver, and report this line`);
  }
  const uses = bench.firstUses;
  const total = uses.reduce((sum, { ms }) => sum + ms, 0);
  const slowest = uses.reduce(
    (a, b) => b.ms > a.ms ? b : a,
    { kernel: "", ms: 0 },
  );
  find(
    "green",
    "first use",
    `${uses.length} kernel variants were compiled and run for the first time in ${
      (total / 1000).toFixed(1)
    } s, the slowest (${slowest.kernel}) in ${slowest.ms.toFixed(0)} ms`,
    { totalMs: total, slowest },
  );
}
