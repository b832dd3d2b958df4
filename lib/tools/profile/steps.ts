/**
 * Times a prefill and decode steps on the GPU, both dispatch by dispatch and as they
 * run unprofiled.
 *
 * @module
 */
import type { CacheDtype } from "../../formats/cached.ts";
import type { Matrix } from "../../formats/matrix.ts";
import type { Qwen3Config } from "../../checkpoint/config.ts";
import type { Gpu } from "../../webgpu/device.ts";
import { GpuKvCache } from "../../gpu/kv_cache.ts";
import { GpuOps } from "../../gpu/ops.ts";
import { timeByWall } from "../peaks.ts";
import type { CallOptions } from "../../webgpu/kernel.ts";
import { Plan } from "../../webgpu/plan.ts";
import { type CostContext, costsOf } from "./costs.ts";
import {
  operationsOf,
  type Sample,
  timelineName,
  totals,
  withBetween,
} from "./operations.ts";
import type { Peaks, Phase, TimelineEvent } from "./report.ts";
import { prefillSamples } from "./setting.ts";
import { type Span, timePasses } from "../../webgpu/timing.ts";
import { familyOf } from "../../model/families.ts";
import { finish, type Weights } from "../../model/family.ts";
import { addSampling, sampledRow, SamplerState } from "../../gpu/sample.ts";
import { chooseSampling } from "../../dispatch/sampling.ts";
import { historyOf, type Sampling } from "../../model/sampling.ts";
import { Tensor } from "../../webgpu/tensor.ts";

/** What {@linkcode profileSteps} times. */
export interface StepSetting {
  gpu: Gpu;
  config: Qwen3Config;
  weights: Weights<Matrix<Tensor>>;
  cacheDtype: CacheDtype;
  sampling: Sampling;
  promptTokens: number;
  maxTokens: number;
  batch: number;
  /** Prompt tokens per forward pass. */
  prefillRows: number;
  peaks?: Peaks;
  /** Converts the GPU's clock to the timeline. */
  toTimeline: (gpuMs: number) => number;
  signal?: AbortSignal;
}

/** A step is repeated until this time or number of repetitions is reached. */
const BUDGET_MS = 300, MOST_REPEATS = 7;
/** Steps that take longer run as few times as possible. */
const LONG_MS = 1000;
/** Decode steps that are timed, each at another KV length. */
const DECODE_SAMPLES = 3;

/** A recorded step or part of a step. */
interface Step {
  plan: Plan;
  context: CostContext;
  /** How many identical ones it stands for. */
  runs: number;
}

/** Timings of a step. */
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
  const { batch, promptTokens, maxTokens, peaks } = setting;
  using recorder = await StepRecorder.create(setting);
  const chunks = recorder.prefill();
  const prefill = await recorder.time(chunks);
  const step = recorder.decode();
  const lengths = decodeLengths(promptTokens, maxTokens);
  const decode = await recorder.time(lengths.map((length) => ({
    ...step,
    context: { ...step.context, length },
  })));
  const dispatches = ({ plan, context: { length } }: Step) =>
    plan.dispatches.filter(({ gridAt }) => !gridAt || gridAt({ length }))
      .length;
  const last = { ...step.context, length: lengths.at(-1)! };
  return {
    phases: [
      phase("prefill", batch * promptTokens, prefill, 1, peaks, {
        sampled: prefillSamples(batch).length,
        dispatches: chunks.reduce((n, s) => n + s.runs * dispatches(s), 0),
      }),
      phase("decode", batch, decode, decode.length, peaks, {
        sampled: decode.length,
        dispatches: dispatches({ ...step, context: last }),
      }),
    ],
    timeline: [
      ...eventsOf("profiled prefill", prefill, setting.toTimeline),
      ...eventsOf("profiled decode", decode, setting.toTimeline),
    ],
  };
}

/** Records steps and times them; owns their plans, cache and tensors. */
class StepRecorder implements Disposable {
  readonly #ops: GpuOps;
  readonly #state: SamplerState;

  private constructor(
    readonly setting: StepSetting,
    readonly stack: DisposableStack,
    readonly cache: GpuKvCache,
  ) {
    const { gpu, config, batch: sequences } = setting;
    this.#ops = stack.use(new GpuOps(gpu, config));
    this.#state = stack.use(
      new SamplerState(gpu, { sequences, vocab: config.vocabSize, steps: 1 }),
    );
    for (let s = 0; s < sequences; s++) {
      const { sampling } = setting, seed = (sampling.seed + s) >>> 0;
      const history = () => historyOf(config.vocabSize, []);
      this.#state.set(s, { ...sampling, seed }, history);
    }
  }

  static async create(setting: StepSetting): Promise<StepRecorder> {
    const { gpu, config, batch, promptTokens, maxTokens, cacheDtype } = setting;
    using stack = new DisposableStack();
    const room = promptTokens + maxTokens;
    const cache = stack.use(
      await GpuKvCache.create(gpu, config, batch, room, cacheDtype),
    );
    // The recorder takes ownership of what was made so far.
    return new StepRecorder(setting, stack.move(), cache);
  }

  /** A prefill as a batch starts: one prompt after another, then all are sampled. */
  prefill(): Step[] {
    const { gpu, config, batch, promptTokens, prefillRows } = this.setting;
    const prompts = prefillSamples(batch), runs = batch / prompts.length;
    const chunks: Step[] = [];
    for (const first of prompts) {
      for (let begin = 0; begin < promptTokens; begin += prefillRows) {
        const rows = Math.min(prefillRows, promptTokens - begin);
        const { step } = this.#record(first, 1, rows, begin);
        chunks.push({ ...step, runs });
      }
    }
    const plan = this.#plan();
    const logits = Tensor.create(gpu, "f32", [batch, config.vocabSize]);
    this.#sample(plan, this.stack.use(logits));
    chunks.push({
      plan,
      context: { config, sequences: batch, tokens: 1, length: promptTokens },
      runs: 1,
    });
    for (const { plan } of chunks) plan.seal();
    return chunks;
  }

  /** A decode step of all sequences. */
  decode(): Step {
    const { batch, promptTokens } = this.setting;
    const { step, logits } = this.#record(0, batch, 1, promptTokens);
    this.#sample(step.plan, logits);
    step.plan.seal();
    return step;
  }

  async time(steps: readonly Step[]): Promise<Timed[]> {
    const { gpu, batch, signal } = this.setting;
    const timed: Timed[] = [];
    for (const step of steps) {
      signal?.throwIfAborted();
      this.cache.reset(Array(batch).fill(step.context.length));
      timed.push(await timeStep(gpu, step));
    }
    gpu.check();
    return timed;
  }

  #plan(literals?: CallOptions["literal"]): Plan {
    const { gpu } = this.setting;
    return this.#ops.plan = this.stack.use(new Plan(gpu, literals));
  }

  /** The forward pass of `tokens` tokens of each sequence from `first` on. */
  #record(
    first: number,
    sequences: number,
    tokens: number,
    length: number,
  ): { step: Step; logits: Tensor } {
    const { gpu, config, weights } = this.setting;
    const rows = sequences * tokens;
    const ids = Uint32Array.from(
      { length: rows },
      (_, i) => (length + i) * 7919 % config.vocabSize,
    );
    const plan = this.#plan(this.cache.literals(tokens));
    const input = Tensor.create(gpu, "u32", [rows], ids, "tokens");
    this.stack.use(input);
    this.cache.record({ first, sequences, tokens });
    const { forward } = familyOf(config);
    const logits = finish(
      forward(this.#ops, weights, input, this.cache),
    );
    const context = { config, sequences, tokens, length };
    return { step: { plan, context, runs: 1 }, logits };
  }

  #sample(plan: Plan, logits: Tensor): void {
    const { sampling, config } = this.setting;
    const choice = chooseSampling([sampledRow(sampling)], config.vocabSize);
    addSampling(plan, logits, choice, this.#state);
  }

  [Symbol.dispose](): void {
    this.stack[Symbol.dispose]();
  }
}

/** Timed dispatches on the timeline. */
function eventsOf(
  part: TimelineEvent["part"],
  timed: readonly Timed[],
  toTimeline: StepSetting["toTimeline"],
): TimelineEvent[] {
  return timed.flatMap(({ samples, spans }) =>
    spans.map(({ begin, end }, at) => ({
      lane: "GPU" as const,
      part,
      ...described(samples[at]),
      begin: toTimeline(begin),
      ms: end - begin,
    }))
  );
}

/** A dispatch's name on the timeline, with its kernel, shapes and types. */
function described(sample: Sample) {
  const { dispatch, context } = sample;
  const costs = costsOf(dispatch, context);
  const [{ dtypes }] = costs;
  const shapes = costs.map(({ shape }) => shape).join(", ");
  return {
    name: timelineName(sample),
    detail: `${dispatch.kernel}: ${shapes}, ${dtypes}`,
  };
}

/** KV lengths at which decode steps are timed: first, middle and last. */
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
  const state = { length: context.length };
  const samples: Sample[] = [], indices: number[] = [];
  plan.dispatches.forEach((dispatch, i) => {
    const grid = dispatch.gridAt ? dispatch.gridAt(state) : dispatch.grid;
    if (!grid) return;
    const workgroups = grid[0] * grid[1] * grid[2];
    samples.push({ dispatch, context, workgroups, runs });
    indices.push(i);
  });
  const woken = performance.now();
  plan.run(state); // compiles, and makes the driver allocate
  await gpu.device.queue.onSubmittedWorkDone();
  if (!gpu.timestamps) {
    const ms = await timeByWall(gpu, plan, 3, state);
    return { runs, ms, samples, spans: [] };
  }
  const whole = (pass: GPUComputePassEncoder) => plan.encode(pass, state);
  // The first only wakes the GPU, which a long step does not need.
  const before = performance.now() - woken > LONG_MS ? [] : [whole, whole];
  const passes = [
    ...before,
    ...indices.map((i) => (pass: GPUComputePassEncoder) =>
      plan.encode(pass, state, i, i + 1)
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

/** The median item by `value`; of two, the smaller. */
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
      reason: "one pass per dispatch; absent from an unprofiled run",
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
    ...totals(operations),
    operations,
  };
}
