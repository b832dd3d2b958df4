/**
 * The instructions that formats are described with, as WebAssembly.
 *
 * @module
 */
import type { SimdCode } from "../formats/format.ts";
import {
  type Code,
  f32,
  f32x4,
  type FunctionBuilder,
  i32,
  i32x4,
  increase,
  type Local,
  loop,
  min,
  times,
  v128,
} from "./assembler.ts";

/** Makes code for a format's expressions. */
export class SimdWriter {
  readonly #locals: Local[] = [];
  #kept: Code[] = [];
  readonly #simd: SimdCode<Code>;

  /** `swizzle` is that of bytes, with indices below 16 or from 128 on. */
  constructor(
    f: FunctionBuilder<string>,
    swizzle: (bytes: Code, indices: Code) => Code,
  ) {
    this.#simd = {
      keep: (value) => {
        const local = this.#locals[this.#kept.length] ??= f.local("v128");
        this.#kept.push(local.set(value));
        return local.get;
      },
      bits: (value) => f.ints(value),
      number: (value) => f.floats(value),
      words: (values) => f.words(values),
      bytes: (value, indices) =>
        swizzle(value, f.bytes(indices.map((index) => index & 255))),
      interleave: (a, b) => [
        f32x4.shuffle(0, 4, 1, 5)(a, b),
        f32x4.shuffle(2, 6, 3, 7)(a, b),
      ],
      shiftLeft: (value, by) => i32x4.shiftLeft(value, i32.const(by)),
      shiftLanes: (value, by) =>
        i32x4.mul(value, f.words(by.map((by) => 2 ** by))),
      shiftRight: (value, by) => i32x4.shiftRight(value, i32.const(by)),
      and: v128.and,
      or: v128.or,
      addInts: i32x4.add,
      subInts: i32x4.sub,
      toFloat: f32x4.convert,
      add: f32x4.add,
      sub: f32x4.sub,
      mul: f32x4.mul,
      min: f32x4.min,
      abs: f32x4.abs,
      greaterEqual: f32x4.greaterEqual,
    };
  }

  /** Code of expressions that `make` returns, after assignments to what they keep. */
  write<T>(make: (simd: SimdCode<Code>) => T): { kept: Code[]; values: T } {
    this.#kept = [];
    const values = make(this.#simd);
    return { kept: this.#kept, values };
  }
}

/** Rows of w that are multiplied at once. */
export const DOT_ROWS = 4;

/**
 * The rows of a pass over `n` rows of w, DOT_ROWS at a time. They are far apart, each on
 * a page of its own: at the first line of a page, a thread waits, because hardware reads
 * ahead only within pages, and now it waits for four pages at once.
 */
export class FarRows {
  readonly #step: Local;
  readonly #apart: Local;

  constructor(readonly f: FunctionBuilder<string>, readonly n: Local) {
    this.#step = f.local("i32");
    this.#apart = f.local("i32");
  }

  #index(r: Code): Code {
    return i32.add(this.#step.get, i32.mul(r, this.#apart.get));
  }

  /** Row number `r` of those at once. Past the last one, it is the last one again. */
  row(r: Code): Code {
    return min(this.#index(r), i32.sub(this.n.get, i32.const(1)));
  }

  /** The word for row number `r` of those from `words` on; 0 past the last row. */
  wordOf(r: Code, words: Code): Code {
    const at = i32.add(words, i32.shl(this.row(r), i32.const(2)));
    const inside = i32.lessUnsigned(this.#index(r), this.n.get);
    return i32.and(i32.load()(at), i32.sub(i32.const(0), inside));
  }

  /** Runs `body` for all rows. */
  each(body: Code[]): Code[] {
    const { n } = this, step = this.#step, apart = this.#apart;
    const rounded = i32.add(n.get, i32.const(DOT_ROWS - 1));
    return [
      step.set(i32.const(0)),
      apart.set(i32.shrUnsigned(rounded, i32.const(Math.log2(DOT_ROWS)))),
      loop(i32.lessUnsigned(step.get, apart.get), [
        ...body,
        increase(step, 1),
      ]),
    ];
  }

  /** Stores the sums of the lanes of one vector for each row, from `y` on. */
  store(y: Code, vectors: Code[]): Code[] {
    const f = this.f, sums = f.local("v128");
    return [
      sums.set(sumLanes(f, vectors)),
      ...vectors.map((_, r) => {
        const at = i32.shl(this.row(i32.const(r)), i32.const(2));
        return f32.store()(i32.add(y, at), f32x4.lane(r)(sums.get));
      }),
    ];
  }
}

/** The sums of the lanes of up to four vectors, as one vector. */
export function sumLanes(f: FunctionBuilder<string>, vectors: Code[]): Code {
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
