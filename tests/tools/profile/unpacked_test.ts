import { assertStringIncludes } from "@std/assert";
import { openCheckpoint } from "../../../lib/checkpoint/open.ts";
import { CpuRunner } from "../../../lib/cpu/runner.ts";
import { profile } from "../../../lib/tools/profile/profile.ts";
import { UnpackedModel } from "../../../lib/tools/profile/unpacked.ts";
import { assertAllClose } from "../../support/assert_all_close.ts";
import { gpuTest, someOf } from "../../support/gpu.ts";

const IDS = [5, 3, 9, 1, 7];

// They differ in how weights are unpacked, the matmuls are the same.
for (const dtype of someOf(["bf16", "q4_k_m", "q5_0"], 1)) {
  gpuTest(
    `separate matmuls compute the model's logits, in ${dtype}`,
    async (gpu) => {
      const spec = `synthetic:qwen3-0.6b?layers=2&vocab=500&dtype=${dtype}`;
      const checkpoint = await openCheckpoint(spec);
      using runner = await CpuRunner.load(checkpoint, { context: 16 });
      const expected = await runner.logits(IDS);
      using model = new UnpackedModel(gpu, runner, ["gemm", "batchedGemm"]);
      using cache = runner.ops.createCache(1, 16);
      await model.forward(IDS.slice(0, 3), cache);
      await model.forward(IDS.slice(3, 4), cache);
      const actual = await model.forward(IDS.slice(4), cache);
      assertAllClose(actual, expected, { absolute: 1e-4, relative: 1e-4 });
    },
  );
}

gpuTest("a profile says which weights were unpacked first", async () => {
  const report = await profile(
    "synthetic:qwen3-0.6b?layers=1&vocab=64&dtype=q4_k",
    { promptTokens: 3, maxTokens: 2, kernels: ["gemm"] },
  );
  assertStringIncludes(
    report.notes.join("\n"),
    "weights in q4_k were unpacked to f32 first",
  );
});
