/** Awaited runs, and runs that are consumed twice. */
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import {
  type BatchRun,
  type GenerateOptions,
  loadQwen3,
  type Reply,
  type Run,
  type RunStats,
} from "../mod.ts";
import { FAULT } from "../lib/dispatch/sampling.ts";
import {
  adjusted,
  historyOf,
  logprobsOf,
  resolveSampling,
  sample,
} from "../lib/model/sampling.ts";
import { GpuRunner } from "../lib/gpu/runner.ts";
import { eachDevice, gpuTest } from "./support/gpu.ts";
import { withLargeValues } from "./support/temp_checkpoint.ts";
import { scriptedCheckpoint } from "./support/scripted_checkpoint.ts";

const TINY = new URL("fixtures/tiny-tied-bf16/", import.meta.url).href;
const PROMPT = "Once upon a time";
const GREEDY = { temperature: 0, maxTokens: 8 };
const AGAIN = "call generate again for another run";

/** What an iterated run has in the end, as an awaited one gives it. */
async function iterated(run: Run): Promise<Omit<Reply, "stats">> {
  for await (const _ of run);
  const { text, reasoning, toolCalls, tokenIds, finishReason } = run;
  return { text, reasoning, toolCalls, tokenIds, finishReason: finishReason! };
}

/** What does not depend on the clock. */
function counts({ sequences, promptTokens, tokens, sampling }: RunStats) {
  return { sequences, promptTokens, tokens, sampling };
}

eachDevice("an awaited run gives the whole reply", async (device) => {
  using qwen = await loadQwen3(undefined, { device });
  const run = qwen.generate(PROMPT, GREEDY);
  const reply = await run;
  const expected = qwen.generate(PROMPT, {
    ...GREEDY,
    seed: run.stats.sampling.seed,
  });
  const { stats, ...rest } = reply;
  assertEquals(rest, await iterated(expected));
  assertEquals(rest.finishReason, "length");
  assertEquals(rest.text, ", there was a little girl named Lily");
  assertEquals(counts(stats), counts(expected.stats));
  assertEquals([stats.promptTokens, stats.tokens], [5, 8]);
  // The run itself has it too.
  assertEquals([run.text, run.finishReason], [rest.text, "length"]);
});

Deno.test("an awaited run has the reasoning and the calls", async () => {
  const call = '{"name": "f", "arguments": {"a": 1}}';
  await using checkpoint = await scriptedCheckpoint({
    reply: `<think>\nHm.\n</think>\n\nSo.\n<tool_call>\n${call}\n</tool_call>`,
    template:
      '{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}{{ "\\n" }}',
  });
  using qwen = await loadQwen3(checkpoint.path, { device: "cpu" });
  const { text, reasoning, toolCalls, finishReason, tokenIds, ...stats } =
    await qwen.generate([{ role: "user", content: "Hi" }], {
      temperature: 0,
      tools: [{ type: "function", function: { name: "f" } }],
    });
  assertEquals([text, reasoning, finishReason], ["So.", "Hm.", "tool_calls"]);
  assertEquals(toolCalls.map((one) => one.function), [
    { name: "f", arguments: { a: 1 } },
  ]);
  assert(tokenIds.length > 10);
  assertEquals(Object.keys(stats), ["stats"]);
});

eachDevice("log probabilities come with each token", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const options = { ...GREEDY, maxTokens: 12, presencePenalty: 0.5 };
  const run = qwen.generate(PROMPT, { ...options, logprobs: 3 });
  const pieces = await Array.fromAsync(run);
  assertEquals(pieces.map(({ tokenId }) => tokenId), run.tokenIds);
  const plain = await qwen.generate(PROMPT, options);
  assertEquals(run.tokenIds, plain.tokenIds); // they change nothing
  const ids = qwen.tokenizer.encode(PROMPT), { vocabSize } = qwen.config;
  const all = await qwen.logits([...ids, ...run.tokenIds], { all: true });
  const { sampling } = run.stats, history = historyOf(vocabSize, ids);
  for (const [i, { tokenId, logprobs }] of pieces.entries()) {
    const at = (ids.length + i - 1) * vocabSize;
    const row = all.slice(at, at + vocabSize);
    const scores = adjusted(row, sampling, history);
    const { logprob, top } = logprobsOf(scores, tokenId!, 3);
    assertAlmostEquals(logprobs!.logprob, logprob, 1e-3);
    assertEquals(
      logprobs!.top.map(({ tokenId }) => tokenId),
      top.map(({ tokenId }) => tokenId),
    );
    assertEquals(logprobs!.top[0].tokenId, tokenId); // greedy
    history[tokenId!]++;
  }
  // Each sequence of a batch has its own, and none that was not asked for.
  const batch = qwen.generateBatch([PROMPT, "A dog"], {
    ...options,
    logprobs: 0,
  });
  for await (const { sequence, tokenId, logprobs } of batch) {
    const own = batch.sequences[sequence].tokenIds;
    assertEquals([own.at(-1), logprobs!.top], [tokenId, []]);
    const one = sequence === 0 ? pieces[own.length - 1].logprobs! : undefined;
    if (one) assertAlmostEquals(logprobs!.logprob, one.logprob, 1e-3);
    assert(logprobs!.logprob < 0);
  }
  for await (const piece of qwen.generate(PROMPT, options)) {
    assert(!("logprobs" in piece));
  }
  // An awaited reply has them all.
  const all3 = pieces.map(({ logprobs }) => logprobs);
  assertEquals<unknown>(run.logprobs, all3);
  const awaited = await qwen.generate(PROMPT, { ...options, logprobs: 0 });
  assertEquals(awaited.logprobs?.length, awaited.tokenIds.length);
  assert(!("logprobs" in await qwen.generate(PROMPT, options)));
});

eachDevice("penalties and biases change what is generated", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const ids = async (options: GenerateOptions) =>
    (await qwen.generate(PROMPT, { ...GREEDY, maxTokens: 40, ...options }))
      .tokenIds;
  const plain = await ids({});
  const penalties = { frequencyPenalty: 2, presencePenalty: 1.5 };
  const penalized = await ids(penalties);
  assert(penalized.join() !== plain.join());
  const prompt = qwen.tokenizer.encode(PROMPT), { vocabSize } = qwen.config;
  const all = await qwen.logits([...prompt, ...penalized], { all: true });
  const sampling = resolveSampling({ temperature: 0, ...penalties });
  const history = historyOf(vocabSize, prompt);
  for (const [i, id] of penalized.entries()) {
    const at = (prompt.length + i - 1) * vocabSize;
    const scores = adjusted(all.slice(at, at + vocabSize), sampling, history);
    assertEquals(sample(scores, sampling, i), id, `token ${i}`);
    history[id]++;
  }
  const [first] = plain;
  const without = await ids({ logitBias: { [first]: -100 } });
  assert(!without.includes(first));
  const forced = await ids({ logitBias: { 77: 100 } });
  assertEquals(new Set(forced), new Set([77]));
  assertThrows(
    () => qwen.generate(PROMPT, { logitBias: { 1_000_000: 1 } }),
    RangeError,
    'Cannot sample: logitBias has token "1000000", must have ids from 0 to ',
  );
});

gpuTest("penalties count tokens from before the cache became f32", async () => {
  // Keys and values of the prompt fit f16, those of the first token do not.
  await using checkpoint = await withLargeValues(TINY, 15);
  const options = { temperature: 0, frequencyPenalty: -2, ignoreEos: true };
  const run = async (precision: "auto" | "f32") => {
    const { path } = checkpoint;
    using qwen = await loadQwen3(path, { device: "gpu", precision });
    const dtypes: string[] = [];
    const run = qwen.generate([20], { ...options, maxTokens: 8 });
    for await (const _ of run) {
      assert(qwen.runner instanceof GpuRunner);
      dtypes.push(qwen.runner.cacheDtype);
    }
    return { dtypes, ids: run.tokenIds };
  };
  const { dtypes, ids } = await run("auto");
  assertEquals([dtypes[0], dtypes.at(-1)], ["f16", "f32"]);
  assertEquals(ids, (await run("f32")).ids);
  assert(new Set(ids).size < ids.length, `${ids}`);
});

eachDevice("an awaited batch gives a reply for each prompt", async (device) => {
  using qwen = await loadQwen3(undefined, { device });
  const prompts = [PROMPT, "A dog", "The cat sat"];
  const run = qwen.generateBatch(prompts, GREEDY);
  const { sequences, stats } = await run;
  assertEquals(await run, { sequences, stats });
  for (const [i, { promptTokens, ...rest }] of sequences.entries()) {
    const { stats, ...alone } = await qwen.generate(prompts[i], GREEDY);
    assertEquals([rest, promptTokens], [alone, stats.promptTokens]);
  }
  assertEquals(sequences.length, 3);
  assertEquals([stats.sequences, stats.tokens], [3, 24]);
});

Deno.test("a run is consumed once, by await or by iteration", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const start: (() => Run | BatchRun)[] = [
    () => qwen.generate(PROMPT, GREEDY),
    () => qwen.generateBatch([PROMPT], GREEDY),
  ];
  for (const make of start) {
    const awaited = make();
    const replies = [await awaited, await awaited];
    assert(replies[0] === replies[1]);
    await assertRejects(
      () => Array.fromAsync<unknown>(awaited),
      Error,
      `Cannot iterate over a run: it was awaited, ${AGAIN}`,
    );
    const whole = make();
    await Array.fromAsync<unknown>(whole);
    const begun = make();
    for await (const _ of begun) break;
    for (const run of [whole, begun]) {
      await assertRejects(
        async () => await run,
        Error,
        `Cannot await a run: it was iterated over, ${AGAIN}`,
      );
      await assertRejects(
        () => Array.fromAsync<unknown>(run),
        Error,
        `Cannot iterate over a run: it was iterated over, ${AGAIN}`,
      );
    }
  }
});

Deno.test("a run that is neither awaited nor iterated over runs nothing", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const runner = qwen.runner;
  const started: unknown[] = [];
  const { generate } = runner;
  runner.generate = function (...args) {
    started.push(args[2]);
    return generate.apply(this, args);
  };
  const idle = [
    qwen.generate(PROMPT, GREEDY),
    qwen.generateBatch([PROMPT], GREEDY),
  ];
  for (const run of idle) run[Symbol.asyncIterator]();
  await new Promise((resolve) => setTimeout(resolve, 5));
  assertEquals(started, []);
  assertEquals(
    (await qwen.generate(PROMPT, { maxTokens: 3 })).tokenIds.length,
    3,
  );
  assertEquals(started, [3]);
});

Deno.test("what a run was given may change before it starts", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const options = { ...GREEDY, stop: [" was"] };
  const run = qwen.generate(PROMPT, options);
  options.stop.pop();
  options.maxTokens = 1;
  const ids = [1, 2, 3];
  const other = qwen.generate(ids, GREEDY);
  ids.pop();
  const { text, finishReason } = await run;
  assertEquals([text, finishReason], [", there", "stop"]);
  assertEquals((await other).stats.promptTokens, 3);
  assertEquals(
    (await other).tokenIds,
    (await qwen.generate([1, 2, 3], GREEDY)).tokenIds,
  );
});

eachDevice(
  "a signal ends an awaited run with the text so far",
  async (device) => {
    using qwen = await loadQwen3(undefined, { device });
    const ender = new AbortController();
    const run = qwen.generate(PROMPT, {
      ...GREEDY,
      maxTokens: 500,
      ignoreEos: true,
      signal: ender.signal,
    });
    const poll = setInterval(() => run.tokenIds.length > 4 && ender.abort(), 1);
    const { finishReason, text, tokenIds } = await run;
    clearInterval(poll);
    assertEquals(finishReason, "aborted");
    assert(tokenIds.length > 4 && tokenIds.length < 500, `${tokenIds.length}`);
    assertStringIncludes(text, ", there was");

    const { stats, ...none } = await qwen.generate(PROMPT, {
      signal: AbortSignal.abort(),
    });
    assertEquals([none.text, none.finishReason], ["", "aborted"]);
    assertEquals(stats.tokens, 0);
  },
);

Deno.test("an awaited run rejects with the error of the run, each time", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  qwen.runner.generate = async function* () {
    yield [1];
    throw new Error("it broke");
  };
  const run = qwen.generate(PROMPT, GREEDY);
  await assertRejects(async () => await run, Error, "it broke");
  await assertRejects(async () => await run, Error, "it broke");
  qwen.runner.rows = () => Promise.reject(new Error("it broke"));
  const batch = qwen.generateBatch([PROMPT, "A dog"], GREEDY);
  await assertRejects(async () => await batch, Error, "it broke");
  assertEquals(await run.then(() => 1, () => 2), 2);
});

Deno.test("an async function that returns a run awaits it", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  // deno-lint-ignore require-await
  const ask = async () => qwen.generate(PROMPT, GREEDY);
  const reply: Reply = await ask();
  assertEquals(reply.tokenIds.length, 8);
});

Deno.test("a run of a model that was disposed rejects", async () => {
  const load = () => loadQwen3(undefined, { device: "cpu" });
  const early = async () => {
    using qwen = await load();
    return qwen.generate(PROMPT, GREEDY);
  };
  await assertRejects(
    early,
    Error,
    "Cannot generate: the model was disposed",
  );
  const late = async () => {
    using qwen = await load();
    return await qwen.generate(PROMPT, GREEDY);
  };
  assertEquals((await late()).tokenIds.length, 8);
});

Deno.test("faulty logits reject an awaited run", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  qwen.runner.generate = async function* () {
    yield [1];
    yield [FAULT.nan];
  };
  const run = qwen.generate(PROMPT, GREEDY);
  await assertRejects(
    async () => await run,
    Error,
    "(token 1 of the reply) hold NaN, must be numbers",
  );
  assertEquals([run.tokenIds, run.finishReason], [[1], "aborted"]);
});
