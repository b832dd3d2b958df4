/**
 * The matmul kernels that a profile can be restricted to, and their refusals.
 *
 * @module
 */
import type { Capabilities } from "../../dispatch/capabilities.ts";
import { chooseMatmul, type MatmulKernel } from "../../dispatch/matmul.ts";
import type { Refusal } from "./report.ts";

/** Kernels that `--kernels` may name, with the shapes that each one takes. */
export const SHAPES_TAKEN = {
  gemv: "2D×1D",
  gemm: "2D×2D",
  batchedGemm: "4D×4D",
} as const;

/** A refusal before it is counted. */
export type Refused = Omit<Refusal, "operations" | "count">;

/** A kernel that `--kernels` may name. */
export type AllowedKernel = keyof typeof SHAPES_TAKEN;

/**
 * Reads `gemv,gemm`.
 *
 * @throws {Error} if a name is unknown.
 */
export function parseKernels(list: string): AllowedKernel[] {
  const names = list.split(",").map((name) => name.trim()).filter(Boolean);
  const known = Object.keys(SHAPES_TAKEN);
  const unknown = names.find((name) => !known.includes(name));
  if (unknown !== undefined || names.length === 0) {
    throw new Error(
      `Cannot restrict the kernels: ${
        unknown === undefined ? "the list is empty" : `${unknown} is unknown`
      }, must be some of ${known.join(", ")}`,
    );
  }
  return names as AllowedKernel[];
}

/**
 * The allowed kernel that takes `[m, k] × [k, n]` (or a batch of them), or the reasons
 * why none does; `bytes` is the size of the larger operand.
 */
export function chooseAllowed(
  a: readonly number[],
  b: readonly number[],
  allowed: readonly AllowedKernel[],
  device: Capabilities & { limits: { maxStorageBufferBindingSize: number } },
  bytes = 0,
): { kernel: MatmulKernel } | {
  refusals: Refused[];
} {
  const choice = chooseMatmul(a, b, device, { kernels: allowed });
  const most = device.limits.maxStorageBufferBindingSize;
  const large = bytes > most;
  if (choice.kernel && !large) return { kernel: choice.kernel };
  const got = `${a.length}D×${b.length}D`;
  const shape = `[${a.join(", ")}] × [${b.join(", ")}]`;
  return {
    refusals: allowed.map((kernel) => {
      const need = SHAPES_TAKEN[kernel];
      const why = kernel === choice.kernel
        ? `binding too large (at most ${most} bytes, got ${bytes})`
        : `shape mismatch (need ${need}, got ${got})`;
      return {
        line: `[GPU] ${kernel.toUpperCase()} rejected: ${why}: ${shape}`,
        kernel,
        need,
        got,
        shape,
      };
    }),
  };
}
