/**
 * The matmul of many rows for vectors of 256 bits.
 *
 * WebAssembly has vectors of 128 bits. If V8 is asked to, on x86 with AVX2, it joins pairs
 * of operations, which doubles their speed. Its conditions decide how this file is
 * written. Two loads are joined only without a bounds check between them, and Deno always
 * checks, so no pair comes from two loads: eight weights are eight half words of one load,
 * widened in two halves, and an element of x is copied to all lanes. V8 begins its search
 * for pairs at a sum of integers, so there is one. Without V8's help the results are the
 * same, but slower than those of the kernels for 128 bits.
 *
 * @module
 */
import {
  branch,
  type Code,
  f32x4,
  FunctionBuilder,
  i16x8,
  i32,
  i32x4,
  increase,
  type Local,
  loop,
  min,
  times,
  v128,
} from "./assembler.ts";
import type { MulAdd } from "./wasm_attention.ts";

/** Rows of w that are multiplied at once. */
export const WIDE_COLUMNS = 16;
/** Rows of x that are: 12 sums, two vectors of w and one of x fit the registers, see TILE. */
const WIDE_ROWS = 6;
/** Columns of x that are loaded at once. */
const STEP = 4;

/** Elements of transposed columns: of an f32, both half words; a bf16 is the upper one. */
type Columns = "bf16" | "f32";

/** Half words of an element. */
const HALVES = { bf16: 1, f32: 2 } as const;

/** Bytes of a column of WIDE_COLUMNS elements. */
export const columnBytes = (columns: Columns): number =>
  2 * HALVES[columns] * WIDE_COLUMNS;

/**
 * Transposes `n` rows of w, up to WIDE_COLUMNS of them, `rowBytes` apart, in steps of eight
 * columns; the last `width % 8` are followed by zeros. A column has the upper half words of
 * eight rows, their lower half words if elements have them, then the same of eight more.
 * What stands for rows past `n` means nothing.
 */
type Transpose = (
  w: number,
  rowBytes: number,
  n: number,
  width: number,
  tailMask: number,
  out: number,
) => void;

/** `y = x · wᵀ` for `k` transposed columns of w, a multiple of 8; adds to y if `add`. */
export type WideTiles = (
  x: number,
  xBytes: number,
  rows: number,
  w: number,
  k: number,
  y: number,
  yBytes: number,
  add: number,
) => void;

/** What a module for vectors of 256 bits exports. */
export type WideKernels =
  & Record<`transpose_${Columns}`, Transpose>
  & Record<`wideTiles_${Columns}`, WideTiles>;

/** Those kernels, if the module has them. */
export const wideOf = (
  kernels: Partial<WideKernels>,
): WideKernels | undefined => kernels.wideTiles_f32 && kernels as WideKernels;

/** All of them. */
export const wideKernels = (mulAdd: MulAdd) =>
  (["bf16", "f32"] as const).flatMap((columns) => [
    transpose(columns),
    wideTiles(columns, mulAdd),
  ]);

const interleave = [0, 8, 1, 9, 2, 10, 3, 11];

/** Transposes eight vectors of eight half words in place. */
export function transposeEight(rows: readonly Local[], spare: Local): Code[] {
  const zip = (a: Local, b: Local): Code[] => [
    spare.set(i16x8.shuffle(...interleave)(a.get, b.get)),
    b.set(i16x8.shuffle(...interleave.map((half) => half + 4))(a.get, b.get)),
    a.set(spare.get),
  ];
  return [4, 2, 1].flatMap((apart) =>
    rows.flatMap((row, r) => r & apart ? [] : zip(row, rows[r + apart]))
  );
}

function transpose(columns: Columns) {
  const f = new FunctionBuilder(`transpose_${columns}`, {
    w: "i32",
    rowBytes: "i32",
    n: "i32",
    width: "i32",
    tailMask: "i32",
    out: "i32",
  });
  const { w, rowBytes, n, width, tailMask, out } = f.parameters;
  const [from, end, last] = times(3, () => f.local("i32"));
  const halves = HALVES[columns], bytes = columnBytes(columns);
  const vectors = times(halves, () => times(8, () => f.local("v128")));
  const [a, b] = times(2, () => f.local("v128"));

  /** Loads eight elements of row `r` of each group, masked by those at `mask`. */
  const load = (r: number, mask?: Code): Code[] => {
    const masked = (byte: number) => {
      const value = v128.load(byte)(from.get);
      return mask ? v128.and(value, v128.load(byte)(mask)) : value;
    };
    if (columns === "f32") {
      return [
        a.set(masked(0)),
        b.set(masked(16)),
        ...vectors.map((own, h) =>
          own[r].set(
            i16x8.shuffle(...times(8, (i) => 2 * i + 1 - h))(a.get, b.get),
          )
        ),
      ];
    }
    const value = v128.load()(from.get);
    const words = mask && [0, 16].map((byte) => v128.load(byte)(mask));
    return [
      vectors[0][r].set(
        words ? v128.and(value, i16x8.narrow(...words)) : value,
      ),
    ];
  };
  const eight = (mask?: Code): Code[] => [
    from.set(w.get),
    ...times(WIDE_COLUMNS / 8, (group) => [
      ...times(8, (r) => [
        ...load(r, mask),
        from.set(min(i32.add(from.get, rowBytes.get), last.get)),
      ]).flat(),
      ...vectors.flatMap((own, h) => [
        ...transposeEight(own, a),
        ...own.map(({ get }, column) =>
          v128.store(column * bytes + 16 * (group * halves + h))(out.get, get)
        ),
      ]),
    ]).flat(),
    increase(w, 16 * halves),
    increase(last, 16 * halves),
    increase(out, 8 * bytes),
  ];
  const elements = i32.and(width.get, i32.const(-8));
  const shift = i32.const(Math.log2(2 * halves));
  return f.finish([
    end.set(i32.add(w.get, i32.shl(elements, shift))),
    last.set(
      i32.add(w.get, i32.mul(rowBytes.get, i32.sub(n.get, i32.const(1)))),
    ),
    loop(i32.lessUnsigned(w.get, end.get), eight()),
    branch(tailMask.get, eight(tailMask.get)),
  ]);
}

/** Loads columns of weights from `at` on, each as pairs of f32x4. */
function columnLoader(
  f: FunctionBuilder<string>,
  columns: Columns,
  at: Local,
): { weights: Local[][]; load(column: number): Code[] } {
  const halves = HALVES[columns];
  const words = times(halves, () => f.local("v128"));
  const pair = () => times(2, () => f.local("v128"));
  const weights = times(WIDE_COLUMNS / 8, pair);
  const load = (column: number, group: number) =>
    words.map((own, h) => {
      const byte = column * columnBytes(columns) + 16 * (group * halves + h);
      return own.set(v128.load(byte)(at.get));
    });
  const widened = (half: number): Code => {
    const [upper, lower] = words.map(({ get }) =>
      i32x4.extendUnsigned[half](get)
    );
    const shifted = i32x4.shiftLeft(upper, i32.const(16));
    return lower ? v128.or(shifted, lower) : shifted;
  };
  return {
    weights,
    load: (column) =>
      weights.flatMap((pair, group) => [
        ...load(column, group),
        ...pair.map((weight, half) => weight.set(widened(half))),
      ]),
  };
}

/** Stores pairs of sums at `y`, added to what is there where `adds` has ones. */
function storePairs(
  f: FunctionBuilder<string>,
  row: readonly (readonly Local[])[],
  y: Local,
  adds: Local,
): Code[] {
  const zero = f.local("v128");
  return row.flatMap(([low, high], group) => [
    // V8 begins to look for pairs at a sum of integers.
    zero.set(v128.and(i32x4.add(low.get, high.get), f.ints(0))),
    ...[low, high].map((sum, half) => {
      const byte = 32 * group + 16 * half;
      const before = v128.and(v128.load(byte)(y.get), adds.get);
      const value = v128.or(sum.get, zero.get);
      return v128.store(byte)(y.get, f32x4.add(value, before));
    }),
  ]);
}

function wideTiles(columns: Columns, mulAdd: MulAdd) {
  const f = new FunctionBuilder(`wideTiles_${columns}`, {
    x: "i32",
    xBytes: "i32",
    rows: "i32",
    w: "i32",
    k: "i32",
    y: "i32",
    yBytes: "i32",
    add: "i32",
  });
  const { x, xBytes, rows, w, k, y, yBytes, add } = f.parameters;
  const [r, end, wAt] = times(3, () => f.local("i32"));
  const xAt = times(WIDE_ROWS, () => f.local("i32"));
  const xs = times(WIDE_ROWS, () => f.local("v128"));
  const copy = f.local("v128"), adds = f.local("v128");
  const { weights, load } = columnLoader(f, columns, wAt);
  const sums = times(
    WIDE_ROWS,
    () => weights.map((pair) => pair.map(() => f.local("v128"))),
  );

  /** Multiplies a column by `count` rows of x. */
  const multiply = (column: number, count: number): Code[] =>
    times(count, (i) => [
      // V8 makes one load of this that copies to all lanes.
      copy.set(f32x4.shuffle(...Array(4).fill(column))(xs[i].get, xs[i].get)),
      ...weights.flatMap((pair, group) =>
        pair.map((weight, half) => {
          const sum = sums[i][group][half];
          return sum.set(mulAdd(weight.get, copy.get, sum.get));
        })
      ),
    ]).flat();
  const tile = (count: number): Code[] => [
    ...times(
      count,
      (i) => xAt[i].set(i ? i32.add(xAt[i - 1].get, xBytes.get) : x.get),
    ),
    wAt.set(w.get),
    ...sums.slice(0, count).flat(2).map((sum) => sum.set(f.floats(0))),
    end.set(i32.add(x.get, i32.shl(k.get, i32.const(2)))),
    loop(i32.lessUnsigned(xAt[0].get, end.get), [
      ...times(count, (i) => xs[i].set(v128.load(0)(xAt[i].get))),
      ...times(STEP, (column) => [...load(column), ...multiply(column, count)])
        .flat(),
      ...times(count, (i) => increase(xAt[i], 4 * STEP)),
      increase(wAt, STEP * columnBytes(columns)),
    ]),
    ...sums.slice(0, count).flatMap((row) => [
      ...storePairs(f, row, y, adds),
      increase(y, yBytes.get),
    ]),
    increase(x, i32.mul(i32.const(count), xBytes.get)),
    increase(r, count),
  ];
  /** Tiles of `count` rows while there are as many. */
  const tiles = (count: number): Code =>
    loop(
      i32.lessUnsigned(i32.add(r.get, i32.const(count - 1)), rows.get),
      tile(count),
    );
  const whether = i32.lessUnsigned(i32.const(0), add.get);
  return f.finish([
    adds.set(i32x4.splat(i32.sub(i32.const(0), whether))),
    ...[WIDE_ROWS, 2, 1].map(tiles),
  ]);
}
