/** A short soak: many clients, and every token is what its request gives alone. */
import { assert, assertRejects } from "@std/assert";
import { soak } from "../../bench/soak.ts";
import { loadQwen3 } from "../../mod.ts";
import { eachDevice } from "../support/gpu.ts";
import { randomTest } from "../support/random.ts";

const LIMITS = { clients: 16, seconds: 20, maxTokens: 16, prompts: 12 };

eachDevice("16 clients get what they would alone", async (device) => {
  using qwen = await loadQwen3(undefined, {
    device,
    precision: "f32",
    context: 256,
  });
  using engine = await qwen.engine({ slots: 8, cacheTokens: 1024 });
  const requests = device === "cpu" ? 300 : 80;
  const seed = Math.floor(Math.random() * 2 ** 32);
  const report = await soak(qwen, engine, { ...LIMITS, requests, seed })
    .catch((cause) => {
      throw new Error(`with seed ${seed}`, { cause });
    });
  assert(report.requests >= 16 && report.tokens > 100);
  assert(report.cachedTokens > 0 && report.left > 0);
  // Scratch memory of passes that had not run before, but nothing for each request.
  const [early, end] = report.memory.device;
  assert(end - early < 2 ** 20, `${end - early} bytes more`);
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
