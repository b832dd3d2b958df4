import { assert, assertEquals, assertThrows } from "@std/assert";
import { matrixToF32 } from "../../lib/formats/tensor.ts";
import { DeviceError } from "../../lib/errors.ts";
import { bf16 } from "../../lib/formats/bf16.ts";
import { f16 } from "../../lib/formats/f16.ts";
import { f32 } from "../../lib/formats/f32.ts";
import type { Format } from "../../lib/formats/format.ts";
import {
  allocateMatrix,
  layOut,
  type LayoutOptions,
  type Matrix,
  piecesOf,
  planeBytes,
  rowsHeld,
} from "../../lib/formats/matrix.ts";
import { q8_0 } from "../../lib/formats/blocks_of_32.ts";
import { q4_k, q6_k } from "../../lib/formats/k_quants.ts";
import { FORMATS } from "../../lib/formats/mod.ts";
import { randomTest } from "../support/random.ts";
import { gpuTest, withBinding } from "../support/gpu.ts";
import { nibbles } from "../support/nibbles.ts";
import { splitMatrix } from "../support/matrix.ts";

Deno.test("neighbors of one format share a part", () => {
  const stack = [
    { rows: 12, format: bf16 },
    { rows: 4, format: bf16 },
    { rows: 4, format: f16 },
    { rows: 8, format: bf16 },
  ];
  assertEquals(
    layOut("qkv", stack, 8).map(({ begin, rows, twin, format }) => [
      ...[begin, rows, twin, format.name],
    ]),
    [
      [0, 16, undefined, "bf16"],
      [16, 4, undefined, "f16"],
      [20, 8, undefined, "bf16"],
    ],
  );
});

Deno.test("pairs of one format share parts, pairs of two formats do not", () => {
  const both = (other: Format) =>
    layOut(
      "gate_up",
      [{ rows: 6, format: bf16 }, { rows: 6, format: other }],
      8,
      { pairs: true },
    ).map(({ begin, rows, twin, format }) => [begin, rows, twin, format.name]);
  assertEquals(both(bf16), [[0, 6, 6, "bf16"]]);
  assertEquals(both(f32), [
    [0, 6, undefined, "bf16"],
    [6, 6, undefined, "f32"],
  ]);
});

Deno.test("a tensor that would begin within a word has a part of its own", () => {
  const parts = (rows: number, format: Format, k: number, pairs: boolean) =>
    layOut("w", [{ rows, format }, { rows, format }], k, { pairs })
      .map(({ begin, rows, twin }) => [begin, rows, twin]);
  for (const pairs of [false, true]) {
    assertEquals(parts(7, bf16, 9, pairs), [
      ...[[0, 7, undefined], [7, 7, undefined]],
    ]);
    assertEquals(parts(7, q6_k, 256, pairs).length, 2); // the plane of d
    assertEquals(parts(7, q4_k, 256, pairs).length, 1);
  }
  assertEquals(parts(6, q6_k, 256, true), [[0, 6, 6]]);
});

Deno.test("planes are allocated by their own bytes, in whole words", () => {
  const made: [number, string][] = [];
  const stack = [{ rows: 3, format: nibbles }];
  const matrix = allocateMatrix("w", stack, 64, {}, (bytes, label) => {
    made.push([bytes, label]);
    return made.length;
  });
  assertEquals(made, [[96, "w.quants"], [8, "w.scales"]]); // of 96 and 6 bytes
  assertEquals(matrix.parts[0].planes, [1, 2]);
  assertEquals([matrix.n, matrix.k], [3, 64]);
});

randomTest(
  "no plane exceeds the limit, every row is in one place, cuts are at whole words",
  (random) => {
    for (const format of [...FORMATS, nibbles]) {
      for (const pairs of [false, true]) {
        for (let trial = 0; trial < 20; trial++) {
          const k = format.elements * random.int(1, 4),
            half = random.int(1, 90);
          const rowBytes = Math.max(
            ...format.planes(k).map(({ rowBytes }) => rowBytes),
          );
          const most = rowBytes * random.int(16, 70);
          const stack = [{ rows: half, format }, { rows: half, format }];
          const layout = layOut("w", stack, k, { pairs, most });
          const parts = layout.map((part) => ({ ...part, planes: [] }));
          const matrix: Matrix<never> = { label: "w", n: 2 * half, k, parts };
          for (const part of parts) {
            assert(planeBytes(part, k).every((bytes) => bytes <= most));
            assert(part.twin === undefined || part.twin - part.begin === half);
          }
          const ends = parts.map(({ begin, rows }) => begin + rows);
          for (const [i, { rows }] of parts.entries()) {
            assert(rows % 8 === 0 || ends[i] % half === 0);
          }
          const seen = new Array(2 * half).fill(0);
          for (const { row, rows, part, at } of piecesOf(matrix, 0, 2 * half)) {
            assert(at + rows <= rowsHeld(part));
            for (let i = 0; i < rows; i++) seen[row + i]++;
          }
          assert(seen.every((times) => times === 1));
          const [piece, ...more] = piecesOf(matrix, half, 1);
          assertEquals([piece.row, piece.rows, more.length], [half, 1, 0]);
        }
      }
    }
  },
);

Deno.test("rows that belong together are not split, nor pairs that meet in one format", () => {
  const parts = (formats: Format[], options: LayoutOptions) =>
    layOut(
      "experts",
      formats.map((format) => ({ rows: 20, format })),
      64,
      { together: 20, pairs: true, ...options },
    ).map(({ begin, rows, twin, format: { name } }) => [
      begin,
      rows,
      twin,
      name,
    ]);
  const four = [bf16, bf16, bf16, bf16, bf16, bf16];
  assertEquals(parts(four, {}), [[0, 60, 60, "bf16"]]);
  // Two experts are 80 rows of 128 bytes.
  assertEquals(parts(four, { most: 11000 }), [
    [0, 40, 60, "bf16"],
    [40, 20, 100, "bf16"],
  ]);
  // The last gate and the first up have the same format.
  assertEquals(parts([q8_0, bf16, bf16, q8_0], {}), [
    [0, 20, undefined, "q8_0"],
    [20, 20, undefined, "bf16"],
    [40, 20, undefined, "bf16"],
    [60, 20, undefined, "q8_0"],
  ]);
  assertThrows(
    () => parts(four, { most: 5000 }),
    DeviceError,
    "Cannot allocate experts of shape [120, 64]: 20 rows take 5120 bytes in bf16, one buffer holds at most 5000",
  );
});

Deno.test("rows that are not whole blocks are refused", () => {
  const stack = [{ rows: 4, format: bf16 }, { rows: 6, format: q4_k }];
  assertThrows(
    () => layOut("layers.0.down_proj", stack, 640),
    Error,
    "Cannot lay out layers.0.down_proj of shape [10, 640] in q4_k: its rows must be whole blocks of 256",
  );
  layOut("w", stack, 512);
});

Deno.test("a limit of fewer than eight rows is refused", () => {
  assertThrows(
    () => layOut("w", [{ rows: 10, format: f32 }], 100, { most: 256 }),
    DeviceError,
    "Cannot allocate w of shape [10, 100]: 8 rows take 3200 bytes in f32, one buffer holds at most 256",
  );
});

gpuTest(
  "a matrix that one binding cannot hold is split, pairs by the same rows of both halves",
  async (gpu, trial) => {
    const { random } = trial;
    for (const format of FORMATS) {
      for (const pairs of [false, true]) {
        for (const k of format.elements > 1 ? [format.elements] : [6, 80]) {
          const n = 8 * random.int(13, 22);
          const planes = format.planes(k);
          const rowBytes = Math.max(...planes.map(({ rowBytes }) => rowBytes));
          const small = withBinding(
            gpu,
            16 * random.int(rowBytes, 3 * rowBytes),
          );
          const matrix = random.matrix(format.name, [n, k]);
          const all = matrixToF32(matrix);
          const copy = splitMatrix(trial, small, matrix, pairs);
          assert(copy.parts.length > 1, `${format.name} ${n} × ${k}`);
          for (const { part, row, at, rows } of piecesOf(copy, 0, n)) {
            const bytes = await Promise.all(
              part.planes.map(async ({ buffer, bytes }) =>
                new Uint8Array(await small.readBuffer(buffer, 0, bytes))
              ),
            );
            const into = new Float32Array(k);
            for (let i = 0; i < rows; i++) {
              part.format.unpack(bytes, at + i, k, into);
              const begin = (row + i) * k;
              assertEquals(into, all.slice(begin, begin + k));
            }
          }
          small.check();
        }
      }
    }
  },
);
