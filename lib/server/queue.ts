/**
 * Who may generate: a fixed number of runs at once. Others wait in the order in which they
 * came, and when too many wait, further ones are refused.
 *
 * @module
 */
import { ApiError } from "./errors.ts";

/** A place in the queue; disposing it gives it up, and its slot with it. */
class Place implements Disposable {
  #turn = Promise.withResolvers<void>();
  #state: "waiting" | "running" | "gone" = "waiting";
  /** When it was given a slot. */
  #began = 0;

  /**
   * @param leave is given the seconds that it had a slot; undefined if it had none
   * @param request whether a place of its request has had a slot
   */
  constructor(
    readonly leave: (place: Place, seconds?: number) => void,
    readonly request: { begun: boolean },
  ) {
    this.#turn.promise.catch(() => {}); // its owner may never ask
  }

  /** Resolves when a slot is free. @throws the reason of `signal`, or of the queue's end. */
  async turn(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const abort = () => this.#turn.reject(signal.reason);
    signal.addEventListener("abort", abort);
    try {
      await this.#turn.promise;
    } finally {
      signal.removeEventListener("abort", abort);
    }
  }

  /** Gives it a slot. */
  grant(): void {
    this.#state = "running";
    this.request.begun = true;
    this.#began = performance.now();
    this.#turn.resolve();
  }

  /** Ends the waiting with an error. */
  refuse(error: Error): void {
    this.#turn.reject(error);
  }

  [Symbol.dispose](): void {
    const before = this.#state;
    this.#state = "gone";
    const seconds = (performance.now() - this.#began) / 1000;
    this.leave(this, before === "running" ? seconds : undefined);
  }
}

export type { Place };

/** The slots of a server and who waits for them. */
export class Queue {
  #running = 0;
  readonly #waiting: Place[] = [];
  #ended = false;
  /** How long a slot is taken, in seconds: a moving average. */
  #seconds = 1;

  /**
   * @param slots runs at once
   * @param most runs that may wait
   */
  constructor(readonly slots: number, readonly most: number) {}

  /** Runs that have a slot. */
  get running(): number {
    return this.#running;
  }

  /** Runs that wait for one. */
  get waiting(): number {
    return this.#waiting.length;
  }

  get #room(): number {
    return this.slots + this.most;
  }

  /**
   * Checks that there can be places for the runs of a request.
   *
   * @throws {ApiError} 400 if there will never be so many.
   */
  requirePlaces(count: number): void {
    const room = this.#room;
    if (count <= room) return;
    throw new ApiError(
      400,
      `Cannot generate: the request asks for ${count} texts, must be at most ${room}`,
      { code: "too_many_texts" },
    );
  }

  /**
   * Checks that there are places for the runs of a request.
   *
   * @throws {ApiError} 429 if too many wait; 400 if there will never be so many places;
   * 503 if the server is stopping.
   */
  requireRoom(count: number): void {
    if (this.#ended) throw stopping();
    this.requirePlaces(count);
    const room = this.#room;
    if (this.#running + this.#waiting.length + count > room) {
      throw new ApiError(
        429,
        `Cannot generate: ${this.#running} texts are being generated and ${this.#waiting.length} wait, must be at most ${room} with the ${count} of this request; try again later`,
        { code: "rate_limit_exceeded", retryAfter: this.#patience() },
      );
    }
  }

  /**
   * Takes places for the runs of a request.
   *
   * @throws {ApiError} as {@linkcode requireRoom} does.
   */
  take(count: number): Place[] {
    this.requireRoom(count);
    const request = { begun: false };
    const places = Array.from(
      { length: count },
      () => new Place(this.#leave, request),
    );
    this.#waiting.push(...places);
    this.#next();
    return places;
  }

  /** Refuses requests that wait and all that come; those that have begun go on. */
  end(): void {
    this.#ended = true;
    for (const place of this.#waiting.splice(0)) {
      if (place.request.begun) this.#waiting.push(place);
      else place.refuse(stopping());
    }
  }

  readonly #leave = (place: Place, seconds?: number): void => {
    if (seconds !== undefined) {
      this.#running--;
      this.#seconds += 0.1 * (seconds - this.#seconds);
    } else {
      const at = this.#waiting.indexOf(place);
      if (at >= 0) this.#waiting.splice(at, 1);
    }
    this.#next();
  };

  #next(): void {
    while (this.#running < this.slots && this.#waiting.length > 0) {
      this.#running++;
      this.#waiting.shift()!.grant();
    }
  }

  /** Seconds after which there may be room: 1 to 60. */
  #patience(): number {
    const turns = (this.#waiting.length + 1) / this.slots;
    return Math.min(60, Math.max(1, Math.ceil(turns * this.#seconds)));
  }
}

function stopping(): ApiError {
  return new ApiError(
    503,
    "Cannot generate: the server is stopping, try again later",
    { code: "stopping", retryAfter: 1 },
  );
}
