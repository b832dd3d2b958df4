/**
 * Rows that run a whole model on the GPU.
 *
 * @module
 */
import { weightsText } from "../lib/tools/weights.ts";
import type { RunStats } from "../lib/generate.ts";
import type { Qwen3 } from "../lib/load.ts";
import type { Plan } from "../lib/webgpu/plan.ts";
import { costsOf } from "../lib/tools/profile/costs.ts";
import { loopOf, watchLoop } from "../lib/tools/profile/loop.ts";
import { promptIds } from "../lib/tools/profile/setting.ts";
import type { GpuRunner } from "../lib/gpu/runner.ts";
import { resolveSampling } from "../lib/model/sampling.ts";
import { type Measure, measure, type Measured, withBound } from "./report.ts";
import { type BenchSetting, FEW_RUNS, hotTimes } from "./setting.ts";

/** Greedy decoding, as for the peers. */
export const GREEDY = { temperature: 0 };

/** Generates `maxTokens` tokens, whatever they are. */
export async function generate(
  qwen: Qwen3,
  prompt: number,
  maxTokens: number,
): Promise<RunStats> {
  const ids = promptIds(prompt, qwen.config.vocabSize);
  const run = qwen.generate(ids, {
    ...GREEDY,
    maxTokens,
    ignoreEos: true,
    reuse: false,
  });
  await Array.fromAsync(run);
  return run.stats;
}

/** Decode after a prompt. */
export async function decodeRow(
  setting: BenchSetting,
  prompt: number,
): Promise<Measured> {
  const { maxTokens } = setting.options, { peaks } = await setting.onGpu();
  const { qwen, runner } = await setting.model(prompt + maxTokens);
  const stats = await setting.repeat(() => generate(qwen, prompt, maxTokens));
  const wall = measure(
    "generate",
    "tokens/s",
    stats.map(({ decodeTokensPerSecond }) => decodeTokensPerSecond),
  );
  // Steps read more as the context grows; the middle one stands for the average.
  const bytes = stepBytes(runner, prompt + Math.floor(maxTokens / 2));
  const measures = [withBound(wall, peaks, "memory", bytes)];
  if (runner.gpu.timestamps) {
    const loops = await setting.repeat(async () =>
      loopOf(
        await watchLoop(
          runner,
          [promptIds(prompt, runner.config.vocabSize)],
          resolveSampling(GREEDY, {}),
          { maxTokens, warm: false },
        ),
      )
    );
    const rates = loops.map(({ gpuMs }) => 1000 / gpuMs!);
    const busy = measure("GPU time", "tokens/s", rates);
    measures.push(
      withBound(busy, peaks, "memory", bytes),
      measure("GPU time of a token", "ms", loops.map(({ gpuMs }) => gpuMs!)),
    );
  }
  return {
    measures,
    notes: [
      `a step reads at least ${(bytes / 1e9).toFixed(2)} GB`,
      weightsText(runner.weights),
    ],
  };
}

/** Prefill of `tokens` tokens. */
export async function prefillRow(
  setting: BenchSetting,
  tokens: number,
): Promise<Measured> {
  const { runs } = setting.options, { peaks } = await setting.onGpu();
  const { qwen, runner } = await setting.model(tokens + 1);
  const stats = await setting.repeat(() => generate(qwen, tokens, 1));
  const wall = measure(
    "generate, to first token",
    "tokens/s",
    stats.map(({ prefillTokensPerSecond }) => prefillTokensPerSecond),
  );
  const each = Array(runs).fill(0);
  let flops = 0, half = false;
  for (let begin = 0; begin < tokens; begin += runner.prefillRows) {
    const rows = Math.min(runner.prefillRows, tokens - begin);
    const { plan } = runner.pass(rows, false);
    runner.setLength(begin);
    const times = await hotTimes(runner.gpu, plan, runs, { length: begin });
    each.forEach((_, i) => each[i] += times[i] ?? times[0]);
    flops += workOf(runner, plan, rows, begin).flops;
    half ||= plan.dispatches.some(({ constants }) => constants.F16 === 1);
  }
  const bound = half ? "f16" : "f32";
  const busy = measure(
    "GPU time",
    "tokens/s",
    each.map((ms) => 1000 * tokens / ms),
  );
  return {
    measures: [
      withBound(wall, peaks, bound, flops / tokens),
      withBound(busy, peaks, bound, flops / tokens),
      measure("GPU time of the prompt", "ms", each),
    ],
    notes: [`${(flops / 1e9).toFixed(1)} GFLOP`],
  };
}

/** Tokens of a generation of which only the first is timed. */
export const FIRST_TOKENS = 16;

/** From the call to the first token, with every pipeline compiled. */
export async function firstTokenRow(
  setting: BenchSetting,
  prompt: number,
): Promise<Measured> {
  const maxTokens = FIRST_TOKENS;
  const { qwen } = await setting.model(prompt + maxTokens);
  const stats = await setting.repeat(() => generate(qwen, prompt, maxTokens));
  return {
    measures: [
      measure(
        "generate",
        "ms",
        stats.map(({ timeToFirstTokenMs }) => timeToFirstTokenMs),
      ),
    ],
  };
}

/** Decode at the end of a long context, relative to decode after a short prompt. */
export async function contextRow(
  setting: BenchSetting,
  context: number,
  short: number,
): Promise<Measured> {
  const { maxTokens, runs } = setting.options;
  const { peaks } = await setting.onGpu();
  const { qwen, runner } = await setting.model(context);
  const rate = async (prompt: number) => {
    const { decodeTokensPerSecond } = await generate(qwen, prompt, maxTokens);
    return decodeTokensPerSecond;
  };
  const near = await setting.repeat(() => rate(short));
  const far = await setting.repeat(
    () => rate(context - maxTokens),
    Math.min(runs, FEW_RUNS),
  );
  const step = async (length: number): Promise<[Measure, number[]]> => {
    const { plan } = runner.pass(1, false);
    runner.setLength(length);
    const times = await hotTimes(runner.gpu, plan, 4 * runs, { length });
    const { bytes } = workOf(runner, plan, 1, length);
    const rates = measure(
      `GPU time of a step at ${length}`,
      "tokens/s",
      times.map((ms) => 1000 / ms),
    );
    return [withBound(rates, peaks, "memory", bytes), times];
  };
  const [nearStep] = await step(short);
  const [farStep] = await step(context - 1);
  const average = (name: string, rates: number[], prompt: number) =>
    withBound(
      measure(name, "tokens/s", rates),
      peaks,
      "memory",
      stepBytes(runner, prompt + Math.floor(maxTokens / 2)),
    );
  const nearRate = average("generate at the start", near, short);
  const farRate = average("generate at the end", far, context - maxTokens);
  return {
    measures: [
      farRate,
      nearRate,
      measure(
        "generate, end over start",
        "%",
        far.map((rate) => 100 * rate / nearRate.median),
      ),
      farStep,
      nearStep,
      measure("GPU time, end over start", "%", [
        100 * farStep.median / nearStep.median,
      ]),
    ],
  };
}

/**
 * Bytes that a decode step after `length` tokens must read: the weights as they are stored,
 * without the embedding table, of which it reads a row, and the cached keys and values.
 */
export function stepBytes(runner: GpuRunner, length: number): number {
  return workOf(runner, runner.pass(1, false).plan, 1, length).bytes;
}

/** FLOPs of a pass, and the least bytes that it must move. */
function workOf(
  { config }: GpuRunner,
  plan: Plan,
  tokens: number,
  length: number,
): { flops: number; bytes: number } {
  let flops = 0, bytes = 0;
  for (const dispatch of plan.dispatches) {
    if (dispatch.gridAt && !dispatch.gridAt({ length })) continue;
    const context = { config, sequences: 1, tokens, length };
    for (const cost of costsOf(dispatch, context)) {
      flops += cost.flops;
      bytes += cost.bytes;
    }
  }
  return { flops, bytes };
}
