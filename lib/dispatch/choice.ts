/**
 * Choices travel with their reasons.
 *
 * @module
 */

/** A decision and why it was made. */
export interface Choice {
  /** What was decided: `device`, `KV cache`, `shader-f16`, … */
  what: string;
  /** The outcome: `gpu: NVIDIA H100`, `f16`, `off`, … */
  value: string;
  /** Why, as the end of a sentence. */
  reason: string;
}
