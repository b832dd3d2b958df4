/**
 * How long the library may block the thread. Longer work is divided, and the event loop
 * turns in between, so that signals are noticed, timers fire and the rest of the program
 * can run.
 *
 * @module
 */

/**
 * Work between two turns of the event loop. Not measured: a turn takes 1 to 2 ms, so this
 * costs at most 4 %, and an abort feels immediate below 100 ms.
 */
const WORK_MS = 50;

/** The longest work that a GPU's queue may hold, because waiting for it blocks the thread. */
export const LONGEST_WAIT_MS = 100;

/** When the event loop last turned, during work on the CPU. */
export class Rests {
  #began = performance.now();

  /**
   * Lets the event loop turn if it has not for a while.
   *
   * @throws the reason of `signal` if that is aborted.
   */
  async rest(signal?: AbortSignal): Promise<void> {
    if (performance.now() - this.#began >= WORK_MS) {
      await turn();
      this.#began = performance.now();
    }
    signal?.throwIfAborted();
  }
}

/**
 * Lets the event loop turn `count` times without its timers (microseconds each), which runs
 * most pending callbacks (bench/log.md, "Yielding to the event loop").
 */
export async function turns(count: number): Promise<void> {
  const { port1, port2 } = new MessageChannel();
  for (let i = 0; i < count; i++) {
    await new Promise((resolve) => {
      port1.onmessage = resolve;
      port2.postMessage(null);
    });
  }
  port1.close();
  port2.close();
}

/** Lets the event loop turn once, timers included. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}
