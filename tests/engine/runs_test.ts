/** Several runs of a model at once: each is answered as if it ran alone. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  type GenerateOptions,
  loadQwen3,
  MemoryError,
  type Qwen3,
  type Run,
} from "../../mod.ts";
import type { Asked, Engine } from "../../lib/engine/engine.ts";
import { Runs } from "../../lib/engine/runs.ts";
import { Turns } from "../../lib/model/turns.ts";
import { resolveSampling } from "../../lib/model/sampling.ts";
import { GpuRunner } from "../../lib/gpu/runner.ts";
import type { Rows, RowsSize } from "../../lib/model/rows.ts";
import { eachDevice, gpuTest } from "../support/gpu.ts";
import { type Random, withSeeds } from "../support/random.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { prompted } from "../support/prompted.ts";
import { withLargeValues } from "../support/temp_checkpoint.ts";
import { HARDWARE, wrapGpu } from "../support/wrapped_gpu.ts";

const TINY = new URL("../fixtures/tiny-tied-bf16/", import.meta.url).href;
const GREEDY = { temperature: 0, ignoreEos: true };
const PROMPTS = [
  "Once upon a time",
  "A dog",
  "Tom and his sister wanted to bake a cake for their mom.",
  "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her dog. One sunny day, they went to the park.",
];
const MOST = 24;

/** The caches that are made for runs that share the device. */
function sharedBy(qwen: Qwen3, size?: Partial<RowsSize>) {
  const made = { sizes: [] as RowsSize[], rows: [] as Rows[], pages: 0 };
  const { runner } = qwen, { rows } = runner;
  runner.rows = async function (asked) {
    const one = await rows.call(this, { ...asked, ...size });
    made.sizes.push(asked);
    made.rows.push(one);
    made.pages = one.pages;
    return one;
  };
  return made;
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function idsOf(run: Run): Promise<number[]> {
  return [...(await run).tokenIds];
}

/** Starts something at a random time; checks what it gave. */
async function somebody(
  qwen: Qwen3,
  random: Random,
  expected: readonly number[][],
  logits: Float32Array,
): Promise<void> {
  await pause(random.int(0, 30));
  const which = random.int(0, PROMPTS.length - 1);
  const maxTokens = random.int(1, MOST), what = random.int(0, 7);
  const ender = new AbortController(), { signal } = ender;
  const options = { ...GREEDY, maxTokens, signal };
  if (what === 0) {
    assertAllClose(await qwen.logits([5, 6]), logits, { absolute: 1e-4 });
  } else if (what === 1) await qwen.embed([[5, 6, 7]]);
  else if (what === 2) {
    const both = [which, (which + 1) % PROMPTS.length];
    const { sequences } = await qwen.generateBatch(
      both.map((i) => PROMPTS[i]),
      options,
    );
    for (const [s, { tokenIds }] of sequences.entries()) {
      assertEquals(tokenIds, expected[both[s]].slice(0, maxTokens));
    }
  } else {
    const run = qwen.generate(PROMPTS[which], options);
    const end = what === 3 ? random.int(1, MOST) : MOST;
    if (what === 4) await run;
    else {
      for await (const _ of run) {
        if (random.int(0, 5) === 0) await pause(random.int(0, 5));
        if (run.tokenIds.length < end) continue;
        if (random.int(0, 1) === 0) break;
        ender.abort();
      }
    }
    const ids = run.tokenIds;
    assertEquals(ids, expected[which].slice(0, ids.length));
    if (what > 3) assertEquals(ids.length, maxTokens);
  }
}

eachDevice("what runs at the same time changes no text", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const expected: number[][] = [];
  for (const prompt of PROMPTS) {
    const options = { ...GREEDY, maxTokens: MOST, reuse: false };
    expected.push(await idsOf(qwen.generate(prompt, options)));
  }
  const logits = await qwen.logits([5, 6]), made = sharedBy(qwen);
  await withSeeds(async (draw) => {
    const random = draw();
    await Promise.all(
      Array.from(
        { length: 16 },
        () => somebody(qwen, random, expected, logits),
      ),
    );
  });
  assertEquals(made.rows.length, 1);
});

Deno.test("runs that start together read each prompt once", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const options = { ...GREEDY, maxTokens: 5 };
  using counted = prompted();
  const runs = await Promise.all(
    PROMPTS.map(async (prompt) => await qwen.generate(prompt, options)),
  );
  // The last token of a prompt runs in the first of 5 steps.
  const expected = runs.reduce(
    (sum, { stats }) => sum + stats.promptTokens - 1 + 5,
    0,
  );
  assertEquals(counted.tokens, expected);
});

Deno.test("texts of a batch that wait note nothing of the others' tokens", async () => {
  const turns = new Turns(), many = 20_000, waiting = 150;
  Object.defineProperty(turns, "isFree", { value: false });
  const ended = Promise.withResolvers<void>();
  const start = ({ tokens: [first] }: Asked) => ({
    cachedTokens: () => 0,
    start: () => ({
      signal: new AbortController().signal,
      async *[Symbol.asyncIterator](): AsyncGenerator<number[], void> {
        if (first > 0) await ended.promise;
        for (let i = 0; i < (first > 0 ? 1 : many); i++) yield [i];
      },
    }),
  });
  const never = () => {
    throw new Error("never");
  };
  const reserve = () => Promise.resolve();
  const runs = new Runs({
    turns,
    canShare: () => true,
    alone: never,
    cachedTokens: () => 0,
    engine: () => Promise.resolve({ start, reserve } as unknown as Engine),
    recover: () => false,
  });
  const how = { sampling: resolveSampling({}), reuse: true, eosTokenIds: [] };
  const asked = Array.from(
    { length: 1 + waiting },
    (_, i): Asked => ({ tokens: [i], maxTokens: many, ...how }),
  );
  const consumer = { steady: true, ended: () => false };
  const before = Deno.memoryUsage().heapUsed;
  let count = 0, most = 0;
  for await (const { length } of runs.start(asked).start(consumer)) {
    count += length;
    if (count < many) continue;
    most = Math.max(most, Deno.memoryUsage().heapUsed);
    ended.resolve();
  }
  assertEquals(count, many + waiting);
  const megabytes = (most - before) / 2 ** 20;
  assert(megabytes < 80, `${megabytes} MB`);
});

eachDevice("a run that others join samples as before", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const masked = () => {
    let count = 0;
    const mask = {
      fill(bits: Uint32Array) {
        for (let id = count % 3; id < 2048; id += 3) {
          bits[id >>> 5] |= 1 << (id & 31);
        }
        return true;
      },
      accept: () => void count++,
    };
    return { temperature: 0, mask };
  };
  const all: (() => GenerateOptions)[] = [
    () => ({ temperature: 0 }),
    () => ({ temperature: 1, seed: 5, repetitionPenalty: 1.3 }),
    () => ({ temperature: 0, frequencyPenalty: 1.5, logprobs: 1 }),
    masked,
  ];
  for (const way of all) {
    const options = () => ({ ...way(), maxTokens: 12, ignoreEos: true });
    const alone = await idsOf(qwen.generate("Tom", options()));
    const run = qwen.generate("Tom", options());
    const batch = qwen.generateBatch(["A dog", "A cat"], {
      ...options(),
      mask: undefined,
    });
    let others: Promise<number[]> | undefined;
    for await (const { logprobs } of run) {
      assertEquals(logprobs !== undefined, "logprobs" in way());
      if (run.tokenIds.length !== 4) continue;
      others = idsOf(qwen.generate("Tom", options()));
      await pause(5);
    }
    assertEquals([run.tokenIds, await others], [alone, alone]);
    // Each text of a batch has the seed that it has alone.
    const { seed = 0, ...rest } = options();
    const ids = (await batch).sequences.map(({ tokenIds }) => tokenIds);
    if ("mask" in rest) continue;
    const second = qwen.generate("A cat", { ...rest, seed: seed + 1 });
    assertEquals(ids[1], await idsOf(second));
  }
});

eachDevice("a batch runs beside others with its seeds", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const options = { temperature: 1, seed: 9, maxTokens: 10, ignoreEos: true };
  const prompts = PROMPTS.slice(0, 3);
  const alone = await qwen.generateBatch(prompts, options);
  const first = qwen.generate("Tom", { ...GREEDY, maxTokens: 20 });
  const running = idsOf(first);
  const pieces = Array.fromAsync(qwen.generateBatch(prompts, options));
  const stopped = qwen.generateBatch(prompts, { ...options, stop: "a" });
  const { sequences } = await stopped;
  for (const [s, { tokenIds }] of alone.sequences.entries()) {
    const own = (await pieces).filter(({ sequence }) => sequence === s);
    const ids = own.map(({ tokenId }) => tokenId).filter((id) => id !== null);
    assertEquals(ids, tokenIds);
    const short = sequences[s].tokenIds;
    assertEquals(short, tokenIds.slice(0, short.length));
  }
  assert(sequences.some(({ finishReason }) => finishReason === "stop"));
  assertEquals((await running).length, 20);
  assertEquals(first.stats.cachedTokens, 0);
});

eachDevice("the cache grows as runs need it", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const made = sharedBy(qwen, { firstTexts: [144] });
  const long = (from: number) =>
    Array.from({ length: 150 }, (_, i) => 300 + (from + 7 * i) % 900);
  const options = { ...GREEDY, maxTokens: 4 };
  const alone: number[][] = [];
  for (const from of [0, 1, 2]) {
    alone.push(await idsOf(qwen.generate(long(from), options)));
  }
  const some = { ...GREEDY, maxTokens: 60 }, prompts = ["A dog", "Tom"];
  const expected: number[][] = [];
  for (const prompt of prompts) {
    expected.push(await idsOf(qwen.generate(prompt, some)));
  }
  const short = prompts.map((prompt) => idsOf(qwen.generate(prompt, some)));
  await short[0];
  const [size] = made.sizes, [rows] = made.rows, first = made.pages;
  assert(Math.max(...size.firstTexts!) <= 1024); // a short prompt takes no whole context
  assertEquals(first, Math.ceil(144 / rows.page));
  const together = await Promise.all(
    [0, 1, 2].map((from) => idsOf(qwen.generate(long(from), options))),
  );
  assertEquals(together, alone);
  assertEquals(await Promise.all(short), expected);
  assert(rows.pages > first && rows.pages <= rows.mostPages, `${rows.pages}`);
});

Deno.test("a cache that can't grow ends only the runs that it can't hold", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const { runner } = qwen, { rows } = runner;
  runner.rows = async function (size) {
    const made = await rows.call(this, { ...size, firstTexts: [144] });
    made.grow = (pages) => {
      throw new MemoryError(`no memory for ${pages} pages`);
    };
    return made;
  };
  const long = Array.from({ length: 200 }, (_, i) => 300 + i);
  const options = { ...GREEDY, maxTokens: 70 };
  const expected: number[][] = [];
  for (const prompt of ["A dog", "Tom", "The"]) {
    expected.push(await idsOf(qwen.generate(prompt, options)));
  }
  const first = idsOf(qwen.generate("A dog", options));
  const others = ["Tom", "The"].map((prompt) =>
    idsOf(qwen.generate(prompt, options))
  );
  await assertRejects(
    async () => await qwen.generate(long, options),
    MemoryError,
    "no memory for ",
  );
  assertEquals([await first, ...await Promise.all(others)], expected);
});

/** Generates alone; calls `then` while the second chunk of tokens is computed. */
async function joined(
  { runner }: Qwen3,
  run: Run,
  then: () => void,
): Promise<number[]> {
  const { generate } = runner;
  runner.generate = async function* (...call) {
    runner.generate = generate;
    let chunks = 0;
    for await (const ids of generate.apply(runner, call)) {
      yield ids;
      if (++chunks === 1) then();
    }
  };
  return await idsOf(run);
}

eachDevice("a run goes on if there is no memory for others", async (device) => {
  const options = { ...GREEDY, maxTokens: 12 };
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const alone = await idsOf(qwen.generate("A dog", options));
  const { runner } = qwen, { rows } = runner;
  let caches = 0;
  runner.rows = () => {
    caches++;
    return Promise.reject(new MemoryError("no memory for a cache"));
  };
  const refused = (run: PromiseLike<unknown>) =>
    assertRejects(async () => await run, MemoryError, "no memory for a cache");
  // Before it has begun.
  const first = idsOf(qwen.generate("A dog", { ...options, reuse: false }));
  await Promise.all(["Tom", "The"].map((p) => refused(qwen.generate(p))));
  assertEquals(await first, alone);
  assert(caches > 0);
  caches = 0;
  // After some tokens.
  const run = qwen.generate("A dog", options);
  let other: Promise<unknown> | undefined;
  await joined(qwen, run, () => other = refused(qwen.generate("Tom", options)));
  await other;
  assertEquals([run.tokenIds, caches], [alone, 1]);
  // Once there is memory, they run together.
  runner.rows = rows;
  const runs = [1, 2].map(() => idsOf(qwen.generate("A dog", options)));
  assertEquals(await Promise.all(runs), [alone, alone]);
});

eachDevice("runs that paused go on if there is no memory", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const all: GenerateOptions[] = [
    { temperature: 0 },
    { temperature: 1, seed: 5, repetitionPenalty: 1.3 },
    { temperature: 1, seed: 5, frequencyPenalty: 1.5, logprobs: 1 },
  ];
  qwen.runner.rows = () => Promise.reject(new MemoryError("no memory"));
  for (const way of all) {
    const options = { ...way, maxTokens: 12, ignoreEos: true };
    const alone = await idsOf(qwen.generate("A dog", options));
    const run = qwen.generate("A dog", options);
    let first: Promise<number[]> | undefined;
    for await (const _ of run) {
      first ??= idsOf(qwen.generate("A dog", options));
      await pause(1);
    }
    assertEquals([run.tokenIds, await first], [alone, alone]);
    await assertRejects(
      async () => await qwen.generateBatch(["A dog", "Tom"], options),
      MemoryError,
      "no memory",
    );
  }
});

eachDevice("a run goes on if a cache can't grow for it", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const made = sharedBy(qwen, { firstTexts: [192] });
  const options = { ...GREEDY, maxTokens: 12 };
  const long = Array.from({ length: 200 }, (_, i) => 300 + i);
  const alone = await idsOf(qwen.generate(long, options));
  const few = { ...GREEDY, maxTokens: 8 };
  const short = await idsOf(qwen.generate("Tom", few));
  const pair = () =>
    Promise.all([1, 2].map(() => idsOf(qwen.generate("Tom", few))));
  assertEquals(await pair(), [short, short]);
  const [rows] = made.rows, { grow } = rows;
  rows.grow = () => Promise.reject(new MemoryError("no memory for pages"));
  const run = qwen.generate(long, options);
  let other: Promise<unknown> | undefined;
  await joined(qwen, run, () =>
    other = assertRejects(
      async () => await qwen.generate("Tom", few),
      MemoryError,
      "no memory for pages",
    ));
  await other;
  assertEquals(run.tokenIds, alone);
  assertEquals(await pair(), [short, short]);
  rows.grow = grow;
  const last = qwen.generate(long, options);
  let newcomer: Promise<number[]> | undefined;
  await joined(qwen, last, () => newcomer = idsOf(qwen.generate("Tom", few)));
  assertEquals([last.tokenIds, await newcomer], [alone, short]);
  assertEquals(made.rows.length, 1);
});

eachDevice("a run goes where its prompt is cached", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const ids = (from: number) =>
    Array.from({ length: 150 }, (_, i) => 300 + (from + 7 * i) % 900);
  const options = { ...GREEDY, maxTokens: 2 };
  await Promise.all(
    [1, 2, 3].map((from) => idsOf(qwen.generate(ids(from), options))),
  );
  const cached = async (prompt: number[], more = {}) => {
    const run = await qwen.generate(prompt, { ...options, ...more });
    return run.stats.cachedTokens;
  };
  for (const from of [2, 3]) assert(await cached(ids(from)) >= 96, `${from}`);
  assertEquals(await cached(ids(2), { reuse: false }), 0); // alone
  assertEquals(await cached([...ids(2), 5]), 150);
});

eachDevice("engines and runs go on at the same time", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const options = { ...GREEDY, maxTokens: 16 };
  const alone = await idsOf(qwen.generate("A dog", options));
  using engine = await qwen.engine({ slots: 2, context: 64 });
  const runs = [
    qwen.generate("A dog", options),
    engine.submit("A dog", options),
    qwen.generate("A dog", options),
    engine.submit("A dog", options),
  ];
  const batch = qwen.generateBatch(["A dog", "Tom", "A dog"], options);
  for (const ids of await Promise.all(runs.map(idsOf))) {
    assertEquals(ids, alone);
  }
  const { sequences } = await batch;
  for (const s of [0, 2]) assertEquals(sequences[s].tokenIds, alone);
});

gpuTest("no memory is left of runs that shared the device", async () => {
  const qwen = await loadQwen3(undefined, { device: "gpu" });
  const { runner } = qwen;
  assert(runner instanceof GpuRunner);
  const options = { ...GREEDY, maxTokens: 8 };
  const several = () =>
    Promise.all(
      PROMPTS.map((prompt) => idsOf(qwen.generate(prompt, options))),
    );
  const round = async () => {
    const abandoned = qwen.generate("A", { ...options, maxTokens: 500 });
    await abandoned[Symbol.asyncIterator]().next();
    await several();
  };
  // Each number of rows has a pass of its own, and which ones there are is chance.
  let rounds = 0, same = 0;
  for (; same < 3; rounds++) {
    const { allocated } = runner.gpu;
    await round();
    same = runner.gpu.allocated === allocated ? same + 1 : 0;
    assert(rounds < 20, `${runner.gpu.allocated - allocated} bytes more`);
  }
  qwen[Symbol.dispose]();
  await runner.gpu.device.lost;
  assertEquals(runner.gpu.allocated, 0);
});

gpuTest("runs at once go on when f16 can't hold a value", async () => {
  await using checkpoint = await withLargeValues(TINY);
  const { path } = checkpoint, options = { ...GREEDY, maxTokens: 6 };
  const prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 10]];
  using exact = await loadQwen3(path, { device: "gpu", precision: "f32" });
  const expected: number[][] = [];
  for (const prompt of prompts) {
    expected.push(await idsOf(exact.generate(prompt, options)));
  }
  using qwen = await loadQwen3(path, { device: "gpu" });
  const got = prompts.map((prompt) => idsOf(qwen.generate(prompt, options)));
  assertEquals(await Promise.all(got), expected);
});

gpuTest("runs at once move to the CPU if the GPU fails", async () => {
  const { gpu, devices } = wrapGpu(HARDWARE);
  const notices: string[] = [];
  using qwen = await loadQwen3(undefined, {
    gpu,
    onNotice: (notice) => notices.push(notice),
  });
  const options = { ...GREEDY, maxTokens: 8 };
  using exact = await loadQwen3(undefined, { device: "cpu" });
  const alone = await idsOf(exact.generate("A dog", options));
  await Promise.all([1, 2].map(() => idsOf(qwen.generate("A dog", options))));
  notices.length = 0;
  devices[0].destroy();
  const runs = [1, 2, 3].map(() => idsOf(qwen.generate("A dog", options)));
  assertEquals(await Promise.all(runs), [alone, alone, alone]);
  assertEquals([qwen.device.kind, notices.length], ["cpu", 1]);
});

gpuTest("debug checks runs at the same time", async () => {
  using qwen = await loadQwen3(TINY, { device: "gpu", debug: true });
  const options = { ...GREEDY, maxTokens: 3 };
  const alone = await idsOf(qwen.generate([1, 2, 3], options));
  const runs = [1, 2].map(() => idsOf(qwen.generate([1, 2, 3], options)));
  const logits = await qwen.logits([1, 2, 3]);
  assertEquals(await Promise.all(runs), [alone, alone]);
  assertEquals(logits.length, qwen.config.vocabSize);
});
