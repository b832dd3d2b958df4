/**
 * The inner loops of the CPU path in WebAssembly SIMD.
 *
 * Arguments are addresses, distances between rows in bytes (`…Bytes`) and
 * counts. 16-bit elements are unpacked as the even and the odd ones of eight, so
 * x has to come with every eight elements as 0 2 4 6 1 3 5 7.
 *
 * Deno has no trap handler, so V8 puts a check before every load: kernels are
 * built to do much with each.
 *
 * @module
 */
import { type MulAdd, softmax, swiglu, weightedSum } from "./wasm_attention.ts";
import {
  assemble,
  branch,
  type Code,
  f32,
  f32x4,
  FunctionBuilder,
  i32,
  i32x4,
  increase,
  type Local,
  loop,
  min,
  times,
  v128,
} from "./assembler.ts";

/** Element types that products read from stored tensors. */
export type StoredDtype = "f32" | "f16" | "bf16";

/** What the module exports. */
export type WasmKernels =
  & {
    /** `y[j] = x · w[j]` for `n` rows of w, read once: for a few rows of x. */
    [D in StoredDtype as `dot_${D}`]: (
      x: number,
      w: number,
      rowBytes: number,
      n: number,
      k: number,
      tailMask: number,
      y: number,
    ) => void;
  }
  & {
    /** Rows of w as f32, zeros after the last column, for {@link WasmKernels.tiles}. */
    [D in StoredDtype as `unpack_${D}`]: (
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
    /** `y = x · wᵀ` of TILE unpacked rows of w with each row of x, added to y if `add`. */
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
    /** `out[r] = Σ weights[r, p] · values[p]` over `count` rows of `values`, added to out if `add`. */
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
    /** `g = silu(g) · u` in place, `count` elements (a multiple of 4). */
    swiglu(g: number, u: number, count: number): void;
  };

/** Rows of w that `dot` reads at once. */
export const DOT_ROWS = 4;
/** Rows of w, and of x, that `tiles` multiplies at once: 9 sums and 4 factors fit V8's 15 registers. */
export const TILE = 3;

/** The module, with or without relaxed SIMD's fused multiply-add. */
export function wasmKernels(relaxed: boolean): Uint8Array<ArrayBuffer> {
  const mulAdd: MulAdd = relaxed
    ? f32x4.relaxedMulAdd
    : (a, b, c) => f32x4.add(f32x4.mul(a, b), c);
  const types = ["f32", "f16", "bf16"] as const;
  return assemble([
    ...types.map((type) => dot(type, mulAdd)),
    ...types.map((type) => unpack(type)),
    tiles(mulAdd),
    softmax(mulAdd),
    weightedSum(mulAdd),
    swiglu(mulAdd),
  ]);
}

/** Bytes of eight stored elements. */
const GROUP = { f32: 32, f16: 16, bf16: 16 };

/**
 * Unpacks eight stored elements into two f32x4: the lower and upper four of f32,
 * the even and odd ones of 16-bit types.
 */
class Unpacker {
  readonly halves: [Local, Local];
  readonly #bits: Local;

  constructor(
    readonly type: StoredDtype,
    private readonly f: FunctionBuilder<string>,
  ) {
    this.halves = [f.local("v128"), f.local("v128")];
    this.#bits = f.local("v128");
  }

  /** Sets `halves`, zero where `mask` (an address of two masks) is. */
  load(address: Code, mask?: Code): Code[] {
    const load = (offset: number) => v128.load(offset)(address);
    const bits = this.#bits;
    const halves = this.type === "f32" ? [load(0), load(16)] : [
      i32x4.shiftLeft(bits.get, i32.const(16)),
      v128.and(bits.get, this.f.ints(0xffff0000)),
    ];
    return [
      this.type === "f32" ? [] : bits.set(load(0)),
      ...this.halves.flatMap((half, h) => [
        half.set(
          mask ? v128.and(halves[h], v128.load(16 * h)(mask)) : halves[h],
        ),
        this.type === "f16" ? this.#finishF16(half) : [],
      ]),
    ];
  }

  /**
   * Moves sign, exponent and fraction into place; a product corrects the
   * exponent's bias (and normalises subnormals, exactly); what had the largest
   * exponent is infinity or NaN.
   */
  #finishF16(half: Local): Code {
    return [
      ...half.set(f32x4.mul(
        v128.and(
          i32x4.shiftRight(half.get, i32.const(3)),
          this.f.ints(0x8fffe000),
        ),
        this.f.floats(2 ** 112),
      )),
      ...half.set(v128.or(
        half.get,
        v128.and(
          f32x4.greaterEqual(
            f32x4.abs(half.get),
            this.f.floats(65536),
          ),
          this.f.floats(Infinity),
        ),
      )),
    ];
  }
}

function dot(type: StoredDtype, mulAdd: MulAdd) {
  const f = new FunctionBuilder(`dot_${type}`, {
    x: "i32",
    w: "i32",
    rowBytes: "i32",
    n: "i32",
    k: "i32",
    tailMask: "i32",
    y: "i32",
  });
  const { x, w, rowBytes, n, k, tailMask, y } = f.parameters;
  const [j, at, end] = times(3, () => f.local("i32"));
  const rows = times(DOT_ROWS, () => f.local("i32"));
  const xs = times(2, () => f.local("v128"));
  const unpacker = new Unpacker(type, f);
  const sums = times(DOT_ROWS, () => times(2, () => f.local("v128")));

  const step = (mask?: Code): Code[] => [
    ...xs.map((half, h) => half.set(v128.load(16 * h)(at.get))),
    ...rows.flatMap((row, r) => [
      ...unpacker.load(row.get, mask),
      ...unpacker.halves.map((half, h) =>
        sums[r][h].set(mulAdd(half.get, xs[h].get, sums[r][h].get))
      ),
      increase(row, GROUP[type]),
    ]),
    increase(at, 32),
  ];
  return f.finish([
    end.set(groupsEnd(x, k)),
    loop(i32.lessUnsigned(j.get, n.get), [
      // Rows past the last read the last one again; their sums are not used.
      ...rows.map((row, r) => {
        const index = min(
          i32.add(j.get, i32.const(r)),
          i32.sub(n.get, i32.const(1)),
        );
        return row.set(i32.add(w.get, i32.mul(rowBytes.get, index)));
      }),
      ...sums.flat().map((sum) => sum.set(f.floats(0))),
      at.set(x.get),
      loop(i32.lessUnsigned(at.get, end.get), step()),
      branch(tailMask.get, step(tailMask.get)),
      v128.store()(
        y.get,
        sumLanes(f, sums.map(([a, b]) => f32x4.add(a.get, b.get))),
      ),
      increase(y, 16),
      increase(j, DOT_ROWS),
    ]),
  ]);
}

/** The address in f32s from `x` on that lies after the last whole group of eight in `k`. */
const groupsEnd = (x: Local, k: Local): Code =>
  i32.add(x.get, i32.shl(i32.and(k.get, i32.const(-8)), i32.const(2)));

/** The sums of the lanes of up to four vectors, as one vector. */
function sumLanes(f: FunctionBuilder<string>, vectors: Code[]): Code {
  const [a, b, c, d] = times(4, () => f.local("v128"));
  const add = (p: Local, q: Local) =>
    f32x4.add(
      f32x4.shuffle(0, 4, 1, 5)(p.get, q.get),
      f32x4.shuffle(2, 6, 3, 7)(p.get, q.get),
    );
  return [
    ...[a, b, c, d].flatMap((local, i) => local.set(vectors[i] ?? f.floats(0))),
    ...a.set(add(a, b)), // a0+a2, b0+b2, a1+a3, b1+b3
    ...c.set(add(c, d)),
    ...f32x4.add(
      f32x4.shuffle(0, 1, 4, 5)(a.get, c.get),
      f32x4.shuffle(2, 3, 6, 7)(a.get, c.get),
    ),
  ];
}

function unpack(type: StoredDtype) {
  const f = new FunctionBuilder(`unpack_${type}`, {
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
  const unpacker = new Unpacker(type, f);
  const step = (mask?: Code): Code[] => [
    ...unpacker.load(from.get, mask),
    ...unpacker.halves.map((half, h) => v128.store(16 * h)(to.get, half.get)),
    increase(from, GROUP[type]),
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
