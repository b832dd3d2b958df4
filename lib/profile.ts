/**
 * Where the time of a model goes: a prefill and decode steps, timed by operation,
 * with a verdict.
 *
 * @module
 */
import { type Checkpoint, openCheckpoint } from "./checkpoint.ts";
import type { Choice } from "./device.ts";
import { DEFAULT_MODEL, Qwen3 } from "./model.ts";
import { measurePeaks } from "./peaks.ts";
import { openDevice } from "./device.ts";
import { comparisonOf } from "./profile_compare.ts";
import { profileCpu } from "./profile_cpu.ts";
import {
  clockOffset,
  loopOf,
  loopTimeline,
  watchLoop,
} from "./profile_loop.ts";
import { operationsOf, totals } from "./profile_operations.ts";
import type {
  Coverage,
  Phase,
  ProfileReport,
  TimelineEvent,
} from "./profile_report.ts";
import { decodeLengths, profileSteps } from "./profile_steps.ts";
import { type AllowedKernel, UnpackedModel } from "./profile_unpacked.ts";
import { type Findings, verdictsOf } from "./profile_verdict.ts";
import { CpuRunner } from "./runner_cpu.ts";
import { GpuRunner, PREFILL_ROWS } from "./runner_gpu.ts";
import { resolveSampling, type Sampling } from "./sampling.ts";
import type { DeviceKind } from "./select_device.ts";

/** What {@linkcode profile} takes. */
export interface ProfileOptions {
  device?: DeviceKind;
  /** Tokens of the prompt; by default 512, or what the checkpoint has room for. */
  promptTokens?: number;
  /** Tokens to generate; 64 by default. */
  maxTokens?: number;
  /** Sequences that are decoded together. */
  batch?: number;
  /** Steps between two readbacks; by default a growing number. */
  chunk?: number;
  /** Runs the model unpacked on these matmul kernels alone. */
  kernels?: readonly AllowedKernel[];
  /** Runs the CPU path too. */
  compare?: boolean;
  /** Any WebGPU implementation instead of `navigator.gpu`. */
  gpu?: GPU;
  /** Told what is going on. */
  onProgress?: (what: string) => void;
  signal?: AbortSignal;
}

const PROMPT_TOKENS = 512, MAX_TOKENS = 64;
const MOST_BATCH = 256, MOST_CHUNK = 128;

/** Options with every default settled. */
interface Setting extends ProfileOptions {
  promptTokens: number;
  maxTokens: number;
  batch: number;
  sampling: Sampling;
  notes: string[];
  /** When the timeline begins. */
  origin: number;
  progress: (what: string) => void;
}

/**
 * Profiles a model.
 *
 * ```ts
 * import { profile } from "./profile.ts";
 *
 * const report = await profile(undefined, { promptTokens: 8, maxTokens: 4 });
 * console.log(report.verdicts[0].text);
 * ```
 *
 * @throws {Error} if an option is out of range, or the model cannot be loaded.
 */
export async function profile(
  model: string = DEFAULT_MODEL,
  options: ProfileOptions = {},
): Promise<ProfileReport> {
  const { signal } = options;
  const checkpoint = await openCheckpoint(model, { signal });
  let setting: Setting;
  try {
    setting = settle(checkpoint, options);
  } catch (error) {
    await checkpoint[Symbol.asyncDispose]();
    throw error;
  }
  const done = options.kernels
    ? await profileUnpacked(checkpoint, setting, options.kernels)
    : await profileModel(checkpoint, setting);
  const { findings, timeline } = done;
  timeline.sort((a, b) => a.begin - b.begin);
  return { verdicts: verdictsOf(findings), ...findings, timeline };
}

/** Checks the options before anything long begins. */
function settle(
  { config, generation, name }: Checkpoint,
  options: ProfileOptions,
): Setting {
  const whole = (what: string, value: number, least: number, most: number) => {
    if (Number.isInteger(value) && value >= least && value <= most) return;
    throw new RangeError(
      `Cannot profile ${name}: ${what} is ${value}, must be an integer from ${least} to ${most}`,
    );
  };
  const room = config.maxPositionEmbeddings;
  const { maxTokens = Math.min(MAX_TOKENS, room - 1), batch = 1, chunk } =
    options;
  whole("maxTokens", maxTokens, 2, room - 1);
  const most = room - maxTokens;
  const promptTokens = options.promptTokens ?? Math.min(PROMPT_TOKENS, most);
  whole("promptTokens", promptTokens, 1, most);
  whole("batch", batch, 1, MOST_BATCH);
  if (chunk !== undefined) whole("chunk", chunk, 1, MOST_CHUNK);
  const notes: string[] = [];
  if (options.promptTokens === undefined && promptTokens < PROMPT_TOKENS) {
    notes.push(
      `the prompt has ${promptTokens} tokens instead of ${PROMPT_TOKENS}: with ${maxTokens} generated the context of ${room} is full`,
    );
  }
  return {
    ...options,
    promptTokens,
    maxTokens,
    batch,
    notes,
    sampling: resolveSampling({ seed: 1 }, generation),
    origin: performance.now(),
    progress: options.onProgress ?? (() => {}),
  };
}

type Profiled = { findings: Findings; timeline: TimelineEvent[] };

async function profileModel(
  checkpoint: Checkpoint,
  setting: Setting,
): Promise<Profiled> {
  const { promptTokens, maxTokens, progress, signal } = setting;
  progress("loading the weights");
  using qwen = await load(checkpoint, setting);
  const { runner, device } = qwen;
  if (runner instanceof CpuRunner) {
    progress("timing the CPU path");
    const { phases, timeline } = await profileCpu(runner, setting);
    const notes = [...setting.notes, ...cpuNotes(setting, phases)];
    return {
      findings: {
        ...subject(checkpoint, setting, { ...device, software: false }),
        timedBy: "verbs",
        notes,
        phases,
        coverage: coverageOf(phases, maxTokens, false),
        fallbacks: runner.fallbacks,
      },
      timeline,
    };
  }
  if (!(runner instanceof GpuRunner)) {
    throw new Error("Cannot profile: the runner is of an unknown kind");
  }
  const { gpu, config, weights, cacheDtype } = runner;
  progress("measuring what the adapter can do");
  const peaks = await measurePeaks(gpu);
  const offset = await clockOffset(gpu);
  const toTimeline = (ms: number) => ms + offset - setting.origin;
  progress("timing dispatches");
  const steps = await profileSteps({
    ...setting,
    gpu,
    config,
    weights,
    cacheDtype,
    prefillRows: PREFILL_ROWS,
    peaks,
    toTimeline,
  });
  progress("watching the decode loop");
  const watched = await watchLoop(
    runner,
    promptIds(promptTokens, config.vocabSize),
    setting.sampling,
    setting,
  );
  const loop = loopOf(watched);
  const timeline = [
    ...steps.timeline,
    ...loopTimeline(watched, toTimeline, setting.origin),
  ];
  const { phases } = steps;
  const notes = [
    ...setting.notes,
    ...gpuNotes(setting, phases, gpu.timestamps),
  ];
  let compare: ProfileReport["compare"];
  if (setting.compare) {
    progress("running the CPU path too");
    const cpu = await CpuRunner.load(checkpoint, {
      context: promptTokens + maxTokens,
      signal,
    });
    using _cpu = cpu;
    const { phases: onCpu } = await profileCpu(cpu, { ...setting });
    compare = comparisonOf(phases, onCpu);
    notes.push(
      `the CPU path: ${cpu.ops.info.kernel}, ${cpu.ops.info.threads} threads`,
    );
  }
  return {
    findings: {
      ...subject(checkpoint, setting, { ...device, software: gpu.software }),
      peaks,
      timedBy: gpu.timestamps ? "timestamps" : "passes",
      notes,
      phases,
      coverage: coverageOf(phases, maxTokens, true),
      fallbacks: runner.fallbacks,
      loop,
      ...(compare && { compare }),
    },
    timeline,
  };
}

async function load(checkpoint: Checkpoint, setting: Setting): Promise<Qwen3> {
  const { device, gpu, promptTokens, maxTokens, signal } = setting;
  try {
    return await Qwen3.load(checkpoint, {
      device,
      gpu,
      context: promptTokens + maxTokens,
      signal,
    });
  } catch (error) {
    await checkpoint[Symbol.asyncDispose]();
    throw error;
  }
}

/** The original failure, and what would have been better. */
async function profileUnpacked(
  checkpoint: Checkpoint,
  setting: Setting,
  kernels: readonly AllowedKernel[],
): Promise<Profiled> {
  const { promptTokens, maxTokens, progress, signal } = setting;
  await using _checkpoint = checkpoint;
  using gpu = await openDevice({ gpu: setting.gpu });
  progress("loading the weights");
  using runner = await CpuRunner.load(checkpoint, {
    context: promptTokens + maxTokens,
    signal,
  });
  using model = new UnpackedModel(gpu, runner, kernels);
  using cache = runner.ops.createCache(1, promptTokens + maxTokens);
  const timeline: TimelineEvent[] = [];
  const run = async (ids: number[], part: TimelineEvent["part"]) => {
    const began = performance.now(), from = model.samples.length;
    await model.forward(ids, cache, signal);
    const ms = performance.now() - began;
    let at = began - setting.origin;
    for (const { dispatch, ms = 0 } of model.samples.slice(from)) {
      timeline.push({ lane: "CPU", part, name: dispatch.label, begin: at, ms });
      at += ms;
    }
    return ms;
  };
  progress(`running the model on ${kernels.join(", ")} alone`);
  const ids = promptIds(promptTokens, runner.config.vocabSize);
  await model.forward([0], cache, signal); // compiles
  cache.lengths[0] = 0;
  model.reset();
  const prefillMs = await run(ids, "profiled prefill");
  const prefill = model.samples.splice(0);
  const steps = Math.min(UNPACKED_STEPS, maxTokens - 1);
  let decodeMs = 0;
  for (let i = 0; i < steps; i++) decodeMs += await run([i], "profiled decode");
  const decode = model.samples.splice(0);
  const phases = [
    unpackedPhase("prefill", promptTokens, prefillMs, prefill, 1),
    unpackedPhase("decode", 1, decodeMs / steps, decode, steps),
  ];
  const choice: Choice = {
    what: "device",
    value: `gpu: ${gpu.name}`,
    reason: `--kernels ${kernels.join(",")}: what they refuse runs on the CPU`,
  };
  return {
    findings: {
      ...subject(checkpoint, setting, {
        kind: "gpu",
        adapter: gpu.name,
        choices: [choice, ...gpu.choices],
        software: gpu.software,
      }),
      timedBy: "verbs",
      notes: [
        ...setting.notes,
        `the model ran unpacked and unfused on ${
          kernels.join(", ")
        } alone, every product on its own: times are wall clock, uploads and readbacks included`,
        `decode: ${steps} of ${maxTokens - 1} steps were run`,
        ...setting.batch > 1 ? ["one sequence was run instead of a batch"] : [],
      ],
      phases,
      coverage: model.coverage,
      fallbacks: model.fallbacks,
    },
    timeline,
  };
}

/** Decode steps of a run with `--kernels`, whose every product may be read back. */
const UNPACKED_STEPS = 2;

function unpackedPhase(
  name: Phase["name"],
  tokens: number,
  ms: number,
  samples: UnpackedModel["samples"],
  steps: number,
): Phase {
  const operations = operationsOf(samples, steps);
  const inside = operations.reduce((sum, { ms = 0 }) => sum + ms, 0);
  return {
    name,
    tokens,
    sampledSteps: steps,
    ms,
    profiledMs: ms,
    factor: 1,
    betweenMs: ms - inside,
    dispatches: Math.round(samples.length / steps),
    tokensPerSecond: tokens / ms * 1000,
    ...totals(operations),
    operations,
  };
}

function subject(
  { name }: Checkpoint,
  { promptTokens, maxTokens, batch }: Setting,
  { kind, adapter, software, choices }: ProfileReport["device"],
) {
  return {
    model: name,
    device: { kind, adapter, software, choices },
    promptTokens,
    maxTokens,
    batch,
  };
}

/** Products of a prefill and all decode steps, all on one device. */
function coverageOf(
  phases: readonly Phase[],
  maxTokens: number,
  gpu: boolean,
): Coverage {
  let calls = 0, flops = 0;
  for (const { name, operations } of phases) {
    const steps = name === "decode" ? maxTokens - 1 : 1;
    for (const operation of operations.filter(({ matmul }) => matmul)) {
      calls += Math.round(operation.calls) * steps;
      flops += operation.flops * steps;
    }
  }
  return {
    calls: { gpu: gpu ? calls : 0, total: calls },
    flops: { gpu: gpu ? flops : 0, total: flops },
    refusals: [],
  };
}

function gpuNotes(
  { promptTokens, maxTokens, batch }: Setting,
  phases: readonly Phase[],
  timestamps: boolean,
): string[] {
  const lengths = decodeLengths(promptTokens, maxTokens);
  const notes = [
    `decode: ${lengths.length} of ${maxTokens - 1} steps were sampled, with ${
      lengths.join(", ")
    } tokens in the KV cache`,
  ];
  if (!timestamps) {
    notes.push(
      "the adapter has no timestamp-query: wall time of whole passes, no times of operations",
    );
  }
  for (const { name, factor, ms, profiledMs } of phases) {
    if (factor === undefined) continue;
    notes.push(
      `${name}: timing each dispatch needs a pass each, ${
        profiledMs!.toFixed(2)
      } ms instead of ${ms.toFixed(2)} (factor ${factor.toFixed(2)})`,
    );
  }
  if (batch > 1) {
    notes.push(
      `decode steps are of ${batch} sequences; prefill and the decode loop are of one`,
    );
  }
  return notes;
}

function cpuNotes({ maxTokens, batch }: Setting, phases: readonly Phase[]) {
  const steps = phases[1].sampledSteps;
  return [
    ...steps < maxTokens - 1
      ? [`decode: the first ${steps} of ${maxTokens - 1} steps were timed`]
      : [],
    ...batch > 1 ? ["one sequence was run instead of a batch"] : [],
  ];
}

/** Ids all over the vocabulary. */
function promptIds(tokens: number, vocab: number): number[] {
  return Array.from({ length: tokens }, (_, i) => i * 7919 % vocab);
}
