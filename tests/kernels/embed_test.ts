import { embed } from "../../kernels/embed.ts";
import { toF32 } from "../../lib/cpu_dtype.ts";
import { assertAllClose } from "../assert_all_close.ts";
import { gpuTest } from "../gpu.ts";

gpuTest(
  "embed copies rows of a table, whole or in parts, exactly",
  async (_, trial) => {
    const { random } = trial, n = 41;
    for (const dtype of ["f32", "f16", "bf16"] as const) {
      for (const k of [1, 3, 4, 80, 257, 1024]) {
        const table = random.tensor(dtype, [n, k]), values = toF32(table);
        const tokens = [0, n - 1, 16, 15, 15, random.int(0, n - 1)];
        const ids = trial.u32(...tokens);
        const expected = tokens.flatMap((t) => [
          ...values.subarray(t * k, t * k + k),
        ]);
        const x = trial.filled([tokens.length, k]);
        trial.run(embed, { table: trial.upload(table), tokens: ids, x }, {
          uniforms: { begin: 0 },
        });
        assertAllClose(await x.read(), expected, {}, `${dtype} ${k}`);

        // Rows 16 … 31 alone: tokens before and after keep what was there.
        const data = table.data.slice(16 * k, 32 * k);
        const part = trial.upload({ dtype, shape: [16, k], data });
        const y = trial.filled([tokens.length, k], 7);
        trial.run(embed, { table: part, tokens: ids, x: y }, {
          uniforms: { begin: 16 },
        });
        const inPart = expected.map((value, at) => {
          const token = tokens[Math.floor(at / k)];
          return token >= 16 && token < 32 ? value : 7;
        });
        assertAllClose(await y.read(), inPart, {}, `part of ${dtype} ${k}`);
      }
    }
  },
);

gpuTest(
  "embed takes more tokens than a grid's dimension has",
  async (_, trial) => {
    const table = trial.random.tensor("bf16", [300, 2]), values = toF32(table);
    const tokens = Array.from(
      { length: 70001 },
      () => trial.random.int(0, 299),
    );
    const x = trial.filled([tokens.length, 2]);
    const operands = {
      table: trial.upload(table),
      tokens: trial.u32(...tokens),
      x,
    };
    trial.run(embed, operands, { uniforms: { begin: 0 } });
    const expected = tokens.flatMap((t) => [values[2 * t], values[2 * t + 1]]);
    assertAllClose(await x.read(), expected);
  },
);
