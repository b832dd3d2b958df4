import { embed } from "../../kernels/embed.ts";
import { type CpuTensor, toF32 } from "../../lib/formats/tensor.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, type Trial } from "../support/gpu.ts";

const PARTS = Number(embed.constants.WORKGROUP), POISON = 7;

/** Embeds rows `begin …` of a table; other tokens leave their rows unchanged. */
async function check(
  trial: Trial,
  table: CpuTensor,
  tokens: number[],
  begin: number,
): Promise<void> {
  const [n, k] = table.shape, values = toF32(table), rows = tokens.length;
  const x = trial.filled([rows, k], POISON);
  const squares = trial.filled([rows, PARTS], POISON);
  const ids = trial.u32(...tokens), given = trial.upload(table);
  trial.run(embed, { table: given, tokens: ids, x, squares }, {
    uniforms: { begin },
  });
  const expected = new Float32Array(rows * k).fill(POISON);
  const sums = new Float64Array(rows).fill(POISON * PARTS);
  tokens.forEach((token, row) => {
    if (token < begin || token >= begin + n) return;
    const at = (token - begin) * k, own = values.subarray(at, at + k);
    expected.set(own, row * k);
    sums[row] = own.reduce((sum, value) => sum + value * value, 0);
  });
  const message = `${table.dtype} ${n} × ${k} from ${begin}`;
  assertAllClose(await x.read(), expected, {}, message);
  const parts = await squares.read();
  const found = sums.map((_, row) =>
    parts.subarray(row * PARTS, (row + 1) * PARTS).reduce((a, b) => a + b)
  );
  assertAllClose(found, sums, { relative: 1e-5 }, `squares of ${message}`);
}

gpuTest(
  "embed copies rows of a table, whole or in parts, exactly",
  async (_, trial) => {
    const { random } = trial, n = 41;
    for (const dtype of ["f32", "f16", "bf16"] as const) {
      for (const k of [1, 3, 4, 80, 257, 1024]) {
        const tokens = [0, n - 1, 16, 15, 31, 32, 15, random.int(0, n - 1)];
        await check(trial, random.tensor(dtype, [n, k]), tokens, 0);
        await check(trial, random.tensor(dtype, [16, k]), tokens, 16);
      }
    }
  },
);

gpuTest(
  "embed takes more tokens than one dimension of a grid holds",
  async (_, trial) => {
    const { random } = trial;
    const tokens = Array.from({ length: 70001 }, () => random.int(0, 299));
    await check(trial, random.tensor("bf16", [300, 2]), tokens, 0);
  },
);
