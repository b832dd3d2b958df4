/**
 * Who may use a model: one turn at a time. A turn is a run or one computation of logits.
 *
 * A turn is active while its consumer waits for a value, and idle while its consumer has
 * one, unless that is known to ask for the next at once. A new turn is refused while another
 * is active, and takes over from an idle one, because that may never be resumed: iterators
 * get abandoned. If it is resumed after all, it throws.
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

  /** Resolves when its work has stopped. */
  get ended(): Promise<void> {
    return this.#over.promise;
  }

  /** Called when its work has stopped. */
  readonly over = (): void => this.#over.resolve();
}

/** Chunks that a run yields, and the signal that ends it. */
export interface Chunks<T> extends AsyncIterable<T> {
  readonly signal: AbortSignal;
}

/** The turns of one model. */
export class Turns {
  #current?: Turn;
  /** Resolves when what {@linkcode exclusive} does is done. */
  #exclusive?: Promise<unknown>;
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
      return await work(turn.signal);
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
    before: Promise<unknown> | undefined,
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
        const { done, value } = await values.next();
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
   * Does something once no turn is active and before the next begins. Idle turns end, as
   * they do for another turn.
   */
  async exclusive<R>(action: string, work: () => Promise<R>): Promise<R> {
    for (;;) {
      this.requireModel(action);
      if (this.#current?.active) await this.#current.ended;
      else if (this.#current) await this.#current.end(TAKEN);
      else if (this.#exclusive) await this.#exclusive;
      else break;
    }
    const working = work();
    this.#exclusive = working.catch(() => {});
    try {
      return await working;
    } finally {
      this.#exclusive = undefined;
    }
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
    return { turn, before: last?.end(TAKEN) ?? this.#exclusive };
  }

  #leave(turn: Turn): void {
    turn.over();
    if (this.#current === turn) this.#current = undefined;
  }

  /** Ends the turn and refuses others; calls `free` once no work is running. */
  dispose(free: () => void): void {
    if (this.#disposed) return;
    this.#disposed = true;
    if (this.#current) this.#current.end(DISPOSED).then(free);
    else if (this.#exclusive) this.#exclusive.then(free);
    else free();
  }
}

const DISPOSED = "the model was disposed";
const TAKEN =
  "another run of this model has started since, must be one at a time";
