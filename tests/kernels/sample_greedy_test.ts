import { assertEquals } from "@std/assert";
import { foundWords, sampleGreedy } from "../../kernels/sample_greedy.ts";
import { runCase } from "../../lib/check/kernel_case.ts";
import { FAULT } from "../../lib/dispatch/sampling.ts";
import { type CpuTensor, f32 } from "../../lib/formats/tensor.ts";
import { Plan } from "../../lib/webgpu/plan.ts";
import { gpuTest, lanes } from "../support/gpu.ts";
import { checkCase, makeCase } from "../support/kernel_case.ts";

const greedy = (n: number) =>
  Array.from({ length: n }, () => ({ greedy: true }));

gpuTest(
  "sampleGreedy chooses the best token of any number of chunks, and advances the loop",
  async (_, trial) => {
    const { random } = trial;
    const sizes = [[1, 1], [3, 2], [33, 4], [1000, 1], [4097, 8], [20001, 64]];
    for (const [vocab, chunks] of sizes) {
      const rows = random.int(1, 4), sequences = rows + random.int(0, 1);
      const counts = random.int(0, 1) === 1;
      const shape = { vocab, chunks, sequences, counts, rows: greedy(rows) };
      await checkCase(sampleGreedy, trial, shape);
    }
  },
);

gpuTest("sampleGreedy gives the same without subgroups", async (gpu, trial) => {
  const sizes = { sequences: 2, vocab: 2003, chunks: 4, rows: greedy(2) };
  await checkCase(sampleGreedy, trial, sizes, lanes(gpu, false));
});

gpuTest(
  "sampleGreedy reports rows that cannot be sampled from",
  async (gpu, trial) => {
    const sizes = { sequences: 1, vocab: 640, chunks: 4, rows: greedy(1) };
    const first = async (edit: (logits: Float32Array) => void) => {
      const one = makeCase(sampleGreedy, trial, sizes)!;
      edit(f32(one.operands.logits as CpuTensor));
      const { ring } = await runCase(gpu, sampleGreedy, one);
      return Array.from(ring).find((word) => word !== 0xdeadbeef);
    };
    assertEquals(await first((x) => x[500] = NaN), FAULT.nan);
    assertEquals(await first((x) => x[500] = Infinity), FAULT.infinity);
    assertEquals(await first((x) => x.fill(-Infinity)), FAULT.none);
    assertEquals(await first((x) => x.fill(-3, 1).fill(-4, 0, 1)), 1); // the lowest id
  },
);

gpuTest(
  "sampleGreedy chooses anew in each of many steps",
  async (gpu, trial) => {
    const { random } = trial,
      sequences = 3,
      vocab = 9001,
      chunks = 36,
      steps = 40;
    const one = makeCase(sampleGreedy, trial, {
      ...{ sequences, vocab, chunks, rows: greedy(sequences) },
    })!;
    const ring = trial.filled([steps, sequences], 0, "u32");
    const { logits, found, ring: _, ...others } = one.operands as Record<
      string,
      CpuTensor
    >;
    const operands = {
      ...Object.fromEntries(
        Object.entries(others).map((
          [name, value],
        ) => [name, trial.upload(value)]),
      ),
      logits: trial.upload(logits),
      found: trial.upload(found),
      ring,
    };
    using plan = new Plan(gpu);
    plan.add(sampleGreedy, operands, one);
    const expected: number[] = [], begin = (others.step.data as Uint32Array)[0];
    for (let i = 0; i < steps; i++) {
      const best = Array.from(
        { length: sequences },
        () => random.int(0, vocab - 1),
      );
      const row = new Float32Array(sequences * vocab);
      best.forEach((id, s) => row[s * vocab + id] = 1);
      operands.logits.write(0, row);
      plan.run();
      expected.push(...best);
    }
    const read = Array.from(await ring.read());
    const at = (s: number, i: number) =>
      read[(begin + s + i) % steps * sequences + s];
    assertEquals(
      expected.map((_, i) => at(i % sequences, Math.floor(i / sequences))),
      expected,
    );
    const left = Array.from(await operands.found.read());
    assertEquals(left, new Array(foundWords(sequences, chunks)).fill(0));
  },
);
