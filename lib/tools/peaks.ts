/**
 * Peak rates of an adapter, measured by kernels that do nothing else.
 *
 * @module
 */
import { Tensor } from "../webgpu/tensor.ts";
import { FMA_ROUND, peakFma } from "../../kernels/peak_fma.ts";
import { peakRead } from "../../kernels/peak_read.ts";
import { calibrated } from "../webgpu/clock.ts";
import type { Gpu } from "../webgpu/device.ts";
import { Plan } from "../webgpu/plan.ts";
import type { Peaks } from "./profile/report.ts";
import { timePlan } from "../webgpu/timing.ts";

/** Measured passes take at least this long, so that clocks and caches settle. */
const LONG_MS = 2;
/** A pass of this many rounds is not made longer. */
const MOST_ROUNDS = 1 << 14;
/** Workgroups that fill any GPU. */
const MANY_WORKGROUPS = 4096;

/** Measures read bandwidth and arithmetic rates in about a second. */
export async function measurePeaks(gpu: Gpu): Promise<Peaks> {
  await calibrated(gpu);
  const many = gpu.software ? 64 : MANY_WORKGROUPS;
  const f32 = await fmaRate(gpu, many, 0);
  const f16 = gpu.f16 ? await fmaRate(gpu, many, 1) : undefined;
  const buffer = await readRate(gpu, "buffer");
  // Where threads are emulated, small weights are read from textures, which is faster.
  const texture = gpu.software ? await readRate(gpu, "texture") : 0;
  return {
    readGBps: Math.max(buffer, texture),
    ...(texture > buffer ? { bufferGBps: buffer } : {}),
    f32TFLOPS: f32.rate,
    f16TFLOPS: f16?.rate,
    fillWorkgroups: await fillingWorkgroups(gpu, f32),
  };
}

/** GB/s of reading a buffer larger than any cache, or its copy in a texture. */
async function readRate(
  gpu: Gpu,
  X_IN: "buffer" | "texture",
): Promise<number> {
  const bytes = Math.min(
    gpu.software ? 4 << 20 : 1 << 28,
    gpu.limits.maxStorageBufferBindingSize & ~0xfff,
  );
  using x = Tensor.create(gpu, "u32", [bytes / 4], undefined, "peak read");
  using y = Tensor.create(gpu, "u32", [4], undefined, "peak sink");
  using plan = new Plan(gpu);
  plan.add(peakRead, { x, y }, { constants: { X_IN } });
  await fastest(gpu, plan, 2); // the first touch commits the memory
  return bytes / await fastest(gpu, plan, 10) / 1e6;
}

interface Rate {
  rate: number;
  /** Rounds of one workgroup that make the pass long enough. */
  rounds: number;
}

/** TFLOP/s of `groups` workgroups. */
async function fmaRate(
  gpu: Gpu,
  groups: number,
  F16: 0 | 1,
): Promise<Rate> {
  for (let rounds = 1;; rounds *= 4) {
    const ms = await fmaTime(gpu, groups, rounds, F16, 2);
    if (ms < LONG_MS && rounds < MOST_ROUNDS) continue;
    const best = Math.min(ms, await fmaTime(gpu, groups, rounds, F16, 4));
    return { rate: groups * rounds * FMA_ROUND / best / 1e9, rounds };
  }
}

async function fmaTime(
  gpu: Gpu,
  groups: number,
  rounds: number,
  F16: 0 | 1,
  times: number,
): Promise<number> {
  using y = Tensor.create(gpu, "u32", [4], undefined, "peak sink");
  using plan = new Plan(gpu);
  plan.add(peakFma, { y }, {
    constants: { F16 },
    uniforms: { rounds, groups },
  });
  return await fastest(gpu, plan, times);
}

/** The fewest workgroups, a power of 2, that come within 10 % of the rate. */
async function fillingWorkgroups(gpu: Gpu, best: Rate): Promise<number> {
  const most = gpu.software ? 16 : 1024;
  for (let groups = 1; groups < most; groups *= 2) {
    const rounds = Math.min(MOST_ROUNDS, 16 * best.rounds);
    const ms = await fmaTime(gpu, groups, rounds, 0, 2);
    if (groups * rounds * FMA_ROUND / ms / 1e9 > 0.9 * best.rate) return groups;
  }
  return most;
}

/** Milliseconds of the fastest of several runs. */
async function fastest(gpu: Gpu, plan: Plan, times: number): Promise<number> {
  if (gpu.timestamps) return Math.min(...await timePlan(gpu, plan, times));
  return await timeByWall(gpu, plan, times);
}

/** Wall-clock milliseconds per run: the time of many runs minus that of none, divided. */
export async function timeByWall(
  gpu: Gpu,
  plan: Plan,
  times: number,
  state?: { length: number },
): Promise<number> {
  const wait = async (runs: number) => {
    const began = performance.now();
    for (let i = 0; i < runs; i++) plan.run(state);
    await gpu.device.queue.onSubmittedWorkDone();
    return performance.now() - began;
  };
  await wait(1);
  const none = Math.min(await wait(0), await wait(0));
  return Math.max(1e-3, (await wait(times) - none) / times);
}
