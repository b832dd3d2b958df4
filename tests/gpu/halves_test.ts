/**
 * Decode steps of many rows by tensor cores: what a matmul, or attention, leaves in f16 or in
 * parts for the next matmul.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import type { Qwen3Config } from "../../lib/checkpoint/config.ts";
import { parseSynthetic } from "../../lib/checkpoint/synthetic.ts";
import { CpuOps } from "../../lib/cpu/ops.ts";
import { openDevice } from "../../lib/device/open_device.ts";
import { withPlanes } from "../../lib/formats/matrix.ts";
import { type CpuTensor, toF32 } from "../../lib/formats/tensor.ts";
import { normsFit } from "../../lib/dispatch/matrices.ts";
import { GpuKvCache, leftOverflowed } from "../../lib/gpu/kv_cache.ts";
import { GpuOps } from "../../lib/gpu/ops.ts";
import { finish, mapWeights } from "../../lib/model/family.ts";
import { forward } from "../../lib/model/qwen3.ts";
import { loadQwen3 } from "../../lib/load.ts";
import { recordPass } from "../../lib/tools/recording.ts";
import { SKETCHES } from "../../lib/tools/texts.ts";
import { Plan } from "../../lib/webgpu/plan.ts";
import { Tensor } from "../../lib/webgpu/tensor.ts";
import { gpuTest, Trial } from "../support/gpu.ts";
import { relativeError } from "../support/golden.ts";
import { randomWeights } from "../support/random_weights.ts";
import { MATRIX_GPU } from "../support/subgroup_matrices.ts";
import { copyCheckpoint, scaleWeights } from "../support/temp_checkpoint.ts";
import { wrapGpu } from "../support/wrapped_gpu.ts";

const CONTEXT = 24, PROMPT = 70;

const CONFIG: Qwen3Config = {
  ...parseSynthetic("synthetic:qwen3-0.6b?layers=2&vocab=61").config,
  hiddenSize: 1024,
  intermediateSize: 1040,
  numAttentionHeads: 8,
  numKeyValueHeads: 4,
  headDim: 128,
};

interface Given {
  rows: number;
  tokens?: number;
  /** By matrix: its weights are `2 ** power(label)` as large. */
  power?: (label: string) => number;
  /** Whether gates and ups of the last layer have different types. */
  mixed?: boolean;
}

/** Runs a pass of `tokens` tokens of each of `rows` texts here and on the CPU. */
async function run(
  trial: Trial,
  { rows, tokens = 1, power = () => 0, mixed = false }: Given,
) {
  const { gpu, random } = trial;
  const scale = (label: string) => 2 ** power(label);
  const made = randomWeights(random, CONFIG, { format: () => "bf16", scale });
  const weights = mapWeights(made, (matrix) => {
    const { label, n, k } = matrix, half = n / 2;
    // Tensor cores need to know how large they are, and attention norms.
    const largest = n === 1 ? 2 : scale(label) / Math.sqrt(k);
    if (!mixed || label !== "layers.1.gate_up_proj") {
      return { ...matrix, largest };
    }
    const parts = ["bf16", "f16"].map((type, i) => {
      const [part] = random.matrix(type, [half, k], largest).parts;
      return { ...part, begin: i * half, rows: half };
    });
    return { ...matrix, parts, largest };
  });
  const onDevice = mapWeights(
    weights,
    (matrix) => withPlanes(matrix, (plane) => trial.upload(plane)),
  );
  const pass = { first: 0, sequences: rows, tokens };
  const ids = Uint32Array.from(
    { length: rows * tokens },
    () => random.int(0, 60),
  );
  const context = CONTEXT + tokens;
  const lengths = Array.from(
    { length: rows },
    () => random.int(0, CONTEXT - 1),
  );
  using cpu = new CpuOps(CONFIG, { simd: false });
  using onCpu = cpu.createCache(rows, context);
  using ops = new GpuOps(gpu, CONFIG);
  using cache = new GpuKvCache(gpu, CONFIG, rows, context, "f16");
  const { length } = ids;
  using onGpu = Tensor.create(gpu, "u32", [length], ids);
  const input: CpuTensor = { dtype: "u32", shape: [length], data: ids };
  for (const each of [cache, onCpu]) {
    each.reset(lengths);
    each.begin(pass);
  }
  const expected = finish(forward(cpu, weights, input, onCpu));
  const runOnce = async () => {
    const plan = new Plan(gpu, cache.literals(tokens));
    ops.plan = plan;
    cache.record(pass);
    const logits = finish(forward(ops, onDevice, onGpu, cache));
    plan.run({ length: Math.max(...lengths) });
    const kernels = plan.dispatches.filter(({ gridAt }) =>
      !gridAt || gridAt({ length: Math.max(...lengths) })
    ).map(({ kernel, label }) => `${label} ${kernel}`);
    const error = relativeError(await logits.read(), toF32(expected));
    const overflowed = await leftOverflowed([cache.flags]);
    plan[Symbol.dispose]();
    return { error, overflowed, kernels };
  };
  const first = await runOnce();
  ops.joins = ops.halves = false;
  return { first, apart: await runOnce() };
}

/** Registers a test on a device with tensor cores. */
const trialTest = (name: string, fn: (trial: Trial) => Promise<void>) =>
  gpuTest(name, async (_, { draw }) => {
    using gpu = await openDevice({ gpu: wrapGpu(MATRIX_GPU).gpu });
    using trial = new Trial(gpu, draw);
    await fn(trial);
  });

const inFirst = (kernels: readonly string[]) =>
  kernels.filter((one) => one.startsWith("layers.0."))
    .map((one) => one.replace("layers.0.", ""));

trialTest(
  "a step of a few rows needs no dispatch between its matmuls",
  async (trial) => {
    const { first, apart } = await run(trial, { rows: 13 });
    assertEquals(inFirst(first.kernels), [
      "input_norm toF16",
      "qkv_proj gemmMatrix",
      "attention attendDecode",
      "o_proj gemmMatrix",
      "gate_up_proj gemmMatrix",
      "down_proj gemmMatrix",
    ]);
    const converting = apart.kernels.filter((one) => one.includes("toF16"));
    assertEquals(converting.length, 2 * 4);
    for (const { error, overflowed } of [first, apart]) {
      assert(error < 3e-3, `${error}`);
      assert(!overflowed);
    }
  },
);

trialTest(
  "attention adds up the splits of qkv_proj, and leaves rows in f16",
  async (trial) => {
    const { first, apart } = await run(trial, { rows: 70 });
    assertEquals(inFirst(first.kernels), [
      "input_norm toF16",
      "qkv_proj gemmMatrix",
      "attention attendDecode",
      "o_proj gemmMatrix",
      "post_norm toF16",
      "gate_up_proj gemmMatrix",
      "down_proj gemmMatrix",
    ]);
    assert(inFirst(apart.kernels).includes("qkv_proj sumSplits"));
    for (const { error } of [first, apart]) assert(error < 3e-3, `${error}`);
  },
);

trialTest(
  "a prompt's rows are converted only where they are normed",
  async (trial) => {
    const given = { rows: 1, tokens: PROMPT };
    const { first, apart } = await run(trial, given);
    assertEquals(inFirst(first.kernels), [
      "input_norm toF16",
      "qkv_proj gemmMatrix",
      "qk_norm_rope qkNormRope",
      "attention attendPrefillMatrix",
      "o_proj gemmMatrix",
      "post_norm toF16",
      "gate_up_proj gemmMatrix",
      "down_proj gemmMatrix",
    ]);
    // Sums of qkv_proj, and rows of attention and of gates, of two layers.
    assertEquals(apart.kernels.length - first.kernels.length, 2 * 3);
    for (const { error } of [first, apart]) assert(error < 3e-3, `${error}`);
  },
);

trialTest(
  "gates that do not fit f16 raise a flag, and are right if nothing is left in f16",
  async (trial) => {
    const power = (label: string) => /gate_up/.test(label) ? 11 : 0;
    const { first, apart } = await run(trial, { rows: 9, power });
    assertEquals(first.overflowed, "halves");
    assert(!apart.overflowed);
    assert(apart.error < 3e-3, `${apart.error}`);
  },
);

trialTest(
  "rows too small for f16 raise a flag, and small gates are not left in it",
  async (trial) => {
    const residual = (label: string) =>
      /embed|o_proj|down/.test(label) ? -10 : 0;
    const { first, apart } = await run(trial, { rows: 13, power: residual });
    assertEquals(first.overflowed, "halves");
    assert(!apart.overflowed);
    assert(apart.error < 3e-3, `${apart.error}`);
    const gates = (label: string) =>
      /gate_up/.test(label) ? -6 : /down/.test(label) ? 12 : 0;
    const scaled = await run(trial, { rows: 13, power: gates });
    assert(!scaled.first.overflowed);
    const { kernels, error } = scaled.first;
    assertEquals(kernels.filter((one) => one === "to_f16 toF16").length, 2);
    assert(error < 3e-3, `${error}`);
  },
);

trialTest(
  "rows in f16 of one layer are not those of the next, where a kernel writes f32",
  async (trial) => {
    const { first } = await run(trial, { rows: 13, mixed: true });
    assert(first.kernels.includes("layers.1.gate_up_proj swiglu"));
    assert(first.error < 3e-3, `${first.error}`);
  },
);

gpuTest(
  "a batch whose gates do not fit f16 is computed again, and the choices say so",
  async () => {
    const folder = new URL("../../models/stories-3m/", import.meta.url);
    const name = "model.safetensors";
    const file = await Deno.readFile(new URL(name, folder));
    // The last layer's: what follows them is normed.
    const large = scaleWeights(file, /layers\.5\.mlp\.(gate|up)_proj/, 10);
    await using changed = await copyCheckpoint(folder, { [name]: large });
    const { path } = changed, device = "gpu", onNotice = null;
    const { gpu } = wrapGpu(MATRIX_GPU);
    using qwen = await loadQwen3(path, { device, gpu, onNotice });
    using cpu = await loadQwen3(path, { device: "cpu" });
    // Many rows, as tensor cores multiply by small matrices then.
    const prompts = Array.from(
      { length: 66 },
      (_, i) => [1, 5 + 7 * i, 300 + i],
    );
    const options = { maxTokens: 2, temperature: 0 };
    const { sequences } = await qwen.generateBatch(prompts, options);
    const found = qwen.device.choices.filter(({ what }) =>
      what === "rows between matmuls"
    );
    assertEquals(found.length, 1);
    assertMatch(found[0].reason, /did not fit f16 in units of 16/);
    for (const row of [0, 40]) {
      const { tokenIds } = await cpu.generate(prompts[row], options);
      assertEquals(sequences[row].tokenIds, tokenIds);
    }
  },
);

Deno.test("16 texts of an 8B norm rows where splits are summed, and nowhere else", () => {
  const device = SKETCHES.find(({ subgroupMatrices = [] }) =>
    subgroupMatrices.length > 0
  )!;
  const { config } = parseSynthetic("synthetic:qwen3-8b");
  const batch = { tokens: 1, sequences: 16, page: 32 };
  const recorded = recordPass(device, { config, ...batch })
    .filter(({ options: { label = "" } }) => label.startsWith("layers.0."))
    .map(({ kernel, options: { label, constants } }) =>
      `${label!.slice(9)} ${kernel.name}${
        Number(constants?.SPLITS) > 1 ? " in splits" : ""
      }`
    );
  assertEquals([...new Set(recorded)], [
    "input_norm toF16",
    "qkv_proj gemmMatrix in splits",
    "attention attendDecode",
    "attention mergeSplits",
    "o_proj gemmMatrix in splits",
    "post_norm toF16 in splits",
    "gate_up_proj gemmMatrix",
    "down_proj gemmMatrix in splits",
  ]);
});

Deno.test("rows are left normed only where the tile that reads them has room for factors", () => {
  const own = SKETCHES.find(({ subgroupMatrices = [] }) =>
    subgroupMatrices.length > 0
  )!;
  // o_proj has no splits, and gates take a tile that almost fills 16 KiB.
  const config = { ...CONFIG, hiddenSize: 4096, numAttentionHeads: 2 };
  const heads = { numKeyValueHeads: 1, headDim: 128 };
  const shape = { ...config, ...heads, intermediateSize: 1024 };
  const reading = (kibibytes: number) => {
    const limits = {
      ...own.limits,
      maxComputeWorkgroupStorageSize: kibibytes * 1024,
    };
    const device = { ...own, limits };
    const calls = recordPass(device, {
      ...{ config: shape, tokens: 1, sequences: 16 },
    }).filter(({ options: { constants } }) => constants?.NORM === 1);
    for (const { kernel, options } of calls) {
      if (kernel.name !== "gemmMatrix") continue;
      assert(normsFit({ ...kernel.constants, ...options.constants }, device));
    }
    return calls.filter(({ kernel }) => kernel.name === "gemmMatrix").length;
  };
  assertEquals(reading(16), 0);
  assert(reading(48) > 0);
});
