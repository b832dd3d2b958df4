import { sampleHistogram } from "../../kernels/sample_histogram.ts";
import { gpuTest } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

gpuTest(
  "sampleHistogram counts and weighs every score, at any temperature",
  async (_, trial) => {
    const { random } = trial;
    const sizes = [[1, 1], [35, 4], [1024, 2], [4097, 8], [20001, 64]];
    for (const [vocab, chunks] of sizes) {
      const temperatures = [1, 0.1, 3.5, 0.9, 20];
      const shape = { sequences: random.int(1, 5), vocab, chunks };
      await checkCase(sampleHistogram, trial, { ...shape, temperatures });
    }
  },
);
