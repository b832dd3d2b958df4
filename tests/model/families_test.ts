import { assert, assertEquals, assertThrows } from "@std/assert";
import { parseSynthetic } from "../../lib/checkpoint/synthetic.ts";
import { familyOf, parseConfig } from "../../lib/model/families.ts";
import {
  mapWeights,
  pairWeights,
  tensorShapes,
  type Weights,
} from "../../lib/model/family.ts";
import { qwen3 } from "../../lib/model/qwen3.ts";

const tied = parseSynthetic("synthetic:qwen3-0.6b?layers=2").config;

Deno.test("a family is found by model_type, and an unknown one is refused with the known ones", () => {
  assertEquals(familyOf(tied), qwen3);
  const refused: [string, string][] = [
    ["llama", 'model_type is "llama", must be "qwen3" or "qwen3_moe"'],
    ["qwen2_moe", 'model_type is "qwen2_moe", must be "qwen3" or "qwen3_moe"'],
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
    'Cannot use a model: its model_type is "llama", must be "qwen3" or "qwen3_moe"',
  );
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
