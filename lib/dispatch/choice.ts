/**
 * A choice travels with its reason.
 *
 * @module
 */

/** A decision, and why it was made. */
export interface Choice {
  what: string;
  value: string;
  reason: string;
}
