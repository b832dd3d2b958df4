/**
 * Where kernels are tried: small tensors, poisoned results, and a comparison that
 * names the worst element.
 *
 * @module
 */
import { elements } from "../../dtype.ts";
import type { CpuTensor } from "../../cpu/tensor.ts";
import type { Gpu } from "../../webgpu/device.ts";
import type { Random } from "../../check/reference.ts";
import type { Kernel, Operands } from "../../webgpu/kernel.ts";
import { type AddOptions, Plan } from "../../webgpu/plan.ts";
import { Tensor } from "../../webgpu/tensor.ts";

/** One result of a kernel beside what it should be. */
export interface Trial {
  kernel: string;
  /** Shapes and element types. */
  what: string;
  elements: number;
  /** Of the worst element, in units of what was summed there; NaN where it is not a number. */
  error: number;
  tolerance: number;
  /** The worst element, and both of its values. */
  index: number;
  actual: number;
  expected: number;
}

/** Whether a trial is within its tolerance. */
export function agrees({ error, tolerance }: Trial): boolean {
  return error <= tolerance; // false for NaN
}

/** Runs kernels once each; everything is freed with it. */
export class Bench implements Disposable {
  readonly trials: Trial[] = [];
  /** Milliseconds of each kernel's first use, compilation included. */
  readonly firstUses: { kernel: string; ms: number }[] = [];
  #running?: string;
  #tensors = new DisposableStack();

  constructor(
    readonly gpu: Gpu,
    readonly random: Random,
    readonly onStart?: (kernel: string) => void,
  ) {}

  /** The kernel that started last, for whoever catches what it threw. */
  get running(): string | undefined {
    return this.#running;
  }

  /** Says that `kernel` runs next. */
  start(kernel: string): void {
    this.#running = kernel;
    this.onStart?.(kernel);
  }

  upload({ dtype, shape, data }: CpuTensor): Tensor {
    const values = data as Float32Array<ArrayBuffer>;
    return this.#tensors.use(Tensor.create(this.gpu, dtype, shape, values));
  }

  /** Room for a result, full of `value`: NaN shows wherever it was left. */
  room(shape: readonly number[], value = NaN): Tensor {
    const data = new Float32Array(elements(shape)).fill(value);
    return this.upload({ dtype: "f32", shape, data });
  }

  u32(...values: number[]): Tensor {
    const data = Uint32Array.from(values);
    return this.upload({ dtype: "u32", shape: [data.length], data });
  }

  /** Frees `what` with the bench. */
  own<T extends Disposable>(what: T): T {
    return this.#tensors.use(what);
  }

  /** Runs a kernel and waits for it. */
  async run(
    kernel: Kernel,
    operands: Operands,
    options: AddOptions = {},
  ): Promise<void> {
    const began = performance.now();
    this.start(kernel.name);
    using plan = new Plan(this.gpu);
    plan.add(kernel, operands, options);
    plan.run();
    await this.gpu.device.queue.onSubmittedWorkDone();
    this.gpu.check();
    const ms = performance.now() - began;
    this.firstUses.push({ kernel: kernel.name, ms });
  }

  /** Keeps how far `actual` is from `expected`. Without norms an error is an absolute one. */
  compare(
    kernel: string,
    what: string,
    actual: ArrayLike<number>,
    { values, norms }: {
      values: ArrayLike<number>;
      norms?: ArrayLike<number>;
    },
    tolerance: number,
  ): void {
    let error = 0, index = 0;
    for (let i = 0; i < values.length; i++) {
      if (Number.isNaN(values[i]) && Number.isNaN(actual[i])) continue; // untouched
      const off = Math.abs(actual[i] - values[i]) / (norms?.[i] || 1);
      if (off <= error) continue;
      [error, index] = [off, i];
      if (Number.isNaN(off)) break;
    }
    this.trials.push({
      ...{ kernel, what, elements: values.length, error, tolerance, index },
      actual: actual[index],
      expected: values[index],
    });
  }

  [Symbol.dispose](): void {
    this.#tensors[Symbol.dispose]();
  }
}
