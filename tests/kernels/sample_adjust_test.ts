import { sampleAdjust } from "../../kernels/sample_adjust.ts";
import { MOST_BIASES } from "../../lib/dispatch/sampling.ts";
import { gpuTest } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

gpuTest(
  "sampleAdjust applies each row's biases, penalties and mask",
  async (_, trial) => {
    const { random } = trial;
    for (const vocab of [1, 31, 1024, 1025, 5003]) {
      const rows = Array.from(
        { length: random.int(1, 4) },
        () =>
          random.int(0, 4) === 0 ? undefined : {
            repetition: random.pick([1, 1.3, 0.7]),
            presence: random.pick([0, 2, -1.5]),
            frequency: random.pick([0, 0.1, -2]),
            biases: random.pick([0, 1, 300, MOST_BIASES]),
            masked: random.int(0, 1) > 0,
          },
      );
      const shape = { sequences: rows.length, vocab, rows };
      await checkCase(sampleAdjust, trial, shape);
    }
  },
);
