import { assertEquals, assertRejects } from "@std/assert";
import { loadQwen3 } from "../mod.ts";
import { gpuTest } from "./gpu.ts";
import { tamperedGpu } from "./tampered_gpu.ts";
import { withLargeValues } from "./temp_checkpoint.ts";

const TINY = new URL("fixtures/tiny-tied-bf16/", import.meta.url).href;

gpuTest("debug runs as without it where all is right", async () => {
  using plain = await loadQwen3(TINY, { device: "gpu" });
  using debug = await loadQwen3(TINY, { device: "gpu", debug: true });
  const ids = async (qwen: typeof plain) => {
    const run = qwen.generate([1, 2, 3], { temperature: 0, maxTokens: 4 });
    for await (const _ of run);
    return run.tokenIds;
  };
  assertEquals(await ids(debug), await ids(plain));
});

gpuTest("debug widens a cache that overflows, and says so", async () => {
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

gpuTest(
  "debug names the operation of a wrong kernel, and both values",
  async () => {
    const gpu = tamperedGpu(
      "attendDecode",
      (wgsl) => wgsl.replaceAll("* u.scale", "* u.scale * 30.0"),
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
      precision: "f32", // hardware norms elsewhere under "auto"
      gpu: prefill,
    });
    await assertRejects(
      () => wrong.logits(Array.from({ length: 12 }, (_, i) => i)),
      Error,
      "layers.0.qkv_proj (normMatmul) differs from the CPU at [0, ",
    );
  },
);

Deno.test("debug needs the GPU", async () => {
  await assertRejects(
    () => loadQwen3(TINY, { device: "cpu", debug: true }),
    Error,
    "debug compares a GPU with the CPU",
  );
});
