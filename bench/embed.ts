/**
 * Embeddings: many texts at once against one by one.
 *
 *   deno run -A bench/embed.ts [MODEL] [gpu|cpu] [TEXTS] [TOKENS]
 */
import { loadQwen3 } from "../mod.ts";
import { fmix32 } from "../lib/fmix32.ts";

const [
  model = "synthetic:qwen3-0.6b",
  device = "auto",
  count = "64",
  tokens = "128",
] = Deno.args;
const REPEATS = 5;

using qwen = await loadQwen3(model, {
  device: device as "auto" | "gpu" | "cpu",
});
const { vocabSize } = qwen.config;

/** Texts of random ids; `lengths` are theirs. */
function textsOf(lengths: readonly number[]): number[][] {
  return lengths.map((length, text) =>
    Array.from(
      { length },
      (_, i) => fmix32(text * 65537 + i) % vocabSize,
    )
  );
}

async function median(work: () => Promise<unknown>): Promise<number> {
  await work(); // records and compiles
  const times: number[] = [];
  for (let i = 0; i < REPEATS; i++) {
    const began = performance.now();
    await work();
    times.push(performance.now() - began);
  }
  return times.sort((a, b) => a - b)[REPEATS >> 1];
}

const n = Number(count), each = Number(tokens);
const kinds: [string, number[]][] = [
  [`${n} texts of ${each} tokens`, new Array(n).fill(each)],
  [
    `${n} texts of ${each >> 3} to ${4 * each} tokens`,
    Array.from(
      { length: n },
      (_, i) => Math.round((each >> 3) * 32 ** (fmix32(i) / 2 ** 32)),
    ),
  ],
  [`${4 * n} texts of ${each >> 2} tokens`, new Array(4 * n).fill(each >> 2)],
];
console.log(`${model} on ${qwen.device.adapter}`);
for (const [what, lengths] of kinds) {
  const texts = textsOf(lengths);
  const all = lengths.reduce((sum, length) => sum + length);
  const first = performance.now();
  await qwen.embed(texts);
  const cold = performance.now() - first;
  const together = await median(() => qwen.embed(texts));
  const alone = await median(async () => {
    for (const text of texts) await qwen.embed(text);
  });
  console.log(
    `${what}: first ${cold.toFixed(0)} ms, together ${
      together.toFixed(1)
    } ms, ${Math.round(all / together * 1000)} tokens/s, one by one ${
      alone.toFixed(1)
    } ms, ${(alone / together).toFixed(2)} ×`,
  );
}
