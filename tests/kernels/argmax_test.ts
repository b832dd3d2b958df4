import { assertEquals } from "@std/assert";
import { argmax } from "../../kernels/argmax.ts";
import { keyOf, scoreOf } from "../../kernels/sample_case.ts";
import { runCase } from "../../lib/check/kernel_case.ts";
import { type CpuTensor, f32 } from "../../lib/formats/tensor.ts";
import { gpuTest, lanes } from "../support/gpu.ts";
import { checkCase, makeCase } from "../support/kernel_case.ts";

gpuTest(
  "argmax finds each chunk's best score, for any vocabulary and number of chunks",
  async (_, trial) => {
    const { random } = trial;
    for (
      const [vocab, chunks] of [[1, 1], [3, 2], [33, 4], [1000, 1], [4097, 8], [
        20001,
        64,
      ]]
    ) {
      const sequences = random.int(1, 3);
      await checkCase(argmax, trial, { sequences, vocab, chunks });
    }
  },
);

gpuTest(
  "argmax zeroes the histogram",
  async (_, trial) => {
    for (const vocab of [1003, 2048]) {
      const sizes = { sequences: 2, vocab, chunks: 2 };
      await checkCase(argmax, trial, { ...sizes, histogram: true });
    }
  },
);

gpuTest("argmax gives the same without subgroups", async (gpu, trial) => {
  const sizes = { sequences: 2, vocab: 2003, chunks: 4 };
  await checkCase(argmax, trial, sizes, lanes(gpu, false));
});

gpuTest(
  "argmax lets the worst logit that is not finite win, and masked ones lose",
  async (gpu, trial) => {
    const sizes = { sequences: 1, vocab: 64, chunks: 1 };
    const best = async (edit: (logits: Float32Array) => void) => {
      const one = makeCase(argmax, trial, sizes)!;
      edit(f32(one.operands.logits as CpuTensor));
      const { highest } = await runCase(gpu, argmax, one);
      return [scoreOf(highest[0]), highest[1]];
    };
    const [large, twice, thrice] = [1e30, 2e30, 3e30].map(Math.fround);
    assertEquals(await best((x) => x[40] = 3e38), [large, 40]);
    assertEquals(await best((x) => x[40] = Infinity), [twice, 40]);
    assertEquals(
      await best((x) => x.fill(NaN, 3).fill(Infinity, 1, 3)),
      [thrice, 3],
    );
    assertEquals(await best((x) => x.fill(-Infinity).fill(-5, 7, 9)), [-5, 7]);
    assertEquals(
      await best((x) => x.fill(-Infinity).fill(-3e38, 3, 4)),
      [-large, 3],
    );
    assertEquals(await best((x) => x.fill(-Infinity)), [-twice, 0]);
  },
);

Deno.test("keys sort like their scores and convert back to them", () => {
  const scores = [-3e38, -8, -1e-30, 0, 1e-30, 2.5, 3e38].map(Math.fround);
  const keys = scores.map(keyOf);
  assertEquals(keys, keys.toSorted((a, b) => a - b));
  assertEquals(keys.map(scoreOf), scores);
  assertEquals(keyOf(-0), keyOf(0));
});
