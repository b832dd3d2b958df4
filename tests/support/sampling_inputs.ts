/** Inputs that the tests of both samplers share. */
import type { Sampling, SamplingOptions } from "../../lib/model/sampling.ts";

/** Everything off but what is given. */
export const only = (options: SamplingOptions): Sampling => ({
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  seed: 1,
  ...options,
});
