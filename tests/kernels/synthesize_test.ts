import { assertEquals } from "@std/assert";
import { synthesize } from "../../kernels/synthesize.ts";
import { fillSynthetic } from "../../lib/checkpoint/synthetic.ts";
import { gpuTest } from "../support/gpu.ts";

gpuTest(
  "synthesize makes the same bits as fillSynthetic",
  async (gpu, trial) => {
    const { random } = trial;
    const scales = [0.035, 1.2 * Math.sqrt(3 / 1024) * 0.5, 1, 3e-5];
    for (const words of [1, 255, 256, 257, 70_000]) {
      for (const source of [0, 1, random.int(2, 2 ** 30)]) {
        const to = random.int(0, 9), after = 5;
        const seed = random.int(0, 2 ** 32 - 1);
        const scale = Math.fround(random.pick(scales));
        const w = trial.filled([2 * (to + words + after)], 3, "bf16");
        trial.run(synthesize, { w }, {
          uniforms: { seed, scale, source, to, words },
        });
        const bytes = 4 * (to + words + after);
        const actual = new Uint16Array(
          await gpu.readBuffer(w.buffer, 0, bytes),
        );
        const expected = new Uint16Array(actual.length).fill(0x4040); // bf16 3
        const made = expected.subarray(2 * to, 2 * (to + words));
        fillSynthetic({ seed, scale, offset: 0 }, 2 * source, made);
        const wrong = actual.findIndex((bits, i) => bits !== expected[i]);
        const message = `${words} words from ${source} to ${to}`;
        assertEquals(wrong, -1, `${message}: element ${wrong} differs`);
      }
    }
  },
);

gpuTest(
  "synthesize fills more than one dimension of a grid",
  async (gpu, trial) => {
    const words = 65535 * 8 + 9;
    const w = trial.filled([2 * words], 3, "bf16");
    const uniforms = { seed: 5, scale: 0.25, source: 0, to: 0, words };
    trial.run(synthesize, { w }, { constants: { WORKGROUP: 8 }, uniforms });
    const bytes = await gpu.readBuffer(w.buffer, 0, 4 * words);
    const expected = new Uint16Array(2 * words);
    fillSynthetic({ seed: 5, scale: 0.25, offset: 0 }, 0, expected);
    const actual = new Uint16Array(bytes);
    assertEquals(actual.findIndex((bits, i) => bits !== expected[i]), -1);
  },
);
