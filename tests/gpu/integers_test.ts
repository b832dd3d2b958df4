import { assert, assertEquals } from "@std/assert";
import { DEFAULT_MODEL } from "../../mod.ts";
import type { Checkpoint } from "../../lib/checkpoint/checkpoint.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { CpuRunner } from "../../lib/cpu/runner.ts";
import { GpuRunner } from "../../lib/gpu/runner.ts";
import { relativeError } from "../support/golden.ts";
import type { Qwen3Config } from "../../lib/checkpoint/config.ts";
import { syntheticCheckpoint } from "../../lib/checkpoint/synthetic.ts";
import { f32 } from "../../lib/formats/f32.ts";
import { formatNamed } from "../../lib/formats/mod.ts";
import { retyped } from "../support/retyped.ts";
import { gpuTest, openTested, withLimits } from "../support/gpu.ts";
import { faultText, resolveSampling } from "../../lib/model/sampling.ts";

const GREEDY = resolveSampling({ temperature: 0 }, {});

/** The first token of stories, and some that follow it. */
const IDS = [1, 365, 400, 29];

// A software renderer would multiply in f32; here it is made to multiply as other GPUs do.
gpuTest(
  "a model whose quants multiply as integers, with rows that each rounds or the kernel before, is as exact as in f16",
  async (_, trial) => {
    // The head of each is q8_0, whose lanes take other units than those of q4_0.
    for (const quantize of trial.some(["q8_0", "q4_0", "q5_1"], 1)) {
      await using checkpoint = await openCheckpoint(DEFAULT_MODEL, {
        quantize,
      });
      using exact = await CpuRunner.load(checkpoint, { context: 32 });
      const gpu = await openTested();
      using runner = await GpuRunner.load(gpu, checkpoint, {
        context: 32,
        cacheDtype: "f32",
        f16Matmuls: true,
      });
      if (!gpu.f16 || gpu.subgroupSize < 8) return;
      const made = runner.pass(1, false).plan.dispatches
        .filter(({ kernel }) => kernel === "gemvInt8")
        .map(({ label, constants: { ROUNDED, LEAVES } }) =>
          `${label.replace(/layers\.\d+\./, "")} ${ROUNDED} ${LEAVES}`
        );
      const layer = ["o_proj 1 1", "gate_up_proj 1 1", "down_proj 1 1"];
      assertEquals(made, [
        "qkv_proj 0 0",
        ...Array(runner.config.numHiddenLayers - 1)
          .fill([...layer, "qkv_proj 1 0"]).flat(),
        ...layer,
        "embed_tokens 1 0",
      ]);
      for (const id of IDS) {
        const expected = await exact.logits([id]);
        const error = relativeError(await runner.logits([id]), expected);
        // Rounding is visible, so integers were multiplied; and it is small.
        assert(error > 1e-7 && error <= 1e-3, `${quantize}, ${id}: ${error}`);
      }
    }
  },
);

const WIDE: Qwen3Config = {
  modelType: "qwen3",
  vocabSize: 200,
  hiddenSize: 256,
  intermediateSize: 512,
  numHiddenLayers: 3,
  numAttentionHeads: 2,
  numKeyValueHeads: 1,
  headDim: 128,
  maxPositionEmbeddings: 64,
  rmsNormEps: 1e-6,
  ropeTheta: 1e4,
  ropeScaling: null,
  tieWordEmbeddings: true,
  bosTokenId: null,
  eosTokenIds: [],
};

/**
 * Formats of a file named Q4_K_M, and others that cannot go together; and how many matrices
 * are multiplied with two parts in a dispatch.
 */
const MIXES: { patterns: [RegExp, string][]; shared: number }[] = [
  {
    patterns: [[/embed|v_proj|layers.0.mlp.down/, "q6_k"], [/./, "q4_k"]],
    // qkv_proj of all layers but the first, whose row nothing has rounded.
    shared: 2,
  },
  {
    patterns: [
      [/layers.1.*q_proj/, "q8_0"], // another unit
      [/layers.1.*gate_proj/, "q4_k"], // with up_proj, but SwiGLU is apart
      [/layers.2.*k_proj/, "mxfp4"], // no integers
      [/layers.2.*down_proj/, "iq4_nl"],
      [/./, "q5_k"],
    ],
    shared: 1, // gate_up_proj
  },
];

gpuTest(
  "rows are rounded ahead for parts in different formats, where all take them",
  async (_, trial) => {
    for (const { patterns, shared } of trial.some(MIXES, 1)) {
      const { stored, wide } = await retyped(
        syntheticCheckpoint("mixed", WIDE, 3),
        (name) =>
          /norm/.test(name)
            ? f32
            : formatNamed(patterns.find(([one]) => one.test(name))![1]),
      );
      using exact = await CpuRunner.load(wide, { context: 32 });
      const gpu = await openTested();
      using runner = await GpuRunner.load(gpu, stored, {
        context: 32,
        cacheDtype: "f32",
        f16Matmuls: true,
      });
      const { dispatches } = runner.pass(1, false).plan;
      const two = dispatches.filter(({ constants: { TWO } }) => TWO);
      assertEquals(two.length, shared);
      for (const id of IDS) {
        const expected = await exact.logits([id % 200]);
        const error = relativeError(await runner.logits([id % 200]), expected);
        assert(error > 1e-7 && error <= 1e-3, `${patterns}, ${id}: ${error}`);
      }
    }
  },
);

gpuTest(
  "a few rows have the same logits with two parts of a matrix in a dispatch",
  async (_, trial) => {
    const formats = [["q4_k", "q6_k"], ["q5_k", "q6_k"], ["q3_k", "q5_k"]];
    for (const [of, ofV] of trial.some(formats, 1)) {
      const { stored } = await retyped(
        syntheticCheckpoint("mixed", WIDE, 3),
        (name) =>
          /norm/.test(name)
            ? f32
            : formatNamed(/layers.[02].*v_proj/.test(name) ? ofV : of),
      );
      for (const f16Matmuls of [false, true]) {
        const results = [];
        for (const most of [8, 16]) {
          const gpu = withLimits(await openTested(), {
            maxStorageBuffersPerShaderStage: most,
          });
          using runner = await GpuRunner.load(gpu, stored, {
            context: 32,
            cacheDtype: "f32",
            f16Matmuls,
          });
          const { dispatches } = runner.pass(IDS.length, false).plan;
          const two = dispatches.filter(({ constants: { TWO } }) => TWO);
          const ids = IDS.map((id) => id % 200);
          results.push({ two: two.length, logits: await runner.logits(ids) });
        }
        const [apart, together] = results;
        assertEquals([apart.two, together.two], [0, 2], `${of}, ${ofV}`);
        assertEquals(together.logits, apart.logits);
      }
    }
  },
);

gpuTest(
  "many integers of two parts of a matrix are multiplied in a dispatch",
  async (_, trial) => {
    const large: Qwen3Config = {
      ...{ ...WIDE, hiddenSize: 2048, numHiddenLayers: 1 },
      ...{ numAttentionHeads: 24, numKeyValueHeads: 4 },
    };
    const { stored, wide } = await retyped(
      syntheticCheckpoint("large", large, 3),
      (name) =>
        /norm/.test(name)
          ? f32
          : formatNamed(/v_proj/.test(name) ? "q6_k" : "q4_k"),
    );
    const ids = Array.from({ length: 20 }, (_, i) => (7 * i + 3) % 200);
    using exact = await CpuRunner.load(wide, { context: 32 });
    const expected = await exact.logits(ids);
    for (const most of trial.some([8, 16], 1)) {
      const limits = { maxStorageBuffersPerShaderStage: most };
      const gpu = withLimits(await openTested(), limits);
      if (!gpu.f16 || gpu.subgroupSize < 8) return;
      using runner = await GpuRunner.load(gpu, stored, {
        context: 32,
        cacheDtype: "f32",
        f16Matmuls: true,
      });
      const made = runner.pass(ids.length, false).plan.dispatches
        .filter(({ label }) => /qkv_proj/.test(label))
        .map(({ kernel, constants: { TWO } }) => `${kernel} ${TWO}`);
      assertEquals(
        made,
        most === 8 ? ["gemvRowsInt8 0", "gemvRows 0"] : ["gemvRowsInt8 1"],
      );
      const error = relativeError(await runner.logits(ids), expected);
      assert(error > 1e-7 && error <= 1e-3, `${most} buffers: ${error}`);
    }
  },
);

gpuTest("rows are rounded ahead for experts, and by them", async () => {
  const experts = {
    count: 5,
    used: 3,
    intermediateSize: 256,
    normalized: true,
    denseLayers: [1],
  };
  const { stored, wide } = await retyped(
    syntheticCheckpoint(
      "mixture",
      { ...WIDE, modelType: "qwen3_moe", experts },
      4,
    ),
    (name) =>
      /norm|mlp.gate.weight/.test(name)
        ? f32
        : formatNamed(/down|embed/.test(name) ? "q5_k" : "q4_k"),
  );
  using exact = await CpuRunner.load(wide, { context: 32 });
  using runner = await GpuRunner.load(await openTested(), stored, {
    context: 32,
    cacheDtype: "f32",
    f16Matmuls: true,
  });
  const { dispatches } = runner.pass(1, false).plan;
  const made = (wanted: RegExp) =>
    dispatches.filter(({ kernel, constants: { ROUNDED, LEAVES } }) =>
      wanted.test(`${kernel} ${ROUNDED ?? 0} ${LEAVES ?? 0}`)
    ).length;
  // In two of three layers, gate_up_proj and down_proj.
  assertEquals(made(/^rmsNorm/), 0);
  assertEquals(made(/^expertGemvInt8 1 1/), 4);
  // Only the first layer's qkv_proj rounds its row.
  assertEquals(made(/^gemvInt8 0/), 1);
  for (const id of IDS) {
    const expected = await exact.logits([id % 200]);
    const error = relativeError(await runner.logits([id % 200]), expected);
    assert(error > 1e-7 && error <= 1e-3, `${id}: ${error}`);
  }
});

// Another kernel than that of one token multiplies four.
gpuTest("integers do not hide what is no number", async () => {
  await using checkpoint = await openCheckpoint(DEFAULT_MODEL, {
    quantize: "q8_0",
  });
  for (
    const [tensor, value] of [
      ["model.layers.1.input_layernorm.weight", NaN],
      ["model.layers.2.post_attention_layernorm.weight", -Infinity],
      ["model.norm.weight", NaN],
      ["model.norm.weight", Infinity],
    ] as const
  ) {
    const faulty: Checkpoint = {
      ...checkpoint,
      async read(name, begin, into) {
        await checkpoint.read(name, begin, into);
        if (name !== tensor) return;
        const { format: { name: type } } = checkpoint.tensors.get(name)!;
        const bits = new Uint8Array(Float32Array.of(value).buffer);
        into.set(type === "f32" ? bits : bits.subarray(2), 4 * bits.length);
      },
    };
    using runner = await GpuRunner.load(await openTested(), faulty, {
      context: 32,
      cacheDtype: "f32",
      f16Matmuls: true,
    });
    for (const ids of [IDS.slice(0, 1), IDS]) {
      const logits = await runner.logits(ids);
      const what = `${value} in ${tensor}, ${ids.length} tokens`;
      assert(logits.every((logit) => !Number.isFinite(logit)), what);
    }
    for await (const [id] of runner.generate([IDS], GREEDY, 1)) {
      assert(faultText(id), `token ${id}, ${value} in ${tensor}`);
    }
  }
});

gpuTest("replies are the same with integers as without", async () => {
  await using checkpoint = await openCheckpoint(DEFAULT_MODEL, {
    quantize: "q8_0",
  });
  const replies = [];
  for (const f16Matmuls of [false, true]) {
    using runner = await GpuRunner.load(await openTested(), checkpoint, {
      context: 64,
      cacheDtype: "f32",
      f16Matmuls,
    });
    if (!runner.gpu.f16) return;
    const ids: number[] = [];
    for await (const some of runner.generate([[IDS[0]]], GREEDY, 24)) {
      ids.push(...some);
    }
    replies.push(ids);
  }
  assertEquals(replies[0].length, 24);
  assertEquals(replies[1], replies[0]);
});
