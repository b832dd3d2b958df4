/**
 * The clock behind timestamp queries. WebGPU promises nanoseconds, but Deno hands out the
 * driver's ticks, and Dawn may round, so both are found out by comparing with the wall
 * clock, once per device and only if something is timed.
 *
 * @module
 */
import type { Gpu } from "./device.ts";

/** A device's clock. */
export interface GpuClock {
  /** Nanoseconds per tick. */
  period: number;
  /** The smallest step of its times, in nanoseconds; at least a tick. */
  resolution: number;
}

/**
 * Nanoseconds per tick of drivers' clocks: 1 is a driver that converts; others count at
 * 100, 32, 27, 26, 25, 24, 19.2, 12.5 and 12 MHz. A measured period can be off by what a
 * submission takes, so it is replaced by the only one of these that it allows.
 */
const PERIODS: readonly number[] = [
  ...[1, 10, 31.25, 1000 / 27, 1000 / 26, 40, 1000 / 24],
  ...[1000 / 19.2, 80, 1000 / 12],
];

/** Times between the first and the last sample, in milliseconds: longer until it is clear. */
const SPANS = [25, 50, 100, 200, 400, 800];
/** How far apart the bounds of a period that is none of the above may be. */
const CLOSE = 1.01;
/** A clock with longer steps cannot compare kernels, which take microseconds. */
const LONGEST_STEP_NS = 4096;

/** Samples of a clock at odd times, whose differences show its steps. */
const STEPS_SEEN = 5;

/** The label of the passes that calibrate. */
export const CALIBRATION = "clock calibration";

const clocks = new WeakMap<Gpu, Promise<GpuClock>>();

/**
 * The clock of a device, calibrated on first use, which becomes one of its choices. If its
 * steps are too long, `gpu.timestamps` is false from then on.
 *
 * @throws {DeviceError} if the device fails.
 */
export function calibrated(gpu: Gpu): Promise<GpuClock> {
  let known = clocks.get(gpu);
  if (!known) clocks.set(gpu, known = calibrate(gpu));
  return known;
}

async function calibrate(gpu: Gpu): Promise<GpuClock> {
  if (!gpu.timestamps) return { period: 1, resolution: Infinity };
  await gpu.device.queue.onSubmittedWorkDone();
  const samples: ClockSample[] = [];
  while (samples.length < STEPS_SEEN) samples.push(await sample(gpu));
  let period = 1, measured = 1;
  for (const span of SPANS) {
    await new Promise((resolve) => setTimeout(resolve, span));
    samples.push(await sample(gpu));
    const bounds = periodBounds(samples[0], samples.at(-1)!);
    measured = Math.sqrt(bounds.low * bounds.high);
    const fitting = PERIODS.filter((one) =>
      one >= bounds.low && one <= bounds.high
    );
    period = fitting.length === 1 ? fitting[0] : measured;
    const close = bounds.high <= CLOSE * bounds.low;
    if (fitting.length === 1 || fitting.length === 0 && close) break;
  }
  const step = stepOf(samples.map(({ ticks }) => ticks));
  const resolution = step * period;
  gpu.timestamps = resolution <= LONGEST_STEP_NS;
  gpu.addChoice({
    what: "clock of timestamps",
    value: gpu.timestamps ? `${shown(period)} ns per tick` : "not used",
    reason: gpu.timestamps
      ? `measured against the wall clock: ${shown(measured)} ns`
      : tooCoarse(resolution),
  });
  return { period, resolution };
}

/** Why a device's passes are timed by wall clock, for the end of a sentence or a note. */
export async function untimed(gpu: Gpu): Promise<string> {
  const { resolution } = await calibrated(gpu);
  return Number.isFinite(resolution)
    ? tooCoarse(resolution)
    : "the adapter has no timestamp-query";
}

const tooCoarse = (resolution: number) =>
  `timestamps have steps of ${
    Math.round(resolution)
  } ns, must be at most ${LONGEST_STEP_NS}`;

const shown = (ns: number) => Number(ns.toPrecision(4));

/** A timestamp, and between which times of `performance.now()` it was taken. */
export interface ClockSample {
  submitted: number;
  ticks: bigint;
  done: number;
}

/** Between which limits a tick's nanoseconds are. */
export function periodBounds(
  first: ClockSample,
  last: ClockSample,
): { low: number; high: number } {
  const ticks = Number(last.ticks - first.ticks);
  if (!(ticks > 0)) return { low: 0, high: Infinity };
  const low = Math.max(0, last.submitted - first.done);
  return {
    low: 1e6 * low / ticks,
    high: 1e6 * (last.done - first.submitted) / ticks,
  };
}

/** The largest step that all times are multiples of, apart from the first one. */
function stepOf(ticks: readonly bigint[]): number {
  let step = 0n;
  for (const one of ticks.slice(1)) {
    let rest = one - ticks[0];
    while (rest !== 0n) [step, rest] = [rest, step % rest];
  }
  return Math.abs(Number(step)) || Infinity;
}

async function sample(gpu: Gpu): Promise<ClockSample> {
  const { device } = gpu;
  const querySet = device.createQuerySet({ type: "timestamp", count: 2 });
  const resolved = gpu.buffer(
    16,
    "timestamps",
    GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC,
  );
  const encoder = device.createCommandEncoder({ label: CALIBRATION });
  encoder.beginComputePass({
    label: CALIBRATION,
    timestampWrites: {
      querySet,
      beginningOfPassWriteIndex: 0,
      endOfPassWriteIndex: 1,
    },
  }).end();
  encoder.resolveQuerySet(querySet, 0, 2, resolved, 0);
  const submitted = performance.now();
  device.queue.submit([encoder.finish()]);
  const bytes = await gpu.readBuffer(resolved, 0, 16);
  const done = performance.now();
  resolved.destroy();
  querySet.destroy();
  return { submitted, ticks: new BigUint64Array(bytes)[0], done };
}
