import { assert, assertEquals } from "@std/assert";
import { chooseStateRows } from "../../lib/dispatch/pass_rows.ts";
import {
  chooseStateBatches,
  CPU_PASSES,
  GPU_PASSES,
  padBatch,
  paddedTokens,
  readTogether,
} from "../../lib/dispatch/state_batches.ts";
import { randomTest } from "../support/random.ts";

Deno.test("64 texts of 128 tokens take four passes of 2,048 rows", () => {
  const batches = chooseStateBatches(new Array(64).fill(128), 2048, GPU_PASSES);
  assertEquals(batches.map(({ texts, tokens }) => [texts.length, tokens]), [
    ...new Array(4).fill([16, 128]),
  ]);
});

Deno.test("neighbors by length share a pass, others do not", () => {
  const lengths = [500, 9, 480, 12, 3000, 10, 1];
  assertEquals(chooseStateBatches(lengths, 2048, GPU_PASSES), [
    { texts: [4], tokens: 3000 }, // alone, as it is longer than a pass
    { texts: [0, 2], tokens: 512 },
    { texts: [3, 5, 1, 6], tokens: 12 },
  ]);
  assertEquals(chooseStateBatches([], 2048, GPU_PASSES), []);
  assertEquals(chooseStateBatches([1, 2], 1, GPU_PASSES), [
    { texts: [0], tokens: 1 },
    { texts: [1], tokens: 2 },
  ]);
});

Deno.test("a length is padded by an eighth at most, and to four tokens", () => {
  for (let tokens = 1; tokens <= 5000; tokens++) {
    const padded = paddedTokens(tokens);
    assert(padded >= Math.max(4, tokens), `${tokens} became ${padded}`);
    assert(padded - tokens < Math.max(4, tokens / 8), `${tokens}: ${padded}`);
  }
  const shapes = new Set(
    Array.from({ length: 2048 }, (_, i) => paddedTokens(i + 1)),
  );
  assert(shapes.size <= 8 * 8, `${shapes.size} lengths occur`);
});

Deno.test("the CPU pads to the longest text of a pass, by little", () => {
  const lengths = [1, 101, 90, 100, 1];
  assertEquals(chooseStateBatches(lengths, 256, CPU_PASSES), [
    { texts: [1, 3], tokens: 101 },
    { texts: [2], tokens: 90 },
    { texts: [0, 4], tokens: 1 },
  ]);
});

randomTest("every text is in one batch, which fits a pass", (random) => {
  for (let trial = 0; trial < 30; trial++) {
    const rows = 2 ** random.int(0, 9);
    const lengths = Array.from(
      { length: random.int(1, 80) },
      () => random.int(1, random.pick([8, 100, 700])),
    );
    const how = random.pick([GPU_PASSES, CPU_PASSES]);
    const { overhead, padded } = how;
    const batches = chooseStateBatches(lengths, rows, how);
    const all = batches.flatMap(({ texts }) => texts).sort((a, b) => a - b);
    assertEquals(all, lengths.map((_, i) => i));
    let computed = 0;
    for (const { texts, tokens } of batches) {
      const longest = Math.max(...texts.map((text) => lengths[text]));
      assert(tokens >= longest);
      assert(texts.length === 1 || texts.length * tokens <= rows);
      computed += texts.length * tokens;
    }
    // Never more than with a pass for each, padded.
    const alone = lengths.reduce((sum, n) => sum + padded(n) + overhead, 0);
    assert(computed + overhead * batches.length <= alone);
  }
});

Deno.test("the results of at most 1,024 texts are read at a time", () => {
  const batch = (count: number) => ({
    texts: Array.from({ length: count }, (_, i) => i),
    tokens: 4,
  });
  const counts = [512, 512, 1, 2000, 3];
  assertEquals(
    readTogether(counts.map(batch)).map((part) =>
      part.map(({ texts }) => texts.length)
    ),
    [[512, 512], [1], [2000], [3]],
  );
  assertEquals(readTogether([]), []);
});

Deno.test("texts are padded at their ends, and the last tokens' rows are known", () => {
  const { input, ends } = padBatch([[7, 8, 9], [5], [1, 2, 3, 4]], 4);
  assertEquals([...input], [7, 8, 9, 0, 5, 0, 0, 0, 1, 2, 3, 4]);
  assertEquals([...ends], [2, 4, 11]);
});

Deno.test("on a software renderer, a pass of many texts has short dispatches", () => {
  const work = { layers: 2, layer: 1, largest: 1 << 20, head: 1, attention: 1 };
  assertEquals(chooseStateRows(2048, work, false), 2048);
  assertEquals(chooseStateRows(2048, work, true), 256);
  assertEquals(chooseStateRows(2048, { ...work, largest: 2 ** 40 }, true), 1);
});
