/**
 * A model whose tensors are stored in different formats computes what the same values
 * in f32 give, on the GPU and on the CPU.
 *
 * @module
 */
import { finish } from "../../lib/model/family.ts";
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import type { Qwen3Config } from "../../lib/checkpoint/config.ts";
import { syntheticCheckpoint } from "../../lib/checkpoint/synthetic.ts";
import { CpuRunner } from "../../lib/cpu/runner.ts";
import {
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
} from "../../lib/formats/blocks_of_32.ts";
import { q2_k, q3_k, q4_k, q5_k, q6_k } from "../../lib/formats/k_quants.ts";
import { iq4_nl, iq4_xs, mxfp4 } from "../../lib/formats/lookup.ts";
import { bf16 } from "../../lib/formats/bf16.ts";
import { f16 } from "../../lib/formats/f16.ts";
import { f32 } from "../../lib/formats/f32.ts";
import type { Format } from "../../lib/formats/format.ts";
import type { Matrix } from "../../lib/formats/matrix.ts";
import { GpuKvCache } from "../../lib/gpu/kv_cache.ts";
import { GpuOps } from "../../lib/gpu/ops.ts";
import { GpuRunner } from "../../lib/gpu/runner.ts";
import { gpuStore } from "../../lib/gpu/store.ts";
import { familyOf } from "../../lib/model/families.ts";
import { resolveSampling } from "../../lib/model/sampling.ts";
import type { Runner } from "../../lib/model/runner.ts";
import { loadWeights } from "../../lib/model/weights.ts";
import { Plan } from "../../lib/webgpu/plan.ts";
import type { Tensor } from "../../lib/webgpu/tensor.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, openTested, someOf, withBinding } from "../support/gpu.ts";
import { nibbles } from "../support/nibbles.ts";
import { retyped } from "../support/retyped.ts";

const CONFIG: Qwen3Config = {
  modelType: "qwen3",
  vocabSize: 200,
  hiddenSize: 64,
  intermediateSize: 96,
  numHiddenLayers: 2,
  numAttentionHeads: 2,
  numKeyValueHeads: 1,
  headDim: 32,
  maxPositionEmbeddings: 64,
  rmsNormEps: 1e-6,
  ropeTheta: 1e4,
  ropeScaling: null,
  tieWordEmbeddings: true,
  bosTokenId: null,
  eosTokenIds: [],
};
/** q, k and v have 12, 6 and 6 rows: v begins where no four does, rows of k are odd. */
const ODD: Qwen3Config = {
  ...CONFIG,
  hiddenSize: 45,
  intermediateSize: 35,
  headDim: 6,
};

/** The first pattern that a tensor's name matches gives its format; bf16 otherwise. */
const byName = (...patterns: [RegExp, Format][]) => (name: string): Format =>
  patterns.find(([pattern]) => pattern.test(name))?.[1] ?? bf16;

const floats = byName(
  [/q_proj|up_proj|input_layernorm/, f16],
  [/v_proj|layers.1.mlp.gate_proj|embed/, f32],
);
const blocks = byName(
  [/norm/, f32],
  [/k_proj/, f16],
  [/gate_proj|embed|layers.0.*(q_proj|o_proj)|layers.1.*down/, nibbles],
);

/** Rows of whole blocks of every format. */
const WIDE: Qwen3Config = {
  ...CONFIG,
  hiddenSize: 256,
  intermediateSize: 512,
  headDim: 128,
};
/** As in files named Q4_K_M: the head and some of v and down take more bits. */
const asQ4KM = byName(
  [/norm/, f32],
  [/embed|v_proj|layers.0.mlp.down/, q6_k],
  [/./, q4_k],
);
/** Every format of blocks, some of them stacked with others. */
const asMany = byName(
  [/norm/, f32],
  [/embed/, q8_0],
  [/layers.0.*(q_proj|k_proj)/, q4_0],
  [/layers.0.*v_proj/, q5_0],
  [/layers.0.*o_proj/, q4_1],
  [/layers.0.*gate_proj/, q5_1],
  [/layers.0.*up_proj/, iq4_nl],
  [/layers.0.*down_proj/, q5_k],
  [/q_proj/, q2_k],
  [/k_proj/, q3_k],
  [/v_proj/, q6_k],
  [/o_proj/, iq4_xs],
  [/gate_proj|up_proj/, mxfp4],
  [/./, q4_k],
);

const MIXES: [name: string, Qwen3Config, (name: string) => Format][] = [
  ["bf16, f16 and f32", CONFIG, floats],
  ["bf16, f16 and f32 at odd sizes", ODD, floats],
  ["blocks and floats", CONFIG, blocks],
  ["blocks throughout", CONFIG, byName([/norm/, f32], [/./, nibbles])],
  ["Q4_K and Q6_K", WIDE, asQ4KM],
  ["all formats of blocks", WIDE, asMany],
];

const IDS = Array.from({ length: 45 }, (_, i) => (i * 37 + 11) % 200);
const CLOSE = { absolute: 2e-5, relative: 2e-5 };
const GREEDY = resolveSampling({ temperature: 0, seed: 1 });

/** Prompts that take one row, a few and many. */
const LENGTHS = [1, 5, 45] as const;

/** Logits after prompts by their lengths, and what follows the shortest greedily. */
async function run(runner: Runner, lengths: readonly number[] = LENGTHS) {
  const logits = new Map<number, Float32Array>(), tokens: number[] = [];
  for (const length of lengths) {
    logits.set(
      length,
      await runner.logits(IDS.slice(0, length), { all: true }),
    );
  }
  const prompt = IDS.slice(0, Math.min(...lengths));
  for await (const ids of runner.generate([prompt], GREEDY, 6)) {
    tokens.push(...ids);
  }
  return { logits, tokens };
}

type Results = Awaited<ReturnType<typeof run>>;

function assertSame(actual: Results, expected: Results, message: string) {
  for (const [length, logits] of actual.logits) {
    const wanted = expected.logits.get(length)!;
    assertAllClose(logits, wanted, CLOSE, `${message}, ${length} tokens`);
  }
  assertEquals(actual.tokens, expected.tokens, message);
}

for (const [name, config, formatOf] of MIXES) {
  Deno.test(`${name} on the CPU as in f32`, async () => {
    const made = await retyped(
      syntheticCheckpoint("mixed", config, 3),
      formatOf,
    );
    using mixed = await CpuRunner.load(made.stored, { context: 64 });
    using wide = await CpuRunner.load(made.wide, { context: 64 });
    assertSame(await run(mixed), await run(wide), name);
    const { reason } = mixed.ops.info;
    const without = new Set(
      [...made.stored.tensors.values()].map(({ format }) => format)
        .filter(({ simd }) => !simd),
    );
    if (!without.size) assert(!reason.includes("unpacked"), reason);
    for (const { name } of without) {
      assertStringIncludes(
        reason,
        `${name} has no SIMD reader: its rows are unpacked first`,
      );
    }
  });
}

// Each is tens of seconds of compiling on a software adapter: a format's reader is in every
// kernel that multiplies, and at odd sizes it reads each value on its own.
for (const [name, config, formatOf] of someOf(MIXES, 1)) {
  gpuTest(`${name} on the GPU as in f32`, async (_, trial) => {
    const made = await retyped(
      syntheticCheckpoint("mixed", config, 3),
      formatOf,
    );
    const options = {
      context: 64,
      cacheDtype: "f32",
      f16Matmuls: false,
    } as const;
    const lengths = trial.some(LENGTHS, config === ODD ? 1 : 2);
    using wide = await CpuRunner.load(made.wide, { context: 64 });
    const expected = await run(wide, lengths);
    using mixed = await GpuRunner.load(
      await openTested(),
      made.stored,
      options,
    );
    assertSame(await run(mixed, lengths), expected, name);
    if (!mixed.gpu.f16) return;
    using half = await GpuRunner.load(await openTested(), made.stored, {
      ...options,
      f16Matmuls: true,
    });
    const bounds = [[45, 2e-2], [5, 1e-3]] as const;
    for (const [length, absolute] of bounds) {
      // A software adapter has compiled most of these kernels above.
      if (!lengths.includes(length)) continue;
      const logits = await half.logits(IDS.slice(0, length), { all: true });
      const wanted = expected.logits.get(length)!;
      assertAllClose(logits, wanted, { absolute }, `${length} rows in f16`);
    }
  });
}

gpuTest(
  "parts of different formats are split over bindings like any",
  async (gpu, trial) => {
    const made = await retyped(syntheticCheckpoint("mixed", CONFIG, 3), blocks);
    using wide = await CpuRunner.load(made.wide, { context: 64 });
    const store = gpuStore(withBinding(gpu, 4096));
    const weights = await loadWeights(made.stored, {
      ...store,
      allocate: (bytes, label) => trial.own(store.allocate(bytes, label)),
    });
    const { embedTokens, layers: [{ gateUpProj, downProj }] } = weights;
    const parts = ({ parts }: Matrix<Tensor>) =>
      parts.map(({ rows, format }) => `${rows} ${format.name}`);
    assertEquals(parts(embedTokens), ["128 nibbles", "72 nibbles"]);
    assertEquals(parts(gateUpProj), [
      ...["96 nibbles", "32 bf16", "32 bf16", "32 bf16"],
    ]);
    assertEquals(parts(downProj), ["16 bf16", "16 bf16", "16 bf16", "16 bf16"]);
    using ops = new GpuOps(gpu, CONFIG);
    using cache = new GpuKvCache(gpu, CONFIG, 1, 64, "f32");
    for (const tokens of trial.some(LENGTHS, 2)) {
      using plan = new Plan(gpu);
      ops.plan = plan;
      cache.reset();
      cache.begin({ first: 0, sequences: 1, tokens });
      const ids = IDS.slice(0, tokens), input = trial.u32(...ids);
      const logits = finish(
        familyOf(CONFIG).forward(ops, weights, input, cache),
      );
      plan.run();
      const expected = await wide.logits(ids, {});
      assertAllClose(await logits.read(), expected, CLOSE, `${tokens} tokens`);
    }
  },
);

gpuTest("each stacked tensor stays as it is stored", async () => {
  const made = await retyped(syntheticCheckpoint("mixed", CONFIG, 3), blocks);
  using runner = await GpuRunner.load(await openTested(), made.stored, {
    ...{ context: 64, cacheDtype: "f32", f16Matmuls: false },
  });
  const [layer] = runner.weights.layers;
  const names = (parts: readonly { format: Format; rows: number }[]) =>
    parts.map(({ format, rows }) => `${rows} ${format.name}`);
  assertEquals(names(layer.qkvProj.parts), ["64 nibbles", "32 f16", "32 bf16"]);
  assertEquals(names(layer.gateUpProj.parts), ["96 nibbles", "96 bf16"]);
  const { planes } = layer.gateUpProj.parts[0];
  assertEquals(planes.map(({ label }) => label), [
    "layers.0.gate_up_proj.quants",
    "layers.0.gate_up_proj.scales",
  ]);
  assertEquals(planes.map(({ bytes }) => bytes), [96 * 32, 96 * 2]);
});
