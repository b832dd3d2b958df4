/**
 * The WebAssembly kernels for formats of blocks whose rows are in panels (panels.ts). A
 * vector has two elements of each of eight rows, so lanes are sums of rows: two elements of
 * x, copied to all lanes, multiply them. Groups of x are rounded to 16 bits, as wasm_round.ts
 * says, and those with an outlier stay in f32.
 *
 * @module
 */
import type { ReadScales } from "../formats/format.ts";
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
import { PANEL_ROWS, type PanelFormat } from "./panels.ts";
import { SimdWriter } from "./simd_code.ts";
import type { Relaxed } from "./wasm_blocks.ts";
import { factorBytes, isShifted, Rounded, spanOf } from "./wasm_round.ts";
import { transposeEight } from "./wasm_wide.ts";

/** Panels that `dotPanels` multiplies at once. */
const PANELS = 2;
/** Vectors of the first plane in a unit, which has 16 bytes of each row. */
const VECTORS = 8;
/** Vectors of sums of a panel. */
const QUARTERS = [0, 1] as const;

/** The addresses of planes, as parameters. */
const PLANES = { w0: "i32", w1: "i32", w2: "i32", w3: "i32" } as const;

/** The position in one panel, and what was loaded there. */
class Panel {
  /** The positions in the planes of quants, then of scales. */
  readonly planes: readonly Local[];
  /** The vector of the first plane that is multiplied, and all of a unit of the others. */
  readonly loaded: readonly (readonly Local[])[];
  /** The values of two elements of each row. */
  readonly pair: Local;
  /** The scales of a group, and the minimums. */
  readonly scales: readonly Local[];
  readonly mins: readonly Local[];
  readonly #raw: readonly Local[];
  readonly #writer: SimdWriter;

  constructor(
    readonly f: FunctionBuilder<string>,
    readonly format: PanelFormat,
    readonly relaxed: Relaxed,
  ) {
    const { bits, scaleBytes, unit, min } = format.simd;
    const vectors = (count: number) => times(count, () => f.local("v128"));
    this.planes = times(
      bits.length + scaleBytes.length,
      () => f.local("i32"),
    );
    this.loaded = bits.map((own, p) => vectors(p === 0 ? 1 : unit * own / 16));
    this.pair = f.local("v128");
    this.scales = vectors(2);
    this.mins = vectors(min ? 2 : 0);
    this.#raw = vectors(2);
    this.#writer = new SimdWriter(f, relaxed.swizzle);
  }

  /** Goes to a panel, which is `rows` rows past `bases`, of `k` elements. */
  begin(bases: readonly Local[], rows: Code, k: Code): Code[] {
    const { bits, scaleBytes, elements } = this.format.simd;
    const eighths = i32.shrUnsigned(k, i32.const(3));
    const blocks = i32.shrUnsigned(k, i32.const(Math.log2(elements)));
    const bytes = [
      ...bits.map((own) => i32.mul(eighths, i32.const(own))),
      ...scaleBytes.map((own) => i32.mul(blocks, i32.const(own))),
    ];
    return this.planes.map((plane, p) =>
      plane.set(i32.add(bases[p].get, i32.mul(rows, bytes[p])))
    );
  }

  /** Goes to the next span. */
  advance(span: number): Code[] {
    const { bits, scaleBytes, elements } = this.format.simd;
    const bytes = [
      ...bits.map((own) => span * own / 8),
      ...scaleBytes.map((own) => span / elements * own),
    ];
    return this.planes.map((plane, p) =>
      increase(plane, PANEL_ROWS * bytes[p])
    );
  }

  /** Loads what the planes of quants but the first have of unit `u`. */
  loadOthers(u: number): Code[] {
    return this.loaded.flatMap((vectors, p) =>
      p === 0 ? [] : vectors.map((own, i) =>
        own.set(
          v128.load(16 * (u * vectors.length + i))(this.planes[p].get),
        )
      )
    );
  }

  /** Loads vector `i` of the first plane's unit `u`. */
  load(u: number, i: number): Code {
    return this.loaded[0][0].set(
      v128.load(16 * (u * VECTORS + i))(this.planes[0].get),
    );
  }

  /** Sets `pair` to elements 2 · j and 2 · j + 1 of a loaded unit, as signed bytes. */
  setPair(j: number): Code {
    const { f, format: { simd: { bits, unit, values } } } = this;
    const quants = bits.map((own, p) => {
      const bytes = unit * own / 8, s = Math.floor(2 * j / bytes);
      const vector = this.loaded[p][p === 0 ? 0 : 2 * j % bytes / 2].get;
      if (own === 8) return vector;
      const at = own * s, to = p === 0 ? 0 : bits[0];
      const moved = at === to
        ? vector
        : at > to
        ? i16x8.shiftRightUnsigned(vector, i32.const(at - to))
        : i16x8.shiftLeft(vector, i32.const(to - at));
      return v128.and(moved, f.ints(0x01010101 * ((2 ** own - 1) << to)));
    });
    const all = quants.reduce((a, b) => v128.or(a, b));
    const value = values.length === 256
      ? all
      : !isShifted(values)
      ? this.relaxed.swizzle(f.bytes(values.map((value) => value & 255)), all)
      : values[0] === 0
      ? all
      : i8x16.sub(all, f.ints(0x01010101 * -values[0]));
    return this.pair.set(value);
  }

  /** Rows 4 · q to 4 · q + 3 of `pair`, as half words. */
  quarter(q: 0 | 1): Code {
    return i16x8.extendSigned[q](this.pair.get);
  }

  /** Element 2 · j, or the next, of four rows of `pair`, as f32. */
  element(quarter: Code, odd: number): Code {
    const sixteen = i32.const(16);
    return f32x4.convert(
      i32x4.shiftRight(
        odd ? quarter : i32x4.shiftLeft(quarter, sixteen),
        sixteen,
      ),
    );
  }

  /** Reads the scales and minimums of the rows' next group. */
  factors(): Code[] {
    const { bits, scaleBytes } = this.format.simd, raw = this.#raw;
    const [bytes] = scaleBytes, at = this.planes[bits.length].get;
    const loads = bytes === 1
      ? [i16x8.extendLow(v128.loadSplat64()(at))]
      : times(bytes / 2, (i) => v128.load(16 * i)(at));
    return [
      ...loads.map((load, i) => raw[i].set(load)),
      ...QUARTERS.flatMap((q) => {
        const read: ReadScales<Code> = (_, as) => {
          const [lower, upper] = raw.map(({ get }) =>
            i32x4.extendUnsigned[q](get)
          );
          return as === "words"
            ? v128.or(lower, i32x4.shiftLeft(upper, i32.const(16)))
            : lower;
        };
        const { kept, values: [{ scale, min }] } = this.#writer.write((simd) =>
          this.format.simd.factors(simd, read)
        );
        return [
          ...kept,
          this.scales[q].set(scale),
          min ? this.mins[q].set(min) : [],
        ];
      }),
    ];
  }
}

/** Name of `dotPanels` or `unpackPanels` for a format, as that of one of rows. */
export const panelsName = ({ name }: PanelFormat): string => `${name}_panels`;

/** Positions in a rounded row of x; see {@linkcode Rounded}. */
type RoundedX = Record<"x" | "quants" | "factors" | "sums" | "spans", Local>;

/** Several panels that are multiplied by the same elements of x. */
class Panels {
  readonly all: readonly {
    panel: Panel;
    /** The sums of a group, and the sums of scaled groups. */
    sums: readonly Local[];
    totals: readonly Local[];
  }[];
  /** Two elements of x, or one, in all lanes; then a group's scale and sum. */
  readonly #copy: Local;
  readonly #factor: Local;
  readonly #sum: Local;
  readonly #xs: readonly Local[];
  /** Pairs in a vector of the first plane. */
  readonly #shared: number;

  constructor(
    readonly f: FunctionBuilder<string>,
    readonly format: PanelFormat,
    readonly relaxed: Relaxed,
    readonly at: RoundedX,
  ) {
    const both = () => QUARTERS.map(() => f.local("v128"));
    this.all = times(PANELS, () => ({
      panel: new Panel(f, format, relaxed),
      sums: both(),
      totals: both(),
    }));
    this.#shared = format.simd.unit / 2 / VECTORS;
    this.#xs = times(this.#shared, () => f.local("v128"));
    this.#copy = f.local("v128");
    this.#factor = f.local("v128");
    this.#sum = f.local("v128");
  }

  /** Multiplies a span, and adds what it gives to the totals. */
  span(): Code[] {
    const { at } = this, factor = this.#factor;
    return [
      this.format.simd.min
        ? this.#sum.set(v128.loadSplat32()(at.sums.get))
        : [],
      branch(
        i32.load()(at.spans.get),
        [
          ...this.#asIntegers(),
          factor.set(v128.loadSplat32()(at.factors.get)),
          ...this.#addGroup((sum, scale) => [
            f32x4.convert(sum),
            f32x4.mul(scale, factor.get),
          ]),
        ],
        [
          ...this.#asFloats(),
          ...this.#addGroup((sum, scale) => [sum, scale]),
        ],
      ),
    ];
  }

  /** Pair `j` of each unit `u`, in the order in which they are loaded. */
  #eachPair(body: (u: number, j: number, s: number) => Code[]): Code[] {
    const span = spanOf(this.format.simd), { unit } = this.format.simd;
    const panels = this.all.map(({ panel }) => panel);
    return times(span / unit, (u) => [
      ...panels.flatMap((panel) => panel.loadOthers(u)),
      ...times(VECTORS, (i) => [
        ...panels.map((panel) => panel.load(u, i)),
        ...times(this.#shared, (s) => body(u, s * VECTORS + i, s)).flat(),
      ]).flat(),
    ]).flat();
  }

  /** Copies pair `j` of unit `u` of rounded x to all lanes. */
  #copyPair(u: number, j: number, s: number): Code[] {
    const pair = u * this.format.simd.unit / 2 + j, x = this.#xs[s];
    const lanes = Array(4).fill(pair % 4);
    return [
      pair % 4 === 0 ? x.set(v128.load(4 * pair)(this.at.quants.get)) : [],
      this.#copy.set(f32x4.shuffle(...lanes)(x.get, x.get)),
    ];
  }

  #asIntegers(): Code[] {
    return this.#eachPair((u, j, s) => [
      ...this.#copyPair(u, j, s),
      ...this.all.flatMap(({ panel, sums }) => [
        panel.setPair(j),
        ...QUARTERS.map((q) => {
          const product = i32x4.dot(panel.quarter(q), this.#copy.get);
          return sums[q].set(
            u === 0 && j === 0 ? product : i32x4.add(sums[q].get, product),
          );
        }),
      ]),
    ]);
  }

  #asFloats(): Code[] {
    const { unit } = this.format.simd, { mulAdd } = this.relaxed;
    const copy = this.#copy;
    return this.#eachPair((u, j) => [
      ...this.all.map(({ panel }) => panel.setPair(j)),
      ...[0, 1].flatMap((odd) => [
        copy.set(
          v128.loadSplat32(4 * (u * unit + 2 * j + odd))(this.at.x.get),
        ),
        ...this.all.flatMap(({ panel, sums }) =>
          QUARTERS.map((q) => {
            const value = panel.element(panel.quarter(q), odd);
            return sums[q].set(
              u === 0 && j === 0 && odd === 0
                ? f32x4.mul(value, copy.get)
                : mulAdd(value, copy.get, sums[q].get),
            );
          })
        ),
      ]),
    ]);
  }

  /** Scales the sums of a group, of which `scaled` makes two factors, and adds them up. */
  #addGroup(scaled: (sum: Code, scale: Code) => [Code, Code]): Code[] {
    const { mulAdd } = this.relaxed;
    return this.all.flatMap(({ panel, sums, totals }) => [
      ...panel.factors(),
      ...QUARTERS.flatMap((q) => {
        const all = totals[q], min = panel.mins[q];
        const [a, b] = scaled(sums[q].get, panel.scales[q].get);
        return [
          all.set(mulAdd(a, b, all.get)),
          min
            ? all.set(f32x4.sub(all.get, f32x4.mul(min.get, this.#sum.get)))
            : [],
        ];
      }),
    ]);
  }
}

/** Builds `WasmKernels.dotBlocks_…` for panels; `n` is a multiple of PANELS_ROWS. */
export function dotPanels(format: PanelFormat, relaxed: Relaxed) {
  const f = new FunctionBuilder(`dotBlocks_${panelsName(format)}`, {
    ...PLANES,
    ...{ x: "i32", n: "i32", k: "i32", tailMask: "i32", y: "i32" },
    scratch: "i32",
  });
  const { w0, w1, w2, w3, x, n, k, y } = f.parameters;
  const { bits, scaleBytes } = format.simd, span = spanOf(format.simd);
  const [row, half, end, bytes, out] = times(5, () => f.local("i32"));
  const at: RoundedX = {
    x: f.local("i32"),
    quants: f.local("i32"),
    factors: f.local("i32"),
    sums: f.local("i32"),
    spans: f.local("i32"),
  };
  const zero = f.local("v128"), panels = new Panels(f, format, relaxed, at);
  const bases = [w0, w1, w2, w3].slice(0, bits.length + scaleBytes.length);
  const rounded = new Rounded(format.simd, x.get, k.get, bytes.get);
  /** The first row of a panel; they are far apart, as rows are in simd_code.ts. */
  const first = (i: number) => i ? i32.add(row.get, half.get) : row.get;
  return f.finish([
    bytes.set(factorBytes(format.simd, k.get)),
    half.set(i32.shrUnsigned(n.get, i32.const(1))),
    loop(i32.lessUnsigned(row.get, half.get), [
      ...panels.all.flatMap(({ panel, totals }, i) => [
        ...panel.begin(bases, first(i), k.get),
        ...totals.map((total) => total.set(f.floats(0))),
      ]),
      at.x.set(x.get),
      at.quants.set(rounded.quants),
      at.factors.set(rounded.factors),
      at.sums.set(rounded.sums),
      at.spans.set(rounded.spans),
      end.set(rounded.quants),
      loop(i32.lessUnsigned(at.x.get, end.get), [
        ...panels.span(),
        increase(at.x, 4 * span),
        increase(at.quants, 2 * span),
        ...[at.factors, at.sums, at.spans].map((one) => increase(one, 4)),
        ...panels.all.flatMap(({ panel }) => panel.advance(span)),
      ]),
      ...panels.all.flatMap(({ totals }, i) => {
        const [low, high] = totals;
        return [
          out.set(i32.add(y.get, i32.shl(first(i), i32.const(2)))),
          // V8 begins to look for pairs at a sum of integers.
          zero.set(v128.and(i32x4.add(low.get, high.get), f.ints(0))),
          ...totals.map((total, q) =>
            v128.store(16 * q)(out.get, v128.or(total.get, zero.get))
          ),
        ];
      }),
      increase(row, PANEL_ROWS),
    ]),
  ]);
}

/** Builds `WasmKernels.unpackBlocks_…` for panels; `n` is a multiple of PANEL_ROWS. */
export function unpackPanels(format: PanelFormat, relaxed: Relaxed) {
  const f = new FunctionBuilder(`unpackBlocks_${panelsName(format)}`, {
    ...PLANES,
    ...{ n: "i32", k: "i32", width: "i32", tailMask: "i32", out: "i32" },
    ...{ outBytes: "i32", scratch: "i32" },
  });
  const { w0, w1, w2, w3, n, k, width, out, outBytes } = f.parameters;
  const { bits, scaleBytes, unit, min } = format.simd;
  const span = spanOf(format.simd), panel = new Panel(f, format, relaxed);
  const [row, end] = times(2, () => f.local("i32"));
  const rows = times(PANEL_ROWS, () => f.local("i32"));
  const columns = times(4, () => f.local("v128"));
  const bases = [w0, w1, w2, w3].slice(0, bits.length + scaleBytes.length);

  /** Columns 4 · c to 4 · c + 3 of unit `u`. */
  const four = (u: number, c: number): Code[] =>
    QUARTERS.flatMap((q) => [
      ...[2 * c, 2 * c + 1].flatMap((j, i) => [
        panel.load(u, j % VECTORS),
        panel.setPair(j),
        ...[0, 1].map((odd) => {
          const value = f32x4.mul(
            panel.element(panel.quarter(q), odd),
            panel.scales[q].get,
          );
          return columns[2 * i + odd].set(
            min ? f32x4.sub(value, panel.mins[q].get) : value,
          );
        }),
      ]),
      ...transposeFour(f, columns),
      ...columns.map(({ get }, r) =>
        v128.store(4 * (u * unit + 4 * c))(rows[4 * q + r].get, get)
      ),
    ]);
  return f.finish([
    loop(i32.lessUnsigned(row.get, n.get), [
      ...panel.begin(bases, row.get, k.get),
      ...rows.map((own, r) =>
        own.set(
          r === 0 ? out.get : i32.add(rows[r - 1].get, outBytes.get),
        )
      ),
      end.set(i32.add(out.get, i32.shl(width.get, i32.const(2)))),
      loop(i32.lessUnsigned(rows[0].get, end.get), [
        ...panel.factors(),
        ...times(span / unit, (u) => [
          ...panel.loadOthers(u),
          ...times(unit / 4, (c) => four(u, c)).flat(),
        ]).flat(),
        ...panel.advance(span),
        ...rows.map((own) => increase(own, 4 * span)),
      ]),
      increase(out, i32.mul(outBytes.get, i32.const(PANEL_ROWS))),
      increase(row, PANEL_ROWS),
    ]),
  ]);
}

/** Transposes four vectors of four f32 in place. */
function transposeFour(
  f: FunctionBuilder<string>,
  columns: readonly Local[],
): Code[] {
  const [a, b, c, d] = columns, spare = times(4, () => f.local("v128"));
  const low = f32x4.shuffle(0, 4, 1, 5), high = f32x4.shuffle(2, 6, 3, 7);
  const [p, q, r, s] = spare.map(({ get }) => get);
  return [
    spare[0].set(low(a.get, b.get)),
    spare[1].set(low(c.get, d.get)),
    spare[2].set(high(a.get, b.get)),
    spare[3].set(high(c.get, d.get)),
    a.set(f32x4.shuffle(0, 1, 4, 5)(p, q)),
    b.set(f32x4.shuffle(2, 3, 6, 7)(p, q)),
    c.set(f32x4.shuffle(0, 1, 4, 5)(r, s)),
    d.set(f32x4.shuffle(2, 3, 6, 7)(r, s)),
  ];
}

/**
 * Builds `WasmKernels.interleave`: puts the rows of a panel, `rowBytes` apart, in its order, for
 * planes whose rows are multiples of 16 bytes.
 */
export function interleaveRows() {
  const f = new FunctionBuilder("interleave", {
    from: "i32",
    rowBytes: "i32",
    to: "i32",
  });
  const { from, rowBytes, to } = f.parameters;
  const rows = times(PANEL_ROWS, () => f.local("v128"));
  const [end, at] = times(2, () => f.local("i32")), spare = f.local("v128");
  return f.finish([
    end.set(i32.add(from.get, rowBytes.get)),
    loop(i32.lessUnsigned(from.get, end.get), [
      at.set(from.get),
      ...rows.flatMap((row) => [
        row.set(v128.load()(at.get)),
        increase(at, rowBytes.get),
      ]),
      ...transposeEight(rows, spare),
      ...rows.map(({ get }, i) => v128.store(16 * i)(to.get, get)),
      increase(from, 16),
      increase(to, 16 * PANEL_ROWS),
    ]),
  ]);
}
