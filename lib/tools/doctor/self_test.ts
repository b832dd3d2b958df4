/**
 * Runs kernels on small tensors and compares their results with a reference.
 *
 * @module
 */
import type { Random } from "../../check/reference.ts";
import { type CpuTensor, elements } from "../../dtype.ts";
import type { Gpu } from "../../webgpu/device.ts";
import type { Kernel, Operands } from "../../webgpu/kernel.ts";
import { type AddOptions, Plan } from "../../webgpu/plan.ts";
import { Tensor } from "../../webgpu/tensor.ts";
import type { Reporter } from "./report.ts";

/** One result of a kernel, compared with the reference. */
export interface TestResult {
  kernel: string;
  /** Shapes and element types. */
  what: string;
  elements: number;
  /**
   * Error of the worst element relative to its norm, the size of what was summed
   * there; NaN if the element is NaN.
   */
  error: number;
  tolerance: number;
  /** Index of the worst element, and its values on the GPU and in the reference. */
  index: number;
  actual: number;
  expected: number;
}

/** Whether a result is within its tolerance. */
export function passes({ error, tolerance }: TestResult): boolean {
  return error <= tolerance; // false for NaN
}

/** Runs kernels and collects results; owns every tensor that it creates. */
export class SelfTest implements Disposable {
  readonly results: TestResult[] = [];
  /** Milliseconds of each pipeline's first run, compilation included. */
  readonly firstUses: { kernel: string; ms: number }[] = [];
  #running?: string;
  #tensors = new DisposableStack();

  constructor(
    readonly gpu: Gpu,
    readonly random: Random,
    readonly reporter: Pick<Reporter, "starting">,
  ) {}

  /** The kernel that started last, to blame for an error. */
  get running(): string | undefined {
    return this.#running;
  }

  /** Notes that `kernel` runs next. */
  start(kernel: string): void {
    this.#running = kernel;
    this.reporter.starting?.(kernel);
  }

  upload({ dtype, shape, data }: CpuTensor): Tensor {
    const values = data as Float32Array<ArrayBuffer>;
    return this.#tensors.use(Tensor.create(this.gpu, dtype, shape, values));
  }

  /** A tensor for a result, filled with `value`: NaN exposes elements not written. */
  output(shape: readonly number[], value = NaN): Tensor {
    const data = new Float32Array(elements(shape)).fill(value);
    return this.upload({ dtype: "f32", shape, data });
  }

  u32(...values: number[]): Tensor {
    const data = Uint32Array.from(values);
    return this.upload({ dtype: "u32", shape: [data.length], data });
  }

  /** Disposes `what` along with this. */
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

  /** Adds the result of a comparison. Without norms the error is absolute. */
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
      // NaN in both: an element that must not be written.
      if (Number.isNaN(values[i]) && Number.isNaN(actual[i])) continue;
      const off = Math.abs(actual[i] - values[i]) / (norms?.[i] || 1);
      if (off <= error) continue;
      [error, index] = [off, i];
      if (Number.isNaN(off)) break;
    }
    this.results.push({
      ...{ kernel, what, elements: values.length, error, tolerance, index },
      actual: actual[index],
      expected: values[index],
    });
  }

  [Symbol.dispose](): void {
    this.#tensors[Symbol.dispose]();
  }
}
