/**
 * The time to the first token of a conversation's second turn, against that of its first.
 *
 *   deno run -A bench/turns.ts [MODEL] [gpu|cpu] [TOKENS] [ADDED]
 */
import { fmix32 } from "../lib/fmix32.ts";
import { loadQwen3 } from "../mod.ts";

const [
  model = "synthetic:qwen3-0.6b",
  device = "auto",
  first = "4000",
  added = "40",
] = Deno.args;
const ROUNDS = 7, REPLY = 32;
const OPTIONS = { temperature: 0, maxTokens: REPLY, ignoreEos: true };

const before = Number(first), more = Number(added);
using qwen = await loadQwen3(model, {
  device: device as "auto" | "gpu" | "cpu",
  context: before + 2 * REPLY + 2 * more + ROUNDS,
});
const ids = (from: number, count: number) =>
  Array.from(
    { length: count },
    (_, i) => fmix32(from + i) % qwen.config.vocabSize,
  );
const median = (times: number[]) =>
  times.toSorted((a, b) => a - b)[times.length >> 1];

/** Milliseconds to the first tokens of both turns, of which the second adds `add` tokens. */
async function turns(round: number, add: number): Promise<[number, number]> {
  const prompt = ids(65537 * round, before);
  const one = await qwen.generate(prompt, { ...OPTIONS, reuse: false });
  const next = [...prompt, ...one.tokenIds, ...ids(1, add)];
  const two = await qwen.generate(next, OPTIONS);
  const { cachedTokens } = two.stats;
  if (cachedTokens !== before + REPLY - 1) {
    throw new Error(`Cannot measure: ${cachedTokens} tokens were cached`);
  }
  return [one.stats.timeToFirstTokenMs, two.stats.timeToFirstTokenMs];
}

console.log(`${model} on ${qwen.device.adapter}`);
await turns(0, more); // records and compiles
for (
  const [what, add] of [
    [`${more} tokens more`, () => more],
    ["other lengths, never seen before", (round: number) => more + round],
  ] as const
) {
  const times: [number, number][] = [];
  for (let round = 1; round <= ROUNDS; round++) {
    times.push(await turns(round, add(round)));
  }
  const one = median(times.map(([ms]) => ms));
  const two = median(times.map(([, ms]) => ms));
  console.log(
    `${before} tokens: ${one.toFixed(1)} ms; second turn, ${what}: ${
      two.toFixed(1)
    } ms, ${(two / one).toFixed(3)} ×`,
  );
}
