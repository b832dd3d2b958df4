/**
 * Rows for the CPU path, alone and compared with the GPU.
 *
 * @module
 */
import { openCheckpoint } from "../lib/checkpoint/open.ts";
import { loadQwen3 } from "../lib/load.ts";
import { profile } from "../lib/tools/profile/profile.ts";
import { comparisonOf } from "../lib/tools/profile/compare.ts";
import { profileCpu } from "../lib/tools/profile/cpu.ts";
import type { Comparison } from "../lib/tools/profile/report.ts";
import { CpuRunner } from "../lib/cpu/runner.ts";
import { resolveSampling } from "../lib/model/sampling.ts";
import { generate } from "./model_rows.ts";
import { measure, type Measured } from "./report.ts";
import { type BenchSetting, FEW_RUNS } from "./setting.ts";

/** Few, because the CPU is slow. */
export const CPU_TOKENS = 32;

/** Prefill and decode of the CPU path through `generate`. */
export async function cpuRow(
  setting: BenchSetting,
  prompt: number,
): Promise<Measured> {
  const { model, maxTokens, runs, opening, kv } = setting.options;
  setting.freeModel();
  const tokens = Math.min(maxTokens, CPU_TOKENS);
  using qwen = await loadQwen3(model, {
    ...opening,
    device: "cpu",
    kv,
    context: prompt + tokens,
  });
  const stats = await setting.repeat(
    () => generate(qwen, prompt, tokens),
    Math.min(runs, FEW_RUNS),
  );
  const rates = (
    name: string,
    key: "decodeTokensPerSecond" | "prefillTokensPerSecond",
  ) => measure(name, "tokens/s", stats.map((one) => one[key]));
  return {
    measures: [
      rates("generate", "decodeTokensPerSecond"),
      rates("generate, to first token", "prefillTokensPerSecond"),
    ],
    notes: [`${qwen.device.adapter}, ${tokens} tokens`],
  };
}

/** Speedup of the GPU for Linear layers, attention and whole steps. */
export async function compareRow(
  setting: BenchSetting,
  promptTokens: number,
): Promise<Measured> {
  const { model, runs, opening, device, kv } = setting.options;
  setting.freeModel();
  const maxTokens = CPU_TOKENS;
  const { phases } = await profile(model, {
    ...{ ...device, device: "gpu", kv, opening },
    promptTokens,
    maxTokens,
  });
  await using checkpoint = await openCheckpoint(model, opening);
  using cpu = await CpuRunner.load(checkpoint, {
    context: promptTokens + maxTokens,
    threads: opening?.threads,
  });
  const sampling = resolveSampling({ temperature: 0 }, {});
  const origin = performance.now();
  const found: Comparison[][] = [];
  for (let run = 0; run < Math.min(runs, FEW_RUNS); run++) {
    const onCpu = await profileCpu(cpu, {
      promptTokens,
      maxTokens,
      batch: 1,
      sampling,
      origin,
    });
    found.push(comparisonOf(phases, onCpu.phases));
  }
  return {
    measures: found[0].flatMap(({ phase, what, factor }, i) =>
      factor === undefined ? [] : [measure(
        `${phase}, ${what}`,
        "×",
        found.map((run) => run[i].factor!),
      )]
    ),
    notes: [`${cpu.ops.info.kernel}, ${cpu.ops.info.threads} threads`],
  };
}
