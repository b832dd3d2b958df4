import { sampleHistogram } from "../../kernels/sample_histogram.ts";
import { gpuTest } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

gpuTest(
  "sampleHistogram counts and weighs every score, at any temperature",
  async (_, trial) => {
    const { random } = trial;
    const sizes = [[1, 1], [35, 4], [1024, 2], [4097, 8], [20001, 64]];
    for (const [i, [vocab, chunks]] of sizes.entries()) {
      const temperature = [1, 0.1, 3.5, 0.9, 20][i];
      const sequences = random.int(1, 3), shape = { sequences, vocab, chunks };
      await checkCase(sampleHistogram, trial, { ...shape, temperature });
    }
  },
);
