/**
 * The WebAssembly kernels for formats of quantised blocks. A row of x is rounded to 16
 * bits per group, so that quants multiply as integers, except where a group has an
 * outlier, beside which the others would be lost; there, or if asked to be exact, they
 * multiply in f32.
 *
 * @module
 */
import type {
  Format,
  ReadScales,
  SimdBlocks,
  SimdIntegers,
  SimdReader,
} from "../formats/format.ts";
import {
  branch,
  type Code,
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
import {
  bitsOf,
  factorBytes,
  isShifted,
  isSuper,
  Rounded,
  type Rounding,
  spanOf,
} from "./wasm_round.ts";

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
  /** Sums of two neighboring products of signed bytes, and of ones below 128, as words. */
  dotBytes: (signed: Code, below128: Code) => Code;
  /** Bits of quants that `i32x4.relaxedDotAdd` multiplies right; absent if it is not there. */
  bits?: 7 | 8;
}

/** How x is rounded for a format. */
export const roundingOf = (blocks: SimdBlocks, { bits }: Relaxed): Rounding =>
  bits !== undefined && bitsOf(blocks) <= bits ? "bytes" : "words";

/**
 * Bytes of work space that `dotBlocks` takes: for its rows, what minimums add to y, and
 * the rows' factors.
 */
export const dotScratch = (blocks: SimdBlocks, k: number): number => {
  const factors = isSuper(blocks) ? blocks.elements : k;
  return DOT_ROWS * 16 * (1 + Math.ceil(factors / blocks.group / 4));
};

/** Parameters: the addresses of the planes of quants, then of scales. */
const PLANES = ["w0", "w1", "w2", "w3"] as const;
type PlaneName = (typeof PLANES)[number];

/** What kernels for one format have in common. */
export class Reader<Parameter extends string> {
  readonly f: FunctionBuilder<Parameter | PlaneName>;
  /** The parameters with the addresses of the planes of quants, and of scales. */
  readonly quants: readonly Local[];
  readonly scales: readonly Local[];
  /** A vector for what is used at once. */
  readonly spare: Local;
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
    this.#writer = new SimdWriter(this.f, relaxed.swizzle);
    this.#end = this.f.local("i32");
    this.spare = this.f.local("v128");
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

  /** New vectors for the quants of a unit. */
  vectors(): Local[] {
    return this.format.simd.bits.map(() => this.f.local("v128"));
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
      const masked = (value: Code) => mask ? v128.and(value, mask) : value;
      const { code, vectors } = this.nextFactors(
        planes,
        (scale, min, byte) => take(masked(scale), min && masked(min), byte),
      );
      const elements = 4 * vectors * blocks.group;
      return [
        ...code,
        ...planes.map((plane, i) =>
          increase(plane, blocks.scaleBytes[i] * elements / blocks.elements)
        ),
        ...outs.map((out) => increase(out, 16 * vectors)),
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

  /** Reads the factors of the next groups, as {@linkcode factors} does: so many vectors. */
  nextFactors(
    planes: readonly Local[],
    take: (scale: Code, min: Code | undefined, byte: number) => Code[],
  ): { code: Code[]; vectors: number } {
    const { kept, values } = this.#writer.write((simd) =>
      this.format.simd.factors(simd, readFrom(planes))
    );
    const code = [
      ...kept,
      ...values.flatMap(({ scale, min }, i) => take(scale, min, 16 * i)),
    ];
    return { code, vectors: values.length };
  }

  /** The factors of the next block as integers. */
  integers(planes: readonly Local[]): {
    kept: Code[];
    values: SimdIntegers<Code>;
  } {
    return this.#writer.write((simd) =>
      this.format.simd.integers!(simd, readFrom(planes))
    );
  }

  /** Loads the quants of unit `u` from `planes` on, into as many vectors. */
  load(u: number, planes: readonly Local[], into: readonly Local[]): Code[] {
    const { bits, unit } = this.format.simd;
    return bits.map((own, p) => {
      const bytes = unit * own / 8;
      const load = bytes === 16
        ? v128.load
        : bytes === 8
        ? v128.loadSplat64
        : v128.loadSplat32;
      const loaded = load(u * bytes)(planes[p].get);
      // Element `bytes · s + i` is at bits `own · s` of byte i. If 16 elements have
      // different shifts, the first ones are moved to the place of the last.
      return into[p].set(
        bytes === 16 ? loaded : i16x8.mul(loaded, this.#moves(bytes, own)),
      );
    });
  }

  /** Sets `to` to elements 16 · t to 16 · t + 15 of a row; see {@linkcode values}. */
  sixteen(to: Local, t: number, row: QuantRow, signed = true): Code[] {
    const sixteens = this.format.simd.unit / 16, within = t % sixteens;
    return [
      ...within === 0 ? this.load(t / sixteens, row.quants, row.loaded) : [],
      to.set(this.values(within, row.loaded, signed)),
    ];
  }

  /**
   * Elements 16 · t to 16 · t + 15 of a loaded unit, as signed bytes, or as unsigned ones
   * that are `offset` less than that.
   */
  values(t: number, loaded: readonly Local[], signed = true): Code {
    const { f, format: { simd: { values } } } = this;
    const all = this.#quants(t, loaded);
    const upper = f.ints(0x80808080); // adds 128 to signed bytes
    if (values.length === 256) return signed ? all : v128.xor(all, upper);
    if (isShifted(values)) {
      if (!signed || values[0] === 0) return all;
      return i8x16.sub(all, f.ints(0x01010101 * -values[0]));
    }
    const added = signed ? 0 : 128;
    const table = f.bytes(values.map((value) => value + added & 255));
    return this.relaxed.swizzle(table, all);
  }

  /** What {@linkcode values} adds to unsigned bytes. */
  get offset(): number {
    const { values } = this.format.simd;
    return isShifted(values) ? values[0] : -128;
  }

  /** Quants of elements 16 · t to 16 · t + 15 of a loaded unit, as bytes. */
  #quants(t: number, loaded: readonly Local[]): Code {
    const { f, format: { simd: { bits, unit } } } = this;
    const quants = bits.map((own, p) => {
      if (own === 8) return loaded[p].get;
      const shared = 128 / (unit * own);
      const at = own * (t * shared + shared - 1);
      const to = p === 0 ? 0 : bits[0];
      const moved = at === to
        ? loaded[p].get
        : at > to
        ? i16x8.shiftRightUnsigned(loaded[p].get, i32.const(at - to))
        : i16x8.shiftLeft(loaded[p].get, i32.const(to - at));
      return v128.and(moved, f.ints(0x01010101 * ((2 ** own - 1) << to)));
    });
    return quants.reduce((a, b) => v128.or(a, b));
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

/** Reads planes of scales. */
const readFrom =
  (planes: readonly Local[]): ReadScales<Code> => (plane, as, byte = 0) => {
    const at = planes[plane].get;
    if (as === "words") return v128.load(byte)(at);
    if (as === "word") return v128.loadSplat32(byte)(at);
    if (as === "half") return v128.loadSplat16(byte)(at);
    if (as === "halves") return i32x4.loadHalves(byte)(at);
    const bytes = v128.loadZero32(byte)(at);
    return i32x4.extendUnsigned[0](i16x8.extendLow(bytes));
  };

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
  const far = new FarRows(f, n),
    rounded = new Rounded(
      format.simd,
      x.get,
      k.get,
      bytes.get,
    );
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
      ...far.store(y.get, totals.map((total) => total.get)),
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
  const { f, format: { simd: blocks } } = reader;
  const { bits, group } = blocks, span = spanOf(blocks);
  const [at, end, spans] = times(3, () => f.local("i32"));
  const integers: RoundedX = {
    quants: f.local("i32"),
    totals: f.local("i32"),
    eights: times(group / 8, () => f.local("v128")),
    less: f.local("v128"),
  };
  const vectors = { bytes: f.local("v128"), four: f.local("v128") };
  const rows = totals.map((total): DotRow => ({
    total,
    quants: reader.locals().quants,
    loaded: reader.vectors(),
    factors: f.local("i32"),
    sum: f.local("v128"),
  }));
  const asIntegers = roundingOf(blocks, reader.relaxed) === "bytes"
    ? bytesOfGroup
    : wordsOfGroup;
  return [
    ...rows.flatMap((own, r) => [
      ...reader.toRow({ quants: own.quants, scales: [] }, row(r), k.get),
      own.factors.set(factors(r)),
    ]),
    at.set(x.get),
    end.set(i32.add(x.get, i32.shl(k.get, i32.const(2)))),
    integers.quants.set(rounded.quants),
    integers.totals.set(rounded.totals),
    spans.set(rounded.spans),
    loop(i32.lessUnsigned(at.get, end.get), [
      branch(
        i32.load()(spans.get),
        times(
          span / group,
          (g) => asIntegers(reader, g, rows, integers, vectors.bytes),
        ).flat(),
        times(span / 16, (t) => asFloats(reader, t, rows, vectors, at)).flat(),
      ),
      increase(at, 4 * span),
      increase(integers.quants, 2 * span),
      increase(integers.totals, 16 * span / group),
      increase(spans, 4),
      ...rows.flatMap(({ quants, factors }) => [
        ...quants.map((plane, p) => increase(plane, span * bits[p] / 8)),
        increase(factors, 4 * span / group),
      ]),
    ]),
  ];
}

/** A row of w that is being read. */
export interface QuantRow {
  /** The current position in the planes of quants. */
  quants: readonly Local[];
  /** A unit of them. */
  loaded: readonly Local[];
}

/** A row of w that is being multiplied. */
export interface DotRow extends QuantRow {
  /** The current position in the row's factors. */
  factors: Local;
  /** The sum of a group and the sum of scaled groups. */
  sum: Local;
  total: Local;
}

/** A row of x that has been rounded. */
interface RoundedX {
  /** The current position in its elements, and in the totals of groups. */
  quants: Local;
  totals: Local;
  /** The elements of a group. */
  eights: readonly Local[];
  /** What is wrong with the sum of a group because quants are unsigned. */
  less: Local;
}

/**
 * Multiplies group `g` of a span by quants as signed words. One row of w after another, so
 * that all of this fits V8's 15 registers.
 */
function wordsOfGroup(
  reader: Reader<string>,
  g: number,
  rows: readonly DotRow[],
  { quants: x, eights }: RoundedX,
  bytes: Local,
): Code[] {
  const { group } = reader.format.simd, sixteens = group / 16;
  return [
    ...eights.map((eight, i) =>
      eight.set(v128.load(2 * (group * g + 8 * i))(x.get))
    ),
    ...rows.flatMap((row) => [
      ...times(sixteens, (t) => {
        const [a, b] = [0, 1].map((i) =>
          i32x4.dot(
            eights[2 * t + i].get,
            i16x8.extendSigned[i](bytes.get),
          )
        );
        const both = i32x4.add(a, b);
        return [
          ...reader.sixteen(bytes, g * sixteens + t, row),
          row.sum.set(t ? i32x4.add(row.sum.get, both) : both),
        ];
      }).flat(),
      addGroup(reader, g, row, f32x4.convert(row.sum.get)),
    ]),
  ];
}

/** Multiplies group `g` of a span by quants as unsigned bytes, x being in bytes too. */
function bytesOfGroup(
  reader: Reader<string>,
  g: number,
  rows: readonly DotRow[],
  { quants: x, totals, eights, less }: RoundedX,
  bytes: Local,
): Code[] {
  const { f, offset, format: { simd: { group } } } = reader;
  const sixteens = group / 16, add = i32x4.relaxedDotAdd;
  const w = times(sixteens, (t) => t === 0 ? bytes : reader.spare);
  return [
    ...eights.map((eight, i) =>
      eight.set(v128.load(2 * (group * g + 8 * i))(x.get))
    ),
    offset
      ? less.set(
        i32x4.mul(v128.load(16 * g)(totals.get), f.ints(offset)),
      )
      : [],
    ...rows.flatMap((row) => {
      const sum = (half: number, from: Code) =>
        w.reduce(
          (sum, { get }, t) => add(eights[2 * t + half].get, get, sum),
          from,
        );
      const upper = i32x4.shiftLeft(sum(0, f.ints(0)), i32.const(8));
      const all = sum(1, upper);
      return [
        ...w.flatMap((local, t) =>
          reader.sixteen(local, g * sixteens + t, row, false)
        ),
        addGroup(
          reader,
          g,
          row,
          f32x4.convert(offset ? i32x4.add(all, less.get) : all),
        ),
      ];
    }),
  ];
}

/** Multiplies elements 16 · t to 16 · t + 15 of a span in f32, from `x` on. */
export function asFloats(
  reader: Reader<string>,
  t: number,
  rows: readonly DotRow[],
  { bytes, four }: { bytes: Local; four: Local },
  x: Local,
): Code[] {
  const { format: { simd: { group } }, relaxed: { mulAdd } } = reader;
  const ends = (16 * t + 16) % group === 0;
  return rows.flatMap((row) => [
    ...reader.sixteen(bytes, t, row),
    ...times(4, (i) => {
      const { sum } = row, value = f32x4.convert(reader.upper(bytes.get, i));
      const first = (16 * t + 4 * i) % group === 0;
      return [
        four.set(v128.load(64 * t + 16 * i)(x.get)),
        sum.set(
          first ? f32x4.mul(value, four.get) : mulAdd(value, four.get, sum.get),
        ),
      ];
    }).flat(),
    ends ? addGroup(reader, Math.floor(16 * t / group), row, row.sum.get) : [],
  ]);
}

/** Scales and adds the sum of group `g` of a span. */
function addGroup(
  { relaxed: { mulAdd } }: Reader<string>,
  g: number,
  { total, factors }: DotRow,
  sum: Code,
): Code {
  const factor = v128.loadSplat32(4 * g)(factors.get);
  return total.set(mulAdd(sum, factor, total.get));
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
  const row = reader.locals(), loaded = reader.vectors();
  const [sixteen, scale, least] = times(3, () => f.local("v128"));
  const span = spanOf(format.simd);
  const minsAt = (at: Local) => i32.add(at.get, bytes.get);
  const store = (t: number): Code[] => [
    ...reader.sixteen(sixteen, t, { ...row, loaded }),
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
