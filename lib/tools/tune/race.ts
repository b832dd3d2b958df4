/**
 * Finds the fastest of several plans. They take turns, so that a change of clocks affects
 * all of them.
 *
 * @module
 */
import type { Gpu } from "../../webgpu/device.ts";
import type { Plan } from "../../webgpu/plan.ts";
import { spread, timePasses } from "../../webgpu/timing.ts";

/** A plan and the milliseconds of its pass in each round. */
interface Racer<T> {
  what: T;
  plan: Plan;
  ms: number[];
}

/** The best plan of a race, and the one that it has to beat. */
export interface RaceResult<T> {
  what: T;
  /** Medians over the last rounds. */
  firstMs: number;
  ms: number;
  /**
   * Median saving of a round, and half the range of the middle three quarters, as shares
   * of `firstMs`.
   */
  gain: number;
  spread: number;
  rounds: number;
  /** Plans that took part, not counting the first. */
  entered: number;
}

/** Options of {@linkcode race}. */
export interface RaceOptions {
  /** Tokens in the cache during these passes. */
  length: number;
  /** The `performance.now()` at which the race ends. */
  deadline: number;
  signal?: AbortSignal;
}

/** Rounds and survivors of each heat; the last decides. */
const HEATS = [{ rounds: 3, keep: 8 }, { rounds: 5, keep: 3 }] as const;
const LEAST_ROUNDS = 9, MOST_ROUNDS = 25;
/** Least passes in all heats but the first. */
const LATER_PASSES = HEATS[1].rounds * (HEATS[0].keep + 1) +
  LEAST_ROUNDS * (HEATS[1].keep + 1);
/** Share of the time to plan for, since some passes take longer than the first. */
const SURE = 0.8;
/** Passes are repeated to take at least this long: timestamps have microsecond resolution. */
const LONG_MS = 1.5;
/** Work submitted at once, so that the GPU stays busy. */
const SUBMITTED_MS = 60;
/** Work that wakes a GPU, which may have gone idle while results were read. */
const WARM_MS = 5;

/**
 * Races `others` against `first`, in order, as many as there is time for. Returns
 * undefined if the deadline passes before a decision.
 *
 * @throws {Error} if the adapter has no timestamps.
 */
export async function race<T>(
  gpu: Gpu,
  first: { what: T; plan: Plan },
  others: readonly { what: T; plan: Plan }[],
  { length, deadline, signal }: RaceOptions,
): Promise<RaceResult<T> | undefined> {
  const state = { length };
  const once = (plan: Plan) => (pass: GPUComputePassEncoder) =>
    plan.encode(pass, state);
  const left = () => deadline - performance.now();
  // The first pass allocates memory and loads code.
  const trial = await timePasses(gpu, [once(first.plan), once(first.plan)]);
  const alone = Math.max(1e-3, trial[1].end - trial[1].begin);
  const repeat = gpu.software ? 1 : Math.max(1, Math.ceil(LONG_MS / alone));
  const passMs = repeat * alone;
  const several = (plan: Plan) => (pass: GPUComputePassEncoder) => {
    for (let i = 0; i < repeat; i++) plan.encode(pass, state);
  };
  const racer = (one: { what: T; plan: Plan }): Racer<T> => ({
    ...one,
    ms: [],
  });
  const leader = racer(first);

  /** Runs whole rounds, as time allows. */
  const run = async (field: Racer<T>[], rounds: number) => {
    for (const one of field) one.ms = [];
    const warm = gpu.software ? 0 : Math.ceil(WARM_MS / passMs);
    const atOnce = Math.max(
      1,
      Math.min(rounds, Math.floor(SUBMITTED_MS / (passMs * field.length))),
    );
    for (let done = 0; done < rounds; done += atOnce) {
      signal?.throwIfAborted();
      if (left() < passMs * field.length) return;
      const order: Racer<T>[] = [];
      for (let r = 0; r < atOnce; r++) {
        const from = (done + r) * 5 % field.length; // so that no plan always follows the same one
        order.push(...field.slice(from), ...field.slice(0, from));
      }
      const spans = await timePasses(gpu, [
        ...Array.from({ length: warm }, () => several(leader.plan)),
        ...order.map(({ plan }) => several(plan)),
      ]);
      order.forEach((one, i) => {
        const { begin, end } = spans[warm + i];
        one.ms.push((end - begin) / repeat);
      });
    }
  };

  // The time that later heats do not need goes to the first one, in which all run.
  const later = LATER_PASSES * passMs;
  const room = (left() * SURE - later) / (HEATS[0].rounds * passMs);
  let field = others.slice(0, Math.max(0, Math.floor(room))).map(racer);
  const entered = field.length;
  for (const { rounds, keep } of HEATS) {
    if (field.length <= keep) continue;
    await run([leader, ...field], rounds);
    if (leader.ms.length === 0) return undefined;
    const median = ({ ms }: Racer<T>) => spread(ms).median;
    field = field.sort((a, b) => median(a) - median(b)).slice(0, keep);
  }
  await run([leader, ...field], MOST_ROUNDS);
  if (leader.ms.length < LEAST_ROUNDS || field.length === 0) return undefined;
  const firstMs = spread(leader.ms).median;
  const results = field.map(({ what, ms }): RaceResult<T> => {
    const saved = spread(ms.map((time, i) => (leader.ms[i] - time) / firstMs));
    return {
      what,
      firstMs,
      ms: spread(ms).median,
      gain: saved.median,
      spread: (saved.high - saved.low) / 2,
      rounds: ms.length,
      entered,
    };
  });
  return results.reduce((a, b) => b.gain > a.gain ? b : a);
}
