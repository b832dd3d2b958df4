import { assertEquals } from "@std/assert";
import { assertAllClose } from "../support/assert_all_close.ts";
import { bind } from "../../lib/cpu/pool.ts";
import { wasmKernels } from "../../lib/cpu/wasm_kernels.ts";

/** Registers a test with and without relaxed SIMD, on a memory full of NaN. */
function test(
  name: string,
  body: (bound: ReturnType<typeof bind>) => void,
): void {
  for (const relaxed of [true, false]) {
    Deno.test(`${relaxed ? "relaxed" : "plain"} SIMD: ${name}`, () => {
      const memory = new WebAssembly.Memory({
        initial: 4,
        maximum: 65536,
        shared: true,
      });
      new Float32Array(memory.buffer).fill(NaN);
      body(bind(new WebAssembly.Module(wasmKernels(relaxed)), memory));
    });
  }
}

/** Writes different values at an address and returns a copy. */
function place(
  memory: WebAssembly.Memory,
  address: number,
  count: number,
): Float32Array {
  const array = new Float32Array(memory.buffer, address, count);
  return array.map((_, i) => array[i] = Math.sin(i * 1.7 + address));
}

for (const n of [1, 2, 3, 4, 5, 6, 9]) {
  test(`dot, and of pairs, of ${n} rows writes only its columns`, ({ memory, kernels }) => {
    const x = [place(memory, 0, 16), place(memory, 96, 16)];
    const w = place(memory, 1024, n * 16);
    const expected = x.map((x) =>
      Array.from(
        { length: n },
        (_, j) => x.reduce((sum, value, i) => sum + value * w[j * 16 + i], 0),
      )
    );
    const requireY = (address: number, expected: number[]) => {
      const y = new Float32Array(memory.buffer, address, n + 1);
      assertAllClose(y.subarray(0, n), expected, { absolute: 1e-6 });
      assertEquals(y[n], NaN);
    };
    kernels.dot_f32(0, 1024, 64, n, 16, 0, 8192, 0, 0);
    requireY(8192, expected[0]);
    kernels.dotPair_f32(0, 1024, 64, n, 16, 0, 9216, 96, 64);
    requireY(9216, expected[0]);
    requireY(9280, expected[1]);
  });
}

for (const rows of [1, 2, 3, 4, 5, 6]) {
  test(`tiles of ${rows} rows store, then add`, ({ memory, kernels }) => {
    const x = place(memory, 0, rows * 24), w = place(memory, 1024, 3 * 24);
    const expected = Array.from({ length: rows * 3 }, (_, at) => {
      const [r, j] = [Math.floor(at / 3), at % 3];
      let sum = 0;
      for (let i = 0; i < 24; i++) sum += x[r * 24 + i] * w[j * 24 + i];
      return sum;
    });
    const y = () => {
      const stored = new Float32Array(memory.buffer, 8192, rows * 4);
      assertEquals(
        stored.filter((_, i) => i % 4 === 3).every(Number.isNaN),
        true,
      );
      return stored.filter((_, i) => i % 4 < 3);
    };
    kernels.tiles(0, 96, rows, 1024, 96, 96, 8192, 16, 0);
    assertAllClose(y(), expected, { absolute: 2e-6 });
    kernels.tiles(0, 96, rows, 1024, 96, 96, 8192, 16, 1);
    assertAllClose(y(), expected.map((value) => 2 * value), { absolute: 4e-6 });
  });
}

test("swiglu is close over the whole range of f32", ({ memory, kernels }) => {
  const exponents = Array.from({ length: 80 }, (_, i) => 2 ** (i / 2 - 30));
  const values = [
    0,
    ...exponents,
    ...exponents.map((value) => -value),
    3e38,
    -3e38,
    0,
  ];
  const g = new Float32Array(memory.buffer, 0, values.length);
  const u = new Float32Array(memory.buffer, 4096, values.length);
  g.set(values);
  u.fill(0.5);
  const expected = Array.from(
    g,
    (value) => value / (1 + Math.exp(-value)) * 0.5,
  );
  kernels.swiglu(0, 4096, values.length);
  assertAllClose(g, expected, { absolute: 1e-30, relative: 5e-7 });
});

for (const size of [8, 24, 128, 1024]) {
  for (const rotated of [false, true]) {
    test(`normRows of ${size}, ${rotated ? "" : "not "}rotated`, ({ memory, kernels }) => {
      const half = size / 2, count = 3, at = 32768;
      const weight = place(memory, 0, size), angles = place(memory, 8192, size);
      const x = place(memory, at, count * size);
      const rows = new Float32Array(memory.buffer, at, count * size + 4);
      rows.fill(0, size, 2 * size); // only eps keeps its root above 0
      for (let i = 0; i < size; i++) rows[i] *= 1e25; // squares exceed f32
      x.set(rows.subarray(0, count * size));
      const eps = Math.fround(1e-6), expected = new Float64Array(x.length);
      for (let r = 0; r < count; r++) {
        const row = x.subarray(r * size, (r + 1) * size);
        const mean = row.reduce((sum, value) => sum + value ** 2, 0) / size;
        const normed = Array.from(
          row,
          (value, i) => value / Math.sqrt(mean + eps) * weight[i],
        );
        const angle = (i: number) => rotated ? angles[i] : i < half ? 1 : 0;
        for (let i = 0; i < half; i++) {
          const [a, b] = [normed[i], normed[half + i]];
          const [cos, sin] = [angle(i), angle(half + i)];
          expected[r * size + i] = a * cos - b * sin;
          expected[r * size + half + i] = b * cos + a * sin;
        }
      }
      kernels.normRows(at, count, size, 0, eps, rotated ? 8192 : 0);
      assertAllClose(rows.subarray(0, count * size), expected, {
        absolute: 1e-6,
      });
      assertEquals(rows[count * size], NaN);
    });
  }
}

for (const [count, total] of [[1, 4], [3, 4], [4, 8], [29, 36]]) {
  for (const offset of [0, 1e4, -1e4]) {
    test(`softmax of ${count} around ${offset}, zeros up to ${total}`, ({ memory, kernels }) => {
      const x = place(memory, 256, count);
      new Float32Array(memory.buffer, 256, count).forEach((value, i, all) => {
        x[i] = all[i] = 4 * value + offset;
      });
      kernels.softmax(256, count, total, 0.25);
      const weights = x.map((value) =>
        Math.exp((value - Math.max(...x)) * 0.25)
      );
      const sum = weights.reduce((a, b) => a + b);
      const expected = [
        ...weights.map((value) => value / sum),
        ...Array(total - count).fill(0),
      ];
      assertAllClose(new Float32Array(memory.buffer, 256, total), expected, {
        relative: 1e-6,
      });
    });
  }
}

for (
  const [rows, dims, count] of [[1, 4, 3], [2, 16, 5], [3, 20, 2], [5, 128, 7]]
) {
  test(`weightedSum of ${count} rows of ${dims} by ${rows}`, ({ memory, kernels }) => {
    const weights = place(memory, 0, rows * 8),
      values = place(memory, 1024, count * dims);
    const expected = Array.from({ length: rows * dims }, (_, at) => {
      const [r, d] = [Math.floor(at / dims), at % dims];
      let sum = 0;
      for (let p = 0; p < count; p++) {
        sum += weights[r * 8 + p] * values[p * dims + d];
      }
      return sum;
    });
    const out = new Float32Array(memory.buffer, 16384, rows * dims);
    for (const add of [0, 1]) {
      kernels.weightedSum(
        0,
        32,
        rows,
        1024,
        4 * dims,
        count,
        16384,
        4 * dims,
        add,
      );
      assertAllClose(out, expected.map((value) => value * (1 + add)), {
        absolute: 4e-6,
      });
    }
  });
}
