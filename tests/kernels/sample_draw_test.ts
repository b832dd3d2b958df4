import { sampleDraw } from "../../kernels/sample_draw.ts";
import { gpuTest } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

const SIZES = [[35, 4], [1024, 1], [4097, 8], [20001, 64]];

gpuTest(
  "sampleDraw draws by the noise of each token, among those that min-p keeps",
  async (_, trial) => {
    const { random } = trial;
    for (const [vocab, chunks] of SIZES) {
      for (const minP of [0, 0.2, 1]) {
        const temperature = random.pick([0.3, 1, 2.5]);
        const shape = { sequences: random.int(1, 3), vocab, chunks };
        await checkCase(sampleDraw, trial, { ...shape, temperature, minP });
      }
    }
  },
);

gpuTest(
  "sampleDraw narrows top-k and top-p down to bins and leaves those open",
  async (_, trial) => {
    const { random } = trial;
    for (const [vocab, chunks] of SIZES) {
      const shape = { sequences: 1, vocab, chunks };
      const topK = random.int(1, vocab - 1),
        topP = random.pick([0.1, 0.7, 0.95]);
      const temperature = random.pick([0.3, 1, 2.5]);
      await checkCase(sampleDraw, trial, { ...shape, temperature, topK });
      await checkCase(sampleDraw, trial, { ...shape, temperature, topP });
      await checkCase(sampleDraw, trial, { ...shape, temperature, topK, topP });
    }
  },
);
