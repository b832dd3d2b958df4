import { matrixOf } from "../../lib/formats/matrix.ts";
import {
  assert,
  assertEquals,
  AssertionError,
  assertThrows,
} from "@std/assert";
import { assertAllClose } from "../support/assert_all_close.ts";
import type { Qwen3Config } from "../../lib/checkpoint/config.ts";
import { quantizedHeads } from "../../lib/formats/cached.ts";
import { stepsOf } from "../../kernels/attention_case.ts";
import { toF32 } from "../../lib/formats/tensor.ts";
import { CpuOps, type CpuOptions, type CpuTensor } from "../../lib/cpu/ops.ts";
import { MemoryError } from "../../lib/errors.ts";
import { ropeFrequencies } from "../../lib/model/rope.ts";
import { randomTest } from "../support/random.ts";

const ODD: Qwen3Config = {
  modelType: "qwen3",
  vocabSize: 500,
  hiddenSize: 80,
  intermediateSize: 52,
  numHiddenLayers: 2,
  numAttentionHeads: 6,
  numKeyValueHeads: 1,
  headDim: 16,
  maxPositionEmbeddings: 256,
  rmsNormEps: 1e-6,
  ropeTheta: 1e4,
  ropeScaling: null,
  tieWordEmbeddings: true,
  bosTokenId: null,
  eosTokenIds: [],
};

const KERNELS: Record<string, CpuOptions> = {
  plain: { simd: false },
  "one thread": { threads: 1 },
  "three threads": { threads: 3 },
};

const WEIGHTS = ["f32", "f16", "bf16"] as const;
const CLOSE = { absolute: 1e-5, relative: 1e-5 };

/** Registers a test on random inputs for each implementation. */
function test(
  name: string,
  body: (make: MakeOps, fill: Fill) => void,
): void {
  for (const [kernel, options] of Object.entries(KERNELS)) {
    randomTest(`${kernel}: ${name}`, (random) => {
      using stack = new DisposableStack();
      const make: MakeOps = (changes) =>
        stack.use(new CpuOps({ ...ODD, ...changes }, options));
      body(make, (ops, dtype, shape, scale) => {
        const tensor = ops.tensor(dtype, shape);
        tensor.data.set(random.tensor(dtype, shape, scale).data);
        return tensor;
      });
    });
  }
}

type MakeOps = (changes?: Partial<Qwen3Config>) => CpuOps;

/** Makes a tensor of random values from -scale (1 by default) to scale. */
type Fill = (
  ops: CpuOps,
  dtype: "f32" | "f16" | "bf16",
  shape: number[],
  scale?: number,
) => CpuTensor;

/** Runs `verb` with a result array that an earlier call left full of NaN. */
function poisoned(ops: CpuOps, verb: () => CpuTensor): CpuTensor {
  verb().data.fill(NaN);
  startPass(ops);
  return verb();
}

function startPass(ops: CpuOps): void {
  ops.embed(matrixOf(ops.tensor("f32", [1, 1])), {
    dtype: "u32",
    shape: [1],
    data: new Uint32Array(1),
  });
}

/** `x · wᵀ` in float64. */
function product(
  x: ArrayLike<number>,
  w: ArrayLike<number>,
  k: number,
): number[] {
  const y = [];
  for (let r = 0; r < x.length; r += k) {
    for (let j = 0; j < w.length; j += k) {
      let sum = 0;
      for (let i = 0; i < k; i++) sum += x[r + i] * w[j + i];
      y.push(sum);
    }
  }
  return y;
}

/** RMSNorm of each `norm.length` elements in float64. */
function rmsNorm(x: ArrayLike<number>, norm: ArrayLike<number>): number[] {
  const k = norm.length;
  return Array.from(x, (value, i) => {
    let squares = 0;
    for (let j = 0, row = i - i % k; j < k; j++) squares += x[row + j] ** 2;
    return value / Math.sqrt(squares / k + ODD.rmsNormEps) * norm[i % k];
  });
}

test("embed returns rows of the table", (make, fill) => {
  const ops = make();
  for (const dtype of WEIGHTS) {
    const table = fill(ops, dtype, [500, 80]);
    const data = Uint32Array.of(499, 0, 7, 7, 250);
    const x = ops.embed(matrixOf(table), { dtype: "u32", shape: [5], data });
    assertEquals(x.shape, [5, 80]);
    const rows = toF32(table);
    assertAllClose(
      x.data,
      [...data].flatMap((t) => [...rows.subarray(t * 80, t * 80 + 80)]),
    );
  }
});

for (const rows of [1, 2, 3, 5, 13, 70]) {
  test(`matmuls of ${rows} rows`, (make, fill) => {
    const ops = make();
    for (const dtype of WEIGHTS) {
      for (const [n, k] of [[500, 80], [1, 7], [37, 1030], [130, 16]]) {
        const message = `${dtype} [${n}, ${k}]`;
        const x = fill(ops, "f32", [rows, k], 3);
        const norm = fill(ops, dtype, [k]);
        const w = fill(ops, dtype, [n, k], k ** -0.5);
        const gateUp = fill(ops, dtype, [2 * n, k], 3 * k ** -0.5);
        const residual = fill(ops, "f32", [rows, n]);

        const normed = rmsNorm(x.data, toF32(norm));
        const y = poisoned(
          ops,
          () => ops.normMatmul(x, matrixOf(norm), matrixOf(w)),
        );
        assertEquals(y.shape, [rows, n]);
        assertAllClose(
          y.data,
          product(normed, toF32(w), k),
          CLOSE,
          `normMatmul ${message}`,
        );

        const both = product(normed, toF32(gateUp), k);
        const swiglu = y.data.map((_, i) => {
          const at = Math.floor(i / n) * 2 * n + i % n;
          return both[at] / (1 + Math.exp(-both[at])) * both[at + n];
        });
        for (const pairs of [true, false]) {
          const both = matrixOf(gateUp, "gate_up", pairs);
          const gated = poisoned(
            ops,
            () => ops.normSwiglu(x, matrixOf(norm), both),
          );
          assertEquals(gated.shape, [rows, n]);
          assertAllClose(gated.data, swiglu, CLOSE, `normSwiglu ${message}`);
        }

        const before = residual.data.slice();
        const sum = product(x.data, toF32(w), k).map((value, i) =>
          value + before[i]
        );
        assertEquals(
          ops.matmulAdd(x, matrixOf(w), residual) === residual,
          true,
        );
        assertAllClose(residual.data, sum, CLOSE, `matmulAdd ${message}`);
      }
    }
  });
}

test("weights that are not finite change the results of their rows only", (make) => {
  const ops = make(), n = 9, k = 43;
  for (const rows of [1, 2, 3]) {
    const x = ops.tensor("f32", [rows, k]), w = ops.tensor("f16", [n, k]);
    const halves = new Float16Array(w.data.buffer, w.data.byteOffset, n * k);
    x.data.forEach((_, i) => x.data[i] = 1 + i % 5);
    halves.forEach((_, i) => halves[i] = (i * 7 % 31) / 8 - 1);
    const special = [[2, 17, Infinity], [5, 3, NaN], [8, k - 1, -Infinity]];
    for (const [row, column, value] of special) {
      halves[row * k + column] = value;
    }
    const y = ops.matmulAdd(x, matrixOf(w), ops.tensor("f32", [rows, n]));
    const expected = Float64Array.from({ length: rows * n }, (_, at) => {
      let sum = 0;
      for (let i = 0; i < k; i++) {
        sum += x.data[Math.floor(at / n) * k + i] * halves[at % n * k + i];
      }
      return sum;
    });
    assertAllClose(y.data, expected, { absolute: 1e-4 }, `${rows} rows`);
  }
});

test("weights may be infinite, subnormal or NaN", (make) => {
  const ops = make();
  for (const dtype of ["f16", "bf16"] as const) {
    const [one, infinity, nan] = dtype === "f16"
      ? [0x3c00, 0x7c00, 0x7e00]
      : [0x3f80, 0x7f80, 0x7fc0];
    for (const rows of [1, 9]) {
      const x = ops.tensor("f32", [rows, 3]);
      x.data.fill(1);
      const w = ops.tensor(dtype, [4, 3]);
      w.data.set([
        one,
        one,
        1,
        infinity,
        one,
        one,
        nan,
        one,
        one,
        0x8000 | infinity,
        1,
        1,
      ]);
      const expected = [2, Infinity, NaN, -Infinity];
      const y = ops.matmulAdd(x, matrixOf(w), ops.tensor("f32", [rows, 4]));
      assertAllClose(
        y.data,
        Array(rows).fill(expected).flat(),
        { relative: 1e-6 },
        `${dtype} ${rows} rows`,
      );

      w.data.fill(3); // all subnormal
      x.data.fill(dtype === "f16" ? 1 : 2 ** 100);
      const sum = x.data[0] * toF32(w)[0] * 3;
      const z = ops.matmulAdd(x, matrixOf(w), ops.tensor("f32", [rows, 4]));
      assertAllClose(
        z.data,
        Array(rows * 4).fill(sum),
        { relative: 1e-6 },
        dtype,
      );
    }
  }
});

/** What `attend` must return, and how far rounding may move each value. */
interface Attended {
  values: number[];
  bounds: number[];
}

/** Half the distance from 1 to the next f32. */
const UNIT = 2 ** -24;

/**
 * Attention in float64; appends keys and values to `cached`, one entry per sequence.
 * `plant` may make a mistake in a score.
 *
 * The bounds follow the arithmetic in f32, where each rounding is off by at most UNIT
 * times its result. An output is y = Σ w v over n keys, with w = exp(s) / Σ exp(s).
 *
 * - Norm, table of angles and rotation each round q and k once, which moves their score
 *   by up to 6 · UNIT · ‖q‖‖k‖/√d. Summing its d terms, in any order, adds
 *   d · UNIT · Σ|q k|/√d. Subtracting the largest score and scaling by 1/√d take three
 *   roundings of the difference, and exp is off by 4 · UNIT. The total of a key is δ:
 *   at d = 64 scores reach 100, and δ 1e-4.
 * - Weights off by factors of up to e^±δ move y by at most
 *   Σ w (e^δ − 1) |v − y| / Σ w e^−δ, which is small where one key has all the weight,
 *   however large its score.
 * - The sums over n keys, of weights and of values, add n · UNIT · (|y| + Σ w |v|);
 *   dividing and storing y, a few UNIT more.
 */
function attention(
  config: Qwen3Config,
  qkv: ArrayLike<number>,
  [qNorm, kNorm]: Float32Array[],
  cached: { k: number[][]; v: number[][] }[],
  tokens: number,
  plant = (score: number, _key: number) => score,
  stored: Stored = (_name, head) => head,
): Attended {
  const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim } =
    config;
  const { inverse, scale } = ropeFrequencies(config);
  const half = headDim / 2, root = Math.sqrt(headDim);
  const rotated = (head: number[], position: number) =>
    head.map((value, i) => {
      const angle = Math.fround(position * inverse[i % half]);
      const other = i < half ? -head[i + half] : head[i - half];
      return scale * (value * Math.cos(angle) + other * Math.sin(angle));
    });
  const width = (heads + 2 * kvHeads) * headDim;
  const values: number[] = [], bounds: number[] = [];
  for (let r = 0; r < qkv.length / width; r++) {
    const { k, v } = cached[Math.floor(r / tokens)];
    const position = k.length / kvHeads;
    const row = Array.from({ length: width }, (_, i) => qkv[r * width + i]);
    const part = (h: number) => row.slice(h * headDim, (h + 1) * headDim);
    for (let h = 0; h < kvHeads; h++) {
      const at = { sequence: Math.floor(r / tokens), head: h, position };
      const key = rotated(rmsNorm(part(heads + h), kNorm), position);
      k.push(stored("k", key, at));
      v.push(stored("v", part(heads + kvHeads + h), at));
    }
    for (let h = 0; h < heads; h++) {
      const q = rotated(rmsNorm(part(h), qNorm), position);
      const mine = (_: unknown, i: number) =>
        i % kvHeads === Math.floor(h * kvHeads / heads);
      const keys = k.filter(mine), own = v.filter(mine);
      const scores = keys.map((key, p) =>
        plant(sum(key, (x, i) => x * q[i]) / root, p)
      );
      const top = Math.max(...scores);
      const exps = scores.map((score) => Math.exp(score - top));
      const total = sum(exps, (exp) => exp);
      const weights = exps.map((exp) => exp / total);
      const offs = keys.map((key, p) =>
        UNIT * (6 * length(q) * length(key) / root +
          headDim * sum(key, (x, i) => Math.abs(x * q[i])) / root +
          3 * (top - scores[p]) + 4)
      );
      const least = sum(weights, (w, p) => w * Math.exp(-offs[p]));
      const moves = weights.map((w, p) => w * Math.expm1(offs[p]));
      for (let d = 0; d < headDim; d++) {
        const y = sum(weights, (w, p) => w * own[p][d]);
        const size = sum(weights, (w, p) => w * Math.abs(own[p][d]));
        const moved = sum(moves, (move, p) => move * Math.abs(own[p][d] - y));
        values.push(y);
        bounds.push(
          moved / least + (keys.length + 4) * UNIT * (Math.abs(y) + size),
        );
      }
    }
  }
  return { values, bounds };
}

/** Returns a head as the cache holds it; `sequence` is the number in the pass. */
type Stored = (
  name: "k" | "v",
  head: number[],
  at: { sequence: number; head: number; position: number },
) => number[];

/** A cache as one run per sequence, or in pages in an arbitrary order. */
function makeCache(
  ops: CpuOps,
  [sequences, context]: [number, number],
  dtype: "f32" | "q8_0",
  paged: boolean,
): ReturnType<CpuOps["createCache"]> {
  const page = 24, each = Math.ceil(context / page);
  const paging = { page, pages: sequences * each + 2 };
  const cache = ops.createCache(
    sequences,
    context,
    dtype,
    paged ? { paging } : {},
  );
  if (!paged) return cache;
  const step = paging.pages % 5 === 0 ? 7 : 5;
  for (let s = 0; s < sequences; s++) {
    const pages = Array.from(
      { length: each },
      (_, i) => ((s * each + i) * step + 1) % paging.pages,
    );
    cache.setPages(s, pages);
  }
  assertEquals(new Set(cache.table).size, cache.table.length);
  return cache;
}

/** Heads of a cache in q8_0, each within half a step of what it was made of. */
function quantizedIn(
  cache: ReturnType<CpuOps["createCache"]>,
  { first, kvHeads, headDim }: Record<"first" | "kvHeads" | "headDim", number>,
): Stored {
  return (name, exact, { sequence, head, position }) => {
    const row = cache.rowOf(first + sequence, head, kvHeads, position);
    const actual = new Float64Array(headDim);
    quantizedHeads(cache.layers[1][name], headDim).take(row, actual, 0);
    const steps = stepsOf(exact, headDim);
    const inSteps = (all: ArrayLike<number>) =>
      Float64Array.from(all, (value, i) => value / steps[i]);
    // Half a step, and the f16 of the scale times 127.
    const close = { absolute: 0.5 + 127 * 2 ** -11 + 1e-3 };
    assertAllClose(inSteps(actual), inSteps(exact), close, `${name} of ${row}`);
    return [...actual];
  };
}

const sum = <T>(items: readonly T[], value: (item: T, i: number) => number) =>
  items.reduce((sum, item, i) => sum + value(item, i), 0);

const length = (x: readonly number[]) =>
  Math.sqrt(sum(x, (value) => value ** 2));

/** Asserts that every value is within its bound. */
function assertAttended(
  actual: ArrayLike<number>,
  { values, bounds }: Attended,
  message = "",
): void {
  const inBounds = (list: ArrayLike<number>) =>
    Float64Array.from(list, (value, i) => value / bounds[i]);
  assertAllClose(inBounds(actual), inBounds(values), { absolute: 1 }, message);
}

for (
  const [heads, kvHeads, headDim, paged = false] of [
    [6, 1, 16],
    [4, 2, 64],
    [3, 3, 10],
    [
      8,
      2,
      6,
    ],
    [1, 1, 2],
    [4, 2, 64, true],
    [8, 2, 6, true],
  ] as const
) {
  test(
    `attention of ${heads} heads on ${kvHeads} of ${headDim}${
      paged ? ", paged" : ""
    }`,
    (make, fill) => {
      const changes = {
        numAttentionHeads: heads,
        numKeyValueHeads: kvHeads,
        headDim,
      };
      const config = { ...ODD, ...changes };
      const ops = make(changes);
      const width = (heads + 2 * kvHeads) * headDim;
      const norms = [0, 1].map(() => fill(ops, "bf16", [headDim], 4));
      const floats = norms.map(toF32);
      const cache = makeCache(ops, [3, 90], "f32", paged);
      for (const { k, v } of cache.layers) k.data.fill(NaN), v.data.fill(NaN);
      const cached = [0, 1, 2].map(() => ({
        k: [] as number[][],
        v: [] as number[][],
      }));

      // Sequences of different lengths, then tokens appended to several at once.
      for (
        const [first, sequences, tokens] of [
          [0, 1, 5],
          [2, 1, 40],
          [0, 3, 1],
          [1, 2, 2],
          [0, 3, 13],
          [1, 1, 1],
          [1, 2, 30],
        ]
      ) {
        const qkv = fill(ops, "f32", [sequences * tokens, width], 2);
        cache.begin({ first, sequences, tokens });
        const expected = attention(
          config,
          qkv.data,
          floats,
          cached.slice(first, first + sequences),
          tokens,
        );
        const y = poisoned(
          ops,
          () =>
            ops.attend(qkv, matrixOf(norms[0]), matrixOf(norms[1]), cache, 1),
        );
        assertEquals(y.shape, [sequences * tokens, heads * headDim]);
        assertAttended(
          y.data,
          expected,
          `sequences ${first}+${sequences}, ${tokens} tokens`,
        );
        cache.advance();
      }
      assertEquals(cache.layers[0].k.data.every(Number.isNaN), true); // only layer 1 was written
    },
  );
}

for (const headDim of [2, 16, 64]) {
  randomTest(
    `the bounds on attention catch mistakes: heads of ${headDim}`,
    (random) => {
      const config = {
        ...ODD,
        numAttentionHeads: 4,
        numKeyValueHeads: 2,
        headDim,
      };
      const qkv = random.tensor("f32", [40, 8 * headDim], 2).data;
      const norms = [0, 1].map(() =>
        toF32(random.tensor("bf16", [headDim], 4))
      );
      const attend = (plant?: Parameters<typeof attention>[5]) =>
        attention(config, qkv, norms, [{ k: [], v: [] }], 40, plant);
      const right = attend();
      const mistakes: Parameters<typeof attention>[5][] = [
        (score) => 1.001 * score,
        (score, key) => key === 20 ? -1e9 : score,
        (score, key) => key === 20 ? score + 0.1 : score,
      ];
      for (const mistake of mistakes) {
        const { values } = attend(mistake);
        assertThrows(() => assertAttended(values, right), AssertionError);
      }
    },
  );
}

test(
  "attention of a prompt in chunks equals that of one pass",
  (make, fill) => {
    const ops = make({
      numAttentionHeads: 4,
      numKeyValueHeads: 2,
      headDim: 32,
    });
    const width = 8 * 32, tokens = 61;
    const qkv = fill(ops, "f32", [tokens, width], 2);
    const norm = fill(ops, "f32", [32]);
    const attend = (chunks: number[]) => {
      const cache = ops.createCache(1, tokens);
      let begin = 0;
      return chunks.flatMap((size) => {
        const data = qkv.data.subarray(begin * width, (begin += size) * width);
        cache.begin({ first: 0, sequences: 1, tokens: size });
        const y = ops.attend(
          { dtype: "f32", shape: [size, width], data },
          matrixOf(norm),
          matrixOf(norm),
          cache,
          0,
        );
        cache.advance();
        return [...y.data];
      });
    };
    const whole = attend([tokens]);
    assertAllClose(attend([1, 1, 2, 20, 37]), whole, {
      absolute: 1e-6,
      relative: 1e-6,
    });
  },
);

// The last has more keys than are unpacked at a time.
for (
  const [headDim, most, heads, kvHeads, paged = false] of [
    [32, 40, 6, 2],
    [96, 60, 6, 3],
    [128, 256, 2, 1],
    [128, 256, 2, 1, true],
  ] as const
) {
  test(
    `attention over a cache in q8_0 of heads of ${headDim}${
      paged ? ", paged" : ""
    }`,
    (make, fill) => {
      const changes = {
        numAttentionHeads: heads,
        numKeyValueHeads: kvHeads,
        headDim,
      };
      const ops = make(changes), context = most + 30;
      const width = (heads + 2 * kvHeads) * headDim;
      const config = { ...ODD, ...changes };
      const norms = [0, 1].map(() => fill(ops, "bf16", [headDim], 4));
      const cache = makeCache(ops, [2, context], "q8_0", paged);
      const cached = [0, 1].map(() => ({
        k: [] as number[][],
        v: [] as number[][],
      }));
      const passes = [
        [0, 1, 5],
        [1, 1, most],
        [0, 2, 1],
        [0, 2, 13],
        [1, 1, 1],
      ];
      for (const [first, sequences, tokens] of passes) {
        const qkv = fill(ops, "f32", [sequences * tokens, width], 2);
        cache.begin({ first, sequences, tokens });
        const y = ops.attend(
          qkv,
          matrixOf(norms[0]),
          matrixOf(norms[1]),
          cache,
          1,
        );
        const expected = attention(
          config,
          qkv.data,
          norms.map(toF32),
          cached.slice(first, first + sequences),
          tokens,
          undefined,
          quantizedIn(cache, { first, kvHeads, headDim }),
        );
        const what = `sequences ${first}+${sequences}, ${tokens} tokens`;
        assertAttended(y.data, expected, what);
        cache.advance();
      }
    },
  );
}

test("lastRow returns the last token of each sequence", (make, fill) => {
  const ops = make();
  const x = fill(ops, "f32", [6, 80]);
  startPass(ops);
  const last = [...x.data.subarray(5 * 80)];
  const cache = ops.createCache(2, 6);
  cache.begin({ first: 0, sequences: 1, tokens: 6 });
  assertEquals([...ops.lastRow(x, cache).data], last);
  cache.begin({ first: 0, sequences: 2, tokens: 3 });
  assertEquals([...ops.lastRow(x, cache).data], [
    ...x.data.subarray(2 * 80, 3 * 80),
    ...last,
  ]);
});

test("normRows norms the rows that are named, in that order", (make, fill) => {
  const ops = make();
  const x = fill(ops, "f32", [6, 80]), norm = fill(ops, "f32", [80]);
  startPass(ops);
  const pick = (...rows: number[]): CpuTensor => ({
    dtype: "u32",
    shape: [rows.length],
    data: Uint32Array.from(rows),
  });
  const expected = [5, 0, 3].flatMap((row) => {
    const values = [...x.data.subarray(row * 80, (row + 1) * 80)];
    const squares = values.reduce((sum, value) => sum + value * value, 0);
    const scale = 1 / Math.sqrt(squares / 80 + ODD.rmsNormEps);
    return values.map((value, i) => value * scale * norm.data[i]);
  });
  const close = { absolute: 1e-6, relative: 1e-6 };
  const actual = ops.normRows(x, pick(5, 0, 3), matrixOf(norm));
  assertEquals(actual.shape, [3, 80]);
  assertAllClose(toF32(actual), expected, close);
  assertThrows(
    () => ops.normRows(x, pick(6), matrixOf(norm)),
    Error,
    "Cannot take row 6 of [6, 80]: must be less than 6",
  );
});

test(
  "results are kept until a verb is called for rows as wide",
  (make, fill) => {
    const ops = make();
    const w = matrixOf(fill(ops, "bf16", [8, 80]));
    const other = matrixOf(fill(ops, "bf16", [9, 80]));
    const norm = matrixOf(fill(ops, "f32", [80]));
    const x = fill(ops, "f32", [2, 80]);
    const one = ops.normMatmul(x, norm, w), copy = one.data.slice();
    ops.normMatmul(fill(ops, "f32", [2, 80]), norm, other);
    ops.normSwiglu(fill(ops, "f32", [2, 80]), norm, w);
    ops.normRows(
      x,
      { dtype: "u32", shape: [1], data: new Uint32Array(1) },
      norm,
    );
    startPass(ops);
    assertEquals(one.data, copy);
    const two = ops.normMatmul(fill(ops, "f32", [1, 80]), norm, w);
    assert(two.data.buffer === one.data.buffer); // memory is used again
    assert(two.data.byteOffset === one.data.byteOffset);
  },
);

test("a disposed cache is reused by the next one", (make) => {
  const ops = make();
  ops.createCache(2, 64)[Symbol.dispose]();
  const cache = ops.createCache(1, 64);
  assertEquals(cache.layers.length, 2);
  assertEquals(cache.layers[0].k.shape, [1, 1, 64, 16]);
  assertEquals(ops.tensor("f32", [64]).data, new Float32Array(64));
});

test("invalid calls are refused with their shapes", (make) => {
  const ops = make();
  const tensor = (...shape: number[]) => ops.tensor("f32", shape);
  const matrix = (...shape: number[]) => matrixOf(tensor(...shape));
  const fails = (body: () => unknown, message: string) =>
    assertThrows(body, Error, message);
  const token = {
    dtype: "u32",
    shape: [1],
    data: Uint32Array.of(500),
  } as const;
  fails(
    () => ops.embed(matrix(500, 8), token),
    "Cannot embed token 500: ids must be less than 500",
  );
  fails(
    () => ops.matmulAdd(tensor(2, 8), matrix(3, 9), tensor(2, 3)),
    "Cannot multiply: x is [2, 8], w is [3, 9]",
  );
  fails(
    () => ops.matmulAdd(tensor(2, 8), matrix(3, 8), tensor(3, 3)),
    "its shape is [3, 3], must be [2, 3]",
  );
  fails(
    () => ops.normMatmul(tensor(2, 8), matrix(9), matrix(3, 8)),
    "Cannot norm rows of 8 with matrix: it has 9 elements, must have 8",
  );
  const cache = ops.createCache(2, 4);
  cache.begin({ first: 0, sequences: 2, tokens: 2 });
  fails(
    () => ops.attend(tensor(3, 8 * 16), matrix(16), matrix(16), cache, 0),
    "Cannot attend: there are 3 rows, must be 2 tokens × 2 sequences",
  );
});

test(
  "where no memory is left for a larger result, the smaller one stays",
  (make, fill) => {
    const ops = make();
    const norm = matrixOf(fill(ops, "f32", [80]));
    const w = matrixOf(fill(ops, "bf16", [8, 80]));
    const few = fill(ops, "f32", [40, 80]), many = fill(ops, "f32", [9000, 80]);
    const expected = ops.normMatmul(few, norm, w).data.slice();
    const { grow } = WebAssembly.Memory.prototype;
    WebAssembly.Memory.prototype.grow = function (pages) {
      if (pages > 0) throw new RangeError("no memory is left");
      return grow.call(this, pages);
    };
    try {
      for (let time = 0; time < 2; time++) {
        try {
          ops.normMatmul(many, norm, w); // plain TypeScript needs no such memory
        } catch (error) {
          assert(error instanceof MemoryError, `${error}`);
        }
      }
    } finally {
      WebAssembly.Memory.prototype.grow = grow;
    }
    const mine = ops.tensor("f32", [4, 80]);
    mine.data.fill(7);
    assertEquals(ops.normMatmul(few, norm, w).data, expected);
    assert(mine.data.every((value) => value === 7));
  },
);
