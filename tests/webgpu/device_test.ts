import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import {
  batchedGemm,
  gemm,
  gemv,
  matmul,
  openDevice,
  Tensor,
} from "../../mod.ts";
import { type Gpu, openGpu } from "../../lib/webgpu/device.ts";
import { gpuTest } from "../support/gpu.ts";
import { tamperedGpu } from "../support/tampered_gpu.ts";
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

gpuTest("the compiler is known by what it accepts", async (own) => {
  const accepting = tamperedGpu("probe", () => "");
  using other = await openGpu({ gpu: accepting });
  const found = (gpu: Gpu) => {
    const choice = gpu.choices.find(({ what }) => what === "WGSL compiler")!;
    assertEquals(choice.value, gpu.compiler);
    return [gpu.compiler, choice.reason];
  };
  assertEquals(found(own), ["naga", "it refuses `enable subgroups;`"]);
  assertEquals(found(other), ["tint", "it accepts `enable subgroups;`"]);
  using without = await openGpu(wrapGpu({ without: ["subgroups"] }));
  assertEquals(without.compiler, "naga");
});

gpuTest("after dispose a device and its tensors say so", async () => {
  const gpu = await openDevice();
  const values = new Float32Array([1, 2, 3, 4]);
  const a = Tensor.create(gpu, "f32", [2, 2], values, "weights");
  const b = Tensor.create(gpu, "f32", [2, 2], values);
  const allocated = gpu.allocated;
  b[Symbol.dispose]();
  b[Symbol.dispose]();
  assert(gpu.allocated < allocated);
  assertThrows(() => matmul(a, b), Error, "Cannot multiply: b was disposed");
  assertThrows(() => gemm(b, a), Error, "Cannot run gemm: a was disposed");
  assertThrows(
    () => b.view(4).write(0, values),
    Error,
    "Cannot write tensor: tensor was disposed",
  );
  await assertRejects(
    () => b.read(),
    Error,
    "Cannot read tensor: tensor was disposed",
  );
  gpu.check(); // the device was not bothered

  const reading = a.read();
  gpu[Symbol.dispose]();
  gpu[Symbol.dispose]();
  const gone = "the device was disposed";
  await assertRejects(
    () => reading,
    Error,
    `Cannot read from ${gpu.name}: ${gone}`,
  );
  assertThrows(() => matmul(a, a), Error, `Cannot multiply: ${gone}`);
  assertThrows(() => gemv(a, a), Error, `Cannot run gemv: ${gone}`);
  const tall = a.view(1, 1, 2, 2);
  assertThrows(
    () => batchedGemm(tall, tall),
    Error,
    `Cannot run batchedGemm: ${gone}`,
  );
  assertThrows(
    () => Tensor.create(gpu, "f32", [2]),
    Error,
    `Cannot allocate tensor: ${gone}`,
  );
  assertThrows(
    () => gpu.buffer(16, "scratch"),
    Error,
    `Cannot allocate scratch: ${gone}`,
  );
  assertThrows(
    () => a.write(0, values),
    Error,
    `Cannot write weights: ${gone}`,
  );
  await assertRejects(() => a.read(), Error, `Cannot read weights: ${gone}`);
  await assertRejects(
    () => gpu.readBuffer(a.buffer, 0, 4),
    Error,
    `Cannot read from ${gpu.name}: ${gone}`,
  );
  a[Symbol.dispose]();
  assertEquals(gpu.allocated, 0);
  assert(gpu.name.length > 0 && gpu.choices.length > 3);
});
