import { BLOCKS, FLOATS } from "../../kernels/case.ts";
import { unpack } from "../../kernels/unpack.ts";
import { formatNamed } from "../../lib/formats/mod.ts";
import { matrixToF32 } from "../../lib/formats/tensor.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest } from "../support/gpu.ts";

gpuTest(
  "unpack rounds weights of every format to f16 and writes nothing else",
  async (_, trial) => {
    const { random } = trial;
    for (const format of [...FLOATS, ...BLOCKS]) {
      const block = formatNamed(format).elements;
      for (const n of [1, 3, 37]) {
        const k = Math.max(4, block) * random.pick([1, 3, 5]);
        const w = random.matrix(format, [n, k]);
        const y = trial.filled([n + 1, k], NaN, "f16");
        trial.run(unpack, { w: trial.uploadMatrix(w), y: y.rows(n) });
        const written = await y.read(), message = `${format} [${n}, ${k}]`;
        const values = written.subarray(0, n * k),
          after = written.subarray(n * k);
        assertAllClose(after, after.map(() => NaN), {}, `after ${message}`);
        // Half of the last of f16's 11 bits, or of its subnormal numbers' steps.
        const close = { relative: 2 ** -11, absolute: 2 ** -25 };
        assertAllClose(values, matrixToF32(w), close, message);
      }
    }
  },
);
