import { sampleFinish } from "../../kernels/sample_finish.ts";
import { gpuTest } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

const SIZES = [[35, 4], [1024, 1], [4097, 8], [20001, 64]];

gpuTest(
  "sampleFinish picks the best of all chunks and advances the loop",
  async (_, trial) => {
    for (const [vocab, chunks] of SIZES) {
      const shape = { sequences: trial.random.int(1, 5), vocab, chunks };
      await checkCase(sampleFinish, trial, { ...shape, from: "winners" });
    }
  },
);

gpuTest(
  "sampleFinish draws from the top k of all chunks, and from top-p of those",
  async (_, trial) => {
    const { random } = trial;
    for (const [vocab, chunks] of SIZES) {
      const sequences = random.int(1, 3), topK = random.int(1, 34);
      const shape = { sequences, vocab, chunks, from: "top-k", topK } as const;
      await checkCase(sampleFinish, trial, shape);
      await checkCase(sampleFinish, trial, { ...shape, topP: 0.6 });
    }
  },
);

gpuTest(
  "sampleFinish settles the bins that a histogram left open",
  async (_, trial) => {
    const { random } = trial;
    for (const [vocab, chunks] of SIZES) {
      const shape = { sequences: 1, vocab, chunks, from: "histogram" } as const;
      const topK = random.int(1, vocab - 1), topP = random.pick([0.2, 0.9]);
      await checkCase(sampleFinish, trial, { ...shape, topK });
      await checkCase(sampleFinish, trial, { ...shape, topP });
      await checkCase(sampleFinish, trial, { ...shape, topK, topP });
    }
  },
);
