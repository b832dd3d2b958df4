/**
 * Watches the decode loop as it runs: what the CPU does per token, and when the GPU
 * idles.
 *
 * @module
 */
import { calibrated } from "../../webgpu/clock.ts";
import type { Gpu } from "../../webgpu/device.ts";
import type { Loop, TimelineEvent } from "./report.ts";
import {
  MOST_QUERIES,
  type Span,
  span,
  timePasses,
} from "../../webgpu/timing.ts";
import type { LoopWatcher } from "../../gpu/decode_loop.ts";
import type { GpuRunner } from "../../gpu/runner.ts";
import type { Sampling } from "../../model/sampling.ts";

/** Something the CPU did, in `performance.now()` time. */
export interface CpuSpan extends Span {
  what: "encode" | "submit" | "wait" | "readback";
}

/** A recorded decode loop. */
export interface Watched {
  cpu: CpuSpan[];
  /** Passes of a few steps each, by the GPU's clock. */
  gpu: Span[];
  /** Steps of each pass. */
  passes: number[];
  /** The most steps between two readbacks. */
  chunk: number;
  sequences: number;
  began: number;
  first: number;
  last: number;
}

/** Watches a decode loop of `maxTokens` tokens after each of `prompts`. */
export async function watchLoop(
  runner: GpuRunner,
  prompts: readonly (readonly number[])[],
  sampling: Sampling,
  { maxTokens, chunk, warm, signal }: {
    maxTokens: number;
    /** Whether to warm up with a run, so that nothing is compiled or allocated later. */
    warm: boolean;
    /** Steps between two readbacks; by default as in `generate`. */
    chunk?: number;
    signal?: AbortSignal;
  },
): Promise<Watched> {
  const { gpu } = runner;
  if (warm) {
    await run(runner, prompts, sampling, Math.min(maxTokens, 2), signal);
  }
  using recorder = new LoopRecorder(gpu, chunk);
  runner.watcher = recorder;
  try {
    const times = await run(runner, prompts, sampling, maxTokens, signal);
    return {
      cpu: recorder.cpu,
      gpu: await recorder.passes(),
      passes: recorder.steps,
      chunk: recorder.largest,
      sequences: prompts.length,
      ...times,
    };
  } finally {
    runner.watcher = undefined;
  }
}

async function run(
  runner: GpuRunner,
  prompts: readonly (readonly number[])[],
  sampling: Sampling,
  maxTokens: number,
  signal?: AbortSignal,
) {
  const began = performance.now();
  let first = 0, last = 0;
  for await (
    const _ of runner.generate(prompts, sampling, maxTokens, signal)
  ) {
    last = performance.now();
    first ||= last;
  }
  return { began, first, last };
}

/** Records CPU spans and GPU timestamps. */
class LoopRecorder implements LoopWatcher, Disposable {
  readonly cpu: CpuSpan[] = [];
  readonly steps: number[] = [];
  largest = 0;
  #queries?: GPUQuerySet;

  constructor(readonly gpu: Gpu, readonly chunk?: number) {
    if (!gpu.timestamps) return;
    this.#queries = gpu.device.createQuerySet({
      type: "timestamp",
      count: MOST_QUERIES,
    });
  }

  timestamps(
    steps: number,
    chunk: number,
  ): GPUComputePassTimestampWrites | undefined {
    const at = 2 * this.steps.push(steps) - 2;
    this.largest = Math.max(this.largest, chunk);
    if (!this.#queries || at >= MOST_QUERIES) return undefined;
    return {
      querySet: this.#queries,
      beginningOfPassWriteIndex: at,
      endOfPassWriteIndex: at + 1,
    };
  }

  did(what: CpuSpan["what"], begin: number): void {
    this.cpu.push({ what, begin, end: performance.now() });
  }

  async passes(): Promise<Span[]> {
    const count = Math.min(2 * this.steps.length, MOST_QUERIES);
    if (!this.#queries || count === 0) return [];
    const { gpu } = this;
    const resolved = gpu.buffer(
      8 * count,
      "timestamps",
      GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC,
    );
    const encoder = gpu.device.createCommandEncoder();
    encoder.resolveQuerySet(this.#queries, 0, count, resolved, 0);
    gpu.device.queue.submit([encoder.finish()]);
    const ticks = new BigUint64Array(
      await gpu.readBuffer(resolved, 0, 8 * count),
    );
    resolved.destroy();
    const clock = await calibrated(gpu);
    return Array.from(
      { length: count / 2 },
      (_, i) => span(clock, ticks[2 * i], ticks[2 * i + 1]),
    );
  }

  [Symbol.dispose](): void {
    this.#queries?.destroy();
  }
}

/** Summarizes a loop per step; the first tokens belong to the prefill. */
export function loopOf(watched: Watched): Loop {
  const { cpu, gpu, passes, chunk, sequences, began, first, last } = watched;
  const steps = passes.reduce((a, b) => a + b, 0);
  const tokens = sequences * steps;
  const of = (what: CpuSpan["what"]) =>
    cpu.reduce(
      (sum, span) => span.what === what ? sum + span.end - span.begin : sum,
      0,
    ) / Math.max(1, steps);
  const loop: Loop = {
    steps,
    tokens,
    chunk,
    stepMs: (last - first) / Math.max(1, steps),
    encodeMs: of("encode"),
    submitMs: of("submit"),
    waitMs: of("wait"),
    readbackMs: of("readback"),
    gaps: [],
    firstTokenMs: first - began,
  };
  if (gpu.length === 0) return loop;
  const timed = passes.slice(0, gpu.length).reduce((a, b) => a + b, 0);
  const busy = gpu.reduce((sum, { begin, end }) => sum + end - begin, 0);
  const gaps = gpu.slice(1).map(({ begin }, i) =>
    Math.max(0, begin - gpu[i].end)
  );
  const idle = gaps.reduce((a, b) => a + b, 0);
  return {
    ...loop,
    gpuMs: busy / timed,
    idle: idle / (idle + busy),
    gaps: grouped(gaps),
  };
}

/** Says which passes were not timed, since a query set has limited room. */
export function loopNotes({ gpu, passes }: Watched): string[] {
  return gpu.length > 0 && gpu.length < passes.length
    ? [
      `decode loop: GPU time and gaps cover the first ${gpu.length} of ${passes.length} passes, all that a timestamp query set can hold`,
    ]
    : [];
}

/** Groups gaps of similar length, the longest first. */
function grouped(gaps: readonly number[]): Loop["gaps"] {
  const groups = new Map<number, number[]>();
  for (const ms of gaps.filter((ms) => ms > 0.01)) {
    const size = Math.round(2 * Math.log2(ms));
    groups.set(size, [...groups.get(size) ?? [], ms]);
  }
  return [...groups.entries()].sort(([a], [b]) => b - a).slice(0, 6).map(
    ([, group]) => ({
      ms: group.reduce((a, b) => a + b, 0) / group.length,
      count: group.length,
    }),
  );
}

/** Events of the CPU and the GPU for the timeline. */
export function loopTimeline(
  { cpu, gpu, passes }: Watched,
  toTimeline: (gpuMs: number) => number,
  origin: number,
): TimelineEvent[] {
  const part = "decode loop";
  return [
    ...cpu.map(({ what, begin, end }) => ({
      lane: "CPU" as const,
      part: part as typeof part,
      name: what,
      begin: begin - origin,
      ms: end - begin,
    })),
    ...gpu.map(({ begin, end }, i) => ({
      lane: "GPU" as const,
      part: part as typeof part,
      name: `${passes[i]} ${passes[i] === 1 ? "step" : "steps"}`,
      begin: toTimeline(begin),
      ms: end - begin,
    })),
  ];
}

/**
 * Offset from the GPU's clock to `performance.now()`. An idle GPU starts a pass soon
 * after it is submitted; the quickest of a few starts is the best estimate.
 */
export async function clockOffset(gpu: Gpu): Promise<number> {
  if (!gpu.timestamps) return 0;
  let offset = -Infinity;
  for (let i = 0; i < 4; i++) {
    const submitted = performance.now();
    const [{ begin }] = await timePasses(gpu, [() => {}]);
    offset = Math.max(offset, submitted - begin);
  }
  return offset;
}
