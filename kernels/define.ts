/**
 * What each kernel's file declares about it.
 *
 * @module
 */
import type { Tuning } from "../lib/dispatch/limits.ts";
import type { Kernel } from "../lib/webgpu/kernel.ts";
import type { CaseTools, KernelCase } from "./case.ts";
import type { Cost, CostCall } from "./cost.ts";

/** A kernel with everything that the tools and tests need to know about it. */
export interface LibraryKernel<P = unknown> extends Kernel {
  /** What `deno task tune` may change, if anything. */
  readonly tuning?: Tuning;
  /** What one dispatch computes and moves; absent if no pass of a model runs the kernel. */
  cost?(call: CostCall): Cost[];
  /** Sizes, element types and switches to test with; a model's sizes come last. */
  readonly cases: readonly P[];
  /** Makes a case's inputs and expected results; undefined if the device cannot run it. */
  makeCase(given: P, tools: CaseTools): KernelCase | undefined;
}

/**
 * Whether a model's forward pass runs the kernel. The others measure the device, prepare
 * weights or are called directly.
 */
export const inPasses = ({ cost }: LibraryKernel): boolean =>
  cost !== undefined;

/** Returns its argument; type-checks a kernel. `P` holds the parameters of its cases. */
export function defineKernel<P>(spec: LibraryKernel<P>): LibraryKernel<P> {
  return spec;
}
