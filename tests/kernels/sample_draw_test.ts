import { sampleDraw } from "../../kernels/sample_draw.ts";
import { gpuTest } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

const SIZES = [[35, 4], [1024, 1], [4097, 8], [20001, 64]];

gpuTest(
  "sampleDraw draws by the noise of each token, among those that min-p keeps",
  async (_, trial) => {
    const { random } = trial;
    for (const [vocab, chunks] of SIZES) {
      const rows = [0, 0.2, 1].map((minP) => ({
        temperature: random.pick([0, 0.3, 1, 2.5]),
        minP,
      }));
      await checkCase(sampleDraw, trial, { sequences: 3, vocab, chunks, rows });
    }
  },
);

gpuTest(
  "sampleDraw narrows top-k and top-p down to bins and leaves those open",
  async (_, trial) => {
    const { random } = trial;
    for (const [vocab, chunks] of SIZES) {
      const topK = random.int(1, vocab - 1),
        topP = random.pick([0.1, 0.7, 0.95]);
      const temperature = random.pick([0.3, 1, 2.5]);
      const rows = [
        { temperature, topK },
        { temperature, topP },
        { temperature, topK, topP },
        { temperature },
        { temperature: 0 },
      ];
      const shape = { vocab, chunks };
      await checkCase(sampleDraw, trial, { sequences: 5, ...shape, rows });
      for (const row of rows.slice(0, 3)) {
        await checkCase(sampleDraw, trial, {
          sequences: 1,
          ...shape,
          rows: [row],
        });
      }
    }
  },
);
