import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import {
  compileAhead,
  compileInWorkers,
  shares,
} from "../../lib/webgpu/compile_ahead.ts";
import type { Gpu } from "../../lib/webgpu/device.ts";
import { host } from "../../lib/host.ts";
import { loadQwen3 } from "../../lib/load.ts";
import { GpuRunner } from "../../lib/gpu/runner.ts";
import { isCompiled, type Shader } from "../../lib/webgpu/pipeline.ts";
import { gpuTest } from "../support/gpu.ts";

const TINY = new URL("../fixtures/tiny-tied-bf16/", import.meta.url).href;

/** The longest timeout there is, in milliseconds. */
const FOREVER = 2 ** 31 - 1;

/** The device under a name for which workers are used. */
const likeNvidia = (gpu: Gpu, name = gpu.name): Gpu =>
  Object.create(gpu, {
    adapterClass: { value: "NVIDIA" },
    name: { value: name },
  });

const shader = (label: string, lines: number): Shader => ({
  label,
  code: `@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<uniform> by: vec4u;
// ${label}
@compute @workgroup_size(1) fn main() {
${"  x[0] = x[0] * 3u + by.x;\n".repeat(lines)}}`,
  types: ["storage", "uniform"],
});

gpuTest("workers and the main thread compile everything", async (gpu) => {
  const all = [9, 7, 5, 3, 1].map((n) => shader(`worker ${n}`, n));
  const { value, reason } = await compileInWorkers(gpu, all, 2, {
    patienceMs: FOREVER,
  });
  assertEquals(value, "3 threads", reason);
  for (const one of all) assert(isCompiled(gpu, one), one.label);
  gpu.check();
});

gpuTest(
  "a failed worker is reported, and the main thread does its work",
  async (gpu) => {
    const all = [3, 2, 1].map((n) => shader(`failing ${n}`, n));
    const other = likeNvidia(gpu, "another adapter");
    const { value, reason } = await compileInWorkers(other, all, 2, {
      patienceMs: FOREVER,
    });
    assertEquals(value, "one thread");
    assertStringIncludes(
      reason,
      "Cannot compile for another adapter: the adapter is",
    );
    for (const one of all) assert(isCompiled(other, one), one.label);
    const more = [3, 2, 1].map((n) => shader(`failed before ${n}`, n));
    assertEquals(await compileAhead(other, () => more), undefined);
    for (const one of more) assert(!isCompiled(other, one), one.label);
  },
);

gpuTest("workers open no GL, and none start where they would", async (gpu) => {
  const { env, setEnv, isGranted } = host, name = "DENO_WEBGPU_BACKEND";
  const compiled = async (label: string) => {
    const all = [3, 2, 1].map((n) => shader(`${label} ${n}`, n));
    const other: Gpu = Object.create(gpu);
    const how = { patienceMs: FOREVER };
    const { value, reason } = await compileInWorkers(other, all, 2, how);
    for (const one of all) assert(isCompiled(other, one), one.label);
    return `${value}: ${reason}`;
  };
  const faked = host as { -readonly [K in keyof typeof host]: typeof host[K] };
  try {
    const set: string[] = [];
    faked.env = (one) => one === name ? undefined : env(one);
    faked.setEnv = (...both) => void set.push(both.join("="));
    assertMatch(await compiled("unset"), /^3 threads/);
    assertEquals(set, [`${name}=vulkan`]);
    for (const given of ["gl,vulkan", "vulkan, OpenGL", "GLES"]) {
      faked.env = (one) => one === name ? given : env(one);
      const value = await compiled(given);
      assert(value.startsWith(`one thread: ${name} is ${given}: `), value);
    }
    faked.isGranted = (kind, of) => of !== name && isGranted(kind, of);
    assertMatch(await compiled("refused"), /^one thread: .* no env permission/);
  } finally {
    Object.assign(faked, { env, setEnv, isGranted });
  }
});

gpuTest("a worker that never answers is not waited for", async (gpu) => {
  const all = [3, 2, 1].map((n) => shader(`waiting ${n}`, n));
  const other = Object.create(gpu);
  const { Worker } = globalThis;
  let terminated = 0;
  globalThis.Worker = class extends EventTarget {
    postMessage() {}
    terminate() {
      terminated++;
    }
  } as unknown as typeof Worker;
  try {
    const { value, reason } = await compileInWorkers(other, all, 2, {
      patienceMs: 10,
    });
    assertEquals(value, "one thread");
    assertEquals(reason, "a worker failed: no answer in 0.01 s");
  } finally {
    globalThis.Worker = Worker;
  }
  assertEquals(terminated, 2);
  for (const one of all) assert(isCompiled(other, one), one.label);
});

gpuTest(
  "without permission to read its script no worker starts, which is said once",
  async (gpu) => {
    const all = [3, 2, 1].map((n) => shader(`unread ${n}`, n));
    const other = likeNvidia(gpu), { permissions } = Deno;
    const querySync = permissions.querySync.bind(permissions);
    permissions.querySync = (descriptor) => {
      const status = querySync(descriptor);
      return descriptor.name === "read"
        ? Object.create(status, { state: { value: "prompt" } })
        : status;
    };
    try {
      const choice = await compileAhead(other, () => all);
      assertEquals([choice?.what, choice?.value], [
        "first compilation",
        "one thread",
      ]);
      assertMatch(
        choice!.reason,
        /^a worker failed: Deno has no read permission for file:\S+compile_worker.ts, run it with --allow-read$/,
      );
      assertEquals(await compileAhead(other, () => all), undefined);
    } finally {
      permissions.querySync = querySync;
    }
    for (const one of all) assert(!isCompiled(other, one), one.label);
  },
);

gpuTest(
  "the choice of threads is listed once for any number of prompts",
  async () => {
    using qwen = await loadQwen3(TINY, { device: "gpu" });
    const { runner } = qwen;
    assert(runner instanceof GpuRunner);
    Object.defineProperty(runner.gpu, "adapterClass", { value: "NVIDIA" });
    for (const tokens of [2, 3, 4, 5, 6]) {
      const prompt = Array.from({ length: tokens }, () => 1);
      for await (const _ of qwen.generate(prompt, { maxTokens: 2 }));
    }
    const decided = qwen.device.choices
      .filter(({ what }) => what === "first compilation");
    assert(decided.length <= 1, `${decided.length}`);
  },
);

gpuTest(
  "no shader is requested where workers are not known to help",
  async (gpu) => {
    const other = Object.create(gpu, { vulkan: { value: false } });
    const request = () => {
      throw new Error("the shaders were requested");
    };
    assertEquals(await compileAhead(other, request), undefined);
  },
);

Deno.test("the longest shaders are assigned first, and opening a device counts as work", () => {
  const all = [100, 90, 80, 10, 10, 10].map((n) => shader("share", n));
  const lengths = shares(all, 2).map((share) =>
    share.map(({ code }) => code.split("by.x").length - 1)
  );
  assertEquals(lengths, [[100, 10, 10, 10], [90], [80]]);
});
