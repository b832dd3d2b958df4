import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import {
  compileAhead,
  compileInWorkers,
  type CompileJob,
  shares,
} from "../../lib/webgpu/compile_ahead.ts";
import type { Choice } from "../../lib/dispatch/choice.ts";
import type { Gpu } from "../../lib/webgpu/device.ts";
import { host } from "../../lib/host.ts";
import { loadQwen3 } from "../../lib/load.ts";
import { chooseSampling } from "../../lib/dispatch/sampling.ts";
import { GpuOps } from "../../lib/gpu/ops.ts";
import { GpuRunner } from "../../lib/gpu/runner.ts";
import { sampledRow } from "../../lib/gpu/sample.ts";
import { GpuSequences } from "../../lib/gpu/sequences.ts";
import { resolveSampling } from "../../lib/model/sampling.ts";
import { isCompiled, type Shader } from "../../lib/webgpu/pipeline.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { gpuTest, openTested } from "../support/gpu.ts";

const TINY = new URL("../fixtures/tiny-tied-bf16/", import.meta.url).href;

const GREEDY = resolveSampling({ temperature: 0 });

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

/** What two workers and the main thread decide. */
async function inWorkers(
  gpu: Gpu,
  shaders: readonly Shader[],
  options: { patienceMs: number },
): Promise<Choice> {
  using ahead = await compileInWorkers(gpu, shaders, 2, options);
  return ahead.choice!;
}

gpuTest("workers and the main thread compile everything", async (gpu) => {
  const all = [9, 7, 5, 3, 1].map((n) => shader(`worker ${n}`, n));
  const { value, reason } = await inWorkers(gpu, all, { patienceMs: FOREVER });
  assertEquals(value, "3 threads", reason);
  for (const one of all) assert(isCompiled(gpu, one), one.label);
  gpu.check();
});

gpuTest("workers go on with what is needed later", async (gpu) => {
  const all = [9, 7, 5, 3].map((n) => shader(`first ${n}`, n));
  const more = [8, 6, 4].map((n) => shader(`later ${n}`, n));
  const { Worker } = globalThis, jobs: string[][] = [];
  let ended = 0;
  globalThis.Worker = class extends Worker {
    override postMessage({ shaders }: CompileJob) {
      jobs.push(shaders.map(({ label }) => label));
      super.postMessage(...arguments as unknown as [CompileJob]);
    }
    override terminate() {
      ended++;
      super.terminate();
    }
  };
  const options = { patienceMs: FOREVER, later: () => more };
  try {
    {
      using ahead = await compileInWorkers(gpu, all, 2, options);
      assertEquals(ahead.choice?.value, "3 threads", ahead.choice?.reason);
      for (const one of all) assert(isCompiled(gpu, one), one.label);
      await ahead.later;
      assertEquals(ended, 2);
    }
    assertEquals(jobs.length, 4);
    assertEquals(
      jobs.slice(2).flat().sort(),
      more.map(({ label }) => label).sort(),
    );
  } finally {
    globalThis.Worker = Worker;
  }
  gpu.check();
});

/** A worker that answers no job. */
class Silent extends EventTarget {
  terminated = false;
  postMessage() {}
  terminate() {
    this.terminated = true;
  }
}

/** A worker that answers its first job only. */
class Forgetful extends Silent {
  #jobs = 0;
  override postMessage() {
    if (this.#jobs++ > 0) return;
    queueMicrotask(() =>
      this.dispatchEvent(new MessageEvent("message", { data: {} }))
    );
  }
}

/** Runs `body` with workers of a class; returns those that began. */
async function withWorkers<W>(
  kind: new () => W,
  body: () => Promise<void>,
): Promise<W[]> {
  const { Worker } = globalThis, all: W[] = [];
  globalThis.Worker = function () {
    const worker = new kind();
    all.push(worker);
    return worker;
  } as unknown as typeof Worker;
  try {
    await body();
  } finally {
    globalThis.Worker = Worker;
  }
  return all;
}

gpuTest(
  "a run that ends before its workers leaves nothing behind",
  async (gpu) => {
    const { setTimeout, clearTimeout } = globalThis, left = new Set<unknown>();
    globalThis.setTimeout = ((...args: Parameters<typeof setTimeout>) => {
      const id = setTimeout(...args);
      left.add(id);
      return id;
    }) as typeof setTimeout;
    globalThis.clearTimeout = (id) => (left.delete(id), clearTimeout(id));
    const aborts = new AbortController();
    try {
      const ended = await withWorkers(Forgetful, async () => {
        for (const end of ["dispose", "abort"]) {
          const all = [5, 4, 3].map((n) => shader(`${end} first ${n}`, n));
          const more = [5, 4, 3].map((n) => shader(`${end} later ${n}`, n));
          const ahead = await compileInWorkers(Object.create(gpu), all, 2, {
            ...{
              patienceMs: FOREVER,
              later: () => more,
              signal: aborts.signal,
            },
          });
          assertEquals(ahead.choice?.value, "3 threads");
          if (end === "dispose") ahead[Symbol.dispose]();
          else aborts.abort();
          assertEquals(await ahead.later, undefined);
        }
      });
      assertEquals(
        ended.map(({ terminated }) => terminated),
        Array(4).fill(true),
      );
      assertEquals(left.size, 0);
    } finally {
      Object.assign(globalThis, { setTimeout, clearTimeout });
    }
  },
);

gpuTest(
  "a worker that stops answering is reported, and no other starts",
  async (gpu) => {
    const other = likeNvidia(gpu), how = { patienceMs: 10 };
    await withWorkers(Forgetful, async () => {
      const all = [5, 4, 3].map((n) => shader(`answered ${n}`, n));
      const more = [5, 4, 3].map((n) => shader(`unanswered ${n}`, n));
      using ahead = await compileInWorkers(other, all, 2, {
        ...how,
        later: () => more,
      });
      assertEquals(ahead.choice?.value, "3 threads");
      const choice = await ahead.later;
      assertEquals(choice?.value, "one thread");
      assertMatch(choice!.reason, /^a worker failed: no answer in 0.01 s$/);
    });
    const request = () => {
      throw new Error("the shaders were requested");
    };
    using ahead = await compileAhead(other, request, { later: request });
    assertEquals(ahead.choice, undefined);
  },
);

gpuTest(
  "workers compile what is needed later if nothing is needed first",
  async (gpu) => {
    const { device } = gpu, create = device.createComputePipeline.bind(device);
    device.createComputePipeline = (descriptor) => {
      for (const end = performance.now() + 5; performance.now() < end;);
      return create(descriptor); // as long as a driver without a cache
    };
    const { hardwareConcurrency } = navigator;
    Object.defineProperty(navigator, "hardwareConcurrency", {
      configurable: true,
      value: 4,
    });
    try {
      const more = [7, 6, 5, 4, 3].map((n) => shader(`only later ${n}`, n));
      const options = { later: () => more };
      using ahead = await compileAhead(likeNvidia(gpu), () => [], options);
      assertEquals(ahead.choice?.value, "4 threads", ahead.choice?.reason);
      assertEquals(await ahead.later, undefined);
    } finally {
      Object.defineProperty(navigator, "hardwareConcurrency", {
        configurable: true,
        value: hardwareConcurrency,
      });
      Reflect.deleteProperty(device, "createComputePipeline");
    }
  },
);

gpuTest(
  "the first token waits for no kernel of later ones, and one token for none",
  async () => {
    for (const readsApart of [false, true]) {
      using gpu = await openTested();
      Object.defineProperty(gpu, "readsApart", { value: readsApart });
      const made: string[] = [];
      const { device } = gpu,
        create = device.createComputePipeline.bind(device);
      device.createComputePipeline = (descriptor) => {
        made.push(descriptor.label!);
        return create(descriptor);
      };
      await using checkpoint = await openCheckpoint(TINY);
      using runner = await GpuRunner.load(gpu, checkpoint, {
        context: 64,
        cacheDtype: "f32",
        f16Matmuls: false,
      });
      const run = async (maxTokens: number) => {
        const before: string[][] = [];
        const ids: number[] = [];
        const prompt = Array.from({ length: 20 }, (_, i) => 1 + i);
        for await (const some of runner.generate([prompt], GREEDY, maxTokens)) {
          before.push([...made]);
          ids.push(...some);
        }
        return { before, ids };
      };
      const one = await run(1);
      assert(!made.includes("attendDecode"), `${made}`);
      const { before, ids } = await run(9);
      assert(!before[0].includes("attendDecode"), `${before[0]}`);
      assert(before[1].includes("attendDecode"), `${before[1]}`);
      assertEquals(ids.length, 9);
      assertEquals(ids[0], one.ids[0]);
      assertEquals((await run(9)).ids, ids); // now a step is ready
    }
  },
);

gpuTest(
  "a prompt's shaders are all that its first token needs",
  async () => {
    using gpu = await openTested();
    await using checkpoint = await openCheckpoint(TINY);
    using runner = await GpuRunner.load(gpu, checkpoint, {
      context: 64,
      cacheDtype: "f32",
      f16Matmuls: false,
    });
    const { vocabSize } = runner.config, prompt = [1, 2, 3];
    const sampling = resolveSampling({ temperature: 1, topK: 20 });
    using ops = new GpuOps(gpu, runner.config);
    using one = await GpuSequences.create(ops, runner.weights, {
      ...{ sequences: 1, context: 64, dtype: "f32" },
    });
    const rows = runner.prefillRows;
    const how = {
      sampling: chooseSampling([sampledRow(sampling)], vocabSize),
    };
    const asked = one.promptShaders([prompt], rows, how)
      .map(({ label }) => label);
    const made: string[] = [];
    const { device } = gpu, create = device.createComputePipeline.bind(device);
    device.createComputePipeline = (descriptor) => {
      made.push(descriptor.label!);
      return create(descriptor);
    };
    await Array.fromAsync(runner.generate([prompt], sampling, 1));
    assertEquals([...new Set(made)].sort(), [...new Set(asked)].sort());
    assert(asked.includes("sampleTopK"), `${asked}`);
    await one.prefillAll([prompt], { rows, cached: 0 });
    assertEquals(one.promptShaders([prompt], rows, how), []);
  },
);

gpuTest(
  "a failed worker is reported, and the main thread does its work",
  async (gpu) => {
    const all = [3, 2, 1].map((n) => shader(`failing ${n}`, n));
    const other = likeNvidia(gpu, "another adapter");
    const { value, reason } = await inWorkers(other, all, {
      patienceMs: FOREVER,
    });
    assertEquals(value, "one thread");
    assertStringIncludes(
      reason,
      "Cannot compile for another adapter: the adapter is",
    );
    for (const one of all) assert(isCompiled(other, one), one.label);
    const more = [3, 2, 1].map((n) => shader(`failed before ${n}`, n));
    assertEquals((await compileAhead(other, () => more)).choice, undefined);
    for (const one of more) assert(!isCompiled(other, one), one.label);
  },
);

gpuTest("workers open no GL, and none start where they would", async (gpu) => {
  const { env, setEnv, isGranted } = host, name = "DENO_WEBGPU_BACKEND";
  const compiled = async (label: string) => {
    const all = [3, 2, 1].map((n) => shader(`${label} ${n}`, n));
    const other: Gpu = Object.create(gpu);
    const how = { patienceMs: FOREVER };
    const { value, reason } = await inWorkers(other, all, how);
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
  const ended = await withWorkers(Silent, async () => {
    const { value, reason } = await inWorkers(other, all, { patienceMs: 10 });
    assertEquals(value, "one thread");
    assertEquals(reason, "a worker failed: no answer in 0.01 s");
  });
  assertEquals(ended.map(({ terminated }) => terminated), [true, true]);
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
      const { choice } = await compileAhead(other, () => all);
      assertEquals([choice?.what, choice?.value], [
        "first compilation",
        "one thread",
      ]);
      assertMatch(
        choice!.reason,
        /^a worker failed: Deno has no read permission for file:\S+compile_worker.ts, run it with --allow-read$/,
      );
      assertEquals((await compileAhead(other, () => all)).choice, undefined);
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
    const options = { later: request };
    const { choice } = await compileAhead(other, request, options);
    assertEquals(choice, undefined);
  },
);

Deno.test("the longest shaders are assigned first, and devices open one after another", () => {
  const all = [100, 90, 80, 10, 10, 10].map((n) => shader("share", n));
  const lengths = shares(all, 2).map((share) =>
    share.map(({ code }) => code.split("by.x").length - 1)
  );
  assertEquals(lengths, [[100, 10, 10], [90, 10], [80]]);
  // Workers that run have no device to open.
  assertEquals(shares(all.slice(1), 1, true).map(({ length }) => length), [
    2,
    3,
  ]);
});
