/**
 * Keeps the device's queue short. In Deno, waiting for a device blocks the thread until
 * all submitted work is done, so a slow device gets work in slices, and the event loop
 * turns between them. A fast device, which gets everything at once, is never waited for.
 *
 * @module
 */
import { LONGEST_WAIT_MS, turn } from "../dispatch/rests.ts";
import type { Gpu } from "./device.ts";
import { compileAll } from "./pipeline.ts";
import {
  type Dispatch,
  FIRST_PIECE,
  PIECE_GROWTH,
  type Plan,
  type StepState,
} from "./plan.ts";

/** Pipelines that have run on a software renderer. */
const hasRun = new WeakSet<GPUComputePipeline>();

/** Submits work of one kind, such as prompts, whose units take about the same time. */
export class Pace {
  /** Units that were submitted and not waited for. */
  #queued = 0;
  /** When the first of them was submitted. */
  #since = 0;
  /** When the event loop last turned. */
  #turned = 0;
  /** Resolves shortly after the work that was last waited for. */
  #settling?: Promise<unknown>;

  #rate: number;

  /**
   * `rate` is a first guess, in units per millisecond.
   *
   * @throws {RangeError} if it is not a finite number above 0.
   */
  constructor(readonly gpu: Gpu, rate: number) {
    this.#rate = requireRate(rate);
  }

  /** Units per millisecond, as far as is known. */
  get rate(): number {
    return this.#rate;
  }

  /** @throws {RangeError} if it is not a finite number above 0. */
  set rate(rate: number) {
    this.#rate = requireRate(rate);
  }

  /** How long the device needs for `units`, in milliseconds, by the current rate. */
  msOf(units: number): number {
    return units / this.rate;
  }

  /**
   * Runs a plan in slices; `unitsOf` gives the units of a dispatch.
   *
   * @throws {RangeError} if those are not a number of at least 0.
   * @throws the reason of `signal` if it is aborted.
   */
  async run(
    plan: Plan,
    state: StepState,
    unitsOf: (dispatch: Dispatch) => number,
    signal?: AbortSignal,
  ): Promise<void> {
    await compileAll(this.gpu, plan.shaders, signal);
    plan.seal();
    const { dispatches } = plan;
    // Starts with a few dispatches, so that the device begins immediately.
    for (let begin = 0, size = FIRST_PIECE; begin < dispatches.length;) {
      const end = Math.min(begin + size, dispatches.length);
      const left = this.#most - this.#queued;
      let units = 0, at = begin, first = false;
      while (at < end && units < left && !first) {
        first = this.#isFirst(dispatches[at].pipeline);
        units += requireUnits(unitsOf(dispatches[at++]));
      }
      plan.submit(state, begin, at);
      begin = at;
      if (first) await turn();
      size = await this.submitted(units, signal)
        ? FIRST_PIECE
        : size * PIECE_GROWTH;
    }
  }

  /**
   * Whether a pipeline runs for the first time, on a device that compiles it only then: a
   * software renderer does, and its submission blocks the thread for up to a second.
   */
  #isFirst(pipeline: GPUComputePipeline): boolean {
    if (!this.gpu.software || hasRun.has(pipeline)) return false;
    hasRun.add(pipeline);
    return true;
  }

  /** Whether a plan has a pipeline that {@linkcode run} would run for the first time. */
  isFirst({ dispatches }: Plan): boolean {
    return this.gpu.software &&
      dispatches.some(({ pipeline }) => !hasRun.has(pipeline));
  }

  /** The most units that may be queued before a wait. */
  get #most(): number {
    return this.rate * LONGEST_WAIT_MS;
  }

  /**
   * Notes that `units` were submitted, and waits if the queue is long. Returns whether it
   * did.
   *
   * @throws {RangeError} if `units` is not a number of at least 0.
   * @throws the reason of `signal` if it is aborted.
   */
  async submitted(units: number, signal?: AbortSignal): Promise<boolean> {
    requireUnits(units);
    signal?.throwIfAborted();
    if (this.#queued === 0) this.#since = performance.now();
    this.#queued += units;
    if (this.#queued < this.#most) return false;
    // The event loop turns here, while the device works on the last slice. In Deno a turn
    // takes 10 ms, during which a fast device would be idle.
    if (performance.now() - this.#turned >= LONGEST_WAIT_MS / 2) {
      await this.#settling;
      this.#turned = performance.now();
    }
    signal?.throwIfAborted();
    const queued = this.#queued, since = this.#since;
    const measure = () => this.measured(queued, performance.now() - since);
    this.#settling = this.gpu.device.queue.onSubmittedWorkDone().then(
      this.gpu.readsAtOnce ? undefined : measure,
    );
    if (this.gpu.readsAtOnce) measure(); // the call itself blocked
    this.#queued = 0;
    this.gpu.check();
    return true;
  }

  /** Called when something else has waited for all submitted work. */
  waited(): void {
    this.#queued = 0;
  }

  /**
   * Updates the rate, which falls at once, because too long a wait is worse than a short one.
   *
   * @throws {RangeError} if the rate would not be a finite number above 0.
   */
  measured(units: number, ms: number): void {
    const rate = units / Math.max(ms, 0.1);
    if (!(rate > 0 && rate < Infinity)) {
      throw new RangeError(
        `Cannot pace work: ${units} units took ${ms} ms, both must be finite and there must be some`,
      );
    }
    this.#rate = Math.min(rate, (this.#rate + rate) / 2);
  }
}

function requireRate(rate: number): number {
  if (rate > 0 && rate < Infinity) return rate;
  throw new RangeError(
    `Cannot pace work: the rate is ${rate} units per millisecond, must be finite and above 0`,
  );
}

/** @throws {RangeError} if a slice with so many units would never be full. */
function requireUnits(units: number): number {
  if (units >= 0 && units < Infinity) return units;
  throw new RangeError(
    `Cannot pace work: a slice has ${units} units, must be a finite number of at least 0`,
  );
}
