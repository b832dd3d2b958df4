import { assertEquals } from "@std/assert";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { CpuRunner } from "../../lib/cpu/runner.ts";
import { weightsText } from "../../lib/tools/weights.ts";

Deno.test("bytes of weights are listed by format, the embedding once", async () => {
  const text = async (dtype: string) => {
    const spec = `synthetic:qwen3-0.6b?layers=1&vocab=512&dtype=${dtype}`;
    await using checkpoint = await openCheckpoint(spec);
    using runner = await CpuRunner.load(checkpoint, { context: 8 });
    return weightsText(runner.weights);
  };
  // 16,252,928 weights and 3,328 of norms.
  assertEquals(await text("bf16"), "weights take 32.5 MB in bf16");
  // Q6_K: the embedding, v_proj and down_proj, of 4,718,592 weights.
  assertEquals(
    await text("q4_k_m"),
    "weights take 6.49 MB in q4_k, 3.87 MB in q6_k and 13.3 kB in f32",
  );
});
