import { assertEquals } from "@std/assert";
import { repack, repackTable } from "../../kernels/repack.ts";
import { storedRowBytes } from "../../lib/formats/format.ts";
import { bytesAt, gather } from "../../lib/formats/gather.ts";
import { packed } from "../../lib/formats/matrix.ts";
import { FORMATS } from "../../lib/formats/mod.ts";
import { gpuTest } from "../support/gpu.ts";

for (const format of FORMATS) {
  const { name, elements, gathers } = format;
  if (!gathers) continue;
  gpuTest(
    `repack makes the planes of ${name} that pack makes`,
    async (gpu, trial) => {
      const { random } = trial;
      const upload = (data: Uint32Array<ArrayBuffer>) =>
        trial.upload({ dtype: "u32", shape: [data.length], data });
      for (const blocks of [1, 2, 3, 7, 16, 48]) {
        const k = blocks * elements, rows = random.int(1, 40);
        const size = rows * storedRowBytes(format, k), begin = random.int(0, 9);
        const bytes = new Uint8Array(4 * Math.ceil((begin + size + 1) / 4));
        for (let i = 0; i < bytes.length; i++) bytes[i] = random.int(0, 255);
        const stored = upload(new Uint32Array(bytes.buffer));
        const planes = packed(
          format,
          bytes.slice(begin, begin + size),
          k,
          rows,
        );
        for (const [i, gather] of gathers.entries()) {
          const words = Math.ceil(planes[i].length / 4), to = random.int(0, 9);
          const plane = trial.filled([to + words + 5], 7, "u32");
          trial.run(repack, {
            stored,
            fields: upload(repackTable(gather)),
            plane,
          }, {
            uniforms: {
              begin,
              end: begin + size,
              bytes: gather.bytes,
              period: gather.words.length,
              to,
              words,
            },
          });
          const expected = new Uint32Array(to + words + 5).fill(7);
          expected.fill(0, to, to + words); // the last may have a part of a block
          new Uint8Array(expected.buffer).set(planes[i], 4 * to);
          const made = await gpu.readBuffer(plane.buffer, 0, plane.bytes);
          assertEquals(
            new Uint32Array(made),
            expected,
            `[${rows}, ${k}], plane ${i}`,
          );
        }
      }
    },
  );
}

gpuTest(
  "repack fills more than one dimension of a grid",
  async (gpu, trial) => {
    const words = 65535 * 8 + 9;
    const bits = Uint32Array.from({ length: words }, (_, i) => i ^ 0x5555);
    const upload = (data: Uint32Array<ArrayBuffer>) =>
      trial.upload({ dtype: "u32", shape: [data.length], data });
    const plane = trial.filled([words], 7, "u32");
    const whole = gather(4, bytesAt(0, 4));
    trial.run(repack, {
      stored: upload(bits),
      fields: upload(repackTable(whole)),
      plane,
    }, {
      constants: { WORKGROUP: 8 },
      uniforms: { begin: 0, end: 4 * words, bytes: 4, period: 1, to: 0, words },
    });
    assertEquals(
      new Uint32Array(await gpu.readBuffer(plane.buffer, 0, 4 * words)),
      bits,
    );
  },
);
