import { assert, assertEquals } from "@std/assert";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { GpuRunner } from "../../lib/gpu/runner.ts";
import type { RowText } from "../../lib/model/rows.ts";
import { resolveSampling } from "../../lib/model/sampling.ts";
import { compileAll } from "../../lib/webgpu/pipeline.ts";
import { gpuTest, openTested } from "../support/gpu.ts";

const TINY = new URL("../fixtures/tiny-tied-bf16/", import.meta.url).href;

gpuTest("the first two texts compile what more will need", async () => {
  await using checkpoint = await openCheckpoint(TINY);
  using gpu = await openTested();
  using runner = await GpuRunner.load(gpu, checkpoint, {
    context: 64,
    cacheDtype: "f32",
    f16Matmuls: false,
  });
  using rows = await runner.rows({ slots: 16, context: 64 });
  let compiled = 0;
  const { device } = gpu, create = device.createComputePipeline.bind(device);
  device.createComputePipeline = (descriptor) => {
    compiled++;
    return create(descriptor);
  };
  const asked: string[][] = [];
  rows.compileAhead = async (shaders) => {
    const all = shaders();
    asked.push(all.map(({ label }) => label));
    await compileAll(gpu, all);
  };
  const sampling = resolveSampling({ temperature: 0 }, {});
  const text = (page: number): RowText => ({
    tokens: [1, 2, 3],
    promptTokens: 3,
    pages: [page],
    sampling,
  });
  const decode = async (count: number) => {
    const texts = Array.from({ length: count }, (_, i) => text(i));
    for (const text of texts) await rows.read([{ text, begin: 0, end: 2 }]);
    const before = compiled;
    await rows.decode(texts, 1);
    const ids = await rows.take();
    assert(ids);
    assertEquals(new Set(ids.map(([id]) => id)).size, 1); // all are the same text
    return compiled - before;
  };
  assert(await decode(1) > 0);
  assertEquals(asked, []);
  assert(await decode(2) > 0);
  assert(asked[0].includes("gemvRows"));
  for (const count of [4, 8, 16]) assertEquals(await decode(count), 0);
  assertEquals(asked.length, 1);
});
