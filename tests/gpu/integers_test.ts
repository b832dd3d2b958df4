import { assert, assertEquals } from "@std/assert";
import { DEFAULT_MODEL } from "../../mod.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { CpuRunner } from "../../lib/cpu/runner.ts";
import { GpuRunner } from "../../lib/gpu/runner.ts";
import { openDevice } from "../../lib/open_device.ts";
import { relativeError } from "../support/golden.ts";
import { gpuTest } from "../support/gpu.ts";
import { resolveSampling } from "../../lib/model/sampling.ts";

const GREEDY = resolveSampling({ temperature: 0 }, {});

/** The first token of stories, and some that follow it. */
const IDS = [1, 365, 400, 29];

// A software renderer would multiply in f32; here it is made to multiply as other GPUs do.
gpuTest(
  "a model whose quants multiply as integers is as exact as in f16",
  async () => {
    for (const quantize of ["q8_0", "q4_0", "q5_1"]) {
      await using checkpoint = await openCheckpoint(DEFAULT_MODEL, {
        quantize,
      });
      using exact = await CpuRunner.load(checkpoint, { context: 32 });
      using runner = await GpuRunner.load(await openDevice(), checkpoint, {
        context: 32,
        cacheDtype: "f32",
        f16Matmuls: true,
      });
      if (!runner.gpu.f16 || runner.gpu.subgroupSize < 8) return;
      for (const id of IDS) {
        const expected = await exact.logits([id]);
        const error = relativeError(await runner.logits([id]), expected);
        // Rounding is visible, so integers were multiplied; and it is small.
        assert(error > 1e-7 && error <= 1e-3, `${quantize}, ${id}: ${error}`);
      }
    }
  },
);

gpuTest("replies are the same with integers as without", async () => {
  await using checkpoint = await openCheckpoint(DEFAULT_MODEL, {
    quantize: "q8_0",
  });
  const replies = [];
  for (const f16Matmuls of [false, true]) {
    using runner = await GpuRunner.load(await openDevice(), checkpoint, {
      context: 64,
      cacheDtype: "f32",
      f16Matmuls,
    });
    if (!runner.gpu.f16) return;
    const ids: number[] = [];
    for await (const some of runner.generate([[IDS[0]]], GREEDY, 24)) {
      ids.push(...some);
    }
    replies.push(ids);
  }
  assertEquals(replies[0].length, 24);
  assertEquals(replies[1], replies[0]);
});
