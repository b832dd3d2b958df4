/**
 * Who uses a model, and when. Work on the device is done in the order in which it was asked
 * for, one piece of it at a time.
 *
 * A run that is alone keeps the model's own cache from one of its values to the next. Whatever
 * else uses that cache ousts the run, which then has to go on without it. So an iterator
 * that is never resumed blocks nothing.
 *
 * @module
 */

/** Work for a caller; disposed when it is over. */
export class Turn implements Disposable {
  /** Aborted with the caller's reason, or with an error once the model is disposed. */
  readonly signal: AbortSignal;
  readonly #ender = new AbortController();

  /** @ignore Made by {@linkcode Turns.begin}. */
  constructor(
    readonly action: string,
    readonly over: (turn: Turn) => void,
    signal?: AbortSignal,
  ) {
    const own = this.#ender.signal;
    this.signal = signal ? AbortSignal.any([signal, own]) : own;
  }

  end(problem: string): void {
    this.#ender.abort(new Error(`Cannot ${this.action}: ${problem}`));
  }

  [Symbol.dispose](): void {
    this.over(this);
  }
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

/** A run that is alone. */
interface Lone {
  /** Whether its consumer waits for a value. */
  active: boolean;
  /** Whether it has computed anything. */
  begun: boolean;
  ousted: boolean;
  /** Ends its work while no value is computed. */
  readonly close: () => Promise<unknown>;
}

/** The turns of one model. */
export class Turns {
  readonly #turns = new Set<Turn>();
  readonly #device = new Queue();
  #lone?: Lone;
  /** Those that were ousted, until their work has ended. */
  #ousted: Lone[] = [];
  #disposed = false;

  /** @throws {Error} if the model was disposed. */
  requireModel(action: string): void {
    if (this.#disposed) throw new Error(`Cannot ${action}: ${DISPOSED}`);
  }

  /**
   * Begins some work; `action` is what errors say could not be done.
   *
   * @throws {Error} if the model was disposed.
   */
  begin(action: string, signal?: AbortSignal): Turn {
    this.requireModel(action);
    const turn = new Turn(action, (turn) => this.#turns.delete(turn), signal);
    this.#turns.add(turn);
    return turn;
  }

  /** Computes something with the model's own cache. */
  async once<R>(
    action: string,
    signal: AbortSignal | undefined,
    work: (signal: AbortSignal) => Promise<R>,
  ): Promise<R> {
    using turn = this.begin(action, signal);
    return await this.#device.use(async () => {
      turn.signal.throwIfAborted();
      await this.#clear();
      return await work(turn.signal);
    });
  }

  /** Whether no lone run is computing a value. */
  get isFree(): boolean {
    return !this.#lone?.active;
  }

  /** Whether there is a run that is alone and has begun. */
  get isAlone(): boolean {
    return this.#lone?.begun ?? false;
  }

  /**
   * Yields what `work` yields, alone. A `steady` consumer never pauses, so that somebody
   * waits for the run to its end.
   *
   * @returns false if it was ousted
   */
  async *alone<T>(
    { signal }: Turn,
    work: (signal: AbortSignal) => AsyncGenerator<T, void>,
    steady: boolean,
  ): AsyncGenerator<T, boolean> {
    const values = work(signal), close = () => values.return();
    this.oust();
    const lone: Lone = { active: true, begun: false, ousted: false, close };
    this.#lone = lone;
    try {
      for (;;) {
        lone.active = true;
        const next = await this.#device.use(async () => {
          await this.#closeOusted();
          if (lone.ousted) return undefined;
          signal.throwIfAborted();
          lone.begun = true;
          return await values.next();
        });
        if (!next) return false;
        if (next.done) return true;
        lone.active = steady;
        yield next.value;
      }
    } finally {
      if (lone.ousted) await this.#device.use(() => this.#closeOusted());
      else {
        await values.return();
        if (this.#lone === lone) this.#lone = undefined; // not one that began meanwhile
      }
    }
  }

  /** Yields what `work` yields, beside other runs: it has nothing that they use. */
  async *beside<T>(
    { signal }: Turn,
    work: (signal: AbortSignal) => AsyncGenerator<T, void>,
  ): AsyncGenerator<T, void> {
    const values = work(signal);
    try {
      for (;;) {
        const next = await this.#device.use(() => {
          signal.throwIfAborted();
          return values.next();
        });
        if (next.done) return;
        yield next.value;
      }
    } finally {
      await values.return();
    }
  }

  /** Does something while nothing else computes, between two values of a run. */
  async exclusive<R>(action: string, work: () => Promise<R>): Promise<R> {
    return await this.#device.use(() => {
      this.requireModel(action);
      return work();
    });
  }

  /** As {@linkcode exclusive}, after which no run is alone. */
  async together<R>(action: string, work: () => Promise<R>): Promise<R> {
    return await this.exclusive(action, async () => {
      await this.#clear();
      return await work();
    });
  }

  /** As {@linkcode exclusive}. If it succeeds, no run is alone afterwards. */
  async admit<R>(action: string, work: () => Promise<R>): Promise<R> {
    return await this.exclusive(action, async () => {
      const result = await work();
      await this.#clear();
      return result;
    });
  }

  /** Says that a run that is alone and has computed nothing yet must not begin so. */
  oustUnbegun(): void {
    if (!this.#lone?.begun) this.oust();
  }

  /** Says that a run that is alone must not go on so. */
  oust(): void {
    if (!this.#lone) return;
    this.#lone.ousted = true;
    this.#ousted.push(this.#lone);
    this.#lone = undefined;
  }

  /** Ends the work of runs that were ousted; only while nothing computes. */
  async #closeOusted(): Promise<void> {
    for (const { close } of this.#ousted.splice(0)) {
      await close().catch(() => {});
    }
  }

  async #clear(): Promise<void> {
    this.oust();
    await this.#closeOusted();
  }

  /** Ends all work and refuses more; calls `free` once nothing computes. */
  dispose(free: () => void): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const turn of this.#turns) turn.end(DISPOSED);
    const isIdle = !this.#lone && this.#ousted.length === 0;
    if (isIdle && this.#device.isFree) return free();
    this.#device.use(() => this.#clear().then(free));
  }
}

const DISPOSED = "the model was disposed";
