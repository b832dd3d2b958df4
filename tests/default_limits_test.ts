/**
 * Models run on a device with WebGPU's default limits, and adapters below what the kernels
 * need are refused when they are opened.
 */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { openCheckpoint } from "../lib/checkpoint/open.ts";
import { GpuRunner } from "../lib/gpu/runner.ts";
import { resolveSampling } from "../lib/model/sampling.ts";
import { Gpu, LEAST_LIMITS, openGpu } from "../lib/webgpu/device.ts";
import { loadQwen3, NoAdapterError } from "../mod.ts";
import { oneByOne, promptsOf, read } from "./support/batch.ts";
import {
  assertGreedy,
  generateGreedily,
  readGolden,
  relativeError,
} from "./support/golden.ts";
import { gpuTest, someOf } from "./support/gpu.ts";
import { wrapGpu } from "./support/wrapped_gpu.ts";

/** The defaults of https://www.w3.org/TR/webgpu/#limits. */
const DEFAULTS = {
  maxBufferSize: 268435456,
  maxStorageBufferBindingSize: 134217728,
  maxComputeWorkgroupStorageSize: 16384,
  maxComputeInvocationsPerWorkgroup: 256,
  maxComputeWorkgroupSizeX: 256,
  maxStorageBuffersPerShaderStage: 8,
};

/** Adapters whose classes have other constants; an H100 also reads ahead. */
const INFO = {
  "a software renderer": { description: "llvmpipe", isFallbackAdapter: true },
  "an H100": {
    description: "NVIDIA H100",
    vendor: "4318",
    isFallbackAdapter: false,
  },
  "an unknown GPU": {
    description: "Card",
    vendor: "",
    isFallbackAdapter: false,
  },
} as const;

gpuTest(
  "a device of default limits refuses a ninth storage buffer",
  async () => {
    using gpu = await openGpu(wrapGpu({ limits: DEFAULTS }));
    const { device } = gpu;
    for (const [name, value] of Object.entries(DEFAULTS)) {
      assertEquals(device.limits[name as keyof GPUSupportedLimits], value);
    }
    for (const [buffers, refused] of [[8, false], [9, true]] as const) {
      device.pushErrorScope("validation");
      const layout = device.createBindGroupLayout({
        entries: Array.from({ length: buffers }, (_, binding) => ({
          binding,
          visibility: GPUShaderStage.COMPUTE,
          buffer: { type: "storage" as const },
        })),
      });
      device.createPipelineLayout({ bindGroupLayouts: [layout] });
      const error = await device.popErrorScope();
      assertEquals(error !== null, refused, `${buffers}: ${error?.message}`);
    }
  },
);

for (const [name, info] of someOf(Object.entries(INFO), 1)) {
  gpuTest(`a model runs with default limits on ${name}`, async () => {
    const { model, cases } = await readGolden("tiny-tied-bf16");
    const { gpu } = wrapGpu({ info, limits: DEFAULTS });
    using qwen = await loadQwen3(model, {
      device: "gpu",
      precision: "f32",
      gpu,
    });
    using onCpu = await loadQwen3(model, { device: "cpu" });
    for (const one of cases) {
      const { tokenIds, logits, greedy } = one;
      const error = relativeError(await qwen.logits(tokenIds), logits);
      assert(error < 1e-4, `${one.name}: ${error}`);
      const steps = Math.min(greedy.length, 12);
      const run = await generateGreedily(qwen, tokenIds, steps);
      assertEquals(run.tokenIds.length, steps);
      assertGreedy(run.tokenIds, one, 1e-4);
    }
    for (
      const sampling of [
        { temperature: 1, topK: 0, seed: 1 },
        { temperature: 0.8, topK: 20, topP: 0.9, seed: 2 },
        { temperature: 2, topK: 0, topP: 0.9, repetitionPenalty: 1.3, seed: 3 },
      ]
    ) {
      const options = { ...sampling, maxTokens: 12, ignoreEos: true };
      const runs = [qwen, onCpu].map((one) => one.generate([1, 2, 3], options));
      for (const run of runs) for await (const _ of run);
      assertEquals(runs[0].tokenIds, runs[1].tokenIds);
    }
    const prompts = promptsOf(5);
    const options = { temperature: 0, maxTokens: 6, ignoreEos: true };
    assertEquals(
      await read(qwen.generateBatch(prompts, options)),
      await oneByOne(onCpu, prompts, options),
    );
  });
}

gpuTest(
  "attention that merges its own splits runs with default limits",
  async () => {
    using opened = await openGpu(wrapGpu({ limits: DEFAULTS }));
    // As on Deno's own WebGPU, which a test cannot wrap.
    const gpu = new Gpu(opened.adapter, opened.device, {
      ...opened,
      vulkan: true,
      choices: [],
    });
    const { model, cases } = await readGolden("tiny-tied-bf16");
    await using checkpoint = await openCheckpoint(model);
    const runner = await GpuRunner.load(gpu, checkpoint, {
      context: 512,
      cacheDtype: "f16",
      f16Matmuls: false,
    });
    const greedy = resolveSampling({ temperature: 0 });
    const one = cases.find(({ tokenIds }) => tokenIds.length > 256)!;
    const ids: number[] = [];
    for await (const some of runner.generate([one.tokenIds], greedy, 8)) {
      ids.push(...some);
    }
    assertGreedy(ids, one, 1e-2);
    const { plan } = runner.pass(1, false);
    const kernels = plan.dispatches.map(({ kernel }) => kernel);
    assert(kernels.includes("attendDecode"));
    assert(!kernels.includes("mergeSplits"));
  },
);

gpuTest(
  "reading ahead is left out where it does not fit, with a reason",
  async () => {
    const { model } = await readGolden("tiny-tied-bf16");
    for (
      const [buffers, fits] of [[8, false], [9, false], [10, true]] as const
    ) {
      const limits = { ...DEFAULTS, maxStorageBuffersPerShaderStage: buffers };
      const { gpu } = wrapGpu({ info: INFO["an H100"], limits });
      using qwen = await loadQwen3(model, { device: "gpu", gpu });
      const { runner } = qwen;
      assert(runner instanceof GpuRunner);
      const reasons = runner.pass(1, false).plan.dispatches
        .filter(({ kernel }) => kernel === "attendDecode")
        .map(({ reason }) => reason).join("\n");
      assertEquals(/prefetch the next weights/.test(reasons), fits, reasons);
      assertEquals(
        reasons.includes(
          `nothing is read ahead: that binds 10 storage buffers, the device allows ${buffers};`,
        ),
        !fits,
      );
    }
  },
);

gpuTest(
  "limits that are too low are refused before a model is read",
  async () => {
    for (const [limit, least] of Object.entries(LEAST_LIMITS)) {
      if (least === 0) continue;
      const limits = { ...DEFAULTS, [limit]: least - 1 };
      const { gpu } = wrapGpu({ info: { description: "Card" }, limits });
      const { message } = await assertRejects(
        () => loadQwen3(undefined, { device: "gpu", gpu }),
        NoAdapterError,
      );
      assertEquals(
        message,
        `Cannot open a GPU: the limits of Card are too low: ${limit} is ${
          least - 1
        }, must be ${least}`,
      );
      using qwen = await loadQwen3(undefined, { gpu });
      assertEquals(qwen.device.kind, "cpu");
      assertMatch(qwen.device.choices[0].reason, new RegExp(limit));
    }
  },
);
