/**
 * The WebAssembly kernel for RMSNorm and rotation.
 *
 * @module
 */
import {
  branch,
  type Code,
  f32,
  f32x4,
  f64,
  f64x2,
  FunctionBuilder,
  i32,
  increase,
  type Local,
  loop,
  times,
  v128,
} from "./assembler.ts";

/** Rows of multiples of so many elements can be normed. */
export const NORM_STEP = 8;

/** Builds `WasmKernels.normRows`. */
export function normRows() {
  const f = new FunctionBuilder("normRows", {
    x: "i32",
    count: "i32",
    size: "i32",
    weight: "i32",
    eps: "f32",
    angles: "i32",
  });
  const { x, count, size, weight, eps, angles } = f.parameters;
  const [at, end, rowBytes, factor] = times(4, () => f.local("i32"));
  const [four, scale] = times(2, () => f.local("v128"));
  const sums = times(4, () => f.local("v128"));
  const add = (a: Code, b: Code) => f64x2.add(a, b);
  const sum = sums.map(({ get }) => get).reduce(add);
  const mean = f64.div(
    f64.add(f64x2.lane(0)(scale.get), f64x2.lane(1)(scale.get)),
    f64.convert(size.get),
  );
  const square = (to: Local, two: Code): Code[] => [
    scale.set(f64x2.promote(two)),
    to.set(f64x2.add(to.get, f64x2.mul(scale.get, scale.get))),
  ];
  /** Runs `body` for every `step` elements of a row, from `at` on. */
  const each = (step: number, body: Code[]): Code[] => [
    at.set(x.get),
    loop(i32.lessUnsigned(at.get, end.get), [...body, increase(at, 4 * step)]),
  ];
  return f.finish([
    rowBytes.set(i32.shl(size.get, i32.const(2))),
    loop(i32.lessUnsigned(i32.const(0), count.get), [
      end.set(i32.add(x.get, rowBytes.get)),
      ...sums.map((sum) => sum.set(f.floats(0))),
      ...each(
        NORM_STEP,
        [0, 1].flatMap((i) => [
          four.set(v128.load(16 * i)(at.get)),
          ...square(sums[2 * i], four.get),
          ...square(
            sums[2 * i + 1],
            f32x4.shuffle(2, 3, 2, 3)(four.get, four.get),
          ),
        ]),
      ),
      scale.set(sum),
      scale.set(f32x4.splat(f32.demote(f64.div(
        f64.const(1),
        f64.sqrt(f64.add(mean, f64.promote(eps.get))),
      )))),
      factor.set(weight.get),
      ...each(4, [
        v128.store()(
          at.get,
          f32x4.mul(
            f32x4.mul(v128.load()(at.get), scale.get),
            v128.load()(factor.get),
          ),
        ),
        increase(factor, 16),
      ]),
      branch(angles.get, rotation(f, x, rowBytes, angles)),
      x.set(end.get),
      increase(count, -1),
    ]),
  ]);
}

/** Rotates the row at `x`: elements pair with those of its other half. */
function rotation(
  f: FunctionBuilder<string>,
  x: Local,
  rowBytes: Local,
  angles: Local,
): Code[] {
  const [at, end, half, cosines] = times(4, () => f.local("i32"));
  const [a, b, cos, sin] = times(4, () => f.local("v128"));
  const pair = i32.add(at.get, half.get);
  return [
    half.set(i32.shrUnsigned(rowBytes.get, i32.const(1))),
    at.set(x.get),
    end.set(i32.add(x.get, half.get)),
    cosines.set(angles.get),
    loop(i32.lessUnsigned(at.get, end.get), [
      a.set(v128.load()(at.get)),
      b.set(v128.load()(pair)),
      cos.set(v128.load()(cosines.get)),
      sin.set(v128.load()(i32.add(cosines.get, half.get))),
      v128.store()(
        at.get,
        f32x4.sub(f32x4.mul(a.get, cos.get), f32x4.mul(b.get, sin.get)),
      ),
      v128.store()(
        pair,
        f32x4.add(f32x4.mul(b.get, cos.get), f32x4.mul(a.get, sin.get)),
      ),
      increase(at, 16),
      increase(cosines, 16),
    ]),
  ];
}
