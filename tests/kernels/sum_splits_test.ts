import { gemm } from "../../kernels/gemm.ts";
import { sumSplits } from "../../kernels/sum_splits.ts";
import { toF32 } from "../../lib/formats/tensor.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest } from "../support/gpu.ts";
import { assertSums, epilogue, linear } from "../support/reference.ts";

const TILE = { BM: 32, BN: 32, BK: 8, TM: 4, TN: 4 };

gpuTest(
  "sumSplits sums the splits of a gemm over k",
  async (_, trial) => {
    const { random } = trial;
    for (const splits of [2, 7]) {
      for (const k of [1, 17, 64, 200]) {
        const m = random.int(1, 70), n = random.pick([5, 64]);
        const ADD = random.int(0, 1), before = 3, column = 16;
        const stride = column + n + (n % 4 ? 1 : 4);
        const message = JSON.stringify({
          splits,
          m,
          n,
          k,
          ADD,
          column,
          stride,
        });
        const a = random.tensor("f32", [m, k]),
          b = random.tensor("f16", [n, k]);
        const partial = trial.filled([splits * m, n]);
        trial.run(
          gemm,
          { a: trial.upload(a), b: trial.upload(b), c: partial },
          {
            constants: { ...TILE, SPLITS: splits },
            uniforms: { stride: n, column: 0 },
          },
        );
        const y = trial.filled([m, stride], ADD ? before : NaN);
        trial.run(sumSplits, { partial, y }, {
          constants: { SPLITS: splits, ADD },
          uniforms: { stride, column },
        });
        const product = linear(toF32(a), toF32(b), { m, n, k });
        const all = await y.read();
        const inside = (at: number) =>
          at % stride >= column && at % stride < column + n;
        const actual = all.filter((_, at) => inside(at));
        assertSums(
          actual,
          epilogue(ADD ? "add" : "store", product, n, before),
          message,
        );
        const around = all.filter((_, at) => !inside(at));
        const poison = around.map(() => ADD ? before : NaN);
        assertAllClose(around, poison, {}, `around ${message}`);
      }
    }
  },
);
