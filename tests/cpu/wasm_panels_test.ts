/** The WebAssembly kernels of formats in panels, against the same rows one after another. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { CpuOps } from "../../lib/cpu/ops.ts";
import {
  interleave,
  isPanels,
  PANEL_ROWS,
  type PanelFormat,
  panelUnits,
} from "../../lib/cpu/panels.ts";
import {
  type Planes,
  SIMD_FORMATS,
  wasmKernels,
} from "../../lib/cpu/wasm_kernels.ts";
import { panelsName } from "../../lib/cpu/wasm_panels.ts";
import { MOST_OUTLYING, roundWordsName } from "../../lib/cpu/wasm_round.ts";
import type { Matrix } from "../../lib/formats/matrix.ts";
import {
  type CpuTensor,
  matrixToF32,
  storedMatrix,
} from "../../lib/formats/tensor.ts";
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
import { type Random, randomTest } from "../support/random.ts";

const IN_PANELS = SIMD_FORMATS.filter(isPanels);
const ALL_MODULES = {
  ...MODULES,
  "for 256 bits": new WebAssembly.Module(wasmKernels(true, 7, true)),
};

Deno.test("formats of blocks with one scale have panels", () => {
  assertEquals(
    IN_PANELS.map(({ name }) => name).sort(),
    ["iq4_nl", "mxfp4", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"],
  );
});

/** Puts whole panels of a plane in order; panels that `interleave` orders elsewhere. */
function inOrder(format: PanelFormat, k: number) {
  const sizes = format.planes(k), units = panelUnits(format.simd);
  return (plane: Uint8Array, p: number): Uint8Array => {
    const { rowBytes } = sizes[p], size = PANEL_ROWS * rowBytes;
    const all = new Uint8Array(plane.length);
    for (let at = 0; at < plane.length; at += size) {
      const [from, to] = [plane, all].map((one) => one.subarray(at, at + size));
      interleave(from, to, rowBytes, units[p]);
    }
    return all;
  };
}

/** Runs the slices of putting a matrix in order. */
function inPanels(
  ops: CpuOps,
  matrix: Matrix<CpuTensor>,
): Matrix<CpuTensor> {
  ops.together(matrix);
  const slices = ops.interleave(matrix);
  let next = slices.next();
  while (!next.done) next = slices.next();
  return next.value;
}

for (const format of IN_PANELS) {
  for (const [what, module] of Object.entries(ALL_MODULES)) {
    const name = `${format.name} in panels, ${what}`;

    randomTest(`${name}: dot of panels of any width`, (random) => {
      let rounding = 0;
      for (const k of widths(format)) {
        for (const n of [16, 32, 80]) {
          const stored = randomRows(random, format.rows, n, k);
          const x = random.tensor("f32", [k], 3).data as Float32Array;
          const { memory, kernels, planes, xAt, free } = placed(
            ...[format.rows, module, stored, x] as const,
            inOrder(format, k),
          );
          const expected = product(x, unpacked(format.rows, stored, k), k);
          const results = [-1, MOST_OUTLYING].map((most) => {
            kernels[roundWordsName(format.simd)](xAt, k, most);
            const bytes = new Uint8Array(memory.buffer), before = bytes.slice();
            const dot = kernels[`dotBlocks_${panelsName(format)}`];
            dot(...planes, xAt, n, k, 0, free, 0);
            const written = new Float32Array(memory.buffer, free, n).slice();
            bytes.set(before.subarray(free, free + 4 * n), free);
            assertEquals(bytes, before, "only its results are written");
            return written;
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
        const n = 24, stored = randomRows(random, format.rows, n, k);
        const { memory, kernels, planes, free } = placed(
          ...[format.rows, module, stored, new Float32Array(k)] as const,
          inOrder(format, k),
        );
        const expected = unpacked(format.rows, stored, k);
        const outBytes = 4 * k + GUARD, end = free + n * outBytes;
        for (const begin of [0, k - format.elements]) {
          const width = k - begin, before = format.planes(begin);
          const unpack = kernels[`unpackBlocks_${panelsName(format)}`];
          const moved = planes.map((at, p) =>
            at && at + PANEL_ROWS * before[p].rowBytes
          ) as Planes;
          const out = new Float32Array(memory.buffer, free).fill(NaN);
          unpack(...moved, n, k, width, 0, free, outBytes, 0);
          for (let row = 0; row < n; row++) {
            const at = row * outBytes / 4;
            assertEquals(
              out.slice(at, at + width),
              expected.slice(row * k + begin, (row + 1) * k),
              `row ${row} of ${k}, from ${begin}`,
            );
            const rest = out.slice(at + width, at + outBytes / 4);
            assert(rest.every(Number.isNaN), "nothing else of the row");
          }
          assert(out.subarray((end - free) / 4).every(Number.isNaN));
        }
      }
    });
  }

  for (const integers of [false, true]) {
    const how = integers ? "rounded" : "exact";
    randomTest(
      `${format.name} in panels: matmuls of few and many rows, ${how}`,
      (random) => {
        using ops = new CpuOps(CONFIG, { threads: 3, integers });
        for (const k of [32, 608]) {
          for (const n of [16, 112, 1008]) {
            const stored = randomRows(random, format.rows, n, k);
            const w = unpacked(format.rows, stored, k);
            const matrix = inPanels(
              ops,
              onOps(ops, storedMatrix(format.rows, stored, k)),
            );
            assertEquals(matrix.parts[0].format, format);
            assertEquals(matrixToF32(matrix), w);
            for (const rows of n > 112 ? [3, 40] : [1, 11, 12, 50, 200]) {
              checkMatmul(ops, random, { matrix, w, rows, integers });
            }
          }
        }
      },
    );
  }
}

/** Checks a product that is added to 0.5. */
function checkMatmul(
  ops: CpuOps,
  random: Random,
  { matrix, w, rows, integers }: {
    matrix: Matrix<CpuTensor>;
    w: Float32Array;
    rows: number;
    integers: boolean;
  },
) {
  const { n, k } = matrix, x = random.tensor("f32", [rows, k], 3);
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

randomTest("gates and ups in panels are read together", (random) => {
  const format = IN_PANELS.find(({ name }) => name === "q8_0")!, k = 64;
  for (const n of [48, 8]) { // with 8, a pair of panels has rows of both
    using ops = new CpuOps(CONFIG, { threads: 2 });
    const rows = storedMatrix(
      format.rows,
      randomRows(random, format.rows, 2 * n, k),
      k,
    );
    const [part] = rows.parts;
    const twins = { ...rows, parts: [{ ...part, rows: n, twin: n }] };
    const norm = storedMatrix(
      format.rows,
      randomRows(random, format.rows, 1, k),
      k,
    );
    const x = random.tensor("f32", [3, k], 3);
    const before = ops.normSwiglu(x, norm, onOps(ops, twins)).data.slice();
    const matrix = inPanels(ops, onOps(ops, twins));
    assertEquals(matrix.parts[0].format, format);
    const after = ops.normSwiglu(x, norm, matrix).data;
    const size = Math.max(...before.map(Math.abs));
    before.forEach((value, i) =>
      assert(Math.abs(value - after[i]) <= 1e-5 * size, `${n}, ${i}`)
    );
  }
});

randomTest(
  "nothing is lost beside outliers in panels, nor are infinities",
  (random) => {
    using ops = new CpuOps(CONFIG, { threads: 1, integers: true });
    const format = IN_PANELS.find(({ name }) => name === "q8_0")!;
    const k = 128, n = 16, at = 70;
    const stored = randomRows(random, format.rows, n, k);
    for (let row = 0; row < n - 1; row++) { // all but the last need no outlier
      stored[(row * k / 32 + 2) * format.bytes + 2 + at % 32] = 0;
    }
    const w = unpacked(format.rows, stored, k);
    const matrix = inPanels(
      ops,
      onOps(ops, storedMatrix(format.rows, stored, k)),
    );
    const x = random.tensor("f32", [1, k], 3), y = ops.tensor("f32", [1, n]);
    x.data[at] = 0;
    const expected = product(x.data, w, k);
    x.data[at] = 1e6;
    ops.matmulAdd(x, matrix, y);
    assertSums(
      y.data.subarray(0, n - 1),
      {
        values: expected.values.slice(0, n - 1),
        norms: expected.norms.slice(0, n - 1),
      },
      "beside 1e6",
      ROUNDED,
    );
    for (const infinite of [Infinity, NaN]) {
      x.data[at] = infinite;
      ops.matmulAdd(x, matrix, { ...y, data: y.data.fill(0) });
      assertEquals(y.data[n - 1], w[(n - 1) * k + at] * infinite);
    }
  },
);

randomTest("rows that are no whole panels stay as they are", (random) => {
  const format = IN_PANELS.find(({ name }) => name === "q4_0")!, k = 32;
  const experts = {
    ...{ count: 4, used: 2, normalized: true, intermediateSize: 8 },
    denseLayers: [],
  };
  const matrixOf = (ops: CpuOps, rows: number) =>
    onOps(
      ops,
      storedMatrix(
        format.rows,
        randomRows(random, format.rows, rows, k),
        k,
      ),
    );
  using ops = new CpuOps(CONFIG, { threads: 1 });
  const stays = (ops: CpuOps, rows: number) => {
    const matrix = matrixOf(ops, rows);
    return inPanels(ops, matrix).parts[0] === matrix.parts[0];
  };
  assertEquals([24, 32].map((rows) => stays(ops, rows)), [true, false]);
  assertMatch(
    ops.info.reason,
    /; q4_0 is not interleaved where it has 24 rows, no multiple of 16/,
  );
  using mixture = new CpuOps({ ...CONFIG, experts }, { threads: 1 });
  assert(stays(mixture, 64));
  using plain = new CpuOps(CONFIG, { simd: false });
  assert(stays(plain, 32));
});
