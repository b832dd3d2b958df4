/**
 * `DisposableStack`, `AsyncDisposableStack` and disposable iterators for runtimes without
 * them (Node 22, older browsers), as far as this library uses them. The `using` declarations themselves are up
 * to the bundler there: `esbuild --target=node22` rewrites them.
 *
 * Source: https://tc39.es/proposal-explicit-resource-management/
 *
 * @module
 */

type Step = () => unknown;

/** What both stacks share. */
class Steps {
  protected steps: Step[] = [];

  use<T extends Partial<Disposable & AsyncDisposable> | null | undefined>(
    value: T,
  ): T {
    this.steps.push(() =>
      (value?.[Symbol.asyncDispose] ?? value?.[Symbol.dispose])?.call(value)
    );
    return value;
  }

  defer(step: Step): void {
    this.steps.push(step);
  }

  move(): this {
    const other = new (this.constructor as new () => this)();
    [other.steps, this.steps] = [this.steps, []];
    return other;
  }

  /** All steps, the last one first. */
  protected take(): Step[] {
    const steps = this.steps.reverse();
    this.steps = [];
    return steps;
  }
}

class OwnStack extends Steps {
  dispose(): void {
    const errors: unknown[] = [];
    for (const step of this.take()) {
      try {
        step();
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw errors[0];
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

class OwnAsyncStack extends Steps {
  async disposeAsync(): Promise<void> {
    const errors: unknown[] = [];
    for (const step of this.take()) {
      try {
        await step();
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw errors[0];
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.disposeAsync();
  }
}

const scope = globalThis as unknown as Record<string, unknown>;
scope.DisposableStack ??= OwnStack;
scope.AsyncDisposableStack ??= OwnAsyncStack;
const iterator: { [Symbol.dispose]?(): void } = Iterator.prototype;
iterator[Symbol.dispose] ??= function (this: Iterator<unknown>) {
  this.return?.();
};
