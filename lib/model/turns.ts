/**
 * Who may use a model: one turn at a time. A turn is a run or one computation of logits.
 *
 * A turn is active while its consumer waits for a value, and idle while its consumer has
 * one, unless that is known to ask for the next at once. A new turn is refused while another
 * is active, and takes over from an idle one, because that may never be resumed: iterators
 * get abandoned. If it is resumed after all, it throws. An engine's steps are no turns: they
 * run between the values of a turn.
 *
 * @module
 */

/** The use of a model by one run or computation. */
class Turn {
  active = true;
  /** Aborted with the caller's reason, or with the error that ended the turn. */
  readonly signal: AbortSignal;
  readonly #ender = new AbortController();
  readonly #over = Promise.withResolvers<void>();
  /** Ends the work of an idle turn. */
  close = (): Promise<unknown> => Promise.resolve();

  /** `action` is what errors say could not be done. */
  constructor(readonly action: string, signal?: AbortSignal) {
    const own = this.#ender.signal;
    this.signal = signal ? AbortSignal.any([signal, own]) : own;
  }

  /** Ends the turn with an error for its consumer; resolves when its work has stopped. */
  async end(problem: string): Promise<void> {
    this.#ender.abort(new Error(`Cannot ${this.action}: ${problem}`));
    if (!this.active) await this.close().catch(() => {}).then(this.over);
    await this.#over.promise;
  }

  /** Called when its work has stopped. */
  readonly over = (): void => this.#over.resolve();
}

/** Uses something one after another, in the order in which they asked. */
class Queue {
  #waiting = 0;
  #last: Promise<unknown> = Promise.resolve();

  get isFree(): boolean {
    return this.#waiting === 0;
  }

  async use<R>(work: () => Promise<R>): Promise<R> {
    const before = this.#last, over = Promise.withResolvers<void>();
    this.#last = over.promise;
    this.#waiting++;
    try {
      await before;
      return await work();
    } finally {
      this.#waiting--;
      over.resolve();
    }
  }
}

/** Chunks that a run yields, and the signal that ends it. */
export interface Chunks<T> extends AsyncIterable<T> {
  readonly signal: AbortSignal;
}

/** The turns of one model. */
export class Turns {
  #current?: Turn;
  readonly #device = new Queue();
  #disposed = false;

  /** @throws {Error} if the model was disposed. */
  requireModel(action: string): void {
    if (this.#disposed) throw new Error(`Cannot ${action}: ${DISPOSED}`);
  }

  /** Computes something in a turn of its own. */
  async once<R>(
    action: string,
    signal: AbortSignal | undefined,
    work: (signal: AbortSignal) => Promise<R>,
  ): Promise<R> {
    const { turn, before } = this.#enter(action, signal);
    try {
      await before;
      turn.signal.throwIfAborted();
      return await this.#device.use(() => work(turn.signal));
    } finally {
      this.#leave(turn);
    }
  }

  /**
   * Yields what `work` yields, in a turn of its own. If `steady`, its consumer never pauses,
   * and the turn stays active to its end.
   */
  run<T>(
    action: string,
    signal: AbortSignal | undefined,
    work: (signal: AbortSignal) => AsyncGenerator<T, void>,
    steady = false,
  ): Chunks<T> {
    const { turn, before } = this.#enter(action, signal);
    return {
      signal: turn.signal,
      [Symbol.asyncIterator]: () => this.#iterate(turn, before, work, steady),
    };
  }

  async *#iterate<T>(
    turn: Turn,
    before: Promise<void> | undefined,
    work: (signal: AbortSignal) => AsyncGenerator<T, void>,
    steady: boolean,
  ): AsyncGenerator<T, void> {
    const { signal } = turn, values = work(signal);
    turn.close = () => values.return();
    try {
      await before;
      for (;;) {
        signal.throwIfAborted();
        turn.active = true;
        const { done, value } = await this.#device.use(() => values.next());
        if (done) return;
        turn.active = steady;
        yield value;
      }
    } finally {
      await values.return();
      this.#leave(turn);
    }
  }

  /**
   * Does something that is no turn while nothing computes: between two values of a run, and
   * after what was asked for earlier.
   */
  async exclusive<R>(action: string, work: () => Promise<R>): Promise<R> {
    return await this.#device.use(() => {
      this.requireModel(action);
      return work();
    });
  }

  #enter(action: string, signal?: AbortSignal) {
    this.requireModel(action);
    const last = this.#current;
    if (last?.active) {
      throw new Error(
        "Cannot start a run: another run of this model has not ended, must be one at a time; generateBatch runs several together",
      );
    }
    const turn = this.#current = new Turn(action, signal);
    return { turn, before: last?.end(TAKEN) };
  }

  #leave(turn: Turn): void {
    turn.over();
    if (this.#current === turn) this.#current = undefined;
  }

  /** Ends the turn and refuses others; calls `free` once no work is running. */
  dispose(free: () => void): void {
    if (this.#disposed) return;
    this.#disposed = true;
    const last = () => this.#device.use(() => Promise.resolve(free()));
    if (this.#current) this.#current.end(DISPOSED).then(last);
    else if (this.#device.isFree) free();
    else last();
  }
}

const DISPOSED = "the model was disposed";
const TAKEN =
  "another run of this model has started since, must be one at a time";
