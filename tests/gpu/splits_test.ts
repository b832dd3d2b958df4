import { assert, assertEquals } from "@std/assert";
import { GpuOps } from "../../lib/gpu/ops.ts";
import { GpuRunner } from "../../lib/gpu/runner.ts";
import { GpuSequences } from "../../lib/gpu/sequences.ts";
import { loadQwen3 } from "../../lib/load.ts";
import { gpuTest } from "../support/gpu.ts";
import { relativeError } from "../support/golden.ts";
import { HARDWARE, wrapGpu } from "../support/wrapped_gpu.ts";

const STORIES = new URL("../../models/stories-3m", import.meta.url).pathname;
const EXACT = { precision: "f32" } as const;

gpuTest(
  "few tokens after many have the CPU's logits, over splits of the keys",
  async () => {
    const { gpu } = wrapGpu({ info: { ...HARDWARE.info, vendor: "nvidia" } });
    using model = await loadQwen3(STORIES, { ...EXACT, device: "gpu", gpu });
    using exact = await loadQwen3(STORIES, { ...EXACT, device: "cpu" });
    const { runner, config } = model;
    assert(runner instanceof GpuRunner);
    using ops = new GpuOps(runner.gpu, config);
    using one = await GpuSequences.create(ops, runner.weights, {
      ...{ sequences: 1, context: 600, dtype: "f32" },
    });
    const prompt = Array.from(
      { length: 552 },
      (_, i) => (i * 701 + 3) % config.vocabSize,
    );
    const found: Float32Array[] = [];
    const asked = { sequence: 0, rows: 512, all: false };
    for await (const logits of one.prefill(prompt, asked)) {
      found.push(await logits.read());
    }
    assertEquals(found.length, 2);
    const error = relativeError(found[1], await exact.logits(prompt));
    assert(error < 3e-5, `${error}`);
    const merges = [[512, 0], [40, 512]].map(([tokens, length]) => {
      const shape = { first: 0, sequences: 1, tokens, all: false };
      return one.pass(shape).plan.dispatches.filter(({ kernel, gridAt }) =>
        kernel === "mergeSplits" && gridAt!({ length })
      ).length;
    });
    assertEquals(merges, [0, config.numHiddenLayers]);
  },
);
