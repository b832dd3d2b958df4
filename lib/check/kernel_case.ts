/**
 * Runs kernel test cases on a GPU and compares the results with references.
 *
 * @module
 */
import type {
  Buffers,
  KernelCase,
  Reference,
  Result,
} from "../../kernels/case.ts";
import { chooseLiterals } from "../dispatch/literals.ts";
import { fillSynthetic } from "../checkpoint/synthetic.ts";
import {
  adjusted,
  gumbel,
  gumbelHash,
  logSoftmax,
  sample,
} from "../model/sampling.ts";
import type { Gpu } from "../webgpu/device.ts";
import { withPlanes } from "../formats/matrix.ts";
import type { CpuTensor } from "../formats/tensor.ts";
import type { Kernel, Operand } from "../webgpu/kernel.ts";
import { Plan } from "../webgpu/plan.ts";
import { Tensor } from "../webgpu/tensor.ts";
import * as plain from "./reference.ts";

/** The reference implementations that cases compare kernels with. */
export const reference: Reference = {
  ...plain,
  fillSynthetic,
  sample,
  adjusted,
  logSoftmax,
  noise: (seed, step, id) => gumbel(gumbelHash(seed, step, id)),
};

/**
 * Runs a kernel once.
 *
 * @param literal whether its sizes are literals; by default as in a decode step
 * @returns the buffers that it may write
 */
export async function runCase(
  gpu: Gpu,
  kernel: Kernel,
  { operands, constants, uniforms, grid }: KernelCase,
  { literal }: { literal: boolean } = chooseLiterals(gpu),
): Promise<Buffers> {
  using memory = new DisposableStack();
  const { buffers } = kernel;
  const contract = typeof buffers === "function"
    ? buffers({ ...kernel.constants, ...constants })
    : buffers;
  const upload = ({ dtype, shape, data }: CpuTensor) => {
    const values = data as Float32Array<ArrayBuffer>;
    return memory.use(Tensor.create(gpu, dtype, shape, values));
  };
  const tensors = Object.keys(contract).map((name): [string, Operand] => {
    const operand = operands[name];
    return [
      name,
      "parts" in operand ? withPlanes(operand, upload) : upload(operand),
    ];
  });
  using plan = new Plan(gpu, () => literal);
  plan.add(kernel, Object.fromEntries(tensors), {
    constants,
    uniforms,
    gridAt: grid && (() => grid),
  });
  plan.run();
  await gpu.device.queue.onSubmittedWorkDone();
  gpu.check();
  const written = tensors.filter((one): one is [string, Tensor] =>
    /^(in)?out /.test(contract[one[0]])
  );
  return Object.fromEntries(
    await Promise.all(
      written.map(async ([name, tensor]) => [name, await readAll(tensor)]),
    ),
  );
}

/** Reads a whole tensor: u32 with all bits, floats widened to f32. */
async function readAll(tensor: Tensor): Promise<ArrayLike<number>> {
  if (tensor.dtype !== "u32") return await tensor.read();
  return new Uint32Array(
    await tensor.gpu.readBuffer(tensor.buffer, 0, tensor.bytes),
  );
}

/** The worst element of a result. */
export interface Comparison {
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
export function passes(
  { error, tolerance }: Pick<Comparison, "error" | "tolerance">,
): boolean {
  return error <= tolerance; // false for NaN
}

/** Compares a result with its reference; returns the worst element. */
export function compare(
  { of, values, norms, tolerance }: Result,
  buffers: Buffers,
): Comparison {
  const actual = typeof of === "string" ? buffers[of] : of(buffers);
  const worst = { error: 0, index: 0 };
  for (let i = 0; i < Math.max(values.length, actual.length); i++) {
    const [a, e] = [actual[i], values[i]]; // undefined past the end
    if (Object.is(a, e) || a === e) continue;
    const error = Math.abs(a - e) / (norms?.[i] || 1);
    if (error <= worst.error) continue;
    Object.assign(worst, { error, index: i });
    if (Number.isNaN(error)) break;
  }
  return {
    elements: values.length,
    tolerance,
    ...worst,
    actual: actual[worst.index],
    expected: values[worst.index],
  };
}
