import type { Checkpoint } from "../../lib/checkpoint/checkpoint.ts";
import { bf16 } from "../../lib/formats/bf16.ts";
import { storedRowBytes } from "../../lib/formats/format.ts";
import { packed } from "../../lib/formats/matrix.ts";
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import { parseConfig } from "../../lib/model/families.ts";
import {
  fillSynthetic,
  parseSynthetic,
  syntheticRule,
  syntheticTokens,
} from "../../lib/checkpoint/synthetic.ts";
import { SYNTHETIC_DTYPES } from "../../lib/checkpoint/synthetic_types.ts";

interface Reference {
  seed: number;
  config: Record<string, unknown>;
  weight_probe: Record<string, number[]>;
  cases: { length: number; input_ids: number[] | null }[];
}

/** Reference files and their checkpoints. */
const REFERENCES = new Map([
  ["qwen3-0.6b", "synthetic:qwen3-0.6b"],
  ["qwen3-1.7b-2layer", "synthetic:qwen3-1.7b?seed=1&layers=2&vocab=4096"],
  ["qwen3-4b-2layer", "synthetic:qwen3-4b?layers=2&vocab=4096"],
  ["qwen3-8b-2layer", "synthetic:qwen3-8b?layers=2&vocab=4096"],
  ["qwen3-14b-1layer", "synthetic:qwen3-14b?layers=1&vocab=4096"],
  ["qwen3-32b-1layer", "synthetic:Qwen3-32B?layers=1&vocab=4096"],
]);

async function reference(name: string): Promise<Reference> {
  const url = new URL(`../fixtures/synthetic/${name}.json`, import.meta.url);
  return JSON.parse(await Deno.readTextFile(url));
}

function bf16ToF32(bits: Uint16Array): Float32Array {
  return new Float32Array(Uint32Array.from(bits, (b) => b << 16).buffer);
}

for (const [name, spec] of REFERENCES) {
  Deno.test(`${spec} has the configuration, weights and tokens of the reference`, async () => {
    const { seed, config, weight_probe, cases } = await reference(name);
    await using checkpoint = parseSynthetic(spec);
    assertEquals(checkpoint.synthetic, { seed });
    assertEquals(checkpoint.config, parseConfig(config, name));
    for (const [tensor, expected] of Object.entries(weight_probe)) {
      const bytes = new Uint8Array(8);
      await checkpoint.read(tensor, 0, bytes);
      const weights = bf16ToF32(new Uint16Array(bytes.buffer));
      // The reference is rounded to 8 decimals.
      for (const i of expected.keys()) {
        assertAlmostEquals(weights[i], expected[i], 5e-9);
      }
    }
    for (const { length, input_ids } of cases) {
      if (input_ids === null) continue;
      const ids = syntheticTokens(seed, length, checkpoint.config.vocabSize);
      assertEquals([...ids], input_ids);
    }
  });
}

Deno.test("synthetic checkpoints have the tensors of published ones", async () => {
  const parameters = (spec: string) => {
    let count = 0;
    for (const { byteLength } of parseSynthetic(spec).tensors.values()) {
      count += byteLength / 2;
    }
    return count;
  };
  // Parameters by the Hub's count, with tied embeddings once.
  assertEquals(parameters("synthetic:qwen3-0.6b"), 596_049_920);
  assertEquals(parameters("synthetic:qwen3-1.7b"), 1_720_574_976);
  assertEquals(parameters("synthetic:qwen3-4b"), 4_022_468_096);
  assertEquals(parameters("synthetic:qwen3-8b"), 8_190_735_360);
  assertEquals(parameters("synthetic:qwen3-14b"), 14_768_307_200);
  assertEquals(parameters("synthetic:qwen3-32b"), 32_762_123_264);
  assertEquals(parameters("synthetic:qwen3-30b-a3b"), 30_532_122_624);

  const tied = parseSynthetic("synthetic:qwen3-0.6b");
  assertEquals(tied.tensors.has("lm_head.weight"), false);
  assertEquals(
    parseSynthetic("synthetic:qwen3-8b").tensors.has("lm_head.weight"),
    true,
  );
  assertEquals(tied.tensors.get("model.layers.27.self_attn.q_norm.weight"), {
    name: "model.layers.27.self_attn.q_norm.weight",
    format: bf16,
    shape: [128],
    byteLength: 256,
  });
  assertEquals(await tied.text("tokenizer.json"), undefined);
});

Deno.test("synthetic weights follow their rule, computed here in integers", async () => {
  const name = "model.layers.0.mlp.down_proj.weight";
  const shape = [1024, 3072];
  const mask = 0xffffffffn;
  let hash = 0x811c9dc5n;
  for (const byte of new TextEncoder().encode(name)) {
    hash = ((hash ^ BigInt(byte)) * 0x01000193n) & mask;
  }
  const rule = syntheticRule(name, "projection", shape, 7);
  assertEquals(rule.seed, Number((hash + 7n) & mask));
  assertEquals(rule.offset, 0);
  assertEquals(rule.scale, Math.fround(0.6 * Math.sqrt(3 / 3072)));

  const expected = (index: number) => {
    let h = (BigInt(index) + hash + 7n) & mask;
    h = ((h ^ (h >> 16n)) * 0x85ebca6bn) & mask;
    h = ((h ^ (h >> 13n)) * 0xc2b2ae35n) & mask;
    h ^= h >> 16n;
    const value = Math.fround(rule.scale * (Number(h >> 8n) / 2 ** 23 - 1));
    // The nearest bf16; of two at the same distance, the even one.
    const [bits] = new Uint32Array(Float32Array.of(value).buffer);
    const below = bits & 0xffff0000, above = below + 0x10000;
    const distance = (bits: number) =>
      Math.abs(new Float32Array(Uint32Array.of(bits).buffer)[0] - value);
    if (distance(below) !== distance(above)) {
      return (distance(below) < distance(above) ? below : above) >>> 16;
    }
    return ((below >>> 16) % 2 === 0 ? below : above) >>> 16;
  };
  const first = 3_000_000, count = 5000;
  const weights = new Uint16Array(count);
  fillSynthetic(rule, first, weights);
  for (let i = 0; i < count; i++) assertEquals(weights[i], expected(first + i));

  const norm = syntheticRule("model.norm.weight", "norm", [1024], 7);
  assertEquals([norm.scale, norm.offset], [Math.fround(0.1), 1]);
  assertEquals(
    syntheticRule("lm_head.weight", "embedding", [8, 8], 7).scale,
    Math.fround(0.035),
  );

  // Any range of bytes, aligned or not, equals that part of the tensor.
  await using checkpoint = parseSynthetic("synthetic:qwen3-0.6b?seed=7");
  const whole = new Uint8Array(weights.buffer);
  for (
    const [skip, length] of [
      [0, 100],
      [1, 100],
      [3, 101],
      [2048, 4099],
      [5, 0],
      [9, 1],
    ]
  ) {
    const bytes = new Uint8Array(length + 1).subarray(1);
    await checkpoint.read(name, 2 * first + skip, bytes);
    assertEquals([...bytes], [...whole.subarray(skip, skip + length)]);
  }
});

Deno.test("synthetic weights depend on the seed, and their index wraps at 2³²", () => {
  const of = (seed: number, begin: number) => {
    const weights = new Uint16Array(4);
    fillSynthetic({ seed, scale: 1, offset: 0 }, begin, weights);
    return [...weights];
  };
  assertEquals(of(2 ** 32 - 2, 2), of(0, 0));
  assert(of(1, 0)[0] !== of(2, 0)[0]);
  assertEquals(of(1, 1), of(2, 0));
});

Deno.test("parseSynthetic refuses unknown sizes and parameters, and lists the known ones", () => {
  const refused: [string, string][] = [
    [
      "synthetic:qwen3-3b",
      "try synthetic:qwen3-0.6b (1.7b, 4b, 8b, 14b, 32b, 30b-a3b)",
    ],
    ["synthetic:", "try synthetic:qwen3-0.6b (1.7b"],
    ["synthetic:qwen3-", "try synthetic:qwen3-0.6b (1.7b"],
    [
      "synthetic:qwen3-0.6b?sead=1",
      'it has no parameter "sead", only seed, layers, vocab, dtype',
    ],
    [
      "synthetic:qwen3-0.6b?layers=0",
      'layers is "0", must be a whole number from 1 to 1000',
    ],
    ["synthetic:qwen3-0.6b?layers=2.5", 'layers is "2.5"'],
    ["synthetic:qwen3-0.6b?vocab=many", 'vocab is "many"'],
    ["synthetic:qwen3-0.6b?seed=-1", 'seed is "-1"'],
    [
      "synthetic:qwen3-0.6b?seed=4294967296",
      'seed is "4294967296", must be a whole number from 0 to 4294967295',
    ],
    ["synthetic:qwen3-0.6b?seed=", 'seed is ""'],
    [
      "synthetic:qwen3-0.6b?dtype=q4_k_s",
      `dtype is "q4_k_s", must be one of ${SYNTHETIC_DTYPES.join(", ")}`,
    ],
  ];
  for (const [spec, message] of refused) {
    assertThrows(
      () => parseSynthetic(spec),
      Error,
      `Cannot open ${JSON.stringify(spec)}: ${message}`,
    );
  }
});

Deno.test("a read outside a synthetic tensor is refused", async () => {
  await using checkpoint = parseSynthetic("synthetic:qwen3-0.6b");
  const failure = (name: string, begin: number) =>
    checkpoint.read(name, begin, new Uint8Array(8)).then(
      () => "",
      (error) => error.message,
    );
  assertEquals(
    await failure("model.norm.weight", 2044),
    "Cannot read bytes 2044 to 2052 of tensor model.norm.weight: it has 2048 bytes",
  );
  assertEquals(
    await failure("nothing", 0),
    "Cannot read bytes 0 to 8 of tensor nothing: there is no such tensor",
  );
});

/** Rows 0 to 8 of a tensor, as f32. */
async function someRows(
  { tensors, read }: Checkpoint,
  name: string,
): Promise<Float32Array> {
  const { format, shape } = tensors.get(name)!, k = shape.at(-1)!;
  const bytes = new Uint8Array(8 * storedRowBytes(format, k));
  await read(name, 0, bytes);
  const planes = packed(format, bytes, k, 8), all = new Float32Array(8 * k);
  for (let row = 0; row < 8; row++) {
    format.unpack(planes, row, k, all.subarray(row * k, (row + 1) * k));
  }
  return all;
}

for (const dtype of SYNTHETIC_DTYPES) {
  Deno.test(`synthetic weights in ${dtype} have the spread of those in bf16`, async () => {
    const checkpoint = parseSynthetic(
      `synthetic:qwen3-8b?layers=1&vocab=64&dtype=${dtype}`,
    );
    for (
      const [name, scale] of [
        ["lm_head.weight", 0.035],
        ["model.layers.0.mlp.gate_proj.weight", 0.6 * Math.sqrt(3 / 4096)],
        ["model.layers.0.mlp.down_proj.weight", 0.6 * Math.sqrt(3 / 12288)],
      ] as const
    ) {
      const values = await someRows(checkpoint, name);
      let sum = 0, squares = 0;
      for (const value of values) {
        sum += value;
        squares += value * value;
      }
      const rms = Math.sqrt(squares / values.length) * Math.sqrt(3) / scale;
      // MXFP4's scales are powers of two.
      const factor = dtype === "mxfp4" ? Math.SQRT2 : 1.06;
      assert(1 / factor < rms && rms < factor, `${name}: ${rms}`);
      const mean = sum / values.length / scale;
      assert(Math.abs(mean) < 0.03, `${name}: ${mean}`); // NaN fails too
    }
  });
}

Deno.test("bytes of synthetic blocks do not depend on how they are read", async () => {
  for (const dtype of ["q8_0", "q6_k", "mxfp4", "f16", "f32"]) {
    const spec = `synthetic:qwen3-0.6b?layers=1&vocab=9&dtype=${dtype}`;
    const { tensors, read } = parseSynthetic(spec);
    const name = "model.embed_tokens.weight";
    const whole = new Uint8Array(tensors.get(name)!.byteLength);
    await read(name, 0, whole);
    for (const [from, size] of [[0, 1], [3, 41], [209, 500], [840, 840]]) {
      const bytes = new Uint8Array(size + 1).subarray(1);
      await parseSynthetic(spec).read(name, from, bytes);
      assertEquals([...bytes], [...whole.subarray(from, from + size)]);
    }
  }
});

Deno.test("synthetic mixtures have llama.cpp's types", () => {
  const types = (spec: string) => {
    const found: Record<string, string[]> = {};
    for (const { name, format } of parseSynthetic(spec).tensors.values()) {
      (found[format.name] ??= []).push(name.replace(/^model\.|\.weight$/g, ""));
    }
    return found;
  };
  // Read from a file made with llama.cpp: 168 Q4_K, 29 Q6_K and 113 F32.
  const small = types("synthetic:qwen3-0.6b?dtype=Q4_K_M");
  assertEquals(small.q4_k.length, 168);
  assertEquals(small.f32.length, 113);
  const layers = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27];
  assertEquals(
    small.q6_k,
    [
      "embed_tokens",
      ...layers.flatMap((i) => [
        `layers.${i}.self_attn.v_proj`,
        `layers.${i}.mlp.down_proj`,
      ]),
    ],
  );
  const large = types("synthetic:qwen3-8b?dtype=q5_k_m");
  assert(large.q6_k.includes("lm_head"));
  assert(large.q5_k.includes("embed_tokens"));
  const whole = types("synthetic:qwen3-8b?dtype=q6_k");
  assertEquals(Object.keys(whole), ["q6_k", "f32"]);
});
