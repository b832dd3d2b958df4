import { sampleFinish } from "../../kernels/sample_finish.ts";
import { gpuTest } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";
import type { Random } from "../support/random.ts";

const SIZES = [[35, 4], [1024, 1], [4097, 8], [20001, 64]];

/** Rows that are drawn from, greedy and idle, in any order but the idle one last. */
function mixed(
  random: Random,
  sequences: number,
  limits: () => { topK?: number; topP?: number },
) {
  const rows = Array.from(
    { length: sequences },
    () => random.int(0, 3) ? limits() : { topK: 1, greedy: true },
  );
  return { sequences: sequences + random.int(0, 1), rows };
}

gpuTest(
  "sampleFinish picks the best of all chunks and advances the loop",
  async (_, trial) => {
    const { random } = trial;
    for (const [vocab, chunks] of SIZES) {
      for (const counts of [false, true]) {
        const some = mixed(random, random.int(1, 4), () => ({}));
        const shape = { ...some, vocab, chunks, counts };
        await checkCase(sampleFinish, trial, { ...shape, from: "winners" });
      }
    }
  },
);

gpuTest(
  "sampleFinish draws from the top k of all chunks, and from top-p of those",
  async (_, trial) => {
    const { random } = trial;
    for (const [vocab, chunks] of SIZES) {
      for (const topP of [1, 0.6]) {
        const limits = () => ({ topK: random.int(1, 34), topP });
        const some = mixed(random, random.int(1, 3), limits);
        const shape = { ...some, vocab, chunks, from: "top-k" } as const;
        await checkCase(sampleFinish, trial, shape);
      }
    }
  },
);

gpuTest(
  "sampleFinish settles the bins that a histogram left open",
  async (_, trial) => {
    const { random } = trial;
    for (const [vocab, chunks] of SIZES) {
      const topK = random.int(1, vocab - 1), topP = random.pick([0.2, 0.9]);
      const rows = [{ topK }, { topP }, { topK, topP }, {}, { greedy: true }];
      const shape = { vocab, chunks, from: "histogram" } as const;
      await checkCase(sampleFinish, trial, { ...shape, sequences: 6, rows });
    }
  },
);
