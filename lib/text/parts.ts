/**
 * Long work in parts, so that whoever does it can let others do theirs in between.
 *
 * @module
 */

/** Work that pauses after each part, of about a millisecond, and returns its result. */
export type Parts<R> = Generator<undefined, R>;

/** Does all parts at once. */
export function atOnce<R>(parts: Parts<R>): R {
  for (;;) {
    const { done, value } = parts.next();
    if (done) return value;
  }
}
