import { assert, assertEquals } from "@std/assert";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { GpuRunner } from "../../lib/gpu/runner.ts";
import type { RowText } from "../../lib/model/rows.ts";
import { resolveSampling } from "../../lib/model/sampling.ts";
import { compileAll } from "../../lib/webgpu/pipeline.ts";
import { gpuTest, openTested } from "../support/gpu.ts";

const TINY = new URL("../fixtures/tiny-tied-bf16/", import.meta.url).href;

const sampling = resolveSampling({ temperature: 0 }, {});
const textIn = (page: number): RowText => ({
  ...{ tokens: [1, 2, 3], promptTokens: 3, pages: [page], sampling },
});

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
  const decode = async (count: number) => {
    const texts = Array.from({ length: count }, (_, i) => textIn(i));
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

gpuTest(
  "steps encoded ahead are those that run next, however the device is read",
  async () => {
    await using checkpoint = await openCheckpoint(TINY);
    for (const readsApart of [false, true]) {
      using gpu = await openTested();
      using runner = await GpuRunner.load(gpu, checkpoint, {
        ...{ context: 64, cacheDtype: "f32", f16Matmuls: false },
      });
      using rows = await runner.rows({ slots: 1, context: 64 });
      Object.defineProperty(gpu, "readsApart", { value: readsApart });
      const { mapAsync } = GPUBuffer.prototype, { device } = gpu;
      const encoded = new Set<GPUCommandBuffer>();
      const encoder = device.createCommandEncoder.bind(device);
      device.createCommandEncoder = (descriptor) => {
        const made = encoder(descriptor), finish = made.finish.bind(made);
        made.finish = (descriptor) => {
          const commands = finish(descriptor);
          encoded.add(commands);
          return commands;
        };
        return made;
      };
      const submit = device.queue.submit.bind(device.queue);
      device.queue.submit = (all) => {
        for (const commands of all) encoded.delete(commands);
        submit(all);
      };
      // A device that takes long: two steps, then three would no longer fit.
      GPUBuffer.prototype.mapAsync = readsApart
        ? async function (this: GPUBuffer, ...given) {
          await new Promise((resolve) => setTimeout(resolve, 30));
          return mapAsync.apply(this, given);
        }
        : function (this: GPUBuffer, ...given) {
          const until = performance.now() + 30;
          while (performance.now() < until);
          return mapAsync.apply(this, given);
        };
      try {
        const text = { ...textIn(0), tokens: [1, 2, 3] };
        await rows.read([{ text, begin: 0, end: 2 }]);
        const unused: number[] = [];
        for (let chunk = 0; chunk < 5; chunk++) {
          await rows.decode([text], 2);
          unused.push(encoded.size);
          const [ids] = (await rows.take())!;
          text.tokens.push(...ids);
        }
        // Nothing is known about the first steps, or those behind a prompt.
        assertEquals(unused.slice(3), [unused[2], unused[2]], `${unused}`);
      } finally {
        GPUBuffer.prototype.mapAsync = mapAsync;
      }
    }
  },
);
