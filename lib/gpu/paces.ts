/**
 * How fast a model's work is submitted to a GPU: in slices if it would block the thread.
 *
 * @module
 */
import { mlpWidth, type Qwen3Config } from "../checkpoint/config.ts";
import type { ModelWork } from "../dispatch/pass_rows.ts";
import type { Gpu } from "../webgpu/device.ts";
import { Pace } from "../webgpu/pace.ts";

/**
 * Multiplications per millisecond until they are measured. Too low a guess costs a wait of
 * microseconds, in the first prompt only; llvmpipe on two cores does 1 to 6 million.
 */
const GUESS = { hardware: 1e8, software: 2e6 };

/** The paces of a model on a device; units are multiplications. */
export interface Paces {
  readonly work: ModelWork;
  /** Of passes of many tokens, which are bound by arithmetic. */
  readonly prompt: Pace;
  /** Of decode steps, which are bound by reading weights. */
  readonly step: Pace;
}

/** The paces of a model that has not run yet. */
export function pacesOf(gpu: Gpu, config: Qwen3Config): Paces {
  const guess = GUESS[gpu.software ? "software" : "hardware"];
  const { hiddenSize, headDim } = config, inner = mlpWidth(config);
  const q = config.numAttentionHeads * headDim;
  const qkv = q + 2 * config.numKeyValueHeads * headDim;
  const gateUp = 2 * inner;
  return {
    work: {
      layers: config.numHiddenLayers,
      layer: hiddenSize * (qkv + q + gateUp + inner),
      largest: hiddenSize * Math.max(qkv, gateUp),
      head: hiddenSize * config.vocabSize,
      attention: 2 * q,
    },
    prompt: new Pace(gpu, guess),
    step: new Pace(gpu, guess),
  };
}
