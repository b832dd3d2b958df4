/** Runs that continue from the keys and values of an earlier one. */
import { assert, assertEquals } from "@std/assert";
import { loadQwen3, type Qwen3 } from "../mod.ts";
import { GpuKvCache } from "../lib/gpu/kv_cache.ts";
import { GpuRunner } from "../lib/gpu/runner.ts";
import { type CachePass, KvCache } from "../lib/model/kv_cache.ts";
import { eachDevice, gpuTest } from "./support/gpu.ts";
import { prompted } from "./support/prompted.ts";
import { withLargeValues } from "./support/temp_checkpoint.ts";

const TINY = new URL("./fixtures/tiny-tied-bf16/", import.meta.url).href;
const GREEDY = { temperature: 0, maxTokens: 6, ignoreEos: true };

/** A text of the story model's vocabulary, without an end of text. */
const text = (length: number, from = 300) =>
  Array.from({ length }, (_, i) => from + (7 * i) % 900);

/**
 * What a run gives, with the tokens that ran before its first one; checked against a run
 * that reuses nothing.
 */
async function compared(qwen: Qwen3, alone: Qwen3, prompt: number[]) {
  using counted = prompted();
  const run = await qwen.generate(prompt, GREEDY);
  const { cachedTokens, promptTokens, tokens } = run.stats;
  // Every decode step on the CPU is a pass as well; on a GPU they are not counted.
  const steps = qwen.device.kind === "cpu" ? tokens - 1 : 0;
  assertEquals(counted.tokens - steps, promptTokens - cachedTokens);
  const fresh = await alone.generate(prompt, { ...GREEDY, reuse: false });
  assertEquals(fresh.stats.cachedTokens, 0);
  assertEquals(run.tokenIds, fresh.tokenIds);
  return { ids: run.tokenIds, cached: cachedTokens, stats: run.stats };
}

eachDevice(
  "a prompt that begins as the last did runs the rest",
  async (device) => {
    using qwen = await loadQwen3(undefined, { device });
    using alone = await loadQwen3(undefined, { device });
    const prompt = text(20);
    const first = await compared(qwen, alone, prompt);
    assertEquals(first.cached, 0);
    // The same again: the last token runs for its logits.
    assertEquals((await compared(qwen, alone, prompt)).cached, 19);
    // With the reply, of which the last token has not run.
    const next = [...prompt, ...first.ids, ...text(9, 1000)];
    const second = await compared(qwen, alone, next);
    assertEquals(second.cached, 25);
    assert(second.stats.summary.includes("35 prompt tokens (25 cached) at"));
    // Edited in the middle, shortened, and a different beginning.
    assertEquals((await compared(qwen, alone, next.with(12, 5))).cached, 12);
    assertEquals((await compared(qwen, alone, next.slice(0, 10))).cached, 9);
    assertEquals((await compared(qwen, alone, [1, ...prompt])).cached, 0);
    // With a seed, a reply does not depend on what ran before.
    const seeded = { ...GREEDY, seed: 1 };
    assertEquals((await qwen.generate(prompt, GREEDY)).stats.cachedTokens, 0);
    assertEquals((await qwen.generate(prompt, seeded)).stats.cachedTokens, 0);
    const both = { ...seeded, reuse: true };
    assertEquals((await qwen.generate(prompt, both)).stats.cachedTokens, 19);
  },
);

eachDevice("other uses of the model leave the cache right", async (device) => {
  using qwen = await loadQwen3(undefined, { device });
  using alone = await loadQwen3(undefined, { device });
  const prompt = text(40), other = text(30, 900);
  await compared(qwen, alone, prompt);
  await qwen.generateBatch([other, text(7)], GREEDY); // has a cache of its own
  assertEquals((await compared(qwen, alone, prompt)).cached, 39);
  await qwen.logits(other);
  assertEquals((await compared(qwen, alone, prompt)).cached, 0);
  await qwen.embed([other, text(500)]);
  await compared(qwen, alone, prompt);
  if (qwen.runner instanceof GpuRunner) {
    qwen.runner.setLength(5);
    assertEquals((await compared(qwen, alone, prompt)).cached, 0);
  }
});

eachDevice("an aborted run leaves what it has done", async (device) => {
  using qwen = await loadQwen3(undefined, { device });
  using alone = await loadQwen3(undefined, { device });
  const prompt = text(600);
  const { advance } = KvCache.prototype;
  const abort = new AbortController();
  KvCache.prototype.advance = function () {
    advance.call(this);
    abort.abort();
  };
  const { signal } = abort;
  try {
    const run = await qwen.generate(prompt, { ...GREEDY, signal });
    assertEquals([run.finishReason, run.tokenIds], ["aborted", []]);
  } finally {
    KvCache.prototype.advance = advance;
  }
  const { cached } = await compared(qwen, alone, prompt);
  assert(cached >= 8 && cached < 600, `${cached}`);
  // Between two tokens: those that were read are known.
  const run = qwen.generate(prompt.slice(0, 50), GREEDY);
  for await (const _ of run) if (run.tokenIds.length === 3) break;
  const again = [...prompt.slice(0, 50), ...run.tokenIds, 17];
  const { cached: known } = await compared(qwen, alone, again);
  assert(known >= 52, `${known}`);
});

eachDevice("a full context keeps what was not overwritten", async (device) => {
  const options = { device, context: 32 };
  using qwen = await loadQwen3(undefined, options);
  using alone = await loadQwen3(undefined, options);
  const prompt = text(28);
  const run = await qwen.generate(prompt, { ...GREEDY, maxTokens: 9 });
  assertEquals(run.tokenIds.length, 4);
  const full = [...prompt, ...run.tokenIds].slice(0, 31);
  assertEquals((await compared(qwen, alone, full)).cached, 30);
  // The runner itself goes on past the end, over its last position.
  const greedy = run.stats.sampling;
  for await (const _ of qwen.runner.generate([prompt], greedy, 9));
  assertEquals((await compared(qwen, alone, full)).cached, 30);
});

gpuTest("a flag that nobody has read counts when a run resumes", async () => {
  using qwen = await loadQwen3(TINY, { device: "gpu" });
  using alone = await loadQwen3(TINY, { device: "gpu", precision: "f32" });
  const prompt = [1, 2, 3, 4, 5, 6, 7, 8];
  const { advance } = KvCache.prototype;
  const abort = new AbortController();
  KvCache.prototype.advance = function () {
    advance.call(this);
    // As if a value had not fitted, of a token that does not run again.
    if (this instanceof GpuKvCache) this.flags.write(0, Uint32Array.of(1));
    abort.abort();
  };
  try {
    await qwen.generate(prompt, { ...GREEDY, signal: abort.signal });
  } finally {
    KvCache.prototype.advance = advance;
  }
  const caches = () =>
    qwen.device.choices.filter(({ what }) => what === "KV cache").length;
  assertEquals(caches(), 1);
  const run = await qwen.generate(prompt, GREEDY);
  const fresh = await alone.generate(prompt, GREEDY);
  assertEquals(run.tokenIds, fresh.tokenIds);
  assertEquals(caches(), 2);
  assertEquals((await qwen.generate(prompt, GREEDY)).stats.cachedTokens, 7);
});

gpuTest("a cache that was widened holds what ran since", async () => {
  await using checkpoint = await withLargeValues(TINY);
  const { path } = checkpoint;
  using qwen = await loadQwen3(path, { device: "gpu" });
  using alone = await loadQwen3(path, { device: "gpu", precision: "f32" });
  const prompt = [1, 2, 3, 4, 5, 6, 7, 8];
  for (const cached of [0, 7]) {
    const run = await qwen.generate(prompt, GREEDY);
    const fresh = await alone.generate(prompt, { ...GREEDY, reuse: false });
    assertEquals(run.tokenIds, fresh.tokenIds);
    assertEquals(run.stats.cachedTokens, cached);
  }
});

Deno.test("a cache resumes only what it holds", () => {
  const cache = new KvCache<null>([], 1, 8);
  const pass: CachePass = { first: 0, sequences: 1, tokens: 5 };
  cache.begin(pass);
  cache.advance();
  assertEquals(cache.heldOf([1, 2, 3]), 0);
  cache.hold([1, 2, 3, 4, 5]);
  assertEquals(cache.heldOf([1, 2, 3]), 2);
  assertEquals(cache.heldOf([1, 2, 9, 4]), 2);
  assertEquals(cache.heldOf([]), 0);
  cache.resume(2);
  assertEquals([...cache.lengths], [2]);
  assertEquals(cache.heldOf([1, 2, 3]), 0); // until it is said again
  let problem = "";
  try {
    cache.resume(1);
  } catch (error) {
    problem = String(error);
  }
  assertEquals(
    problem,
    "Error: Cannot resume after 1 tokens: the KV cache holds 0",
  );
  cache.hold(Array.from({ length: 8 }, (_, i) => i));
  assertEquals(cache.held.length, 7);
  cache.reset([3]);
  assertEquals(cache.held.length, 0);
});
