/**
 * How many decode steps run between two readbacks of their tokens (a chunk).
 *
 * @module
 */

/**
 * Steps in the first chunk, which is small so that text appears immediately. The
 * values themselves were not measured: on an H100, 2 steps take about 2 ms; on a software
 * renderer, a step takes so long that even one is enough.
 */
const FIRST_CHUNK = { hardware: 2, software: 1 };

/**
 * Maximum steps in a chunk. Where a readback returns at once, chunks of up to 64 are 1 % faster
 * than those of up to 32 ("An MLP in one dispatch"), but requests that share the device would
 * wait for them.
 */
const LARGEST_CHUNK = { shared: 32, other: 64 };

/**
 * Chunks stop growing once one takes longer than this, so that text keeps streaming. Not
 * measured: at 20 updates per second, text looks continuous.
 */
const LONG_CHUNK_MS = 50;

/**
 * As above, where a readback does not stop the device: chunks of 16 ms are as fast as those of
 * 40, and those of 4 reach 80 % of that ("Decode through Dawn: chunks of 16 ms").
 */
const APART_CHUNK_MS = 16;

/**
 * How much larger the next chunk may be. Twice as large meant six readbacks in 64 tokens, after
 * each of which the device waits ("Chunks grow fourfold").
 */
const MOST_GROWTH = 4;

/** Chooses the steps of the first chunk. */
export function firstChunk({ software }: { software: boolean }): number {
  return FIRST_CHUNK[software ? "software" : "hardware"];
}

/**
 * Chooses the steps of the next chunk after one of `steps` that took `ms`: the same if that was
 * long enough, else two to four times as many, up to a maximum, that take at most twice as
 * long as that.
 */
export function nextChunk(
  steps: number,
  ms: number,
  { readsAtOnce, readsApart = false, shared = false }: {
    readsAtOnce: boolean;
    readsApart?: boolean;
    /** Whether others may wait for the chunk. */
    shared?: boolean;
  },
): number {
  const long = readsApart ? APART_CHUNK_MS : LONG_CHUNK_MS;
  if (ms >= long) return steps;
  const most = LARGEST_CHUNK[shared && readsAtOnce ? "shared" : "other"];
  return Math.min(
    most,
    Math.floor(steps * Math.min(MOST_GROWTH, 2 * long / ms)),
  );
}
