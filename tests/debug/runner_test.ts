import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { DebugRunner } from "../../lib/debug/runner.ts";
import { loadQwen3, type SamplingOptions } from "../../mod.ts";
import { gpuTest } from "../support/gpu.ts";
import { tamperedGpu } from "../support/tampered_gpu.ts";
import { withLargeValues } from "../support/temp_checkpoint.ts";

const TINY = new URL("../fixtures/tiny-tied-bf16/", import.meta.url).href;
const MOE = new URL("../fixtures/tiny-moe-bf16/", import.meta.url).href;

gpuTest("debug changes nothing while the kernels are right", async () => {
  for (const model of [TINY, MOE]) {
    using plain = await loadQwen3(model, { device: "gpu" });
    using debug = await loadQwen3(model, { device: "gpu", debug: true });
    const ids = async (qwen: typeof plain) => {
      const run = qwen.generate([1, 2, 3], { temperature: 0, maxTokens: 4 });
      for await (const _ of run);
      return run.tokenIds;
    };
    assertEquals(await ids(debug), await ids(plain));
  }
});

gpuTest("debug switches an overflowing cache to f32 and says so", async () => {
  await using checkpoint = await withLargeValues(TINY);
  using plain = await loadQwen3(checkpoint.path, { device: "gpu" });
  const expected = await plain.logits([1, 2, 3]);
  for (const first of ["logits", "generate"]) {
    using debug = await loadQwen3(checkpoint.path, {
      device: "gpu",
      debug: true,
    });
    const caches = () =>
      debug.device.choices.filter(({ what }) => what === "KV cache")
        .map(({ value }) => value);
    assertEquals(caches(), ["f16"]);
    if (first === "generate") {
      const ids = async (qwen: typeof plain) => {
        const run = qwen.generate([1, 2, 3], { temperature: 0, maxTokens: 3 });
        for await (const _ of run);
        return run.tokenIds;
      };
      assertEquals(await ids(debug), await ids(plain));
    }
    assertEquals(await debug.logits([1, 2, 3]), expected);
    assertEquals(caches(), ["f16", "f32"]);
  }
});

gpuTest("debug names a wrong choice of experts", async () => {
  const gpu = tamperedGpu(
    "chooseExperts",
    (wgsl) => wgsl.replace("f32(winner))", "f32(winner / 2u))"),
  );
  using qwen = await loadQwen3(MOE, { device: "gpu", debug: true, gpu });
  await assertRejects(
    () => qwen.logits([1, 2, 3]),
    Error,
    "choose_experts (chooseExperts) differs from the CPU at [",
  );
});

gpuTest(
  "debug names a wrong kernel's operation and both values",
  async () => {
    const gpu = tamperedGpu(
      "attendDecode",
      (wgsl) => wgsl.replaceAll("u.scale", "(u.scale * 30.0)"),
    );
    using qwen = await loadQwen3(TINY, { device: "gpu", debug: true, gpu });
    const decode = qwen.generate([1, 2, 3], { temperature: 0, maxTokens: 4 });
    await assertRejects(
      async () => {
        for await (const _ of decode);
      },
      Error,
      "layers.0.attention (attend) differs from the CPU at [0, ",
    );
    const prefill = tamperedGpu(
      "rmsNorm",
      (wgsl) => wgsl.replaceAll("inverseSqrt(", "1.1 * inverseSqrt("),
    );
    using wrong = await loadQwen3(TINY, {
      device: "gpu",
      debug: true,
      precision: "f32", // under "auto" hardware runs another norm
      gpu: prefill,
    });
    await assertRejects(
      () => wrong.logits(Array.from({ length: 70 }, (_, i) => i)),
      Error,
      "layers.0.qkv_proj (normMatmul) differs from the CPU at [0, ",
    );
  },
);

gpuTest("debug names the token of wrong sampling", async () => {
  const ways = [
    ["sampleGreedy", { temperature: 0 }, "own.y + 1u", "(own.y ^ 1u) + 1u"],
    [
      "sampleFinish",
      { temperature: 2, topK: 20, seed: 3 },
      "seed_of(sequence)",
      "seed_of(sequence) + 1u",
    ],
  ] as const;
  for (const [kernel, sampling, from, to] of ways) {
    const gpu = tamperedGpu(kernel, (wgsl) => wgsl.replaceAll(from, to));
    using qwen = await loadQwen3(TINY, { device: "gpu", debug: true, gpu });
    const batch = qwen.generateBatch([[1, 2, 3], [4]], {
      ...sampling,
      maxTokens: 12,
    });
    const { message } = await assertRejects(
      async () => {
        for await (const _ of batch);
      },
      Error,
    );
    assertMatch(
      message,
      /^Cannot trust .*: sampling of token \d+ of sequence \d differs from the CPU: \d+ on the GPU \(logit .*\), \d+ on the CPU \(logit /,
    );
  }
});

gpuTest("debug accepts correct sampling of every kind", async (_, trial) => {
  using qwen = await loadQwen3(TINY, { device: "gpu", debug: true });
  const kinds: SamplingOptions[] = [
    { temperature: 0, repetitionPenalty: 1.3 },
    { temperature: 0, presencePenalty: 2, logitBias: { 3: -100 } },
    { temperature: 0.7, topK: 20, topP: 0.8 },
    { temperature: 1, topK: 0 },
    { temperature: 1, topK: 0, topP: 0.9 },
  ];
  for (const sampling of trial.some(kinds, 3)) {
    const run = qwen.generate([1, 2, 3], {
      ...sampling,
      seed: 5,
      maxTokens: 6,
    });
    for await (const _ of run);
    assertEquals(run.tokenIds.length, 6);
  }
});

Deno.test("debug is refused on the CPU", async () => {
  await assertRejects(
    () => loadQwen3(TINY, { device: "cpu", debug: true }),
    Error,
    "must be gpu when debug is on",
  );
});

gpuTest("an abort ends a debug run between two operations", async () => {
  using debug = await loadQwen3(TINY, { device: "gpu", debug: true });
  const { runner } = debug;
  assert(runner instanceof DebugRunner);
  const prompt = [1, 2, 3];
  let checked = 0, after = 0, abort = new AbortController();
  const { ops } = runner.cpu, inSlices = ops.inSlices.bind(ops);
  ops.inSlices = (pass) => {
    checked++;
    if (abort.signal.aborted) after++;
    if (checked === 5) setTimeout(() => abort.abort(), 0);
    return inSlices(pass);
  };
  const run = debug.generate(prompt, { signal: abort.signal });
  assertEquals(await Array.fromAsync(run), []);
  assertEquals(run.finishReason, "aborted");
  assert(checked < 9, `${checked} operations`);
  checked = 0; // and again
  abort = new AbortController();
  await assertRejects(
    () => debug.logits(prompt, { signal: abort.signal }),
    DOMException,
  );
  assert(after <= 2, `${after} operations after two aborts`);
});
