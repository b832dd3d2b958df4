import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { contextLimit } from "../lib/checkpoint/config.ts";
import { openCheckpoint } from "../lib/checkpoint/open.ts";
import { DeviceError } from "../lib/errors.ts";
import { openDevice } from "../lib/device/open_device.ts";
import { doctor } from "../lib/tools/doctor/doctor.ts";
import { modelNeeds } from "../lib/tools/doctor/needs.ts";
import { profile } from "../lib/tools/profile/profile.ts";
import { settle } from "../lib/tools/profile/setting.ts";
import { Bench } from "../lib/tools/tune/bench.ts";
import { tune } from "../lib/tools/tune/tune.ts";
import { loadQwen3 } from "../mod.ts";
import { readGolden, relativeError } from "./support/golden.ts";
import { gpuTest } from "./support/gpu.ts";
import {
  changedCheckpoint,
  copyCheckpoint,
} from "./support/temp_checkpoint.ts";

/** As on Qwen3's model cards: factor 4 on 128, max_position_embeddings raised by 1.25. */
const PLAIN = 160, REACHED = 512;
const WHY =
  "YaRN's factor 4 times the trained 128; max_position_embeddings is 160";

async function asOnTheCard() {
  const { model, cases } = await readGolden("tiny-yarn-bf16");
  const url = new URL("config.json", model);
  const config = JSON.parse(await Deno.readTextFile(url));
  config.max_position_embeddings = PLAIN;
  const text = JSON.stringify(config);
  return { ...await copyCheckpoint(model, { "config.json": text }), cases };
}

Deno.test("YaRN allows contexts up to factor × original", () => {
  const of = (
    maxPositionEmbeddings: number,
    factor: number,
    original: number,
  ) =>
    contextLimit({
      maxPositionEmbeddings,
      ropeScaling: {
        factor,
        originalMaxPositionEmbeddings: original,
        attentionFactor: 1,
        betaFast: 32,
        betaSlow: 1,
        truncate: true,
      },
    }).tokens;
  assertEquals(of(40960, 4, 32768), 131072);
  assertEquals(of(131072, 4, 32768), 131072);
  assertEquals(of(262144, 4, 32768), 262144);
  assertEquals(of(40960, 2.3, 32768), 75366);
  assertEquals(of(10, 1.15, 100), 115); // 114.99999999999999 in f64
  const plain = { maxPositionEmbeddings: 40960, ropeScaling: null };
  assertEquals(contextLimit(plain), {
    tokens: 40960,
    why: "max_position_embeddings",
  });
});

for (const device of ["gpu", "cpu"] as const) {
  const test = device === "gpu" ? gpuTest : Deno.test;

  test(`positions beyond max_position_embeddings are transformers' on the ${device}`, async () => {
    await using folder = await asOnTheCard();
    const { tokenIds, logits } = folder.cases.find(({ tokenIds }) =>
      tokenIds.length === 300
    )!;
    using qwen = await loadQwen3(folder.path, {
      device,
      precision: "f32",
      context: REACHED,
    });
    assertEquals(qwen.context, REACHED);
    const error = relativeError(await qwen.logits(tokenIds), logits);
    assert(error <= 1e-4, `the relative error is ${error}`);
  });
}

Deno.test("the default context leaves YaRN's room alone", async () => {
  await using folder = await asOnTheCard();
  using qwen = await loadQwen3(folder.path, { device: "cpu" });
  assertEquals(qwen.context, PLAIN);
  const { reason } = qwen.device.choices
    .find(({ what }) => what === "context")!;
  assertEquals(reason, `the default; the checkpoint allows ${REACHED}`);
});

Deno.test("loading, doctor and profile share the limit of YaRN", async () => {
  await using folder = await asOnTheCard();
  const { path } = folder;
  await assertRejects(
    () => loadQwen3(path, { device: "cpu", context: REACHED + 1 }),
    RangeError,
    `Cannot load ${path}: context is 513, must be from 1 to 512 (${WHY})`,
  );

  await using checkpoint = await openCheckpoint(path);
  const needs = (context: number) =>
    modelNeeds(checkpoint, { context }, undefined);
  const [fits, ...more] = await needs(REACHED);
  assertEquals([fits.severity, fits.topic], ["green", "model"]);
  assertEquals(more.length, 1);
  assertEquals(await needs(REACHED + 1), [{
    severity: "red",
    topic: "context",
    text: `--context is 513, must be from 1 to 512 for ${path} (${WHY})`,
  }]);

  const prompt = (promptTokens: number) =>
    settle(checkpoint, { promptTokens, maxTokens: 12 }).promptTokens;
  assertEquals(prompt(500), 500);
  assertThrows(
    () => prompt(501),
    RangeError,
    "promptTokens is 501, must be an integer from 1 to 500",
  );
});

gpuTest("tuning uses the positions that YaRN allows", async () => {
  await using folder = await asOnTheCard();
  await using checkpoint = await openCheckpoint(folder.path);
  using gpu = await openDevice();
  using bench = await Bench.load(gpu, checkpoint);
  assertEquals(bench.context, REACHED);
});

gpuTest(
  "a vocabulary that a GPU cannot sample from is refused before loading",
  async () => {
    const model = "synthetic:qwen3-0.6b?layers=1&vocab=262144";
    let loaded = 0;
    const onProgress = () => void loaded++;
    await assertRejects(
      () => loadQwen3(model, { device: "gpu", onProgress }),
      DeviceError,
      `Cannot load ${model}: the vocabulary is 262144, it must be below 262144 on a GPU`,
    );
    assertEquals(loaded, 0);
  },
);

Deno.test("a configuration that its tensors contradict is refused before a device is touched", async () => {
  let asked = 0;
  const requestAdapter = () => {
    asked++;
    return Promise.resolve(null);
  };
  const gpu = { requestAdapter } as unknown as GPU;
  const { model } = await readGolden("tiny-tied-bf16");
  const wrong: [config: Record<string, unknown>, message: string][] = [
    [
      { hidden_size: 30000 },
      "Cannot load PATH: model.embed_tokens.weight has shape [512, 64], config.json requires [512, 30000]",
    ],
    [
      { num_hidden_layers: 1e6 },
      "Cannot use PATH/config.json: num_hidden_layers is 1000000, must be a positive whole number up to 1000",
    ],
    [
      { num_attention_heads: 4096, num_key_value_heads: 4096 },
      "Cannot load PATH: model.layers.0.self_attn.k_proj.weight has shape [64, 64], config.json requires [131072, 64]",
    ],
  ];
  for (const [config, expected] of wrong) {
    await using folder = await changedCheckpoint(model, { config });
    const { path } = folder, message = expected.replace("PATH", path);
    for (const device of ["auto", "gpu", "cpu"] as const) {
      await assertRejects(
        () => loadQwen3(path, { device, gpu }),
        Error,
        message,
      );
    }
    await assertRejects(() => profile(path, { gpu }), Error, message);
    await assertRejects(() => tune(path, { gpu }), Error, message);
    assertEquals(asked, 0);
    const { findings } = await doctor({ model: path, gpu });
    const reds = findings.filter(({ severity, topic }) =>
      severity === "red" && topic === "model"
    );
    assertEquals(reds.map(({ text }) => text), [message]);
    asked = 0;
  }
});

Deno.test("loading, doctor and profile report what is unused in a checkpoint", async () => {
  const { model } = await readGolden("tiny-tied-bf16");
  const spare = { dtype: "I64", shape: [1], bytes: new Uint8Array(8) };
  await using folder = await changedCheckpoint(model, {
    config: { eos_token_id: [3, 512] },
    tensors: (tensors) => tensors.set("position_ids", spare),
  });
  const notices = [
    "the weights have a tensor that the model does not use: position_ids",
    "eos_token_id has 512, which can never end a text: vocab_size is 512",
  ];
  const { path } = folder, told: string[] = [];
  const onNotice = (notice: string) => void told.push(notice);
  using qwen = await loadQwen3(path, { device: "cpu", onNotice });
  assertEquals([told, qwen.notices], [notices, notices]);

  const gpu = { requestAdapter: () => Promise.resolve(null) } as unknown as GPU;
  const { findings } = await doctor({ model: path, gpu });
  const yellow = findings.filter(({ severity, topic }) =>
    severity === "yellow" && topic === "model"
  );
  assertEquals(yellow.map(({ text }) => text), notices);

  await using checkpoint = await openCheckpoint(path);
  const options = { promptTokens: 8, maxTokens: 8 };
  assertEquals(settle(checkpoint, options).notes, notices);
});

Deno.test("a context beyond the CPU path's memory is refused with its numbers", async () => {
  const { model } = await readGolden("tiny-tied-bf16");
  const most = 2 ** 24;
  await using folder = await changedCheckpoint(model, {
    config: { max_position_embeddings: most },
  });
  await assertRejects(
    () => loadQwen3(folder.path, { device: "cpu", context: most }),
    DeviceError,
    `Cannot load ${folder.path}: a context of 16777216 tokens takes 4294967296 bytes for one layer's keys, the CPU path has room for 2080374784; with kv q8_0 it takes 1207959552`,
  );
});
