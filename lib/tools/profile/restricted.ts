/**
 * Profiles a model that may use only some matmul kernels: what they refuse, and what
 * that costs.
 *
 * @module
 */
import type { Checkpoint } from "../../checkpoint/checkpoint.ts";
import type { Choice } from "../../dispatch/choice.ts";
import { openDevice } from "../../device/open_device.ts";
import { weightsText } from "../weights.ts";
import { isDense } from "./host.ts";
import type { AllowedKernel } from "./kernels.ts";
import { wallPhase } from "./operations.ts";
import type { TimelineEvent } from "./report.ts";
import { type Profiled, promptIds, type Setting, subject } from "./setting.ts";
import { UnpackedModel } from "./unpacked.ts";
import { deviceOptions } from "../../webgpu/implementation.ts";
import { CpuRunner } from "../../cpu/runner.ts";

/** Profiles a model whose matmuls are offered only to `kernels`. */
export async function profileRestricted(
  checkpoint: Checkpoint,
  setting: Setting,
  kernels: readonly AllowedKernel[],
): Promise<Profiled> {
  const { promptTokens, maxTokens, progress, signal } = setting;
  await using _checkpoint = checkpoint;
  if (checkpoint.config.experts) {
    throw new Error(
      `Cannot profile ${checkpoint.name} on ${
        kernels.join(", ")
      } only: its layers are mixtures of experts, must be dense`,
    );
  }
  using gpu = await openDevice(deviceOptions(setting));
  progress("loading the weights");
  using runner = await CpuRunner.load(checkpoint, {
    ...setting.opening,
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
  progress(`running the model on ${kernels.join(", ")} only`);
  const ids = promptIds(promptTokens, runner.config.vocabSize);
  await model.forward([0], cache, signal); // compiles
  cache.reset();
  model.reset();
  const prefillMs = await run(ids, "profiled prefill");
  const prefill = model.samples.splice(0);
  const steps = Math.min(UNPACKED_STEPS, maxTokens - 1);
  let decodeMs = 0;
  for (let i = 0; i < steps; i++) decodeMs += await run([i], "profiled decode");
  const decode = model.samples.splice(0);
  const phases = [
    wallPhase("prefill", promptTokens, prefillMs, prefill, 1, BETWEEN),
    wallPhase("decode", 1, decodeMs / steps, decode, steps, BETWEEN),
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
        weightsText(runner.weights),
        `the model ran unpacked and unfused on ${
          kernels.join(", ")
        } only, every matmul by itself: wall times include uploads and readbacks`,
        ...unpackedNote(checkpoint),
        `decode: ${steps} of ${maxTokens - 1} steps were run`,
        ...setting.batch > 1
          ? ["--batch has no effect: one sequence was run"]
          : [],
      ],
      phases,
      coverage: model.coverage,
      fallbacks: model.fallbacks,
    },
    timeline,
  };
}

/** Decode steps of a run with `--kernels`, which reads back every matmul. */
const UNPACKED_STEPS = 2;

const BETWEEN = {
  name: "between matmuls",
  reason: "embedding, norms, RoPE, SwiGLU and residuals, on the CPU",
};

/** Says which weights the kernels cannot take as they are stored. */
function unpackedNote({ tensors }: Checkpoint): string[] {
  const names = new Set<string>();
  for (const { format: { name } } of tensors.values()) {
    if (!isDense(name)) names.add(name);
  }
  return names.size === 0 ? [] : [
    `weights in ${[...names].join(", ")} were unpacked to f32 first`,
  ];
}
