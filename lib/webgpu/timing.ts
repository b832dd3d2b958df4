/**
 * Measures GPU time with timestamp queries.
 *
 * @module
 */
import { calibrated, type GpuClock, untimed } from "./clock.ts";
import type { Gpu } from "./device.ts";
import type { Plan, StepState } from "./plan.ts";

/**
 * Runs a plan `times` times and returns the milliseconds each run took on the GPU. Each
 * run is one pass; all are submitted together so that the GPU stays busy (an idle one
 * lowers its clocks).
 *
 * @throws {Error} if the adapter has no timestamps, or its clock is coarse.
 */
export async function timePlan(
  gpu: Gpu,
  plan: Plan,
  times: number,
  state?: StepState,
): Promise<number[]> {
  plan.seal();
  const spans = await timePasses(
    gpu,
    Array.from({ length: times }, () => (pass) => plan.encode(pass, state)),
  );
  return spans.map(({ begin, end }) => end - begin);
}

/** Maximum number of timestamps in a query set. */
export const MOST_QUERIES = 4096;

/** A span of time, in milliseconds on the GPU's clock, whose origin is arbitrary. */
export interface Span {
  begin: number;
  end: number;
}

/**
 * Runs passes and returns when each one ran, by the GPU's clock. Passes are submitted
 * together, as many as a query set has room for.
 *
 * @throws {Error} if the adapter has no timestamps, or its clock is coarse.
 */
export async function timePasses(
  gpu: Gpu,
  passes: ((pass: GPUComputePassEncoder) => void)[],
): Promise<Span[]> {
  const clock = await calibrated(gpu), out: Span[] = [];
  if (!gpu.timestamps) {
    throw new Error(
      `Cannot time on the GPU: ${await untimed(
        gpu,
      )}, time whole runs by wall clock`,
    );
  }
  for (let at = 0; at < passes.length; at += MOST_QUERIES / 2) {
    const some = passes.slice(at, at + MOST_QUERIES / 2);
    const count = 2 * some.length;
    const { device } = gpu;
    const querySet = device.createQuerySet({ type: "timestamp", count });
    const resolved = gpu.buffer(
      8 * count,
      "timestamps",
      GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC,
    );
    const encoder = device.createCommandEncoder();
    some.forEach((record, i) => {
      const pass = encoder.beginComputePass({
        timestampWrites: {
          querySet,
          beginningOfPassWriteIndex: 2 * i,
          endOfPassWriteIndex: 2 * i + 1,
        },
      });
      record(pass);
      pass.end();
    });
    encoder.resolveQuerySet(querySet, 0, count, resolved, 0);
    device.queue.submit([encoder.finish()]);
    const bytes = await gpu.readBuffer(resolved, 0, 8 * count);
    resolved.destroy();
    querySet.destroy();
    const ticks = new BigUint64Array(bytes);
    for (let i = 0; i < count; i += 2) {
      out.push(span(clock, ticks[i], ticks[i + 1]));
    }
  }
  return out;
}

/** The span between two timestamps. */
export function span({ period }: GpuClock, begin: bigint, end: bigint): Span {
  const ms = (ticks: bigint) => Number(ticks) * period / 1e6;
  return { begin: ms(begin), end: ms(end) };
}

/** The median, and the 12.5th and 87.5th percentiles. */
export function spread(
  values: readonly number[],
): { median: number; low: number; high: number } {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.round(share * (sorted.length - 1))];
  return { median: at(0.5), low: at(0.125), high: at(0.875) };
}
