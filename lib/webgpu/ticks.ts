/**
 * How often Dawn looks whether work is done. It does in every turn of the event loop, each
 * time by a new function, and Deno 2.9.6 takes 20 µs to collect one, and 200 once there are
 * 20,000: seconds after a wait of one (findings/deno-napi-finalizers.sh).
 *
 * @module
 */

type Tick = () => void;

/** Milliseconds between two looks: a share of the time since the last call, within bounds. */
const SHARE = 1 / 16, LEAST_MS = 0.25, MOST_MS = 5;

/** Timers may be late by this many milliseconds, so the last of them are turns. */
const TIMER_MS = 2;

const scope = globalThis as unknown as {
  setImmediate(tick: Tick): unknown;
};

/** Calls of Dawn that settle later, by the interface that they belong to. */
const ASYNC_CALLS: Readonly<Record<string, readonly string[]>> = {
  GPU: ["requestAdapter"],
  GPUAdapter: ["requestDevice"],
  GPUBuffer: ["mapAsync"],
  GPUDevice: [
    "createComputePipelineAsync",
    "createRenderPipelineAsync",
    "popErrorScope",
  ],
  GPUQueue: ["onSubmittedWorkDone"],
  GPUShaderModule: ["getCompilationInfo"],
};

/** Dawn's interfaces by name. */
type Interfaces = Readonly<
  Record<string, { prototype: object } | undefined>
>;

/** Makes the calls of these interfaces look less often the longer they take. */
export function paceTicks(interfaces: Interfaces): void {
  const turn = scope.setImmediate;
  let pending: Tick | undefined;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let called = 0, first = false, due = 0;

  // Dawn finds `setImmediate` by its name, in its calls and in its ticks.
  const within = <T>(run: () => T): T => {
    const own = scope.setImmediate;
    scope.setImmediate = later;
    try {
      return run();
    } finally {
      scope.setImmediate = own;
    }
  };
  const later = (tick: Tick) => {
    pending = tick;
    const waited = performance.now() - called;
    const pause = Math.min(MOST_MS, Math.max(LEAST_MS, SHARE * waited));
    due = first ? 0 : performance.now() + pause; // it may be done at once
    first = false;
    wait();
  };
  const wait = () => {
    timer = undefined;
    const left = due - performance.now();
    if (left > TIMER_MS) timer = setTimeout(wait, left - TIMER_MS);
    else turn(look);
  };
  const look = () => {
    if (performance.now() < due) return wait();
    const tick = pending!;
    pending = undefined;
    within(tick);
  };
  const call = (run: () => unknown) => {
    called = performance.now();
    first = true;
    if (pending) due = Math.min(due, called + LEAST_MS);
    if (timer !== undefined) { // it would be late for this call
      clearTimeout(timer);
      wait();
    }
    return within(run);
  };
  for (const [name, methods] of Object.entries(ASYNC_CALLS)) {
    const prototype = interfaces[name]?.prototype as
      | Record<string, (...args: unknown[]) => unknown>
      | undefined;
    for (const method of prototype ? methods : []) {
      const own = prototype![method];
      prototype![method] = function (...args) {
        return call(() => own.apply(this, args));
      };
    }
  }
}
