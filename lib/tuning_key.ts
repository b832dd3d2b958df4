/**
 * Under which names tuned constants are kept: a kernel and a class of shapes.
 *
 * @module
 */
import type { LinearShape } from "./choose.ts";

/** Rows of a prompt by class: what is tuned for one number serves its neighbours. */
export const ROW_CLASSES: readonly number[] = [32, 64, 256, 512];

/** Key of a Linear layer; `half`: its products are in f16. */
export function linearKey(
  kernel: "gemv" | "gemm",
  { m, n, k, dtype, swiglu }: Omit<LinearShape, "norm" | "largest">,
  half = false,
): string {
  const rows = kernel === "gemv"
    ? m
    : ROW_CLASSES.find((most) => m <= most) ?? ROW_CLASSES.at(-1);
  const kind = [kernel, dtype, ...(swiglu ? ["swiglu"] : [])];
  return [...kind, ...(half ? ["half"] : []), rows, n, k].join(" ");
}

/** Key of a decode step's attention: `group` query heads share a kv head. */
export function attendKey(
  what: "short" | "long",
  headDim: number,
  group: number,
): string {
  return `attendDecode ${what} ${headDim} ${group}`;
}
