import { bf16 } from "../../lib/formats/bf16.ts";
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
      "try synthetic:qwen3-0.6b, -1.7b, -4b, -8b, -14b, -32b or -30b-a3b",
    ],
    ["synthetic:", "try synthetic:qwen3-0.6b, -1.7b"],
    ["synthetic:qwen3-", "try synthetic:qwen3-0.6b, -1.7b"],
    [
      "synthetic:qwen3-0.6b?sead=1",
      'it has no parameter "sead", only seed, layers, vocab',
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
