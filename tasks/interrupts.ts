/**
 * Ctrl-C and other signals, for tasks that have to clean up or report. The other
 * tasks leave signals to the system, which ends them at once.
 *
 * @module
 */

/** Signals and the exit codes that shells report for them; Windows has its own signals. */
export function signalsOf(os: string): [Deno.Signal, code: number][] {
  return os === "windows"
    ? [["SIGINT", 130], ["SIGBREAK", 149]]
    : [["SIGINT", 130], ["SIGTERM", 143], ["SIGHUP", 129]];
}

/** Says whether a signal has interrupted the task. */
export interface Interrupt {
  /** Aborted on the first signal; a second one exits at once. */
  readonly signal: AbortSignal;
  /** The exit code for the signal that arrived, if one did. */
  readonly code: number | undefined;
}

/** Listens for signals. */
export function onInterrupt(): Interrupt {
  const controller = new AbortController(), { signal } = controller;
  const interrupt = { signal, code: undefined as number | undefined };
  onSignals((_name, code) => {
    if (signal.aborted) Deno.exit(code);
    interrupt.code = code;
    controller.abort();
  });
  return interrupt;
}

/** Calls `act` for each signal, with the exit code that shells report for it. */
export function onSignals(
  act: (name: Deno.Signal, code: number) => void,
): void {
  for (const [name, code] of signalsOf(Deno.build.os)) {
    Deno.addSignalListener(name, () => act(name, code));
  }
}

/**
 * Calls `resumed` when the task goes on after it was stopped (Ctrl-Z), and `resized` when the
 * terminal has another size; not any more once disposed. Windows has neither signal.
 */
export function onTerminalChange(
  resumed: () => void,
  resized: () => void,
): Disposable {
  const listened: [Deno.Signal, () => void][] = Deno.build.os === "windows"
    ? []
    : [["SIGCONT", resumed], ["SIGWINCH", resized]];
  for (const [name, act] of listened) Deno.addSignalListener(name, act);
  return {
    [Symbol.dispose]() {
      for (const [name, act] of listened) Deno.removeSignalListener(name, act);
    },
  };
}

/** What a signal ends first, such as temporary files. */
const cleanups = new Set<() => void>();
const listeners: [Deno.Signal, () => void][] = [];

/** Calls `clean` on the first signal, which ends the task; not any more once disposed. */
export function cleanOnSignal(clean: () => void): Disposable {
  if (cleanups.size === 0) {
    for (const [name, code] of signalsOf(Deno.build.os)) {
      const stop = () => {
        for (const clean of cleanups) {
          try {
            clean();
          } catch { /* the others have their turn */ }
        }
        Deno.exit(code);
      };
      Deno.addSignalListener(name, stop);
      listeners.push([name, stop]);
    }
  }
  cleanups.add(clean);
  return {
    [Symbol.dispose]() {
      cleanups.delete(clean);
      if (cleanups.size > 0) return;
      for (const [name, stop] of listeners.splice(0)) {
        Deno.removeSignalListener(name, stop);
      }
    },
  };
}
