/** Inputs for the tests of both samplers. */
import type { Sampling, SamplingOptions } from "../../lib/model/sampling.ts";

/** Sampling with everything off except the given options. */
export const only = (options: SamplingOptions): Sampling => ({
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: {},
  seed: 1,
  ...options,
});
