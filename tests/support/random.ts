/**
 * Random inputs of tests. Every test draws from one seed and prints it when it fails:
 * QWEN3_TEST_SEED=n repeats the failure, and QWEN3_TEST_SEEDS=500 tries 500 seeds.
 */
import { Random } from "./reference.ts";

export { Random };

/** Environment variables: the seed, and the number of seeds to try. */
export const SEED = "QWEN3_TEST_SEED", SEEDS = "QWEN3_TEST_SEEDS";

const firstSeed = fromEnvironment(SEED, 0) ??
  Math.floor(Math.random() * 2 ** 32);
const seedCount = fromEnvironment(SEEDS, 1) ?? 1;
/** The distance between seeds; from neighboring ones xorshift starts similarly. */
const STRIDE = 0x9e3779b9;

/** Random numbers that decide which tests are registered; QWEN3_TEST_SEED repeats them. */
export const registering = new Random(firstSeed);

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
 * Runs `body` for each seed to try, with `draw` for its random numbers; once if it draws
 * none.
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

/** Random numbers from 0 to below 1. */
export function uniform(random: Random): () => number {
  return () => (random.next() + 1) / 2;
}
