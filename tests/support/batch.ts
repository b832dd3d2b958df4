/** Batches of prompts, read, and the same prompts one by one. */
import { assertEquals } from "@std/assert";
import type { BatchRun, GenerateOptions, Qwen3 } from "../../mod.ts";

/** Lengths of prompts. Each compiles pipelines of its own, so there are few. */
const LENGTHS = [1, 8, 17, 3];

/** `count` prompts, no two alike. */
export const promptsOf = (count: number) =>
  Array.from(
    { length: count },
    (_, s) =>
      Array.from({ length: LENGTHS[s % 4] }, (_, i) => (97 * s + 5 * i) % 512),
  );

/** Reads a run to its end; what the pieces say must be what `sequences` says. */
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

/** The same from a run for each prompt, with the seeds of a batch. */
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
