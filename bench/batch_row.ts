/**
 * The row for decoding several sequences together.
 *
 * @module
 */
import { profile } from "../lib/tools/profile/profile.ts";
import { promptIds } from "../lib/tools/profile/setting.ts";
import { generate, GREEDY, stepBytes } from "./model_rows.ts";
import { measure, type Measured, withBound } from "./report.ts";
import type { BenchSetting } from "./setting.ts";

/** Tokens per second over all sequences, and the speedup over one sequence. */
export async function batchRow(
  setting: BenchSetting,
  prompt: number,
  sequences: number,
): Promise<Measured> {
  const { model, maxTokens, device, kv, opening } = setting.options;
  const { peaks } = await setting.onGpu();
  const { qwen, runner } = await setting.model(prompt + maxTokens);
  const { vocabSize } = qwen.config;
  const prompts = Array.from(
    { length: sequences },
    (_, i) => promptIds(prompt, vocabSize).map((id) => (id + i) % vocabSize),
  );
  const together = await setting.repeat(async () => {
    const options = { ...GREEDY, maxTokens, ignoreEos: true };
    const run = qwen.generateBatch(prompts, options);
    await Array.fromAsync(run);
    return run.stats.decodeTokensPerSecond;
  });
  const stats = await setting.repeat(() => generate(qwen, prompt, maxTokens));
  const one = withBound(
    measure(
      "generate, one sequence",
      "tokens/s",
      stats.map(({ decodeTokensPerSecond }) => decodeTokensPerSecond),
    ),
    peaks,
    "memory",
    stepBytes(runner, prompt + Math.floor(maxTokens / 2)),
  );
  const { phases: [, step] } = await profile(model, {
    ...{ ...device, device: "gpu", kv, opening },
    batch: sequences,
    promptTokens: prompt,
    maxTokens,
  });
  const bound = (rates: ReturnType<typeof measure>) =>
    withBound(rates, peaks, "memory", step.bytes / sequences);
  return {
    measures: [
      bound(measure("generateBatch", "tokens/s", together)),
      measure(
        "over one sequence",
        "×",
        together.map((rate) => rate / one.median),
      ),
      one,
      bound(measure("GPU time", "tokens/s", [1000 * step.tokens / step.ms])),
    ],
    notes: [`tokens of all ${sequences} sequences`],
  };
}
