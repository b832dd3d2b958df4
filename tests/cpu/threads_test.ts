/** The threads of a model on the CPU path, and what a loaded model costs. */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { loadQwen3, type Qwen3Options } from "../../mod.ts";
import { OptionError } from "../../lib/errors.ts";
import { eachDevice, gpuTest } from "../support/gpu.ts";

const TINY = new URL("../fixtures/tiny-tied-bf16/", import.meta.url).href;

Deno.test("threads are those asked for, else one per core, with the reason", async () => {
  const threadsOf = async (options: Qwen3Options) => {
    using qwen = await loadQwen3(TINY, { ...options, device: "cpu" });
    const { value, reason } = qwen.device.choices
      .find(({ what }) => what === "threads")!;
    assertEquals(qwen.device.adapter, `CPU (${value})`);
    return `${value}: ${reason}`;
  };
  assertEquals(await threadsOf({ threads: 1 }), "1 thread: it was asked for");
  assertEquals(await threadsOf({ threads: 3 }), "3 threads: it was asked for");
  const cores = navigator.hardwareConcurrency;
  assertMatch(
    await threadsOf({}),
    new RegExp(`^${cores} threads?: the machine has ${cores} core`),
  );
});

Deno.test("the number of threads does not change the logits", async () => {
  const logits = async (threads: number) => {
    using qwen = await loadQwen3(undefined, { device: "cpu", threads });
    const long = Array.from({ length: 200 }, (_, i) => 1 + i * 37 % 1000);
    return [await qwen.logits([3, 1, 4, 1, 5]), await qwen.logits(long)];
  };
  assertEquals(await logits(5), await logits(1));
});

Deno.test("a number of threads that makes no sense is refused", async () => {
  const refused: [Qwen3Options, string][] = [
    [{ threads: 0 }, "threads is 0, must be an integer from 1 to 256"],
    [{ threads: 1.5 }, "threads is 1.5, must be an integer from 1 to 256"],
    [{ threads: 257 }, "threads is 257, must be an integer from 1 to 256"],
    [{ threads: NaN }, "threads is NaN, must be an integer from 1 to 256"],
    [{ threads: 2, device: "gpu" }, "threads is 2, must be left out when devi"],
  ];
  for (const [options, message] of refused) {
    const error = await assertRejects(
      () => loadQwen3(TINY, options),
      OptionError,
      message,
    );
    assertEquals(error.option, "threads");
  }
});

gpuTest("threads that a GPU has no use for are a notice", async () => {
  const notices: string[] = [];
  using qwen = await loadQwen3(TINY, {
    threads: 2,
    onNotice: (notice) => void notices.push(notice),
  });
  const unused = notices.filter((notice) => notice.includes("threads is 2"));
  assertEquals(unused.length, qwen.device.kind === "gpu" ? 1 : 0);
});

const PAGE = 65536;

eachDevice(
  "a model says how long it took to load, and its bytes",
  async (device) => {
    const { size: weights } = await Deno.stat(
      new URL("model.safetensors", TINY),
    );
    const bytesOf = async (context: number) => {
      const began = performance.now();
      const qwen = await loadQwen3(TINY, { device, context });
      assert(qwen.loadMs > 0 && qwen.loadMs <= performance.now() - began);
      const { memoryBytes, config } = qwen;
      await qwen.logits([1, 2, 3]);
      assert(qwen.memoryBytes > memoryBytes, "a run needs work buffers");
      qwen[Symbol.dispose]();
      assertEquals(qwen.memoryBytes, 0);
      return { memoryBytes, config };
    };
    const { memoryBytes: few, config } = await bytesOf(64);
    const { memoryBytes: many } = await bytesOf(512);
    assert(few > weights - 4096, `${few} bytes, the weights have ${weights}`);
    const { numHiddenLayers, numKeyValueHeads, headDim } = config;
    const cached = 2 * numHiddenLayers * numKeyValueHeads * headDim;
    // The GPU keeps f16, and the angles of each position; the CPU takes whole pages.
    const [perToken, spread] = device === "gpu"
      ? [2 * cached + 4 * headDim, 0]
      : [4 * cached, PAGE];
    const grown = many - few - (512 - 64) * perToken;
    assert(
      Math.abs(grown) <= spread,
      `${grown} bytes more than the cache takes`,
    );
  },
);
