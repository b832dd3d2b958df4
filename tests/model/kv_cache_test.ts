/** The protocol of a pass, and batches and contexts too large for a device. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { KvCache, requireRoom } from "../../lib/model/kv_cache.ts";
import { GpuKvCache } from "../../lib/gpu/kv_cache.ts";
import { GpuRunner } from "../../lib/gpu/runner.ts";
import { host, useHost } from "../../lib/host.ts";
import { loadQwen3, MemoryError } from "../../mod.ts";
import { oneByOne, promptsOf, read } from "../support/batch.ts";
import { fillAngles, ropeFrequencies } from "../../lib/model/rope.ts";
import { gpuTest } from "../support/gpu.ts";
import { HARDWARE, wrapGpu } from "../support/wrapped_gpu.ts";

gpuTest("a batch too large for a binding is refused with numbers", async () => {
  // Keys of one layer take 512 bytes per position in f16, and there are 2,048 logits.
  const limits = { maxStorageBufferBindingSize: 1 << 20 };
  const { gpu } = wrapGpu({ ...HARDWARE, limits });
  using qwen = await loadQwen3(undefined, { gpu, context: 512 });
  const { config } = qwen;
  const bytes = config.numKeyValueHeads * config.headDim * 2;
  const fits = Math.floor((1 << 20) / (512 * bytes));
  const prompts = promptsOf(fits + 1);
  assert(qwen.runner instanceof GpuRunner);
  const before = qwen.runner.gpu.allocated;
  assertThrows(
    () => qwen.generateBatch(prompts),
    MemoryError,
    `Cannot generate: one layer's keys of ${
      fits + 1
    } sequences × 512 tokens × ${bytes} bytes are ${
      (fits + 1) * 512 * bytes
    } bytes, Test GPU binds at most 1048576`,
  );
  const size = { sequences: 200, context: 1, dtype: "f16" } as const;
  assertThrows(
    () => requireRoom(config, size, { name: "it", binding: 1 << 20 }),
    MemoryError,
    "bytes, rounded up to a power of 2, it binds at most 1048576",
  );
  assertEquals(qwen.runner.gpu.allocated, before);
  await read(qwen.generateBatch(prompts.slice(1), { maxTokens: 2 }));
  assertEquals(qwen.device.kind, "gpu");
});

Deno.test("a batch too large for free memory is refused with numbers", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const size = { sequences: 16, context: 1000, dtype: "f32" } as const;
  const { numHiddenLayers, numKeyValueHeads, headDim } = qwen.config;
  const each = 2 * numHiddenLayers * numKeyValueHeads * headDim * 4;
  const needed = 16_000 * each;
  requireRoom(qwen.config, size, { name: "it", free: needed });
  assertThrows(
    () => requireRoom(qwen.config, size, { name: "it", free: needed - 1 }),
    MemoryError,
    `Cannot generate: keys and values of 16 sequences × 1000 tokens × ${each} bytes are ${needed} bytes, ${
      needed - 1
    } bytes of main memory are free`,
  );
  const longest = qwen.context - 1, free = 16 * longest * each - 1;
  using _host = useHost({ ...host, freeMemory: () => free });
  const options = { maxTokens: longest };
  assertThrows(
    () => qwen.generateBatch(Array.from({ length: 16 }, () => [1]), options),
    MemoryError,
    `16 sequences × ${longest} tokens × ${each} bytes`,
  );
  qwen.generateBatch(Array.from({ length: 15 }, () => [1]), options);
});

gpuTest("a batch that the device has no memory for is refused", async () => {
  const { gpu } = wrapGpu({ ...HARDWARE, memory: 60e6 });
  const notices: string[] = [];
  using qwen = await loadQwen3(undefined, {
    gpu,
    onNotice: (notice) => notices.push(notice),
  });
  assert(qwen.runner instanceof GpuRunner);
  const before = qwen.runner.gpu.allocated;
  const run = qwen.generateBatch(promptsOf(16));
  const error = await assertRejects(() => read(run), MemoryError);
  assertMatch(
    error.message,
    /^Cannot allocate keys and values of 16 sequences × 1023 tokens × \d+ bytes: Test GPU has no memory for \d+ bytes besides the \d+ in use, there must be fewer sequences or tokens; with kv q8_0 the cache takes \d+ bytes \(Not enough memory\)$/,
  );
  assertEquals(qwen.runner.gpu.allocated, before);
  // The device still works, so the model stays on it.
  const options = { temperature: 0, maxTokens: 4 };
  const together = await read(qwen.generateBatch(promptsOf(2), options));
  assertEquals(together, await oneByOne(qwen, promptsOf(2), options));
  assertEquals([qwen.device.kind, notices], ["gpu", []]);
});

gpuTest("a context that the device has no memory for is refused", async () => {
  const { gpu } = wrapGpu({ ...HARDWARE, memory: 8e6 });
  await assertRejects(
    () => loadQwen3(undefined, { gpu, device: "gpu" }),
    MemoryError,
    "Cannot allocate keys and values of 1 sequence × 1024 tokens",
  );
});

Deno.test("a pass begins, then its tokens are cached", () => {
  const cache = new KvCache<never>([], 3, 8);
  const pass = { first: 1, sequences: 2, tokens: 5 };
  cache.begin(pass);
  assertEquals(cache.pass, pass);
  assertEquals([...cache.lengths], [0, 0, 0]);
  cache.advance();
  assertEquals([...cache.lengths], [0, 5, 5]);
  assertThrows(() => cache.pass, Error, "no pass has begun");
  cache.begin({ first: 1, sequences: 1, tokens: 3 }); // to the last position
  cache.begin({ first: 1, sequences: 1, tokens: 3 }); // a second time, as after a failure
  cache.advance();
  assertEquals([...cache.lengths], [0, 8, 5]);
  cache.stepBackIfFull();
  assertEquals([...cache.lengths], [0, 7, 5]);
  cache.reset();
  assertEquals([...cache.lengths], [0, 0, 0]);
  cache.reset([1, 2, 3]);
  assertEquals([...cache.lengths], [1, 2, 3]);
});

Deno.test("a pass that does not fit is refused", () => {
  const cache = new KvCache<never>([], 2, 4);
  cache.reset([0, 3]);
  const refused = (
    first: number,
    sequences: number,
    tokens: number,
    message: string,
  ) =>
    assertThrows(
      () => cache.begin({ first, sequences, tokens }),
      Error,
      message,
    );
  refused(
    0,
    1,
    5,
    "sequence 0 has 0 tokens and adds 5, must be at most 4 in total",
  );
  refused(0, 2, 2, "sequence 1 has 3 tokens and adds 2");
  refused(1, 2, 1, "must be at least 1 × 1 and within 2 sequences");
  refused(2, 1, 1, "must be at least 1 × 1 and within 2 sequences");
  refused(0, 1.5, 2, "1.5 sequences");
  refused(0, 0, 1, "must be at least 1 × 1 and within 2 sequences");
  refused(0, 1, 0, "must be at least 1 × 1 and within 2 sequences");
  refused(-1, 1, 1, "must be at least 1 × 1 and within 2 sequences");
  assertEquals([...cache.lengths], [0, 3]);
  cache.begin({ first: 0, sequences: 2, tokens: 1 });
  cache.advance();
  assertEquals([...cache.lengths], [1, 4]);
});

Deno.test("only a pass that has begun advances the cache", () => {
  const cache = new KvCache<never>([], 1, 4);
  const message = "Cannot advance the KV cache: no pass has begun";
  assertThrows(() => cache.advance(), Error, message);
  cache.begin({ first: 0, sequences: 1, tokens: 1 });
  cache.advance();
  assertThrows(() => cache.advance(), Error, message);
  cache.begin({ first: 0, sequences: 1, tokens: 1 });
  cache.reset();
  assertThrows(() => cache.advance(), Error, message);
});

gpuTest("the device's copy of the lengths follows the host's", async (gpu) => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const { config } = qwen;
  using cache = new GpuKvCache(gpu, config, 2, 8, "f32");
  const same = async () =>
    assertEquals(
      [...await cache.lengthsOnDevice.read()],
      [...cache.lengths],
    );
  cache.begin({ first: 0, sequences: 2, tokens: 7 });
  cache.advance();
  await same();
  cache.begin({ first: 1, sequences: 1, tokens: 1 });
  cache.advance();
  await same();
  cache.stepBackIfFull();
  assertEquals([...cache.lengths], [7, 7]);
  await same();
  cache.record({ first: 0, sequences: 2, tokens: 8 }); // recorded at any lengths
  assertEquals(cache.pass.tokens, 8);
  assertThrows(() => cache.advance(), Error, "no pass has begun");
  cache.reset();
  await same();
});

gpuTest("lengths and angles share a buffer and do not overlap", async (gpu) => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const { config } = qwen, { headDim } = config, sequences = headDim + 1;
  using cache = new GpuKvCache(gpu, config, sequences, 8, "f32");
  cache.reset(Array.from({ length: sequences }, (_, s) => s % 8));
  const { buffer, bytes } = cache.positions;
  const words = await gpu.readBuffer(buffer, 0, bytes);
  const lengths = new Uint32Array(words, 0, sequences);
  assertEquals([...lengths], [...cache.lengths]);
  const expected = new Float32Array(8 * headDim);
  fillAngles(ropeFrequencies(config), expected);
  const angles = new Float32Array(words, 4 * 2 * headDim);
  assertEquals(angles, expected);
});
