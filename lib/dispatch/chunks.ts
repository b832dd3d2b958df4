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
 * Maximum steps in a chunk. Where a readback returns at once, chunks of up to
 * 32 reach 97.5 % of the GPU's rate ("Steps in pieces"). Where it sleeps for 10 ms, chunks must be
 * longer; 64 was not measured.
 */
const LARGEST_CHUNK = { atOnce: 32, sleeping: 64 };

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

/** Chooses the steps of the first chunk. */
export function firstChunk({ software }: { software: boolean }): number {
  return FIRST_CHUNK[software ? "software" : "hardware"];
}

/**
 * Chooses the steps of the next chunk after one of `steps` that took `ms`: twice as many,
 * up to a maximum, unless it took long enough.
 */
export function nextChunk(
  steps: number,
  ms: number,
  { readsAtOnce, readsApart = false }: {
    readsAtOnce: boolean;
    readsApart?: boolean;
  },
): number {
  if (ms >= (readsApart ? APART_CHUNK_MS : LONG_CHUNK_MS)) return steps;
  const most = LARGEST_CHUNK[readsAtOnce || readsApart ? "atOnce" : "sleeping"];
  return Math.min(most, 2 * steps);
}
