import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import { parseConfig } from "../../lib/model/families.ts";

/** The file published with Qwen3-0.6B. */
const PUBLISHED = {
  architectures: ["Qwen3ForCausalLM"],
  attention_bias: false,
  attention_dropout: 0.0,
  bos_token_id: 151643,
  eos_token_id: 151645,
  head_dim: 128,
  hidden_act: "silu",
  hidden_size: 1024,
  initializer_range: 0.02,
  intermediate_size: 3072,
  max_position_embeddings: 40960,
  max_window_layers: 28,
  model_type: "qwen3",
  num_attention_heads: 16,
  num_hidden_layers: 28,
  num_key_value_heads: 8,
  rms_norm_eps: 1e-6,
  rope_scaling: null,
  rope_theta: 1000000,
  sliding_window: null,
  tie_word_embeddings: true,
  torch_dtype: "bfloat16",
  use_cache: true,
  use_sliding_window: false,
  vocab_size: 151936,
};

const parse = (changes: Record<string, unknown> = {}) =>
  parseConfig({ ...PUBLISHED, ...changes }, "here/config.json");

Deno.test("parseConfig reads the file published with Qwen3", () => {
  assertEquals(parse(), {
    modelType: "qwen3",
    vocabSize: 151936,
    hiddenSize: 1024,
    intermediateSize: 3072,
    numHiddenLayers: 28,
    numAttentionHeads: 16,
    numKeyValueHeads: 8,
    headDim: 128,
    maxPositionEmbeddings: 40960,
    rmsNormEps: 1e-6,
    ropeTheta: 1e6,
    ropeScaling: null,
    tieWordEmbeddings: true,
    bosTokenId: 151643,
    eosTokenIds: [151645],
  });
});

Deno.test("parseConfig reads the format of transformers 5", async () => {
  const read = async (name: string) => {
    const url = new URL(`../fixtures/${name}/config.json`, import.meta.url);
    return parseConfig(JSON.parse(await Deno.readTextFile(url)), name);
  };
  const untied = await read("tiny-untied-f32");
  assertEquals(untied.ropeTheta, 10000);
  assertEquals(untied.ropeScaling, null);
  assertEquals(untied.tieWordEmbeddings, false);
  assertEquals(untied.numAttentionHeads, 6);
  assertEquals(untied.numKeyValueHeads, 1);
  assertEquals(untied.bosTokenId, null);
  assertEquals(untied.eosTokenIds, []);

  const { ropeTheta, ropeScaling } = await read("tiny-yarn-bf16");
  assertEquals(ropeTheta, 10000);
  assertEquals(ropeScaling, {
    factor: 4,
    originalMaxPositionEmbeddings: 128,
    attentionFactor: 0.1 * Math.log(4) + 1,
    betaFast: 32,
    betaSlow: 1,
    truncate: true,
  });
});

Deno.test("parseConfig has the defaults of transformers", () => {
  const {
    head_dim: _d,
    num_key_value_heads: _k,
    rms_norm_eps: _e,
    rope_theta: _t,
    ...rest
  } = PUBLISHED;
  const {
    tie_word_embeddings: _w,
    bos_token_id: _b,
    eos_token_id: _i,
    ...bare
  } = rest;
  const config = parseConfig(
    { ...bare, num_attention_heads: 64 },
    "config.json",
  );
  assertEquals(config.headDim, 128);
  assertEquals(config.numKeyValueHeads, 32);
  assertEquals(config.rmsNormEps, 1e-6);
  assertEquals(config.ropeTheta, 10000);
  assertEquals(config.tieWordEmbeddings, false);
  assertEquals(config.bosTokenId, null);
  assertEquals(config.eosTokenIds, []);
  assertEquals(parse({ num_key_value_heads: null }).numKeyValueHeads, 16);
  assertEquals(parse({ eos_token_id: [1, 2] }).eosTokenIds, [1, 2]);
  assertEquals(parse({ eos_token_id: null }).eosTokenIds, []);
});

Deno.test("parseConfig reads YaRN under rope_scaling, type or rope_type", () => {
  for (const key of ["type", "rope_type"]) {
    const { ropeTheta, ropeScaling } = parse({
      rope_scaling: {
        [key]: "yarn",
        factor: 4.0,
        original_max_position_embeddings: 32768,
      },
    });
    assertEquals(ropeTheta, 1e6);
    assertEquals(ropeScaling?.factor, 4);
    assertEquals(ropeScaling?.originalMaxPositionEmbeddings, 32768);
  }
  const yarn = (fields: Record<string, unknown>) =>
    parse({ rope_scaling: { rope_type: "yarn", factor: 4, ...fields } })
      .ropeScaling!;
  assertEquals(yarn({}).originalMaxPositionEmbeddings, 40960);
  assertEquals(yarn({ attention_factor: 1.5 }).attentionFactor, 1.5);
  assertEquals(yarn({ factor: 1 }).attentionFactor, 1);
  assertAlmostEquals(
    yarn({ mscale: 0.707, mscale_all_dim: 1.4 }).attentionFactor,
    (1 + 0.0707 * Math.LN2 * 2) / (1 + 0.14 * Math.LN2 * 2),
    1e-12,
  );
  assertEquals(
    yarn({ mscale: 1, mscale_all_dim: 0 }).attentionFactor,
    0.1 * Math.log(4) + 1,
  );
  const { betaFast, betaSlow, truncate } = yarn({
    beta_fast: 16,
    beta_slow: 2,
    truncate: false,
  });
  assertEquals([betaFast, betaSlow, truncate], [16, 2, false]);
  assertEquals(
    yarn({ factor: null, original_max_position_embeddings: 8192 }).factor,
    5,
  );
});

Deno.test("parseConfig refuses what cannot run, in one line with field and value", () => {
  const refused: [Record<string, unknown>, string][] = [
    [{ model_type: "llama" }, 'model_type is "llama", must be "qwen3"'],
    [{ model_type: undefined }, 'model_type is missing, must be "qwen3"'],
    [
      { hidden_size: undefined },
      "hidden_size is missing, must be a positive whole number up to 131072",
    ],
    [
      { hidden_size: 10.5 },
      "hidden_size is 10.5, must be a positive whole number",
    ],
    [{ vocab_size: 0 }, "vocab_size is 0, must be a positive whole number"],
    [{ num_hidden_layers: -2 }, "num_hidden_layers is -2"],
    [{ intermediate_size: "3072" }, 'intermediate_size is "3072"'],
    [{ max_position_embeddings: null }, "max_position_embeddings is null"],
    [
      { num_key_value_heads: 5 },
      "num_attention_heads is 16, must be a multiple of num_key_value_heads, 5",
    ],
    [{ head_dim: 33 }, "head_dim is 33, must be even"],
    [
      { rms_norm_eps: 0 },
      "rms_norm_eps is 0, must be a number from 1e-12 to 1",
    ],
    [
      { tie_word_embeddings: "no" },
      'tie_word_embeddings is "no", must be true or false',
    ],
    [{ eos_token_id: "</s>" }, 'eos_token_id is "</s>", must be a token id'],
    [{ eos_token_id: [1, -1] }, "eos_token_id is [1,-1]"],
    [{ bos_token_id: [1, 2] }, "bos_token_id is [1,2], must be one token id"],
    [{ attention_bias: true }, "attention_bias is true, must be false"],
    [{ hidden_act: "gelu" }, 'hidden_act is "gelu", must be "silu"'],
    [
      {
        use_sliding_window: true,
        sliding_window: 4096,
        max_window_layers: 27,
      },
      "use_sliding_window is true, must be false",
    ],
    [
      { layer_types: ["full_attention", "sliding_attention"] },
      'layer_types is ["full_attention","sliding_attention"]',
    ],
    [
      { quantization_config: { bits: 4 } },
      'its weights are quantised with an unnamed method (quantization_config is {"bits":4}), must be plain bf16, f16, f32',
    ],
    [
      { rope_scaling: { type: "linear", factor: 2 } },
      'rope_scaling.type is "linear", must be "default" or "yarn"',
    ],
    [
      { rope_parameters: { rope_type: "llama3", rope_theta: 1e4 } },
      'rope_parameters.rope_type is "llama3"',
    ],
    [
      { rope_parameters: { rope_type: "default", rope_theta: -1 } },
      "rope_parameters.rope_theta is -1",
    ],
    [{ rope_scaling: 4 }, "rope_scaling is 4, must be an object"],
    [
      { rope_scaling: { type: "yarn", factor: "4" } },
      'rope_scaling.factor is "4", must be a number from 1 to 4096',
    ],
  ];
  for (const [changes, message] of refused) {
    const error = assertThrows(
      () => parse(changes),
      Error,
      `Cannot use here/config.json: ${message}`,
    );
    assertEquals(error.message.includes("\n"), false);
  }
  for (const [json, is] of [[[], "a list"], [null, "null"], ["x", '"x"']]) {
    assertThrows(
      () => parseConfig(json, "c.json"),
      Error,
      `Cannot use c.json: it holds ${is}, must be an object`,
    );
  }
});

Deno.test("parseConfig has a bound with a number for every size", () => {
  const refused: [Record<string, unknown>, string][] = [
    [
      { vocab_size: 1e15 },
      "vocab_size is 1000000000000000, must be a positive whole number up to 16777216",
    ],
    [
      { hidden_size: 131073 },
      "hidden_size is 131073, must be a positive whole number up to 131072",
    ],
    [
      { intermediate_size: 2 ** 53 },
      "intermediate_size is 9007199254740992, must be a positive whole number up to 1048576",
    ],
    [
      { num_hidden_layers: 1e6 },
      "num_hidden_layers is 1000000, must be a positive whole number up to 1000",
    ],
    [
      { num_attention_heads: 4112 },
      "num_attention_heads is 4112, must be a positive whole number up to 4096",
    ],
    [
      { num_key_value_heads: 1e4 },
      "num_key_value_heads is 10000, must be a positive whole number up to 4096",
    ],
    [
      { head_dim: 1e9 },
      "head_dim is 1000000000, must be a positive whole number up to 4096",
    ],
    [
      { max_position_embeddings: 1e15 },
      "max_position_embeddings is 1000000000000000, must be a positive whole number up to 16777216",
    ],
    [
      { rms_norm_eps: 1e300 },
      "rms_norm_eps is 1e+300, must be a number from 1e-12 to 1",
    ],
    [{ rms_norm_eps: 1e-300 }, "rms_norm_eps is 1e-300, must be"],
    [
      { rope_theta: 1e300 },
      "rope_theta is 1e+300, must be a number from 1 to 1000000000000",
    ],
    [{ rope_theta: 0.5 }, "rope_theta is 0.5, must be a number from 1 to"],
    [{ rope_theta: "1e6" }, 'rope_theta is "1e6", must be a number from 1 to'],
  ];
  for (const [changes, message] of refused) {
    const error = assertThrows(() => parse(changes), Error);
    const whole = `Cannot use here/config.json: ${message}`;
    assertEquals(error.message.slice(0, whole.length), whole);
  }
  const largest = parse({
    vocab_size: 2 ** 24,
    max_position_embeddings: 2 ** 24,
    num_hidden_layers: 1000,
    rope_theta: 1,
  });
  assertEquals(largest.numHiddenLayers, 1000);
});

Deno.test("parseConfig has bounds for YaRN", () => {
  const yarn = (fields: Record<string, unknown>) => () =>
    parse({ rope_scaling: { rope_type: "yarn", factor: 4, ...fields } });
  const refused: [Record<string, unknown>, string][] = [
    [{ factor: 0.5 }, "factor is 0.5, must be a number from 1 to 4096"],
    [{ factor: 1e9 }, "factor is 1000000000, must be a number from 1 to 4096"],
    [
      { factor: 4000, original_max_position_embeddings: 32768 },
      "factor is 4000, must be at most 16777216 positions divided by the original 32768",
    ],
    [
      { original_max_position_embeddings: 1e15 },
      "original_max_position_embeddings is 1000000000000000, must be a positive whole number up to 16777216",
    ],
    [
      { beta_fast: 1e300 },
      "beta_fast is 1e+300, must be a number from 0.001 to 1000000",
    ],
    [
      { beta_slow: 0 },
      "beta_slow is 0, must be a number from 0.001 to 1000000",
    ],
    [
      { attention_factor: 1e300 },
      "attention_factor is 1e+300, must be a number from 0.001 to 1000",
    ],
    [
      { mscale: 1e300, mscale_all_dim: 1 },
      "mscale is 1e+300, must be in a ratio from 0.001 to 1000 to mscale_all_dim",
    ],
    [{ rope_theta: 1 }, "rope_theta is 1, must be more than 1 for YaRN"],
    [{ partial_rotary_factor: 0.5 }, "partial_rotary_factor is 0.5, must be 1"],
    [{ truncate: "no" }, 'truncate is "no", must be true or false'],
  ];
  for (const [fields, message] of refused) {
    assertThrows(
      yarn(fields),
      Error,
      `Cannot use here/config.json: rope_scaling.${message}`,
    );
  }
});

Deno.test("parseConfig refuses what transformers would compute differently", () => {
  const refused: [Record<string, unknown>, string][] = [
    [{ mlp_bias: true }, "mlp_bias is true, must be false"],
    [{ is_causal: false }, "is_causal is false, must be true"],
    [
      { partial_rotary_factor: 0.25 },
      "partial_rotary_factor is 0.25, must be 1",
    ],
    [
      { rope_scaling: { factor: 4 } },
      'rope_scaling.rope_type is missing, must be "default" or "yarn"',
    ],
    ...["linear", "dynamic", "llama3", "longrope", "mrope"].map((
      type,
    ): [Record<string, unknown>, string] => [
      { rope_scaling: { rope_type: type, factor: 2 } },
      `rope_scaling.rope_type is "${type}", must be "default" or "yarn"`,
    ]),
    [
      { rope_parameters: { full_attention: { rope_type: "default" } } },
      'rope_parameters.full_attention is {"rope_type":"default"}, must be absent',
    ],
    [
      { layer_types: Array(27).fill("full_attention") },
      "layer_types has 27 entries, must have num_hidden_layers, 28",
    ],
    // transformers' defaults: a window of 4,096 from layer 28 on.
    [
      {
        use_sliding_window: true,
        sliding_window: undefined,
        num_hidden_layers: 29,
        max_window_layers: undefined,
      },
      "use_sliding_window is true, must be false",
    ],
    [
      { use_sliding_window: true, sliding_window: 8, max_window_layers: 0 },
      "use_sliding_window is true, must be false",
    ],
  ];
  for (const [changes, message] of refused) {
    assertThrows(
      () => parse(changes),
      Error,
      `Cannot use here/config.json: ${message}`,
    );
  }
});

Deno.test("parseConfig takes settings that change nothing", () => {
  const plain = parse();
  for (
    const changes of [
      { use_sliding_window: true }, // sliding_window is null
      { use_sliding_window: true, sliding_window: 8 }, // from layer 28 on
      {
        use_sliding_window: true,
        sliding_window: 8,
        max_window_layers: 0,
        layer_types: Array(28).fill("full_attention"),
      },
      { hidden_act: "swish" },
      { partial_rotary_factor: 1 },
      { rope_scaling: {} },
      { rope_scaling: { rope_type: "default" } },
      { attention_dropout: 0.1, dtype: "float16", num_nextn_predict_layers: 1 },
      { architectures: ["Qwen3Model"] },
      { quantization_config: null },
    ]
  ) assertEquals(parse(changes), plain);
  // An empty rope_scaling does not hide the newer rope_parameters.
  const both = parse({
    rope_scaling: {},
    rope_parameters: { rope_type: "default", rope_theta: 5e6 },
  });
  assertEquals(both.ropeTheta, 5e6);
});

Deno.test("parseConfig names the quantised form", () => {
  const forms: [Record<string, unknown>, string][] = [
    // As published: Qwen3-8B-FP8, Qwen3-8B-AWQ, GPTQ, bitsandbytes, MLX.
    [
      {
        quantization_config: {
          activation_scheme: "dynamic",
          fmt: "e4m3",
          quant_method: "fp8",
          weight_block_size: [128, 128],
        },
      },
      "FP8 (quantization_config is",
    ],
    [
      {
        quantization_config: {
          bits: 4,
          group_size: 128,
          quant_method: "awq",
          version: "gemm",
        },
      },
      'AWQ (quantization_config is {"bits":4,"group_size":128,"quant_method":"awq","version":"gemm"}), must be plain bf16, f16, f32',
    ],
    [{ quantization_config: { quant_method: "gptq" } }, "GPTQ (quant"],
    [
      { quantization_config: { quant_method: "bitsandbytes" } },
      "bitsandbytes (quant",
    ],
    [
      { quantization_config: { quant_method: "compressed-tensors" } },
      "compressed-tensors (quant",
    ],
    [
      { quantization: { group_size: 64, bits: 4 } },
      'MLX (quantization is {"group_size":64,"bits":4}), must be plain',
    ],
    [
      {
        quantization: { group_size: 64, bits: 4 },
        quantization_config: { group_size: 64, bits: 4 },
      },
      "MLX (quantization_config is",
    ],
    [
      {
        quantization_config: {
          producer: { name: "modelopt" },
          quant_algo: "NVFP4",
        },
      },
      "NVFP4 (quant",
    ],
    [{ quantization_config: "int8" }, "an unnamed method (quant"],
  ];
  for (const [changes, message] of forms) {
    assertThrows(
      () => parse(changes),
      Error,
      `Cannot use here/config.json: its weights are quantised with ${message}`,
    );
  }
});

Deno.test("parseConfig quotes long, nested and unprintable values in short", () => {
  let nested: unknown = 0;
  for (let i = 0; i < 1e5; i++) nested = [nested];
  const values = [
    "x".repeat(1e6),
    nested,
    Array(1e5).fill("full"),
    "\u001b[2J\n\u202e",
    { rope_type: "y".repeat(1e6) },
  ];
  for (const value of values) {
    for (const field of ["hidden_act", "layer_types", "rope_scaling"]) {
      const error = assertThrows(() => parse({ [field]: value }), Error);
      assert(error.message.length < 400, `${error.message.length}`);
      // deno-lint-ignore no-control-regex
      assert(!/[\x00-\x1f\u202e]/.test(error.message), error.message);
    }
  }
});
