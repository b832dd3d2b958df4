/** The WebAssembly kernels of every format of blocks, against its `unpack` and float64. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { CpuOps } from "../../lib/cpu/ops.ts";
import { isPanels } from "../../lib/cpu/panels.ts";
import { isBlocks } from "../../lib/cpu/wasm_blocks.ts";
import { MOST_OUTLYING, roundRowName } from "../../lib/cpu/wasm_round.ts";
import { type Planes, SIMD_FORMATS } from "../../lib/cpu/wasm_kernels.ts";
import { storedRowBytes } from "../../lib/formats/format.ts";
import { FORMATS } from "../../lib/formats/mod.ts";
import { storedMatrix } from "../../lib/formats/tensor.ts";
import {
  assertSums,
  CONFIG,
  EXACT,
  GUARD,
  MODULES,
  onOps,
  placed,
  product,
  randomRows,
  ROUNDED,
  unpacked,
  widths,
} from "../support/block_rows.ts";
import { randomTest } from "../support/random.ts";

const IN_ROWS = SIMD_FORMATS.filter((format) => !isPanels(format));
const FORMATS_OF_BLOCKS = IN_ROWS.filter(isBlocks);

Deno.test("every format has a reader for WebAssembly", () => {
  assertEquals(IN_ROWS, FORMATS);
  assertEquals(FORMATS_OF_BLOCKS.length, 13);
});

for (const format of FORMATS_OF_BLOCKS) {
  for (const [what, module] of Object.entries(MODULES)) {
    const name = `${format.name}, ${what}`;

    randomTest(`${name}: dot of any number of rows and widths`, (random) => {
      let rounding = 0;
      for (const k of widths(format)) {
        for (const n of [1, 2, 3, 5]) {
          const stored = randomRows(random, format, n, k);
          const x = random.tensor("f32", [k], 3).data as Float32Array;
          const { memory, kernels, planes, xAt, free, mask } = placed(
            format,
            module,
            stored,
            x,
          );
          const expected = product(x, unpacked(format, stored, k), k);
          const y = free, scratch = free + 256;
          const results = [-1, MOST_OUTLYING].map((most) => {
            kernels[roundRowName(format.simd)](xAt, k, most);
            assertEquals(new Float32Array(memory.buffer, free, 1)[0], NaN);
            const dot = kernels[`dotBlocks_${format.name}`];
            dot(...planes, xAt, n, k, mask(k), y, scratch);
            const after = new Float32Array(memory.buffer, y + 4 * n, 4);
            assert(after.every(Number.isNaN), "only its columns are written");
            const results = new Float32Array(memory.buffer, y, n).slice();
            new Float32Array(memory.buffer, y, n).fill(NaN);
            return results;
          });
          assertSums(results[0], expected, `[${n}, ${k}]`);
          assertSums(results[1], expected, `rounded [${n}, ${k}]`, ROUNDED);
          results[0].forEach((value, i) => {
            const error = Math.abs(value - results[1][i]) / expected.norms[i];
            if (error > rounding) rounding = error; // random scales may give NaN
          });
        }
      }
      assert(rounding > 0, "quants were multiplied as integers");
    });

    randomTest(`${name}: unpack gives the bits of the reference`, (random) => {
      for (const k of widths(format)) {
        const n = 3, stored = randomRows(random, format, n, k);
        const { memory, kernels, planes, free, mask } = placed(
          format,
          module,
          stored,
          new Float32Array(k),
        );
        const expected = unpacked(format, stored, k);
        const scratch = free, out = free + 1024, outBytes = 4 * k + GUARD;
        for (const begin of [0, k - format.elements]) {
          const width = k - begin, before = format.planes(begin);
          const unpack = kernels[`unpackBlocks_${format.name}`];
          unpack(
            ...planes.map((at, p) => at && at + before[p].rowBytes) as Planes,
            ...[n, k, width, mask(width), out, outBytes, scratch] as const,
          );
          for (let row = 0; row < n; row++) {
            const actual = new Float32Array(
              memory.buffer,
              out + row * outBytes,
              width,
            );
            assertEquals(
              actual.slice(),
              expected.slice(row * k + begin, (row + 1) * k),
              `row ${row} of ${k}, from ${begin}`,
            );
          }
        }
      }
    });
  }

  for (const integers of [false, true]) {
    const how = integers ? "rounded" : "exact";
    randomTest(
      `${format.name}: matmuls of few and many rows, ${how}`,
      (random) => {
        using ops = new CpuOps(CONFIG, { threads: 3, integers });
        for (const blocks of [1, 600 / format.elements | 0]) {
          const k = blocks * format.elements;
          for (const n of [1, 30, 131]) {
            const stored = randomRows(random, format, n, k);
            const w = unpacked(format, stored, k);
            const matrix = onOps(ops, storedMatrix(format, stored, k));
            for (const rows of [1, 3, 7, 200]) {
              const x = random.tensor("f32", [rows, k], 3);
              const y = ops.tensor("f32", [rows, n]);
              y.data.fill(0.5);
              ops.matmulAdd(x, matrix, y);
              const expected = product(x.data, w, k);
              assertSums(
                y.data.map((value) => value - 0.5),
                { ...expected, norms: expected.norms.map((norm) => norm + 1) },
                `${rows} rows, [${n}, ${k}]`,
                integers ? ROUNDED : EXACT,
              );
            }
          }
        }
      },
    );
  }
}

/** Formats of each kind, and what makes element `i` below 32 of a block that number. */
const OUTLIERS: Record<string, (block: Uint8Array, i: number) => void> = {
  q8_0: (block, i) => block[2 + i] = 0,
  q6_k: (block, i) => { // 32 is 0: four lower bits and two higher ones
    block[i] &= 0xf0;
    block[128 + i] = block[128 + i] & 0xfc | 2;
  },
};

for (const [name, clear] of Object.entries(OUTLIERS)) {
  randomTest(
    `${name}: nothing is lost beside outliers, nor are infinities`,
    (random) => {
      using ops = new CpuOps(CONFIG, { threads: 1, integers: true });
      const format = FORMATS_OF_BLOCKS.find((format) => format.name === name)!;
      const { bytes, elements } = format, block = 2, n = 9;
      const k = 4 * elements, at = block * elements + 6;
      const group = [0, 1, 7, 10, 20, 25].map((i) => at + i);
      const stored = randomRows(random, format, n, k);
      for (let row = 0; row < n - 1; row++) { // all but the last need no outlier
        const begin = (row * k / elements + block) * bytes;
        const own = stored.subarray(begin, begin + bytes);
        for (const at of group) clear(own, at % elements);
      }
      const x = random.tensor("f32", [1, k], 3);
      const w = unpacked(format, stored, k);
      for (const at of group) assertEquals(w[at] + 0, 0);
      const matrix = onOps(ops, storedMatrix(format, stored, k));
      const y = ops.tensor("f32", [1, n]);
      group.forEach((at) => x.data[at] = 0);
      const expected = product(x.data, w, k);
      const others = {
        values: expected.values.slice(0, n - 1),
        norms: expected.norms.slice(0, n - 1),
      };
      for (const [i, at] of group.entries()) { // several hide each other in a mean
        x.data[at] = i % 2 ? -1e6 : 1e6;
        y.data.fill(0);
        ops.matmulAdd(x, matrix, y);
        const actual = y.data.subarray(0, n - 1);
        assertSums(actual, others, `beside ${i + 1} of 1e6`, ROUNDED);
      }
      group.forEach((at) => x.data[at] = 0);
      for (const infinite of [Infinity, NaN]) {
        x.data[at] = infinite;
        y.data.fill(0);
        ops.matmulAdd(x, matrix, y);
        assertEquals(y.data[n - 1], w[(n - 1) * k + at] * infinite);
      }
    },
  );
}

randomTest("planes in different memories are moved into one", (random) => {
  using ops = new CpuOps(CONFIG, { threads: 2 });
  const [format] = FORMATS_OF_BLOCKS, k = 96, n = 50;
  const stored = randomRows(random, format, n, k);
  const matrix = onOps(ops, storedMatrix(format, stored, k), () => {
    ops.tensor("u32", [2.5 * 2 ** 30 / 4]);
  });
  const [quants, scales] = matrix.parts[0].planes;
  assert(quants.data.buffer !== scales.data.buffer);
  const x = random.tensor("f32", [2, k], 3);
  const expected = product(x.data, unpacked(format, stored, k), k);
  const y = ops.tensor("f32", [2, n]);
  assertThrows(
    () => ops.matmulAdd(x, matrix, y),
    Error,
    "Cannot multiply: planes are in memories 0, 1, must be in one",
  );
  for (let time = 0; time < 2; time++) {
    ops.together(matrix);
    assert(quants.data.buffer === scales.data.buffer);
    ops.matmulAdd(x, matrix, { ...y, data: y.data.fill(0) });
    assertSums(y.data, expected, `time ${time}`);
  }
});

Deno.test("rows whose factors exceed the work space are refused", () => {
  using ops = new CpuOps(CONFIG, { threads: 1 });
  const [format] = FORMATS_OF_BLOCKS, k = 1 << 21;
  const stored = new Uint8Array(storedRowBytes(format, k));
  const w = onOps(ops, storedMatrix(format, stored, k));
  assertThrows(
    () =>
      ops.matmulAdd(ops.tensor("f32", [1, k]), w, ops.tensor("f32", [1, 1])),
    Error,
    "factors of a row take 1048640 bytes of work space, must be at most 1048576",
  );
});
