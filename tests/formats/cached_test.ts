/** Keys and values in q8_0: layout, rounding and sizes. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { f32ToF16Bits } from "../../lib/dtype.ts";
import {
  cachedBytes,
  cachedToF32,
  cachedWords,
  quantizedHeads,
  storedAs,
} from "../../lib/formats/cached.ts";
import { q8_0 } from "../../lib/formats/blocks_of_32.ts";
import type { CpuTensor } from "../../lib/formats/tensor.ts";
import { randomTest } from "../support/random.ts";

/** An empty cache of `rows` heads. */
function cacheOf(rows: number, headDim: number): CpuTensor {
  const shape = [rows, cachedWords(headDim)];
  const data = new Uint32Array(shape[0] * shape[1]);
  return { dtype: "u32", shape, data };
}

Deno.test("a head in q8_0 takes about half of what it takes in f16", () => {
  const sizes = [32, 64, 96, 128, 256].map((headDim) => [
    cachedBytes("q8_0", headDim),
    cachedBytes("f16", headDim),
    cachedBytes("f32", headDim),
  ]);
  assertEquals(sizes, [
    [36, 64, 128],
    [68, 128, 256],
    [104, 192, 384],
    [136, 256, 512],
    [272, 512, 1024],
  ]);
  assertEquals(storedAs("q8_0", 128), { dtype: "u32", width: 34 });
  assertEquals(storedAs("f16", 128), { dtype: "f16", width: 128 });
});

Deno.test("quants and scales of a head lie where kernels look for them", () => {
  // Two heads of 96 values: 24 words of quants each, then 2 of scales each.
  const cache = cacheOf(2, 96), heads = quantizedHeads(cache, 96);
  const value = (i: number) => i % 127 + (i >= 48 ? 0.25 : 0);
  heads.put(0, new Float32Array(96), 0);
  heads.put(1, Float32Array.from({ length: 97 }, (_, i) => value(i - 1)), 1);
  const bytes = new Int8Array(cache.data.buffer);
  const halves = new Uint16Array(cache.data.buffer);
  assertEquals(bytes.subarray(0, 96).every((one) => one === 0), true);
  for (const block of [0, 1, 2]) {
    // Values 16 b to 16 b + 15, and those half a head further; the last is the largest.
    const scale = Math.fround(value(48 + 16 * block + 15) / 127);
    assertEquals(
      halves[(2 * 96 + 4 * 2) / 2 - 4 + 4 + block],
      f32ToF16Bits(scale),
    );
    for (const i of [0, 7, 8, 15].map((i) => 16 * block + i)) {
      const unit = 96 + Math.floor(i / 8) * 16 + i % 8;
      assertEquals(bytes[unit], Math.round(value(i) / scale), `value ${i}`);
      assertEquals(bytes[unit + 8], Math.round(value(48 + i) / scale));
    }
  }
});

Deno.test("a block in q8_0 has the bits of ggml's", () => {
  // The values of a block in the order of the cache, and the block as a GGUF file has it.
  const order = (i: number) => i % 16 + (i < 16 ? 0 : 16); // heads of 32 are one block
  const values = Float32Array.from({ length: 32 }, (_, i) =>
    // Halves of a step, which are rounded away from zero; 127 steps are the largest.
    i === 3 ? 127 : (i - 16) / 2);
  const heads = quantizedHeads(cacheOf(1, 32), 32);
  heads.put(0, values, 0);
  const block = new Uint8Array(34);
  new DataView(block.buffer).setUint16(0, f32ToF16Bits(1), true);
  values.forEach((value, i) => {
    const away = Math.sign(value) * Math.floor(Math.abs(value) + 0.5);
    new Int8Array(block.buffer)[2 + i] = away;
  });
  const planes = [new Uint8Array(32), new Uint8Array(2)];
  q8_0.pack!(block, 32, planes);
  const expected = new Float32Array(32), actual = new Float32Array(32);
  q8_0.unpack(planes, 0, 32, expected);
  heads.take(0, actual, 0);
  values.forEach((_, i) => assertEquals(actual[order(i)], expected[i]));
});

randomTest("what is read from q8_0 is near what was stored", (random) => {
  for (const headDim of [32, 64, 96, 160]) {
    const cache = cacheOf(3, headDim), heads = quantizedHeads(cache, headDim);
    const values = random.tensor("f32", [3, headDim], 10).data;
    for (let row = 0; row < 3; row++) heads.put(row, values, row * headDim);
    const read = cachedToF32(cache, headDim);
    for (let i = 0; i < values.length; i++) {
      const scale = heads.scale(Math.floor(i / headDim), i % headDim);
      assert(
        Math.abs(read[i] - values[i]) <= scale * (0.5 + 127 * 2 ** -11),
        `${headDim}: ${read[i]}, stored ${values[i]}, scale ${scale}`,
      );
    }
  }
});

Deno.test("q8_0 keeps NaN and refuses what its scale cannot hold", () => {
  const cache = cacheOf(1, 32), heads = quantizedHeads(cache, 32);
  heads.put(0, new Float32Array(32).fill(NaN), 0);
  assert(cachedToF32(cache, 32).every(Number.isNaN));
  heads.put(0, new Float32Array(32).fill(127 * 65504), 0);
  for (const value of [1e7, -1e7]) {
    assertThrows(
      () => heads.put(0, new Float32Array(32).fill(value), 0),
      RangeError,
      `Cannot cache a key or value of ${
        Math.abs(value)
      } in q8_0: it must be at most 8319008, kv f32 has room for it`,
    );
  }
  assertThrows(
    () => heads.put(0, new Float32Array(32).fill(-Infinity), 0),
    RangeError,
    "Cannot cache a key or value of Infinity: it must be finite, the weights are faulty",
  );
});
