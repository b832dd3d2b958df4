/**
 * Rounds rows of x to 16 bits per group, so that quants multiply as integers: in one
 * instruction eight or 16 of them, and not four. Sums of a group are exact, however they
 * are computed.
 *
 * @module
 */
import type { SimdBlocks } from "../formats/format.ts";
import {
  branch,
  type Code,
  f32,
  f32x4,
  FunctionBuilder,
  i16x8,
  i32,
  i32x4,
  i8x16,
  increase,
  type Local,
  loop,
  times,
  v128,
} from "./assembler.ts";

/**
 * The largest element of a group that is rounded, in the squared mean of the roots of its
 * elements' sizes. In a mean of the sizes themselves, two outliers would hide each other;
 * here one beside 31 small elements is 1024 times as large, and each of six 28 times, as
 * is each of three in a group of 16. Rounding moves an element by at most 1.5e-5 of the
 * largest, 4e-4 of that mean; in groups of normally distributed elements, by 5e-5 of it.
 */
export const MOST_OUTLYING = 28;

/** Name of the kernel that rounds rows of x; the last number is that of {@linkcode bitsOf}. */
export const roundRowName = (
  blocks: SimdBlocks,
): `roundRow_${number}_${number}_${number}` =>
  `roundRow_${blocks.group}_${spanOf(blocks)}_${bitsOf(blocks)}`;

/** Name of the kernel that rounds rows of x to words, whatever others do. */
export const roundWordsName = (
  blocks: SimdBlocks,
): `roundWords_${number}_${number}` =>
  `roundWords_${blocks.group}_${spanOf(blocks)}`;

/** Whether blocks are multiplied as wasm_super_blocks.ts says. */
export const isSuper = (blocks: SimdBlocks): boolean =>
  blocks.integers !== undefined;

/** Bits that quants take as integers that are not negative: 7 at most, or 8. */
export const bitsOf = ({ values }: SimdBlocks): 7 | 8 =>
  isShifted(values) && values.length <= 128 ? 7 : 8;

/** Whether the value of a quant is the quant plus the value of quant 0. */
export const isShifted = (values: readonly number[]): boolean =>
  values.every((value, quant) => value === quant + values[0]);

/** How rounded elements of x are stored. */
export type Rounding =
  /** As i16. */
  | "words"
  /** Of each 16, first the upper bytes, then the lower ones, both signed. */
  | "bytes";

/** Elements that a step of `dotBlocks` multiplies, all as integers or all in f32. */
export const spanOf = (blocks: SimdBlocks): number =>
  isSuper(blocks) ? blocks.elements : Math.max(blocks.unit, blocks.group);

/** Bytes that `roundRow` writes after a row of `k` elements; see {@linkcode Rounded}. */
export const roundedBytes = (blocks: SimdBlocks, k: number): number =>
  isSuper(blocks)
    ? 2 * k + 4 * k / blocks.group + 4 * k / blocks.elements
    : 2 * k + 2 * 16 * Math.ceil(k / blocks.group / 4) + 16 +
      16 * k / blocks.group + 4 * k / spanOf(blocks);

/** Makes up for values of quants being in the upper bytes of words. */
export const UPPER = 2 ** -24;
/** The largest rounded element: the largest that two signed bytes can make. */
export const LARGEST = 127 * 256 + 127;
/**
 * The range of the largest element of a rounded group: smaller ones are rounded as if one
 * were as large, and larger ones are not rounded.
 */
export const LEAST = 1e-30;

/** Addresses in what `roundRow` writes after a row of x: */
export class Rounded {
  /** the elements, as {@linkcode Rounding} says, */
  readonly quants: Code;
  /** a factor of each group: its scale, or {@link UPPER} if it stays in f32, */
  readonly factors: Code;
  /** the sum of each group, then a vector of zeros, */
  readonly sums: Code;
  /** four numbers for each group whose sum is that of its rounded elements, */
  readonly totals: Code;
  /** and whether each span is rounded. */
  readonly spans: Code;

  constructor({ group }: SimdBlocks, x: Code, k: Code, bytes: Code) {
    this.quants = i32.add(x, i32.shl(k, i32.const(2)));
    this.factors = i32.add(this.quants, i32.shl(k, i32.const(1)));
    this.sums = i32.add(this.factors, bytes);
    this.totals = i32.add(this.sums, i32.add(bytes, i32.const(16)));
    this.spans = i32.add(
      this.totals,
      i32.shrUnsigned(k, i32.const(Math.log2(group) - 4)),
    );
  }
}

/** Bytes of the factors of `k` elements, in whole vectors. */
export function factorBytes({ group }: SimdBlocks, k: Code): Code {
  const four = 4 * group;
  const vectors = i32.shrUnsigned(
    i32.add(k, i32.const(four - 1)),
    i32.const(Math.log2(four)),
  );
  return i32.shl(vectors, i32.const(4));
}

/** What is known of a group: its largest size, or its scale, and its sum. */
interface Group {
  /** The group's index in its span. */
  g: number;
  factor: Local;
  sum: Local;
}

/** The code for one group. */
class GroupRounder {
  readonly #vectors: Local[];

  /** `at` is where the span begins, `group` the elements of a group. */
  constructor(
    readonly f: FunctionBuilder<string>,
    readonly at: Local,
    readonly group: number,
    readonly rounding: Rounding,
  ) {
    this.#vectors = times(6, () => f.local("v128"));
  }

  /** Measures a group, and clears `rounded` if it must not be rounded. */
  measure({ g, factor, sum }: Group, rounded: Local, most: Local): Code[] {
    const { f } = this, [largest, size, total, four] = this.#vectors;
    const roots = lanes(f32.add, size);
    const tame = [
      f32.lessEqual(
        f32.mul(factor.get, f32.const(this.group ** 2)),
        f32.mul(f32.mul(roots, roots), most.get),
      ),
      f32.lessEqual(factor.get, f32.const(1 / LEAST)),
    ];
    return [
      ...[largest, size, total].map((local) => local.set(f.floats(0))),
      ...times(this.group / 4, (i) => [
        four.set(this.#four(g, i)),
        total.set(f32x4.add(total.get, four.get)),
        four.set(f32x4.abs(four.get)),
        largest.set(f32x4.max(largest.get, four.get)),
        size.set(f32x4.add(size.get, f32x4.sqrt(four.get))),
      ]).flat(),
      factor.set(lanes(f32.max, largest)),
      sum.set(lanes(f32.add, total)),
      ...tame.map((is) => rounded.set(i32.and(rounded.get, is))),
    ];
  }

  /** Rounds a measured group to `quants` and `totals`, and sets its scale and sum. */
  round({ g, factor, sum }: Group, quants: Local, totals: Local): Code[] {
    const { f } = this, [low, high, total, scale, ...both] = this.#vectors;
    const integers = (i: number) =>
      i32x4.truncate(f32x4.nearest(f32x4.mul(this.#four(g, i), scale.get)));
    return [
      factor.set(f32.max(factor.get, f32.const(LEAST))),
      scale.set(f32x4.splat(f32.div(f32.const(LARGEST), factor.get))),
      total.set(f.ints(0)),
      ...times(this.group / 16, (t) => [
        ...both.flatMap((eight, i) => [
          low.set(integers(4 * t + 2 * i)),
          high.set(integers(4 * t + 2 * i + 1)),
          total.set(i32x4.add(total.get, i32x4.add(low.get, high.get))),
          eight.set(i16x8.narrow(low.get, high.get)),
        ]),
        ...this.#stored(both).map((half, i) =>
          v128.store(2 * (g * this.group + 16 * t + 8 * i))(quants.get, half)
        ),
      ]).flat(),
      v128.store(16 * g)(totals.get, total.get),
      factor.set(f32.div(factor.get, f32.const(LARGEST))),
      total.set(f32x4.convert(total.get)),
      sum.set(f32.mul(lanes(f32.add, total), factor.get)),
    ];
  }

  /** 16 elements as they are stored, in two vectors. */
  #stored(both: readonly Local[]): Code[] {
    return this.rounding === "words"
      ? both.map(({ get }) => get)
      : twoBytes(this.f, both);
  }

  /** Elements 4 · i to 4 · i + 3 of group g. */
  #four(g: number, i: number): Code {
    return v128.load(4 * (g * this.group + 4 * i))(this.at.get);
  }
}

/** The upper bytes of 16 words in two vectors, then the lower ones, both signed. */
export function twoBytes(
  f: FunctionBuilder<string>,
  words: readonly Local[],
): Code[] {
  const bits = i32.const(8);
  const bytes = (of: (eight: Code) => Code) => {
    const [a, b] = words.map(({ get }) => i16x8.shiftRight(of(get), bits));
    return i8x16.narrow(a, b);
  };
  return [
    // What the lower byte makes less, the upper one makes up for.
    bytes((eight) => i16x8.add(eight, f.ints(0x00800080))),
    bytes((eight) => i16x8.shiftLeft(eight, bits)),
  ];
}

/** The lanes of a vector, combined. */
export const lanes = (combine: typeof f32.add, { get }: Local): Code =>
  [0, 1, 2, 3].map((lane) => f32x4.lane(lane)(get))
    .reduce((a, b) => combine(a, b));

/**
 * Builds `WasmKernels.roundRow_…`. A span is rounded if no group has an element larger
 * than `most` times the mean of {@linkcode MOST_OUTLYING}.
 */
export function roundRow(
  blocks: SimdBlocks,
  rounding: Rounding,
  name: string = roundRowName(blocks),
) {
  const { group } = blocks, span = spanOf(blocks);
  const f = new FunctionBuilder(name, {
    x: "i32",
    k: "i32",
    most: "f32",
  });
  const { x, k, most } = f.parameters;
  const [at, end, rounded, bytes] = times(4, () => f.local("i32"));
  const [quants, factors, sums] = times(3, () => f.local("i32"));
  const [totals, spans] = times(2, () => f.local("i32"));
  const groups = times(span / group, (g): Group => ({
    g,
    factor: f.local("f32"),
    sum: f.local("f32"),
  }));
  const rounder = new GroupRounder(f, at, group, rounding);
  const to = new Rounded(blocks, x.get, k.get, bytes.get);
  return f.finish([
    bytes.set(factorBytes(blocks, k.get)),
    quants.set(to.quants),
    factors.set(to.factors),
    sums.set(to.sums),
    totals.set(to.totals),
    spans.set(to.spans),
    at.set(x.get),
    end.set(quants.get),
    loop(i32.lessUnsigned(at.get, end.get), [
      rounded.set(i32.const(1)),
      ...groups.flatMap((group) => rounder.measure(group, rounded, most)),
      i32.store()(spans.get, rounded.get),
      branch(
        rounded.get,
        groups.flatMap((group) => rounder.round(group, quants, totals)),
        groups.map(({ factor }) => factor.set(f32.const(UPPER))),
      ),
      ...groups.flatMap(({ g, factor, sum }) => [
        f32.store(4 * g)(factors.get, factor.get),
        f32.store(4 * g)(sums.get, sum.get),
      ]),
      increase(at, 4 * span),
      increase(quants, 2 * span),
      ...[factors, sums].map((local) => increase(local, 4 * groups.length)),
      increase(totals, 16 * groups.length),
      increase(spans, 4),
    ]),
    v128.store()(sums.get, f.floats(0)),
  ]);
}
