/**
 * Shapes that dispatch chooses by, and the classes they are grouped into.
 *
 * @module
 */
import type { Format } from "../formats/format.ts";

/** Constants of a kernel: numbers, and strings that `@if` compares. */
export type Constants = Readonly<Record<string, number | string>>;

/** A Linear layer: `[m, k] × [n, k]ᵀ`. */
export interface LinearShape {
  m: number;
  n: number;
  k: number;
  /** How the weights are stored. */
  format: Format;
  /** RMSNorm of the rows first. */
  norm: boolean;
  /** SwiGLU after it: pairs of w's rows become one output. */
  swiglu: boolean;
  /** The largest absolute weight, if it was measured; f16 matmuls need it. */
  largest?: number;
  /** Whether the weights no longer change, so that a copy may be read instead. */
  fixed?: boolean;
}

/** What a kernel does with its sums: store them, add them to the output, or SwiGLU. */
export type Epilogue = "store" | "add" | "swiglu";

/** Rows up to which the matrix is read once for all of them (bench/log.md, "gemvRows: 2 to 32 rows in a kernel of its own"). */
export const FEW_ROWS = 32;

/** Classes of rows of a prompt: constants tuned for one number of rows serve its neighbours. */
export const ROW_CLASSES: readonly number[] = [64, 256, 512];

/** Classes of rows that gemvRows takes: batches and short prompts. */
export const FEW_ROW_CLASSES: readonly number[] = [4, 8, 16, 32];

/** Classes of context lengths with the same layout of attention; see attention.ts. */
export const CONTEXT_CLASSES = ["short", "middle", "long"] as const;

/** One of {@linkcode CONTEXT_CLASSES}. */
export type ContextClass = typeof CONTEXT_CLASSES[number];
