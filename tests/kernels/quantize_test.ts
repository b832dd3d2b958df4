import { assert, assertEquals } from "@std/assert";
import { quantize, QUANTIZED, SOURCES } from "../../kernels/quantize.ts";
import { encode } from "../../lib/checkpoint/encode.ts";
import { f32ToBf16Bits, f32ToF16Bits } from "../../lib/dtype.ts";
import { packed } from "../../lib/formats/matrix.ts";
import { formatNamed } from "../../lib/formats/mod.ts";
import type { Kernel } from "../../lib/webgpu/kernel.ts";
import { gpuTest, type Trial } from "../support/gpu.ts";

/** Values of every size, with ties, zeros and opposite extremes. */
function valuesOf(trial: Trial, source: string, count: number): Uint8Array {
  const { random } = trial;
  const values = Float32Array.from({ length: count }, (_, i) => {
    const block = i >> 5;
    const scale = 2 ** (block % 44 - 30);
    if (block % 7 === 0) return 0;
    // Multiples of a fraction of the largest are halfway between quants.
    if (block % 7 === 1) {
      return scale * (i % 32 === 5 ? 1 : random.int(-254, 254) / 254);
    }
    if (block % 7 === 2) {
      return scale * (i % 32 === 9 ? -1 : random.int(-16, 16) / 16);
    }
    if (block % 7 === 3) return i % 2 ? scale : -scale;
    return scale * random.next();
  });
  if (source === "f32") return new Uint8Array(values.buffer);
  const bits = source === "f16" ? f32ToF16Bits : f32ToBf16Bits;
  return new Uint8Array(Uint16Array.from(values, bits).buffer);
}

/** A tensor of words. */
const words = (trial: Trial, data: Uint32Array<ArrayBuffer>) =>
  trial.upload({ dtype: "u32", shape: [data.length], data });

async function check(
  trial: Trial,
  source: typeof SOURCES[number],
  name: string,
  stored: Uint8Array,
  kernel: Kernel = quantize,
): Promise<void> {
  const from = formatNamed(source), to = formatNamed(name);
  const count = stored.length / from.bytes, blocks = count / 32;
  const planes = packed(to, encode(from, to, stored), count, 1);
  const [quants, scales] = planes.map((plane) =>
    words(trial, new Uint32Array(plane.length / 4).fill(0xdeadbeef))
  );
  const flags = trial.u32(0);
  trial.run(kernel, {
    x: words(trial, new Uint32Array(stored.slice().buffer)),
    quants,
    scales,
    flags,
  }, {
    constants: { SOURCE: SOURCES.indexOf(source), BITS: QUANTIZED[name] },
    uniforms: { blocks, to: 0, mark: 3 },
  });
  const { gpu } = quants;
  for (const [i, tensor] of [quants, scales].entries()) {
    const bytes = new Uint8Array(
      await gpu.readBuffer(tensor.buffer, 0, tensor.bytes),
    );
    const wrong = planes[i].findIndex((byte, at) => byte !== bytes[at]);
    assertEquals(
      wrong,
      -1,
      `${source} as ${name}: byte ${wrong} of plane ${i} is ${
        bytes[wrong]
      }, must be ${planes[i][wrong]}`,
    );
  }
  const [found] = new Uint32Array(await gpu.readBuffer(flags.buffer, 0, 4));
  assertEquals(found, 0);
}

for (const source of SOURCES) {
  for (const name of Object.keys(QUANTIZED)) {
    gpuTest(
      `quantize makes the bytes of the CPU: ${source} as ${name}`,
      async (_, trial) => {
        const stored = valuesOf(trial, source, 32 * 3500);
        await check(trial, source, name, stored);
      },
    );
  }
}

gpuTest(
  "quantize divides exactly, whatever the largest value",
  async (_, trial) => {
    // Every mantissa in steps: one block for each, whose largest value it is.
    const values = new Float32Array(32 * 16384);
    const bits = new Uint32Array(values.buffer);
    for (let block = 0; block < 16384; block++) {
      const mantissa = block * 512 + trial.random.int(0, 511);
      bits[32 * block] = (trial.random.int(70, 160) << 23) + mantissa;
      for (let i = 1; i < 32; i++) {
        values[32 * block + i] = values[32 * block] * trial.random.next();
      }
    }
    const stored = new Uint8Array(values.buffer);
    for (const name of Object.keys(QUANTIZED)) {
      await check(trial, "f32", name, stored);
    }
  },
);

gpuTest(
  "quantize corrects a division that is off by some units",
  async (_, trial) => {
    const stored = valuesOf(trial, "f32", 32 * 700);
    const estimate = "u32(0x1p47 / f32(m))";
    assert(quantize.body.includes(estimate));
    for (const off of ["- 3u", "- 1u", "+ 2u", "+ 3u"]) {
      const body = quantize.body.replace(estimate, `${estimate} ${off}`);
      for (const name of Object.keys(QUANTIZED)) {
        await check(trial, "f32", name, stored, { ...quantize, body });
      }
    }
  },
);

gpuTest("quantize marks values that are not finite", async (gpu, trial) => {
  for (const value of [Infinity, -Infinity, NaN]) {
    for (const source of SOURCES) {
      const values = new Float32Array(64).fill(1);
      values[40] = value;
      const bits = source === "f16" ? f32ToF16Bits : f32ToBf16Bits;
      const data = source === "f32"
        ? new Uint32Array(values.buffer)
        : new Uint32Array(Uint16Array.from(values, bits).buffer);
      const flags = trial.u32(2);
      trial.run(quantize, {
        x: trial.u32(...data),
        quants: trial.u32(...new Array(16).fill(0)),
        scales: trial.u32(0),
        flags,
      }, {
        constants: { SOURCE: SOURCES.indexOf(source), BITS: 8 },
        uniforms: { blocks: 2, to: 0, mark: 3 },
      });
      const [found] = new Uint32Array(await gpu.readBuffer(flags.buffer, 0, 4));
      assertEquals(found, 3, `${value} in ${source}`);
    }
  }
});
