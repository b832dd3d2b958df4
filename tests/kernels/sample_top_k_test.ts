import { assertEquals } from "@std/assert";
import { topKRecords } from "../../kernels/sample_case.ts";
import { sampleTopK } from "../../kernels/sample_top_k.ts";
import { gpuTest, lanes } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

gpuTest(
  "sampleTopK lists all tokens that may be among the k highest",
  async (_, trial) => {
    const { random } = trial;
    const sizes = [[1, 1], [35, 4], [1024, 2], [4097, 8], [20001, 64]];
    for (const [vocab, chunks] of sizes) {
      for (const k of [1, 32, 64, random.int(2, 63)]) {
        const sequences = random.int(1, 3);
        const ks = Array.from(
          { length: sequences },
          (_, s) => s > 0 ? random.int(1, k) : k,
        );
        await checkCase(sampleTopK, trial, { sequences, vocab, chunks, k: ks });
      }
      const all = { sequences: 2, vocab, chunks, k: [20, 20], mass: true };
      await checkCase(sampleTopK, trial, all);
    }
  },
);

gpuTest("sampleTopK gives the same without subgroups", async (gpu, trial) => {
  const sizes = { sequences: 2, vocab: 2003, chunks: 4, k: [20, 20] };
  await checkCase(sampleTopK, trial, sizes, lanes(gpu, false));
  await checkCase(
    sampleTopK,
    trial,
    { ...sizes, mass: true },
    lanes(gpu, false),
  );
});

Deno.test("the k highest of a row are among the candidates of its chunks", () => {
  const row = Float32Array.from({ length: 5003 }, (_, i) => i * 7919 % 5003);
  const sizes = { sequences: 1, vocab: row.length, chunks: 8 };
  const found = topKRecords(sizes, [row], 20, 64).flatMap(({ ids }) => ids);
  const highest = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 20);
  assertEquals(highest.filter((id) => !found.includes(id)), []);
});
