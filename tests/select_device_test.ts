import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { NoAdapterError } from "../lib/errors.ts";
import { selectDevice } from "../lib/select_device.ts";
import { parseSynthetic } from "../lib/checkpoint/synthetic.ts";
import { gpuTest } from "./support/gpu.ts";
import { HARDWARE, NO_ADAPTER, wrapGpu } from "./support/wrapped_gpu.ts";

const { config } = parseSynthetic("synthetic:qwen3-0.6b");
const FORBIDDEN = {
  requestAdapter: () => Promise.reject(new Error("asked for an adapter")),
} as unknown as GPU;

Deno.test("cpu never requests an adapter", async () => {
  const { gpu, choice } = await selectDevice("cpu", config, { gpu: FORBIDDEN });
  assertEquals(gpu, undefined);
  assertEquals(choice, {
    what: "device",
    value: "cpu",
    reason: "it was asked for",
  });
});

Deno.test("without an adapter auto takes the CPU and says what to install, gpu refuses", async () => {
  const { gpu, choice } = await selectDevice("auto", config, {
    gpu: NO_ADAPTER,
  });
  assertEquals([gpu, choice.value], [undefined, "cpu"]);
  assertMatch(choice.reason, /^there is no WebGPU adapter here, install /);
  assertMatch(choice.reason, /apt-get install mesa-vulkan-drivers/);
  const error = await assertRejects(
    () => selectDevice("gpu", config, { gpu: NO_ADAPTER }),
    NoAdapterError,
    "Cannot open a GPU: there is no WebGPU adapter here",
  );
  assert(!error.message.includes("\n"));
});

gpuTest("auto takes a hardware GPU without measuring", async () => {
  const { gpu } = wrapGpu(HARDWARE);
  const { gpu: chosen, choice } = await selectDevice("auto", config, { gpu });
  using device = chosen!;
  assertEquals(choice, {
    what: "device",
    value: "gpu: Test GPU",
    reason: "a hardware GPU is available",
  });
  assertEquals([device.software, device.allocated], [false, 0]);
});

gpuTest(
  "auto measures a software adapter against the CPU and takes the faster",
  async () => {
    const { gpu } = wrapGpu({
      info: { description: "Test renderer", isFallbackAdapter: true },
    });
    const { gpu: chosen, choice } = await selectDevice("auto", config, { gpu });
    using _ = chosen;
    const [, onCpu, onGpu] =
      /^only a software adapter is available; a \[1, 1024\] × \[1024, 3072\] matmul reads ([\d.]+) GB\/s on the CPU path, ([\d.]+) GB\/s on Test renderer$/
        .exec(choice.reason)!;
    assertEquals(choice.value, chosen ? "gpu: Test renderer" : "cpu");
    const faster = Number(onGpu) - Number(onCpu);
    assert(
      faster === 0 || faster > 0 === (chosen !== undefined),
      choice.reason,
    );
  },
);

gpuTest("gpu takes any adapter, software included", async () => {
  const { gpu } = wrapGpu({ info: { description: "llvmpipe" } });
  const { gpu: chosen, choice } = await selectDevice("gpu", config, { gpu });
  using device = chosen!;
  assertEquals(device.software, true);
  assertEquals(choice.value, "gpu: llvmpipe");
  assertEquals(choice.reason, "it was asked for, a software renderer");
});

gpuTest(
  "an adapter without f16 or subgroups is used, and its choices say so",
  async () => {
    const { gpu } = wrapGpu({
      ...HARDWARE,
      without: ["shader-f16", "subgroups", "timestamp-query"],
    });
    const { gpu: chosen } = await selectDevice("gpu", config, { gpu });
    using device = chosen!;
    assertEquals([device.f16, device.subgroupSize], [false, 0]);
    assertEquals(device.timestamps, false);
    for (const what of ["shader-f16", "subgroups", "timestamp-query"]) {
      const choice = device.choices.find((choice) => choice.what === what)!;
      assertEquals(choice.value, "off");
      assert(choice.reason.length > 20, choice.reason);
    }
  },
);
