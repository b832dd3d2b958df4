/**
 * Where the time of a model goes: a prefill and decode steps, timed by operation,
 * with a verdict.
 *
 * @module
 */
import type { Checkpoint } from "../../checkpoint/checkpoint.ts";
import { openCheckpoint } from "../../checkpoint/open.ts";
import { DEFAULT_MODEL, Qwen3 } from "../../load.ts";
import { measurePeaks } from "../peaks.ts";
import { comparisonOf } from "./compare.ts";
import { profileCpu } from "./cpu.ts";
import {
  clockOffset,
  loopNotes,
  loopOf,
  loopTimeline,
  watchLoop,
} from "./loop.ts";
import type { Coverage, Phase, ProfileReport } from "./report.ts";
import { profileRestricted } from "./restricted.ts";
import {
  type Profiled,
  type ProfileOptions,
  promptIds,
  type Setting,
  settle,
  subject,
} from "./setting.ts";
import { decodeLengths, profileSteps } from "./steps.ts";
import { milliseconds } from "../format.ts";
import { verdictsOf } from "./verdict.ts";
import { CpuRunner } from "../../cpu/runner.ts";
import { GpuRunner } from "../../gpu/runner.ts";

export type { ProfileOptions, ProfileReport };

/**
 * Profiles a model.
 *
 * ```ts
 * import { profile } from "./profile.ts";
 *
 * const report = await profile(undefined, { device: "cpu", promptTokens: 8, maxTokens: 4 });
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
    ? await profileRestricted(checkpoint, setting, options.kernels)
    : await profileModel(checkpoint, setting);
  const { findings, timeline } = done;
  timeline.sort((a, b) => a.begin - b.begin);
  return { verdicts: verdictsOf(findings), ...findings, timeline };
}

async function profileModel(
  checkpoint: Checkpoint,
  setting: Setting,
): Promise<Profiled> {
  const { promptTokens, maxTokens, batch, progress, signal } = setting;
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
  runner.requireRoom(batch, promptTokens + maxTokens);
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
    prefillRows: runner.prefillRows,
    peaks,
    toTimeline,
  });
  progress("watching the decode loop");
  const watched = await watchLoop(
    runner,
    Array(batch).fill(promptIds(promptTokens, config.vocabSize)),
    setting.sampling,
    { ...setting, warm: steps.phases[0].ms < 1000 },
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
    ...loopNotes(watched),
  ];
  let compare: ProfileReport["compare"];
  if (setting.compare) {
    progress("running the CPU path too");
    const cpu = await CpuRunner.load(checkpoint, {
      context: promptTokens + maxTokens,
      signal,
    });
    using _cpu = cpu;
    const { phases: onCpu } = await profileCpu(cpu, setting);
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
  setting: Setting,
  phases: readonly Phase[],
  timestamps: boolean,
): string[] {
  const { promptTokens, maxTokens } = setting;
  const lengths = decodeLengths(promptTokens, maxTokens);
  const notes = [
    ...batchNotes(setting),
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
        milliseconds(profiledMs!)
      } instead of ${milliseconds(ms)} (factor ${factor.toFixed(2)})`,
    );
  }
  return notes;
}

/** What of a batch was timed, if not all of it. */
function batchNotes({ batch }: Setting): string[] {
  return batch > 2
    ? [
      `prefill: of ${batch} prompts the first and the last were timed, and stand for all`,
    ]
    : [];
}

function cpuNotes(
  setting: Setting,
  phases: readonly Phase[],
) {
  const { maxTokens, chunk, compare } = setting;
  const steps = phases[1].sampledSteps;
  return [
    ...batchNotes(setting),
    ...steps < maxTokens - 1
      ? [`decode: the first ${steps} of ${maxTokens - 1} steps were timed`]
      : [],
    ...chunk === undefined
      ? []
      : ["there are no readbacks on the CPU, so there are no chunks"],
    ...compare ? ["nothing was compared: the CPU path ran alone"] : [],
  ];
}
