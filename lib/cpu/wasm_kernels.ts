/**
 * The inner loops of the CPU path in WebAssembly SIMD.
 *
 * Arguments are addresses, row strides in bytes (`…Bytes`) and counts. x must be
 * in the order in which the format of w is unpacked: see `SimdReader.order`.
 *
 * Deno has no trap handler, so V8 checks bounds before every load; the kernels are
 * written to reuse each load.
 *
 * @module
 */
import type { Format, SimdBlocks, SimdReader } from "../formats/format.ts";
import { FORMATS } from "../formats/mod.ts";
import {
  type MulAdd,
  softmax,
  swiglu,
  unpackHeads,
  weightedSum,
} from "./wasm_attention.ts";
import {
  assemble,
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
import { DOT_ROWS, FarRows, SimdWriter, sumLanes } from "./simd_code.ts";
import {
  dotBlocks,
  isBlocks,
  type Relaxed,
  roundingOf,
  unpackBlocks,
} from "./wasm_blocks.ts";
import { normRows } from "./wasm_norm.ts";
import { type WideKernels, wideKernels } from "./wasm_wide.ts";
import { inPanels, type PanelFormat } from "./panels.ts";
import { dotPanels, interleaveRows, unpackPanels } from "./wasm_panels.ts";
import { isSuper, roundRow, roundWordsName } from "./wasm_round.ts";
import { dotSuperBlocks, roundSuperRow } from "./wasm_super_blocks.ts";

/** A format that the kernels can read. */
export type SimdFormat = Format & { readonly simd: SimdReader | SimdBlocks };
/** One of single floats. */
type FloatFormat = Format & { readonly simd: SimdReader };

/** The formats that the kernels can read row by row. */
const IN_ROWS = FORMATS.filter((format): format is SimdFormat =>
  format.simd !== undefined
);
/** Those that have their rows in panels. */
const IN_PANELS = IN_ROWS.filter(isBlocks).map(inPanels)
  .filter((format) => format !== undefined);
/** The formats that the kernels can read; jobs refer to them by index. */
export const SIMD_FORMATS: readonly SimdFormat[] = [...IN_ROWS, ...IN_PANELS];

/** The format of the same blocks in panels; undefined if the kernels do not read that. */
export const panelsOf = (format: Format): PanelFormat | undefined =>
  IN_PANELS.find(({ rows }) => rows === format);

/** Addresses of the planes of a matrix; 0 if there are fewer. */
export type Planes = [number, number, number, number];

/** What the module exports. */
export type WasmKernels =
  & {
    /**
     * `y[j] = x · w[j]` for one row of x, or a pair, `xBytes` apart, and `n` rows of w; used
     * for few rows of x. Results of a pair are `yBytes` apart.
     */
    [format: `dot_${string}` | `dotPair_${string}`]: (
      x: number,
      w: number,
      rowBytes: number,
      n: number,
      k: number,
      tailMask: number,
      y: number,
      xBytes: number,
      yBytes: number,
    ) => void;
  }
  & {
    /** Unpacks rows of w to f32, zero-padded, for {@link WasmKernels.tiles}. */
    [format: `unpack_${string}`]: (
      w: number,
      rowBytes: number,
      n: number,
      k: number,
      tailMask: number,
      out: number,
      outBytes: number,
    ) => void;
  }
  & {
    /**
     * `dot_…` for a format of blocks, in up to four planes: first those of quants. x has
     * been rounded by `roundRow_…`.
     * `tailMask` applies to the factors of the last `k / group % 4` groups. `scratch` has
     * room for `dotScratch` bytes.
     */
    [format: `dotBlocks_${string}`]: (
      ...args: [
        ...planes: Planes,
        x: number,
        n: number,
        k: number,
        tailMask: number,
        y: number,
        scratch: number,
      ]
    ) => void;
  }
  & {
    /**
     * Rounds groups of x in which no element exceeds `most` times the mean size; writes
     * `roundedBytes` bytes after x. For the name see {@linkcode roundRowName}.
     */
    [
      sizes:
        | `roundRow_${number}_${number}_${number}`
        | `roundWords_${number}_${number}`
    ]: (
      x: number,
      k: number,
      most: number,
    ) => void;
  }
  & {
    /**
     * `unpack_…` for `width` columns, whole blocks, of rows of `k` elements in a format of
     * blocks. `scratch` has room for a scale and a minimum of each group.
     */
    [format: `unpackBlocks_${string}`]: (
      ...args: [
        ...planes: Planes,
        n: number,
        k: number,
        width: number,
        tailMask: number,
        out: number,
        outBytes: number,
        scratch: number,
      ]
    ) => void;
  }
  & {
    /** `y = x · wᵀ` for TILE unpacked rows of w and all rows of x; adds to y if `add`. */
    tiles(
      x: number,
      xBytes: number,
      rows: number,
      w: number,
      wBytes: number,
      kBytes: number,
      y: number,
      yBytes: number,
      add: number,
    ): void;
    /** Softmax of `scale · x[0 .. count]` in place, zeros up to `total` (a multiple of 4). */
    softmax(x: number, count: number, total: number, scale: number): void;
    /**
     * `out[r] = Σ weights[r, p] · values[p]` over `count` rows of values; adds to out if
     * `add`.
     */
    weightedSum(
      weights: number,
      weightsBytes: number,
      rows: number,
      values: number,
      rowBytes: number,
      count: number,
      out: number,
      outBytes: number,
      add: number,
    ): void;
    /** Unpacks `count` cached heads in q8_0 to f32. */
    unpackHeads(
      quants: number,
      scales: number,
      scalesBytes: number,
      count: number,
      headBytes: number,
      out: number,
    ): void;
    /**
     * RMSNorm of `count` rows of `size` elements (a multiple of NORM_STEP) in place, and
     * their rotation unless `angles` is 0: `size / 2` cosines, then sines.
     */
    normRows(
      x: number,
      count: number,
      size: number,
      weight: number,
      eps: number,
      angles: number,
    ): void;
    /**
     * Puts eight rows of a plane, `rowBytes` apart, a multiple of 16, in the order of a panel.
     */
    interleave(from: number, rowBytes: number, to: number): void;
    /** Moves the even elements of each of `eights` times eight before the odd ones. */
    evenFirst(x: number, eights: number): void;
    /** `g = silu(g) · u` in place, `count` elements (a multiple of 4). */
    swiglu(g: number, u: number, count: number): void;
  }
  & Partial<WideKernels>;

/**
 * Rows of w, and of x, that `tiles` multiplies at once: 9 sums and 4 factors fit V8's 15
 * registers.
 */
export const TILE = 3;

/**
 * The module, with or without relaxed SIMD. With it, `bits` of quants are multiplied as
 * bytes: 7, or 8 if this engine takes them as unsigned, see {@linkcode unsignedBytes}.
 * With `wide`, it has kernels for vectors of 256 bits.
 */
export function wasmKernels(
  relaxed: boolean,
  bits: 7 | 8 = 7,
  wide = false,
): Uint8Array<ArrayBuffer> {
  const instructions: Relaxed = relaxed
    ? {
      mulAdd: f32x4.relaxedMulAdd,
      swizzle: i8x16.relaxedSwizzle,
      dotBytes: i16x8.relaxedDot,
      bits,
    }
    : {
      mulAdd: (a, b, c) => f32x4.add(f32x4.mul(a, b), c),
      swizzle: i8x16.swizzle,
      // Sums of products of elements that are eight apart do as well.
      dotBytes: (a, b) =>
        i16x8.add(...i16x8.multiplyBytes.map((half) => half(a, b))),
    };
  const { mulAdd } = instructions;
  const blocks = IN_ROWS.filter(isBlocks);
  const floats = IN_ROWS.filter((format): format is FloatFormat =>
    !isBlocks(format)
  );
  return assemble([
    ...floats.flatMap((format) => [
      dot(format, mulAdd, 1),
      dot(format, mulAdd, 2),
      unpack(format),
    ]),
    ...blocks.flatMap((format) => [
      isSuper(format.simd)
        ? dotSuperBlocks(format, instructions)
        : dotBlocks(format, instructions),
      unpackBlocks(format, instructions),
    ]),
    ...IN_PANELS.flatMap((format) => [
      dotPanels(format, instructions),
      unpackPanels(format, instructions),
    ]),
    ...new Map([
      ...blocks.map(({ simd }) =>
        isSuper(simd)
          ? roundSuperRow(simd)
          : roundRow(simd, roundingOf(simd, instructions))
      ),
      ...IN_PANELS.map(({ simd }) =>
        roundRow(simd, "words", roundWordsName(simd))
      ),
    ].map((made) => [made.name, made])).values(),
    interleaveRows(),
    tiles(mulAdd),
    softmax(mulAdd),
    weightedSum(mulAdd),
    unpackHeads(),
    swiglu(mulAdd),
    normRows(),
    evenFirst(),
    ...wide ? wideKernels(mulAdd) : [],
  ]);
}

/**
 * Whether this engine multiplies unsigned bytes right although relaxed SIMD only promises
 * it below 128: x86's VNNI does, others take them as signed or let sums saturate. An
 * engine must do the same each time.
 */
export function unsignedBytes(): boolean {
  const f = new FunctionBuilder("multiply", { at: "i32" }),
    { at } = f.parameters;
  const bytes = (value: number) => v128.const(Array(16).fill(value));
  const product = i32x4.relaxedDotAdd(bytes(128), bytes(255), f.ints(1));
  const module = assemble([f.finish([v128.store()(at.get, product)])]);
  if (!WebAssembly.validate(module)) return false;
  const memory = new WebAssembly.Memory({
    initial: 1,
    maximum: 65536,
    shared: true,
  });
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(module), {
    work: { memory },
  });
  (exports.multiply as (at: number) => void)(0);
  return new Int32Array(memory.buffer, 0, 4).every((sum) =>
    sum === 1 - 4 * 128 * 255
  );
}

/** Unpacks eight stored elements into two f32x4, in the order of their format. */
class Unpacker {
  readonly halves: [Local, Local];
  readonly #writer: SimdWriter;

  /** With `marks`, which collects those of the reader, elements should be finite. */
  constructor(
    readonly simd: SimdReader,
    f: FunctionBuilder<string>,
    readonly marks?: Local,
  ) {
    this.halves = [f.local("v128"), f.local("v128")];
    this.#writer = new SimdWriter(f, i8x16.swizzle);
  }

  /** Sets `halves`, masked by the two masks at address `mask` if given. */
  load(address: Code, mask?: Code): Code[] {
    const reader = this.marks ? this.simd.finite! : this.simd;
    const { kept, values } = this.#writer.write((simd): Code[] =>
      reader.unpack(simd, (byte) => v128.load(byte)(address))
    );
    return [
      ...kept,
      ...(this.marks
        ? [this.marks.set(v128.or(this.marks.get, values[2]))]
        : []),
      ...this.halves.map((half, h) =>
        half.set(
          mask ? v128.and(values[h], v128.load(16 * h)(mask)) : values[h],
        )
      ),
    ];
  }
}

/** Builds `WasmKernels.dot_…` for one row of x, `dotPair_…` for two. */
function dot(format: FloatFormat, mulAdd: MulAdd, height: 1 | 2) {
  const f = new FunctionBuilder(
    `${height === 1 ? "dot" : "dotPair"}_${format.name}`,
    {
      x: "i32",
      w: "i32",
      rowBytes: "i32",
      n: "i32",
      k: "i32",
      tailMask: "i32",
      y: "i32",
      xBytes: "i32",
      yBytes: "i32",
    },
  );
  const { x, w, rowBytes, n, k, tailMask, y, xBytes, yBytes } = f.parameters;
  const end = f.local("i32"), far = new FarRows(f, n);
  const at = times(height, () => f.local("i32"));
  const rows = times(DOT_ROWS, () => f.local("i32"));
  const xs = times(height, () => times(2, () => f.local("v128")));
  const unpacker = new Unpacker(format.simd, f);
  const { finite } = format.simd, marks = finite && f.local("v128");
  // One row of x alone has a sum for each half, as it takes as many to hide their latency.
  const halves = 2 / height;
  const sums = times(
    DOT_ROWS,
    () => times(height, () => times(halves, () => f.local("v128"))),
  );

  const step = (unpacker: Unpacker, mask?: Code): Code[] => [
    ...xs.flatMap((own, i) =>
      own.map((half, h) => half.set(v128.load(16 * h)(at[i].get)))
    ),
    ...rows.flatMap((row, r) => [
      ...unpacker.load(row.get, mask),
      ...xs.flatMap((own, i) =>
        unpacker.halves.map((half, h) => {
          const sum = sums[r][i][h % halves];
          return sum.set(mulAdd(half.get, own[h].get, sum.get));
        })
      ),
      increase(row, format.simd.bytes),
    ]),
    ...at.map((at) => increase(at, 32)),
  ];
  const multiply = (unpacker: Unpacker): Code[] => [
    ...rows.map((row, r) =>
      row.set(i32.add(w.get, i32.mul(rowBytes.get, far.row(i32.const(r)))))
    ),
    ...sums.flat(2).map((sum) => sum.set(f.floats(0))),
    ...at.map((at, i) => at.set(i ? i32.add(x.get, xBytes.get) : x.get)),
    loop(i32.lessUnsigned(at[0].get, end.get), step(unpacker)),
    branch(tailMask.get, step(unpacker, tailMask.get)),
  ];
  return f.finish([
    end.set(groupsEnd(x, k)),
    ...far.each([
      ...(finite && marks
        ? [
          marks.set(f.ints(0)),
          ...multiply(new Unpacker(format.simd, f, marks)),
          branch(
            v128.anyTrue(v128.and(marks.get, f.ints(finite.marks))),
            multiply(unpacker),
          ),
        ]
        : multiply(unpacker)),
      ...at.flatMap((_, i) =>
        far.store(
          i ? i32.add(y.get, yBytes.get) : y.get,
          sums.map((row) =>
            row[i].map(({ get }) => get).reduce((a, b) => f32x4.add(a, b))
          ),
        )
      ),
    ]),
  ]);
}

/** The end of the whole groups of eight among `k` f32s at `x`. */
const groupsEnd = (x: Local, k: Local): Code =>
  i32.add(x.get, i32.shl(i32.and(k.get, i32.const(-8)), i32.const(2)));

function unpack(format: FloatFormat) {
  const f = new FunctionBuilder(`unpack_${format.name}`, {
    w: "i32",
    rowBytes: "i32",
    n: "i32",
    k: "i32",
    tailMask: "i32",
    out: "i32",
    outBytes: "i32",
  });
  const { w, rowBytes, n, k, tailMask, out, outBytes } = f.parameters;
  const [j, from, to, end] = times(4, () => f.local("i32"));
  const unpacker = new Unpacker(format.simd, f);
  const step = (mask?: Code): Code[] => [
    ...unpacker.load(from.get, mask),
    ...unpacker.halves.map((half, h) => v128.store(16 * h)(to.get, half.get)),
    increase(from, format.simd.bytes),
    increase(to, 32),
  ];
  return f.finish([
    loop(i32.lessUnsigned(j.get, n.get), [
      from.set(w.get),
      to.set(out.get),
      end.set(groupsEnd(out, k)),
      loop(i32.lessUnsigned(to.get, end.get), step()),
      branch(tailMask.get, step(tailMask.get)),
      increase(w, rowBytes.get),
      increase(out, outBytes.get),
      increase(j, 1),
    ]),
  ]);
}

function evenFirst() {
  const f = new FunctionBuilder("evenFirst", { x: "i32", eights: "i32" });
  const { x, eights } = f.parameters;
  const halves = times(2, () => f.local("v128"));
  const [a, b] = halves.map(({ get }) => get);
  return f.finish([
    loop(i32.lessUnsigned(i32.const(0), eights.get), [
      ...halves.map((half, h) => half.set(v128.load(16 * h)(x.get))),
      v128.store()(x.get, f32x4.shuffle(0, 2, 4, 6)(a, b)),
      v128.store(16)(x.get, f32x4.shuffle(1, 3, 5, 7)(a, b)),
      increase(x, 32),
      increase(eights, -1),
    ]),
  ]);
}

function tiles(mulAdd: MulAdd) {
  const f = new FunctionBuilder("tiles", {
    x: "i32",
    xBytes: "i32",
    rows: "i32",
    w: "i32",
    wBytes: "i32",
    kBytes: "i32",
    y: "i32",
    yBytes: "i32",
    add: "i32",
  });
  const { x, xBytes, rows, w, wBytes, kBytes, y, yBytes, add } = f.parameters;
  const r = f.local("i32"), end = f.local("i32");
  const xAt = times(TILE, () => f.local("i32"));
  const wAt = times(TILE, () => f.local("i32"));
  const xs = times(TILE, () => f.local("v128")), wv = f.local("v128");
  const sums = times(TILE, () => times(TILE, () => f.local("v128")));

  /** `count` rows of x against the rows of w. */
  const tile = (count: number): Code[] => [
    ...xAt.slice(0, count).map((at, i) =>
      at.set(i ? i32.add(xAt[i - 1].get, xBytes.get) : x.get)
    ),
    ...wAt.map((at, j) =>
      at.set(j ? i32.add(wAt[j - 1].get, wBytes.get) : w.get)
    ),
    ...sums.slice(0, count).flat().map((sum) => sum.set(f.floats(0))),
    end.set(i32.add(x.get, kBytes.get)),
    loop(i32.lessUnsigned(xAt[0].get, end.get), [
      ...times(2, (u) => [ // k is a multiple of 8
        ...xs.slice(0, count).map((value, i) =>
          value.set(v128.load(16 * u)(xAt[i].get))
        ),
        ...wAt.flatMap((at, j) => [
          wv.set(v128.load(16 * u)(at.get)),
          ...xs.slice(0, count).map((value, i) =>
            sums[i][j].set(mulAdd(wv.get, value.get, sums[i][j].get))
          ),
        ]),
      ]).flat(),
      ...[...xAt.slice(0, count), ...wAt].map((at) => increase(at, 32)),
    ]),
    ...sums.slice(0, count).flatMap((row) => [
      wv.set(sumLanes(f, row.map((sum) => sum.get))),
      ...row.map((_, j) => {
        const value = f32x4.lane(j)(wv.get);
        return branch(
          add.get,
          [f32.store(4 * j)(y.get, f32.add(f32.load(4 * j)(y.get), value))],
          [f32.store(4 * j)(y.get, value)],
        );
      }),
      increase(y, yBytes.get),
    ]),
    ...times(count, () => increase(x, xBytes.get)),
    increase(r, count),
  ];
  return f.finish([
    loop(
      i32.lessUnsigned(i32.add(r.get, i32.const(TILE - 1)), rows.get),
      tile(TILE),
    ),
    loop(i32.lessUnsigned(i32.add(r.get, i32.const(1)), rows.get), tile(2)),
    branch(i32.lessUnsigned(r.get, rows.get), tile(1)),
  ]);
}
