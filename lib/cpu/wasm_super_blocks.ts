/**
 * The WebAssembly kernels for formats whose blocks of 256 elements have integers as scales,
 * as llama.cpp multiplies them. A block of x is rounded to 16 bits, in two planes of bytes,
 * so quants are multiplied as bytes, the sums by their scales as words, and a block is
 * scaled once. A block of x with an outlier stays in f32.
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
  increase,
  type Local,
  loop,
  times,
  v128,
} from "./assembler.ts";
import { DOT_ROWS, FarRows } from "./simd_code.ts";
import {
  asFloats,
  type BlockFormat,
  type DotRow,
  Reader,
  type Relaxed,
} from "./wasm_blocks.ts";
import {
  lanes,
  LARGEST,
  LEAST,
  roundRowName,
  twoBytes,
  UPPER,
} from "./wasm_round.ts";

/** Addresses in what `roundRow` writes after a row of x. */
function rounded({ group }: SimdBlocks, x: Code, k: Code) {
  const quants = i32.add(x, i32.shl(k, i32.const(2)));
  const sums = i32.add(quants, i32.shl(k, i32.const(1)));
  return {
    /** Of each 16 elements, the upper bytes, then the lower ones, both signed. */
    quants,
    /** The sum of each group. */
    sums,
    /** The scale of each block; 0 if it stays in f32. */
    scales: i32.add(sums, i32.shrUnsigned(k, i32.const(Math.log2(group) - 2))),
  };
}

/** The code that rounds one block of x. */
class BlockRounder {
  /** The largest size in the block, and the sum of roots of sizes. */
  readonly peak: Local;
  readonly roots: Local;
  readonly #scale: Local;
  readonly #vectors: Local[];
  readonly #words: Local[];
  readonly #from: Local;
  readonly #sum: Local;

  /** The block is from `at` to `end`; its sums go to `sums`. */
  constructor(
    readonly f: FunctionBuilder<string>,
    readonly group: number,
    readonly block: { at: Local; end: Local; sums: Local },
  ) {
    [this.peak, this.roots, this.#scale] = times(3, () => f.local("f32"));
    [this.#from, this.#sum] = times(2, () => f.local("i32"));
    this.#vectors = times(5, () => f.local("v128"));
    this.#words = times(2, () => f.local("v128"));
  }

  /** Sets `peak`, `roots` and the sums of groups. */
  measure(): Code[] {
    const { f } = this, [largest, size, total, four] = this.#vectors;
    return [
      largest.set(f.floats(0)),
      size.set(f.floats(0)),
      ...this.#eachGroup(total, [
        ...times(this.group / 4, (i) => [
          four.set(this.#four(i)),
          total.set(f32x4.add(total.get, four.get)),
          four.set(f32x4.abs(four.get)),
          largest.set(f32x4.max(largest.get, four.get)),
          size.set(f32x4.add(size.get, f32x4.sqrt(four.get))),
        ]).flat(),
        f32.store()(this.#sum.get, lanes(f32.add, total)),
      ]),
      this.peak.set(lanes(f32.max, largest)),
      this.roots.set(lanes(f32.add, size)),
    ];
  }

  /** Rounds a measured block to `quants`, which it moves, and sets the scale at `scales`. */
  round(quants: Local, scales: Local): Code[] {
    const { f, peak } = this, [low, high, total, factor] = this.#vectors;
    const integers = (i: number) =>
      i32x4.truncate(
        f32x4.nearest(f32x4.mul(this.#four(i), factor.get)),
      );
    return [
      peak.set(f32.max(peak.get, f32.const(LEAST))),
      factor.set(f32x4.splat(f32.div(f32.const(LARGEST), peak.get))),
      this.#scale.set(f32.div(peak.get, f32.const(LARGEST))),
      f32.store()(scales.get, this.#scale.get),
      ...this.#eachGroup(total, [
        ...times(this.group / 16, (t) => [
          ...this.#words.flatMap((eight, i) => [
            low.set(integers(4 * t + 2 * i)),
            high.set(integers(4 * t + 2 * i + 1)),
            total.set(i32x4.add(total.get, i32x4.add(low.get, high.get))),
            eight.set(i16x8.narrow(low.get, high.get)),
          ]),
          ...twoBytes(f, this.#words).map((half, i) =>
            v128.store(32 * t + 16 * i)(quants.get, half)
          ),
        ]).flat(),
        total.set(f32x4.convert(total.get)),
        f32.store()(
          this.#sum.get,
          f32.mul(lanes(f32.add, total), this.#scale.get),
        ),
        increase(quants, 2 * this.group),
      ]),
    ];
  }

  /** Runs `body` for each group, with zeros in `total`. */
  #eachGroup(total: Local, body: Code[]): Code[] {
    const from = this.#from, sum = this.#sum, { at, end, sums } = this.block;
    return [
      from.set(at.get),
      sum.set(sums.get),
      loop(i32.lessUnsigned(from.get, end.get), [
        total.set(this.f.ints(0)),
        ...body,
        increase(from, 4 * this.group),
        increase(sum, 4),
      ]),
    ];
  }

  /** Elements 4 · i to 4 · i + 3 of a group. */
  #four(i: number): Code {
    return v128.load(16 * i)(this.#from.get);
  }
}

/** Builds `WasmKernels.roundRow_…` for such blocks. */
export function roundSuperRow(blocks: SimdBlocks) {
  const { group, elements } = blocks;
  const f = new FunctionBuilder(roundRowName(blocks), {
    x: "i32",
    k: "i32",
    most: "f32",
  });
  const { x, k, most } = f.parameters;
  const [at, end, quants, sums, scales] = times(5, () => f.local("i32"));
  const to = rounded(blocks, x.get, k.get);
  const block = new BlockRounder(f, group, { at, end, sums });
  const { peak, roots } = block;
  return f.finish([
    at.set(x.get),
    quants.set(to.quants),
    sums.set(to.sums),
    scales.set(to.scales),
    loop(i32.lessUnsigned(at.get, to.quants), [
      end.set(i32.add(at.get, i32.const(4 * elements))),
      ...block.measure(),
      branch(
        i32.and(
          f32.lessEqual(
            f32.mul(peak.get, f32.const(elements ** 2)),
            f32.mul(f32.mul(roots.get, roots.get), most.get),
          ),
          f32.lessEqual(peak.get, f32.const(1 / LEAST)),
        ),
        block.round(quants, scales),
        [
          f32.store()(scales.get, f32.const(0)),
          increase(quants, 2 * elements),
        ],
      ),
      at.set(end.get),
      increase(sums, 4 * elements / group),
      increase(scales, 4),
    ]),
  ]);
}

/** A row of w that is being multiplied. */
interface Row extends DotRow {
  /** The current position in the planes of scales. */
  scales: readonly Local[];
  /** The scales of a block as words, and what all of them are times. */
  words: readonly Local[];
  d: Local;
  /** Sums of the products by the upper and lower bytes of x. */
  upper: Local;
  lower: Local;
}

/** The current position in a rounded row of x; see {@linkcode rounded}. */
type RoundedX = Record<"quants" | "sums" | "scales", Local>;

/** Builds `WasmKernels.dotBlocks_…` for such blocks. */
export function dotSuperBlocks(format: BlockFormat, relaxed: Relaxed) {
  const reader = new Reader(
    `dotBlocks_${format.name}`,
    ["x", "n", "k", "tailMask", "y", "scratch"],
    format,
    relaxed,
  );
  const { f } = reader, { x, n, k, y, scratch } = f.parameters;
  const { bits, group, elements, scaleBytes } = format.simd;
  const [at, end] = times(2, () => f.local("i32"));
  const own: RoundedX = {
    quants: f.local("i32"),
    sums: f.local("i32"),
    scales: f.local("i32"),
  };
  const far = new FarRows(f, n), to = rounded(format.simd, x.get, k.get);
  const rows = times(DOT_ROWS, (): Row => ({
    ...reader.locals(),
    loaded: reader.vectors(),
    factors: f.local("i32"),
    sum: f.local("v128"),
    total: f.local("v128"),
    words: times(elements / group / 8, () => f.local("v128")),
    d: f.local("v128"),
    upper: f.local("v128"),
    lower: f.local("v128"),
  }));
  return f.finish([
    ...far.each([
      ...rows.flatMap((row, r) => [
        ...reader.toRow(row, far.row(i32.const(r)), k.get),
        row.total.set(f.floats(0)),
      ]),
      at.set(x.get),
      end.set(to.quants),
      own.quants.set(to.quants),
      own.sums.set(to.sums),
      own.scales.set(to.scales),
      loop(i32.lessUnsigned(at.get, end.get), [
        branch(
          i32.load()(own.scales.get),
          [
            ...blockAsIntegers(reader, rows, own),
            ...rows.flatMap(({ quants }) =>
              quants.map((plane, p) => increase(plane, elements * bits[p] / 8))
            ),
            increase(at, 4 * elements),
          ],
          blockAsFloats(reader, rows, own.sums, at, scratch),
        ),
        increase(own.quants, 2 * elements),
        increase(own.sums, 4 * elements / group),
        increase(own.scales, 4),
        ...rows.flatMap(({ scales }) =>
          scales.map((plane, p) => increase(plane, scaleBytes[p]))
        ),
      ]),
      ...far.store(y.get, rows.map(({ total }) => total.get)),
    ]),
  ]);
}

/** Multiplies a block of rounded x by a block of the rows. */
function blockAsIntegers(
  reader: Reader<string>,
  rows: readonly Row[],
  x: RoundedX,
): Code[] {
  const { f, relaxed, format: { simd: blocks } } = reader;
  const { elements, unit, group } = blocks, { mulAdd } = relaxed;
  const sixteens = unit / 16, own = Math.min(group, unit) / 16;
  const xs = times(2 * sixteens, () => f.local("v128"));
  const [factor, all] = times(2, () => f.local("v128"));
  const quants = times(own, () => f.local("v128"));
  /** Copies of the scale of group `g`. */
  const scaleOf = (row: Row, g: number) =>
    relaxed.swizzle(
      row.words[g >> 3].get,
      f.bytes(times(16, (i) => 2 * (g % 8) + i % 2)),
    );
  return [
    ...rows.flatMap((row) => beginBlock(reader, row, x)),
    ...times(elements / unit, (u) => [
      ...xs.map((sixteen, i) =>
        sixteen.set(v128.load(2 * u * unit + 16 * i)(x.quants.get))
      ),
      ...rows.flatMap((row) =>
        times(sixteens / own, (part) => {
          const first = part * own, g = Math.floor(u * unit / group) + part;
          const products = [0, 1].map((half) =>
            quants.map(({ get }, t) =>
              relaxed.dotBytes(xs[2 * (first + t) + half].get, get)
            ).reduce((a, b) => i16x8.add(a, b))
          );
          const begins = u === 0 && part === 0;
          return [
            ...quants.flatMap((to, t) =>
              reader.sixteen(to, u * sixteens + first + t, row, false)
            ),
            factor.set(scaleOf(row, g)),
            ...[row.upper, row.lower].map((sum, half) => {
              const product = i32x4.dot(products[half], factor.get);
              return sum.set(
                begins ? product : i32x4.add(sum.get, product),
              );
            }),
          ];
        }).flat()
      ),
    ]).flat(),
    ...rows.flatMap(({ total, upper, lower, d }) => [
      all.set(
        mulAdd(
          f32x4.convert(upper.get),
          f.floats(256),
          f32x4.convert(lower.get),
        ),
      ),
      total.set(mulAdd(all.get, d.get, total.get)),
    ]),
  ];
}

/** Reads the scales of a row's block, and adds what its minimums or the offset make. */
function beginBlock(
  reader: Reader<string>,
  row: Row,
  { sums, scales }: RoundedX,
): Code[] {
  const { f, offset, spare, relaxed: { mulAdd }, format } = reader;
  const { elements, group } = format.simd, { words, d, sum, total } = row;
  const { kept, values: { mins, dmin, ...own } } = reader.integers(row.scales);
  // Bytes are read as the upper ones of words, 2²⁴ times as large.
  const less = f32x4.mul(dmin ?? d.get, f.floats((mins ? -1 : offset) * UPPER));
  return [
    ...kept,
    d.set(own.d),
    spare.set(own.scales),
    ...words.map((eight, i) => eight.set(i16x8.extendSigned[i](spare.get))),
    ...mins || offset
      ? [
        mins ? spare.set(mins) : [],
        ...times(elements / group / 4, (i) => {
          const four = f32x4.convert(reader.upper(spare.get, i));
          const own = v128.load(16 * i)(sums.get);
          return sum.set(
            i === 0 ? f32x4.mul(four, own) : mulAdd(four, own, sum.get),
          );
        }),
        total.set(mulAdd(sum.get, less, total.get)),
      ]
      : [],
    d.set(f32x4.mul(d.get, v128.loadSplat32()(scales.get))),
  ];
}

/** Multiplies a block of x that is not rounded by a block of the rows; moves past it. */
function blockAsFloats(
  reader: Reader<string>,
  rows: readonly Row[],
  sums: Local,
  at: Local,
  scratch: Local,
): Code[] {
  const { f, format: { simd: blocks } } = reader;
  const { bits, elements, unit, group } = blocks;
  const end = f.local("i32");
  const vectors = { bytes: f.local("v128"), four: f.local("v128") };
  const bytes = 4 * elements / group;
  return [
    ...rows.flatMap((row, r) => [
      row.factors.set(i32.add(scratch.get, i32.const(r * bytes))),
      ...reader.nextFactors(
        row.scales,
        (scale, min, byte) => [
          v128.store(byte)(
            row.factors.get,
            f32x4.mul(scale, f.floats(UPPER)),
          ),
          min
            ? row.total.set(
              f32x4.sub(
                row.total.get,
                f32x4.mul(min, v128.load(byte)(sums.get)),
              ),
            )
            : [],
        ],
      ).code,
    ]),
    end.set(i32.add(at.get, i32.const(4 * elements))),
    loop(i32.lessUnsigned(at.get, end.get), [
      ...times(unit / 16, (t) => asFloats(reader, t, rows, vectors, at)).flat(),
      increase(at, 4 * unit),
      ...rows.flatMap(({ quants, factors }) => [
        ...quants.map((plane, p) => increase(plane, unit * bits[p] / 8)),
        increase(factors, 4 * unit / group),
      ]),
    ]),
  ];
}
