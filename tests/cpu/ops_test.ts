import { matrixOf } from "../../lib/formats/matrix.ts";
import { assertEquals, assertThrows } from "@std/assert";
import { assertAllClose } from "../support/assert_all_close.ts";
import type { Qwen3Config } from "../../lib/checkpoint/config.ts";
import { f32ToBf16Bits, f32ToF16Bits } from "../../lib/dtype.ts";
import { toF32 } from "../../lib/cpu/tensor.ts";
import { CpuOps, type CpuOptions, type CpuTensor } from "../../lib/cpu/ops.ts";
import { ropeFrequencies } from "../../lib/model/rope.ts";

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

/** A test for each implementation, with the seed in every failure. */
function test(
  name: string,
  body: (make: MakeOps, random: Random) => void,
): void {
  for (const [kernel, options] of Object.entries(KERNELS)) {
    Deno.test(`${kernel}: ${name}`, () => {
      const seed = Math.floor(Math.random() * 2 ** 32);
      using stack = new DisposableStack();
      const make: MakeOps = (changes) =>
        stack.use(new CpuOps({ ...ODD, ...changes }, options));
      try {
        body(make, new Random(seed));
      } catch (error) {
        throw new Error(`with seed ${seed}`, { cause: error });
      }
    });
  }
}

type MakeOps = (changes?: Partial<Qwen3Config>) => CpuOps;

/** Numbers that a seed reproduces (xorshift32). */
class Random {
  constructor(private state: number) {
    this.state ||= 1;
  }

  /** Between -1 and 1. */
  next(): number {
    this.state ^= this.state << 13;
    this.state ^= this.state >>> 17;
    this.state ^= this.state << 5;
    return this.state / 2 ** 31;
  }

  tensor(
    ops: CpuOps,
    dtype: "f32" | "f16" | "bf16",
    shape: number[],
    scale = 1,
  ): CpuTensor {
    const tensor = ops.tensor(dtype, shape);
    const encode =
      { f32: Math.fround, f16: f32ToF16Bits, bf16: f32ToBf16Bits }[dtype];
    for (let i = 0; i < tensor.data.length; i++) {
      tensor.data[i] = encode(scale * this.next());
    }
    return tensor;
  }
}

/** Makes a pass with NaN in the results that the next pass will use again. */
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

test("embed takes rows of the table", (make, random) => {
  const ops = make();
  for (const dtype of WEIGHTS) {
    const table = random.tensor(ops, dtype, [500, 80]);
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
  test(`products of ${rows} rows`, (make, random) => {
    const ops = make();
    for (const dtype of WEIGHTS) {
      for (const [n, k] of [[500, 80], [1, 7], [37, 1030], [130, 16]]) {
        const message = `${dtype} [${n}, ${k}]`;
        const x = random.tensor(ops, "f32", [rows, k], 3);
        const norm = random.tensor(ops, dtype, [k]);
        const w = random.tensor(ops, dtype, [n, k], k ** -0.5);
        const gateUp = random.tensor(ops, dtype, [2 * n, k], 3 * k ** -0.5);
        const residual = random.tensor(ops, "f32", [rows, n]);

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

test("extreme weights: infinities, subnormals, and NaN beyond the last column", (make) => {
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

/** What `attend` must give, in float64, with keys and values in `cached` per sequence. */
function attention(
  config: Qwen3Config,
  qkv: ArrayLike<number>,
  [qNorm, kNorm]: Float32Array[],
  cached: { k: number[][]; v: number[][] }[],
  tokens: number,
): number[] {
  const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim } =
    config;
  const { inverse, scale } = ropeFrequencies(config);
  const half = headDim / 2;
  const rotated = (head: number[], position: number) =>
    head.map((value, i) => {
      const angle = position * inverse[i % half];
      const other = i < half ? -head[i + half] : head[i - half];
      return scale * (value * Math.cos(angle) + other * Math.sin(angle));
    });
  const width = (heads + 2 * kvHeads) * headDim;
  const out: number[] = [];
  for (let r = 0; r < qkv.length / width; r++) {
    const { k, v } = cached[Math.floor(r / tokens)];
    const position = k.length / kvHeads;
    const row = Array.from({ length: width }, (_, i) => qkv[r * width + i]);
    const part = (h: number) => row.slice(h * headDim, (h + 1) * headDim);
    for (let h = 0; h < kvHeads; h++) {
      k.push(rotated(rmsNorm(part(heads + h), kNorm), position));
      v.push(part(heads + kvHeads + h));
    }
    for (let h = 0; h < heads; h++) {
      const q = rotated(rmsNorm(part(h), qNorm), position);
      const mine = (_: unknown, i: number) =>
        i % kvHeads === Math.floor(h * kvHeads / heads);
      const weights = k.filter(mine).map((key) =>
        Math.exp(
          key.reduce((sum, x, i) => sum + x * q[i], 0) / Math.sqrt(headDim),
        )
      );
      const total = weights.reduce((a, b) => a + b);
      for (let d = 0; d < headDim; d++) {
        out.push(
          v.filter(mine).reduce((sum, x, p) => sum + weights[p] * x[d], 0) /
            total,
        );
      }
    }
  }
  return out;
}

for (
  const [heads, kvHeads, headDim] of [[6, 1, 16], [4, 2, 64], [3, 3, 10], [
    8,
    2,
    6,
  ], [1, 1, 2]]
) {
  test(
    `attention of ${heads} heads on ${kvHeads} of ${headDim}`,
    (make, random) => {
      const changes = {
        numAttentionHeads: heads,
        numKeyValueHeads: kvHeads,
        headDim,
      };
      const config = { ...ODD, ...changes };
      const ops = make(changes);
      const width = (heads + 2 * kvHeads) * headDim;
      const norms = [0, 1].map(() => random.tensor(ops, "bf16", [headDim], 4));
      const floats = norms.map(toF32);
      const cache = ops.createCache(3, 90);
      for (const { k, v } of cache.layers) k.data.fill(NaN), v.data.fill(NaN);
      const cached = [0, 1, 2].map(() => ({
        k: [] as number[][],
        v: [] as number[][],
      }));

      // Sequences of different lengths, then appended to together, one token and a few at a time.
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
        const qkv = random.tensor(ops, "f32", [sequences * tokens, width], 2);
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
        assertAllClose(
          y.data,
          expected,
          CLOSE,
          `sequences ${first}+${sequences}, ${tokens} tokens`,
        );
        cache.advance();
      }
      assertEquals(cache.layers[0].k.data.every(Number.isNaN), true); // only layer 1 was written
    },
  );
}

test("a prompt in chunks is attended as in one pass", (make, random) => {
  const ops = make({ numAttentionHeads: 4, numKeyValueHeads: 2, headDim: 32 });
  const width = 8 * 32, tokens = 61;
  const qkv = random.tensor(ops, "f32", [tokens, width], 2);
  const norm = random.tensor(ops, "f32", [32]);
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
});

test("lastRow takes the last token of each sequence", (make, random) => {
  const ops = make();
  const x = random.tensor(ops, "f32", [6, 80]);
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

test("results keep their values until the next pass", (make, random) => {
  const ops = make();
  const w = matrixOf(random.tensor(ops, "bf16", [8, 80]));
  const norm = matrixOf(random.tensor(ops, "f32", [80]));
  startPass(ops);
  const one = ops.normMatmul(random.tensor(ops, "f32", [2, 80]), norm, w);
  const copy = one.data.slice();
  ops.normMatmul(random.tensor(ops, "f32", [2, 80]), norm, w);
  assertEquals(one.data, copy);
});

test("a disposed cache gives its memory to the next one", (make) => {
  const ops = make();
  ops.createCache(2, 64)[Symbol.dispose]();
  const cache = ops.createCache(1, 64);
  assertEquals(cache.layers.length, 2);
  assertEquals(cache.layers[0].k.shape, [1, 1, 64, 16]);
  assertEquals(ops.tensor("f32", [64]).data, new Float32Array(64));
});

test("mistakes are named", (make) => {
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
