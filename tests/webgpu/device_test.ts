import { assertEquals, assertMatch } from "@std/assert";
import { openGpu } from "../../lib/webgpu/device.ts";
import { gpuTest } from "../support/gpu.ts";
import { type Pretence, wrapGpu } from "../support/wrapped_gpu.ts";

gpuTest(
  "a device without subgroups belongs to the second adapter",
  async () => {
    const pretences: Pretence[] = [
      { info: { description: "First" }, without: ["subgroups"] },
      {
        info: { description: "Second" },
        limits: { maxBufferSize: 1 << 28 },
        without: ["subgroups", "timestamp-query"],
      },
    ];
    const adapters: (GPUAdapter | null)[] = [];
    const implementation = {
      async requestAdapter(options: GPURequestAdapterOptions) {
        const { gpu } = wrapGpu(pretences[adapters.length]);
        const adapter = await gpu.requestAdapter(options);
        adapters.push(adapter);
        return adapter;
      },
    };
    using gpu = await openGpu({ gpu: implementation as GPU });
    assertEquals(adapters.length, 2);
    assertEquals(gpu.adapter === adapters[1], true);
    assertMatch(gpu.name, /Second/);
    assertEquals(gpu.descriptor.requiredLimits.maxBufferSize, 1 << 28);
    assertEquals(
      gpu.descriptor.requiredFeatures.includes("timestamp-query"),
      false,
    );
    assertEquals([gpu.timestamps, gpu.subgroupSize], [false, 0]);
    const reasonOf = (name: string) =>
      gpu.choices.find(({ what }) => what === name)!.reason;
    assertMatch(reasonOf("timestamp-query"), /the adapter lacks it/);
    assertMatch(reasonOf("subgroups"), /no subgroups here/);
  },
);
