/**
 * How long a decode step takes on a device, as far as the host can tell from when it
 * submitted steps and when their tokens were there.
 *
 * @module
 */

/** Steps that were submitted together, and when, in milliseconds. */
export interface Submitted {
  readonly at: number;
  readonly steps: number;
}

/** Tokens that are read without such a wait were there before. */
const SHORT_WAIT_MS = 0.5;

/** The most that steps behind prompts say while nothing is known. Not measured. */
const FIRST_GUESS_MS = 5;

/** The time of a step of one kind. */
export class StepTime {
  #ms = 0;
  #isFirst = true;

  /** Milliseconds; 0 as long as nothing is known. */
  get ms(): number {
    return this.#ms;
  }

  /** How long the device will work on what was submitted, in order, from `now` on. */
  left(pieces: readonly Submitted[], now: number): number {
    const end = pieces.reduce(
      (end, { at, steps }) => Math.max(end, at) + steps * this.#ms,
      0,
    );
    return Math.max(0, end - now);
  }

  /**
   * Notes that the tokens of `pieces` were there at `now`, for which the host had waited
   * since `called`.
   *
   * The host sleeps for this long, so an overestimate must not confirm itself: any run of
   * final pieces took at most the time since the first of them was submitted. If the device
   * finished before the host asked, the true time is unknown, so half of that bound is used.
   * The first steps are ignored, as they may include compilation; steps queued behind prompts
   * can only lower the estimate.
   */
  arrived(
    pieces: readonly Submitted[],
    { called, now, behind }: { called: number; now: number; behind: boolean },
  ): void {
    if (this.#isFirst) {
      this.#isFirst = false;
      return;
    }
    let steps = 0, ms = Infinity;
    for (const piece of pieces.toReversed()) {
      steps += piece.steps;
      ms = Math.min(ms, (now - piece.at) / steps);
    }
    // A step alone would take in how long it takes to read its token.
    if (steps === 1) return;
    const guess = now - called < SHORT_WAIT_MS ? ms / 2 : ms;
    this.#ms = behind ? Math.min(this.#ms || FIRST_GUESS_MS, guess) : guess;
  }
}
