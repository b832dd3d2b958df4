/**
 * Under which names tuned constants are kept: a kernel and a class of shapes.
 *
 * @module
 */
import {
  type ContextClass,
  FEW_ROW_CLASSES,
  type LinearShape,
  ROW_CLASSES,
} from "./shapes.ts";
import type { Dtype } from "../dtype.ts";

/** The class that `m` rows belong to. */
const classOf = (m: number, classes: readonly number[]) =>
  classes.find((most) => m <= most) ?? classes.at(-1)!;

/** Key of a Linear layer; `half`: its products are in f16. */
export function linearKey(
  kernel: "gemv" | "gemvRows" | "gemm",
  { m, n, k, dtype, swiglu }: Omit<LinearShape, "norm" | "largest">,
  half = false,
): string {
  const rows = kernel === "gemv"
    ? m
    : classOf(m, kernel === "gemm" ? ROW_CLASSES : FEW_ROW_CLASSES);
  const kind = [kernel, dtype, ...(swiglu ? ["swiglu"] : [])];
  return [...kind, ...(half ? ["half"] : []), rows, n, k].join(" ");
}

/** Key of a decode step's attention: `group` query heads share a kv head. */
export function attendKey(
  what: ContextClass,
  headDim: number,
  group: number,
): string {
  return `attendDecode ${what} ${headDim} ${group}`;
}

/** Kernels that can be tuned. */
export const TUNED_KERNELS = [
  "gemv",
  "gemvRows",
  "gemm",
  "attendDecode",
] as const;

/** One of {@linkcode TUNED_KERNELS}. */
export type TunedKernel = typeof TUNED_KERNELS[number];

/** What a key is for. */
export type TuningTarget =
  | {
    kernel: "gemv" | "gemvRows" | "gemm";
    dtype: Exclude<Dtype, "u32">;
    swiglu: boolean;
    half: boolean;
    /** Rows: of a gemv exactly, else at most. */
    m: number;
    n: number;
    k: number;
  }
  | {
    kernel: "attendDecode";
    what: ContextClass;
    headDim: number;
    group: number;
  };

/** What a key is for; undefined where it is not one. */
export function parseKey(key: string): TuningTarget | undefined {
  const linear =
    /^(gemv|gemvRows|gemm) (f32|f16|bf16)( swiglu)?( half)? (\d+) (\d+) (\d+)$/
      .exec(
        key,
      );
  if (linear) {
    const [, kernel, dtype, swiglu, half, ...sizes] = linear;
    const [m, n, k] = sizes.map(Number);
    return {
      kernel: kernel as "gemv",
      dtype: dtype as "f32",
      swiglu: swiglu !== undefined,
      half: half !== undefined,
      ...{ m, n, k },
    };
  }
  const attend = /^attendDecode (short|middle|long) (\d+) (\d+)$/.exec(key);
  if (!attend) return undefined;
  const [, what, headDim, group] = attend;
  return {
    kernel: "attendDecode",
    what: what as ContextClass,
    headDim: Number(headDim),
    group: Number(group),
  };
}
