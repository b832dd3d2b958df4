/**
 * Compares rows of values with those of a reference.
 *
 * @module
 */

/** The first value that is too far from the reference. */
export interface RowDifference {
  row: number;
  column: number;
  actual: number;
  expected: number;
  /** The allowed error, on top of a small fraction of the expected value. */
  allowed: number;
}

/** Allowed errors, as fractions of a row's root mean square. */
const ALLOWED = { f32: 1e-4, f16: 2e-2, q8_0: 5e-2 };

/**
 * Finds the first value that is off by more than a small fraction of its row's root
 * mean square; undefined if there is none. `rounded` is the coarsest type that matmuls
 * or the cache round to. In q8_0, a decode step's newest value, which the GPU has not
 * rounded yet, is off by up to half of 1/127 of the largest.
 * Non-finite values agree: whether infinities become NaN depends on the order of sums.
 */
export function rowDifference(
  actual: ArrayLike<number>,
  expected: Float32Array,
  width: number,
  rounded: keyof typeof ALLOWED,
): RowDifference | undefined {
  for (let begin = 0; begin < expected.length; begin += width) {
    const row = expected.subarray(begin, begin + width);
    const squares = row.reduce(
      (sum, v) => Number.isFinite(v) ? sum + v * v : sum,
      0,
    );
    const size = Math.sqrt(squares / width);
    const allowed = ALLOWED[rounded] * size + 1e-6;
    const at = row.findIndex((v, i) =>
      Number.isFinite(v)
        ? !(Math.abs(actual[begin + i] - v) <= allowed + 1e-4 * Math.abs(v))
        : Number.isFinite(actual[begin + i])
    );
    if (at < 0) continue;
    return {
      row: begin / width,
      column: at,
      actual: actual[begin + at],
      expected: row[at],
      allowed,
    };
  }
}

/** Describes a difference in words. */
export function differenceText(
  { row, column, actual, expected, allowed }: RowDifference,
): string {
  return `differs from the CPU at [${row}, ${column}]: ${actual} on the GPU, ${expected} on the CPU, must be at most ${
    allowed.toExponential(1)
  } apart`;
}
