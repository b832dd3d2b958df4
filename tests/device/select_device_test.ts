import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { NoAdapterError } from "../../lib/errors.ts";
import { openDevice } from "../../lib/device/open_device.ts";
import { measureRates, selectDevice } from "../../lib/device/select_device.ts";
import { parseSynthetic } from "../../lib/checkpoint/synthetic.ts";
import { gpuTest } from "../support/gpu.ts";
import { HARDWARE, NO_ADAPTER, wrapGpu } from "../support/wrapped_gpu.ts";

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

Deno.test("without an adapter auto takes the CPU, gpu refuses and says what to install", async () => {
  const { gpu, choice } = await selectDevice("auto", config, {
    gpu: NO_ADAPTER,
  });
  assertEquals([gpu, choice.value], [undefined, "cpu"]);
  assertEquals(choice.reason, "no WebGPU adapter here");
  const error = await assertRejects(
    () => selectDevice("gpu", config, { gpu: NO_ADAPTER }),
    NoAdapterError,
    "Cannot open a GPU: no WebGPU adapter here; install the GPU's ",
  );
  assertMatch(error.message, / driver or run on the CPU$/);
  assert(`error: ${error.message}`.length <= 100, error.message);
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
    const [, taken, other] =
      /^no GPU found; the .* reads weights at ([\d.]+) GB\/s, the .* at ([\d.]+)$/
        .exec(choice.reason)!;
    assertEquals(choice.value, chosen ? "gpu: Test renderer" : "cpu");
    assertEquals(/; the software/.test(choice.reason), chosen !== undefined);
    assert(Number(taken) >= Number(other), choice.reason);
    // As generate prints it: one line, also with the name of a real adapter.
    const name = chosen && "gpu: llvmpipe (LLVM 15.0.6, 256 bits)";
    const notice = `Running on ${name ?? "cpu"}: ${choice.reason}.`;
    assert(notice.length <= 100, notice);
  },
);

gpuTest(
  "auto measures as many rows of a large weight as a binding holds",
  async () => {
    const info = { description: "Test renderer", isFallbackAdapter: true };
    const limits = { maxStorageBufferBindingSize: 1 << 24 };
    for (const size of ["14b", "32b"]) {
      const { config } = parseSynthetic(`synthetic:qwen3-${size}`);
      using gpu = await openDevice({ gpu: wrapGpu({ info, limits }).gpu });
      const rates = await measureRates(gpu, config);
      assert(!("failure" in rates), JSON.stringify(rates));
      assertEquals([rates.k, rates.n], [5120, 1638]);
      assert(rates.cpu > 0 && rates.gpu > 0, JSON.stringify(rates));
    }
  },
);

/** A software adapter whose devices behave as `edit` says. */
function broken(edit: (device: GPUDevice) => object, limits = {}): GPU {
  const info = { description: "Test renderer", isFallbackAdapter: true };
  const { gpu } = wrapGpu({ info, limits });
  const wrap = <T extends object>(target: T, own: (target: T) => object): T => {
    const replaced = own(target);
    return new Proxy(target, {
      get(target, name) {
        if (name in replaced) return Reflect.get(replaced, name);
        const value = Reflect.get(target, name, target);
        return typeof value === "function" ? value.bind(target) : value;
      },
    });
  };
  return wrap(gpu, () => ({
    requestAdapter: async () =>
      wrap((await gpu.requestAdapter())!, (adapter) => ({
        requestDevice: async (descriptor: GPUDeviceDescriptor) =>
          wrap(await adapter.requestDevice(descriptor), edit),
      })),
  }));
}

gpuTest(
  "only of Deno's own readbacks a part is left out of a rate",
  async () => {
    const MS = 40;
    const slow = broken((device) => ({
      createBuffer(descriptor: GPUBufferDescriptor) {
        const buffer = device.createBuffer(descriptor);
        const map = buffer.mapAsync.bind(buffer);
        buffer.mapAsync = async (...range) => {
          await Promise.all([
            map(...range),
            new Promise((done) => setTimeout(done, MS + 1)),
          ]);
        };
        return buffer;
      },
    }));
    using gpu = await openDevice({ gpu: slow });
    const small = { ...config, hiddenSize: 128, intermediateSize: 128 };
    const rates = await measureRates(gpu, small);
    assert(!("failure" in rates), JSON.stringify(rates));
    const megabytes = 8 * 2 * 128 * 128 / 1e6;
    assert(rates.gpu <= megabytes / MS, `${rates.gpu} GB/s`);
  },
);

gpuTest("a clock with long steps makes no rate too high", async () => {
  const now = performance.now.bind(performance);
  using gpu = await openDevice();
  performance.now = () => Math.floor(now()); // as in Firefox
  try {
    const small = { ...config, hiddenSize: 256, intermediateSize: 256 };
    const rates = await measureRates(gpu, small);
    assert(!("failure" in rates), JSON.stringify(rates));
    assert(rates.cpu < 100, `${rates.cpu} GB/s`);
  } finally {
    performance.now = now;
  }
});

gpuTest(
  "auto takes the CPU if a software adapter cannot be measured",
  async () => {
    const failures: [GPU, string][] = [
      [
        broken(() => ({}), { maxStorageBufferBindingSize: 1000 }),
        "Cannot allocate tensor of shape \\[1, 1024\\]: .* binds at most 1000",
      ],
      [
        broken((device) => ({
          createBuffer: () => (device.destroy(), null),
        })),
        ".*null",
      ],
      [
        broken((device) => ({
          createBuffer: (descriptor: GPUBufferDescriptor) => {
            const buffer = device.createBuffer(descriptor);
            if (descriptor.size === 3072 * 4) device.destroy();
            return buffer;
          },
        })),
        "Cannot .* Test renderer: .*",
      ],
      [
        broken((device) => ({
          createShaderModule: () => device.createShaderModule({ code: "oops" }),
        })),
        "Cannot .*",
      ],
    ];
    for (const [gpu, reason] of failures) {
      const { gpu: chosen, choice } = await selectDevice("auto", config, {
        gpu,
      });
      assertEquals([chosen, choice.value], [undefined, "cpu"]);
      assertMatch(
        choice.reason,
        new RegExp(
          `^only a software adapter is available, and measuring its speed failed: ${reason}`,
        ),
      );
    }
  },
);

gpuTest("auto takes the CPU if the adapter gives no device", async () => {
  const refuse = { requestDevice: () => Promise.reject(new Error("no more")) };
  const adapter = await navigator.gpu.requestAdapter();
  const { info, limits, features } = adapter!;
  const implementations = [
    [
      { requestAdapter: () => Promise.reject(new Error("no driver")) },
      "requestAdapter failed with no driver",
    ],
    [
      {
        requestAdapter: () =>
          Promise.resolve({ info, limits, features, ...refuse }),
      },
      "gives no device, no more",
    ],
  ] as const;
  for (const [implementation, reason] of implementations) {
    const gpu = implementation as unknown as GPU;
    const { gpu: chosen, choice } = await selectDevice("auto", config, { gpu });
    assertEquals([chosen, choice.value], [undefined, "cpu"]);
    assert(choice.reason.endsWith(reason), choice.reason);
    await assertRejects(
      () => selectDevice("gpu", config, { gpu }),
      NoAdapterError,
    );
  }
});

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
