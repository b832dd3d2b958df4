/**
 * Attention as the model runs it, with norm, RoPE and the append to the cache, in
 * Qwen3-0.6B's shape: decode steps and prompts. Each dispatch is one layer with its own
 * cache.
 *
 *   deno bench -A bench/attention_bench.ts
 */
import { matrixOf } from "../lib/formats/matrix.ts";
import { cachedBytes, type CacheDtype } from "../lib/formats/cached.ts";
import { GpuKvCache } from "../lib/gpu/kv_cache.ts";
import { GpuOps } from "../lib/gpu/ops.ts";
import type { Plan } from "../lib/webgpu/plan.ts";
import { causalPairs } from "../kernels/cost.ts";
import { parseSynthetic } from "../lib/checkpoint/synthetic.ts";
import { benchPlans, copiesOf, openBench } from "./plans.ts";
import { randomMatrix } from "./matmuls.ts";

const gpu = await openBench();
const { config } = parseSynthetic("synthetic:qwen3-0.6b");
const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim } = config;
const shapes = gpu.software ? [[1, 128], [32, 0]] : [
  [1, 128],
  [1, 2048],
  [1, 32767],
  [512, 0],
  [2048, 0],
];

benchPlans(
  gpu,
  "attention",
  shapes.map(([tokens, length]) => {
    const keys = length + tokens, decode = tokens === 1;
    const cached = (dtype: CacheDtype) =>
      2 * kvHeads * keys * cachedBytes(dtype, headDim);
    const copies = copiesOf(gpu, cached("f16"));
    const record = (plan: Plan, dtype: CacheDtype) => {
      const cache = new GpuKvCache(
        gpu,
        { ...config, numHiddenLayers: copies },
        ...[1, keys, dtype] as const,
      );
      const ops = new GpuOps(gpu, config, plan);
      plan.own(ops);
      plan.own(cache);
      const width = (heads + 2 * kvHeads) * headDim;
      const qkv = randomMatrix(gpu, "f32", [tokens, width]);
      const weights = randomMatrix(gpu, "f32", [headDim]);
      const norm = matrixOf(weights);
      norm.largest = 1;
      plan.own(qkv);
      plan.own(weights);
      cache.reset([length]);
      cache.record({ first: 0, sequences: 1, tokens });
      for (let layer = 0; layer < copies; layer++) {
        ops.attend(qkv, norm, norm, cache, layer);
      }
    };
    return {
      name: decode ? `1 token after ${length}` : `a prompt of ${tokens}`,
      copies,
      batch: gpu.software ? 4 : decode ? 32 : 4,
      flops: 4 * heads * headDim * causalPairs(tokens, length),
      length,
      cases: (["f32", "f16", "q8_0"] as const).map((dtype) => ({
        name: `cache in ${dtype}`,
        bound: decode ? "memory" : dtype === "f32" ? "f32" : "f16",
        bytes: cached(dtype),
        record: (plan) => record(plan, dtype),
      })),
    };
  }),
);
