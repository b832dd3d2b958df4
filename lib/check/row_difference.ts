/**
 * Whether rows of values agree with those of a reference.
 *
 * @module
 */

/** The first value that is too far from the reference's. */
export interface RowDifference {
  row: number;
  column: number;
  actual: number;
  expected: number;
  /** How far it may be, beside a small share of itself. */
  allowed: number;
}

/**
 * Rows of `width` values may be off by a small share of their root mean square
 * (`half`: what products or a cache in f16 may be off).
 */
export function rowDifference(
  actual: ArrayLike<number>,
  expected: Float32Array,
  width: number,
  half: boolean,
): RowDifference | undefined {
  for (let begin = 0; begin < expected.length; begin += width) {
    const row = expected.subarray(begin, begin + width);
    const squares = row.reduce((sum, v) => sum + v * v, 0);
    const allowed = (half ? 2e-2 : 1e-4) * Math.sqrt(squares / width) + 1e-6;
    const at = row.findIndex((v, i) =>
      !(Math.abs(actual[begin + i] - v) <= allowed + 1e-4 * Math.abs(v))
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

/** The same in words. */
export function differenceText(
  { row, column, actual, expected, allowed }: RowDifference,
): string {
  return `differs from the CPU at [${row}, ${column}]: ${actual} on the GPU, ${expected} on the CPU, at most ${
    allowed.toExponential(1)
  } apart are allowed`;
}
