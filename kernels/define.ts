/**
 * What a file of this folder says about its kernel.
 *
 * @module
 */
import type { Tuning } from "../lib/dispatch/limits.ts";
import type { Kernel } from "../lib/webgpu/kernel.ts";
import type { Cost, CostCall } from "./cost.ts";

/** A kernel with all that the tools want to know of it. */
export interface LibraryKernel extends Kernel {
  /** What `deno task tune` may change, if anything. */
  readonly tuning?: Tuning;
  /** What one dispatch computes and moves, for the profile. */
  cost(call: CostCall): Cost[];
}

/** Types a kernel where it is defined. */
export function defineKernel(spec: LibraryKernel): LibraryKernel {
  return spec;
}
