/**
 * Where rows lie: in the memory of the weights, in another that threads share, or where only
 * the caller sees them. Rows are enough for all threads.
 */
import { assert, assertEquals } from "@std/assert";
import type { Qwen3Config } from "../../lib/checkpoint/config.ts";
import { parseSynthetic } from "../../lib/checkpoint/synthetic.ts";
import { CpuOps, type CpuTensor } from "../../lib/cpu/ops.ts";
import { matrixOf } from "../../lib/formats/matrix.ts";
import { randomTest } from "../support/random.ts";

const [HEADS, KV_HEADS, HEAD_DIM] = [4, 2, 64], K = 264, N = 520, ROWS = 150;
const CONFIG: Qwen3Config = {
  ...parseSynthetic("synthetic:qwen3-0.6b").config,
  hiddenSize: K,
  numHiddenLayers: 1,
  numAttentionHeads: HEADS,
  numKeyValueHeads: KV_HEADS,
  headDim: HEAD_DIM,
};

for (const kv of ["f32", "q8_0"] as const) {
  randomTest(`rows may lie anywhere, with a cache in ${kv}`, async (random) => {
    const width = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
    const data = {
      x: random.tensor("f32", [ROWS, K], 2),
      residual: random.tensor("f32", [ROWS, N], 2),
      qkv: random.tensor("f32", [ROWS, width], 2),
    };
    const weights = {
      norm: random.tensor("f32", [K]),
      headNorm: random.tensor("f32", [HEAD_DIM]),
      w: random.tensor("bf16", [N, K], K ** -0.5),
    };
    const run = async (
      threads: number,
      place: "with the weights" | "in another memory" | "with the caller",
    ) => {
      using ops = new CpuOps(CONFIG, { threads });
      const put = ({ dtype, shape, data }: CpuTensor) => {
        const tensor = ops.tensor(dtype, shape);
        tensor.data.set(data);
        return tensor;
      };
      const norm = matrixOf(put(weights.norm)), w = matrixOf(put(weights.w));
      const headNorm = matrixOf(put(weights.headNorm));
      using cache = ops.createCache(1, ROWS, kv);
      const first = w.parts[0].planes[0].data.buffer;
      if (place === "in another memory") {
        for (let i = 0; i < 2; i++) ops.tensor("u32", [2.5 * 2 ** 30 / 4]);
      }
      const take = (name: keyof typeof data): CpuTensor => {
        const { dtype, shape, data: values } = data[name];
        if (place !== "with the caller") return put(data[name]);
        return { dtype, shape, data: values.slice() };
      };
      const x = take("x");
      if (place !== "with the weights") {
        assert(x.data.buffer !== first);
      }
      ops.normMatmul(x, norm, w); // starts the threads, which take a while
      await new Promise((resolve) =>
        setTimeout(resolve, threads > 1 ? 200 : 0)
      );
      cache.begin({ first: 0, sequences: 1, tokens: ROWS });
      const pick = Uint32Array.from({ length: ROWS }, (_, i) => ROWS - 1 - i);
      const results = {
        normMatmul: ops.normMatmul(x, norm, w),
        normSwiglu: ops.normSwiglu(x, norm, w),
        matmulAdd: ops.matmulAdd(x, w, take("residual")),
        attend: ops.attend(take("qkv"), headNorm, headNorm, cache, 0),
        normRows: ops.normRows(
          x,
          { dtype: "u32", shape: [ROWS], data: pick },
          norm,
        ),
      };
      const { k, v } = cache.layers[0];
      return Object.entries({ ...results, k, v }).map(([name, { data }]) =>
        [name, data.slice()] as const
      );
    };
    const expected = await run(1, "with the weights");
    for (const [name, values] of expected) {
      assert(values.some((value) => value !== 0), name);
    }
    for (
      const place of [
        "with the weights",
        "in another memory",
        "with the caller",
      ] as const
    ) {
      for (const [i, [name, values]] of (await run(3, place)).entries()) {
        assertEquals(values, expected[i][1], `${name}, rows ${place}`);
      }
    }
  });
}
