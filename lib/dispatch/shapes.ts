/**
 * Shapes that dispatch chooses by, and the classes they are grouped into.
 *
 * @module
 */
import type { Format } from "../formats/format.ts";

/** Values that the expander knows: numbers, and strings for comparisons. */
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
  /** The largest absolute weight, where it was measured; products in f16 need it. */
  largest?: number;
  /** Whether the weights change no more, so that a copy may be read instead. */
  fixed?: boolean;
}

/** What a kernel does with a product: writes it, adds it to the output, or SwiGLU. */
export type Epilogue = "store" | "add" | "swiglu";

/** Up to this many rows the matrix is read once for all of them. */
export const FEW_ROWS = 32;

/** Rows of a prompt by class: what is tuned for one number serves its neighbours. */
export const ROW_CLASSES: readonly number[] = [64, 256, 512];

/** Row classes of batches and short prompts, which gemvRows takes. */
export const FEW_ROW_CLASSES: readonly number[] = [4, 8, 16, 32];

/** Lengths of context whose attention is laid out alike; see choose_attention.ts. */
export const CONTEXT_CLASSES = ["short", "middle", "long"] as const;

/** One of {@linkcode CONTEXT_CLASSES}. */
export type ContextClass = typeof CONTEXT_CLASSES[number];
