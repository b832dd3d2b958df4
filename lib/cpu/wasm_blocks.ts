/**
 * The WebAssembly kernels for formats of quantized blocks. A row of x is rounded to 16
 * bits per group, so that quants multiply as integers, except where a group has an
 * outlier, beside which the others would be lost; there, or if asked to be exact, they
 * multiply in f32.
 *
 * @module
 */
import type { Format, SimdBlocks, SimdReader } from "../formats/format.ts";
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
import { DOT_ROWS, FarRows, SimdWriter } from "./simd_code.ts";
import type { MulAdd } from "./wasm_attention.ts";

/** A format of blocks that the kernels can read. */
export type BlockFormat = Format & { readonly simd: SimdBlocks };

/** Whether a format that the kernels can read is one of blocks. */
export const isBlocks = (
  format: Format & { readonly simd: SimdReader | SimdBlocks },
): format is BlockFormat => "factors" in format.simd;

/** Instructions that relaxed SIMD has a faster form of. */
export interface Relaxed {
  mulAdd: MulAdd;
  /** `i8x16.swizzle`, with indices below 16 or from 128 on. */
  swizzle: (bytes: Code, indices: Code) => Code;
}

/**
 * Bytes of work space that `dotBlocks` takes: for its rows, what minimums add to y, and
 * the rows' factors.
 */
export const dotScratch = ({ group }: SimdBlocks, k: number): number =>
  DOT_ROWS * 16 * (1 + Math.ceil(k / group / 4));

/**
 * The largest element of a group that is rounded, in mean sizes of its elements. Rounding
 * moves an element by at most 1.5e-5 of the largest, 2.4e-4 of the mean; in groups of
 * normally distributed elements, by 3e-5 of it.
 */
export const MOST_OUTLYING = 16;

/** Name of the kernel that rounds rows of x. */
export const roundRowName = (
  blocks: SimdBlocks,
): `roundRow_${number}_${number}` =>
  `roundRow_${blocks.group}_${spanOf(blocks)}`;

/** Elements that a step of `dotBlocks` multiplies, all as integers or all in f32. */
const spanOf = ({ unit, group }: SimdBlocks): number => Math.max(unit, group);

/** Bytes that `roundRow` writes after a row of `k` elements; see {@link Rounded}. */
export const roundedBytes = (blocks: SimdBlocks, k: number): number =>
  2 * k + 2 * 16 * Math.ceil(k / blocks.group / 4) + 16 +
  4 * k / spanOf(blocks);

/** Parameters: the addresses of the planes of quants, then of scales. */
const PLANES = ["w0", "w1", "w2", "w3"] as const;
type PlaneName = (typeof PLANES)[number];

/** Makes up for values being in the upper bytes of words. */
const UPPER = 2 ** -24;
/** The largest rounded element. */
const LARGEST = 32767;
/**
 * The range of the largest element of a rounded group: smaller ones are rounded as if one
 * were as large, and larger ones are not rounded.
 */
const LEAST = 1e-30;

/** Addresses in what `roundRow` writes after a row of x: */
class Rounded {
  /** the elements as i16, */
  readonly quants: Code;
  /** a factor of each group: its scale, or {@link UPPER} if it stays in f32, */
  readonly factors: Code;
  /** the sum of each group, then a vector of zeros, */
  readonly sums: Code;
  /** and whether each span is rounded. */
  readonly spans: Code;

  constructor(x: Code, k: Code, bytes: Code) {
    this.quants = i32.add(x, i32.shl(k, i32.const(2)));
    this.factors = i32.add(this.quants, i32.shl(k, i32.const(1)));
    this.sums = i32.add(this.factors, bytes);
    this.spans = i32.add(this.sums, i32.add(bytes, i32.const(16)));
  }
}

/** Bytes of the factors of `k` elements, in whole vectors. */
function factorBytes({ group }: SimdBlocks, k: Code): Code {
  const four = 4 * group;
  const vectors = i32.shrUnsigned(
    i32.add(k, i32.const(four - 1)),
    i32.const(Math.log2(four)),
  );
  return i32.shl(vectors, i32.const(4));
}

/** What kernels for one format have in common. */
class Reader<Parameter extends string> {
  readonly f: FunctionBuilder<Parameter | PlaneName>;
  /** The parameters with the addresses of the planes of quants, and of scales. */
  readonly quants: readonly Local[];
  readonly scales: readonly Local[];
  readonly #writer: SimdWriter;
  readonly #end: Local;

  constructor(
    name: string,
    parameters: readonly Parameter[],
    readonly format: BlockFormat,
    readonly relaxed: Relaxed,
  ) {
    const names = [...PLANES, ...parameters];
    this.f = new FunctionBuilder(
      name,
      Object.fromEntries(names.map((name) => [name, "i32"])) as Record<
        Parameter | PlaneName,
        "i32"
      >,
    );
    const { bits, scaleBytes } = format.simd;
    const planes = PLANES.map((name) => this.f.parameters[name]);
    this.quants = planes.slice(0, bits.length);
    this.scales = planes.slice(bits.length, bits.length + scaleBytes.length);
    this.#writer = new SimdWriter(this.f);
    this.#end = this.f.local("i32");
  }

  /** Sets `to` to row `row` of the planes. */
  toRow(
    to: { quants: readonly Local[]; scales: readonly Local[] },
    row: Code,
    k: Code,
  ): Code[] {
    const { bits, elements, scaleBytes } = this.format.simd;
    const eighths = i32.shrUnsigned(k, i32.const(3));
    const blocks = i32.shrUnsigned(k, i32.const(Math.log2(elements)));
    const set = (to: Local, from: Local, units: Code, bytes: number) =>
      to.set(
        i32.add(
          from.get,
          i32.mul(row, i32.mul(units, i32.const(bytes))),
        ),
      );
    return [
      ...to.quants.map((to, p) => set(to, this.quants[p], eighths, bits[p])),
      ...to.scales.map((to, p) =>
        set(to, this.scales[p], blocks, scaleBytes[p])
      ),
    ];
  }

  /** New locals for the planes. */
  locals(): { quants: Local[]; scales: Local[] } {
    const make = () => this.f.local("i32");
    return { quants: this.quants.map(make), scales: this.scales.map(make) };
  }

  /**
   * Reads the factors of `k` elements, from `planes` on. `take` gets those of four groups,
   * which belong `byte` bytes past `outs`. Moves all of these; `outs[0]` counts the loop.
   */
  factors(
    planes: readonly Local[],
    k: Code,
    tailMask: Local,
    outs: readonly [Local, ...Local[]],
    take: (scale: Code, min: Code | undefined, byte: number) => Code[],
  ): Code[] {
    const { format: { simd: blocks } } = this, end = this.#end, [out] = outs;
    const step = (mask?: Code): Code[] => {
      const { kept, values } = this.#writer.write((simd) =>
        blocks.factors<Code>(simd, (plane, as, byte = 0) => {
          const at = planes[plane].get;
          if (as === "words") return v128.load(byte)(at);
          if (as === "word") return v128.loadSplat32(byte)(at);
          if (as === "half") return v128.loadSplat16(byte)(at);
          if (as === "halves") return i32x4.loadHalves(byte)(at);
          const bytes = v128.loadZero32(byte)(at);
          return i32x4.extendLow(i16x8.extendLow(bytes));
        })
      );
      const masked = (value: Code) => mask ? v128.and(value, mask) : value;
      const elements = 4 * values.length * blocks.group;
      return [
        ...kept,
        ...values.flatMap(({ scale, min }, i) =>
          take(masked(scale), min && masked(min), 16 * i)
        ),
        ...planes.map((plane, i) =>
          increase(plane, blocks.scaleBytes[i] * elements / blocks.elements)
        ),
        ...outs.map((out) => increase(out, 16 * values.length)),
      ];
    };
    const shift = Math.log2(4 * blocks.group) - 4;
    const whole = i32.and(i32.shrUnsigned(k, i32.const(shift)), i32.const(-16));
    return [
      end.set(i32.add(out.get, whole)),
      loop(i32.lessUnsigned(out.get, end.get), step()),
      branch(tailMask.get, step(v128.load()(tailMask.get))),
    ];
  }

  /** The values of elements 16 · t to 16 · t + 15 from `planes` on, as signed bytes. */
  values(t: number, planes: readonly Local[]): Code {
    const { f, format: { simd: { bits, unit, values } } } = this;
    const quants = bits.map((own, p) => {
      const bytes = unit * own / 8, shared = 16 / bytes;
      const offset = Math.floor(t * 16 / unit) * bytes;
      const load = bytes === 16
        ? v128.load
        : bytes === 8
        ? v128.loadSplat64
        : v128.loadSplat32;
      const loaded = load(offset)(planes[p].get);
      if (own === 8) return loaded;
      // Element `bytes · s + i` is at bits `own · s` of byte i. If 16 elements have
      // different shifts, the first ones are moved to the place of the last.
      const aligned = shared === 1
        ? loaded
        : i16x8.mul(loaded, this.#moves(bytes, own));
      const at = own * (t % (unit / 16) * shared + shared - 1);
      const to = p === 0 ? 0 : bits[0];
      const moved = at === to
        ? aligned
        : at > to
        ? i16x8.shiftRightUnsigned(aligned, i32.const(at - to))
        : i16x8.shiftLeft(aligned, i32.const(to - at));
      return v128.and(moved, f.ints(0x01010101 * ((2 ** own - 1) << to)));
    });
    const all = quants.reduce((a, b) => v128.or(a, b));
    if (values.length === 256) return all; // signed bytes as they are
    if (values.every((value, quant) => value === quant + values[0])) {
      if (values[0] === 0) return all;
      return i8x16.sub(all, f.ints(0x01010101 * -values[0]));
    }
    const table = f.bytes(values.map((value) => value & 255));
    return this.relaxed.swizzle(table, all);
  }

  /** What aligns the bits of 16 elements in a unit of `bytes` bytes, as factors. */
  #moves(bytes: number, own: number): Code {
    const shared = 16 / bytes;
    const factors = times(8, (half) => {
      const s = Math.floor(2 * half / bytes);
      return 2 ** (own * (shared - 1 - s));
    });
    return this.f.bytes(factors.flatMap((factor) => [factor, 0]));
  }

  /** Bytes 4 · i to 4 · i + 3 in the upper bytes of four words. */
  upper(bytes: Code, i: number): Code {
    const indices = times(4, (lane) => [128, 128, 128, 4 * i + lane]).flat();
    return this.relaxed.swizzle(bytes, this.f.bytes(indices));
  }
}

/**
 * Builds `WasmKernels.roundRow_…`. A span is rounded if no group has an element larger
 * than `most` times the mean of their sizes.
 */
export function roundRow(blocks: SimdBlocks) {
  const { group } = blocks, span = spanOf(blocks);
  const f = new FunctionBuilder(roundRowName(blocks), {
    x: "i32",
    k: "i32",
    most: "f32",
  });
  const { x, k, most } = f.parameters;
  const [at, end, quants, factors, sums, spans, rounded, bytes] = times(
    8,
    () => f.local("i32"),
  );
  const groups = times(span / group, () => ({
    largest: f.local("f32"),
    total: f.local("f32"),
  }));
  const [largest, size, total, scale] = times(4, () => f.local("v128"));
  const lane = f32x4.lane(0), fours = group / 4;
  /** Elements 4 · i to 4 · i + 3 of group g. */
  const four = (g: number, i: number) =>
    v128.load(4 * (g * group + 4 * i))(at.get);
  const horizontally = (combine: typeof f32.add, value: Local) =>
    [0, 1, 2, 3].map((i) => f32x4.lane(i)(value.get))
      .reduce((a, b) => combine(a, b));

  const measure = (g: number): Code[] => [
    ...[largest, size, total].map((local) => local.set(f.floats(0))),
    ...times(fours, (i) => [
      scale.set(four(g, i)),
      total.set(f32x4.add(total.get, scale.get)),
      scale.set(f32x4.abs(scale.get)),
      largest.set(f32x4.max(largest.get, scale.get)),
      size.set(f32x4.add(size.get, scale.get)),
    ]).flat(),
    groups[g].largest.set(horizontally(f32.max, largest)),
    groups[g].total.set(horizontally(f32.add, total)),
    ...[
      f32.lessEqual(
        f32.mul(groups[g].largest.get, f32.const(group)),
        f32.mul(horizontally(f32.add, size), most.get),
      ),
      f32.lessEqual(groups[g].largest.get, f32.const(1 / LEAST)),
    ].map((tame) => rounded.set(i32.and(rounded.get, tame))),
  ];
  const round = (g: number): Code[] => {
    const own = f32.max(groups[g].largest.get, f32.const(LEAST));
    const integers = (i: number) =>
      i32x4.truncate(
        f32x4.nearest(f32x4.mul(four(g, i), scale.get)),
      );
    return [
      scale.set(f32x4.splat(f32.div(f32.const(LARGEST), own))),
      total.set(f.ints(0)),
      ...times(group / 8, (i) => [
        largest.set(integers(2 * i)),
        size.set(integers(2 * i + 1)),
        total.set(i32x4.add(total.get, i32x4.add(largest.get, size.get))),
        v128.store(2 * (g * group + 8 * i))(
          quants.get,
          i16x8.narrow(largest.get, size.get),
        ),
      ]).flat(),
      total.set(f32x4.convert(total.get)),
      groups[g].largest.set(f32.div(own, f32.const(LARGEST))),
      groups[g].total.set(
        f32.mul(horizontally(f32.add, total), groups[g].largest.get),
      ),
    ];
  };
  const to = new Rounded(x.get, k.get, bytes.get);
  return f.finish([
    bytes.set(factorBytes(blocks, k.get)),
    quants.set(to.quants),
    factors.set(to.factors),
    sums.set(to.sums),
    spans.set(to.spans),
    at.set(x.get),
    end.set(quants.get),
    loop(i32.lessUnsigned(at.get, end.get), [
      rounded.set(i32.const(1)),
      ...groups.flatMap((_, g) => measure(g)),
      i32.store()(spans.get, rounded.get),
      branch(
        rounded.get,
        groups.flatMap((_, g) => round(g)),
        groups.map(({ largest }) => largest.set(f32.const(UPPER))),
      ),
      ...groups.flatMap(({ largest, total }, g) => [
        f32.store(4 * g)(factors.get, largest.get),
        f32.store(4 * g)(sums.get, total.get),
      ]),
      increase(at, 4 * span),
      increase(quants, 2 * span),
      ...[factors, sums].map((local) => increase(local, 4 * groups.length)),
      increase(spans, 4),
    ]),
    v128.store()(sums.get, f.floats(0)),
  ]);
}

/** Builds `WasmKernels.dotBlocks_…`. */
export function dotBlocks(format: BlockFormat, relaxed: Relaxed) {
  const reader = new Reader(
    `dotBlocks_${format.name}`,
    ["x", "n", "k", "tailMask", "y", "scratch"],
    format,
    relaxed,
  );
  const { f } = reader, { x, n, k, tailMask, y, scratch } = f.parameters;
  const [r, factor, sum, out, from, bytes] = times(6, () => f.local("i32"));
  const row = reader.locals(), bias = f.local("v128");
  const totals = times(DOT_ROWS, () => f.local("v128"));
  const far = new FarRows(f, n), rounded = new Rounded(x.get, k.get, bytes.get);
  const factorsAt = i32.add(scratch.get, i32.const(16 * DOT_ROWS));

  /** Factors of each row times those of x; in `scratch` what minimums add to y. */
  const readFactors = [
    r.set(i32.const(0)),
    out.set(factorsAt),
    loop(i32.lessUnsigned(r.get, i32.const(DOT_ROWS)), [
      from.set(out.get),
      factor.set(rounded.factors),
      sum.set(rounded.sums),
      bias.set(f.floats(0)),
      ...reader.toRow({ ...row, quants: [] }, far.row(r.get), k.get),
      ...reader.factors(
        row.scales,
        k.get,
        tailMask,
        [out, factor, sum],
        (scale, min, byte) => [
          v128.store(byte)(
            out.get,
            f32x4.mul(scale, v128.load(byte)(factor.get)),
          ),
          min
            ? bias.set(
              f32x4.sub(bias.get, f32x4.mul(min, v128.load(byte)(sum.get))),
            )
            : [],
        ],
      ),
      v128.store()(
        i32.add(scratch.get, i32.shl(r.get, i32.const(4))),
        bias.get,
      ),
      out.set(i32.add(from.get, bytes.get)),
      increase(r, 1),
    ]),
  ];
  return f.finish([
    bytes.set(factorBytes(format.simd, k.get)),
    ...far.each([
      ...readFactors,
      ...totals.map((total, r) => total.set(v128.load(16 * r)(scratch.get))),
      ...dotRows(reader, {
        x,
        k,
        totals,
        rounded,
        row: (r) => far.row(i32.const(r)),
        factors: (r) => i32.add(factorsAt, i32.mul(bytes.get, i32.const(r))),
      }),
      ...far.store(y, totals.map((total) => total.get)),
    ]),
  ]);
}

/** Adds the products of x and DOT_ROWS rows of w to `totals`. */
function dotRows(
  reader: Reader<string>,
  { x, k, totals, rounded, row, factors }: {
    x: Local;
    k: Local;
    totals: readonly Local[];
    rounded: Rounded;
    /** Row `r` of these rows, and the address of its factors. */
    row: (r: number) => Code;
    factors: (r: number) => Code;
  },
): Code[] {
  const { f, format: { simd: blocks }, relaxed: { mulAdd } } = reader;
  const { bits, group } = blocks, span = spanOf(blocks);
  const [at, end, integers, spans] = times(4, () => f.local("i32"));
  const some = times(2, () => f.local("v128"));
  const rows = totals.map((total) => ({
    total,
    quants: reader.locals().quants,
    factors: f.local("i32"),
    bytes: f.local("v128"),
    sum: f.local("v128"),
  }));
  const addGroup = (t: number, toFloat: (sum: Code) => Code): Code[] =>
    (16 * t + 16) % group ? [] : rows.map(({ total, factors, sum }) => {
      const factor = v128.loadSplat32(4 * (16 * t + 16) / group - 4);
      return total.set(
        mulAdd(toFloat(sum.get), factor(factors.get), total.get),
      );
    });
  const asIntegers = (t: number): Code[] => [
    ...some.map((eight, i) =>
      eight.set(v128.load(2 * (16 * t + 8 * i))(integers.get))
    ),
    ...rows.flatMap(({ bytes, quants, sum }) => {
      const dots = some.map((eight, i) =>
        i32x4.dot(eight.get, i16x8.extendSigned[i](bytes.get))
      );
      const both = i32x4.add(dots[0], dots[1]);
      return [
        bytes.set(reader.values(t, quants)),
        sum.set(16 * t % group ? i32x4.add(sum.get, both) : both),
      ];
    }),
    ...addGroup(t, f32x4.convert),
  ];
  const asFloats = (t: number): Code[] => [
    ...rows.map(({ bytes, quants }) => bytes.set(reader.values(t, quants))),
    ...times(4, (i) => [
      some[0].set(v128.load(64 * t + 16 * i)(at.get)),
      ...rows.map(({ bytes, sum }) => {
        const value = f32x4.convert(reader.upper(bytes.get, i));
        const first = (16 * t + 4 * i) % group === 0;
        return sum.set(
          first
            ? f32x4.mul(value, some[0].get)
            : mulAdd(value, some[0].get, sum.get),
        );
      }),
    ]).flat(),
    ...addGroup(t, (sum) => sum),
  ];
  return [
    ...rows.flatMap((own, r) => [
      ...reader.toRow({ quants: own.quants, scales: [] }, row(r), k.get),
      own.factors.set(factors(r)),
    ]),
    at.set(x.get),
    end.set(i32.add(x.get, i32.shl(k.get, i32.const(2)))),
    integers.set(rounded.quants),
    spans.set(rounded.spans),
    loop(i32.lessUnsigned(at.get, end.get), [
      branch(
        i32.load()(spans.get),
        times(span / 16, asIntegers).flat(),
        times(span / 16, asFloats).flat(),
      ),
      increase(at, 4 * span),
      increase(integers, 2 * span),
      increase(spans, 4),
      ...rows.flatMap(({ quants, factors }) => [
        ...quants.map((plane, p) => increase(plane, span * bits[p] / 8)),
        increase(factors, 4 * span / group),
      ]),
    ]),
  ];
}

/** Builds `WasmKernels.unpackBlocks_…`. */
export function unpackBlocks(format: BlockFormat, relaxed: Relaxed) {
  const reader = new Reader(
    `unpackBlocks_${format.name}`,
    ["n", "k", "width", "tailMask", "out", "outBytes", "scratch"],
    format,
    relaxed,
  );
  const { f, format: { simd: { bits, group, min } } } = reader;
  const { n, k, width, tailMask, out, outBytes, scratch } = f.parameters;
  const [j, to, end, factors, bytes, own] = times(6, () => f.local("i32"));
  const row = reader.locals(),
    [sixteen, scale, least] = times(3, () => f.local("v128"));
  const span = spanOf(format.simd);
  const minsAt = (at: Local) => i32.add(at.get, bytes.get);
  const store = (t: number): Code[] => [
    sixteen.set(reader.values(t, row.quants)),
    ...times(4, (i) => {
      const element = 16 * t + 4 * i, at = 4 * Math.floor(element / group);
      const quant = i32x4.shiftRight(
        reader.upper(sixteen.get, i),
        i32.const(24),
      );
      const value = f32x4.mul(f32x4.convert(quant), scale.get);
      return [
        ...element % group ? [] : [
          scale.set(v128.loadSplat32(at)(own.get)),
          min ? least.set(v128.loadSplat32(at)(minsAt(own))) : [],
        ],
        v128.store(4 * element)(
          to.get,
          min ? f32x4.sub(value, least.get) : value,
        ),
      ];
    }).flat(),
  ];
  return f.finish([
    bytes.set(factorBytes(format.simd, width.get)),
    loop(i32.lessUnsigned(j.get, n.get), [
      ...reader.toRow(row, j.get, k.get),
      factors.set(scratch.get),
      ...reader.factors(
        row.scales,
        width.get,
        tailMask,
        [factors],
        (scale, min, byte) => [
          v128.store(byte)(factors.get, scale),
          min ? v128.store(byte)(minsAt(factors), min) : [],
        ],
      ),
      own.set(scratch.get),
      to.set(out.get),
      end.set(i32.add(out.get, i32.shl(width.get, i32.const(2)))),
      loop(i32.lessUnsigned(to.get, end.get), [
        ...times(span / 16, store).flat(),
        increase(to, 4 * span),
        increase(own, 4 * span / group),
        ...row.quants.map((plane, p) => increase(plane, span * bits[p] / 8)),
      ]),
      increase(out, outBytes.get),
      increase(j, 1),
    ]),
  ]);
}
