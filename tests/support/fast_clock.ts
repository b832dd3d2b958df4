/** A clock that makes everything take long. */

/** Makes `performance.now()` move on by `ms` whenever it is read, until it is disposed. */
export function fastClock(ms: number): Disposable {
  const { now } = performance;
  let time = now.call(performance);
  performance.now = () => time += ms;
  return { [Symbol.dispose]: () => void (performance.now = now) };
}
