import { assert, assertEquals, assertThrows } from "@std/assert";
import { parseSynthetic } from "../../lib/checkpoint/synthetic.ts";
import { familyOf, parseConfig } from "../../lib/model/families.ts";
import {
  listWeights,
  mapWeights,
  pairWeights,
  stackedShape,
  tensorShapes,
  type Weights,
} from "../../lib/model/family.ts";
import { qwen3 } from "../../lib/model/qwen3.ts";

const tied = parseSynthetic("synthetic:qwen3-0.6b?layers=2").config;
const untied = parseSynthetic("synthetic:qwen3-8b?layers=1").config;

Deno.test("a family is found by model_type, and an unknown one is refused with those that are known", () => {
  assertEquals(familyOf(tied), qwen3);
  const refused: [string, string][] = [
    ["llama", 'model_type is "llama", must be "qwen3"'],
    [
      "qwen3_moe",
      'model_type is "qwen3_moe", must be "qwen3": a mixture of experts (qwen3_moe) is not supported',
    ],
  ];
  for (const [modelType, message] of refused) {
    assertThrows(
      () => parseConfig({ model_type: modelType }, "config.json"),
      Error,
      `Cannot use config.json: ${message}`,
    );
  }
  assertThrows(
    () => familyOf({ ...tied, modelType: "llama" }),
    Error,
    'Cannot use a model: its model_type is "llama", must be "qwen3"',
  );
});

Deno.test("Qwen3's table has the tensors of a checkpoint, in the order of the forward pass", () => {
  const table = qwen3.weights(untied);
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
  ]);
});

Deno.test("a tied embedding is one weight, however the table is walked", () => {
  const table = qwen3.weights(tied);
  assert(table.lmHead === table.embedTokens);
  assertEquals(tensorShapes(table).has("lm_head.weight"), false);
  let calls = 0;
  const weights: Weights<{ label: string }> = mapWeights(
    table,
    ({ label }) => ({ label, call: calls++ }),
  );
  assertEquals(calls, 1 + 2 * 8 + 1);
  assert(weights.lmHead === weights.embedTokens);
  const pairs = pairWeights(table, weights);
  assertEquals(pairs.size, calls);
  for (const [spec, { label }] of pairs) assertEquals(label, spec.label);
  assertEquals(pairs.get(table.lmHead)?.label, "embed_tokens");
});
