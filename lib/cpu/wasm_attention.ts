/**
 * The WebAssembly kernels for attention and SwiGLU.
 *
 * @module
 */
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

/**
 * Below every score, and its exp is 0; not -Infinity, from which the maximum could not be
 * subtracted. The WGSL kernels use the same value, but the CPU imports nothing of WebGPU.
 */
const LOW = -3e38;

/** `a · b + c` of f32x4. */
export type MulAdd = (a: Code, b: Code, c: Code) => Code;

/**
 * Sets `x = exp(x)`, accurate to about one unit in the last place:
 * `2ⁿ · exp(x − n·ln 2)`, with a Taylor polynomial for the second factor. The result is
 * Infinity above 88.4 (n is 128), and tiny below −87, where f32 underflows.
 */
function exp(
  x: Local,
  n: Local,
  f: FunctionBuilder<string>,
  mulAdd: MulAdd,
): Code {
  const factorials = [5040, 720, 120, 24, 6, 2, 1, 1];
  const [high, low] = [0.693359375, Math.LN2 - 0.693359375]; // n · high is exact
  const power = i32x4.shiftLeft(
    i32x4.add(i32x4.truncate(n.get), f.ints(127)),
    i32.const(23),
  );
  return [
    ...x.set(f32x4.max(f32x4.min(x.get, f.floats(89)), f.floats(-87))),
    ...n.set(f32x4.nearest(f32x4.mul(x.get, f.floats(Math.LOG2E)))),
    ...x.set(mulAdd(n.get, f.floats(-high), x.get)),
    ...x.set(mulAdd(n.get, f.floats(-low), x.get)),
    ...x.set(f32x4.mul(
      factorials.slice(1).reduce(
        (sum, factorial) => mulAdd(sum, x.get, f.floats(1 / factorial)),
        f.floats(1 / factorials[0]),
      ),
      power,
    )),
  ];
}

/** Builds `WasmKernels.softmax`. */
export function softmax(mulAdd: MulAdd) {
  const f = new FunctionBuilder("softmax", {
    x: "i32",
    count: "i32",
    total: "i32",
    scale: "f32",
  });
  const { x, count, total, scale } = f.parameters;
  const at = f.local("i32"), end = f.local("i32");
  const value = f.local("v128"),
    n = f.local("v128"),
    max = f.local("v128"),
    sum = f.local("v128");
  const lanes = (combine: typeof f32.add, local: Local) =>
    [0, 1, 2, 3].map((lane) => f32x4.lane(lane)(local.get)).reduce((a, b) =>
      combine(a, b)
    );
  const fill = (content: number) => [
    at.set(end.get),
    loop(i32.lessUnsigned(at.get, total.get), [
      f32.store()(at.get, f32.const(content)),
      increase(at, 4),
    ]),
  ];
  const each = (body: Code[]) => [
    at.set(x.get),
    loop(i32.lessUnsigned(at.get, total.get), [...body, increase(at, 16)]),
  ];
  return f.finish([
    end.set(i32.add(x.get, i32.shl(count.get, i32.const(2)))),
    total.set(i32.add(x.get, i32.shl(total.get, i32.const(2)))),
    ...fill(LOW),
    max.set(f.floats(-Infinity)),
    ...each([max.set(f32x4.max(max.get, v128.load()(at.get)))]),
    max.set(f32x4.splat(lanes(f32.max, max))),
    ...each([
      value.set(f32x4.mul(
        f32x4.sub(v128.load()(at.get), max.get),
        f32x4.splat(scale.get),
      )),
      exp(value, n, f, mulAdd),
      v128.store()(at.get, value.get),
    ]),
    ...fill(0),
    sum.set(f.floats(0)),
    ...each([sum.set(f32x4.add(sum.get, v128.load()(at.get)))]),
    sum.set(f32x4.splat(f32.div(f32.const(1), lanes(f32.add, sum)))),
    ...each([
      v128.store()(at.get, f32x4.mul(v128.load()(at.get), sum.get)),
    ]),
  ]);
}

/**
 * Builds `WasmKernels.unpackHeads`: heads of a cache in q8_0 to f32. `headBytes` are those
 * of quants, which are one byte each; see lib/formats/cached.ts.
 */
export function unpackHeads() {
  const f = new FunctionBuilder("unpackHeads", {
    quants: "i32",
    scales: "i32",
    scalesBytes: "i32",
    count: "i32",
    headBytes: "i32",
    out: "i32",
  });
  const { quants, scales, scalesBytes, count, headBytes, out } = f.parameters;
  const [head, at, end, scaleAt, last] = times(5, () => f.local("i32"));
  const scale = f.local("v128"), eight = f.local("v128");
  const put = (from: number, to: Code) => [
    eight.set(i16x8.loadBytes(from)(at.get)),
    ...[i32x4.extendFirst, i32x4.extendLast].map((extend, i) =>
      v128.store(16 * i)(
        to,
        f32x4.mul(scale.get, f32x4.convert(extend(eight.get))),
      )
    ),
  ];
  // The bits of an f16 that is not negative, in the place of an f32's; the factor corrects
  // the exponent's bias, exactly, subnormal numbers included. Beyond 65,504 it is NaN: of a
  // block with a NaN, the scale is one.
  const bits = i32.loadHalf()(scaleAt.get);
  const isNaN = i32.lessUnsigned(i32.const(0x7bff), bits);
  const factor = i32.add(
    i32.const(0x77800000), // 2 ** 112
    i32.mul(isNaN, i32.const(0x08400000)),
  );
  const value = f32.mul(
    f32.fromBits(i32.shl(bits, i32.const(13))),
    f32.fromBits(factor),
  );
  const half = i32.shl(headBytes.get, i32.const(1)); // bytes of half a head in f32
  return f.finish([
    at.set(quants.get),
    end.set(i32.add(quants.get, i32.mul(count.get, headBytes.get))),
    loop(i32.lessUnsigned(at.get, end.get), [
      head.set(out.get),
      scaleAt.set(scales.get),
      last.set(i32.add(at.get, headBytes.get)),
      loop(i32.lessUnsigned(at.get, last.get), [
        scale.set(f32x4.splat(value)),
        ...times(2, () => [
          ...put(0, head.get),
          ...put(8, i32.add(head.get, half)),
          increase(at, 16),
          increase(head, 32),
        ]).flat(),
        increase(scaleAt, 2),
      ]),
      increase(scales, scalesBytes.get),
      increase(out, i32.shl(headBytes.get, i32.const(2))),
    ]),
  ]);
}

/**
 * Builds `WasmKernels.weightedSum`. Rows of values are read from end to end, several far
 * apart at once, as {@linkcode FarRows} says.
 */
export function weightedSum(mulAdd: MulAdd) {
  const f = new FunctionBuilder("weightedSum", {
    weights: "i32",
    weightsBytes: "i32",
    rows: "i32",
    values: "i32",
    rowBytes: "i32",
    count: "i32",
    out: "i32",
    outBytes: "i32",
    add: "i32",
  });
  const a = f.parameters, far = new FarRows(f, a.count);
  const [r, d] = times(2, () => f.local("i32"));
  const to = times(2, () => f.local("i32"));
  const from = times(DOT_ROWS, () => f.local("i32"));
  const vs = times(DOT_ROWS, () => f.local("v128"));
  const weights = times(2, () => times(DOT_ROWS, () => f.local("v128")));
  const sum = f.local("v128");

  /** The sums of `height` rows of weights. */
  const rows = (height: number): Code[] => {
    const outs = to.slice(0, height);
    const toStart = [
      to[0].set(a.out.get),
      to[1].set(i32.add(a.out.get, a.outBytes.get)),
      d.set(i32.const(0)),
    ];
    const next = [...outs.map((at) => increase(at, 16)), increase(d, 16)];
    const inRow = i32.lessUnsigned(d.get, a.rowBytes.get);
    return [
      branch(a.add.get, [], [
        ...toStart,
        loop(inRow, [
          ...outs.map((at) => v128.store()(at.get, f.floats(0))),
          ...next,
        ]),
      ]),
      ...far.each([
        ...from.flatMap((at, p) => [
          at.set(i32.add(
            a.values.get,
            i32.mul(far.row(i32.const(p)), a.rowBytes.get),
          )),
          ...outs.map((_, h) =>
            weights[h][p].set(i32x4.splat(far.wordOf(
              i32.const(p),
              h ? i32.add(a.weights.get, a.weightsBytes.get) : a.weights.get,
            )))
          ),
        ]),
        ...toStart,
        loop(inRow, [
          ...vs.map((v, p) => v.set(v128.load()(from[p].get))),
          ...outs.flatMap((at, h) => [
            sum.set(v128.load()(at.get)),
            v128.store()(
              at.get,
              vs.reduce(
                (sum, v, p) => mulAdd(weights[h][p].get, v.get, sum),
                sum.get,
              ),
            ),
          ]),
          ...from.map((at) => increase(at, 16)),
          ...next,
        ]),
      ]),
      ...times(height, () => [
        increase(a.weights, a.weightsBytes.get),
        increase(a.out, a.outBytes.get),
      ]).flat(),
      increase(r, height),
    ];
  };
  return f.finish([
    loop(i32.lessUnsigned(i32.add(r.get, i32.const(1)), a.rows.get), rows(2)),
    loop(i32.lessUnsigned(r.get, a.rows.get), rows(1)),
  ]);
}

/** Builds `WasmKernels.swiglu`. */
export function swiglu(mulAdd: MulAdd) {
  const f = new FunctionBuilder("swiglu", { g: "i32", u: "i32", count: "i32" });
  const { g, u, count } = f.parameters;
  const i = f.local("i32"), value = f.local("v128"), n = f.local("v128");
  return f.finish([
    loop(i32.lessUnsigned(i.get, count.get), [
      value.set(f32x4.neg(v128.load()(g.get))),
      exp(value, n, f, mulAdd),
      v128.store()(
        g.get,
        f32x4.mul(
          f32x4.div(v128.load()(g.get), f32x4.add(value.get, f.floats(1))),
          v128.load()(u.get),
        ),
      ),
      increase(g, 16),
      increase(u, 16),
      increase(i, 4),
    ]),
  ]);
}
