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

/** `usage` of responses. */
export function responseUsageOf(
  { prompt, cached, completion, reasoning }: Counts,
) {
  return {
    input_tokens: prompt,
    input_tokens_details: { cached_tokens: cached },
    output_tokens: completion,
    output_tokens_details: { reasoning_tokens: reasoning },
    total_tokens: prompt + completion,
  };
}
