/**
 * Long work of one request between the steps of others.
 *
 * @module
 */
import type { Parts } from "../text/parts.ts";
import { refusing } from "./errors.ts";

/** Milliseconds of work after which others have their turn: a step or two of a decode. */
const WORK_MS = 5;

/** Lets the event loop turn, timers and sockets included. */
export const turn = (): Promise<void> =>
  new Promise((turned) => setTimeout(turned, 0));

/**
 * Does work in parts, and lets the event loop turn between them.
 *
 * @param param holds what is worked on: if that fails, it is at fault
 * @throws the reason of `signal` if that is aborted.
 */
export async function inTurns<R>(
  param: string,
  parts: Parts<R>,
  signal: AbortSignal,
): Promise<R> {
  for (let began = performance.now();;) {
    const { done, value } = refusing(param, () => parts.next());
    if (done) return value;
    if (performance.now() - began < WORK_MS) continue;
    await turn();
    signal.throwIfAborted();
    began = performance.now();
  }
}
