import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { loadQwen3, openDevice } from "../../mod.ts";
import { OptionError } from "../../lib/errors.ts";
import { adapterClass, adapterName } from "../../lib/webgpu/adapter.ts";
import type { DeviceOptions } from "../../lib/webgpu/implementation.ts";
import { gpuTest } from "../support/gpu.ts";
import { outcomeOf } from "../support/run_task.ts";
import { HARDWARE, NO_ADAPTER, wrapGpu } from "../support/wrapped_gpu.ts";

const ROOT = new URL("../../", import.meta.url);

Deno.test("wrong names of an implementation or adapter are refused", async () => {
  const refusals: [DeviceOptions, string][] = [
    [{ webgpu: "wgpu" as "deno" }, 'webgpu is "wgpu", must be deno or dawn'],
    [
      { webgpu: "dawn", gpu: NO_ADAPTER },
      'webgpu is "dawn", must be left out when gpu is given',
    ],
    [
      { webgpu: "deno", gpu: NO_ADAPTER },
      'webgpu is "deno", must be left out when gpu is given',
    ],
    [{ adapter: "fast" as "high" }, 'adapter is "fast", must be high or low'],
  ];
  for (const [options, message] of refusals) {
    await assertRejects(
      () => openDevice(options),
      OptionError,
      `Cannot open a GPU: ${message}`,
    );
    await assertRejects(
      () => loadQwen3("synthetic:qwen3-0.6b?layers=1&vocab=512", options),
      OptionError,
      `Cannot load synthetic:qwen3-0.6b?layers=1&vocab=512: ${message}`,
    );
  }
  for (const options of [{ webgpu: "dawn" }, { adapter: "low" }] as const) {
    const [[name, value]] = Object.entries(options);
    await assertRejects(
      () => loadQwen3(undefined, { device: "cpu", ...options }),
      OptionError,
      `${name} is "${value}", must be left out when device is cpu`,
    );
  }
});

Deno.test("a passed implementation needs no constants of the runtime", async () => {
  const scope = globalThis as unknown as Record<string, object>;
  const names = ["BufferUsage", "MapMode", "ShaderStage", "TextureUsage"]
    .map((name) => `GPU${name}`);
  for (const name of names) {
    const before = Object.getOwnPropertyDescriptor(scope, name)!;
    const own = scope[name] as unknown as Record<string, number>;
    delete scope[name];
    try {
      await openDevice({ gpu: NO_ADAPTER }).catch(() => {});
      const values = Object.entries(scope[name] ?? {});
      assert(values.length > 1, name);
      for (const [value, bits] of values) assertEquals(bits, own[value]);
    } finally {
      Object.defineProperty(scope, name, before);
    }
  }
});

gpuTest("the adapter is the one that was asked for", async () => {
  for (const adapter of [undefined, "high", "low"] as const) {
    const asked: (string | undefined)[] = [];
    const { gpu: wrapped } = wrapGpu(HARDWARE);
    const gpu = {
      requestAdapter(options: GPURequestAdapterOptions) {
        asked.push(options.powerPreference);
        return wrapped.requestAdapter(options);
      },
    } as GPU;
    using device = await openDevice({ gpu, adapter });
    const wanted = adapter === "low" ? "low-power" : "high-performance";
    assertEquals(asked, [wanted]);
    const choice = device.choices.find(({ what }) =>
      what === "adapter request"
    );
    const reason = adapter ? "it was asked for" : "the default";
    assertEquals(choice, { what: "adapter request", value: wanted, reason });
    assertEquals(device.implementation, "other");
  }
});

gpuTest(
  "by default the runtime's own WebGPU runs, which has no matrices",
  async () => {
    for (const webgpu of [undefined, "deno"] as const) {
      using gpu = await openDevice({ webgpu });
      assertEquals([gpu.implementation, gpu.subgroupMatrices], ["deno", []]);
      assertEquals(gpu.choices[0], {
        what: "WebGPU",
        value: `deno ${Deno.version.deno}`,
        reason: webgpu ? "it was asked for" : "the default",
      });
    }
  },
);

/** What a script that opens a device has then, of what GL would bring. */
async function opened(flags: readonly string[], backends?: string) {
  const script = `import { openDevice } from ${
    JSON.stringify(new URL("mod.ts", ROOT).href)
  };
    using gpu = await openDevice();
    const maps = await Deno.readTextFile("/proc/self/maps").catch(() => "");
    console.log(JSON.stringify({
      choice: gpu.choices.find(({ what }) => what === "graphics APIs"),
      opensGl: maps.includes("libEGL"),
    }));`;
  const { XDG_RUNTIME_DIR: _, DENO_WEBGPU_BACKEND: __, ...env } = Deno.env
    .toObject();
  const folder = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(`${folder}/main.ts`, script);
    const { code, stdout, stderr } = await outcomeOf(Deno.execPath(), {
      args: ["run", ...flags, "--no-check", `${folder}/main.ts`],
      cwd: ROOT,
      clearEnv: true,
      env: { ...env, ...backends && { DENO_WEBGPU_BACKEND: backends } },
    });
    assertEquals(code, 0, stderr);
    return { ...JSON.parse(stdout), stderr };
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

gpuTest("a device is opened without GL where Deno may be told so", async () => {
  const what = "graphics APIs", value = "vulkan,metal,dx12";
  const reason = "GL lacks f16, may hang, and may abort a process as it ends";
  assertEquals(await opened(["-A"]), {
    ...{ choice: { what, value, reason }, opensGl: false, stderr: "" },
  });
  const given = await opened(["-A"], "vulkan");
  const name = "DENO_WEBGPU_BACKEND";
  assertEquals(given.choice, { what, value: "vulkan", reason: name });
  const { choice } = await opened(["--allow-read"]);
  assertEquals(choice, {
    ...{ what, value: "Deno's default" },
    reason: `Deno has no env permission for ${name}: ${reason}`,
  });
});

Deno.test("adapters have names and classes in Deno and in Dawn", () => {
  const deno = { vendor: "4318", device: "9019", description: "NVIDIA H200" };
  const dawn = {
    vendor: "nvidia",
    device: "nvidia-h200",
    description: "NVIDIA: 580.95.05",
  };
  assertEquals([deno, dawn].map(adapterName as (info: object) => string), [
    "NVIDIA H200",
    "nvidia h200",
  ]);
  for (const info of [deno, dawn]) {
    assertEquals(adapterClass(info, false), "NVIDIA, large cache");
  }
  assertEquals(
    adapterClass({ ...dawn, device: "nvidia-geforce-rtx-3060" }, false),
    "NVIDIA",
  );
  assertEquals(
    adapterClass({
      vendor: "amd",
      device: "amd-radeon-rx-7900-xtx-radv-navi31-",
      description: "radv: Mesa 25.0.7",
    }, false),
    "AMD",
  );
});

Deno.test("importing the library downloads no Dawn, and Dawn is an error where it is none", async () => {
  const folder = await Deno.makeTempDir(), cache = `${folder}/cache`;
  const run = async (...args: string[]) => {
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args,
      env: { DENO_DIR: cache, NO_COLOR: "1" },
    }).output();
    const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim();
    assertEquals(code, 0, text(stderr));
    return text(stdout);
  };
  try {
    const library = new URL("mod.ts", ROOT).href;
    const tasks = new URL("tasks/qwen3.ts", ROOT).href;
    await run("cache", "--no-config", "--no-check", library, tasks);
    const packages = await Array.fromAsync(
      Deno.readDir(`${cache}/npm/registry.npmjs.org`),
      ({ name }) => name,
    );
    assert(packages.includes("tinyqueue"), packages.join());
    assert(!packages.includes("webgpu"), packages.join());
    await Deno.writeTextFile(
      `${folder}/main.ts`,
      `import { loadQwen3, openDevice } from ${JSON.stringify(library)};
       const webgpu = "dawn", notices = [];
       const opening = await openDevice({ webgpu }).catch(String);
       const loading = await loadQwen3(undefined, { webgpu, device: "gpu" })
         .catch(String);
       using qwen = await loadQwen3(undefined, {
         webgpu,
         onNotice: (notice) => notices.push(notice),
       });
       const [choice] = qwen.device.choices;
       console.log(JSON.stringify({ opening, loading, choice, notices }));`,
    );
    const flags = ["-A", "--no-config", "--no-check", "--cached-only"];
    const { opening, loading, choice, notices } = JSON.parse(
      await run("run", ...flags, `${folder}/main.ts`),
    );
    for (const error of [opening, loading]) {
      assertMatch(
        error,
        /^NoAdapterError: Cannot open a GPU: Dawn cannot be loaded, [^\n]*npm[^\n]*; leave webgpu out to use the runtime's own$/,
      );
    }
    assertEquals(choice.value, "cpu");
    assertMatch(choice.reason, /^Dawn cannot be loaded, /);
    assertEquals(notices.length, 1);
    const [notice] = notices;
    assert(notice.startsWith("Running on cpu: Dawn cannot be loaded, "));
    assert(notice.length <= 100, notice);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
