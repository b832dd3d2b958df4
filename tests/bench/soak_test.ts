/** A short soak: many clients, and every token is what its request gives alone. */
import { assert, assertRejects } from "@std/assert";
import { soak } from "../../bench/soak.ts";
import type { Engine } from "../../lib/engine/engine.ts";
import { loadQwen3 } from "../../mod.ts";
import { eachDevice } from "../support/gpu.ts";
import { randomTest } from "../support/random.ts";

const LIMITS = { clients: 16, seconds: Infinity, maxTokens: 16, prompts: 12 };

/** Runs passes of many sizes, whose scratch memory the device then has. */
async function warmUp(engine: Engine): Promise<void> {
  for (const count of [1, 2, 4, 8]) {
    for (const length of [5, 20, 40, 112]) {
      const prompts = Array.from(
        { length: count },
        (_, i) => new Array(length).fill(3 + i + 10 * length),
      );
      const options = { temperature: 0, maxTokens: 2, ignoreEos: true };
      await Promise.all(prompts.map((ids) => engine.submit(ids, options)));
    }
  }
}

eachDevice("16 clients get what they would alone", async (device) => {
  using qwen = await loadQwen3(undefined, {
    device,
    precision: "f32",
    context: 256,
  });
  using engine = await qwen.engine({ slots: 8, cacheTokens: 2048 });
  await warmUp(engine);
  const requests = device === "cpu" ? 300 : 80;
  const seed = Math.floor(Math.random() * 2 ** 32);
  const report = await soak(qwen, engine, { ...LIMITS, requests, seed })
    .catch((cause) => {
      throw new Error(`with seed ${seed}`, { cause });
    });
  assert(report.requests >= 16 && report.tokens > 100);
  assert(report.cachedTokens > 0 && report.left > 0);
  // Some passes had not run before, but nothing stays of a request.
  const { memory } = report, [middle, end] = [memory[5], memory[10]];
  assert(memory.every((one, i) => one.requests >= report.requests * i / 10));
  const more = end.device - middle.device;
  assert(more < 2 ** 20, `${more} bytes more`);
});

randomTest("a wrong token ends a soak", async (random) => {
  using qwen = await loadQwen3(undefined, { device: "cpu", context: 256 });
  using engine = await qwen.engine({ slots: 2 });
  const { submit } = engine;
  engine.submit = (prompt, options) =>
    submit.call(engine, prompt, { ...options, logitBias: { 7: 100 } });
  const seed = random.int(0, 2 ** 31);
  await assertRejects(
    () => soak(qwen, engine, { ...LIMITS, clients: 1, requests: 50, seed }),
    Error,
    "is 7, must be",
  );
});
