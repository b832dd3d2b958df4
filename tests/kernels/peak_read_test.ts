import { peakRead } from "../../kernels/peak_read.ts";
import { gpuTest } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

gpuTest(
  "peakRead reads every word of a buffer or a texture of any size",
  async (_, trial) => {
    const { random } = trial;
    for (const from of ["buffer", "texture"] as const) {
      // Less than a workgroup reads at once, whole rows of texels, several workgroups.
      for (const words of [8, 1024, 8192, 8196, 16384, 100_004]) {
        await checkCase(peakRead, trial, { words, from });
        // Threads past the end read the last unit again, and twice the same cancels.
        const last = words % 8192 ? words - 5 : words - 1;
        for (const at of [0, last, random.int(0, last)]) {
          await checkCase(peakRead, trial, { words, from, at });
        }
      }
    }
  },
);
