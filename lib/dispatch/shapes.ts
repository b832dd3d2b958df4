/**
 * Shapes that dispatch chooses by, and the classes they are grouped into.
 *
 * @module
 */
import type { Format } from "../formats/format.ts";

/** A kernel's constants: numbers, and strings that `@if` compares. */
export type Constants = Readonly<Record<string, number | string>>;

/** A Linear layer: `[m, k] × [n, k]ᵀ`. */
export interface LinearShape {
  m: number;
  n: number;
  k: number;
  /** How the weights are stored. */
  format: Format;
  /** Whether the rows go through RMSNorm first. */
  norm: boolean;
  /** Whether SwiGLU follows: each pair of w's rows makes one output. */
  swiglu: boolean;
  /**
   * The largest absolute weight, if it was measured, which is so where f16 is allowed; f16
   * matmuls need it.
   */
  largest?: number;
  /** Whether many rows multiply in f32, even where f16 is allowed. */
  exact?: boolean;
  /** Whether the weights never change, so that a copy may be read instead. */
  fixed?: boolean;
  /** Whether the kernel before has rounded the row. */
  rounded?: boolean;
  /** Whether other workgroups have added to the row (kernels/pending.ts). */
  pending?: boolean;
  /** The next part of the same matrix, whose rows follow. */
  other?: { n: number; format: Format };
  /** What multiplies the results next, if one kernel has all of them. */
  next?: NextShape;
}

/** The Linear layer that follows another one. */
export interface NextShape {
  /** How its parts are stored. */
  formats: readonly Format[];
  largest?: number;
}

/**
 * What a kernel does with its sums: store them, add them to the output, or apply
 * SwiGLU.
 */
export type Epilogue = "store" | "add" | "swiglu";

/**
 * Maximum rows for which the matrix is read once for all of them ("gemvRows:
 * 2 to 32 rows in a kernel of its own").
 */
export const FEW_ROWS = 32;
/**
 * Maximum splits of k, and minimum k per split: summing them costs a dispatch ("Split
 * k").
 */
const MOST_SPLITS_OF_K = 8, LEAST_K = 256;

/** As many splits of k as are `wanted`, if there may be, and the most that there may be. */
export function splitsWithin(
  wanted: number,
  k: number,
): { splits: number; most: number } {
  const most = Math.min(MOST_SPLITS_OF_K, Math.floor(k / LEAST_K));
  return { splits: Math.max(1, Math.min(wanted, most)), most };
}

/** Elements of a rounded row that share a scale: 16 bytes of a plane. */
export const ROUNDED_BLOCK = 16;
/** Rows of this many elements are long: a GPU's core caches few of them. */
export const LONG_K = 4096;

/**
 * Classes of prompt lengths, in rows: constants tuned for one length also serve nearby
 * ones. The bounds were not measured: without tuning, tiles change after 64 rows and at
 * 256, and 512 is the prompt that the log profiles ("Profile on an H100: what limits
 * prefill and decode").
 */
export const ROW_CLASSES: readonly number[] = [64, 256, 512];

/**
 * Classes of row counts for gemvRows: batches and short prompts. 4, 16 and 32 are the
 * counts that were timed ("gemvRows: 2 to 32 rows in a kernel of its own"); 8 halves the
 * widest gap, 64 is what short rows allow, and neither was measured.
 */
export const FEW_ROW_CLASSES: readonly number[] = [4, 8, 16, 32, 64];

/** Classes of context lengths that share an attention layout; see attention.ts. */
export const CONTEXT_CLASSES = ["short", "middle", "long"] as const;

/** One of {@linkcode CONTEXT_CLASSES}. */
export type ContextClass = typeof CONTEXT_CLASSES[number];
