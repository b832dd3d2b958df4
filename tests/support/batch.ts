/** Runs prompts as a batch and one by one. */
import { assertEquals } from "@std/assert";
import type { BatchRun, GenerateOptions, Qwen3 } from "../../mod.ts";

/** Few lengths, because each compiles its own pipelines. */
const LENGTHS = [1, 8, 17, 3];

/** `count` prompts, all different. */
export const promptsOf = (count: number) =>
  Array.from(
    { length: count },
    (_, s) =>
      Array.from({ length: LENGTHS[s % 4] }, (_, i) => (97 * s + 5 * i) % 512),
  );

/** Reads a run to its end, and asserts that its pieces add up to its sequences. */
export async function read(run: BatchRun) {
  const texts = run.sequences.map(() => "");
  const ids = run.sequences.map((): number[] => []);
  for await (const { sequence, text, tokenId } of run) {
    texts[sequence] += text;
    if (tokenId !== null) ids[sequence].push(tokenId);
  }
  assertEquals(run.sequences.map(({ text }) => text), texts);
  assertEquals(run.sequences.map(({ tokenIds }) => tokenIds), ids);
  return run.sequences.map(({ text, tokenIds, finishReason }) => ({
    text,
    tokenIds,
    finishReason,
  }));
}

/** Runs each prompt alone, with the seed that it has in a batch. */
export async function oneByOne(
  qwen: Qwen3,
  prompts: readonly (string | number[])[],
  options: GenerateOptions,
) {
  const results = [];
  for (const [s, prompt] of prompts.entries()) {
    const seed = options.seed === undefined
      ? undefined
      : (options.seed + s) % 2 ** 32;
    const run = qwen.generate(prompt, { ...options, seed });
    let text = "";
    for await (const piece of run) text += piece.text;
    const { tokenIds, finishReason } = run;
    results.push({ text, tokenIds, finishReason });
  }
  return results;
}
