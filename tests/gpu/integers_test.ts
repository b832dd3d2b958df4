import { assert, assertEquals } from "@std/assert";
import { DEFAULT_MODEL } from "../../mod.ts";
import type { Checkpoint } from "../../lib/checkpoint/checkpoint.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { CpuRunner } from "../../lib/cpu/runner.ts";
import { GpuRunner } from "../../lib/gpu/runner.ts";
import { openDevice } from "../../lib/device/open_device.ts";
import { relativeError } from "../support/golden.ts";
import { gpuTest } from "../support/gpu.ts";
import { faultText, resolveSampling } from "../../lib/model/sampling.ts";

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

// Another kernel than that of one token multiplies four.
gpuTest("integers do not hide what is no number", async () => {
  await using checkpoint = await openCheckpoint(DEFAULT_MODEL, {
    quantize: "q8_0",
  });
  for (
    const [tensor, value] of [
      ["model.layers.1.input_layernorm.weight", NaN],
      ["model.layers.2.post_attention_layernorm.weight", -Infinity],
      ["model.norm.weight", NaN],
      ["model.norm.weight", Infinity],
    ] as const
  ) {
    const faulty: Checkpoint = {
      ...checkpoint,
      async read(name, begin, into) {
        await checkpoint.read(name, begin, into);
        if (name !== tensor) return;
        const { format: { name: type } } = checkpoint.tensors.get(name)!;
        const bits = new Uint8Array(Float32Array.of(value).buffer);
        into.set(type === "f32" ? bits : bits.subarray(2), 4 * bits.length);
      },
    };
    using runner = await GpuRunner.load(await openDevice(), faulty, {
      context: 32,
      cacheDtype: "f32",
      f16Matmuls: true,
    });
    for (const ids of [IDS.slice(0, 1), IDS]) {
      const logits = await runner.logits(ids);
      const what = `${value} in ${tensor}, ${ids.length} tokens`;
      assert(logits.every((logit) => !Number.isFinite(logit)), what);
    }
    for await (const [id] of runner.generate([IDS], GREEDY, 1)) {
      assert(faultText(id), `token ${id}, ${value} in ${tensor}`);
    }
  }
});

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
