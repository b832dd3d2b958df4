/** The WebAssembly kernels of every format of blocks, against its `unpack` and float64. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { assertAllClose } from "../support/assert_all_close.ts";
import { bind } from "../../lib/cpu/pool.ts";
import { CpuOps } from "../../lib/cpu/ops.ts";
import { type BlockFormat, isBlocks } from "../../lib/cpu/wasm_blocks.ts";
import {
  MOST_OUTLYING,
  roundedBytes,
  roundRowName,
} from "../../lib/cpu/wasm_round.ts";
import {
  type Planes,
  SIMD_FORMATS,
  unsignedBytes,
  wasmKernels,
} from "../../lib/cpu/wasm_kernels.ts";
import { threadSpace, writeMasks } from "../../lib/cpu/jobs.ts";
import { storedRowBytes } from "../../lib/formats/format.ts";
import { type Matrix, packed } from "../../lib/formats/matrix.ts";
import { FORMATS } from "../../lib/formats/mod.ts";
import { type CpuTensor, storedMatrix } from "../../lib/formats/tensor.ts";
import { type Random, randomTest } from "../support/random.ts";

const FORMATS_OF_BLOCKS = SIMD_FORMATS.filter(isBlocks);

Deno.test("every format has a reader for WebAssembly", () => {
  assertEquals(SIMD_FORMATS, FORMATS);
  assertEquals(FORMATS_OF_BLOCKS.length, 13);
});

/** Blocks of random bits, whose elements are all finite. */
function randomRows(random: Random, format: BlockFormat, n: number, k: number) {
  const { bytes, elements } = format;
  const stored = new Uint8Array(n * storedRowBytes(format, k));
  const values = new Float32Array(elements);
  for (let at = 0; at < stored.length; at += bytes) {
    const block = stored.subarray(at, at + bytes);
    do {
      for (let i = 0; i < bytes; i++) block[i] = random.int(0, 255);
      const planes = packed(format, block.slice(), elements, 1);
      format.unpack(planes, 0, elements, values);
    } while (!values.every((value) => Math.abs(value) < 1e6));
  }
  return stored;
}

/** All elements of stored rows. */
function unpacked(format: BlockFormat, stored: Uint8Array, k: number) {
  const n = stored.length / storedRowBytes(format, k);
  const planes = packed(format, stored.slice(), k, n);
  const all = new Float32Array(n * k);
  for (let row = 0; row < n; row++) {
    format.unpack(planes, row, k, all.subarray(row * k, (row + 1) * k));
  }
  return all;
}

/** Row widths: some with every number of groups in the last vector of factors. */
const widths = ({ elements }: BlockFormat) =>
  (elements === 32 ? [1, 2, 3, 4, 7, 16, 33] : [1, 2, 3]).map((n) =>
    n * elements
  );

/**
 * `x · wᵀ` in float64, and the sums of what was summed: products of scaled quants and
 * minimums are no larger than a few times the largest element of their group.
 */
function product(x: ArrayLike<number>, w: Float32Array, k: number) {
  const values: number[] = [], norms: number[] = [];
  for (let r = 0; r < x.length; r += k) {
    for (let j = 0; j < w.length; j += k) {
      let sum = 0, norm = 0;
      for (let i = 0; i < k; i += 16) {
        let largest = 0, size = 0;
        for (let e = i; e < i + 16; e++) {
          sum += x[r + e] * w[j + e];
          largest = Math.max(largest, Math.abs(w[j + e]));
          size += Math.abs(x[r + e]);
        }
        norm += 3 * largest * size;
      }
      values.push(sum);
      norms.push(norm);
    }
  }
  return { values, norms };
}

/**
 * Asserts that results are within a few roundings of what was summed. The kernels may lose
 * elements that are subnormal, as only MXFP4 has them.
 */
function assertSums(
  actual: ArrayLike<number>,
  { values, norms }: ReturnType<typeof product>,
  message: string,
  absolute = EXACT,
): void {
  const inNorms = (list: ArrayLike<number>) =>
    Float64Array.from(list, (value, i) => value / (norms[i] + 2 ** -90));
  assertAllClose(inNorms(actual), inNorms(values), { absolute }, message);
}

/** Errors of sums in f32, and of x rounded to 16 bits, in sizes of what was summed. */
const EXACT = 3e-7, ROUNDED = 2e-5;

/** The modules that this engine runs right, by what they use. */
const MODULES = {
  "plain SIMD": new WebAssembly.Module(wasmKernels(false)),
  "relaxed SIMD": new WebAssembly.Module(wasmKernels(true, 7)),
  ...unsignedBytes() && {
    "relaxed SIMD, unsigned bytes": new WebAssembly.Module(
      wasmKernels(true, 8),
    ),
  },
};
const GUARD = 64;
/** Where the masks have ended. */
const FREE = threadSpace(0);

/** A memory full of NaN with masks, planes and x. */
function placed(
  format: BlockFormat,
  module: WebAssembly.Module,
  stored: Uint8Array,
  x: Float32Array,
) {
  const memory = new WebAssembly.Memory({
    initial: 16,
    maximum: 65536,
    shared: true,
  });
  new Float32Array(memory.buffer).fill(NaN, FREE / 4);
  writeMasks(memory.buffer);
  const { kernels } = bind(module, memory);
  let at = FREE;
  const place = (bytes: Uint8Array) => {
    const address = at;
    new Uint8Array(memory.buffer, address).set(bytes);
    at += Math.ceil(bytes.length / 4) * 4 + GUARD;
    return address;
  };
  const k = x.length, n = stored.length / storedRowBytes(format, k);
  const planes = packed(format, stored.slice(), k, n).map(place);
  while (planes.length < 4) planes.push(0);
  const xAt = place(new Uint8Array(x.buffer));
  at += roundedBytes(format.simd, k) - GUARD; // the end of what roundRow writes
  const mask = (k: number) => k / format.simd.group % 4 * 32;
  return { memory, kernels, planes: planes as Planes, xAt, free: at, mask };
}

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

/** Its sizes do not matter to matmuls. */
const CONFIG = {
  modelType: "qwen3",
  vocabSize: 8,
  hiddenSize: 32,
  intermediateSize: 32,
  numHiddenLayers: 1,
  numAttentionHeads: 1,
  numKeyValueHeads: 1,
  headDim: 32,
  maxPositionEmbeddings: 64,
  rmsNormEps: 1e-6,
  ropeTheta: 1e4,
  ropeScaling: null,
  tieWordEmbeddings: true,
  bosTokenId: null,
  eosTokenIds: [],
};

/** A matrix in the memory of `ops`; `next` is called before each plane. */
function onOps(
  ops: CpuOps,
  matrix: Matrix<CpuTensor>,
  next: () => void = () => {},
): Matrix<CpuTensor> {
  const parts = matrix.parts.map((part) => ({
    ...part,
    planes: part.planes.map(({ shape, data }) => {
      next();
      const tensor = ops.tensor("u32", shape);
      tensor.data.set(data);
      return tensor;
    }),
  }));
  return { ...matrix, parts };
}
