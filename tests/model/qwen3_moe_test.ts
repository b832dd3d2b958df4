import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { ConfigFields } from "../../lib/checkpoint/config.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { familyOf, parseConfig } from "../../lib/model/families.ts";
import {
  listWeights,
  stackedShape,
  tensorShapes,
} from "../../lib/model/family.ts";
import { qwen3Moe } from "../../lib/model/qwen3_moe.ts";
import { parseSynthetic } from "../../lib/checkpoint/synthetic.ts";
import {
  type Entry,
  ones,
  SMALL,
  smallTensors,
  writeGguf,
  type WrittenTensor,
  zeros,
} from "../support/gguf.ts";
import { tempFolder } from "../support/temp_checkpoint.ts";

const FILE: Record<string, unknown> = {
  model_type: "qwen3_moe",
  vocab_size: 151936,
  hidden_size: 2048,
  intermediate_size: 6144,
  num_hidden_layers: 6,
  num_attention_heads: 32,
  num_key_value_heads: 4,
  max_position_embeddings: 40960,
  rope_theta: 1e6,
  num_experts: 128,
  num_experts_per_tok: 8,
  moe_intermediate_size: 768,
  norm_topk_prob: true,
};
const parse = (fields: Record<string, unknown>) =>
  parseConfig({ ...FILE, ...fields }, "config.json");

Deno.test("a layer's experts are stacked, gates first, and its router is exact", () => {
  const { config } = parseSynthetic("synthetic:qwen3-30b-a3b?layers=1");
  assertEquals(familyOf(config), qwen3Moe);
  const table = qwen3Moe.weights(config), [layer] = table.layers;
  const { router, gateUpProj, downProj } = layer;
  assertEquals(stackedShape(router!), [128, 2048]);
  assertEquals([router!.kind, router!.measured], ["router", false]);
  assertEquals(stackedShape(gateUpProj), [2 * 128 * 768, 2048]);
  assertEquals([gateUpProj.split, gateUpProj.together], ["pairs", 768]);
  assertEquals(stackedShape(downProj), [128 * 2048, 768]);
  assertEquals([downProj.split, downProj.together], ["rows", 2048]);
  const names = gateUpProj.tensors.map(({ name }) => name);
  const expert = (e: number, role: string) =>
    `model.layers.0.mlp.experts.${e}.${role}_proj.weight`;
  assertEquals(names[127], expert(127, "gate"));
  assertEquals(names[128], expert(0, "up"));
  assertEquals(
    listWeights(table).map(({ label }) => label).slice(6, 10),
    [
      "layers.0.post_norm",
      "layers.0.router",
      "layers.0.gate_up_proj",
      "layers.0.down_proj",
    ],
  );
  const shapes = tensorShapes(table);
  assertEquals(shapes.get("model.layers.0.mlp.gate.weight"), [128, 2048]);
  assertEquals(shapes.get(expert(5, "down")), [2048, 768]);
  assertEquals(shapes.has("model.layers.0.mlp.down_proj.weight"), false);
});

Deno.test("parseConfig reads experts, with the defaults of transformers", () => {
  assertEquals(parse({}).experts, {
    count: 128,
    used: 8,
    intermediateSize: 768,
    normalized: true,
    denseLayers: [],
  });
  const { model_type, num_experts, norm_topk_prob, ...bare } = FILE;
  assertEquals([model_type, num_experts, norm_topk_prob], [
    "qwen3_moe",
    128,
    true,
  ]);
  const { num_experts_per_tok: _, moe_intermediate_size: __, ...barer } = bare;
  assertEquals(parseConfig({ ...barer, model_type }, "config.json").experts, {
    count: 128,
    used: 8,
    intermediateSize: 768,
    normalized: false,
    denseLayers: [],
  });
  const renamed = { num_experts: undefined, num_local_experts: 16 };
  assertEquals(parse(renamed).experts!.count, 16);
  const both = { num_experts: 8, num_local_experts: 16 };
  assertEquals(parse(both).experts!.count, 16);
});

Deno.test("layers are dense as mlp_only_layers and decoder_sparse_step say", () => {
  const dense = (fields: Record<string, unknown>) =>
    parse(fields).experts!.denseLayers;
  assertEquals(dense({ mlp_only_layers: [] }), []);
  assertEquals(dense({ mlp_only_layers: [4, 0] }), [0, 4]);
  assertEquals(dense({ decoder_sparse_step: 2 }), [0, 2, 4]);
  assertEquals(dense({ decoder_sparse_step: 3, mlp_only_layers: [5] }), [
    0,
    1,
    3,
    4,
    5,
  ]);
  const table = qwen3Moe.weights(parse({ mlp_only_layers: [1] }));
  assertEquals(
    table.layers.map(({ router }) => router !== undefined),
    [true, false, true, true, true, true],
  );
  assertEquals(stackedShape(table.layers[1].gateUpProj), [2 * 6144, 2048]);
});

Deno.test("parseConfig refuses experts that cannot be", () => {
  const refused: [Record<string, unknown>, string][] = [
    [
      { num_experts: 0 },
      "num_experts is 0, must be a positive whole number up to 4096",
    ],
    [
      { num_experts: 200, num_hidden_layers: 1000 },
      "num_experts is 200, must be a positive whole number up to 131",
    ],
    [
      { num_experts_per_tok: 129 },
      "num_experts_per_tok is 129, must be a positive whole number up to 128",
    ],
    [
      { moe_intermediate_size: "768" },
      'moe_intermediate_size is "768", must be a positive whole number',
    ],
    [{ norm_topk_prob: 1 }, "norm_topk_prob is 1, must be true or false"],
    [
      { mlp_only_layers: 3 },
      "mlp_only_layers is 3, must be a list of layers",
    ],
    [
      { mlp_only_layers: [-1] },
      "mlp_only_layers is [-1], must be a list of layers",
    ],
    [
      { decoder_sparse_step: 0 },
      "decoder_sparse_step is 0, must be a positive whole number",
    ],
  ];
  for (const [fields, message] of refused) {
    assertThrows(
      () => parse(fields),
      Error,
      `Cannot use config.json: ${message}`,
    );
  }
});

/** The metadata of a small model with four experts of width 32. */
function metadata(more: readonly Entry[] = []): Entry[] {
  const renamed = SMALL.map(([key, ...rest]): Entry =>
    [key.replace(/^qwen3\./, "qwen3moe."), ...rest] as Entry
  );
  const own: Entry[] = [
    ["general.architecture", "string", "qwen3moe"],
    ["qwen3moe.expert_count", "u32", 4],
    ["qwen3moe.expert_used_count", "u32", 2],
    ["qwen3moe.expert_feed_forward_length", "u32", 32],
  ];
  const all = new Map(
    [...renamed, ...own, ...more].map((one) => [one[0], one]),
  );
  return [...all.values()];
}

/** Its tensors; byte 2 of each block of an expert is its number. */
function tensors(): WrittenTensor[] {
  const experts = (role: string, mark: number): WrittenTensor => {
    const name = `blk.0.ffn_${role}_exps.weight`;
    const one = zeros(name, 32, 4 * 32);
    for (let block = 0; block < 4 * 32; block++) {
      one.bytes[34 * block + 2] = mark + Math.floor(block / 32);
    }
    return { ...one, dimensions: [32, 32, 4] };
  };
  const router = { ...ones("blk.0.ffn_gate_inp.weight", 4 * 32) };
  return [
    ...smallTensors(8).filter(({ name }) =>
      !/ffn_(gate|up|down)\.weight$/.test(name)
    ),
    { ...router, dimensions: [32, 4] },
    experts("gate", 10),
    experts("up", 20),
    experts("down", 30),
  ];
}

Deno.test("experts of a GGUF file are slices of its tensors of three dimensions", async () => {
  const file = writeGguf(metadata(), tensors());
  await using folder = await tempFolder({ "x.gguf": file });
  await using checkpoint = await openCheckpoint(`${folder.path}/x.gguf`);
  const { config, notices } = checkpoint;
  assertEquals(notices, []);
  assertEquals(config.experts, {
    count: 4,
    used: 2,
    intermediateSize: 32,
    normalized: true,
    denseLayers: [],
  });
  for (const [i, role] of ["gate", "up", "down"].entries()) {
    for (let e = 0; e < 4; e++) {
      const name = `model.layers.0.mlp.experts.${e}.${role}_proj.weight`;
      const { byteLength, shape } = checkpoint.tensors.get(name)!;
      assertEquals([byteLength, shape], [32 * 34, [32, 32]]);
      const bytes = new Uint8Array(byteLength);
      await checkpoint.read(name, 0, bytes);
      for (let row = 0; row < 32; row++) {
        assertEquals(bytes[34 * row + 2], 10 * (i + 1) + e);
      }
    }
  }
});

Deno.test("without its own key, an expert's width is a share of the MLP's", () => {
  const keys = new Map(
    metadata([["qwen3moe.feed_forward_length", "u32", 96]])
      .map(([key, , value]) => [key, value]),
  );
  keys.delete("qwen3moe.expert_feed_forward_length");
  const fields = Object.fromEntries(
    [...keys].map(([key, value]) => [key.replace("qwen3moe.", ""), value]),
  );
  const facts = {
    vocabSize: 8,
    tieWordEmbeddings: true,
    bosTokenId: null,
    eosTokenIds: [],
  };
  const { experts } = qwen3Moe.gguf.parseConfig(
    new ConfigFields(fields, "x.gguf"),
    facts,
  );
  assertEquals(experts!.intermediateSize, 48);
});

Deno.test("a GGUF file with other experts than it says is refused by names", async () => {
  const refuses = async (
    keys: Entry[],
    change: (tensors: WrittenTensor[]) => WrittenTensor[],
    message: string,
  ) => {
    const file = writeGguf(metadata(keys), change(tensors()));
    await using folder = await tempFolder({ "x.gguf": file });
    await assertRejects(
      () => openCheckpoint(`${folder.path}/x.gguf`),
      Error,
      message,
    );
  };
  await refuses(
    [["qwen3moe.expert_count", "u32", 5]],
    (all) =>
      all.map((one) =>
        /ffn_gate_inp/.test(one.name)
          ? { ...ones(one.name, 5 * 32), dimensions: [32, 5] }
          : one
      ),
    "blk.0.ffn_gate_exps.weight has shape [4, 32, 32], must be [5, 32, 32] by the file's metadata",
  );
  await refuses(
    [],
    (all) => all.filter(({ name }) => !/ffn_up_exps/.test(name)),
    "it lacks blk.0.ffn_up_exps.weight, it must have the tensors of a Qwen3-MoE with 1 layers",
  );
  await refuses(
    [["qwen3moe.expert_used_count", "u32", 5]],
    (all) => all,
    "qwen3moe.expert_used_count is 5, must be a positive whole number up to 4",
  );
});
