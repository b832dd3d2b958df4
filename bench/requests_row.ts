/**
 * The row for many requests of different lengths at once: the workload of nano-vllm's
 * benchmark (https://github.com/GeeeekExplorer/nano-vllm, bench.py).
 *
 * @module
 */
import { fmix32 } from "../lib/fmix32.ts";
import { promptIds } from "../lib/tools/profile/setting.ts";
import { GREEDY } from "./model_rows.ts";
import { measure, type Measured } from "./report.ts";
import { type BenchSetting, FEW_RUNS } from "./setting.ts";

/** Requests, and the tokens of prompts and of replies. */
export const REQUESTS = { count: 256, least: 100, most: 1024 };
/** Requests at a time, and sequences that decode alone for comparison. */
const SLOTS = 64, ALONE = 32;
/** The middle of the lengths. */
export const MIDDLE = (REQUESTS.least + REQUESTS.most) / 2;

/** The lengths of a request's prompt and reply. */
function lengthsOf(request: number): [prompt: number, reply: number] {
  const { least, most } = REQUESTS, range = most - least + 1;
  const length = (i: number) => least + fmix32(i + 1) % range;
  return [length(2 * request), length(2 * request + 1)];
}

/** Tokens per second over all requests, prompts included, and in relation to a batch. */
export async function requestsRow(setting: BenchSetting): Promise<Measured> {
  const { count, most } = REQUESTS;
  const { qwen } = await setting.model(2 * most);
  const { vocabSize } = qwen.config;
  const prompt = (length: number, request: number) =>
    promptIds(length, vocabSize).map((id) => (id + 31 * request) % vocabSize);
  const options = { ...GREEDY, ignoreEos: true, reuse: false };
  using engine = await qwen.engine({ slots: SLOTS, context: 2 * most });
  const run = async () => {
    const before = engine.stats.tokens, began = performance.now();
    await Promise.all(Array.from({ length: count }, async (_, request) => {
      const [length, maxTokens] = lengthsOf(request);
      const all = { ...options, maxTokens };
      await engine.submit(prompt(length, request), all);
    }));
    const ms = performance.now() - began;
    return (engine.stats.tokens - before) / ms * 1000;
  };
  const runs = Math.min(FEW_RUNS, setting.options.runs);
  const together = await setting.repeat(run, runs);
  const prompts = Array.from(
    { length: ALONE },
    (_, i) => prompt(Math.round(MIDDLE), i),
  );
  const batch = await setting.repeat(async () => {
    const maxTokens = Math.round(MIDDLE);
    const run = await qwen.generateBatch(prompts, { ...options, maxTokens });
    return run.stats.decodeTokensPerSecond;
  }, runs);
  const alone = measure(`generateBatch of ${ALONE}`, "tokens/s", batch);
  return {
    measures: [
      measure("engine", "tokens/s", together),
      measure(
        `over ${ALONE} rows alone`,
        "×",
        together.map((rate) => rate / alone.median),
      ),
      alone,
    ],
    notes: [
      `tokens of replies by the time of all, prompts included; ${SLOTS} slots`,
    ],
  };
}
