/** States of texts that take one pass together, or several alone. */
import { assert, assertEquals } from "@std/assert";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { CpuRunner } from "../../lib/cpu/runner.ts";
import {
  chooseStateBatches,
  GPU_PASSES,
} from "../../lib/dispatch/state_batches.ts";
import { GpuOps } from "../../lib/gpu/ops.ts";
import { GpuSequences } from "../../lib/gpu/sequences.ts";
import { GpuStates } from "../../lib/gpu/states.ts";
import { gpuStore } from "../../lib/gpu/store.ts";
import { loadWeights } from "../../lib/model/weights.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, type Trial } from "../support/gpu.ts";
import { withLargeValues } from "../support/temp_checkpoint.ts";

const FIXTURES = new URL("../fixtures/", import.meta.url).href;
const CONTEXT = 120;

/** The states of texts on the GPU, in passes of up to `rows` rows; undefined on overflow. */
async function statesOf(
  { gpu }: Trial,
  model: string,
  dtype: "f16" | "f32",
  rows: number,
  texts: readonly (readonly number[])[],
) {
  await using checkpoint = await openCheckpoint(model);
  const weights = await loadWeights(checkpoint, gpuStore(gpu));
  using ops = new GpuOps(gpu, checkpoint.config);
  const size = { sequences: 1, context: CONTEXT, dtype };
  using one = await GpuSequences.create(ops, weights, size);
  using states = new GpuStates(one, rows);
  assertEquals(states.rows, rows);
  const lengths = texts.map(({ length }) => length);
  const batches = chooseStateBatches(lengths, rows, GPU_PASSES);
  const shaders = states.shaders(batches);
  const some = batches.some(({ tokens }) => tokens <= rows);
  assertEquals(shaders.length > 0, some);
  const values = await states.run(batches, texts);
  assertEquals(states.shaders(batches).length, 0); // all are compiled
  // Once more, with the passes that are recorded.
  assertEquals(await states.run(batches, texts), values);
  if (values === undefined) return undefined;
  const { hiddenSize } = checkpoint.config;
  const all: Float32Array[] = [];
  batches.flatMap(({ texts }) => texts).forEach((text, i) =>
    all[text] = values.slice(i * hiddenSize, (i + 1) * hiddenSize)
  );
  return all;
}

gpuTest(
  "texts longer than a pass, and more texts than elements in a head, agree with the CPU",
  async (_, trial) => {
    const { random } = trial, model = `${FIXTURES}tiny-untied-f32/`;
    await using checkpoint = await openCheckpoint(model);
    using cpu = await CpuRunner.load(checkpoint, { context: CONTEXT });
    const some = (n: number) =>
      Array.from({ length: n }, () => random.int(0, 499));
    for (
      const [rows, lengths] of [
        [32, [100, 33, 32, 5, 31, 1, 64, 8]], // 33 tokens end with a pass of one
        [256, [...new Array(60).fill(0).map(() => random.int(1, 4)), 40]],
        [2, [5, 1]], // too few for a padded text
      ] as const
    ) {
      const texts = lengths.map(some);
      const expected = await cpu.states(texts);
      const actual = await statesOf(trial, model, "f32", rows, texts);
      for (const [i, state] of expected.entries()) {
        const close = { absolute: 2e-5, relative: 2e-5 };
        assertAllClose(actual![i], state, close, `${rows}: ${lengths[i]}`);
      }
    }
  },
);

gpuTest(
  "a value that does not fit f16 is noticed in short and long texts",
  async (_, trial) => {
    await using large = await withLargeValues(`${FIXTURES}tiny-tied-bf16/`);
    for (const length of [9, 70]) {
      const texts = [Array.from({ length }, (_, i) => i)];
      const states = (dtype: "f16" | "f32") =>
        statesOf(trial, large.path, dtype, 32, texts);
      assertEquals(await states("f16"), undefined);
      const [state] = (await states("f32"))!;
      assert(state.every(Number.isFinite));
    }
  },
);
