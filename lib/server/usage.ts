/**
 * Counts of tokens as OpenAI's API has them.
 *
 * @module
 */
import type { Counts } from "./generation.ts";

/** `usage` of completions. */
export function usageOf({ prompt, cached, completion, reasoning }: Counts) {
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: cached },
    completion_tokens_details: { reasoning_tokens: reasoning },
  };
}
