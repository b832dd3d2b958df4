/**
 * Profiles a model: a prefill and decode steps, timed by operation, with verdicts on
 * what limits them.
 *
 * @module
 */
import { untimed } from "../../webgpu/clock.ts";
import type { Checkpoint } from "../../checkpoint/checkpoint.ts";
import { weightsText } from "../weights.ts";
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
import type { Comparison, Coverage, Phase, ProfileReport } from "./report.ts";
import { profileRestricted } from "./restricted.ts";
import {
  checkProfiling,
  type Profiled,
  type ProfileOptions,
  promptIds,
  type Setting,
  settle,
  subject,
} from "./setting.ts";
import { decodeLengths, profileSteps } from "./steps.ts";
import { milliseconds } from "../format.ts";
import { ratesOf } from "./rates.ts";
import { verdictsOf } from "./verdict.ts";
import { CpuRunner } from "../../cpu/runner.ts";
import { GpuRunner } from "../../gpu/runner.ts";
import { deviceOptions } from "../../webgpu/implementation.ts";

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
  checkProfiling(options);
  const { signal } = options;
  const checkpoint = await openCheckpoint(model, {
    ...options.opening,
    signal,
  });
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
  return {
    verdicts: verdictsOf(findings),
    rates: ratesOf(findings),
    ...findings,
    timeline,
  };
}

async function profileModel(
  checkpoint: Checkpoint,
  setting: Setting,
): Promise<Profiled> {
  setting.progress("loading the weights");
  using qwen = await load(checkpoint, setting);
  const { runner, device } = qwen;
  if (runner instanceof CpuRunner) {
    return await profileOnCpu(checkpoint, setting, runner, device);
  }
  if (!(runner instanceof GpuRunner)) {
    throw new Error("Cannot profile: the runner is of an unknown kind");
  }
  return await profileOnGpu(checkpoint, setting, runner, device);
}

async function profileOnCpu(
  checkpoint: Checkpoint,
  setting: Setting,
  runner: CpuRunner,
  device: Qwen3["device"],
): Promise<Profiled> {
  setting.progress("timing the CPU path");
  const { phases, timeline } = await profileCpu(runner, setting);
  return {
    findings: {
      ...subject(checkpoint, setting, { ...device, software: false }),
      timedBy: "verbs",
      notes: [
        ...setting.notes,
        weightsText(runner.weights),
        ...cpuNotes(setting, phases),
      ],
      phases,
      coverage: coverageOf(phases, setting.maxTokens, false),
      fallbacks: runner.fallbacks,
    },
    timeline,
  };
}

async function profileOnGpu(
  checkpoint: Checkpoint,
  setting: Setting,
  runner: GpuRunner,
  device: Qwen3["device"],
): Promise<Profiled> {
  const { promptTokens, maxTokens, batch, progress } = setting;
  const { gpu, config, weights, cacheDtype, prefillRows } = runner;
  runner.requireRoom(batch, promptTokens + maxTokens);
  progress("measuring the adapter's peaks");
  const peaks = await measurePeaks(gpu);
  const offset = await clockOffset(gpu);
  const toTimeline = (ms: number) => ms + offset - setting.origin;
  progress("timing dispatches");
  const { phases, timeline } = await profileSteps({
    ...setting,
    gpu,
    config,
    weights,
    cacheDtype,
    prefillRows,
    peaks,
    toTimeline,
  });
  progress("watching the decode loop");
  const watched = await watchLoop(
    runner,
    Array(batch).fill(promptIds(promptTokens, config.vocabSize)),
    setting.sampling,
    { ...setting, warm: phases[0].ms < 1000 },
  );
  const notes = [
    ...setting.notes,
    weightsText(runner.weights),
    ...gpuNotes(setting, phases, gpu.timestamps ? "" : await untimed(gpu)),
    ...loopNotes(watched),
  ];
  const compared = setting.compare
    ? await compareWithCpu(checkpoint, setting, phases)
    : { notes: [] };
  return {
    findings: {
      ...subject(checkpoint, setting, { ...device, software: gpu.software }),
      peaks,
      timedBy: gpu.timestamps ? "timestamps" : "passes",
      phases,
      coverage: coverageOf(phases, maxTokens, true),
      fallbacks: runner.fallbacks,
      loop: loopOf(watched),
      ...compared,
      notes: [...notes, ...compared.notes],
    },
    timeline: [
      ...timeline,
      ...loopTimeline(watched, toTimeline, setting.origin),
    ],
  };
}

/** Runs the CPU path on the same steps. */
async function compareWithCpu(
  checkpoint: Checkpoint,
  setting: Setting,
  onGpu: readonly Phase[],
): Promise<{ compare: Comparison[]; notes: string[] }> {
  const { promptTokens, maxTokens, progress, signal } = setting;
  progress("running the CPU path too");
  using cpu = await CpuRunner.load(checkpoint, {
    ...setting.opening,
    context: promptTokens + maxTokens,
    signal,
  });
  const { phases } = await profileCpu(cpu, setting);
  const { kernel, threads } = cpu.ops.info;
  return {
    compare: comparisonOf(onGpu, phases),
    notes: [`the CPU path: ${kernel}, ${threads} threads`],
  };
}

async function load(checkpoint: Checkpoint, setting: Setting): Promise<Qwen3> {
  const { device, kv, promptTokens, maxTokens, signal } = setting;
  try {
    return await Qwen3.load(checkpoint, {
      ...setting.opening,
      ...deviceOptions(setting),
      device,
      kv,
      context: promptTokens + maxTokens,
      signal,
    });
  } catch (error) {
    await checkpoint[Symbol.asyncDispose]();
    throw error;
  }
}

/** Matmuls of a prefill and all decode steps, all on one device. */
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
  untimed: string,
): string[] {
  const { promptTokens, maxTokens } = setting;
  const lengths = decodeLengths(promptTokens, maxTokens);
  const notes = [
    ...batchNotes(setting),
    `decode: ${lengths.length} of ${maxTokens - 1} steps were timed, with ${
      lengths.join(", ")
    } tokens in the KV cache`,
  ];
  if (untimed) {
    notes.push(
      `${untimed}: only whole passes were timed, by wall clock`,
    );
  }
  for (const { name, factor, ms, profiledMs } of phases) {
    if (factor === undefined) continue;
    notes.push(
      `${name}: each dispatch was timed in its own pass, ${
        milliseconds(profiledMs!)
      } instead of ${milliseconds(ms)} (factor ${factor.toFixed(2)})`,
    );
  }
  return notes;
}

/** Which prompts of a batch were timed, if not all. */
function batchNotes({ batch }: Setting): string[] {
  return batch > 2
    ? [
      `prefill: only the first and last of ${batch} prompts were timed, as samples of all`,
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
      : ["--chunk has no effect: the CPU path has no readbacks"],
    ...compare ? ["--compare has no effect: the CPU path ran alone"] : [],
  ];
}
