/**
 * A choice and the reason for it.
 *
 * @module
 */

/** A decision and why it was made. */
export interface Choice {
  /** What was decided: `device`, `KV cache`, `shader-f16`, … */
  what: string;
  /** The outcome: `gpu: NVIDIA H100`, `f16`, `off`, … */
  value: string;
  /** Why, worded to complete a sentence. */
  reason: string;
}
