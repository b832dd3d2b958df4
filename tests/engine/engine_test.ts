/** Engines: every request is answered as if it ran alone. */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  type Engine,
  type GenerateOptions,
  loadQwen3,
  type Qwen3,
  type Run,
  type TokenMask,
} from "../../mod.ts";
import { eachDevice, gpuTest, someOf } from "../support/gpu.ts";
import { type Random, withSeeds } from "../support/random.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { withLargeValues } from "../support/temp_checkpoint.ts";
import { HARDWARE, wrapGpu } from "../support/wrapped_gpu.ts";

const TINY = new URL("../fixtures/tiny-tied-bf16/", import.meta.url).href;
const GREEDY = { temperature: 0, ignoreEos: true };
const LONG =
  "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her dog. One sunny day, they went to the park and saw a big tree with red apples. Lily wanted to pick one, but it was too high, so she asked her dad to help her.";
const PROMPTS = [
  "Once upon a time",
  "A dog",
  "Tom and his sister wanted to bake a cake for their mom.",
  LONG,
  `${LONG} He`,
  `${LONG} The dog ran`,
  "The",
];
/** The most tokens that requests ask for. */
const MOST = 40;

/** Turns the event loop a random number of times, some for a millisecond. */
async function pause(random: Random): Promise<void> {
  const ms = random.int(-3, 12);
  if (ms > 0) await new Promise((resolve) => setTimeout(resolve, ms));
}

async function alone(qwen: Qwen3): Promise<number[][]> {
  const all: number[][] = [];
  for (const prompt of PROMPTS) {
    const options = { ...GREEDY, maxTokens: MOST, reuse: false };
    all.push([...(await qwen.generate(prompt, options)).tokenIds]);
  }
  return all;
}

/** Submits a request, which may go away early; checks what it gave until then. */
async function request(
  engine: Engine,
  random: Random,
  expected: readonly number[][],
): Promise<void> {
  await pause(random);
  const which = random.int(0, PROMPTS.length - 1);
  const maxTokens = random.int(1, MOST);
  const ender = new AbortController(), { signal } = ender;
  const options = { ...GREEDY, maxTokens, signal };
  const run = engine.submit(PROMPTS[which], options);
  const end = random.int(1, 2 * MOST), how = random.int(0, 3);
  if (how === 0) await run;
  else {
    let count = 0;
    for await (const _ of run) {
      if (random.int(0, 9) === 0) await pause(random);
      if (++count < end) continue;
      if (how === 1) break;
      ender.abort();
    }
  }
  const ids = run.tokenIds;
  assertEquals(ids, expected[which].slice(0, ids.length));
  if (how === 0 || end > maxTokens) assertEquals(ids.length, maxTokens);
}

eachDevice(
  "random joins, leaves and cancels change no text",
  async (device) => {
    using qwen = await loadQwen3(undefined, { device, precision: "f32" });
    const expected = await alone(qwen);
    await withSeeds(async (draw) => {
      const random = draw();
      // Four long requests do not fit at once, so some make room for others.
      const size = { slots: 5, context: 128, cacheTokens: 256 };
      using engine = await qwen.engine(size);
      const requests = Array.from(
        { length: 24 },
        () => request(engine, random, expected),
      );
      await Promise.all(requests);
      const { running, waiting, pages } = await settled(engine);
      assertEquals([running, waiting, pages.held], [0, 0, 0]);
    });
  },
);

/** Statistics once requests that went away have left. */
async function settled(engine: Engine): Promise<Engine["stats"]> {
  for (let i = 0; i < 1000; i++) {
    const { running, waiting } = engine.stats;
    if (running + waiting === 0) break;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return engine.stats;
}

for (const kv of someOf(["q8_0", "f16"] as const, 1)) {
  gpuTest(`a cache in ${kv} is shared in pages, too`, async () => {
    using qwen = await loadQwen3(undefined, { device: "gpu", kv });
    const options = { ...GREEDY, maxTokens: 12 };
    const prompts = [PROMPTS[3], PROMPTS[4]];
    const expected: number[][] = [];
    for (const prompt of prompts) {
      const run = await qwen.generate(prompt, { ...options, reuse: false });
      expected.push([...run.tokenIds]);
    }
    using engine = await qwen.engine({ slots: 2, context: 128 });
    for (const again of [false, true]) {
      const runs = await Promise.all(prompts.map(async (prompt) => {
        return await engine.submit(prompt, options);
      }));
      assertEquals(runs.map(({ tokenIds }) => tokenIds), expected);
      if (again) assert(runs.every(({ stats }) => stats.cachedTokens >= 32));
    }
  });
}

eachDevice(
  "what a prompt shares with earlier ones is not read",
  async (device) => {
    using qwen = await loadQwen3(undefined, { device });
    using engine = await qwen.engine({ slots: 2, context: 512 });
    const ids = (count: number, last: number) =>
      Array.from({ length: count }, (_, i) => i === count - 1 ? last : 300 + i);
    const cached = async (prompt: number[], more: GenerateOptions = {}) => {
      const options = { ...GREEDY, maxTokens: 2, ...more };
      return (await engine.submit(prompt, options)).stats.cachedTokens;
    };
    const { pageTokens: page } = engine.stats;
    const two = 2 * page;
    assertEquals(await cached(ids(two + 5, 7)), 0);
    assertEquals(await cached(ids(two + 5, 8)), two);
    assertEquals(await cached(ids(two, 299 + two)), page); // the last one runs
    assertEquals(await cached([1, ...ids(two, 7)]), 0);
    assertEquals(await cached(ids(two + 5, 7), { reuse: false }), 0);
    assertEquals(engine.stats.cachedTokens, two + page);
    assertEquals(engine.stats.promptTokens, 3 * (two + 5) + 2 * two + 1);
    assertEquals(engine.stats.tokens, 10);
  },
);

eachDevice("requests are sampled by their own options", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const all: GenerateOptions[] = [
    { temperature: 0 },
    { temperature: 0.8, topK: 20, seed: 1 },
    { temperature: 1, topK: 0, topP: 0.9, seed: 2, repetitionPenalty: 1.3 },
    { temperature: 0, logitBias: { 300: 100 }, logprobs: 2 },
    { temperature: 0, presencePenalty: 2, frequencyPenalty: 1, logprobs: 0 },
  ].map((options) => ({ ...options, maxTokens: 10, ignoreEos: true }));
  const logprobs = async (run: Run) => {
    const found: number[] = [];
    for await (const { logprobs } of run) {
      if (!logprobs) continue;
      const { logprob, top } = logprobs;
      found.push(logprob, ...top.map(({ logprob }) => logprob));
    }
    return { ids: run.tokenIds, found };
  };
  const expected: Awaited<ReturnType<typeof logprobs>>[] = [];
  for (const options of all) {
    expected.push(await logprobs(qwen.generate("Tom", options)));
  }
  using engine = await qwen.engine({ slots: 4, context: 64 });
  const got = await Promise.all(
    all.map((options) => logprobs(engine.submit("Tom", options))),
  );
  assertEquals(got.map(({ ids }) => ids), expected.map(({ ids }) => ids));
  got.forEach(({ found }, i) =>
    assertAllClose(found, expected[i].found, { absolute: 1e-3 })
  );
  assertEquals(got.map(({ found }) => found.length), [0, 0, 0, 30, 10]);
});

/** Allows the tokens whose ids leave a remainder that changes from token to token. */
function turningMask() {
  let count = 0;
  return {
    fill(bits: Uint32Array) {
      if (count % 3 === 2) return false;
      for (let id = count % 5; id < 2048; id += 5) {
        bits[id >>> 5] |= 1 << (id & 31);
      }
      return true;
    },
    accept: () => void count++,
  };
}

eachDevice("masks restrict their own requests", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const options = { ...GREEDY, maxTokens: 9 };
  const masked = () => ({ ...options, mask: turningMask() });
  const free = await qwen.generate("A dog", options);
  const strict = await qwen.generate("A dog", masked());
  assert(strict.tokenIds.every((id, i) => i % 3 === 2 || id % 5 === i % 5));
  using engine = await qwen.engine({ slots: 3, context: 64 });
  const runs = [options, masked(), masked()].map(async (options) =>
    (await engine.submit("A dog", options)).tokenIds
  );
  const { tokenIds } = strict;
  assertEquals(await Promise.all(runs), [free.tokenIds, tokenIds, tokenIds]);
});

eachDevice("a mask that throws ends its own request only", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const options = { ...GREEDY, maxTokens: 9 };
  const alone = (await qwen.generate("A dog", options)).tokenIds;
  using engine = await qwen.engine({ slots: 3, context: 64 });
  const faulty = (call: "fill" | "accept") => {
    const mask = turningMask(), whole = mask[call];
    let calls = 0;
    const thrower = (bits: Uint32Array & number) => {
      if (++calls === 4) throw new Error(`faulty ${call}`);
      return whole(bits) as boolean & void;
    };
    return { ...mask, [call]: thrower };
  };
  const submit = (mask?: TokenMask) =>
    engine.submit("A dog", { ...options, ...(mask ? { mask } : {}) });
  const free = submit().then(({ tokenIds }) => tokenIds);
  await Promise.all((["fill", "accept"] as const).map((call) =>
    assertRejects(
      async () => await submit(faulty(call)),
      Error,
      `faulty ${call}`,
    )
  ));
  assertEquals(await free, alone);
  assertEquals((await submit()).tokenIds, alone);
  assertEquals(engine.stats.running, 0);
});

Deno.test("a request does not wait for many texts that are embedded", async () => {
  using qwen = await loadQwen3(TINY, { device: "cpu" });
  using engine = await qwen.engine({ slots: 2, context: 64 });
  const texts = Array.from(
    { length: 60 },
    (_, text) =>
      Array.from(
        { length: 150 + 7 * text % 60 },
        (_, i) => 3 + (text + i) % 50,
      ),
  );
  const order: string[] = [];
  const vectors = qwen.embed(texts).finally(() => order.push("vectors"));
  await new Promise((resolve) => setTimeout(resolve, 0)); // until it has the device
  await engine.submit([5, 6, 7], { ...GREEDY, maxTokens: 1 });
  order.push("token");
  const all = await vectors;
  assertEquals(order, ["token", "vectors"]);
  for (const text of [0, 8, 31, 59]) {
    const [alone] = await qwen.embed([texts[text]]);
    assertAllClose(all[text], alone, { absolute: 1e-5 });
  }
});

eachDevice("a schema is followed beside free text", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const schema = {
    type: "object",
    properties: { name: { enum: ["Lily", "Tom"] }, happy: { type: "boolean" } },
    required: ["name", "happy"],
    additionalProperties: false,
  };
  const options = { temperature: 0, maxTokens: 60 };
  const alone = await qwen.generate("Lily", { ...options, schema });
  using engine = await qwen.engine({ slots: 2, context: 128 });
  const [reply, free] = await Promise.all(
    [{ ...options, schema }, options].map(async (options) =>
      await engine.submit("Lily", options)
    ),
  );
  assertEquals(reply.tokenIds, alone.tokenIds);
  assertEquals(Object.keys(JSON.parse(reply.text)), ["name", "happy"]);
  assertEquals(free.tokenIds, (await qwen.generate("Lily", options)).tokenIds);
});

Deno.test("a slow reader loses its slot, and nothing else", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  using engine = await qwen.engine({ slots: 1, context: 1024 });
  const options = { ...GREEDY, maxTokens: 700 };
  const slow = engine.submit("Once upon a time", options);
  const pieces = slow[Symbol.asyncIterator]();
  await pieces.next();
  // It is not read meanwhile, and others have their turn.
  const other = await engine.submit("A dog", { ...GREEDY, maxTokens: 8 });
  assertEquals(other.tokenIds.length, 8);
  assert(slow.finishReason === undefined);
  while (!(await pieces.next()).done);
  const expected = await qwen.generate("Once upon a time", options);
  assertEquals(slow.tokenIds, expected.tokenIds);
});

eachDevice(
  "other calls and the engine take turns",
  async (device) => {
    using qwen = await loadQwen3(undefined, { device });
    using engine = await qwen.engine({ slots: 2, context: 64 });
    const options = { ...GREEDY, maxTokens: 12 };
    const alone = await qwen.generate("A dog", options);
    const submitted = engine.submit("A dog", options).then((reply) => reply);
    const logits = qwen.logits([1, 2, 3]);
    const more = engine.submit("A dog", options).then((reply) => reply);
    assertEquals((await logits).length, qwen.config.vocabSize);
    const run = await qwen.generate("A dog", options);
    for (const { tokenIds } of [run, await submitted, await more]) {
      assertEquals(tokenIds, alone.tokenIds);
    }
  },
);

gpuTest(
  "a value that f16 cannot hold starts requests over in f32",
  async () => {
    await using checkpoint = await withLargeValues(TINY);
    const { path } = checkpoint, options = { ...GREEDY, maxTokens: 6 };
    const prompts = [[1, 2, 3], [4, 5, 6, 7, 8]];
    using exact = await loadQwen3(path, { device: "gpu", precision: "f32" });
    const expected = [];
    for (const prompt of prompts) {
      expected.push([...(await exact.generate(prompt, options)).tokenIds]);
    }
    using qwen = await loadQwen3(path, { device: "gpu" });
    using engine = await qwen.engine({ slots: 2, context: 64 });
    const got = await Promise.all(prompts.map(async (prompt) => {
      return (await engine.submit(prompt, options)).tokenIds;
    }));
    assertEquals(got, expected);
    const caches = qwen.device.choices.filter(({ what }) =>
      what === "KV cache"
    );
    assertEquals(caches.map(({ value }) => value), ["f16", "f32"]);
  },
);

eachDevice("a disposed engine ends its requests", async (device) => {
  using qwen = await loadQwen3(undefined, { device });
  const engine = await qwen.engine({ slots: 1, context: 64 });
  const options = { ...GREEDY, maxTokens: 40 };
  const run = engine.submit("A dog", options);
  const waits = engine.submit("Tom", options);
  const message = "Cannot generate: the engine was disposed";
  const waiting = assertRejects(async () => void await waits, Error, message);
  const read = async () => {
    for await (const _ of run) engine[Symbol.dispose]();
  };
  await assertRejects(read, Error, message);
  await waiting;
  assertThrows(() => engine.submit("A"), Error, "the engine was disposed");
  assertEquals((await qwen.generate("A", options)).tokenIds.length, 40);
});

Deno.test("a disposed model ends the requests of its engine", async () => {
  const qwen = await loadQwen3(undefined, { device: "cpu" });
  const engine = await qwen.engine({ slots: 1, context: 64 });
  const run = engine.submit("A dog", { ...GREEDY, maxTokens: 40 });
  const read = async () => {
    for await (const _ of run) qwen[Symbol.dispose]();
  };
  await assertRejects(read, Error, "Cannot generate: the model was disposed");
  assertThrows(() => engine.submit("A"), Error, "the model was disposed");
});

Deno.test("options and prompts that do not fit are refused", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const refused = async (options: object, message: string) => {
    const cannot = `Cannot start an engine: ${message}`;
    await assertRejects(() => qwen.engine(options), RangeError, cannot);
  };
  await refused({ slots: 0 }, "slots is 0, must be an integer from 1 to 64");
  await refused({ slots: 65 }, "slots is 65, must be an integer from 1 to 64");
  await refused(
    { context: 1025 },
    "context is 1025, must be an integer from 2 to 1024",
  );
  await refused(
    { context: 64, cacheTokens: 63 },
    "cacheTokens is 63, must be an integer of at least 64",
  );
  using tiny = await loadQwen3(undefined, { device: "cpu", context: 1 });
  await assertRejects(
    () => tiny.engine(),
    RangeError,
    "Cannot start an engine: context is 1, must be at least 2",
  );
  using engine = await qwen.engine({ slots: 1, context: 8 });
  const ids = [1, 2, 3, 4, 5, 6, 7, 8];
  assertThrows(
    () => engine.submit(ids),
    RangeError,
    "Cannot generate: the prompt has 8 tokens, the context of 8 has room for no reply",
  );
  const { tokenIds, finishReason } = await engine.submit(
    ids.slice(0, 5),
    { ignoreEos: true },
  );
  assertEquals([tokenIds.length, finishReason], [3, "length"]);
});

gpuTest(
  "after an engine was warmed up, first requests compile nothing",
  async () => {
    const { prototype } = GPUDevice, { createComputePipeline } = prototype;
    let compiled = 0;
    prototype.createComputePipeline = function (descriptor) {
      compiled++;
      return createComputePipeline.call(this, descriptor);
    };
    try {
      for (const pretence of [HARDWARE, {}]) {
        using qwen = await loadQwen3(TINY, {
          device: "gpu",
          gpu: wrapGpu(pretence).gpu,
        });
        using engine = await qwen.engine({ slots: 2, context: 128 });
        await engine.warmUp();
        assertEquals(engine.stats.tokens > 0, pretence === HARDWARE);
        assertEquals(engine.stats.cachedTokens, 0);
        if (pretence !== HARDWARE) continue; // as slow as compiling would be
        const before = compiled;
        assert(before > 0);
        const ids = (seed: number) =>
          Array.from({ length: 36 }, (_, i) => (seed + 11 * i) % 200);
        const ask = async (seed: number, options: GenerateOptions) =>
          await engine.submit(ids(seed), { maxTokens: 6, ...options });
        await ask(1, { ignoreEos: true });
        await Promise.all([ask(2, GREEDY), ask(3, { ignoreEos: true })]);
        assertEquals(compiled, before);
      }
    } finally {
      prototype.createComputePipeline = createComputePipeline;
    }
  },
);
