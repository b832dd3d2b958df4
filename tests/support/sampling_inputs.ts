/** Inputs for the tests of both samplers. */
import type { Sampling, SamplingOptions } from "../../lib/model/sampling.ts";

/** Sampling with everything off except the given options. */
export const only = (options: SamplingOptions): Sampling => ({
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  seed: 1,
  ...options,
});
