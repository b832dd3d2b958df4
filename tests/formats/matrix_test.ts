import { assert, assertEquals, assertThrows } from "@std/assert";
import { toF32 } from "../../lib/formats/tensor.ts";
import { DeviceError } from "../../lib/errors.ts";
import { bf16 } from "../../lib/formats/bf16.ts";
import { f16 } from "../../lib/formats/f16.ts";
import { f32 } from "../../lib/formats/f32.ts";
import type { Format } from "../../lib/formats/format.ts";
import {
  allocateMatrix,
  layOut,
  type Matrix,
  matrixOf,
  piecesOf,
  planeBytes,
  rowsHeld,
} from "../../lib/formats/matrix.ts";
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
          for (const part of parts.slice(0, -1)) assertEquals(part.rows % 8, 0);
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
    for (const { name } of FORMATS) {
      const dtype = name as "f32" | "f16" | "bf16";
      for (const pairs of [false, true]) {
        for (const k of [6, 80]) {
          const n = 2 * random.int(50, 90);
          const rowBytes = k * (dtype === "f32" ? 4 : 2);
          const small = withBinding(
            gpu,
            16 * random.int(rowBytes, 3 * rowBytes),
          );
          const values = random.tensor(dtype, [n, k]), all = toF32(values);
          const matrix = matrixOf(values);
          const copy = splitMatrix(trial, small, matrix, pairs);
          assert(copy.parts.length > 1, `${name} ${n} × ${k}`);
          for (const { part, row, at, rows } of piecesOf(copy, 0, n)) {
            const [{ buffer }] = part.planes;
            const size = 4 * Math.ceil(rowsHeld(part) * rowBytes / 4);
            const bytes = new Uint8Array(
              await small.readBuffer(buffer, 0, size),
            );
            const into = new Float32Array(k);
            for (let i = 0; i < rows; i++) {
              part.format.unpack([bytes], at + i, k, into);
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
