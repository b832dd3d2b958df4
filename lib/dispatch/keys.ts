/**
 * The keys that tuned constants are stored under: a kernel and a class of shapes.
 *
 * @module
 */
import {
  type ContextClass,
  FEW_ROW_CLASSES,
  type LinearShape,
  ROW_CLASSES,
} from "./shapes.ts";
import type { CacheDtype } from "../formats/cached.ts";
import type { Format } from "../formats/format.ts";
import { FORMATS } from "../formats/mod.ts";

/** The class that `m` rows belong to. */
const classOf = (m: number, classes: readonly number[]) =>
  classes.find((most) => m <= most) ?? classes.at(-1)!;

/** The kernels that run Linear layers. */
export type LinearKernel =
  | "gemv"
  | "gemvInt8"
  | "gemvRows"
  | "gemvRowsInt8"
  | "gemm"
  | "gemmMatrix";

/** The kernels that multiply rows by the matrices of their experts. */
export type ExpertKernel =
  | "expertGemv"
  | "expertGemvInt8"
  | "expertGemm"
  | "expertGemmMatrix";

/**
 * The key of a Linear layer of experts, whose matrices are `[n, k]` each: of `m` experts of
 * a row or, where rows are grouped by expert, of tiles of `m` rows of one expert.
 */
export const expertKey = (
  kernel: ExpertKernel,
  { m, n, k, format, swiglu }: Omit<LinearShape, "norm" | "largest">,
  half = false,
): string => keyOf(kernel, { m, n, k, format, swiglu }, half);

function keyOf(
  kernel: string,
  { m, n, k, format, swiglu }: Omit<LinearShape, "norm" | "largest">,
  half: boolean,
): string {
  const kind = [kernel, format.name, ...(swiglu ? ["swiglu"] : [])];
  return [...kind, ...(half ? ["half"] : []), m, n, k].join(" ");
}

/** The key of a Linear layer; set `half` if it multiplies in f16. */
export function linearKey(
  kernel: LinearKernel,
  { m, n, k, format, swiglu }: Omit<LinearShape, "norm" | "largest">,
  half = false,
): string {
  const rows = kernel === "gemv" || kernel === "gemvInt8"
    ? m
    : classOf(m, /^gemm/.test(kernel) ? ROW_CLASSES : FEW_ROW_CLASSES);
  return keyOf(kernel, { m: rows, n, k, format, swiglu }, half);
}

/**
 * The key of attention in a decode step, where `group` query heads share a kv head. A
 * cache in q8_0 has keys of its own.
 */
export function attendKey(
  what: ContextClass,
  headDim: number,
  group: number,
  cache?: CacheDtype,
): string {
  const kind = cache === "q8_0" ? ["attendDecode", cache] : ["attendDecode"];
  return [...kind, what, headDim, group].join(" ");
}

/** A class of Linear layers that is tuned together. */
export interface LinearTarget {
  kernel: string;
  /** How the weights are stored. */
  format: Format;
  swiglu: boolean;
  /** Whether it multiplies in f16. */
  half: boolean;
  /**
   * Rows: the exact number for gemv, the maximum for the others; of experts, as
   * {@linkcode expertKey} says.
   */
  m: number;
  n: number;
  k: number;
}

/** Attention in a decode step, for one context class. */
export interface AttendTarget {
  kernel: string;
  what: ContextClass;
  headDim: number;
  /** Query heads that share a kv head. */
  group: number;
  /** Given if the cache is quantized. */
  cache?: "q8_0";
}

/** The kernel and shapes that a key stands for. */
export type TuningTarget = LinearTarget | AttendTarget;

/** Parses a key; undefined if it is not valid. */
export function parseKey(key: string): TuningTarget | undefined {
  const linear = /^(\w+) (\w+)( swiglu)?( half)? (\d+) (\d+) (\d+)$/
    .exec(key);
  if (linear) {
    const [, kernel, stored, swiglu, half, ...sizes] = linear;
    const format = FORMATS.find(({ name }) => name === stored);
    if (!format) return undefined;
    const [m, n, k] = sizes.map(Number);
    return {
      kernel,
      format,
      swiglu: swiglu !== undefined,
      half: half !== undefined,
      m,
      n,
      k,
    };
  }
  const attend = /^(\w+)( q8_0)? (short|middle|long) (\d+) (\d+)$/.exec(key);
  if (!attend) return undefined;
  const [, kernel, cache, what, headDim, group] = attend;
  return {
    kernel,
    what: what as ContextClass,
    headDim: Number(headDim),
    group: Number(group),
    ...cache === undefined ? {} : { cache: "q8_0" },
  };
}
