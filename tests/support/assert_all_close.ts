/** Compares arrays of floating-point numbers within a tolerance. */
import { AssertionError } from "@std/assert";

/** The error allowed per element: `absolute + relative · |expected|`. */
export interface Tolerance {
  absolute?: number;
  relative?: number;
}

/**
 * Asserts that every element is within the tolerance, 0 by default. NaN equals only NaN,
 * and an infinity only itself. The message has the worst element with both values, and
 * the mean and largest error.
 *
 * @throws {AssertionError} if the lengths differ or an element is out of tolerance
 */
export function assertAllClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { absolute = 0, relative = 0 }: Tolerance = {},
  message = "",
): void {
  const prefix = message && `${message}: `;
  if (actual.length !== expected.length) {
    throw new AssertionError(
      `${prefix}lengths differ: ${actual.length} actual, ${expected.length} expected`,
    );
  }
  let outside = 0, worst = 0, worstExcess = -Infinity, sum = 0, max = 0;
  for (let i = 0; i < expected.length; i++) {
    const a = actual[i], e = expected[i];
    const error = Object.is(a, e) || a === e ? 0 : Math.abs(a - e);
    const allowed = Number.isFinite(e) ? absolute + relative * Math.abs(e) : 0;
    const bad = !(error <= allowed); // true for NaN
    if (bad) outside++;
    const excess = Number.isNaN(error)
      ? Infinity
      : bad
      ? error - allowed
      : -Infinity;
    if (excess > worstExcess) {
      worst = i;
      worstExcess = excess;
    }
    sum += error;
    max = error > max || Number.isNaN(error) ? error : max;
  }
  if (outside === 0) return;
  throw new AssertionError(
    `${prefix}${outside} of ${expected.length} elements differ by more than ` +
      `${absolute} + ${relative}·|expected|; worst at [${worst}]: actual ${
        actual[worst]
      }, ` +
      `expected ${expected[worst]}; error mean ${
        sum / expected.length
      }, max ${max}`,
  );
}
