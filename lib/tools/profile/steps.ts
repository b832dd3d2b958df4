/**
 * A prefill and decode steps on the GPU, timed dispatch by dispatch and, beside
 * it, as they run unprofiled.
 *
 * @module
 */
import type { Matrix } from "../../formats/matrix.ts";
import type { Qwen3Config } from "../../checkpoint/config.ts";
import type { Gpu } from "../../webgpu/device.ts";
import { GpuKvCache } from "../../gpu/kv_cache.ts";
import { GpuOps } from "../../gpu/ops.ts";
import { timeByWall } from "../peaks.ts";
import { Plan } from "../../webgpu/plan.ts";
import { type CostContext, costsOf } from "./costs.ts";
import {
  operationsOf,
  type Sample,
  totals,
  withBetween,
} from "./operations.ts";
import type { Peaks, Phase, TimelineEvent } from "./report.ts";
import { prefillSamples } from "./setting.ts";
import { type Span, timePasses } from "../../webgpu/timing.ts";
import { familyOf } from "../../model/families.ts";
import type { Weights } from "../../model/family.ts";
import { addSampling, createSamplerState } from "../../gpu/sample.ts";
import type { Sampling } from "../../model/sampling.ts";
import { Tensor } from "../../webgpu/tensor.ts";

/** What is profiled. */
export interface StepSetting {
  gpu: Gpu;
  config: Qwen3Config;
  weights: Weights<Matrix<Tensor>>;
  cacheDtype: "f16" | "f32";
  sampling: Sampling;
  promptTokens: number;
  maxTokens: number;
  batch: number;
  /** Prompt tokens that go through the model at once. */
  prefillRows: number;
  peaks?: Peaks;
  /** Puts the GPU's clock on the timeline. */
  toTimeline: (gpuMs: number) => number;
  signal?: AbortSignal;
}

/** Repetitions of a step: at least one, more while they take less than this. */
const BUDGET_MS = 300, MOST_REPEATS = 7;
/** A step that takes longer runs as rarely as can be. */
const LONG_MS = 1000;
/** Positions at which decode steps are sampled. */
const DECODE_SAMPLES = 3;

/** A recorded step, or a part of one. */
interface Step {
  plan: Plan;
  context: CostContext;
  /** How many like it there are where it is the only one that is timed. */
  runs: number;
}

/** What timing a step gave. */
interface Timed {
  runs: number;
  ms: number;
  samples: Sample[];
  profiledMs?: number;
  spans: Span[];
}

/** Times prefill and decode. */
export async function profileSteps(
  setting: StepSetting,
): Promise<{ phases: Phase[]; timeline: TimelineEvent[] }> {
  const { gpu, config, batch, promptTokens, maxTokens } = setting;
  using stack = new DisposableStack();
  const ops = stack.use(new GpuOps(gpu, config));
  const cache = stack.use(
    await GpuKvCache.create(
      gpu,
      config,
      batch,
      promptTokens + maxTokens,
      setting.cacheDtype,
    ),
  );
  const state = stack.use(
    createSamplerState(gpu, {
      sequences: batch,
      vocab: config.vocabSize,
      steps: 1,
    }),
  );
  const plan = () => ops.plan = stack.use(new Plan(gpu));
  /** `tokens` of each of `sequences` from `first` on through the model. */
  const record = (
    first: number,
    sequences: number,
    tokens: number,
    length: number,
  ) => {
    const rows = sequences * tokens;
    const ids = Uint32Array.from(
      { length: rows },
      (_, i) => (length + i) * 7919 % config.vocabSize,
    );
    const recorded = plan();
    const input = stack.use(Tensor.create(gpu, "u32", [rows], ids, "tokens"));
    cache.record({ first, sequences, tokens });
    const { forward } = familyOf(config);
    const logits = forward(ops, setting.weights, input, cache);
    const context = { config, sequences, tokens, length };
    return { plan: recorded, context, logits };
  };
  const sample = (plan: Plan, logits: Tensor) =>
    stack.use(addSampling(plan, logits, setting.sampling, state));
  const time = async (steps: Step[]): Promise<Timed[]> => {
    const timed: Timed[] = [];
    for (const step of steps) {
      setting.signal?.throwIfAborted();
      cache.reset(Array(batch).fill(step.context.length));
      timed.push(await timeStep(gpu, step));
    }
    gpu.check();
    return timed;
  };

  // As a batch begins: prompts one after the other, then all are sampled.
  const chunks: Step[] = [];
  const prompts = prefillSamples(batch);
  const { prefillRows } = setting;
  for (const first of prompts) {
    for (let begin = 0; begin < promptTokens; begin += prefillRows) {
      const rows = Math.min(prefillRows, promptTokens - begin);
      const runs = batch / prompts.length;
      chunks.push({ ...record(first, 1, rows, begin), runs });
    }
  }
  const logits = Tensor.create(gpu, "f32", [batch, config.vocabSize]);
  const first = plan();
  sample(first, stack.use(logits));
  chunks.push({
    plan: first.seal(),
    context: { config, sequences: batch, tokens: 1, length: promptTokens },
    runs: 1,
  });
  for (const { plan } of chunks) plan.seal();
  const prefill = await time(chunks);
  const step = record(0, batch, 1, promptTokens);
  sample(step.plan, step.logits);
  step.plan.seal();
  const lengths = decodeLengths(promptTokens, maxTokens);
  const decode = await time(lengths.map((length) => ({
    plan: step.plan,
    context: { ...step.context, length },
    runs: 1,
  })));
  const dispatches = (plan: Plan, length: number) =>
    plan.dispatches.filter(({ gridAt }) => !gridAt || gridAt({ length }))
      .length;
  return {
    phases: [
      phase("prefill", batch * promptTokens, prefill, 1, setting.peaks, {
        sampled: prompts.length,
        dispatches: chunks.reduce(
          (n, { plan, context, runs }) =>
            n + runs * dispatches(plan, context.length),
          0,
        ),
      }),
      phase("decode", batch, decode, decode.length, setting.peaks, {
        sampled: decode.length,
        dispatches: dispatches(step.plan, lengths.at(-1)!),
      }),
    ],
    timeline: [prefill, decode].flatMap((timed, i) =>
      timed.flatMap(({ samples, spans }) =>
        spans.map(({ begin, end }, at) => ({
          lane: "GPU" as const,
          part: i ? "profiled decode" as const : "profiled prefill" as const,
          ...described(samples[at]),
          begin: setting.toTimeline(begin),
          ms: end - begin,
        }))
      )
    ),
  };
}

/** The label, and what was run; a tied head carries the embedding's. */
function described({ dispatch, context }: Sample) {
  const costs = costsOf(dispatch, context);
  const [{ name, dtypes }] = costs;
  const shapes = costs.map(({ shape }) => shape).join(", ");
  return {
    name: name === "lm_head" ? name : dispatch.label,
    detail: `${dispatch.kernel}: ${shapes}, ${dtypes}`,
  };
}

/** KV lengths at which decode steps are sampled: first, middle and last. */
export function decodeLengths(
  promptTokens: number,
  maxTokens: number,
): number[] {
  const last = Math.max(0, maxTokens - 2);
  const wanted = Array.from(
    { length: DECODE_SAMPLES },
    (_, i) => promptTokens + Math.round(last * i / (DECODE_SAMPLES - 1)),
  );
  return [...new Set(wanted)];
}

async function timeStep(
  gpu: Gpu,
  { plan, context, runs }: Step,
): Promise<Timed> {
  const moment = { length: context.length };
  const samples: Sample[] = [], indices: number[] = [];
  plan.dispatches.forEach((dispatch, i) => {
    const grid = dispatch.gridAt ? dispatch.gridAt(moment) : dispatch.grid;
    if (!grid) return;
    const workgroups = grid[0] * grid[1] * grid[2];
    samples.push({ dispatch, context, workgroups, runs });
    indices.push(i);
  });
  const woken = performance.now();
  plan.run(moment); // compiles, and makes memory real
  await gpu.device.queue.onSubmittedWorkDone();
  if (!gpu.timestamps) {
    const ms = await timeByWall(gpu, plan, 3, moment);
    return { runs, ms, samples, spans: [] };
  }
  const whole = (pass: GPUComputePassEncoder) => plan.encode(pass, moment);
  // The first only wakes the GPU up, which is no matter for a long step.
  const before = performance.now() - woken > LONG_MS ? [] : [whole, whole];
  const passes = [
    ...before,
    ...indices.map((i) => (pass: GPUComputePassEncoder) =>
      plan.encode(pass, moment, i, i + 1)
    ),
    whole,
  ];
  const wholes: number[] = [], parts: Span[][] = [];
  const began = performance.now();
  do {
    const spans = await timePasses(gpu, passes);
    const unprofiled = [...spans.slice(1, before.length), spans.at(-1)!];
    wholes.push(
      ...unprofiled.map(({ begin, end }) => end - begin),
    );
    parts.push(spans.slice(before.length, -1));
  } while (
    parts.length < MOST_REPEATS && performance.now() - began < BUDGET_MS
  );
  const duration = (spans: Span[]) => spans.at(-1)!.end - spans[0].begin;
  const spans = middle(parts, duration);
  spans.forEach(({ begin, end }, i) => samples[i].ms = end - begin);
  return {
    runs,
    ms: middle(wholes, (ms) => ms),
    samples,
    profiledMs: duration(spans),
    spans,
  };
}

/** The item in the middle by `value`; of two, the smaller. */
function middle<T>(items: readonly T[], value: (item: T) => number): T {
  const sorted = items.toSorted((a, b) => value(a) - value(b));
  return sorted[Math.floor((sorted.length - 1) / 2)];
}

function phase(
  name: Phase["name"],
  tokens: number,
  timed: readonly Timed[],
  steps: number,
  peaks: Peaks | undefined,
  { sampled, dispatches }: { sampled: number; dispatches: number },
): Phase {
  const mean = (value: (timed: Timed) => number) =>
    timed.reduce((sum, one) => sum + one.runs * value(one), 0) / steps;
  const found = operationsOf(
    timed.flatMap(({ samples }) => samples),
    steps,
    peaks,
  );
  const ms = mean(({ ms }) => ms);
  const profiled = timed.every(({ profiledMs }) => profiledMs !== undefined)
    ? mean(({ profiledMs }) => profiledMs!)
    : undefined;
  const { operations, betweenMs } = profiled === undefined
    ? { operations: found, betweenMs: undefined }
    : withBetween(found, profiled, {
      name: "between passes",
      reason: "a pass for each dispatch; not there when it runs unprofiled",
      calls: dispatches,
      real: false,
    });
  return {
    name,
    tokens,
    sampledSteps: sampled,
    ms,
    ...(profiled !== undefined && {
      profiledMs: profiled,
      factor: profiled / ms,
      betweenMs,
    }),
    dispatches,
    tokensPerSecond: tokens / ms * 1000,
    ...totals(operations),
    operations,
  };
}
