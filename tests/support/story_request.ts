/**
 * Requests that a server answers with the story model, and what it answers.
 *
 * @module
 */

/** A request of `/v1/completions`. */
export const STORY = {
  prompt: "Once upon a time",
  temperature: 0,
  max_tokens: 8,
};

/** What it is answered. */
export const TEXT = ", there was a little girl named Lily";

/** A request that takes a while. */
export const LONG = { ...STORY, max_tokens: 900, ignore_eos: true };
