import { assertEquals } from "@std/assert";
import { parseSynthetic } from "../../lib/checkpoint/synthetic.ts";
import {
  listWeights,
  stackedShape,
  tensorShapes,
} from "../../lib/model/family.ts";
import { qwen3 } from "../../lib/model/qwen3.ts";

Deno.test("the table has the tensors of a checkpoint, in the order of the forward pass", () => {
  const { config } = parseSynthetic("synthetic:qwen3-8b?layers=1");
  const table = qwen3.weights(config);
  assertEquals([...tensorShapes(table)], [
    ["model.embed_tokens.weight", [151936, 4096]],
    ["model.layers.0.input_layernorm.weight", [4096]],
    ["model.layers.0.self_attn.q_proj.weight", [4096, 4096]],
    ["model.layers.0.self_attn.k_proj.weight", [1024, 4096]],
    ["model.layers.0.self_attn.v_proj.weight", [1024, 4096]],
    ["model.layers.0.self_attn.q_norm.weight", [128]],
    ["model.layers.0.self_attn.k_norm.weight", [128]],
    ["model.layers.0.self_attn.o_proj.weight", [4096, 4096]],
    ["model.layers.0.post_attention_layernorm.weight", [4096]],
    ["model.layers.0.mlp.gate_proj.weight", [12288, 4096]],
    ["model.layers.0.mlp.up_proj.weight", [12288, 4096]],
    ["model.layers.0.mlp.down_proj.weight", [4096, 12288]],
    ["model.norm.weight", [4096]],
    ["lm_head.weight", [151936, 4096]],
  ]);
  const [{ qkvProj, gateUpProj, qNorm }] = table.layers;
  assertEquals(stackedShape(qkvProj), [6144, 4096]);
  assertEquals([qkvProj.split, gateUpProj.split], ["rows", "pairs"]);
  assertEquals(stackedShape(qNorm), [128]);
  const measured = listWeights(table).filter(({ measured }) => measured);
  assertEquals(measured.map(({ label }) => label), [
    "layers.0.qkv_proj",
    "layers.0.q_norm",
    "layers.0.k_norm",
    "layers.0.o_proj",
    "layers.0.gate_up_proj",
    "layers.0.down_proj",
    "lm_head",
  ]);
});
