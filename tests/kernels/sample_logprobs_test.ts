import { sampleLogprobs } from "../../kernels/sample_logprobs.ts";
import { gpuTest, lanes } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

gpuTest(
  "sampleLogprobs reports the token and the most likely ones, in order",
  async (_, trial) => {
    const { random } = trial;
    const sizes = [[1, 1], [35, 4], [1024, 2], [4097, 8], [20001, 64]];
    for (const [vocab, chunks] of sizes) {
      const alternatives = [20, random.int(1, 19), 0];
      const shape = { sequences: random.int(1, 4), vocab, chunks };
      await checkCase(sampleLogprobs, trial, { ...shape, alternatives });
    }
  },
);

gpuTest(
  "sampleLogprobs gives the same without subgroups",
  async (gpu, trial) => {
    const shape = {
      sequences: 2,
      vocab: 2003,
      chunks: 4,
      alternatives: [20, 5],
    };
    await checkCase(sampleLogprobs, trial, shape, lanes(gpu, false));
  },
);
