/**
 * Lists the kernels of mod.ts, for show, doctor, radv, tune, profile and the tests.
 *
 * @module
 */
import type { Tunable } from "../lib/dispatch/limits.ts";
import type { LibraryKernel } from "./define.ts";
import * as kernels from "./mod.ts";

/** All kernels, by name. */
export const KERNELS: readonly LibraryKernel[] = Object.values(kernels);

/** Names of all kernels. */
export const KERNEL_NAMES: readonly string[] = KERNELS.map(({ name }) => name);

/**
 * Finds a kernel by its name (`attendDecode`) or that of its file (`attend_decode`, also
 * `attend-decode`).
 */
export function findKernel(name: string): LibraryKernel | undefined {
  const plain = (text: string) => text.replaceAll(/[-_]/g, "").toLowerCase();
  return KERNELS.find((kernel) => plain(kernel.name) === plain(name));
}

/** The kernels that `deno task tune` tunes. */
export const TUNED_KERNELS: readonly (LibraryKernel & Tunable)[] = KERNELS
  .filter((kernel): kernel is LibraryKernel & Tunable => "tuning" in kernel);
