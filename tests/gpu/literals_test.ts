/** Which sizes of decode steps are literals. */
import { assert, assertEquals } from "@std/assert";
import { parseSynthetic } from "../../lib/checkpoint/synthetic.ts";
import { openDevice } from "../../lib/device/open_device.ts";
import { matrixOf } from "../../lib/formats/matrix.ts";
import { GpuKvCache } from "../../lib/gpu/kv_cache.ts";
import { GpuOps } from "../../lib/gpu/ops.ts";
import { Plan } from "../../lib/webgpu/plan.ts";
import { gpuTest, Trial } from "../support/gpu.ts";
import { wrapGpu } from "../support/wrapped_gpu.ts";

const HARDWARE = {
  info: {
    vendor: "nvidia",
    description: "NVIDIA H200",
    isFallbackAdapter: false,
  },
};

gpuTest(
  "a step of any sequence runs the same texts, which state other sizes",
  async (_, { draw }) => {
    using gpu = await openDevice({ gpu: wrapGpu(HARDWARE).gpu });
    using trial = new Trial(gpu, draw);
    const { config } = parseSynthetic("synthetic:qwen3-0.6b");
    const own = { ...config, numHiddenLayers: 1 };
    const { headDim, numAttentionHeads, numKeyValueHeads } = own;
    const width = (numAttentionHeads + 2 * numKeyValueHeads) * headDim;
    const { random } = trial;
    const qkv = trial.upload(random.tensor("f32", [1, width]));
    const norm = matrixOf(trial.upload(random.tensor("bf16", [headDim])), "");
    for (const paging of [undefined, { page: 32, pages: 4 }]) {
      using cache = new GpuKvCache(gpu, own, 3, 64, "f16", { paging });
      using ops = new GpuOps(gpu, own);
      const textsOf = (first: number) => {
        using plan = ops.plan = new Plan(gpu, cache.literals(1));
        cache.record({ first, sequences: 1, tokens: 1 });
        ops.attend(qkv, norm, norm, cache, 0);
        return plan.shaders.map(({ code }) => code);
      };
      const texts = textsOf(0);
      for (const first of [1, 2]) assertEquals(textsOf(first), texts);
      for (const text of texts) assert(!text.includes("u.kvHeads"), text);
    }
  },
);
