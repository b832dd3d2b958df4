/** What requests leave behind once they have ended: nothing. */
import v8 from "node:v8";
import vm from "node:vm";
import { assert, assertEquals } from "@std/assert";
import { type Engine, loadQwen3 } from "../../mod.ts";
import { eachDevice, gpuTest } from "../support/gpu.ts";
import { wrapGpu } from "../support/wrapped_gpu.ts";

const SLOTS = 2;
const HOW = { temperature: 0, ignoreEos: true, reuse: false };

/** Submits a request that ends by itself, or is left or aborted after its first token. */
async function ask(engine: Engine, end: number, all: AbortSignal) {
  const ender = new AbortController(), { signal: own } = ender;
  const signal = AbortSignal.any([own, all]);
  const run = engine.submit([3, 4, 5, 6], { ...HOW, maxTokens: 4, signal });
  if (end === 0) await run;
  else {
    for await (const _ of run) {
      if (end === 1) break;
      ender.abort();
    }
  }
  return [run, signal].map((what) => new WeakRef(what));
}

/** How many are still there after garbage collections. */
async function countLeft(all: readonly WeakRef<object>[]): Promise<number> {
  v8.setFlagsFromString("--expose-gc");
  const collect: () => void = vm.runInNewContext("gc");
  for (let i = 0; i < 3; i++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    collect();
  }
  return all.filter((one) => one.deref()).length;
}

eachDevice("requests that ended are forgotten", async (device) => {
  using qwen = await loadQwen3(undefined, { device, context: 64 });
  using engine = await qwen.engine({ slots: SLOTS });
  const { signal } = new AbortController();
  const refs: WeakRef<object>[] = [];
  for (let i = 0; i < 36; i += 3) {
    const asked = [0, 1, 2].map((end) => ask(engine, end, signal));
    refs.push(...(await Promise.all(asked)).flat());
  }
  // The rows of the last pass still know their texts.
  const left = await countLeft(refs);
  assert(left <= 2 * (SLOTS + 1), `${left} of ${refs.length} are left`);
});

eachDevice(
  "a signal has no listeners of requests that ended",
  async (device) => {
    using qwen = await loadQwen3(undefined, { device, context: 64 });
    using engine = await qwen.engine({ slots: SLOTS });
    const { signal } = new AbortController();
    let listeners = 0;
    const add = signal.addEventListener.bind(signal);
    const remove = signal.removeEventListener.bind(signal);
    signal.addEventListener = (...all: Parameters<typeof add>) => {
      listeners++;
      add(...all);
    };
    signal.removeEventListener = (...all: Parameters<typeof remove>) => {
      listeners--;
      remove(...all);
    };
    let most = 0;
    for (const leaves of [false, true]) {
      for await (
        const _ of engine.submit([3, 4, 5], { ...HOW, maxTokens: 4, signal })
      ) {
        most = Math.max(most, listeners);
        if (leaves) break;
      }
      assertEquals(listeners, 0);
    }
    assert(most > 0);
  },
);

gpuTest("requests of known shapes make no objects of the device", async () => {
  const { gpu, devices } = wrapGpu({});
  using qwen = await loadQwen3(undefined, { device: "gpu", gpu, context: 64 });
  using engine = await qwen.engine({ slots: 1 });
  const [device] = devices;
  let made = 0;
  for (const what of ["createBindGroup", "createBuffer"] as const) {
    const create = device[what].bind(device) as (how: unknown) => unknown;
    Object.assign(device, {
      [what](how: unknown) {
        made++;
        return create(how);
      },
    });
  }
  const counts: number[] = [];
  for (let i = 0; i < 20; i++) {
    await engine.submit([3, 4, 5, 6], { ...HOW, maxTokens: 4 });
    counts.push(made);
  }
  assert(counts[0] > 0);
  assertEquals(counts[19], counts[9], `after each: ${counts}`);
});
