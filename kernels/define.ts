/**
 * What a file of this folder says about its kernel.
 *
 * @module
 */
import type { Tuning } from "../lib/dispatch/limits.ts";
import type { Kernel } from "../lib/webgpu/kernel.ts";
import type { CaseTools, KernelCase } from "./case.ts";
import type { Cost, CostCall } from "./cost.ts";

/** A kernel with everything that the tools need to know about it. */
export interface LibraryKernel<P = unknown> extends Kernel {
  /** What `deno task tune` may change, if anything. */
  readonly tuning?: Tuning;
  /** What one dispatch computes and moves; absent if no pass of a model runs the kernel. */
  cost?(call: CostCall): Cost[];
  /** Sizes, element types and switches to test with; a model's sizes come last. */
  readonly cases: readonly P[];
  /** Inputs and results of a case; undefined where the device cannot run it. */
  makeCase(given: P, tools: CaseTools): KernelCase | undefined;
}

/** Whether a pass of a model runs the kernel; the others measure, prepare, or serve callers of their own. */
export const inPasses = ({ cost }: LibraryKernel): boolean =>
  cost !== undefined;

/** Types a kernel where it is defined; `P` is what its cases differ in. */
export function defineKernel<P>(spec: LibraryKernel<P>): LibraryKernel<P> {
  return spec;
}
