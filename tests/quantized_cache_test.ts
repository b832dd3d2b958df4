/** Models whose keys and values are cached in q8_0, on both devices. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { modelNeeds } from "../lib/tools/doctor/needs.ts";
import { openCheckpoint } from "../lib/checkpoint/open.ts";
import { loadQwen3, OptionError, type Qwen3 } from "../mod.ts";
import { oneByOne, promptsOf, read } from "./support/batch.ts";
import { relativeError } from "./support/golden.ts";
import { eachDevice, gpuTest, someOf } from "./support/gpu.ts";
import { withLargeValues } from "./support/temp_checkpoint.ts";

const fixture = (name: string) =>
  new URL(`fixtures/${name}/`, import.meta.url).href;
const TINY = fixture("tiny-tied-bf16");

/** Models with heads of 64 and of 32 values; undefined is the story model. */
const MODELS = [
  undefined,
  TINY,
  fixture("tiny-sharded-f16"),
  fixture("tiny-yarn-bf16"),
  fixture("tiny-outlier-bf16"),
];

/** Those that run on the GPU. */
const ON_GPU = someOf(MODELS, 2);

/** Logits after each of 60 tokens. */
async function logitsOf(qwen: Qwen3): Promise<Float32Array> {
  const { vocabSize } = qwen.config;
  const ids = Array.from({ length: 60 }, (_, i) => (i * 7919 + 1) % vocabSize);
  return await qwen.logits(ids, { all: true });
}

const cachesOf = (qwen: Qwen3) =>
  qwen.device.choices.filter(({ what }) => what === "KV cache")
    .map(({ value }) => value);

/**
 * A value in q8_0 is off by up to half of 1/127 of its block's largest, evenly: by 1/440 of
 * it in the root mean square, and the largest of 32 values is about 2.2 times as large as
 * they are in theirs. So keys and values are off by 0.5 % each. In f16 they are off by
 * 0.02 %, and logits follow: their error was 22 to 26 times that of f16. Averaging over
 * tokens makes it smaller, layers add up.
 */
const KEPT_ERROR = 0.005, MOST_ERROR = 4 * KEPT_ERROR;

eachDevice(
  "logits with a cache in q8_0 are off by what it rounds",
  async (device) => {
    for (const model of device === "gpu" ? ON_GPU : MODELS) {
      const load = (kv: "f32" | "f16" | "q8_0") =>
        loadQwen3(model, { device, kv, precision: "f32" });
      using exact = await load("f32");
      using rough = await load("q8_0");
      assertEquals([cachesOf(exact), cachesOf(rough)], [["f32"], ["q8_0"]]);
      const expected = await logitsOf(exact);
      const error = relativeError(await logitsOf(rough), expected);
      const what = `${model ?? "the story model"}: ${error}`;
      assert(error > KEPT_ERROR / 4 && error < MOST_ERROR, what);
      if (device === "cpu") continue;
      using half = await load("f16");
      const ratio = error / relativeError(await logitsOf(half), expected);
      assert(ratio > 15 && ratio < 40, `${what}, ${ratio} times f16's`);
    }
  },
);

gpuTest("both devices quantize keys and values alike", async () => {
  for (const model of ON_GPU) {
    const logits = [];
    for (const device of ["gpu", "cpu"] as const) {
      using qwen = await loadQwen3(model, {
        device,
        kv: "q8_0",
        precision: "f32",
      });
      logits.push(await logitsOf(qwen));
    }
    // A GPU may round scales to f16 towards zero, by up to 2⁻¹⁰; and a value that lies
    // between two quants may be rounded either way.
    const error = relativeError(logits[0], logits[1]);
    assert(error < 2 ** -9, `${model ?? "the story model"}: ${error}`);
  }
});

eachDevice(
  "a batch in q8_0 writes what its prompts write alone",
  async (device) => {
    using qwen = await loadQwen3(undefined, {
      device,
      kv: "q8_0",
      precision: "f32",
      context: 40,
    });
    const options = { temperature: 0, maxTokens: 12, ignoreEos: true };
    // The last one fills its context while the others go on.
    const prompts = [
      ...promptsOf(4),
      Array.from({ length: 37 }, (_, i) => i + 9),
    ];
    const alone = await oneByOne(qwen, prompts, options);
    const together = await read(qwen.generateBatch(prompts, options));
    assertEquals(together.map(({ tokenIds }) => tokenIds.length), [
      ...[12, 12, 12, 12],
      3,
    ]);
    assertEquals(together, alone);
    // Runs leave nothing behind for the next one.
    assertEquals(await oneByOne(qwen, prompts, options), alone);
  },
);

eachDevice(
  "a prompt in q8_0 gives the same in chunks and token by token",
  async (device) => {
    using qwen = await loadQwen3(undefined, {
      device,
      kv: "q8_0",
      precision: "f32",
    });
    const prompt = Array.from({ length: 9 }, (_, i) => 40 + 31 * i);
    const run = qwen.generate(prompt, {
      temperature: 0,
      maxTokens: 24,
      ignoreEos: true,
    });
    for await (const _ of run);
    const { tokenIds } = run;
    const all = await qwen.logits([...prompt, ...tokenIds], { all: true });
    const { vocabSize } = qwen.config;
    tokenIds.forEach((id, i) => {
      const at = (prompt.length + i - 1) * vocabSize;
      const row = all.subarray(at, at + vocabSize);
      const best = row.reduce((a, b) => Math.max(a, b));
      const size = Math.hypot(...row) / Math.sqrt(vocabSize);
      // A decode step uses the newest key and value before they are rounded.
      const most = MOST_ERROR * size;
      assert(best - row[id] <= most, `token ${i} is ${best - row[id]} behind`);
    });
  },
);

eachDevice(
  "texts are embedded with keys and values in q8_0",
  async (device) => {
    const texts = [[1, 2, 3, 4, 5, 6, 7], [9], [8, 7, 300, 12]];
    const load = (kv: "f32" | "q8_0") =>
      loadQwen3(TINY, { device, kv, precision: "f32" });
    using exact = await load("f32");
    using rough = await load("q8_0");
    const expected = await exact.embed(texts);
    for (const [i, actual] of (await rough.embed(texts)).entries()) {
      const error = relativeError(actual, expected[i]);
      assert(error > 0 && error < MOST_ERROR, `text ${i}: ${error}`);
      // Alone it has the same pass, or one of another size.
      const [alone] = await rough.embed(texts[i]);
      assert(relativeError(alone, actual) < MOST_ERROR / 2);
    }
  },
);

gpuTest("a value beyond f16 switches a cache in q8_0 to f32", async () => {
  await using checkpoint = await withLargeValues(TINY);
  for (const debug of [false, true]) {
    const options = { device: "gpu", precision: "f32" } as const;
    using exact = await loadQwen3(checkpoint.path, options);
    using qwen = await loadQwen3(checkpoint.path, {
      ...options,
      debug,
      kv: "q8_0",
    });
    assertEquals(cachesOf(qwen), ["q8_0"]);
    assertEquals(await qwen.logits([1, 2, 3]), await exact.logits([1, 2, 3]));
    assertEquals(cachesOf(qwen), ["q8_0", "f32"]);
  }
});

gpuTest("debug checks a cache in q8_0", async (_, trial) => {
  for (const model of trial.some([TINY, fixture("tiny-sharded-f16")], 1)) {
    const load = (debug: boolean) =>
      loadQwen3(model, { device: "gpu", kv: "q8_0", debug });
    using plain = await load(false);
    using debug = await load(true);
    // Their tokens lead by more than a key rounded otherwise changes: debug computes the end
    // of a prompt in another pass.
    const prompts = [[5, 6], [20, 30]];
    const options = { temperature: 0, maxTokens: 4, ignoreEos: true };
    const expected = await read(plain.generateBatch(prompts, options));
    assertEquals(await read(debug.generateBatch(prompts, options)), expected);
  }
});

eachDevice(
  "a cache in q8_0 takes 17 of 32 parts of one in f16",
  async (device) => {
    const bytes = async (kv: "f32" | "q8_0", context: number) => {
      using qwen = await loadQwen3(undefined, { device, kv, context });
      return qwen.memoryBytes;
    };
    // Without what is allocated in steps and what does not grow.
    const grown = async (kv: "f32" | "q8_0") =>
      await bytes(kv, 1024) - await bytes(kv, 512);
    const [exact, rough] = [await grown("f32"), await grown("q8_0")];
    const saved = (exact - rough) / 512;
    // Per position: keys and values of 5 layers, of 2 heads of 64 values.
    using qwen = await loadQwen3(undefined, { device });
    const { numHiddenLayers, numKeyValueHeads, headDim } = qwen.config;
    const heads = 2 * numHiddenLayers * numKeyValueHeads;
    // The CPU's memory grows by whole pages.
    const ratio = saved / (heads * (4 * headDim - 68));
    const off = Math.abs(ratio - 1);
    assert(device === "gpu" ? off === 0 : off < 0.05, `${ratio}`);
  },
);

Deno.test("what a model or a device cannot cache is refused with what it can", async () => {
  const load = (name: string, options: object) => () =>
    loadQwen3(fixture(name), options);
  await assertRejects(
    load("tiny-untied-f32", { device: "cpu", kv: "q8_0" }),
    OptionError,
    'kv is "q8_0", must be auto or f32: heads have 16 values, q8_0 takes blocks of 32',
  );
  await assertRejects(
    load("tiny-tied-bf16", { device: "cpu", kv: "f16" }),
    OptionError,
    'kv is "f16", must be auto, f32 or q8_0: the CPU path has no f16',
  );
  await assertRejects(
    load("tiny-tied-bf16", { device: "cpu", kv: "q4_0" }),
    OptionError,
    'kv is "q4_0", must be auto, f16, f32 or q8_0',
  );
});

gpuTest("a model's heads are refused on the GPU, too", async () => {
  await assertRejects(
    () => loadQwen3(fixture("tiny-untied-f32"), { device: "gpu", kv: "q8_0" }),
    OptionError,
    'kv is "q8_0", must be auto, f16 or f32: heads have 16 values',
  );
});

gpuTest(
  "doctor counts the cache in the type that is asked for",
  async (gpu) => {
    await using checkpoint = await openCheckpoint("synthetic:qwen3-0.6b");
    const text = async (kv?: "q8_0" | "f16" | "f32", on = true) => {
      const needs = await modelNeeds(checkpoint, { kv }, on ? gpu : undefined);
      return needs[0].text;
    };
    const of = (type: string) => `for a KV cache of 4096 tokens in ${type}`;
    for (const kv of ["q8_0", "f16", "f32"] as const) {
      assert((await text(kv)).includes(of(kv)), await text(kv));
    }
    assert((await text()).includes(of("f16")));
    assert(
      (await text("q8_0", false)).includes(`250 MB ${of("q8_0")}`),
      await text("q8_0", false),
    );
    assertEquals(
      await text("f16", false),
      "--kv is f16, must be auto, f32 or q8_0: the CPU path has no f16",
    );
  },
);
