import { assertEquals } from "@std/assert";
import { openCheckpoint } from "../../../lib/checkpoint/open.ts";
import { Bench } from "../../../lib/tools/tune/bench.ts";
import { casesOf } from "../../../lib/tools/tune/cases.ts";
import { gpuTest } from "../../support/gpu.ts";

gpuTest(
  "tuning covers each format that a layer of a mixture has",
  async (gpu) => {
    const spec = "synthetic:qwen3-0.6b?dtype=q4_k_m&vocab=64";
    await using checkpoint = await openCheckpoint(spec);
    using bench = await Bench.load(gpu, checkpoint);
    // The first layer has v_proj and down_proj in Q6_K, the fourth has all in Q4_K.
    assertEquals(bench.kinds, 2);
    const { cases } = casesOf(bench, ["gemv"]);
    assertEquals(cases.map(({ key, labels }) => [key, ...labels]), [
      ["gemv q4_k 1 3072 1024", "qkv_proj"],
      ["gemv q6_k 1 1024 1024", "qkv_proj"],
      ["gemv q4_k swiglu 1 6144 1024", "gate_up_proj"],
      ["gemv q6_k 1 1024 3072", "down_proj"],
      ["gemv q4_k 1 1024 2048", "o_proj"],
      ["gemv q4_k 1 4096 1024", "qkv_proj"],
      ["gemv q4_k 1 1024 3072", "down_proj"],
      ["gemv q6_k 1 64 1024", "lm_head"],
    ]);
    for (const one of cases) assertEquals(await bench.check(one), undefined);
  },
);
