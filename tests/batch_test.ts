/** qwen.generateBatch returns for each prompt what qwen.generate returns for it alone. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { GpuSequences } from "../lib/gpu/sequences.ts";
import { FEW_ROWS } from "../lib/dispatch/shapes.ts";
import { GpuOps } from "../lib/gpu/ops.ts";
import { GpuRunner } from "../lib/gpu/runner.ts";
import { loadQwen3, type Qwen3 } from "../mod.ts";
import { oneByOne, promptsOf, read } from "./support/batch.ts";
import { relativeError } from "./support/golden.ts";
import { eachDevice, gpuTest, someOf } from "./support/gpu.ts";
import { copyCheckpoint, withLargeValues } from "./support/temp_checkpoint.ts";
import { HARDWARE, wrapGpu } from "./support/wrapped_gpu.ts";

const TINY = new URL("fixtures/tiny-tied-bf16/", import.meta.url).href;
const MOE = new URL("fixtures/tiny-moe-bf16/", import.meta.url).href;
/** One sequence, a few, past a power of 2, and one more than a workgroup takes. */
const SIZES = [1, 2, 3, 8, 17, FEW_ROWS + 1], FEW_SIZES = [1, 3, FEW_ROWS + 1];

/** Registers a test for the CPU and for the GPU, as {@linkcode eachDevice}, both in f32. */
const inF32 = (
  name: string,
  fn: (
    load: (model?: string, context?: number) => Promise<Qwen3>,
    device: "cpu" | "gpu",
  ) => Promise<void>,
) =>
  eachDevice(name, (device) =>
    fn(
      (model, context) =>
        loadQwen3(model, { device, context, precision: "f32" }),
      device,
    ));

for (
  const [what, model] of [
    ["a batch", undefined],
    ["a batch of a mixture of experts", MOE],
  ] as const
) {
  // Each size has kernels of its own.
  const sizes = { cpu: FEW_SIZES, gpu: someOf(FEW_SIZES, 2) };
  inF32(
    `${what} writes the same greedy texts as its prompts alone`,
    async (load, device) => {
      using qwen = await load(model);
      const options = { temperature: 0, maxTokens: 12, ignoreEos: true };
      const prompts = promptsOf(Math.max(...sizes[device]));
      const alone = await oneByOne(qwen, prompts, options);
      for (const size of sizes[device]) {
        const run = qwen.generateBatch(prompts.slice(0, size), options);
        const together = await read(run);
        for (const [s, { tokenIds }] of together.entries()) {
          const expected = alone[s].tokenIds;
          const at = tokenIds.findIndex((id, i) => id !== expected[i]);
          if (at < 0) continue;
          // Only a tie may go the other way.
          const logits = await qwen.logits([
            ...prompts[s],
            ...expected.slice(0, at),
          ]);
          const gap = logits[expected[at]] - logits[tokenIds[at]];
          assert(gap < 1e-4, `${s} of ${size}: step ${at} is ${gap} worse`);
        }
        const { sequences, tokens, promptTokens, summary } = run.stats;
        assertEquals([sequences, tokens], [size, 12 * size]);
        const all = prompts.slice(0, size).flat().length;
        assertEquals(promptTokens, all);
        assertMatch(summary, new RegExp(` ${all} prompt tokens? at .*/s, `));
        assert(run.stats.decodeTokensPerSecond > 0);
      }
    },
  );
}

gpuTest(
  "a batch has the same logits as its prompts alone",
  async (_, trial) => {
    const bounds = [["f32", 1e-4], ["auto", 1e-3]] as const;
    for (const [precision, most] of trial.some(bounds, 1)) {
      using qwen = await loadQwen3(undefined, { device: "gpu", precision });
      const { runner } = qwen;
      assert(runner instanceof GpuRunner);
      const { gpu, config, weights, cacheDtype: dtype } = runner;
      const { vocabSize } = config;
      using ops = new GpuOps(gpu, config);
      // Hardware multiplies many rows in f16 and few in f32, each within 2e-3.
      const bound = precision === "auto" && !gpu.software ? 4e-3 : most;
      /** Logits after each prompt, and after one more token. */
      const alone: [Float32Array, Float32Array][] = [];
      const next = (s: number) => 500 + s;
      for (const [s, prompt] of promptsOf(SIZES.at(-1)!).entries()) {
        const all = await qwen.logits([...prompt, next(s)], { all: true });
        const end = all.length - vocabSize;
        alone.push([all.slice(end - vocabSize, end), all.slice(end)]);
      }
      const sizes = precision === "f32" ? SIZES : FEW_SIZES;
      for (const sequences of trial.some(sizes, 2)) {
        const prompts = promptsOf(sequences);
        using batch = await GpuSequences.create(ops, weights, {
          sequences,
          context: 32,
          dtype,
        });
        const compare = (logits: Float32Array, step: 0 | 1) => {
          for (let s = 0; s < sequences; s++) {
            const row = logits.subarray(s * vocabSize, (s + 1) * vocabSize);
            const error = relativeError(row, alone[s][step]);
            assert(
              error < bound,
              `${s} of ${sequences}, ${precision}: ${error}`,
            );
          }
        };
        // Chunks of 8 tokens: prompts take up to three.
        compare(await (await batch.prefillAll(prompts, { rows: 8 })).read(), 0);
        batch.state.tokens.write(
          0,
          Uint32Array.from(prompts, (_, s) => next(s)),
        );
        batch.pass(batch.decodeShape).plan.run({
          length: Math.max(...batch.cache.lengths),
        });
        compare(await batch.pass(batch.decodeShape).logits.read(), 1);
      }
    }
  },
);

gpuTest(
  "the passes that list shaders to compile are the ones that run",
  async () => {
    using qwen = await loadQwen3(TINY, { device: "gpu" });
    const { runner } = qwen;
    assert(runner instanceof GpuRunner);
    using ops = new GpuOps(runner.gpu, runner.config);
    let recorded = 0;
    const embed = ops.embed.bind(ops);
    ops.embed = (table, tokens) => (recorded++, embed(table, tokens));
    for (const sequences of [1, 5, 10]) {
      using batch = await GpuSequences.create(ops, runner.weights, {
        sequences,
        context: 64,
        dtype: runner.cacheDtype,
      });
      const prompts = Array.from(
        { length: sequences },
        (_, s) => Array.from({ length: 40 + s }, () => 1),
      );
      recorded = 0;
      assert(batch.promptShaders(prompts, 64).length > 0);
      await batch.prefillAll(prompts, { rows: 64 });
      batch.pass(batch.decodeShape).plan.seal();
      assertEquals(
        recorded,
        sequences + 1,
        "a pass for each prompt, and one for decode",
      );
    }
  },
);

inF32("sequence s samples with seed + s", async (load) => {
  using qwen = await load();
  const prompts = ["Once upon a time", "A dog", "Once upon a time"];
  for (
    const sampling of [
      { temperature: 1, topK: 0, seed: 5 },
      { temperature: 0.9, topK: 20, topP: 0.9, seed: 2 ** 32 - 2 },
      {
        temperature: 1.2,
        topK: 0,
        topP: 0.9,
        repetitionPenalty: 1.3,
        seed: 3,
      },
    ]
  ) {
    const options = { ...sampling, maxTokens: 12 };
    const together = await read(qwen.generateBatch(prompts, options));
    assertEquals(together, await oneByOne(qwen, prompts, options));
    assert(together[0].text !== together[2].text);
  }
});

inF32("a sequence that ends leaves the others running", async (load) => {
  using plain = await load();
  const prompts = ["Once upon a time", "The dog", [1, 2, 3], "Tom and Lily"];
  const options = { temperature: 0, maxTokens: 30 };
  const whole = await oneByOne(plain, prompts, options);
  const end = whole[0].tokenIds[7], stop = whole[1].text.slice(40, 46);
  await using changed = await copyCheckpoint(
    new URL("../models/stories-3m/", import.meta.url),
    { "generation_config.json": JSON.stringify({ eos_token_id: [end] }) },
  );
  using qwen = await load(changed.path);
  const both = { ...options, stop };
  const together = await read(qwen.generateBatch(prompts, both));
  assertEquals(together, await oneByOne(qwen, prompts, both));
  assertEquals(together[0].finishReason, "stop");
  assertEquals(together[0].tokenIds.at(-1), end);
  assert(together[0].tokenIds.length <= 8);
  assertEquals(together[1].finishReason, "stop");
  assert(!together[1].text.includes(stop));
  const lengths = together.map(({ tokenIds }) => tokenIds.length);
  assert(new Set(lengths).size > 2, `they end after ${lengths} tokens`);
});

inF32("the context limits each sequence on its own", async (load) => {
  using qwen = await load(undefined, 16);
  // Three continue after the second is full, which must not affect them.
  const prompts = [12, 15, 3, 9].map((n, s) =>
    Array.from({ length: n }, (_, i) => 300 + 40 * s + i)
  );
  const options = { temperature: 0, ignoreEos: true };
  const together = await read(qwen.generateBatch(prompts, options));
  assertEquals(together.map(({ tokenIds }) => tokenIds.length), [4, 1, 13, 7]);
  for (const { finishReason } of together) assertEquals(finishReason, "length");
  assertEquals(together, await oneByOne(qwen, prompts, options));
});

inF32(
  "a batch of a checkpoint without a tokenizer has no text",
  async (load) => {
    using qwen = await load(TINY);
    const prompts = promptsOf(3), options = { temperature: 0, maxTokens: 4 };
    const together = await read(qwen.generateBatch(prompts, options));
    assertEquals(together, await oneByOne(qwen, prompts, options));
    assertEquals(together.map(({ text }) => text), ["", "", ""]);
    assertThrows(() => qwen.generateBatch([[1], "words"]), Error, "has no tok");
  },
);

inF32(
  "a signal or the consumer ends a batch, and another can run",
  async (load) => {
    using qwen = await load();
    const prompts = promptsOf(3), options = { temperature: 0, maxTokens: 20 };
    const whole = await read(qwen.generateBatch(prompts, options));
    const abort = new AbortController();
    const aborted = qwen.generateBatch(prompts, {
      ...options,
      signal: abort.signal,
    });
    let pieces = 0;
    for await (const _ of aborted) if (++pieces === 8) abort.abort();
    const left = qwen.generateBatch(prompts, options);
    for await (const { sequence } of left) if (sequence === 1) break;
    await assertRejects(
      () => read(left),
      Error,
      "Cannot iterate over a run: it was iterated over",
    );
    assertEquals([aborted.stats.tokens, pieces], [8, 8]);
    assertEquals(left.sequences[1].tokenIds.length, 1);
    for (const { sequences } of [aborted, left]) {
      for (const [s, { text, finishReason }] of sequences.entries()) {
        assertEquals(finishReason, "aborted");
        assert(whole[s].text.startsWith(text), text);
      }
    }
    const never = qwen.generateBatch(prompts, { signal: AbortSignal.abort() });
    for (const { tokenIds, finishReason } of await read(never)) {
      assertEquals([tokenIds, finishReason], [[], "aborted"]);
    }
    for await (const _ of qwen.generateBatch(prompts, options)) {
      await qwen.logits([1]); // replaces a batch that is between two tokens
      break;
    }
    assertEquals(await read(qwen.generateBatch(prompts, options)), whole);
  },
);

Deno.test("more prompts than are computed at a time wait for the others", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const options = { temperature: 0, maxTokens: 3, ignoreEos: true };
  const prompts = promptsOf(70), alone = await oneByOne(qwen, prompts, options);
  // Which texts share a step depends on time, and results of a new size are kept. What
  // stays of each batch would make every round grow.
  const memory: number[] = [];
  do {
    const together = await read(qwen.generateBatch(prompts, options));
    assertEquals(together, alone);
    memory.push(qwen.memoryBytes);
    assert(memory.length < 10, `memory grows: ${memory.join(", ")}`);
  } while (memory.at(-1) !== memory.at(-2));
});

inF32(
  "a batch has log probabilities as its prompts alone",
  async (load) => {
    using qwen = await load();
    const options = { temperature: 0, maxTokens: 5, logprobs: 2 };
    const prompts = promptsOf(3);
    const { sequences } = await qwen.generateBatch(prompts, options);
    for (const [s, { tokenIds, logprobs }] of sequences.entries()) {
      const alone = await qwen.generate(prompts[s], options);
      assertEquals(tokenIds, alone.tokenIds);
      for (const [i, { top, ...own }] of logprobs!.entries()) {
        const { top: expected, ...one } = alone.logprobs![i];
        assertEquals(
          top.map(({ tokenId }) => tokenId),
          expected.map(({ tokenId }) => tokenId),
        );
        assert(Math.abs(own.logprob - one.logprob) < 1e-3);
      }
    }
  },
);

gpuTest("batches free their memory on the device", async () => {
  using qwen = await loadQwen3(undefined, { device: "gpu" });
  assert(qwen.runner instanceof GpuRunner);
  const { gpu } = qwen.runner;
  // Each shape has a pass of its own, and which ones there are is chance.
  let rounds = 0, same = 0;
  for (; same < 2; rounds++) {
    const { allocated } = gpu;
    await read(qwen.generateBatch(promptsOf(5), { maxTokens: 3 }));
    for await (const _ of qwen.generateBatch(promptsOf(5))) break;
    same = gpu.allocated === allocated ? same + 1 : 0;
    assert(rounds < 12, `${gpu.allocated - allocated} bytes more`);
  }
});

gpuTest("a value beyond f16 switches a batch's cache to f32", async (gpu) => {
  await using checkpoint = await withLargeValues(TINY);
  using exact = await loadQwen3(checkpoint.path, {
    device: "gpu",
    precision: "f32",
  });
  using qwen = await loadQwen3(checkpoint.path, { device: "gpu" });
  // The second sequence fills its context while the others continue.
  const context = qwen.context;
  const prompts = [[1], Array.from({ length: context - 1 }, (_, i) => i % 50), [
    7,
  ]];
  const options = { temperature: 0, maxTokens: 4, ignoreEos: true };
  for (let round = 0; round < 2; round++) {
    const together = await read(qwen.generateBatch(prompts, options));
    // On hardware auto multiplies in f16, by other kernels for a batch: ties may differ.
    if (gpu.software) {
      assertEquals(together, await oneByOne(exact, prompts, options));
    }
    assertEquals(together.map(({ tokenIds }) => tokenIds.length), [4, 1, 4]);
    const caches = qwen.device.choices
      .filter(({ what }) => what === "KV cache").map(({ value }) => value);
    assertEquals(caches, ["f16", "f32"]);
  }
});

gpuTest("debug checks a batch", async () => {
  const options = { temperature: 0, maxTokens: 3 };
  using qwen = await loadQwen3(TINY, { device: "gpu", debug: true });
  using plain = await loadQwen3(TINY, { device: "cpu" });
  const prompts = promptsOf(3);
  const together = await read(qwen.generateBatch(prompts, options));
  assertEquals(together, await oneByOne(plain, prompts, options));
});

gpuTest(
  "a batch on a lost device continues on the CPU under auto",
  async () => {
    const { gpu, devices } = wrapGpu(HARDWARE);
    using qwen = await loadQwen3(undefined, { gpu });
    devices[0].destroy();
    const options = { temperature: 0, maxTokens: 5 };
    const together = await read(qwen.generateBatch(promptsOf(2), options));
    assertEquals(qwen.device.kind, "cpu");
    assertEquals(together, await oneByOne(qwen, promptsOf(2), options));
  },
);

Deno.test("a refused batch names the prompt at fault", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu", context: 16 });
  const refused: [number[][], string][] = [
    [[], "there are no prompts, there must be at least one"],
    [[[1], []], "prompt 1 is empty, it must have at least one token"],
    [
      [[1], [2], Array(17).fill(1)],
      "prompt 2 has 17 tokens, the context has room for 16",
    ],
    [
      [[1], Array(16).fill(1)],
      "prompt 1 has 16 tokens, the context of 16 has room for no reply",
    ],
    [[[1], [2, -1]], "token 1 of prompt 1 is -1, ids must be"],
    [new Array(2), "the prompt is undefined, must be a string"],
  ];
  for (const [prompts, message] of refused) {
    assertThrows(
      () => qwen.generateBatch(prompts),
      Error,
      `Cannot generate: ${message}`,
    );
  }
});
