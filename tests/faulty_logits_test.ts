/**
 * Logits that cannot be sampled from end a run at the same token, with the same words, on
 * the GPU, on the CPU and in debug mode.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { type GenerateOptions, loadQwen3, type Qwen3 } from "../mod.ts";
import { gpuTest, someOf } from "./support/gpu.ts";
import {
  copyCheckpoint,
  replaceElements,
  type TempCheckpoint,
} from "./support/temp_checkpoint.ts";
import { HARDWARE, wrapGpu } from "./support/wrapped_gpu.ts";

const UNTIED = new URL("fixtures/tiny-untied-f32/", import.meta.url).href;
const TIED = new URL("fixtures/tiny-tied-bf16/", import.meta.url).href;
const MOE = new URL("fixtures/tiny-moe-bf16/", import.meta.url).href;
const HIDDEN = 80, VOCAB = 500;
const PROMPT = [1, 2, 3];
const GREEDY = { temperature: 0, maxTokens: 12, ignoreEos: true };

/** A copy of a checkpoint with elements of its tensors replaced. */
async function poisoned(
  folder: string,
  changes: Parameters<typeof replaceElements>[1],
): Promise<TempCheckpoint> {
  const name = "model.safetensors";
  const file = await Deno.readFile(new URL(name, folder));
  return await copyCheckpoint(folder, {
    [name]: replaceElements(file, changes),
  });
}

/** The same value in a whole row of `width` elements. */
const row = (at: number, width: number, value: number) =>
  Object.fromEntries(
    Array.from({ length: width }, (_, i) => [at * width + i, value]),
  );

/** Calls `visit` with the model on each device, and with GPU and debug mode. */
async function eachWay(
  path: string,
  visit: (qwen: Qwen3, way: string) => Promise<void>,
) {
  const ways = {
    cpu: { device: "cpu" },
    gpu: { device: "gpu" },
    "gpu in f32": { device: "gpu", precision: "f32" },
    debug: { device: "gpu", debug: true },
  } as const;
  for (const [way, options] of Object.entries(ways)) {
    using qwen = await loadQwen3(path, options);
    await visit(qwen, way);
  }
}

/** What a run yields before it fails, and its error. */
async function failure(
  qwen: Qwen3,
  prompts: number[][],
  options: GenerateOptions,
) {
  const run = qwen.generateBatch(prompts, options);
  const ids = prompts.map((): number[] => []);
  const error = await assertRejects(async () => {
    for await (const { sequence, tokenId } of run) {
      ids[sequence].push(tokenId!);
    }
  }, Error);
  assertEquals(run.sequences.map(({ tokenIds }) => tokenIds), ids);
  return { ids, message: error.message, name: error.name };
}

/** Greedy tokens of the sound checkpoint. */
async function sound(prompt: number[], maxTokens: number): Promise<number[]> {
  using qwen = await loadQwen3(UNTIED, { device: "cpu" });
  const run = qwen.generate(prompt, { ...GREEDY, maxTokens });
  for await (const _ of run);
  return run.tokenIds;
}

const FIRST =
  "Cannot generate: the logits for position 3 (token 0 of the reply)";

for (
  const [what, folder, changes, fault] of someOf(
    [
      [
        "NaN in a norm weight",
        UNTIED,
        { "model.layers.1.post_attention_layernorm.weight": { 7: NaN } },
        "hold NaN, must be numbers",
      ],
      [
        "NaN in the norm of keys, which an f16 cache reports first",
        TIED,
        { "model.layers.0.self_attn.k_norm.weight": { 3: NaN } },
        "hold NaN, must be numbers",
      ],
      [
        "Infinity in a layer's matrix",
        TIED,
        {
          "model.layers.1.mlp.down_proj.weight": { 5: Infinity, 6: -Infinity },
        },
        "hold NaN, must be numbers",
      ],
      [
        "Infinity in an lm_head row, with either sign",
        UNTIED,
        {
          "lm_head.weight": {
            [400 * HIDDEN]: Infinity,
            [401 * HIDDEN]: -Infinity,
          },
        },
        "hold Infinity, must be finite or -Infinity",
      ],
      [
        "NaN in a whole lm_head row",
        UNTIED,
        { "lm_head.weight": row(499, HIDDEN, NaN) },
        "hold NaN, must be numbers",
      ],
    ] as const,
    3,
  )
) {
  gpuTest(`${what} is named by the first token`, async () => {
    await using checkpoint = await poisoned(folder, changes);
    await eachWay(checkpoint.path, async (qwen, way) => {
      for (
        const options of [
          GREEDY,
          { maxTokens: 9, temperature: 1, topK: 0, seed: 1 },
          { maxTokens: 9, topK: 20, topP: 0.9, repetitionPenalty: 1.2 },
          { maxTokens: 9, topK: 0, topP: 0.9 },
        ]
      ) {
        const { ids, message, name } = await failure(qwen, [PROMPT], options);
        assertEquals([ids, name], [[[]], "Error"], way);
        assertEquals(message, `${FIRST} ${fault}`, way);
      }
      // Logits are returned as they are.
      const logits = await qwen.logits(PROMPT);
      assert(logits.some((l) => !Number.isFinite(l)), way);
    });
  });
}

gpuTest("a cache in q8_0 does not hide faults", async () => {
  await using checkpoint = await poisoned(TIED, {
    "model.layers.0.self_attn.k_norm.weight": { 3: NaN },
  });
  for (const device of ["cpu", "gpu"] as const) {
    using qwen = await loadQwen3(checkpoint.path, { device, kv: "q8_0" });
    const { message } = await failure(qwen, [PROMPT], GREEDY);
    assertEquals(message, `${FIRST} hold NaN, must be numbers`, device);
  }
});

gpuTest(
  "scores of experts that are no numbers are a fault",
  async (_, trial) => {
    // Scores of expert 0, and of expert 2 with either sign.
    const faults = [[5, NaN], [2 * 64, Infinity], [2 * 64, -Infinity]];
    for (const [at, value] of trial.some(faults, 2)) {
      await using checkpoint = await poisoned(MOE, {
        "model.layers.1.mlp.gate.weight": { [at]: value },
      });
      const found = new Set<string>();
      for (const device of ["cpu", "gpu"] as const) {
        using qwen = await loadQwen3(checkpoint.path, { device });
        const logits = await qwen.logits(PROMPT);
        found.add(`${logits.some((logit) => Number.isNaN(logit))}`);
      }
      assertEquals(found.size, 1, `${value} at ${at}: ${[...found]}`);
      if (Number.isNaN(value)) assertEquals([...found], ["true"]);
    }
  },
);

gpuTest("what a faulty run has cached is not used again", async () => {
  const after = 7; // a token of the prompt, which poisons what follows
  await using checkpoint = await poisoned(UNTIED, {
    "model.embed_tokens.weight": row(after, HIDDEN, NaN),
  });
  await eachWay(checkpoint.path, async (qwen, way) => {
    const expected = await sound([1, 2, 3, 4], 3);
    const { message } = await failure(qwen, [[1, 2, 3, 4, 5, after]], GREEDY);
    assert(message.endsWith("hold NaN, must be numbers"), message);
    const run = qwen.generate([1, 2, 3, 4], { ...GREEDY, maxTokens: 3 });
    for await (const _ of run);
    assertEquals(run.tokenIds, expected, way);
  });
});

gpuTest("a fault at a later token ends the run there", async () => {
  const ids = await sound(PROMPT, 12);
  const at = ids.findIndex((id, i) => i >= 4 && ids.indexOf(id) === i);
  assert(at > 0, `no new token in ${ids}`);
  // Whatever follows this token is NaN.
  await using checkpoint = await poisoned(UNTIED, {
    "model.embed_tokens.weight": row(ids[at], HIDDEN, NaN),
  });
  await eachWay(checkpoint.path, async (qwen, way) => {
    const found = await failure(qwen, [PROMPT], GREEDY);
    assertEquals(found.ids, [ids.slice(0, at + 1)], way);
    assertEquals(
      found.message,
      `Cannot generate: the logits for position ${4 + at} (token ${
        at + 1
      } of the reply) hold NaN, must be numbers`,
      way,
    );
    // A run that ends before it does not notice.
    const run = qwen.generate(PROMPT, { ...GREEDY, maxTokens: at + 1 });
    for await (const _ of run);
    assertEquals([run.tokenIds, run.finishReason], [
      ids.slice(0, at + 1),
      "length",
    ]);
  });
});

gpuTest(
  "a batch names the sequence, and forgives those that ended",
  async () => {
    const ids = await sound(PROMPT, 1), context = 16;
    const full = Array.from({ length: context - 1 }, (_, i) => 40 + i);
    const [after] = await sound(full, 1);
    assert(!PROMPT.includes(after) && ids[0] !== after);
    await using checkpoint = await poisoned(UNTIED, {
      "model.embed_tokens.weight": row(after, HIDDEN, NaN),
    });
    for (const device of ["cpu", "gpu"] as const) {
      using qwen = await loadQwen3(checkpoint.path, { device, context });
      const whole = qwen.generate(PROMPT, { ...GREEDY, maxTokens: 6 });
      for await (const _ of whole);
      // The full sequence ends with the token that poisons what follows.
      const run = qwen.generateBatch([full, PROMPT], {
        ...GREEDY,
        maxTokens: 6,
      });
      for await (const _ of run);
      assertEquals(
        run.sequences.map(({ tokenIds }) => tokenIds),
        [[after], whole.tokenIds],
        device,
      );
      const { message, ids } = await failure(qwen, [
        PROMPT,
        [...PROMPT, after],
      ], GREEDY);
      assertEquals(
        message,
        "Cannot generate: the logits for position 4 (token 0 of the reply, sequence 1) hold NaN, must be numbers",
        device,
      );
      assertEquals(ids, [whole.tokenIds.slice(0, 1), []], device);
    }
  },
);

gpuTest(
  "masked tokens are never sampled, and all of them are a fault",
  async () => {
    // x[0] has a sign, so one of the two matrices makes all logits -Infinity.
    const heads = [Infinity, -Infinity].map((value) =>
      Object.fromEntries(
        Array.from({ length: VOCAB }, (_, id) => [id * HIDDEN, value]),
      )
    );
    const found = new Set<string>();
    for (const head of heads) {
      await using checkpoint = await poisoned(UNTIED, {
        "lm_head.weight": head,
      });
      const messages: string[] = [];
      await eachWay(checkpoint.path, async (qwen) => {
        messages.push((await failure(qwen, [PROMPT], GREEDY)).message);
      });
      assertEquals(new Set(messages).size, 1, messages.join("\n"));
      found.add(messages[0]);
    }
    assertEquals(
      found,
      new Set([
        `${FIRST} are all -Infinity, at least one must be finite`,
        `${FIRST} hold Infinity, must be finite or -Infinity`,
      ]),
    );
    const spared = { ...heads[0] };
    const { signed } = await (async () => {
      await using checkpoint = await poisoned(UNTIED, {
        "lm_head.weight": { 0: Infinity },
      });
      using qwen = await loadQwen3(checkpoint.path, { device: "cpu" });
      return { signed: (await qwen.logits(PROMPT))[0] };
    })();
    const mask = signed > 0 ? -Infinity : Infinity;
    for (const key of Object.keys(spared)) spared[Number(key)] = mask;
    delete spared[123 * HIDDEN];
    await using checkpoint = await poisoned(UNTIED, {
      "lm_head.weight": spared,
    });
    await eachWay(checkpoint.path, async (qwen, way) => {
      for (
        const options of [{ temperature: 0 }, { temperature: 2, topK: 0 }, {
          topK: 0,
          topP: 0.9,
          repetitionPenalty: 1.5,
        }]
      ) {
        const run = qwen.generate(PROMPT, { ...options, maxTokens: 1 });
        for await (const _ of run);
        assertEquals(run.tokenIds, [123], way);
      }
    });
  },
);

gpuTest("auto does not move a faulty model to the CPU", async () => {
  await using checkpoint = await poisoned(UNTIED, {
    "model.norm.weight": { 0: NaN },
  });
  const notices: string[] = [];
  const { gpu } = wrapGpu(HARDWARE);
  const onNotice = (notice: string) => void notices.push(notice);
  using qwen = await loadQwen3(checkpoint.path, { gpu, onNotice });
  const { message } = await failure(qwen, [PROMPT], GREEDY);
  assertEquals(message, `${FIRST} hold NaN, must be numbers`);
  assertEquals([qwen.device.kind, notices], ["gpu", []]);
});
