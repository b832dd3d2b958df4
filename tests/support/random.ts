/**
 * Random inputs of tests. Every test draws from one seed, and a test that fails prints
 * it: QWEN3_TEST_SEED=n repeats the failure, QWEN3_TEST_SEEDS=500 tries that many seeds.
 */
import { Random } from "./reference.ts";

export { Random };

/** The environment variables for the seed, and for how many seeds to try. */
export const SEED = "QWEN3_TEST_SEED", SEEDS = "QWEN3_TEST_SEEDS";

const firstSeed = fromEnvironment(SEED, 0) ??
  Math.floor(Math.random() * 2 ** 32);
const seedCount = fromEnvironment(SEEDS, 1) ?? 1;
/** Seeds are tried this far apart: xorshift starts alike from neighboring ones. */
const STRIDE = 0x9e3779b9;

function fromEnvironment(name: string, least: number): number | undefined {
  const text = Deno.env.get(name);
  if (text === undefined) return undefined;
  const value = Number(text);
  if (Number.isInteger(value) && value >= least && value < 2 ** 32) {
    return value;
  }
  throw new Error(
    `Cannot seed the tests: ${name} is "${text}", must be an integer from ${least} to ${
      2 ** 32 - 1
    }`,
  );
}

/**
 * Runs `body`, which gets its random numbers from `draw`, for every seed that is asked
 * for; only once if it draws none.
 */
export async function withSeeds(
  body: (draw: () => Random) => void | Promise<void>,
): Promise<void> {
  for (let i = 0; i < seedCount; i++) {
    const seed = (firstSeed + i * STRIDE) % 2 ** 32;
    let random: Random | undefined;
    try {
      await body(() => random ??= new Random(seed));
    } catch (cause) {
      if (!random) throw cause;
      throw new Error(`with seed ${seed} (${SEED}=${seed} repeats it)`, {
        cause,
      });
    }
    if (!random) return;
  }
}

/** Registers a test on random inputs that needs no GPU. */
export function randomTest(
  name: string,
  body: (random: Random) => void | Promise<void>,
): void {
  Deno.test(name, () => withSeeds((draw) => body(draw())));
}

/** A function that returns random numbers from 0 up to, but not including, 1. */
export function uniform(random: Random): () => number {
  return () => (random.next() + 1) / 2;
}
