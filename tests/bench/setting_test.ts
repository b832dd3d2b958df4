import { assertEquals, assertRejects } from "@std/assert";
import { resized } from "../../bench/estimate.ts";
import { Unmeasurable } from "../../bench/report.ts";
import { BenchSetting } from "../../bench/setting.ts";
import { gpuTest } from "../support/gpu.ts";

const open = (model: string) =>
  BenchSetting.open({ model, runs: 1, maxTokens: 8 });

Deno.test("a synthetic model has other sizes with its parameters", () => {
  assertEquals(
    [
      "synthetic:qwen3-0.6b",
      "Synthetic:qwen3-4b?dtype=q8_0&seed=2",
      "models/synthetic:qwen3-4b",
      "org/model",
    ].map((model) => resized(model, "8b")),
    [
      "synthetic:qwen3-8b",
      "synthetic:qwen3-8b?dtype=q8_0&seed=2",
      undefined,
      undefined,
    ],
  );
});

gpuTest(
  "a row of another size loads that, and one model at a time",
  async () => {
    using setting = await open("synthetic:qwen3-0.6b?layers=1&vocab=64");
    const first = await setting.model(16);
    const size = () =>
      setting.resized("1.7b", async (there) => {
        const { qwen } = await there.model(16);
        return [qwen, qwen.config.hiddenSize] as const;
      });
    const [other, hidden] = await size();
    assertEquals([first.qwen.config.hiddenSize, hidden], [1024, 2048]);
    await assertRejects(() => first.qwen.logits([1]), Error, "disposed");
    assertEquals((await size())[0], other); // kept for the next row
    await setting.model(16);
    await assertRejects(() => other.logits([1]), Error, "disposed");
  },
);

gpuTest("a row of another size says why it is not measured", async (gpu) => {
  using story = await open("models/stories-3m");
  const never = () => Promise.reject(new Error("it was measured"));
  await assertRejects(
    () => story.resized("4b", never),
    Unmeasurable,
    "the model is models/stories-3m, must be synthetic:qwen3-…",
  );
  if (!gpu.software) return;
  using setting = await open("synthetic:qwen3-0.6b");
  await assertRejects(
    () => setting.resized("8b", never),
    Unmeasurable,
    "its weights are 16.4 GB, must be at most 2.0 GB on a software renderer",
  );
});
