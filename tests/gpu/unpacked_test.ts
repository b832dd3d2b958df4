import { assert, assertEquals } from "@std/assert";
import { DEFAULT_MODEL } from "../../mod.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { CpuRunner } from "../../lib/cpu/runner.ts";
import { GpuRunner } from "../../lib/gpu/runner.ts";
import { relativeError } from "../support/golden.ts";
import { gpuTest, openTested } from "../support/gpu.ts";

/** Rows whose tiles fill a large GPU, and rows whose tiles do not. */
const MANY = 1000, FEWER = 300;

// A software renderer would multiply in f32; here it is made to multiply as other GPUs do.
gpuTest(
  "a long prompt by weights that are unpacked once is as exact as in tiles",
  async (_, { random }) => {
    await using checkpoint = await openCheckpoint(DEFAULT_MODEL, {
      quantize: random.pick(["q4_0", "q5_1", "q8_0", undefined]),
    });
    using exact = await CpuRunner.load(checkpoint, { context: 1024 });
    const gpu = await openTested();
    using runner = await GpuRunner.load(gpu, checkpoint, {
      context: 1024,
      cacheDtype: "f32",
      f16Matmuls: true,
    });
    if (!gpu.f16) return;
    const { numHiddenLayers: layers, vocabSize } = runner.config;
    const unpacked = (tokens: number) =>
      runner.pass(tokens, false).plan.dispatches
        .filter(({ kernel }) => kernel === "unpack")
        .map(({ label }) => label.replace(/^layers\.\d+\./, ""));
    assertEquals(unpacked(FEWER), []);
    assertEquals(unpacked(MANY), Array(layers).fill("gate_up_proj"));
    const ids = Array.from(
      { length: MANY },
      () => random.int(0, vocabSize - 1),
    );
    const expected = await exact.logits(ids);
    const error = relativeError(await runner.logits(ids), expected);
    // Rounding is visible, so f16 was multiplied; and it is small.
    assert(error > 1e-6 && error <= 5e-3, `${error}`);
  },
);
