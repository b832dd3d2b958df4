/**
 * A case of gemv or gemvRows, checked against the reference.
 *
 * @module
 */
import { gemvRows } from "../../kernels/gemv_rows.ts";
import type { Dtype } from "../../lib/dtype.ts";
import { matrixToF32, toF32 } from "../../lib/formats/tensor.ts";
import type { Kernel } from "../../lib/webgpu/kernel.ts";
import type { Constants, Epilogue } from "../../lib/dispatch/shapes.ts";
import { assertAllClose } from "./assert_all_close.ts";
import { lanes, type Trial } from "./gpu.ts";
import { assertSums, epilogue, linear, rmsNormed } from "./reference.ts";

/** A matmul by gemv or gemvRows, and what is fused around it. */
export interface RowsCase {
  m?: number;
  n: number;
  k: number;
  /** Format of the weights. */
  w?: string;
  /** Rows of the next part of the matrix, and their format. */
  second?: { n: number; w: string };
  x?: Dtype;
  /** Whether rows are normed, and by weights of which type. */
  norm?: Dtype;
  epilogue?: Epilogue;
  /** The first column of the result in a wider y. */
  column?: number;
  padding?: number;
  constants?: Constants;
  /** Of sums, where that of f32 does not do. */
  tolerance?: number;
}

/**
 * Runs a case and compares all of y, including what is around the result. `parts` is the
 * number of sums of squares that the kernel leaves for `n` outputs.
 */
export async function checkRows(
  trial: Trial,
  kernel: Kernel,
  parts: (n: number, constants: Constants) => number,
  given: RowsCase,
): Promise<void> {
  const { m = 1, n, k, w = "bf16", x = "f32", norm, constants = {} } = given;
  const { epilogue: kind = "store", column = 0, padding = 0, second } = given;
  const { gpu, random } = trial, eps = 1e-6, before = 3;
  const message = JSON.stringify(given);
  const weights = random.matrix(w, [n, k]);
  const more = second && random.matrix(second.w, [second.n, k]);
  const rows = random.tensor(x, [m, k], 2);
  const normWeights = norm && random.tensor(norm, [k], 0.5, 1);
  const all = n + (second?.n ?? 0), width = kind === "swiglu" ? n / 2 : all;
  const stride = column + width + padding;
  const poison = kind === "add" ? before : NaN;
  const y = trial.filled([m + 1, stride], poison);
  // Partial sums of squares, as the kernel before leaves them.
  const fours = [4, 12, 132]; // as gemv reads them; gemvRows takes any number
  const before32 = random.pick(
    kernel !== gemvRows ? fours : [...fours, 1, 5, 37],
  );
  const given32 = toF32(rows);
  const sums = random.filled("f32", [m, before32], 0);
  given32.forEach((v, at) =>
    sums.data[Math.floor(at / k) * before32 + at % before32] += v * v
  );
  const settled = { ...kernel.constants, ...lanes(gpu, true), ...constants };
  const left = trial.filled([m, parts(n, settled)]);
  trial.run(kernel, {
    w: trial.uploadMatrix(weights),
    ...(more ? { v: trial.uploadMatrix(more) } : {}),
    x: trial.upload(rows),
    ...(normWeights ? { norm: trial.upload(normWeights) } : {}),
    ...(normWeights ? { squares: trial.upload(sums) } : {}),
    ...(kind === "add" ? { squares: left } : {}),
    y,
  }, {
    constants: {
      ...settled,
      ...("M" in settled ? { M: m, ...constants } : {}),
      ...(more ? { TWO: 1 } : {}),
      NORM: norm ? 1 : 0,
      EPILOGUE: kind,
    },
    uniforms: { stride, column, eps },
  });
  const input = normWeights
    ? rmsNormed(given32, toF32(normWeights), eps)
    : given32;
  const values = [weights, ...more ? [more] : []].map(matrixToF32);
  const stacked = new Float32Array(all * k);
  values.forEach((some, i) => stacked.set(some, i * n * k));
  const product = linear(input, stacked, { m, n: all, k });
  const written = await y.read();
  const inside = (at: number) => {
    const c = at % stride - column;
    return at < m * stride && c >= 0 && c < width;
  };
  const around = written.filter((_, at) => !inside(at));
  assertAllClose(around, around.map(() => poison), {}, `around ${message}`);
  const actual = written.filter((_, at) => inside(at));
  const expected = epilogue(kind, product, all, before);
  assertSums(actual, expected, message, given.tolerance);
  if (kind !== "add") return;
  // The sums of squares for the next norm.
  const squares = (list: Float32Array, length: number) =>
    Array.from(
      { length: m },
      (_, row) => list.subarray(row * length, (row + 1) * length),
    );
  const found = squares(await left.read(), left.shape[1])
    .map((row) => row.reduce((a, b) => a + b, 0));
  const wanted = squares(actual, n)
    .map((row) => row.reduce((a, b) => a + b * b, 0));
  assertAllClose(found, wanted, { relative: 1e-5 }, `squares of ${message}`);
}
